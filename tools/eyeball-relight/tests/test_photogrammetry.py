"""Poses of other programs: what is read must see known points where they were."""

import json
import shutil
import struct

import cv2
import numpy as np
import pytest
import torch
from eyeball_relight import captures, photogrammetry, synth
from PIL import Image
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
    shutil.copytree(pictures, tmp_path / "masks")
    source = nerfstudio(tmp_path / "t.json", pose, extra)
    photogrammetry.import_capture(source, pictures, tmp_path / "masks", out, 1.0)
    flat = cv2.imread(str(out / "mask" / "shot 0.png"), 0).astype(float)
    for u, v in dots:
        near = ((x - u) ** 2 + (y - v) ** 2 < 9) * flat
        assert abs((near * x).sum() / near.sum() - u) < 0.15 and abs((near * y).sum() / near.sum() - v) < 0.15


def test_wrong_pictures(truth, pictures, tmp_path):
    source = nerfstudio(tmp_path / "t.json", truth[1])
    with pytest.raises(InputError, match="is not a folder"):
        photogrammetry.import_capture(source, tmp_path / "none", None, tmp_path / "o", 1.0)
    cv2.imwrite(str(pictures / "shot 1.jpg"), np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(InputError, match=r"has 5x5 pixels and t\.json says 64x48"):
        photogrammetry.import_capture(source, pictures, None, tmp_path / "o", 1.0)
    (pictures / "shot 1.jpg").unlink()
    with pytest.raises(InputError, match="has no picture images/shot 1"):
        photogrammetry.import_capture(source, pictures, None, tmp_path / "p", 1.0)


def test_cameras_that_all_look_one_way(truth, pictures, tmp_path):
    pose = np.tile(np.eye(4), (N, 1, 1))
    pose[:, 0, 3] = np.arange(N)
    with pytest.raises(InputError, match="look in the same direction"):
        photogrammetry.import_capture(nerfstudio(tmp_path / "t.json", pose), pictures, None, tmp_path / "o", 1.0)


def painted(folder, names, size=(W, H), **options):
    """Pictures that differ from place to place."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        values = np.dstack([x * 3, y * 5, np.full_like(x, 20 * i)]).astype(np.uint8)
        Image.fromarray(values).save(folder / name, **options)
    return folder


def imported(source, pictures, masks, out):
    said = []
    photogrammetry.import_capture(source, pictures, masks, out, log=said.append)
    return captures.read_poses(out)[1], " ".join(said)


@pytest.mark.parametrize("form", ["{0}.jpg.png", "{0}_mask.png", "{0}.png", "dynamic_mask_{0}.tif"])
def test_masks_of_other_programs_and_their_alpha(truth, tmp_path, form):
    pictures = painted(tmp_path / "pictures", [f"shot {i}.jpg" for i in range(N)])
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(N):
        mask = np.zeros((H, W, 4), np.uint8)
        mask[10:20, 30:50, 3] = 255  # black, and the head is what is opaque
        Image.fromarray(mask).save(masks / form.format(f"shot {i}"))
    imported(nerfstudio(tmp_path / "t.json", truth[1]), pictures, masks, tmp_path / "out")
    found = cv2.imread(str(tmp_path / "out/mask/shot 3.png"), cv2.IMREAD_GRAYSCALE)
    assert found[15, 40] == 255 and found.mean() == 255 * 200 / (W * H)


def test_masks_that_the_source_names(truth, pictures, tmp_path):
    painted(tmp_path / "m", [f"{i}.png" for i in range(N)])
    source = nerfstudio(tmp_path / "t.json", truth[1])
    data = json.loads(source.read_text())
    for i, frame in enumerate(data["frames"]):
        frame["mask_path"] = f"m/{i}.png"
    source.write_text(json.dumps(data))
    imported(source, pictures, None, tmp_path / "out")
    assert len(list((tmp_path / "out/mask").iterdir())) == N
    data["frames"][2]["mask_path"] = "../../m/2.png"
    source.write_text(json.dumps(data))
    with pytest.raises(InputError, match="names the mask"):
        imported(source, pictures, None, tmp_path / "out2")


def test_pictures_in_sub_folders_of_several_cameras(truth, tmp_path):
    """Two lenses, sub folders with the same names, no suffix of ours alone: each picture by its own lens."""
    names = [f"{side}/{i}.tif" for i in range(3) for side in ("left", "right")]
    pictures = painted(tmp_path / "pictures", names)
    folder = colmap_text(tmp_path / "m", truth[1], None)
    (folder / "cameras.txt").write_text("3 PINHOLE 64 48 90 92 31 25\n4 SIMPLE_RADIAL_FISHEYE 64 48 60 32 24 0.01\n")
    lines = [line for line in (folder / "images.txt").read_text().splitlines() if line.endswith("jpg")]
    lines = [line.replace(f"3 shot {i}.jpg", f"{3 + i % 2} {names[i]}") for i, line in enumerate(lines)]
    (folder / "images.txt").write_text("\n".join(lines))
    camera, said = imported(folder, pictures, None, tmp_path / "out")
    assert "pictures are of another camera" in said
    stems = {path.stem for path in (tmp_path / "out/image").iterdir()}
    assert stems == {f"{side}_{i}" for i in range(3) for side in ("left", "right")}
    # what the left-hand pinhole saw along a ray is where the common camera sees it
    found = cv2.imread(str(tmp_path / "out/image/left_0.png"))[..., ::-1].astype(float)
    u, v = 40, 30
    ray = np.linalg.inv(camera.K.numpy().astype(float)) @ [u + 0.5, v + 0.5, 1]
    seen = (K @ ray)[:2] - 0.5
    np.testing.assert_allclose(found[v, u, :2], [seen[0] * 3, seen[1] * 5], atol=1.5)
    other = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    bent, _ = cv2.fisheye.projectPoints(ray[None, None], np.zeros(3), np.zeros(3), other, np.array([0.01, 0, 0, 0]))
    found = cv2.imread(str(tmp_path / "out/image/right_0.png"))[..., ::-1].astype(float)
    np.testing.assert_allclose(found[v, u, :2], (bent[0, 0] - 0.5) * [3, 5], atol=1.5)


@pytest.mark.parametrize("upright", [False, True])
def test_exif_turns_picture_and_pose_alike(truth, tmp_path, upright):
    """Pictures of which EXIF says that they lie on their side: poses of what is stored, and of what is shown."""
    points, pose, seen = truth
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = painted(tmp_path / "pictures", [f"shot {i}.png" for i in range(N)], exif=exif)
    top = {"w": W, "h": H}
    if upright:  # the poses of the turned pictures
        turn = np.eye(4)
        turn[:2, :2] = [[0, -1], [1, 0]]
        pose = turn @ pose
        top = {"w": H, "h": W, "fl_x": K[1, 1], "fl_y": K[0, 0], "cx": H - K[1, 2], "cy": K[0, 2]}
    camera, _ = imported(nerfstudio(tmp_path / "t.json", pose, top), pictures, None, tmp_path / "out")
    assert (camera.width, camera.height) == (H, W)
    np.testing.assert_allclose(camera.K.numpy(), [[92, 0, H - 25], [0, 90, 31], [0, 0, 1]], atol=1e-4)
    found = cv2.imread(str(tmp_path / "out/image/shot 0.png"))[..., ::-1]
    assert found.shape == (W, H, 3) and found[50, 10].tolist() == [150, (H - 1 - 10) * 5, 0]
    # a point is where its stored pixel went
    theirs = np.stack([np.linalg.inv(p)[:3, 3] for p in pose])
    ours = camera.center.double().numpy()
    rotation, _ = Rotation.align_vectors(ours - ours.mean(0), theirs - theirs.mean(0))
    scale = np.linalg.norm(ours - ours.mean(0)) / np.linalg.norm(theirs - theirs.mean(0))
    moved = rotation.apply(points - theirs.mean(0)) * scale + ours.mean(0)
    pixels, _ = camera.project(torch.tensor(moved).float())
    np.testing.assert_allclose(pixels.numpy(), np.stack([H - seen[..., 1], seen[..., 0]], -1), atol=2e-2)


def test_synthetic_scenes_of_nerf(truth, tmp_path):
    """An angle, names without suffix, pictures whose alpha is the mask."""
    pictures = tmp_path / "train"
    pictures.mkdir()
    for i in range(N):
        rgba = np.full((H, W, 4), 90, np.uint8)
        rgba[..., 3] = 0
        rgba[5:25, 5:25, 3] = 255
        Image.fromarray(rgba).save(pictures / f"r_{i}.png")
    matrices = cameras.to_opengl(torch.tensor(truth[1])).tolist()
    frames = [{"file_path": f"./train/r_{i}", "rotation": 0.01, "transform_matrix": m} for i, m in enumerate(matrices)]
    source = tmp_path / "transforms_train.json"
    source.write_text(json.dumps({"camera_angle_x": 2 * np.arctan(0.5), "frames": frames}))
    camera, _ = imported(source, pictures, None, tmp_path / "out")
    np.testing.assert_allclose(camera.K.numpy(), [[64, 0, 32], [0, 64, 24], [0, 0, 1]], atol=1e-4)
    mask = cv2.imread(str(tmp_path / "out/mask/r_2.png"), cv2.IMREAD_GRAYSCALE)
    assert mask.mean() == 255 * 400 / (W * H)
