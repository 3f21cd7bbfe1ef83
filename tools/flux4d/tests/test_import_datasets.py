"""A drawn street in the layouts of nuScenes, Argoverse 2 and Waymo: import brings back what was drawn."""

import json
import shutil
import sys

import log_writers
import numpy as np
import pyarrow as pa
import pytest
import waymo_writer
from click.testing import CliRunner
from flux4d import clips, imports, indices, labels, pandaset, tables
from flux4d.cli import main
from pyarrow import feather, parquet
from recon4d import InputError, images
from scipy.spatial import cKDTree

FRAMES, COLUMNS = 6, 240


@pytest.fixture(scope="module")
def street(root, tmp_path_factory):
    """The first frames of the street with crossing traffic."""
    return log_writers.drawn(root / "002", 2, FRAMES, 16, tmp_path_factory.mktemp("second") / "camera")


@pytest.fixture(scope="module")
def sources(street, tmp_path_factory):
    """The street in each layout."""
    folder = tmp_path_factory.mktemp("logs")
    return {
        "nuscenes": log_writers.write_nuscenes(folder / "nuscenes", {"scene-0001": street, "scene-0002": street}),
        "argoverse2": log_writers.write_argoverse2(folder / "argoverse2" / "val" / "log", street),
        "waymo": waymo_writer.write_waymo(folder / "waymo", street, "10023947602400723454_1120_000_1140_000", COLUMNS),
    }


@pytest.fixture(scope="module")
def brought(sources, tmp_path_factory):
    """The scenes that import makes of them, and its summaries."""
    out = tmp_path_factory.mktemp("scenes")
    done = {
        layout: imports.import_log(layout, source, out / layout, log=lambda text: None)
        for layout, source in sources.items()
    }
    folders = {
        "nuscenes": out / "nuscenes" / "scene-0002",
        "argoverse2": out / "argoverse2",
        "waymo": out / "waymo" / "10023947602400723454_1120_000_1140_000",
    }
    return folders, done


@pytest.mark.parametrize("layout", ["nuscenes", "argoverse2", "waymo"])
def test_poses_points_and_pictures(street, brought, layout):
    scene = pandaset.open_scene(brought[0][layout], ("front_camera", "front_left_camera"))
    here = np.linalg.inv(street.scene.lidar.poses[0])  # the world is the first sweep's place
    np.testing.assert_allclose(scene.lidar.poses, here @ street.scene.lidar.poses, atol=1e-6)
    np.testing.assert_allclose(scene.lidar.times, street.times, atol=2e-6)
    for name, camera in scene.cameras.items():
        np.testing.assert_allclose(camera.poses, here @ street.scene.cameras[name].poses, atol=1e-5)
        np.testing.assert_allclose(camera.times, street.times, atol=2e-6)
        straight = layout != "waymo" or name == "front_camera"
        if straight:
            np.testing.assert_allclose(scene.K[name], street.scene.K[name], atol=1e-9)
            assert [path.read_bytes() for path in camera.files] == [
                path.read_bytes() for path in street.scene.cameras[name].files
            ]
    for i, path in enumerate(scene.lidar.files):
        found, drawn = tables.read(path, pandaset.POINT_COLUMNS), street.points[i]
        xyz = np.stack([found[k] for k in "xyz"], -1)
        expected = drawn["xyz"] @ here[:3, :3].T + here[:3, 3]
        if layout == "waymo":  # in another order, and only the sensor that turns
            expected = expected[drawn["d"] == 0]
            distance, which = cKDTree(expected).query(xyz)
            assert len(xyz) == len(expected) == len(set(which)) and distance.max() < 2e-3
            far = np.abs(found["i"] - np.minimum(drawn["i"][drawn["d"] == 0][which], 254))
            assert far.max() <= 1
            continue
        half = np.abs(street.points[i]["xyz"] - street.scene.lidar.poses[i][:3, 3]).max() / 1500
        np.testing.assert_allclose(xyz, expected, atol=half if layout == "argoverse2" else 1e-4)
        np.testing.assert_array_equal(found["i"], drawn["i"])
        if layout == "argoverse2":
            np.testing.assert_allclose(found["t"], drawn["t"], atol=1e-6)


@pytest.mark.parametrize("layout", ["nuscenes", "argoverse2", "waymo"])
def test_cuboids(street, brought, layout):
    scene = pandaset.open_scene(brought[0][layout])
    here = np.linalg.inv(street.scene.lidar.poses[0])
    assert len(scene.cuboids) == FRAMES and None not in scene.cuboids
    names = street.cuboids[0].uuid
    starts = {name: street.cuboids[0].pose[k, :3, 3] for k, name in enumerate(names)}
    ends = {name: street.cuboids[-1].pose[k, :3, 3] for k, name in enumerate(street.cuboids[-1].uuid)}
    for i, path in enumerate(scene.cuboids):
        found, drawn = pandaset.read_cuboids(path), street.cuboids[i]
        ids = [name.split()[-1] for name in found.uuid]
        assert sorted(ids) == sorted(drawn.uuid)
        order = [ids.index(name) for name in drawn.uuid]
        # between key frames nuScenes' things go straight, whatever they did
        between = layout == "nuscenes" and i % 5
        np.testing.assert_allclose(found.pose[order], here @ drawn.pose, atol=0.05 if between else 1e-5)
        np.testing.assert_allclose(found.size[order], drawn.size, atol=1e-6)
        assert found.label[order].tolist() == drawn.label.tolist()
        stands = [np.abs(ends[name] - starts[name]).max() < 0.5 for name in drawn.uuid]
        assert found.stationary[order].tolist() == stands


@pytest.mark.parametrize("layout", ["nuscenes", "argoverse2", "waymo"])
def test_labels_of_a_clip_are_those_of_the_drawn_street(root, indexed, brought, layout):
    folder = brought[0][layout]
    index = indices.build(folder.parent, indices.debug_slicing(0.5, 0.5), None, ("front_camera",), lambda text: None)
    (entry,) = [entry for entry in index["clips"] if entry["scene"] == folder.name]
    found = labels.of_clip(clips.load(entry, folder.parent), folder.parent)
    true = next(entry for entry in indexed["clips"] if entry["scene"] == "002")
    drawn = labels.of_clip(clips.load(true, root), root)
    assert len(found) == FRAMES
    for (points, said), (real, expected) in zip(found[:-1], drawn):
        assert expected.moving.sum() > 20
        near = cKDTree(points[said.moving]).query(real[expected.moving])[0] < 0.1
        assert near.mean() > (0.4 if layout == "waymo" else 0.99)  # there the sensor that looks ahead is left out
        speed = np.linalg.norm(said.velocity[said.moving], axis=1)
        assert abs(speed.mean() - np.linalg.norm(expected.velocity[expected.moving], axis=1).mean()) < 1.5


def test_twenty_sweeps_and_twelve_pictures_a_second_make_a_clip(sources, tmp_path):
    source = shutil.copytree(sources["nuscenes"], tmp_path / "log")
    rows = json.loads((source / "v1.0-mini" / "sample_data.json").read_text())
    for row in rows:
        number = int(row["token"].split()[-1])
        row["timestamp"] = 1_600_000_000_000_000 + round(number * (50_000 if "LIDAR" in row["token"] else 83_333))
    (source / "v1.0-mini" / "sample_data.json").write_text(json.dumps(rows))
    imports.import_log("nuscenes", source, tmp_path / "s", scenes=("scene-0001",), log=lambda text: None)
    cut = indices.debug_slicing(0.2, 0.2)
    (clip,) = indices.build(tmp_path / "s", cut, None, ("front_camera",), lambda text: None)["clips"]
    assert clip["frames"] == [0, 1, 2] and clip["cameras"]["front_camera"]["frames"] == [0, 1, 2]
    np.testing.assert_allclose(np.diff(clip["timestamps"]), 0.1, atol=1e-6)


def test_waymos_pictures_are_straightened(street, brought):
    scene = pandaset.open_scene(brought[0]["waymo"], ("front_left_camera",))
    half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    K = street.scene.K["front_left_camera"]
    assert 1 < scene.K["front_left_camera"][0, 0] / K[0, 0] < 1.1  # a little is cut away, so that nothing is empty
    for found, bent in zip(scene.cameras["front_left_camera"].files, street.scene.cameras["front_left_camera"].files):
        expected = waymo_writer.straightened(images.read(bent), K - half, scene.K["front_left_camera"] - half)
        got = images.read(found)
        assert np.abs(got.astype(int) - expected).mean() < 2
        assert got[[0, -1]].max(-1).min() > 0


def test_several_logs_by_the_command(sources, tmp_path):
    words = ["import", "nuscenes", str(sources["nuscenes"] / "v1.0-mini"), str(tmp_path / "a")]
    done = CliRunner().invoke(main, [*words, "--scenes", "scene-0002", "--cameras", "front_left_camera"])
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["failed"] == {} and [scene["cameras"] for scene in said["scenes"]] == [{"front_left_camera": FRAMES}]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["scene-0002"]
    # a scene that is there is not done again; the one that is missing is
    done = CliRunner().invoke(main, words)
    said = json.loads(done.stdout)
    assert list(said["failed"]) == ["scene-0002"] and "exists; give another output" in said["failed"]["scene-0002"]
    assert [scene["scene"] for scene in said["scenes"]] == [str(tmp_path / "a" / "scene-0001")]
    # a folder of Argoverse's logs
    logs = sources["argoverse2"].parent
    said = imports.import_log("argoverse2", logs, tmp_path / "b", log=lambda text: None)
    assert [scene["cuboids"] for scene in said["scenes"]] == [len(labels_of(tmp_path / "b" / "log"))]
    with pytest.raises(InputError, match=r"--scenes other: .* has no such log; it has log"):
        imports.import_log("argoverse2", logs, tmp_path / "c", scenes=("other",))
    with pytest.raises(InputError, match=r"--cameras back: .* has none; it has front_camera, front_left_camera"):
        imports.import_log("argoverse2", logs / "log", tmp_path / "c", cameras=("back",))
    assert not (tmp_path / "c").exists()


def labels_of(folder):
    return {name for path in pandaset.open_scene(folder).cuboids for name in pandaset.read_cuboids(path).uuid}


def test_other_poses(street, sources, tmp_path):
    """A file of poses takes the place of the log's own, of its pictures' too."""
    rows = [pandaset.pose_entry(pose) for pose in street.scene.lidar.poses]
    assert len(rows) == FRAMES
    still = "\n".join(["1 0 0 0 0 1 0 0 0 0 1 0"] * FRAMES)
    (tmp_path / "still.txt").write_text(still)
    source = sources["argoverse2"]
    imports.import_log("argoverse2", source, tmp_path / "s", poses=str(tmp_path / "still.txt"), log=lambda text: None)
    scene = pandaset.open_scene(tmp_path / "s")
    np.testing.assert_allclose(scene.lidar.poses, np.tile(np.eye(4), (FRAMES, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(np.ptp(scene.cameras["front_camera"].poses, axis=0), 0, atol=1e-9)
    with pytest.raises(InputError, match="--poses oxts is for KITTI"):
        imports.import_log("argoverse2", source, tmp_path / "o", poses="oxts")
    with pytest.raises(InputError, match="holds several logs; import each by itself"):
        imports.import_log("nuscenes", sources["nuscenes"], tmp_path / "o", poses=str(tmp_path / "still.txt"))


def text(name, old, new):
    def change(folder):
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new))

    return change


def content(name, data):
    return lambda folder: next(folder.glob(name)).write_bytes(data)


def gone(name):
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def column(name, title, values):
    """A table with another column in the place of one; values None: without it."""

    def change(folder):
        path = next(folder.glob(name))
        read, write = (feather.read_table, feather.write_feather)
        if path.suffix == ".parquet":
            read, write = parquet.read_table, parquet.write_table
        table = read(path)
        at = table.column_names.index(title)
        new = table.drop_columns([title])
        write(new if values is None else new.add_column(at, title, pa.array((values * len(table))[: len(table)])), path)

    return change


def bomb(name):
    """A small file of very many zeros."""

    def change(folder):
        path = next(folder.glob(name))
        table = pa.table({TIMES[path.suffix]: np.zeros(40_000_000, np.int64)})
        write = parquet.write_table if path.suffix == ".parquet" else feather.write_feather
        write(table, path, compression="zstd")

    return change


TIMES = {".feather": "timestamp_ns", ".parquet": "key.frame_timestamp_micros"}
LIDAR, IMAGE, BOX = "lidar/*.parquet", "[CameraImageComponent]", "[LiDARBoxComponent].box"
RANGE = "[LiDARComponent].range_image_return1"
BROKEN = {
    "nuscenes": [
        (gone("v1.0-mini/sample.json"), "sample.json cannot be read"),
        (gone("v1.0-mini/scene.json"), "should have one folder v1.0-"),
        (lambda folder: shutil.copytree(folder / "v1.0-mini", folder / "v1.0-test"), "several, v1.0-mini, v1.0-test"),
        (content("v1.0-mini/sample_data.json", b"[" * 100_000), "is not readable JSON"),
        (content("v1.0-mini/ego_pose.json", b"{}"), "is no table of nuScenes"),
        (content("v1.0-mini/ego_pose.json", b"[]"), "has no row 'scene-0001 LIDAR_TOP 0'"),
        (content("v1.0-mini/sample.json", b"[3]"), "has a row without token, scene_token"),
        (content("v1.0-mini/sensor.json", b'[{"token": 3, "channel": "x"}]'), "whose tokens are no texts"),
        (text("v1.0-mini/sample_data.json", '"timestamp": 1', '"timestamp": -1'), "no time in microseconds"),
        (text("v1.0-mini/sample_data.json", '"timestamp": 1', '"timestamp": 1e400, "_": 1'), "no time in microseconds"),
        (text("v1.0-mini/sample_data.json", '"samples/', '"../samples/'), "outside its folder"),
        (text("v1.0-mini/sample_data.json", '"samples/', '"/samples/'), "outside its folder"),
        (text("v1.0-mini/sample_data.json", ".jpg", ".json"), "does not exist; unpack all"),
        (text("v1.0-mini/scene.json", "scene-0001", "../evil"), "no name of a folder"),
        (text("v1.0-mini/ego_pose.json", '"rotation": [', '"rotation": [NaN, '), "no rotation and place"),
        (text("v1.0-mini/calibrated_sensor.json", "[[", "[[NaN, "), "no pinhole camera"),
        (text("v1.0-mini/sample_annotation.json", '"size": [', '"size": ["x", '), "not width, length, height"),
        (text("v1.0-mini/sample_annotation.json", "sample 5", "sample 0"), "twice in a sample"),
        (gone("sweeps"), "does not exist; unpack all"),
        (content("samples/LIDAR_TOP/scene-0001*", b"0" * 44), "no points of 20"),
        (content("samples/CAM_FRONT/scene-0001*", b"hello"), "is not a readable image"),
    ],
    "argoverse2": [
        (gone("sensors/lidar"), "lidar is not a folder"),
        (gone("city_SE3_egovehicle.feather"), "does not exist; check"),
        (gone("calibration/intrinsics.feather"), "does not exist; check"),
        (content("city_SE3_egovehicle.feather", b"hello"), "is not a readable Arrow table"),
        (content("annotations.feather", b"ARROW1\0\0" * 9), "is not a readable Arrow table"),
        (bomb("annotations.feather"), "says that it unpacks to 305 MiB"),
        (column("annotations.feather", "category", None), "has no column category"),
        (column("annotations.feather", "qw", [None]), "column qw has gaps"),
        (column("annotations.feather", "width_m", ["wide"]), "width_m that are no numbers"),
        (column("annotations.feather", "timestamp_ns", [-5]), "no timestamp_ns in nanoseconds"),
        (column("city_SE3_egovehicle.feather", "qw", [float("nan")]), "are no numbers"),
        (column("city_SE3_egovehicle.feather", "timestamp_ns", [7, 8]), "no poses at the times"),
        (column("calibration/intrinsics.feather", "fx_px", [0.0]), "without a focal length"),
        (column("calibration/intrinsics.feather", "width_px", [7]), "pixels and"),
        (column("calibration/intrinsics.feather", "sensor_name", ["other"]), "has no camera of"),
        (column("calibration/egovehicle_SE3_sensor.feather", "sensor_name", ["x"]), "has no ring_front_center"),
        (column("sensors/lidar/*.feather", "offset_ns", [2 * 10**9]), "some of another second"),
        (content("sensors/lidar/*.feather", b""), "is not a readable Arrow table"),
        (lambda folder: (folder / "sensors/lidar/left.feather").touch(), "is not named by its time"),
    ],
    "waymo": [
        (gone("lidar"), "has no lidar; give a folder"),
        (gone("lidar_pose"), "does not exist; check"),
        (gone("camera_calibration"), "does not exist; check"),
        (content(LIDAR, b"hello"), "is not a readable Arrow table"),
        (content("vehicle_pose/*.parquet", b"PAR1" * 9), "is not a readable Arrow table"),
        (bomb("vehicle_pose/*.parquet"), "says that it unpacks to 305 MiB"),
        (
            column("vehicle_pose/*.parquet", "[VehiclePoseComponent].world_from_vehicle.transform", [[1.0]]),
            "not 16 numb",
        ),
        (column(LIDAR, f"{RANGE}.shape", [[1, 2, 4]]), "a range image of"),
        (column(LIDAR, f"{RANGE}.values", [["x"]]), "a list holds no numbers"),
        (column(LIDAR, f"{RANGE}.values", [{"a": 1.0}]), "a column should hold lists"),
        (column(LIDAR, f"{RANGE}.shape", [3]), "a column should hold lists"),
        (column(LIDAR, "key.laser_name", [9]), "has no points at"),
        (column("lidar_calibration/*.parquet", "key.laser_name", [4, 5]), "no calibration of the LiDAR that turns"),
        (
            column("lidar_calibration/*.parquet", "[LiDARCalibrationComponent].beam_inclination.values", [[0.1, 0.2]]),
            "has 64 rows of LiDAR 1 and 2 beams",
        ),
        (column("camera_image/*.parquet", "key.camera_name", [9]), "no pictures of the cameras 1 to 5"),
        (column("camera_image/*.parquet", f"{IMAGE}.image", [b"hello"]), "is not a readable image"),
        (column("camera_image/*.parquet", f"{IMAGE}.image", [[3]]), "a row without a picture"),
        (column("camera_image/*.parquet", f"{IMAGE}.pose_timestamp", [float("inf")]), "are no numbers"),
        (column("camera_calibration/*.parquet", "[CameraCalibrationComponent].intrinsic.k1", [9.0]), "a lens that"),
        (column("camera_calibration/*.parquet", "[CameraCalibrationComponent].width", [10**9]), "without a size"),
        (column("camera_calibration/*.parquet", "[CameraCalibrationComponent].width", [90]), "is for 90x54"),
        (column("lidar_box/*.parquet", f"{BOX}.heading", [float("nan")]), "are no numbers"),
        (column("lidar_box/*.parquet", "[LiDARBoxComponent].type", None), "has no column"),
    ],
}


@pytest.mark.parametrize(
    "layout, number", [(layout, number) for layout, cases in BROKEN.items() for number in range(len(cases))]
)
def test_broken_logs(sources, tmp_path, layout, number):
    change, message = BROKEN[layout][number]
    source = shutil.copytree(sources[layout], tmp_path / "log")
    change(source)
    scenes = ("scene-0001",) if layout == "nuscenes" and "name of a folder" not in message else None
    with pytest.raises(InputError) as said:
        imports.import_log(layout, source, tmp_path / "out", scenes=scenes, log=lambda text: None)
    assert message in str(said.value) and "\n" not in str(said.value)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_without_pyarrow(sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"need the package pyarrow; install flux4d\[logs\]"):
        imports.import_log("argoverse2", sources["argoverse2"], tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
