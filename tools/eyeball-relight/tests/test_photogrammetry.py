"""Poses of other programs: what is read must see known points where they were."""

import json
import struct

import cv2
import numpy as np
import pytest
import torch
from eyeball_relight import captures, photogrammetry, synth
from recon4d import InputError, cameras
from recon4d.cameras import Camera
from scipy.spatial.transform import Rotation

N, W, H = 6, 64, 48
K = np.array([[90.0, 0, 31], [0, 92.0, 25], [0, 0, 1]])


@pytest.fixture
def truth():
    """World points (20, 3), world_to_camera (N, 4, 4), and where the points are seen (N, 20, 2)."""
    rng = np.random.default_rng(0)
    pose = synth.orbit(N, 64, 2).world_to_camera.double()
    pose[:, :3, 3] *= 7  # another unit
    points = rng.uniform(-0.5, 0.5, (20, 3))
    pixels, _ = Camera(torch.tensor(K), pose, W, H).project(torch.tensor(points))
    return points, pose.numpy(), pixels.numpy()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(N):
        image = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (W, H), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"shot {i}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    return folder


def metashape(path, pose, _):
    cams = "".join(
        f'<camera id="{i}" label="shot {i}"><transform>{" ".join(map(repr, np.linalg.inv(p).ravel().tolist()))}'
        "</transform></camera>"
        for i, p in enumerate(pose)
    )
    path.write_text(
        f'<document version="2.0.0"><chunk><sensors><sensor id="0"><calibration type="frame" class="adjusted">'
        f'<resolution width="{W}" height="{H}"/><f>{K[1, 1]}</f><cx>{K[0, 2] - W / 2}</cx><cy>{K[1, 2] - H / 2}</cy>'
        f"<b1>{K[0, 0] - K[1, 1]}</b1></calibration></sensor></sensors><cameras>{cams}"
        f'<camera id="9" label="not aligned"/></cameras></chunk></document>'
    )
    return path


def quaternion(pose):
    return Rotation.from_matrix(pose[:3, :3]).as_quat()[[3, 0, 1, 2]]


def colmap_text(folder, pose, _):
    folder.mkdir()
    (folder / "cameras.txt").write_text(f"# one\n3 PINHOLE {W} {H} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}\n")
    lines = ["# images"]
    for i, p in enumerate(pose):
        numbers = " ".join(map(repr, [*quaternion(p).tolist(), *p[:3, 3].tolist()]))
        lines += [f"{i + 1} {numbers} 3 shot {i}.jpg", "" if i % 2 else "1.5 2.5 -1 3.5 4.5 7"]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    return folder


def colmap_binary(folder, pose, _):
    folder.mkdir()
    camera = struct.pack("<QiiQQ4d", 1, 3, 1, W, H, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    (folder / "cameras.bin").write_bytes(camera)
    data = struct.pack("<Q", N)
    for i, p in enumerate(pose):
        data += struct.pack("<i7di", i + 1, *quaternion(p), *p[:3, 3], 3) + f"shot {i}.jpg".encode() + b"\0"
        data += struct.pack("<Q", i) + struct.pack("<ddq", 1.0, 2.0, -1) * i
    (folder / "images.bin").write_bytes(data)
    return folder


def nerfstudio(path, pose, extra=None):
    matrices = cameras.to_opengl(torch.tensor(pose)).tolist()
    frames = [{"file_path": f"images/shot {i}.jpg", "transform_matrix": m} for i, m in enumerate(matrices)]
    values = {"w": W, "h": H, "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "frames": frames}
    path.write_text(json.dumps(values | (extra or {})))
    return path


WRITERS = [(metashape, "doc.xml"), (colmap_text, "sparse"), (colmap_binary, "model"), (nerfstudio, "transforms.json")]


@pytest.mark.parametrize(("write", "name"), WRITERS, ids=lambda x: getattr(x, "__name__", ""))
def test_imported_cameras_see_what_the_others_saw(write, name, truth, pictures, tmp_path):
    points, pose, seen = truth
    source = write(tmp_path / name, pose, None)
    out = tmp_path / "out"
    summary = photogrammetry.import_capture(source, pictures, None, out, 1.0)
    assert summary["frames"] == N and summary["scale"] > 0
    names, camera = captures.read_poses(out)
    assert names[0] == "shot 0"
    # our world is theirs moved, turned and scaled: find how from the cameras, then look at the points
    theirs = np.stack([np.linalg.inv(p)[:3, 3] for p in pose])
    ours = camera.center.double().numpy()
    turn, _ = Rotation.align_vectors(ours - ours.mean(0), theirs - theirs.mean(0))
    moved = turn.apply(points - theirs.mean(0)) * summary["scale"] + ours.mean(0)
    pixels, _ = camera.project(torch.tensor(moved).float())
    np.testing.assert_allclose(pixels.numpy(), seen, atol=2e-2)
    # what the cameras look at is in the middle
    assert np.abs(ours.mean(0)).max() < np.linalg.norm(ours, axis=1).mean()
    assert (out / "config.yaml").is_file() and (out / "config_wo-hybrid.yaml").is_file()


def test_pictures_are_undistorted(truth, pictures, tmp_path):
    """A grid of dots drawn where the lens shows them ends up where the pinhole would."""
    _, pose, _ = truth
    lens = np.array([-0.25, 0.08, 0.004, -0.003, 0.0])
    dots = np.stack(np.meshgrid([12.0, 31, 50], [10.0, 25, 38]), -1).reshape(-1, 2)  # pinhole pixels, centres at +0.5
    rays = np.concatenate([dots, np.ones((9, 1))], 1) @ np.linalg.inv(K).T
    bent, _ = cv2.projectPoints(rays[:, None], np.zeros(3), np.zeros(3), K, lens)
    y, x = np.mgrid[0:H, 0:W] + 0.5
    picture = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / 3) for u, v in bent[:, 0])
    cv2.imwrite(str(pictures / "shot 0.jpg"), np.uint8(np.clip(picture, 0, 1) * 255), [cv2.IMWRITE_JPEG_QUALITY, 100])
    extra = dict(zip(("k1", "k2", "p1", "p2"), lens.tolist()))
    out = tmp_path / "out"
    photogrammetry.import_capture(nerfstudio(tmp_path / "t.json", pose, extra), pictures, pictures, out, 1.0)
    flat = cv2.imread(str(out / "mask" / "shot 0.png"), 0).astype(float)
    for u, v in dots:
        near = ((x - u) ** 2 + (y - v) ** 2 < 9) * flat
        assert abs((near * x).sum() / near.sum() - u) < 0.15 and abs((near * y).sum() / near.sum() - v) < 0.15


def test_metashape_swaps_p1_and_p2(truth, tmp_path):
    path = metashape(tmp_path / "doc.xml", truth[1], None)
    path.write_text(path.read_text().replace("</b1>", "</b1><k1>0.1</k1><k3>0.3</k3><p1>0.01</p1><p2>0.02</p2>"))
    np.testing.assert_allclose(photogrammetry.read(path).distortion, [0.1, 0, 0.02, 0.01, 0.3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", "<document><chunk>", "is not a whole XML file"),
        ("b.xml", "<document/>", "has 0 calibrated sensors"),
        ("c.json", '{"frames": []}', "is not a readable transforms.json"),
        ("d.txt", "", "is neither Metashape's"),
    ],
)
def test_wrong_sources(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        photogrammetry.read(tmp_path / name)


def test_wrong_models(truth, tmp_path):
    folder = colmap_binary(tmp_path / "cut", truth[1], None)
    (folder / "images.bin").write_bytes((folder / "images.bin").read_bytes()[:200])
    with pytest.raises(InputError, match="does not hold a whole COLMAP model"):
        photogrammetry.read(folder)
    folder = colmap_text(tmp_path / "fisheye", truth[1], None)
    (folder / "cameras.txt").write_text("3 OPENCV_FISHEYE 64 48 1 1 1 1 0 0 0 0\n")
    with pytest.raises(InputError, match="OPENCV_FISHEYE is not supported"):
        photogrammetry.read(folder)
    with pytest.raises(InputError, match=r"neither images\.bin nor images\.txt"):
        photogrammetry.read(tmp_path)


def test_wrong_pictures(truth, pictures, tmp_path):
    source = nerfstudio(tmp_path / "t.json", truth[1])
    with pytest.raises(InputError, match="is not a folder"):
        photogrammetry.import_capture(source, tmp_path / "none", None, tmp_path / "o", 1.0)
    cv2.imwrite(str(pictures / "shot 1.jpg"), np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(InputError, match=r"has 5x5 pixels and t\.json says 64x48"):
        photogrammetry.import_capture(source, pictures, None, tmp_path / "o", 1.0)
    (pictures / "shot 1.jpg").unlink()
    with pytest.raises(InputError, match="has no picture shot 1"):
        photogrammetry.import_capture(source, pictures, None, tmp_path / "p", 1.0)


def test_cameras_that_all_look_one_way(truth, pictures, tmp_path):
    pose = np.tile(np.eye(4), (N, 1, 1))
    pose[:, 0, 3] = np.arange(N)
    with pytest.raises(InputError, match="look in the same direction"):
        photogrammetry.import_capture(nerfstudio(tmp_path / "t.json", pose), pictures, None, tmp_path / "o", 1.0)
