"""Drives of KITTI raw, brought in: posts along a bend, seen by a sensor that turns while the car drives."""

import json
import shutil

import forks
import numpy as np
import pytest
from flux4d import clips, imports, indices, kitti, pandaset
from posts import (
    BASELINE,
    EPOCH,
    POSTS,
    POSTS_IN_SCENE,
    SHIFT,
    SIZE,
    TO_CAMERA,
    VAN,
    K,
    brought,
    pose,
    seen,
    write_kitti,
    write_tracklets,
)


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    return write_kitti(tmp_path_factory.mktemp("kitti") / "drive")


def test_kitti_by_the_command_to_a_clip(drive, tmp_path):
    done = forks.run("flux4d", "import", "kitti", drive, tmp_path / "scenes" / "bend")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["frames"] == 6 and said["cameras"] == {"front_camera": 6, "front_right_camera": 6}
    assert said["poses"] == "poses_velo.txt" and abs(said["metres"] - 7.5) < 0.02 and said["cuboids"] == 0
    index = indices.build(
        tmp_path / "scenes", indices.debug_slicing(0.5, 0.5), None, ("front_right_camera",), lambda text: None
    )
    (entry,) = index["clips"]
    assert entry["cuboids"] is None and entry["scene"] == "bend"
    clip = clips.load(entry, tmp_path / "scenes", "front_right_camera")
    for i in range(6):
        # the posts' pixels by the definition of KITTI's matrices, its first pixel's centre at 0
        local = np.linalg.inv(pose(0.1 * i)) @ np.c_[POSTS, np.ones(len(POSTS))].T
        before = TO_CAMERA @ local[:3] + SHIFT[:, None] + [[BASELINE], [0], [0]]
        pixels, _, inside = clips.in_view(clip.points[i], clip.camera(i))
        expected = (K @ before)[:2] / before[2] + 0.5
        wanted = (before[2] > 1) & (expected > 0).all(0) & (expected < [[SIZE[0]], [SIZE[1]]]).all(0)
        assert inside.sum() == wanted.sum() > 10
        np.testing.assert_allclose(pixels.numpy()[wanted], expected.T[wanted], atol=0.1)


@pytest.mark.parametrize("origin", ["poses_velo.txt", "oxts"])
def test_still_things_stand_still_in_a_rolling_sweep(drive, tmp_path, origin):
    scene, summary, sweeps = brought("kitti", drive, tmp_path / "s", poses=None if "velo" in origin else "oxts")
    assert summary["poses"] == origin
    for i, sweep in enumerate(sweeps[1:-1], 1):
        np.testing.assert_allclose(sweep["xyz"], POSTS_IN_SCENE, atol=0.02)
        np.testing.assert_allclose(sweep["t"], EPOCH + 0.1 * i + seen(0.1 * i)[1], atol=1e-4)
    for i, found in enumerate(scene.lidar.poses):  # x right, y forward, z up
        expected = kitti.AXES @ pose(0.1 * i)[:3, 3]
        np.testing.assert_allclose(found[:3, 3], expected, atol=2e-3)
        np.testing.assert_allclose(found[:3, 1], kitti.AXES @ pose(0.1 * i)[:3, 0], atol=1e-6)
    rolling = brought("kitti", drive, tmp_path / "r", deskew=False)[2]
    assert 0.3 < np.abs(rolling[2]["xyz"] - POSTS_IN_SCENE).max() < 1.5


def test_a_drive_with_missing_sweeps_and_no_clock(drive, tmp_path):
    source = shutil.copytree(drive, tmp_path / "drive")
    (source / "velodyne_points" / "data" / "0000000003.bin").unlink()
    rows = (source / "poses_velo.txt").read_text().splitlines()
    (source / "poses_velo.txt").write_text("\n".join(rows[:3] + rows[4:]))
    times = brought("kitti", source, tmp_path / "a")[0].lidar.times  # a line of timestamps.txt a number
    np.testing.assert_allclose(times - EPOCH, [0, 0.1, 0.2, 0.4, 0.5], atol=1e-6)
    (source / "image_02" / "timestamps.txt").unlink()
    said = []
    imports.import_log("kitti", source, tmp_path / "b", rate=5.0, log=said.append)
    assert "1 of 6 pictures have no sweep beside them" in said[0], said
    scene = pandaset.open_scene(tmp_path / "b")
    np.testing.assert_allclose(scene.lidar.times, [0, 0.2, 0.4, 0.8, 1.0])
    np.testing.assert_allclose(scene.cameras["front_camera"].times, 0.2 * np.arange(6))


def test_tracklets_are_where_their_points_are(drive, tmp_path):
    """A parked van stays where it is in the world, though each sweep that it was drawn in rolls."""
    source = write_tracklets(shutil.copytree(drive, tmp_path / "drive"))
    scene, summary, _ = brought("kitti", source, tmp_path / "s")
    assert summary["cuboids"] == 2
    for i, path in enumerate(scene.cuboids):
        found = pandaset.read_cuboids(path)
        assert found.label.tolist() == (["Car"] if i < 2 else ["Car", "Pedestrian"])
        assert found.stationary.tolist() == [True, False][: len(found.uuid)]
        np.testing.assert_allclose(found.size[0], [1.9, 4.5, 1.8])
        ends = i in (0, 5)  # there the motion beside them goes on
        np.testing.assert_allclose(found.pose[0, :3, 3], kitti.AXES @ VAN, atol=0.05 if ends else 0.02)
        heading = kitti.AXES @ [np.cos(0.3), np.sin(0.3), 0]  # a box heads along its y
        np.testing.assert_allclose(found.pose[0, :3, 1], heading, atol=2e-3)
    rolling = brought("kitti", source, tmp_path / "r", deskew=False)[0]
    wrong = pandaset.read_cuboids(rolling.cuboids[2]).pose[0, :3, 3] - kitti.AXES @ VAN
    assert 0.03 < np.linalg.norm(wrong) < 1


def test_a_folder_of_drives(drive, tmp_path):
    """The calibration of a day lies above its drives."""
    day = tmp_path / "2011_09_26"
    for number in (1, 2):
        copy = shutil.copytree(drive, day / f"drive_{number}")
        for path in copy.glob("calib_*.txt"):
            path.replace(day / path.name)
    (day / "drive_2" / "velodyne_points" / "data" / "0000000001.bin").write_bytes(b"half")
    said = []
    summary = imports.import_log("kitti", day, tmp_path / "scenes", log=said.append)
    assert [scene["scene"] for scene in summary["scenes"]] == [str(tmp_path / "scenes" / "drive_1")]
    assert "are no points of 16" in summary["failed"]["drive_2"] and said[-1].startswith("drive_2: ")
    assert sorted(path.name for path in (tmp_path / "scenes").iterdir()) == ["drive_1"]
