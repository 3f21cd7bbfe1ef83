"""Logs of the Argoverse 2 sensor dataset (Wilson et al., NeurIPS 2021) as they are downloaded.

SRC/sensors/lidar/TIMESTAMP_NS.feather             x y z of both LiDARs in the vehicle's axes, moved to TIMESTAMP_NS
SRC/sensors/cameras/ring_front_center/TIMESTAMP_NS.jpg      without distortion: k1 k2 k3 are those of the lens it was
SRC/calibration/intrinsics.feather, egovehicle_SE3_sensor.feather
SRC/city_SE3_egovehicle.feather                    poses at the moment of every sensor
SRC/annotations.feather                            cuboids at the sweeps' times, in the vehicle's axes; not in test logs
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from recon4d import InputError, images

from flux4d import arrow_files
from flux4d.logs import (
    AXES,
    Boxes,
    Log,
    LogCamera,
    Sweep,
    files_in,
    growing,
    logs_in,
    of_quaternions,
    poses_at,
    shifted,
    with_poses,
)

CAMERAS = {
    "ring_front_center": "front_camera",
    "ring_front_left": "front_left_camera",
    "ring_front_right": "front_right_camera",
    "ring_side_left": "left_camera",
    "ring_side_right": "right_camera",
    "ring_rear_left": "back_left_camera",
    "ring_rear_right": "back_right_camera",
    "stereo_front_left": "stereo_front_left_camera",
    "stereo_front_right": "stereo_front_right_camera",
}
LABELS = {
    "REGULAR_VEHICLE": "Car",
    "LARGE_VEHICLE": "Other Vehicle - Uncommon",
    "BUS": "Bus",
    "SCHOOL_BUS": "Bus",
    "ARTICULATED_BUS": "Bus",
    "BOX_TRUCK": "Medium-sized Truck",
    "TRUCK": "Medium-sized Truck",
    "TRUCK_CAB": "Semi-truck",
    "VEHICULAR_TRAILER": "Towed Object",
    "MESSAGE_BOARD_TRAILER": "Towed Object",
    "TRAFFIC_LIGHT_TRAILER": "Towed Object",
    "RAILED_VEHICLE": "Tram / Subway",
    "MOTORCYCLE": "Motorcycle",
    "MOTORCYCLIST": "Motorcycle",
    "BICYCLE": "Bicycle",
    "BICYCLIST": "Bicycle",
    "WHEELED_DEVICE": "Personal Mobility Device",
    "WHEELED_RIDER": "Personal Mobility Device",
    "PEDESTRIAN": "Pedestrian",
    "OFFICIAL_SIGNALER": "Pedestrian",
    "WHEELCHAIR": "Pedestrian",
    "STROLLER": "Pedestrian with Object",
    "DOG": "Animals - Other",
    "ANIMAL": "Animals - Other",
    "SIGN": "Signs",
    "STOP_SIGN": "Signs",
    "MOBILE_PEDESTRIAN_CROSSING_SIGN": "Signs",
    "CONSTRUCTION_CONE": "Cones",
    "CONSTRUCTION_BARREL": "Pylons",
    "BOLLARD": "Pylons",
}
TURN, PLACE = ("qw", "qx", "qy", "qz"), ("tx_m", "ty_m", "tz_m")


def find(source: Path, rate: float, poses: str | None) -> dict[str, Callable[[], Log]]:
    """The logs of a folder, by name, or the one that it is, as ""; see `open_log`."""
    found = logs_in(source, ("sensors", "city_SE3_egovehicle.feather"))
    return {name: partial(open_log, place, poses) for name, place in found.items()}


def open_log(source: Path, poses: str | None) -> Log:
    """A log of Argoverse 2. The LiDAR is taken to be where the upper one is, with the vehicle's axes.

    Args:
        poses: a file with 12 numbers for each sweep (LiDAR to world), `kiss-icp` for none, None for the log's own.

    Raises InputError for folders and tables that are missing or broken, and for files that do not fit each other.
    """
    sweeps = files_in(source / "sensors" / "lidar", (".feather",), "sweeps")
    moments = _moments(sweeps)
    path = source / "city_SE3_egovehicle.feather"
    clock, track = _track(path)
    start = int(clock[0])

    def vehicle(times: np.ndarray) -> np.ndarray:
        """(N, 4, 4) vehicle to city at nanoseconds (N,)."""
        if times[0] < clock[0] - 10**8 or times[-1] > clock[-1] + 10**8:
            raise InputError(f"{path} has no poses at the times of the log's files; copy it again")
        return poses_at((clock - start) / 1e9, track, (times - start) / 1e9)

    sensors = _sensors(source)
    lidar = shifted(sensors["up_lidar"][:3, 3]) if "up_lidar" in sensors else np.eye(4)
    cameras = {}
    for name, (K, size, calibration) in _intrinsics(source).items():
        place = source / "sensors" / "cameras" / name
        if name not in CAMERAS or not place.is_dir():
            continue
        pictures = files_in(place, tuple(sorted(images.SUFFIXES)), "pictures")
        if images.size(pictures[0]) != size:
            seen = "x".join(map(str, images.size(pictures[0])))
            raise InputError(f"{pictures[0]} is {seen} pixels and {calibration} is for {size[0]}x{size[1]}")
        if name not in sensors:
            raise InputError(f"{source / 'calibration' / 'egovehicle_SE3_sensor.feather'} has no {name}; copy it again")
        times = _moments(pictures)
        known = vehicle(times) @ sensors[name]
        to_camera = np.linalg.inv(sensors[name]) @ lidar
        cameras[CAMERAS[name]] = LogCamera(pictures, times / 1e9, K, to_camera, calibration, known)
    if not cameras:
        raise InputError(f"{source / 'sensors' / 'cameras'} has no camera of calibration/intrinsics.feather")
    labels = source / "annotations.feather"
    boxes = _annotations(labels, moments, lidar) if labels.exists() else None
    found = Log(
        sweeps,
        moments / 1e9,
        AXES,
        lambda i: _sweep(sweeps[i], lidar[:3, 3]),
        dict(sorted(cameras.items(), key=lambda item: list(CAMERAS.values()).index(item[0]))),
        vehicle(moments) @ lidar,
        path.name,
        boxes,
        compensated=True,
    )
    return with_poses(found, poses)


def _moments(files: list[Path]) -> np.ndarray:
    """(N,) nanoseconds, int64, of files named by them."""
    stems = [(path, path.stem) for path in files]
    bad = [path for path, stem in stems if not (stem.isascii() and stem.isdecimal() and len(stem) <= 19)]
    if bad:
        raise InputError(f"{bad[0]} is not named by its time, as Argoverse's files are; rename or remove it")
    found = np.array([min(int(stem), 9 * 10**18) for _, stem in stems], np.int64)
    growing(found.astype(np.float64), files[0].parent)
    return found


def _track(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Nanoseconds (N,) and vehicle to city (N, 4, 4), in order of time."""
    table = arrow_files.read(path, ("timestamp_ns", *TURN, *PLACE))
    clock = _nanoseconds(table, path)
    poses = of_quaternions(arrow_files.numbers(table, TURN, path), arrow_files.numbers(table, PLACE, path), path)
    clock, order = np.unique(clock, return_index=True)
    if not len(clock):
        raise InputError(f"{path} holds no poses; copy it again")
    return clock, poses[order]


def _nanoseconds(table: dict[str, np.ndarray], path: Path) -> np.ndarray:
    clock = table["timestamp_ns"]
    if clock.dtype.kind not in "iu" or (len(clock) and not 0 <= clock.min() <= clock.max() < 9 * 10**18):
        raise InputError(f"{path} has no timestamp_ns in nanoseconds; copy it again")
    return clock.astype(np.int64)


def _sensors(source: Path) -> dict[str, np.ndarray]:
    """Sensor to vehicle (4, 4) by name."""
    path = source / "calibration" / "egovehicle_SE3_sensor.feather"
    table = arrow_files.read(path, ("sensor_name", *TURN, *PLACE))
    poses = of_quaternions(arrow_files.numbers(table, TURN, path), arrow_files.numbers(table, PLACE, path), path)
    return dict(zip(map(str, table["sensor_name"]), poses))


def _intrinsics(source: Path) -> dict[str, tuple[np.ndarray, tuple[int, int], Path]]:
    """K, width and height, and the file they are from, by sensor."""
    path = source / "calibration" / "intrinsics.feather"
    names = ("fx_px", "fy_px", "cx_px", "cy_px", "width_px", "height_px")
    table = arrow_files.read(path, ("sensor_name", *names))
    out = {}
    for name, (fx, fy, cx, cy, width, height) in zip(table["sensor_name"], arrow_files.numbers(table, names, path)):
        if min(fx, fy) <= 0:
            raise InputError(f"{path} has a {name} without a focal length; copy it again")
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        out[str(name)] = (K, (int(width), int(height)), path)
    return out


def _sweep(path: Path, lidar: np.ndarray) -> Sweep:
    table = arrow_files.read(path, ("x", "y", "z", "intensity", "offset_ns"))
    found = arrow_files.numbers(table, ("x", "y", "z", "intensity", "offset_ns"), path)
    offsets = found[:, 4] / 1e9
    if not len(found) or np.abs(offsets).max() > 1:
        raise InputError(f"{path} holds no points, or some of another second; copy it again")
    return Sweep(found[:, :3] - lidar, np.clip(found[:, 3], 0, 255), offsets)


def _annotations(path: Path, moments: np.ndarray, lidar: np.ndarray) -> Callable[[int], Boxes | None]:
    """The boxes of a sweep by its number; None before the first labelled sweep and after the last."""
    size = ("width_m", "length_m", "height_m")
    table = arrow_files.read(path, ("timestamp_ns", "track_uuid", "category", *size, *TURN, *PLACE))
    clock = _nanoseconds(table, path)
    poses = of_quaternions(arrow_files.numbers(table, TURN, path), arrow_files.numbers(table, PLACE, path), path)
    poses = np.linalg.inv(lidar) @ poses
    sizes = arrow_files.numbers(table, size, path)
    labels = np.array([LABELS.get(str(name), str(name)) for name in table["category"]], object)

    def boxes(i: int) -> Boxes | None:
        if not len(clock) or not clock.min() <= moments[i] <= clock.max():
            return None
        rows = np.flatnonzero(clock == moments[i])
        return Boxes(table["track_uuid"][rows], labels[rows], sizes[rows], poses[rows])

    return boxes
