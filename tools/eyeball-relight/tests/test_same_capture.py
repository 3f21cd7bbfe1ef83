"""One capture in the files of five programs becomes the same capture: poses, intrinsics, pictures, masks."""

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from eyeball_relight import captures, photogrammetry, synth
from PIL import Image
from recon4d import cameras
from scipy.spatial.transform import Rotation

N, W, H, F = 6, 64, 48, 90.0  # square pixels and a centred axis, which is all that NeRF's scenes can say
NAMES = [f"r_{i}" for i in range(N)]


def poses():
    found = synth.orbit(N, W, 2).world_to_camera.double().numpy()
    found[:, :3, 3] *= 7
    return found


def pictures(folder):
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name in NAMES:
        colour = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (W, H), interpolation=cv2.INTER_CUBIC)
        alpha = np.zeros((H, W, 1), np.uint8)
        alpha[8:40, 12:50] = 255
        Image.fromarray(np.dstack([colour, alpha])).save(folder / f"{name}.png")
    return folder


def quaternion(pose):
    return Rotation.from_matrix(pose[:3, :3]).as_quat()[[3, 0, 1, 2]].tolist()


def colmap_text(folder, pose):
    (folder / "sparse").mkdir()
    (folder / "sparse/cameras.txt").write_text(f"1 SIMPLE_PINHOLE {W} {H} {F} {W / 2} {H / 2}\n")
    numbers = [" ".join(map(repr, [*quaternion(p), *p[:3, 3].tolist()])) for p in pose]
    lines = [f"{i + 1} {values} 1 {name}.png\n\n" for i, (values, name) in enumerate(zip(numbers, NAMES))]
    (folder / "sparse/images.txt").write_text("".join(lines))
    return folder / "sparse"


def colmap_binary(folder, pose):
    (folder / "bin").mkdir()
    (folder / "bin/cameras.bin").write_bytes(struct.pack("<QiiQQ3d", 1, 1, 0, W, H, F, W / 2, H / 2))
    data = struct.pack("<Q", N)
    for i, (p, name) in enumerate(zip(pose, NAMES)):
        data += struct.pack("<i7di", i + 1, *quaternion(p), *p[:3, 3], 1) + f"{name}.png".encode() + b"\0"
        data += struct.pack("<Q", 0)
    (folder / "bin/images.bin").write_bytes(data)
    return folder / "bin"


def metashape(folder, pose):
    tags = "".join(
        f'<camera id="{i}" sensor_id="0" label="{name}"><transform>'
        f"{' '.join(map(repr, np.linalg.inv(p).ravel().tolist()))}</transform></camera>"
        for i, (p, name) in enumerate(zip(pose, NAMES))
    )
    lens = f'<calibration type="frame" class="adjusted"><resolution width="{W}" height="{H}"/><f>{F}</f></calibration>'
    (folder / "doc.xml").write_text(
        f'<document version="2.0.0"><chunk><sensors><sensor id="0" type="frame">{lens}</sensor></sensors>'
        f"<cameras>{tags}</cameras></chunk></document>"
    )
    return folder / "doc.xml"


def transforms(path, pose, top, suffix):
    matrices = cameras.to_opengl(torch.tensor(pose)).tolist()
    frames = [{"file_path": f"./in/{n}{suffix}", "transform_matrix": m} for n, m in zip(NAMES, matrices)]
    path.write_text(json.dumps(top | {"frames": frames}))
    return path


def nerfstudio(folder, pose):
    top = {"camera_model": "OPENCV", "w": W, "h": H, "fl_x": F, "fl_y": F, "cx": W / 2, "cy": H / 2, "k1": 0.0}
    return transforms(folder / "transforms.json", pose, top, ".png")


def nerf_synthetic(folder, pose):
    top = {"camera_angle_x": 2 * np.arctan(W / 2 / F)}
    return transforms(folder / "transforms_train.json", pose, top, "")


def imported(write, folder):
    """What an import holds: (N, 4, 4) poses, (3, 3) K, pictures and masks (N, H, W, 3 and 1)."""
    folder.mkdir()
    there = pictures(folder / "in")
    photogrammetry.import_capture(write(folder, poses()), there, None, folder / "out", 1.0, log=lambda said: None)
    names, camera = captures.read_poses(folder / "out")
    assert names == NAMES
    read = [[cv2.imread(str(folder / f"out/{kind}/{name}.png"), -1) for name in names] for kind in ("image", "mask")]
    return camera.world_to_camera.numpy(), camera.K.numpy(), *(np.stack(kind).astype(int) for kind in read)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return imported(colmap_text, Path(tmp_path_factory.mktemp("first")) / "a")


@pytest.mark.parametrize("write", [colmap_binary, metashape, nerfstudio, nerf_synthetic])
def test_same_poses_and_pictures(write, first, tmp_path):
    pose, K, image, mask = imported(write, tmp_path / "a")
    assert np.abs(pose - first[0]).max() < 1e-6  # float32, of lengths of four
    assert np.abs(K - first[1]).max() < 1e-5  # pixels
    assert (image == first[2]).all() and (mask == first[3]).all()
    assert image.std() > 20 and mask.mean() == 255 * 32 * 38 / (W * H)
