"""Posts along a bend as KITTI and plain folders have them, seen by a sensor that turns while the car drives."""

import json
import struct

import numpy as np
from flux4d import imports, kitti, pandaset
from plyfile import PlyData, PlyElement
from recon4d import images
from scipy.spatial.transform import Rotation

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
VAN = [14.0, 4.0, -0.5]  # the centre of a parked one


def pose(time):
    """LiDAR to world of a car in a bend, forward, left, up."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("z", TURN * time).as_matrix()
    matrix[:2, 3] = SPEED / TURN * np.array([np.sin(TURN * time), 1 - np.cos(TURN * time)])
    return matrix


def seen(time, places=POSTS):
    """Places in the axes of the turning sensor, each at the moment when it meets them; and those moments."""
    offsets = np.zeros(len(places))
    for _ in range(20):
        poses = np.stack([pose(time + offset) for offset in offsets])
        local = np.einsum("nji,nj->ni", poses[:, :3, :3], places - poses[:, :3, 3])
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


def write_tracklets(folder, frames=6):
    """What KITTI's tool writes: a parked van, drawn where the sweep as it is has it, and a walker from frame 2 on."""
    items = []
    for kind, place, first, yaw in (("Van", VAN, 0, 0.3), ("Pedestrian", [8.0, -3, -1], 2, 0.0)):
        poses = []
        for i in range(first, frames):
            xyz, _ = seen(0.1 * i, np.array([place]) + (i - first) * np.array([[0, 0.3, 0]]) * (kind != "Van"))
            turn = yaw - TURN * (0.1 * i + seen(0.1 * i, np.array([place]))[1][0])
            values = dict(zip(("tx", "ty", "tz"), [*xyz[0, :2], xyz[0, 2] - 0.9]), rx=0, ry=0, rz=turn)
            rows = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
            poses.append(f"<item>{rows}<state>2</state><occlusion>0</occlusion></item>")
        items.append(
            f"<item><objectType>{kind}</objectType><h>1.8</h><w>1.9</w><l>4.5</l><first_frame>{first}</first_frame>"
            f"<poses><count>{len(poses)}</count><item_version>2</item_version>{''.join(poses)}</poses></item>"
        )
    (folder / "tracklet_labels.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8" standalone="yes" ?>\n<!DOCTYPE boost_serialization>\n'
        '<boost_serialization signature="serialization::archive" version="9"><tracklets class_id="0">'
        f"<count>2</count><item_version>1</item_version>{''.join(items)}</tracklets></boost_serialization>\n"
    )
    return folder


def brought(layout, source, out, **options):
    """A log imported; its scene, its summary and the points of each sweep."""
    summary = imports.import_log(layout, source, out, log=lambda text: None, **options)
    names = tuple(sorted(path.name for path in (out / "camera").iterdir()))
    scene = pandaset.open_scene(out, names)
    return scene, summary, [pandaset.read_points(path) for path in scene.lidar.files]


POSTS_IN_SCENE = POSTS @ kitti.AXES.T  # right, forward, up of the first sweep
