"""Logs of other layouts: a street as KITTI and plain folders have it, brought in, and what is said of broken ones."""

import json
import shutil
import struct
import sys

import forks
import numpy as np
import pytest
from click.testing import CliRunner
from flux4d import clips, imports, indices, kitti, logs, odometry, pandaset, point_files
from flux4d.cli import main
from plyfile import PlyData, PlyElement
from recon4d import InputError, images
from scipy.spatial.transform import Rotation, Slerp

K = np.array([[60.0, 0, 31.5], [0, 60, 11.5], [0, 0, 1]])
SIZE = (64, 24)
TILT = Rotation.from_euler("xyz", [1.0, -2.0, 0.5], degrees=True).as_matrix()  # a camera that is not quite straight
TO_CAMERA = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # forward, left, up to OpenCV's axes
SHIFT = np.array([0.1, -0.2, -0.3])
BASELINE = -0.5
SPEED, TURN = 15.0, 0.4  # m/s forward, radians per second
EPOCH = 1317042145.9
# posts on both sides: they are in the same place in the world from every sweep
POSTS = np.array([[x, y, z] for x in range(-20, 60, 4) for y in (-6.0, 6.0) for z in (-1.0, 0.0, 1.0)])


def pose(time):
    """LiDAR to world of a car in a bend, forward, left, up."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("z", TURN * time).as_matrix()
    matrix[:2, 3] = SPEED / TURN * np.array([np.sin(TURN * time), 1 - np.cos(TURN * time)])
    return matrix


def seen(time):
    """The posts in the axes of the turning sensor, each at the moment when it meets them; and those moments."""
    offsets = np.zeros(len(POSTS))
    for _ in range(20):
        poses = np.stack([pose(time + offset) for offset in offsets])
        local = np.einsum("nji,nj->ni", poses[:, :3, :3], POSTS - poses[:, :3, 3])
        offsets = -np.arctan2(local[:, 1], local[:, 0]) / (2 * np.pi) * 0.1
    return local, offsets


def stamp(time):
    return f"2011-09-26 13:02:{time - EPOCH + 25.9:012.9f}\n"


def write_kitti(folder, frames=6):
    """A drive with two cameras, clocks, both kinds of poses, and pictures whose left half is red."""
    data = {name: folder / name / "data" for name in ("image_02", "image_03", "velodyne_points", "oxts")}
    for place in data.values():
        place.mkdir(parents=True)
    picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    picture[:, : SIZE[0] // 2, 0] = 255
    rows, moments = [], [0.1 * i for i in range(frames)]
    imu = np.eye(4)
    imu[:3, 3] = [-0.8, 0.3, -0.8]  # IMU to LiDAR
    for i, time in enumerate(moments):
        name, (xyz, _) = f"{i:010d}", seen(time)
        points = np.concatenate([xyz, np.full((len(xyz), 1), 0.5)], 1).astype("<f4")
        (data["velodyne_points"] / f"{name}.bin").write_bytes(points.tobytes())
        for camera in ("image_02", "image_03"):
            images.write(data[camera] / f"{name}.png", picture)
        rows.append(" ".join(map(str, pose(time)[:3].ravel())))
        x, y, z = (pose(time) @ imu)[:3, 3]
        scale = np.cos(np.radians(49.0))
        north = np.log(np.tan(np.radians(90 + 49.0) / 2)) + y / kitti.EARTH / scale
        place = [np.degrees(2 * np.arctan(np.exp(north))) - 90, 8 + np.degrees(x / kitti.EARTH / scale), 110 + z]
        packet = [*place, 0, 0, TURN * time, *[0] * 24]
        (data["oxts"] / f"{name}.txt").write_text(" ".join(f"{value:.15g}" for value in packet) + "\n")
    for place in data.values():
        (place.parent / "timestamps.txt").write_text("".join(stamp(EPOCH + time) for time in moments))
    (folder / "poses_velo.txt").write_text("\n".join(rows) + "\n")

    def text(values):
        return " ".join(f"{value:.12e}" for value in np.ravel(values))

    P = {"02": K @ np.eye(3, 4), "03": K @ np.concatenate([np.eye(3), [[BASELINE], [0], [0]]], 1)}
    lines = ["calib_time: 09-Jan-2012 13:57:47", f"R_rect_00: {text(TILT)}"]
    lines += [f"P_rect_{n}: {text(matrix)}\nS_rect_{n}: {text(SIZE)}" for n, matrix in P.items()]
    (folder / "calib_cam_to_cam.txt").write_text("\n".join(lines) + "\n")
    R, T = text(TILT.T @ TO_CAMERA), text(TILT.T @ SHIFT)
    (folder / "calib_velo_to_cam.txt").write_text(f"calib_time: 15-Mar-2012\nR: {R}\nT: {T}\ndelta_f: 0 0\n")
    (folder / "calib_imu_to_velo.txt").write_text(f"R: {text(np.eye(3))}\nT: {text(imu[:3, 3])}\n")
    return folder


def write_points(path, xyz, t):
    """One sweep in the kind that the suffix says; as PCD text for `.txt.pcd`."""
    table = np.concatenate([xyz, np.full((len(xyz), 1), 40.0), t[:, None]], 1)
    kind = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4"), ("time", "<f8")]
    rows = np.array([tuple(row) for row in table], kind)
    head = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z _ intensity time\nSIZE 4 4 4 1 4 8\nTYPE F F F U F F\n"
        f"COUNT 1 1 1 3 1 1\nWIDTH {len(xyz)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(xyz)}\nDATA "
    )
    if path.suffix == ".npy":
        np.save(path, table)
    elif path.suffix == ".ply":
        PlyData([PlyElement.describe(rows, "vertex")]).write(str(path))
    elif path.name.endswith(".txt.pcd"):
        text = [" ".join(map(repr, [*row[:3], 1, 1, 1, *row[3:]])) for row in table.tolist()]
        path.write_text(head + "ascii\n" + "\n".join(text) + "\n")
    else:
        packed = b"".join(struct.pack("<fff3sfd", *row[:3], b"pad", *row[3:]) for row in table.tolist())
        path.write_bytes((head + "binary\n").encode() + packed)


def write_folder(folder, suffix=".ply", cameras=("front_camera",), axes="forward-left-up", frames=5):
    """A plain log of the same street; its pictures are taken 20 ms after its sweeps."""
    turn = np.eye(4) if axes == "forward-left-up" else np.block([[kitti.AXES, np.zeros((3, 1))], [0, 0, 0, 1]])
    to_camera = np.eye(4)
    to_camera[:3, :3], to_camera[:3, 3] = TO_CAMERA, SHIFT
    (folder / "sweeps").mkdir(parents=True)
    rows, times = [], [5.0 + 0.1 * i for i in range(frames)]
    for i in range(frames):
        xyz, offsets = seen(0.1 * i)
        broken = np.array([[np.nan] * 3, [0.0] * 3])  # beams that met nothing
        xyz = np.concatenate([xyz @ turn[:3, :3].T, broken])
        write_points(folder / "sweeps" / f"sweep_{i}{suffix}", xyz, np.append(offsets, [0, 0]) + (i % 2) * times[i])
        rows.append(" ".join(map(str, (pose(0.1 * i) @ turn.T)[:3].ravel())))
    for name in cameras:
        place = folder / "images" / name if len(cameras) > 1 else folder / "images"
        place.mkdir(parents=True)
        for i in range(frames):
            images.write(place / f"{i}.jpg", np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
        (place / "timestamps.txt").write_text("".join(f"{time + 0.02}\n" for time in times))
    (folder / "sweeps" / "timestamps.txt").write_text("".join(f"{time}\n" for time in times))
    (folder / "poses.txt").write_text("\n".join(rows) + "\n")
    one = {"fx": 60, "fy": 60, "cx": 31.5, "cy": 11.5, "lidar_to_camera": (to_camera @ turn.T).tolist()}
    content = {"lidar_axes": axes, "cameras": dict.fromkeys(cameras, one)}
    (folder / "calibration.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    return write_kitti(tmp_path_factory.mktemp("kitti") / "drive")


def brought(layout, source, out, **options):
    """A log imported; its scene, its summary and the points of each sweep."""
    summary = imports.import_log(layout, source, out, log=lambda text: None, **options)
    names = tuple(sorted(path.name for path in (out / "camera").iterdir()))
    scene = pandaset.open_scene(out, names)
    return scene, summary, [pandaset.read_points(path) for path in scene.lidar.files]


POSTS_IN_SCENE = POSTS @ kitti.AXES.T  # right, forward, up of the first sweep


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
    (source / "tracklet_labels.xml").write_text("<boost_serialization/>")
    said = []
    imports.import_log("kitti", source, tmp_path / "b", rate=5.0, log=said.append)
    assert "tracklets are not read" in said[0] and "1 of 6 pictures have no sweep beside them" in said[1], said
    scene = pandaset.open_scene(tmp_path / "b")
    np.testing.assert_allclose(scene.lidar.times, [0, 0.2, 0.4, 0.8, 1.0])
    np.testing.assert_allclose(scene.cameras["front_camera"].times, 0.2 * np.arange(6))


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


def test_without_kiss_icp(drive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kiss_icp.kiss_icp", None)
    with pytest.raises(InputError, match=r"needs the package kiss-icp; install flux4d\[odometry\]"):
        imports.import_log("kitti", drive, tmp_path / "s", poses="kiss-icp")
    assert list(tmp_path.iterdir()) == []


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
    refused("is not one of", "import", "waymo", drive, tmp_path / "o")
    refused("cannot be read", "import", "kitti", drive, tmp_path / "o", "--poses", tmp_path / "none.txt")
    refused(
        "--poses oxts is for KITTI", "import", "folder", write_folder(tmp_path / "f"), tmp_path / "o", "--poses", "oxts"
    )
    imports.import_log("kitti", drive, tmp_path / "again")
    imports.import_log("kitti", drive, tmp_path / "again", force=True)


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
