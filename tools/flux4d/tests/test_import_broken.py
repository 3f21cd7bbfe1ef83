"""What is said of logs that are broken: one sentence, and nothing is left behind."""

import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from flux4d import imports
from flux4d.cli import main
from posts import EPOCH, stamp, write_folder, write_kitti, write_tracklets
from recon4d import images


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    return write_kitti(tmp_path_factory.mktemp("kitti") / "drive")


def replaced(name, old, new):
    def change(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def written(name, data):
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def gone(name):
    def change(folder):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return change


NAN = np.full(16, np.nan, "<f4").tobytes()
TRACKS, TRACK = "tracklet_labels.xml", "<b><tracklets><item>"
SWEEP, POINTS = "velodyne_points/data/0000000002.bin", "sweeps/sweep_1.ply"
BROKEN = {
    "kitti": [
        (gone("calib_cam_to_cam.txt"), "has no calib_cam_to_cam.txt"),
        (gone("calib_velo_to_cam.txt"), "has no calib_velo_to_cam.txt"),
        (replaced("calib_cam_to_cam.txt", "P_rect_02", "P_rect_09"), "has no P_rect_02 of 12 numbers"),
        (replaced("calib_cam_to_cam.txt", "6.4", "9.9"), "synchronised, rectified pictures"),
        (replaced("calib_velo_to_cam.txt", "R: ", "R: nan "), "has no R of 9 numbers"),
        (written("calib_velo_to_cam.txt", "R: 1 0 0 0 1 0 0 0 9\nT: 0 0 0\n"), "no rotation"),
        (written("calib_velo_to_cam.txt", "R: 1 0 0 0 1 0 0 0 1\nT: 0 0 -1e9\n"), "no point of the first sweep"),
        (written("calib_velo_to_cam.txt", b"\xff\xfe\x00R"), "is not a text file"),
        (written(SWEEP, b"\0" * 100), "no points of 16"),
        (written(SWEEP, b""), "no points of 16"),
        (written(SWEEP, NAN), "no point with finite coordinates"),
        (gone(SWEEP), "has 6 poses and the log 5 sweeps"),
        (gone("velodyne_points"), "has no velodyne_points/data"),
        (lambda folder: [shutil.rmtree(folder / f"image_0{n}") for n in (2, 3)], "has no image_02/data"),
        (written("image_02/data/0000000004.png", b"\x89PNG\r\n\x1a\n"), "is not a readable image"),
        (lambda f: images.write(f / "image_02/data/0000000004.png", np.zeros((9, 9, 3), np.uint8)), "is 9x9 pixels"),
        (written("velodyne_points/data/left.bin", NAN), "is not named by its number"),
        (written("velodyne_points/timestamps.txt", stamp(EPOCH) * 6), "do not grow"),
        (written("velodyne_points/timestamps.txt", "1e999\n" * 6), "is no time"),
        (written("velodyne_points/timestamps.txt", stamp(EPOCH)), "has 1 lines for 6 files"),
        (written("poses_velo.txt", "1 0 0 0 0 1 0 0 0 0 1 nan\n" * 6), "line 1 is not 12 finite numbers"),
        (written("poses_velo.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n" * 5), "has 5 poses and the log 6 sweeps"),
        (written("poses_velo.txt", "1 0 0 0 0 1 0 0 0 0 -1 0\n" * 6), "no rotation"),
        (written("poses_velo.txt", "where\n"), "line 1 is not numbers"),
        (lambda f: [gone(name)(f) for name in ("poses_velo.txt", "oxts")], "has no poses"),
        (lambda f: [gone(name)(f) for name in ("poses_velo.txt", "calib_imu_to_velo.txt")], "no calib_imu_to_velo"),
        (
            lambda f: [gone("poses_velo.txt")(f), written("oxts/data/0000000001.txt", "inf " * 30)(f)],
            "line 1 is not 30 finite numbers",
        ),
        (written(TRACKS, b"\xff\xfe\x00"), "is not a text file"),
        (written(TRACKS, ""), "no file of KITTI's tracklets"),
        (written(TRACKS, "hello"), "no file of KITTI's tracklets"),
        (written(TRACKS, "<a>" * 200_000), "no file of KITTI's tracklets"),
        (written(TRACKS, "<a>" * 200_000 + "</a>" * 200_000), "no file of KITTI's tracklets"),
        (written(TRACKS, '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), "it defines entities"),
        (written(TRACKS, f"{TRACK}<objectType>Car</objectType>"), "no file of KITTI's tracklets"),
        (written(TRACKS, f"{TRACK}</item></tracklets></b>"), "item without objectType"),
        (
            lambda folder: replaced(TRACKS, "<h>1.8", "<h>-1")(write_tracklets(folder)),
            "values of track 0 that are no box",
        ),
        (lambda folder: replaced(TRACKS, "<tx>", "<tx>nan")(write_tracklets(folder)), "no file of KITTI's tracklets"),
        (lambda folder: replaced(TRACKS, "<ry>0", "<ry>1e999")(write_tracklets(folder)), "values of track 0"),
        (
            lambda folder: replaced(TRACKS, "frame>0", f"frame>{'9' * 5000}")(write_tracklets(folder)),
            "no file of KITTI",
        ),
    ],
    "folder": [
        (gone("calibration.json"), "calibration.json cannot be read"),
        (replaced("calibration.json", '"fx"', '"k1": 0.1, "fx"'), "cameras.front_camera.k1"),
        (replaced("calibration.json", '"fx": 60', '"fx": NaN'), "cameras.front_camera.fx"),
        (replaced("calibration.json", '"front_camera"', '"../../../evil"'), "must be the name of a folder"),
        (replaced("calibration.json", '"front_camera"', '""'), "must be the name of a folder"),
        (replaced("calibration.json", "0.0, 1.0]]", "0.0, 2.0]]"), "must end in 0 0 0 1"),
        (replaced("calibration.json", "forward-left-up", "up"), "lidar_axes"),
        (written("calibration.json", "[" * 100_000), "is not readable JSON"),
        (written(POINTS, b"ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\nend_header\n1\n"), "PLY file"),
        (written(POINTS, b"\0" * 99), "is not a readable PLY file"),
        (gone("sweeps"), "sweeps is not a folder"),
        (gone("images"), "images is not a folder"),
        (gone("poses.txt"), "has no poses"),
        (written("poses.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n" * 4), "has 4 poses and the log 5 sweeps"),
        (written("sweeps/timestamps.txt", "1\n2\n"), "has 2 times for 5 files"),
        (written("images/timestamps.txt", "5\n4\n3\n2\n1\n"), "do not grow"),
        (written("sweeps/timestamps.txt", "1_0\n" * 5), "line 1 is not numbers"),
        (written("images/timestamps.txt", "nan\n" * 5), "line 1 is not 1 finite numbers"),
        (lambda f: [gone(n)(f) for n in ("images/timestamps.txt", "images/3.jpg")], "has 4 files and"),
    ],
}


@pytest.mark.parametrize(
    "layout, number", [(layout, number) for layout, rows in BROKEN.items() for number in range(len(rows))]
)
def test_broken_logs_are_refused_by_one_sentence(drive, tmp_path, layout, number):
    change, message = BROKEN[layout][number]
    source = shutil.copytree(drive, tmp_path / "log") if layout == "kitti" else write_folder(tmp_path / "log")
    change(source)
    refused(message, "import", layout, source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def refused(message, *words):
    done = CliRunner().invoke(main, [str(word) for word in words])
    said = done.stderr.strip().splitlines()
    assert done.exit_code == 2 and len(said) == 1, done.output
    assert said[0].startswith("error: ") and message in said[0] and done.stdout == "", said


def test_other_refusals(drive, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    refused("exists; give another output", "import", "kitti", drive, out)
    refused("was not written by flux4d import", "import", "kitti", drive, out, "--force")
    assert (out / "mine").read_text() == "kept"
    refused("lies inside the input", "import", "kitti", drive, drive / "out")
    refused("is not a folder", "import", "kitti", drive / "poses_velo.txt", tmp_path / "o")
    refused("is not one of", "import", "lyft", drive, tmp_path / "o")
    refused("cannot be read", "import", "kitti", drive, tmp_path / "o", "--poses", tmp_path / "none.txt")
    refused(
        "--poses oxts is for KITTI", "import", "folder", write_folder(tmp_path / "f"), tmp_path / "o", "--poses", "oxts"
    )
    imports.import_log("kitti", drive, tmp_path / "again")
    imports.import_log("kitti", drive, tmp_path / "again", force=True)
