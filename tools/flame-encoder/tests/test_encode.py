"""mean-face, encode and mesh, with an untrained encoder and with the one that ships."""

import json
from dataclasses import replace

import cv2
import forks
import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from flame_encoder.cli import main
from flame_encoder.encoder import encodings, face_boxes, overlays, synthetic, trained
from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.network import EidolonEncoder
from flame_encoder.encoder.vector import Layout
from recon4d import head, images, landmarker
from recon4d.formats.track import Track

SMALL = "mobilenet_v3_small"


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.stderr


def shell(*arguments):
    result = forks.run("flame-encoder", *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images of known heads, their landmarks and faces, and an untrained encoder."""
    folder = tmp_path_factory.mktemp("encode é")
    torch.manual_seed(0)
    network = EidolonEncoder(SMALL)
    trained.save(folder / "e.pth", trained.state_of(network, Layout(), CropView(fov=14.0, size=64), "open-head", SMALL))
    (folder / "images").mkdir()
    (folder / "landmarks").mkdir()
    scene = synthetic.scene(head.load(), Layout(), CropView(fov=14.0, size=160))
    lines = []
    for i in range(3):
        made = synthetic.sample(scene, 11, i, who=0)
        canvas = np.full((240, 320, 3), 90, np.uint8)
        canvas[30:190, 100:260] = made.image[..., ::-1]
        cv2.imwrite(str(folder / f"images/{i}.png"), canvas)
        marks = made.landmarks + np.array([100, 30], np.float32)
        np.save(folder / f"landmarks/{i}.npy", marks)
        box = [*marks.min(0).tolist(), *marks.max(0).tolist()]
        lines.append({"file": f"{i}.png", "width": 320, "height": 240, "detector": "mtcnn", "faces": [{"box": box}]})
    lines[2]["faces"] = []
    (folder / "faces.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


@pytest.fixture(scope="module")
def encoded(folder):
    out = folder / "people.npz"
    result = shell(
        "encode", folder / "images", "--out", out, "--landmarks", folder / "landmarks",
        "--encoder", folder / "e.pth", "--overlay", folder / "sheet.png",
    )  # fmt: skip
    return out, result


def test_encode(folder, encoded):
    out, result = encoded
    assert result["images"] == 3 and result["numbers"] == 227
    found = encodings.read(out)
    assert found.names.tolist() == ["0.png", "1.png", "2.png"] and found.image_sizes.tolist() == [[320, 240]] * 3
    assert cv2.imread(str(folder / "sheet.png")).shape == (2 * 256, 2 * 768, 3)
    encoder = trained.load(folder / "e.pth")
    image = cv2.imread(str(folder / "images/1.png"))[..., ::-1].copy()
    marks = torch.from_numpy(np.load(folder / "landmarks/1.npy").astype(np.float32))[None]
    parts = encoder.encode(torch.from_numpy(image).permute(2, 0, 1)[None] / 255, landmarks=marks)
    torch.testing.assert_close(torch.from_numpy(found.raw[[1]]), encoder.layout.join(parts))
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["transl"], found.parts()["transl"])
    # The solver brought the head to its landmarks, and the file holds the camera in which it is there.
    assert found.found.all() and found.refined.all() and not found.person
    for i in range(3):
        points = overlays.landmarks(encoder.head, found, i).numpy()
        truth = np.load(folder / f"landmarks/{i}.npy")
        unit = np.linalg.norm(truth[36] - truth[45])
        assert np.linalg.norm(points - truth, axis=1)[17:].mean() < 0.08 * unit
    raw = replace(found, vectors=found.raw, focals=np.full(3, 700.0))
    R, t, K = raw.head_pose(encoder.head, 1, focal=900.0)
    expected = encoder.head_pose(parts, K)
    torch.testing.assert_close(R, expected[0][0])
    torch.testing.assert_close(t, expected[1][0])


def test_where_the_face_is(folder, tmp_path):
    """The same person from a box, the detector's faces or nothing: crops about the same place, and what is said."""
    images = [folder / f"images/{i}.png" for i in range(3)]
    encoder = ["--encoder", folder / "e.pth"]
    marks = np.load(folder / "landmarks/0.npy")
    box = ",".join(str(float(x)) for x in (*marks.min(0), *marks.max(0)))
    raw = ["--raw", *encoder]
    run("encode", images[0], "--out", tmp_path / "a.npz", "--box", box, *raw)
    run("encode", images[0], "--out", tmp_path / "b.npz", "--landmarks", folder / "landmarks", *raw)
    a, b = encodings.read(tmp_path / "a.npz"), encodings.read(tmp_path / "b.npz")
    np.testing.assert_array_equal(a.crops, b.crops)
    np.testing.assert_array_equal(a.vectors, b.vectors)
    result = CliRunner().invoke(
        main,
        [str(x) for x in ("encode", *images, "--out", tmp_path / "c.npz", "--faces", folder / "faces.jsonl", *raw)],
    )
    assert result.exit_code == 0, result.output
    found = encodings.read(tmp_path / "c.npz")
    # The box in faces.jsonl is a detector's: its middle is above that of the landmarks, its height larger.
    height = marks[:, 1].max() - marks[:, 1].min()
    assert found.crops[0, 2] == pytest.approx(1.6 * 0.78 * height, abs=1)
    # The encoder that ships, no word on where the face is, and a picture without one.
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((240, 320, 3), 90, np.uint8))
    result = CliRunner().invoke(main, [str(x) for x in ("encode", tmp_path / "wall.png", "--out", tmp_path / "d.npz")])
    assert result.exit_code == 0 and "no face is found in 1 of 1 images (wall.png ...)" in result.stderr
    found = encodings.read(tmp_path / "d.npz")
    assert found.view.size == 112 and found.crops[0].tolist() == [40, 0, 240]
    assert not found.found[0] and not found.refined[0] and (found.vectors == found.raw).all()
    error = run("encode", tmp_path / "wall.png", "--out", tmp_path / "e.npz", "--same-person", code=2)
    assert "no face is found in any of the 1 images" in error and not (tmp_path / "e.npz").exists()


def test_a_second_look(folder, monkeypatch):
    """A face that the landmarker sees only when the picture is shown otherwise; what one try alone sees is nothing."""
    image = images.read(folder / "images/0.png")
    found = landmarker.find
    there = found(image)[0].points[:, :2]
    outer = np.linalg.norm(np.subtract(*there[list(landmarker.EYES)]))

    def blind(picture, **options):
        return [] if picture is image else found(picture, **options)

    monkeypatch.setattr(landmarker, "find", blind)
    face = face_boxes.where(image, None, None)
    assert face.found and np.linalg.norm(face.points - there, axis=1).mean() < 0.05 * outer
    box = face_boxes.box_around(there)
    assert face_boxes.where(image, box, None).points is not None
    assert face_boxes.where(image, box + 200, None).points is None
    assert face_boxes.second_look(np.full_like(image, 128)) is None
    monkeypatch.setattr(face_boxes, "TRIES", face_boxes.TRIES[:1])
    assert not face_boxes.where(image, None, None).found


def test_mesh_of_an_image(encoded, tmp_path):
    out, _ = encoded
    model = head.load()
    found = encodings.read(out)
    for suffix in ("obj", "ply"):  # OBJ without --texture, in the model's own order
        path = tmp_path / f"posed.{suffix}"
        assert run("mesh", out, "--row", 1, "--out", path)["vertices"] == len(model.v_template)
        mesh = trimesh.load(path, process=False)
        R, t, _ = found.head_pose(model, 1)
        assert mesh.faces.shape == (9504, 3)
        # Seen from y up, z to the viewer, the head is before the camera at its distance.
        middle = (R @ (model.joints()[0, 3:].mean(0)) + t) * torch.tensor([1.0, -1.0, -1.0])
        assert np.linalg.norm(mesh.vertices.mean(0) - middle.numpy()) < 0.15
    assert "exists" in run("mesh", out, "--out", tmp_path / "posed.obj", code=2)
    for suffix in ("glb", "gltf"):
        path = tmp_path / f"neutral.{suffix}"
        run("mesh", out, "--neutral", "--out", path)
        (mesh,) = trimesh.load(path).geometry.values()
        expected = model(found.parts([0])["shape"])[0]
        np.testing.assert_allclose(mesh.bounds, torch.stack([expected.amin(0), expected.amax(0)]), atol=1e-6)
        texture = np.asarray(mesh.visual.material.baseColorTexture)
        assert texture.shape[:2] == (512, 512) and texture.std() > 5
        assert mesh.visual.uv.shape == (4967, 2)


def test_mesh_with_texture(encoded, tmp_path):
    """An OBJ with its picture shows the same colours at the same places as the glTF."""
    out, _ = encoded
    run("mesh", out, "--neutral", "--texture", "--out", tmp_path / "a.obj")
    run("mesh", out, "--neutral", "--texture", "--out", tmp_path / "a.glb")
    obj = trimesh.load(tmp_path / "a.obj", process=False)
    (glb,) = trimesh.load(tmp_path / "a.glb").geometry.values()
    np.testing.assert_allclose(obj.bounds, glb.bounds, atol=1e-6)
    ours, theirs = np.asarray(obj.visual.material.image), np.asarray(glb.visual.material.baseColorTexture)
    np.testing.assert_array_equal(ours, theirs[..., :3])
    corners, places = obj.triangles_center, obj.visual.uv[obj.faces].mean(1)
    there = glb.visual.uv[glb.faces].mean(1)
    np.testing.assert_allclose(corners, glb.triangles_center, atol=1e-5)
    np.testing.assert_allclose(places, there, atol=1e-5)
    assert "exists" in run("mesh", out, "--texture", "--out", tmp_path / "a.obj", code=2)
    assert "PLY has none" in run("mesh", out, "--texture", "--out", tmp_path / "a.ply", code=2)


def test_mesh_of_a_track(tmp_path):
    model = head.load()
    eye = np.eye(3, dtype=np.float32)
    track = Track(
        head_model="open-head", image_size=np.array([64, 48]), fps=25.0, K=eye, names=np.array(["a", "b"]),
        valid=np.ones(2, bool), shape=np.full(5, 0.5, np.float32), expression=np.zeros((2, 3), np.float32),
        R=np.stack([eye, np.diag([1, -1, -1]).astype(np.float32)]), 
        t=np.array([[0, 0, 1], [0.1, 0.2, 0.7]], np.float32),
        neck=np.stack([eye, eye]), jaw=np.stack([eye, eye]), eyes=np.tile(eye, (2, 2, 1, 1)),
        eyelids=np.zeros((2, 2), np.float32),
    )  # fmt: skip
    track.write(tmp_path / "track.npz")
    shell("mesh", tmp_path / "track.npz", "--frame", 1, "--out", tmp_path / "a.ply")
    neutral = model(torch.full((1, 5), 0.5))[0].numpy()
    mesh = trimesh.load(tmp_path / "a.ply", process=False)
    np.testing.assert_allclose(mesh.vertices, neutral + np.array([0.1, -0.2, -0.7]), atol=1e-5)
    run("mesh", tmp_path / "track.npz", "--neutral", "--out", tmp_path / "n.ply")
    np.testing.assert_allclose(trimesh.load(tmp_path / "n.ply", process=False).vertices, neutral, atol=1e-6)
    assert "--row 2 is not in" in run("mesh", tmp_path / "track.npz", "--row", 2, "--out", tmp_path / "b.ply", code=2)


def test_mean_face(tmp_path):
    found = shell("mean-face", "--out", tmp_path / "m.png", "--backbone", "resnet18")
    assert found["image"] == [1, 3, 224, 224] and found["vector"] == [1, 227]
    assert found["parts"]["shape"] == [1, 100] and found["parts"]["detail"] == [1, 56]
    image = cv2.imread(str(tmp_path / "m.png")).astype(int)
    assert image.shape == (224, 224, 3) and (image == 255).all(-1)[:, 0].all()
    # A face from the front: lighter and redder skin than hair, nearly symmetric.
    assert image[130, 80:140, 2].mean() > image[4:9, 105:119, 2].mean() + 40
    assert np.abs(image - image[:, ::-1]).mean() < 6
    assert "exists" in run("mean-face", "--out", tmp_path / "m.png", code=2)


def test_show_without_a_screen(monkeypatch, tmp_path):
    monkeypatch.delenv("DISPLAY", raising=False)
    error = run("mean-face", "--out", tmp_path / "m.png", "--backbone", SMALL, "--show", code=2)
    assert "--show can't open a window" in error and (tmp_path / "m.png").exists()


@pytest.mark.parametrize(
    "case, message",
    [
        ("no image", r"is not a readable image"),
        ("empty folder", "has no images"),
        ("same name", "two images are named 0.png"),
        ("box", "is not left,top,right,bottom"),
        ("empty box", "is empty"),
        ("faces", "is not a record of faces"),
        ("no faces", "does not exist"),
        ("landmarks", "is not a folder of landmarks"),
        ("wrong landmarks", "has shape"),
        ("encoder", "does not exist"),
        ("head", "does not exist"),
    ],
)
def test_encode_refuses(folder, tmp_path, case, message):
    image = folder / "images/0.png"
    arguments = {"--encoder": folder / "e.pth"}
    images = [image]
    if case == "no image":
        images = [folder / "faces.jsonl"]
    elif case == "empty folder":
        (tmp_path / "empty").mkdir()
        images = [tmp_path / "empty"]
    elif case == "same name":
        images = [image, image]
    elif case == "box":
        arguments["--box"] = "1,2,3"
    elif case == "empty box":
        arguments["--box"] = "5,5,5,9"
    elif case == "faces":
        (tmp_path / "f.jsonl").write_text('{"file": "0.png", "faces": [{}]}')
        arguments["--faces"] = tmp_path / "f.jsonl"
    elif case == "no faces":
        arguments["--faces"] = tmp_path / "f.jsonl"
    elif case == "landmarks":
        arguments["--landmarks"] = tmp_path / "none"
    elif case == "wrong landmarks":
        (tmp_path / "wrong").mkdir()
        np.save(tmp_path / "wrong/0.npy", np.zeros((5, 2)))
        arguments["--landmarks"] = tmp_path / "wrong"
    elif case == "encoder":
        arguments["--encoder"] = tmp_path / "none.pth"
    elif case == "head":
        arguments["--head-model"] = tmp_path / "none.pkl"
    options = [x for pair in arguments.items() for x in pair]
    error = run("encode", *images, "--out", tmp_path / "o.npz", *options, code=2)
    assert message in error and error.count("\n") == 1 and not (tmp_path / "o.npz").exists()


def test_mesh_refuses(encoded, tmp_path):
    out, _ = encoded
    for arguments, message in (
        ([out, "--row", 3, "--out", tmp_path / "a.obj"], "which has rows 0 to 2"),
        ([out, "--out", tmp_path / "a.stl"], "has no suffix of a mesh"),
        ([tmp_path / "none.npz", "--out", tmp_path / "a.obj"], "does not exist"),
    ):
        assert message in run("mesh", *arguments, code=2)
    with np.load(out) as arrays:
        kept = dict(arrays)
    for change, message in (
        ({"format": "x"}, "neither a file of flame-encoder encode nor a track"),
        ({"vectors": kept["vectors"][:, :100]}, "do not fit"),
        ({"vectors": kept["vectors"] * np.nan}, "NaN"),
        ({"head_model": "flame2023.pkl"}, "belongs to the head model flame2023.pkl"),
        ({"crops": np.zeros(1)}, "do not fit"),
    ):
        np.savez(tmp_path / "bad.npz", **(kept | change))
        assert message in run("mesh", tmp_path / "bad.npz", "--out", tmp_path / "a.obj", code=2)
    del kept["layout_shape"]
    np.savez(tmp_path / "bad.npz", **kept)
    assert "is not complete" in run("mesh", tmp_path / "bad.npz", "--out", tmp_path / "a.obj", code=2)
    assert not list(tmp_path.glob("a.*"))
