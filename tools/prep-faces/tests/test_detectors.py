"""The detectors against the packages they come from, and against each other."""

import json
from concurrent.futures import ThreadPoolExecutor

import lz4.frame
import numpy as np
import pytest
import skimage.data
import torch
from prep_faces.detection import write_faces
from prep_faces.detectors import detect
from prep_faces.landmarks import overlap
from prep_faces.mtcnn import crop_and_resize, load_networks, propose, read_weights
from recon4d import InputError
from recon4d.images import write_png

# What the package mtcnn 1.0.0 (TensorFlow 2, CPU) answers for skimage.data.astronaut(): box, score, x and y of points.
REFERENCE_BOX = [181.598, 63.7258, 264.5528, 171.0792]
REFERENCE_SCORE = 0.9991
REFERENCE_X = [203.5409, 245.4086, 224.2244, 201.7895, 244.3894]
REFERENCE_Y = [100.1035, 102.2382, 126.4196, 138.5869, 140.377]

# And, rounded to pixels as `MTCNN().detect_faces(image, box_format="xyxy", postprocess=False)` does, for pictures cut
# from it: box, score, x and y of eyes, nose and mouth corners.
ROUNDED = {
    "mirrored pair": [
        ([111, 66, 194, 172], 0.9984, [133, 175, 155, 131, 174], [101, 103, 127, 139, 141]),
        ([403, 66, 489, 171], 0.9975, [423, 466, 446, 425, 469], [103, 101, 128, 141, 138]),
    ],
    "twice as large": [([160, 116, 338, 349], 0.9999, [208, 293, 250, 203, 290], [201, 206, 255, 276, 282])],
    "half as large": [([91, 30, 134, 87], 0.9990, [102, 123, 112, 101, 122], [50, 51, 63, 70, 70])],
    "on its side": [],
}


def cut_from_it(name):
    whole = skimage.data.astronaut()
    portrait = whole[:300, 70:370]
    return np.ascontiguousarray(
        {
            "mirrored pair": np.concatenate([portrait, portrait[:, ::-1]], axis=1),
            "twice as large": whole[:260, 100:360].repeat(2, axis=0).repeat(2, axis=1),
            "half as large": whole[::2, ::2],
            "on its side": np.rot90(whole[20:220, 120:320]),
        }[name]
    )


@pytest.mark.parametrize("name", ROUNDED)
def test_mtcnn_gives_the_rounded_numbers_of_its_package(name):
    faces = detect([cut_from_it(name)], "mtcnn")[0]
    assert len(faces.boxes) == len(ROUNDED[name])
    for (box, score, x, y), ours in zip(ROUNDED[name], np.argsort(-faces.scores)):
        assert faces.boxes[ours] == pytest.approx(np.array(box), abs=0.55)
        assert faces.scores[ours] == pytest.approx(score, abs=2e-4)
        assert faces.points[ours] - 0.5 == pytest.approx(np.stack([x, y], axis=1), abs=0.55)


def test_mtcnn_gives_the_numbers_of_its_package():
    faces = detect([skimage.data.astronaut()], "mtcnn")[0]
    assert faces.boxes == pytest.approx(np.array([REFERENCE_BOX]), abs=0.05)
    assert faces.scores == pytest.approx([REFERENCE_SCORE], abs=1e-3)
    # The package counts pixel centres from 0, we have them at a half.
    reference = np.stack([REFERENCE_X, REFERENCE_Y], axis=1) + 0.5
    assert faces.points[0] == pytest.approx(reference, abs=0.05)


def test_a_batch_gives_what_single_images_give(portrait):
    pictures = [
        portrait,
        np.full((1, 1, 3), 9, np.uint8),
        portrait[:200, :250],
        np.zeros((30, 400, 3), np.uint8),
    ]
    together = detect(pictures, "mtcnn")
    assert [len(faces.boxes) for faces in together] == [1, 0, 1, 0]
    for picture, faces in zip(pictures, together):
        alone = detect([picture], "mtcnn")[0]
        assert np.allclose(alone.boxes, faces.boxes, atol=1e-2)
        assert np.allclose(alone.points, faces.points, atol=1e-2)


def test_detectors_agree(portrait, capture):
    for picture in (portrait, capture.images[3]):
        by_mtcnn, by_dlib = (detect([picture], name)[0] for name in ("mtcnn", "dlib"))
        assert overlap(by_mtcnn.boxes[0], by_dlib.boxes[0]) > 0.5
        eyes = np.linalg.norm(by_dlib.points[0, 0] - by_dlib.points[0, 1])
        assert np.linalg.norm(by_mtcnn.points[0] - by_dlib.points[0], axis=1).mean() < 0.1 * eyes


def test_images_of_one_size_go_through_the_first_network_together(portrait):
    """As on a GPU; there is no more than rounding between that and one by one."""
    images = [(np.roll(portrait, 9 * i, axis=1).astype(np.float32) - 127.5) / 128 for i in range(3)]
    network = load_networks()[0]
    with torch.inference_mode():
        together = propose(network, images, "cpu")
        for image, boxes in zip(images, together):
            (alone,) = propose(network, [image], "cpu")
            assert len(alone) > 5 and boxes == pytest.approx(alone, abs=1e-2)


def test_crops_against_torch_grid_sample():
    rng = np.random.default_rng(0)
    image = rng.random((20, 30, 3)).astype(np.float32)
    boxes = np.array([[3.0, 2, 14, 13], [0, 0, 29, 19]], np.float32)
    crops = crop_and_resize(image, boxes, 7)
    for box, crop in zip(boxes, crops):
        # Corner samples on the box's corners, in coordinates that run from 0 to length - 1 over the image.
        x = torch.linspace(box[0], box[2], 7) * 29 / 30
        y = torch.linspace(box[1], box[3], 7) * 19 / 20
        grid = torch.stack(torch.meshgrid(x / 29 * 2 - 1, y / 19 * 2 - 1, indexing="xy"), -1)[None]
        planes = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = torch.nn.functional.grid_sample(planes, grid, align_corners=True)[0].permute(1, 2, 0)
        assert crop == pytest.approx(expected.numpy(), abs=1e-5)
    assert not crop_and_resize(image, np.array([[-50.0, -50, -10, -10]]), 5).any()


def test_broken_weights_are_refused(tmp_path):
    (tmp_path / "w.lz4").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not the expected weights file"):
        read_weights(tmp_path / "w.lz4", [(3, 3)])
    (tmp_path / "w.lz4").write_bytes(lz4.frame.compress(b"cos\nsystem\n(S'touch x'\ntR."))
    with pytest.raises(InputError, match="is not the expected weights file"):
        read_weights(tmp_path / "w.lz4", [(3, 3)])
    with pytest.raises(InputError, match="is missing"):
        read_weights(tmp_path / "none.lz4", [(3, 3)])
    assert sum(p.numel() for p in load_networks()[2].parameters()) == 389040


@pytest.mark.parametrize("detector", ["mtcnn", "dlib"])
def test_detect_command(run, portrait, tmp_path, detector):
    pair = np.concatenate([portrait, portrait[:, ::-1]], axis=1)
    write_png(tmp_path / "f" / "zwei ü.png", np.ascontiguousarray(pair))
    write_png(tmp_path / "f" / "wall.png", np.full((70, 70, 3), 128, np.uint8))
    (tmp_path / "f" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = ("detect", tmp_path / "f", "--out", tmp_path / "o", "--detector", detector, "--device", "cpu")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["images"], result["failed"], result["faces"]) == (3, 2, 2)
    records = {r["file"]: r for r in map(json.loads, (tmp_path / "o" / "faces.jsonl").read_text().splitlines())}
    assert records["wall.png"]["error"] == "no face found"
    assert "not a readable image" in records["broken.jpg"]["error"]
    left, right = sorted(np.array([face["points"] for face in records["zwei ü.png"]["faces"]]), key=lambda p: p[0, 0])
    # The right half is the left one mirrored about x = 300: eyes and mouth corners change places.
    mirrored = (left * [-1, 1] + [600, 0])[[1, 0, 2, 4, 3]]
    assert np.abs(mirrored - right).mean() < 1.5
    if detector == "dlib":
        assert write_faces([tmp_path / "f"], tmp_path / "o", detector)["kept"] == 1
        assert run(*arguments, "--strict").returncode == 2


def test_threads_find_what_one_finds(portrait):
    """dlib's detector holds the picture it works on: threads that share one crash or mix their answers."""
    pictures = [np.ascontiguousarray(portrait[i : 220 + 2 * i, i:]) for i in range(12)]
    alone = [detect([picture], "dlib")[0].boxes for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: detect([picture], "dlib")[0].boxes, pictures))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))
