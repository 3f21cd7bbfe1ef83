"""Plain folders, brought in; poses between known ones, and by KISS-ICP."""

import sys

import numpy as np
import pytest
from flux4d import imports, kitti, logs, odometry, pandaset, point_files
from posts import POSTS_IN_SCENE, SHIFT, TO_CAMERA, K, brought, pose, seen, write_folder, write_kitti
from recon4d import InputError
from scipy.spatial.transform import Rotation, Slerp


@pytest.mark.parametrize("suffix", [".ply", ".npy", ".pcd", ".txt.pcd"])
def test_folders(tmp_path, suffix):
    several = suffix == ".npy"
    names = ("front_camera", "left_camera") if several else ("front_camera",)
    axes = "right-forward-up" if several else "forward-left-up"
    scene, summary, sweeps = brought("folder", write_folder(tmp_path / "log", suffix, names, axes), tmp_path / "s")
    assert summary["cameras"] == dict.fromkeys(names, 5)
    for sweep in sweeps[1:-1]:
        np.testing.assert_allclose(sweep["xyz"], POSTS_IN_SCENE, atol=0.02)
    camera = scene.cameras[names[-1]]
    np.testing.assert_allclose(camera.times - scene.lidar.times, 0.02, atol=1e-9)
    to_camera = np.eye(4)
    to_camera[:3, :3], to_camera[:3, 3] = TO_CAMERA, SHIFT
    for i in (1, 4):  # where the car is when the picture is taken, also after the last sweep
        expected = pose(0.1 * i + 0.02) @ np.linalg.inv(to_camera)
        np.testing.assert_allclose(camera.poses[i][:3, 3], kitti.AXES @ expected[:3, 3], atol=0.02)
        np.testing.assert_allclose(camera.poses[i][:3, :3], kitti.AXES @ expected[:3, :3], atol=1e-6)
    np.testing.assert_allclose(scene.K[names[0]], K + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]))


def test_sweeps_that_come_faster(tmp_path):
    """Of twenty a second every other one is taken; the pictures stay all."""
    source = write_folder(tmp_path / "log", frames=7)
    for path in source.glob("*/timestamps.txt"):
        path.unlink()
    said: list[str] = []
    summary = imports.import_log("folder", source, tmp_path / "s", rate=20.0, deskew=False, log=said.append)
    assert said == ["s: 4 of 7 sweeps are taken, 10 a second"]
    assert summary["frames"] == 4 and summary["cameras"] == {"front_camera": 7}
    scene = pandaset.open_scene(tmp_path / "s")
    np.testing.assert_allclose(scene.lidar.times, [0, 0.1, 0.2, 0.3])
    for i, found in enumerate(scene.lidar.poses):
        np.testing.assert_allclose(found[:3, 3], kitti.AXES @ pose(0.2 * i)[:3, 3], atol=1e-6)
        xyz = pandaset.read_points(scene.lidar.files[i])["xyz"]
        local = seen(0.2 * i)[0] @ kitti.AXES.T
        np.testing.assert_allclose((xyz - found[:3, 3]) @ found[:3, :3], local, atol=1e-4)


def test_poses_between_are_those_of_scipy():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.05, 0.2, 6))
    turns = Rotation.random(6, random_state=1)
    known = np.tile(np.eye(4), (6, 1, 1))
    known[:, :3, :3], known[:, :3, 3] = turns.as_matrix(), rng.normal(size=(6, 3))
    moments = rng.uniform(times[0], times[-1], 50)
    found = logs.poses_at(times, known, moments)
    np.testing.assert_allclose(found[:, :3, :3], Slerp(times, turns)(moments).as_matrix(), atol=1e-9)
    for axis in range(3):
        np.testing.assert_allclose(found[:, axis, 3], np.interp(moments, times, known[:, axis, 3]), atol=1e-12)


def test_poses_by_kiss_icp(tmp_path):
    """A corridor with corners, seen at 3 m/s straight ahead, the sweeps rolling."""
    rng = np.random.default_rng(0)
    walls = np.concatenate(
        [
            np.stack(
                [rng.uniform(-20, 40, 9000), np.where(rng.random(9000) < 0.5, -5, 5), rng.uniform(-1, 3, 9000)], 1
            ),
            np.stack([rng.integers(-3, 6, 5000) * 7.0, rng.uniform(4, 9, 5000), rng.uniform(-1, 3, 5000)], 1),
            np.stack([rng.uniform(-20, 40, 6000), rng.uniform(-5, 5, 6000), np.full(6000, -1.5)], 1),
        ]
    )

    def read(i):
        offsets = np.zeros(len(walls))
        for _ in range(10):
            local = walls - np.array([1.0, 0, 0]) * 3 * (0.1 * i + offsets)[:, None]
            offsets = -np.arctan2(local[:, 1], local[:, 0]) / (2 * np.pi) * 0.1
        return logs.Sweep(local, np.zeros(len(local)), offsets)

    log = logs.Log([tmp_path] * 8, 0.1 * np.arange(8), kitti.AXES, read, {}, None, "kiss-icp")
    found = odometry.kiss_icp_poses(log)
    np.testing.assert_allclose(found[0], np.eye(4), atol=1e-9)
    np.testing.assert_allclose(found[:, :3, 3], [[0.3 * i, 0, 0] for i in range(8)], atol=0.03)


def test_without_kiss_icp(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kiss_icp.kiss_icp", None)
    drive = write_kitti(tmp_path / "drive")
    with pytest.raises(InputError, match=r"needs the package kiss-icp; install flux4d\[odometry\]"):
        imports.import_log("kitti", drive, tmp_path / "s", poses="kiss-icp")
    assert list(tmp_path.iterdir()) == [drive]


BAD_POINTS = {
    "a.npy": lambda path: np.save(path, np.zeros((3, 9))),
    "b.npy": lambda path: np.save(path, np.array([{}]), allow_pickle=True),
    "c.npy": lambda path: path.write_bytes(b"\x93NUMPY"),
    "d.pcd": lambda path: path.write_bytes(b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 999999999999\nDATA binary\n"),
    "e.pcd": lambda path: path.write_bytes(b"FIELDS x y\nSIZE 4 4\nTYPE F F\nPOINTS 1\nDATA ascii\n1 2\n"),
    "f.pcd": lambda path: path.write_bytes(b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 1\nDATA binary_compressed\n"),
    "g.pcd": lambda path: path.write_bytes(b"FIELDS x y z\nSIZE 4 4\nTYPE O F F\nPOINTS -1\nDATA binary\n"),
    "h.ply": lambda path: path.write_bytes(
        b"ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\nproperty float x\nend_header\n"
    ),
    "i.ply": lambda path: path.write_bytes(b"ply\nformat ascii 1.0\nelement face 0\nend_header\n"),
}


@pytest.mark.parametrize("name", BAD_POINTS)
def test_broken_points_are_refused(tmp_path, name):
    BAD_POINTS[name](tmp_path / name)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        point_files.read(tmp_path / name)
