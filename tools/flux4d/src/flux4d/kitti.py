"""Drives of KITTI raw (Geiger et al., IJRR 2013) as they are downloaded: synchronised and rectified.

SRC/image_02/data/0000000000.png, timestamps.txt   colour, left; image_03 is right; 00 and 01 are grey
SRC/velodyne_points/data/0000000000.bin, timestamps.txt
SRC/oxts/data/0000000000.txt, timestamps.txt       or SRC/poses_velo.txt, 12 numbers a sweep
SRC/tracklet_labels.xml                            cuboids, where somebody drew them
SRC/calib_cam_to_cam.txt, calib_velo_to_cam.txt, calib_imu_to_velo.txt    there or in the folder above
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
from recon4d import InputError, images

from flux4d import point_files, tracklets
from flux4d.logs import (
    AXES,
    Log,
    LogCamera,
    Sweep,
    about,
    files_in,
    growing,
    lines,
    logs_in,
    numbers,
    poses_at,
    read_poses,
    rigid,
)

PERIOD = 0.1  # seconds per turn of its HDL-64E
EARTH = 6378137.0  # metres, the radius that KITTI's development kit takes
PAIRS = (("image_02", "image_03"), ("image_00", "image_01"))
NAMES = ("front_camera", "front_right_camera")


def find(source: Path, rate: float, poses: str | None) -> dict[str, Callable[[], Log]]:
    """The drives of a folder, by name, or the one that it is, as ""; see `open_log`."""
    found = logs_in(source, ("velodyne_points", "image_02", "image_00"))
    return {name: partial(open_log, place, rate, poses) for name, place in found.items()}


def open_log(source: Path, rate: float, poses: str | None) -> Log:
    """A drive of KITTI raw.

    Args:
        rate: frames a second where there are no timestamps; times are then counted from the number 0.
        poses: `oxts`, a file with 12 numbers for each sweep (LiDAR to world), None for `poses_velo.txt` or else OXTS,
            `kiss-icp` for none.

    Raises InputError for folders and calibration that are missing or broken, and for files that do not fit each other.
    """
    data = source / "velodyne_points" / "data"
    if not data.is_dir():
        raise InputError(f"{source} has no velodyne_points/data; give the folder of one drive of KITTI raw")
    sweeps = files_in(data, (".bin",), "sweeps")
    there = [[name for name in pair if (source / name / "data").is_dir()] for pair in PAIRS]
    chosen = there[0] or there[1]
    if not chosen:
        raise InputError(f"{source} has no image_02/data; give a drive of KITTI raw with its pictures")
    pictures = {name: files_in(source / name / "data", tuple(sorted(images.SUFFIXES)), "pictures") for name in chosen}
    sensors = {source / name: files for name, files in pictures.items()} | {data.parent: sweeps}
    clocked = all((place / "timestamps.txt").is_file() for place in sensors)
    times = {place: _times(place, files, None if clocked else rate) for place, files in sensors.items()}
    cameras = {}
    for name, files in pictures.items():
        K, lidar_to_camera, calibration = _camera(source, name, images.size(files[0]))
        cameras[NAMES[chosen.index(name)]] = LogCamera(files, times[source / name], K, lidar_to_camera, calibration)
    moments = times[data.parent]
    path = Path(poses) if poses not in (None, "oxts", "kiss-icp") else source / "poses_velo.txt"
    known, origin = None, "kiss-icp"
    if poses == "oxts" or (poses is None and not path.is_file() and (source / "oxts").is_dir()):
        known, origin = _oxts(source, moments, None if clocked else rate), "oxts"
    elif poses != "kiss-icp" and (poses is not None or path.is_file()):
        known, origin = read_poses(path, len(sweeps)), path.name
    labels, boxes = source / "tracklet_labels.xml", None
    if labels.exists():
        boxes = tracklets.read(labels, [_number(path) for path in sweeps], _offsets)
    return Log(sweeps, moments, AXES, lambda i: _sweep(sweeps[i]), cameras, known, origin, boxes)


def _sweep(path: Path) -> Sweep:
    found = point_files.read(path)
    xyz = np.stack([found[k] for k in "xyz"], -1)
    return Sweep(xyz, 255 * np.clip(np.nan_to_num(found["intensity"]), 0, 1), _offsets(xyz))


def _offsets(xyz: np.ndarray) -> np.ndarray:
    """(N,) seconds: the sensor turns clockwise, begins behind the car, is in front of it at the sweep's own time."""
    found: np.ndarray = -np.arctan2(xyz[:, 1], xyz[:, 0]) / (2 * np.pi) * PERIOD
    return found


def _number(path: Path) -> int:
    if not path.stem.isdecimal() or len(path.stem) > 15:
        raise InputError(f"{path} is not named by its number, as KITTI's files are; rename or remove it")
    return int(path.stem)


def _times(place: Path, files: list[Path], rate: float | None) -> np.ndarray:
    """Seconds of files: from timestamps.txt, one line a file or one line a number; by their numbers at a rate."""
    frames = [_number(path) for path in files]
    if rate is not None:
        return growing(np.array(frames) / rate, place)
    path = place / "timestamps.txt"
    texts = [line.strip() for line in lines(path)]
    while texts and not texts[-1]:
        texts.pop()
    if len(texts) != len(files):
        if max(frames) >= len(texts):
            raise InputError(f"{path} has {len(texts)} lines for {len(files)} files; copy it again")
        texts = [texts[frame] for frame in frames]
    return growing(np.array([_seconds(text, path) for text in texts]), path)


def _seconds(text: str, path: Path) -> float:
    """Seconds since 1970 of 2011-09-26 13:02:25.964389445, taken as UTC."""
    whole, _, part = text.partition(".")
    try:
        start = datetime.strptime(whole + " +0000", "%Y-%m-%d %H:%M:%S %z").timestamp()
        return start + float(f"0.{int(part or '0'):0{len(part or '0')}d}")
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} holds {text[:40]!r}, which is no time; copy it again") from error


def _calibration(source: Path, name: str) -> tuple[dict[str, np.ndarray], Path]:
    """The rows of numbers in a calibration file, and its path."""
    places = [source / name, source.resolve().parent / name]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"{source} has no {name}, nor has the folder above; put KITTI's calibration of that day there")
    rows = {}
    for line in lines(path):
        key, _, text = line.partition(":")
        try:
            rows[key.strip()] = np.array([float(word) for word in text.split()])
        except ValueError:
            continue  # calib_time is a date
    return rows, path


def _row(rows: dict[str, np.ndarray], key: str, width: int, path: Path) -> np.ndarray:
    row = rows.get(key)
    if row is None or len(row) != width or not np.isfinite(row).all():
        raise InputError(f"{path} has no {key} of {width} numbers; copy KITTI's calibration of that day again")
    return row


def _transform(source: Path, name: str) -> np.ndarray:
    """(4, 4) of a file with R and T."""
    rows, path = _calibration(source, name)
    R, T = _row(rows, "R", 9, path).reshape(3, 3), _row(rows, "T", 3, path)
    return rigid(np.concatenate([R, T[:, None]], 1), path)


def _camera(source: Path, name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, Path]:
    """K and LiDAR-to-camera of rectified pictures: P_rect = K [I | t], after R_rect_00 and velodyne-to-camera."""
    rows, path = _calibration(source, "calib_cam_to_cam.txt")
    number = name[-2:]
    P = _row(rows, f"P_rect_{number}", 12, path).reshape(3, 4)
    expected = tuple(_row(rows, f"S_rect_{number}", 2, path).round().astype(int).tolist())
    if size != expected:
        raise InputError(
            f"{source / name} has pictures of {size[0]}x{size[1]} pixels and {path} is for "
            f"{expected[0]}x{expected[1]}; give the drive's synchronised, rectified pictures"
        )
    K = P[:, :3]
    if min(K[0, 0], K[1, 1], K[2, 2]) <= 0 or abs(K[0, 1]) > 1e-6 * K[0, 0]:
        raise InputError(f"{path} has a P_rect_{number} that is no pinhole camera; copy it again")
    shift = np.eye(4)
    shift[:3, 3] = np.linalg.solve(K, P[:, 3])
    rectify = rigid(np.concatenate([_row(rows, "R_rect_00", 9, path).reshape(3, 3), np.zeros((3, 1))], 1), path)
    return K, shift @ rectify @ _transform(source, "calib_velo_to_cam.txt"), path


def _oxts(source: Path, moments: np.ndarray, rate: float | None) -> np.ndarray:
    """(N, 4, 4) LiDAR to world at moments, from GPS and inertial unit, as KITTI's convertOxtsToPose does."""
    files = files_in(source / "oxts" / "data", (".txt",), "OXTS packets")
    packets = np.concatenate([numbers(path, 30)[:1] for path in files])
    if len(packets) != len(files):
        raise InputError(f"{source / 'oxts' / 'data'} has a file without a packet; copy it again")
    times = _times(source / "oxts", files, rate)
    latitude, longitude, height, roll, pitch, yaw = packets[:, :6].T
    if (np.abs(latitude) >= 89.9).any():
        raise InputError(f"{source / 'oxts' / 'data'} has latitudes near a pole; give a file of poses with --poses")
    scale = np.cos(np.radians(latitude[0])) * EARTH
    poses = np.tile(np.eye(4), (len(packets), 1, 1))
    poses[:, :3, :3] = about(2, yaw) @ about(1, pitch) @ about(0, roll)
    poses[:, 0, 3] = scale * np.radians(longitude)
    poses[:, 1, 3] = scale * np.log(np.tan(np.radians(90 + latitude) / 2))
    poses[:, 2, 3] = height
    poses[:, :3, 3] -= poses[0, :3, 3].copy()
    imu = poses_at(times, poses, moments)
    found: np.ndarray = imu @ np.linalg.inv(_transform(source, "calib_imu_to_velo.txt"))
    return found
