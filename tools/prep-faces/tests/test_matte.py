"""Head mattes of all methods against heads that were drawn, and the pieces of GrabCut's against independent ones."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from prep_faces.affine import compose, head_motion, invert, warp
from prep_faces.alpha import foreground_colors
from prep_faces.cuts import steadied, steady
from prep_faces.grabcut import Cut, seeds, tidy
from prep_faces.guided import guided_filter
from prep_faces.headshape import shape_from_landmarks
from prep_faces.matte import write_mattes
from recon4d import InputError
from recon4d.images import write_png


@pytest.fixture(scope="module")
def clip(capture, tmp_path_factory):
    """The drawn clip on disk: frames/, landmarks/, track.npz."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "landmarks").mkdir()
    for i, (image, points) in enumerate(zip(capture.images, capture.landmarks)):
        write_png(folder / "frames" / f"{i:05d}.png", image)
        np.save(folder / "landmarks" / f"{i:05d}.npy", points.astype(np.float32))
    capture.track.write(folder / "track.npz")
    return folder


def overlaps(folder, capture):
    found = []
    for i, truth in enumerate(capture.alphas):
        with Image.open(folder / f"{i:05d}.png") as image:
            assert image.mode == "RGBA"
            alpha = np.asarray(image)[..., 3] > 127
        found.append((alpha & truth).sum() / (alpha | truth).sum())
    return np.array(found)


def test_command_with_track(run, clip, capture, tmp_path):
    done = run("matte", clip / "frames", "--track", clip / "track.npz", "--out", tmp_path / "m ü")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == 8
    assert overlaps(tmp_path / "m ü", capture).mean() > 0.95
    # Inside the head the colours are those of the frame.
    with Image.open(tmp_path / "m ü" / "00003.png") as image:
        rgba = np.asarray(image)
    sure = rgba[..., 3] == 255
    assert sure.sum() > 1000 and np.array_equal(rgba[sure][:, :3], capture.images[3][sure])
    records = [json.loads(line) for line in (tmp_path / "m ü" / "matte.jsonl").read_text().splitlines()]
    assert records[3]["coverage"] == pytest.approx(rgba[..., 3].mean() / 255, abs=1e-4)


def test_landmarks_alone_and_a_gap_in_them(clip, capture, tmp_path):
    points = tmp_path / "landmarks"
    points.mkdir()
    for i in (0, 1, 2, 3, 6, 7):
        points.joinpath(f"{i:05d}.npy").write_bytes((clip / "landmarks" / f"{i:05d}.npy").read_bytes())
    result = write_mattes([clip / "frames"], tmp_path / "m", landmarks=points)
    assert result["written"] == 8
    # Less than with the track: hair and neck are guessed, before a cup of the colour of skin.
    assert overlaps(tmp_path / "m", capture).mean() > 0.75


def test_alone_it_looks_for_faces(clip, capture, tmp_path):
    write_png(tmp_path / "f" / "a.png", capture.images[3])
    write_png(tmp_path / "f" / "b.png", np.full((90, 90, 3), 50, np.uint8))
    result = write_mattes([tmp_path / "f"], tmp_path / "m", photos=True)
    assert (result["written"], result["failed"]) == (1, 1)
    assert "no face found" in (tmp_path / "m" / "matte.jsonl").read_text()


def test_it_keeps_to_the_person_it_began_with(portrait, tmp_path):
    """A larger face comes in on the right: the head on the left is still the one that is cut out."""
    small = cv2.resize(portrait, (200, 200), interpolation=cv2.INTER_AREA)
    for i in range(4):
        picture = np.full((300, 500, 3), 120, np.uint8)
        picture[60:260, :200] = small
        if i > 0:
            picture[:, 200:] = portrait
        write_png(tmp_path / "f" / f"{i}.png", picture)
    assert write_mattes([tmp_path / "f"], tmp_path / "m")["written"] == 4
    for line in (tmp_path / "m" / "matte.jsonl").read_text().splitlines():
        left, _, right, _ = json.loads(line)["box"]
        assert left < 100 and right < 220
    points = np.load(tmp_path / "m" / "landmarks" / "3.npy")
    assert points[:, 0].max() < 200


class LeftHalf(torch.nn.Module):
    """Alpha 1 on the left half of the image, and another tensor first, as matting networks have."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        columns = torch.arange(image.shape[3]).expand(image.shape[0], 1, image.shape[2], image.shape[3])
        return image, (columns < image.shape[3] // 2).float()


def test_model_decides_alpha(run, clip, capture, tmp_path):
    torch.jit.script(LeftHalf()).save(str(tmp_path / "model.pt"))
    frame, points = clip / "frames" / "00003.png", clip / "landmarks"
    arguments = (frame, "--landmarks", points, "--model", tmp_path / "model.pt", "--trust-code")
    done = run("matte", *arguments, "--out", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "m" / "00003.png") as image:
        alpha = np.asarray(image)[..., 3]
    middle = capture.landmarks[3][27].astype(int)
    assert alpha[middle[1], middle[0] - 25] == 255 and alpha[middle[1], middle[0] + 40] == 0
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    torch.jit.script(torch.nn.Conv2d(3, 2, 3)).save(str(tmp_path / "wrong.pt"))
    for name, what in (("bad.pt", "is not a TorchScript file"), ("wrong.pt", "gives no alpha")):
        with pytest.raises(InputError, match=what):
            write_mattes([frame], tmp_path / "x", landmarks=points, model=tmp_path / name, trust_code=True)
        assert not (tmp_path / "x").exists()


def test_bad_input(clip, tmp_path):
    np.savez(tmp_path / "else.npz", a=1)
    with pytest.raises(InputError, match="is not a track file"):
        write_mattes([clip / "frames"], tmp_path / "m", track=tmp_path / "else.npz")
    with pytest.raises(InputError, match="give one of them"):
        write_mattes([clip / "frames"], tmp_path / "m", landmarks=clip / "landmarks", track=clip / "track.npz")
    with pytest.raises(InputError, match="add --track"):
        write_mattes([clip / "frames"], tmp_path / "m", head_model="flame.pkl")
    with pytest.raises(InputError, match="is not a folder"):
        write_mattes([clip / "frames"], tmp_path / "m", landmarks=clip / "track.npz")
    write_png(tmp_path / "other" / "x.png", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(InputError, match="is of other images"):
        write_mattes([tmp_path / "other"], tmp_path / "m", track=clip / "track.npz")
    with pytest.raises(InputError, match="holds no points for these images"):
        write_mattes([tmp_path / "other"], tmp_path / "m", landmarks=clip / "landmarks")
    assert not (tmp_path / "m").exists()
    # One file of another shape: recorded, the others done.
    write_png(tmp_path / "mixed" / "00000.png", np.zeros((20, 50, 3), np.uint8))
    for i in (1, 2):
        data = (clip / "frames" / f"{i:05d}.png").read_bytes()
        (tmp_path / "mixed" / f"{i:05d}.png").write_bytes(data)
    (tmp_path / "mixed" / "00003.png").write_bytes(data[:500])
    result = write_mattes([tmp_path / "mixed"], tmp_path / "m", track=clip / "track.npz")
    assert (result["written"], result["failed"]) == (2, 2)
    errors = (tmp_path / "m" / "matte.jsonl").read_text()
    assert "this one is 50x20" in errors and "not a readable image" in errors


def test_resumes_with_the_same_result(clip, tmp_path):
    for name in "ab":
        write_mattes([clip / "frames"], tmp_path / name, track=clip / "track.npz")
    table = tmp_path / "b" / "matte.jsonl"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    for i in range(3, 8):
        (tmp_path / "b" / f"{i:05d}.png").unlink()
    (tmp_path / "b" / ".recon4d-4194399-x8_yz012.png").write_bytes(b"half")  # no process has this number
    result = write_mattes([clip / "frames"], tmp_path / "b", track=clip / "track.npz")
    assert result["kept"] == 3
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(p.name for p in (tmp_path / "b").iterdir())
    for path in [path for path in (tmp_path / "a").rglob("*") if path.is_file()]:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_a_lower_resolution_than_the_track(clip, capture, tmp_path):
    for i, image in enumerate(capture.images[:2]):
        write_png(tmp_path / "f" / f"{i:05d}.png", cv2.resize(image, (160, 160), interpolation=cv2.INTER_AREA))
    write_mattes([tmp_path / "f"], tmp_path / "m", track=clip / "track.npz")
    with Image.open(tmp_path / "m" / "00001.png") as image:
        alpha = np.asarray(image)[..., 3] > 127
    truth = cv2.resize(capture.alphas[1].astype(np.float32), (160, 160), interpolation=cv2.INTER_AREA) > 0.5
    assert (alpha & truth).sum() / (alpha | truth).sum() > 0.9


def test_guided_filter_against_its_definition():
    """Equations 14-16 solved window by window with a general solver."""
    rng = np.random.default_rng(0)
    guide = rng.random((12, 14, 3)).astype(np.float32)
    values = rng.random((12, 14)).astype(np.float32)
    radius, eps = 2, 1e-2
    pad = [(radius, radius), (radius, radius)]
    padded_guide = np.pad(guide, [*pad, (0, 0)], mode="symmetric").astype(np.float64)
    padded_values = np.pad(values, pad, mode="symmetric").astype(np.float64)
    slopes, offsets = np.empty((12, 14, 3)), np.empty((12, 14))
    for y in range(12):
        for x in range(14):
            window = padded_guide[y : y + 5, x : x + 5].reshape(-1, 3)
            target = padded_values[y : y + 5, x : x + 5].ravel()
            covariance = np.cov(window.T, bias=True) + eps * np.eye(3)
            mixed = (window * target[:, None]).mean(0) - window.mean(0) * target.mean()
            slopes[y, x] = np.linalg.solve(covariance, mixed)
            offsets[y, x] = target.mean() - slopes[y, x] @ window.mean(0)
    padded_slopes = np.pad(slopes, [*pad, (0, 0)], mode="symmetric")
    padded_offsets = np.pad(offsets, pad, mode="symmetric")
    for y in range(12):
        for x in range(14):
            slope = padded_slopes[y : y + 5, x : x + 5].mean((0, 1))
            expected = slope @ guide[y, x] + padded_offsets[y : y + 5, x : x + 5].mean()
            assert guided_filter(guide, values, radius, eps)[y, x] == pytest.approx(np.clip(expected, 0, 1), abs=1e-3)


def test_foreground_colors_undo_the_mixture():
    """A red disk before blue, mixed by a soft edge: where alpha is at least a half the red comes back."""
    ys, xs = np.mgrid[0:80, 0:80]
    alpha = np.clip((25 - np.hypot(xs - 40, ys - 40)) / 6 + 0.5, 0, 1).astype(np.float32)
    image = alpha[..., None] * [220.0, 30, 20] + (1 - alpha[..., None]) * [10.0, 40, 230]
    colors = foreground_colors(np.rint(image).astype(np.uint8), alpha, 8)
    edge = (alpha >= 0.5) & (alpha < 1)
    assert np.abs(colors[edge] - np.array([220, 30, 20])).max() < 12
    assert np.abs(image[edge] - np.array([220, 30, 20])).max() > 90
    outside = alpha == 0
    assert np.array_equal(colors[outside], np.rint(image).astype(np.uint8)[outside])


def test_tidy_keeps_the_head_and_fills_holes():
    head = np.zeros((30, 40), np.uint8)
    head[5:30, 5:20] = 1
    head[10:14, 8:12] = 0  # a hole
    head[2:28, 25:40] = 1  # larger, but not the face
    sure = np.zeros_like(head, bool)
    sure[20, 10] = True
    expected = np.zeros_like(head)
    expected[5:30, 5:20] = 1
    assert np.array_equal(tidy(head, sure), expected)


def test_affine_pieces():
    rng = np.random.default_rng(0)
    points = rng.random((9, 2)) * 50
    turn = np.array([[1.2, -0.4, 7.0], [0.4, 1.2, -3.0]])
    moved = points @ turn[:, :2].T + turn[:, 2]
    assert head_motion(points, moved) == pytest.approx(turn)
    assert compose(invert(turn), turn) == pytest.approx(np.eye(2, 3))
    image = rng.random((8, 8)).astype(np.float32)
    shift = np.array([[1.0, 0, 2], [0, 1, 1]])
    assert np.allclose(warp(image, shift, 8, 8)[1:, 2:], image[:-1, :-2], atol=1e-6)


def test_thick_hair_teaches_neither_side(capture):
    shape = shape_from_landmarks(capture.landmarks[0])
    height, width = capture.images[0].shape[:2]
    moved = np.array([[1.0, 0, 0], [0, 1, height]])  # room above the head
    front, back = seeds(shape, moved, 2 * height, width)[2]
    crown = np.concatenate(shape.polygons)
    crown = crown[(crown @ shape.up).argmax()]
    for away, sure in ((0.1, 0.0), (0.35, 0.0), (0.62, 1.0)):  # in face widths above the crown
        x, y = np.array([0, height]) + (crown + away * shape.width * shape.up).astype(int)
        assert front[y, x] == 0 and back[y, x] == sure


def test_the_vote_drops_what_one_frame_shows():
    still = np.eye(2, 3)
    clean = np.zeros((10, 10), np.float32)
    clean[3:8, 3:8] = 1
    wrong = clean.copy()
    wrong[0:3, 0:3] = 1
    cuts = [Cut(clean, still), Cut(wrong, still), Cut(clean, still)]
    assert np.array_equal(steady(cuts, [still] * 3, 1).matte, clean)
    # Errors pass through in their place.
    error = InputError("x")
    assert list(steadied(iter([error, None, error]), 2)) == [error, None, error]
