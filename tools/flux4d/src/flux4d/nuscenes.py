"""Scenes of nuScenes (Caesar et al., CVPR 2020) as they are downloaded.

SRC/v1.0-mini/*.json          tables, or v1.0-trainval, v1.0-test; SRC may be that folder itself
SRC/samples, SRC/sweeps       LIDAR_TOP/*.pcd.bin (float32 x y z intensity ring; x right, y forward; moved to the
                              sweep's time, when its turn ends), CAM_FRONT/*.jpg (without distortion) and others
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from recon4d import InputError, images
from recon4d.files import read_json

from flux4d import point_files
from flux4d.logs import (
    AXES,
    Boxes,
    Log,
    LogCamera,
    Sweep,
    folder_name,
    growing,
    of_quaternions,
    poses_at,
    shifted,
    with_poses,
)

LIDAR = "LIDAR_TOP"
CAMERAS = {
    "CAM_FRONT": "front_camera",
    "CAM_FRONT_LEFT": "front_left_camera",
    "CAM_FRONT_RIGHT": "front_right_camera",
    "CAM_BACK": "back_camera",
    "CAM_BACK_LEFT": "back_left_camera",
    "CAM_BACK_RIGHT": "back_right_camera",
}
LABELS = {  # of the longest beginning that fits
    "vehicle.car": "Car",
    "vehicle.truck": "Medium-sized Truck",
    "vehicle.trailer": "Towed Object",
    "vehicle.bus": "Bus",
    "vehicle.construction": "Other Vehicle - Construction Vehicle",
    "vehicle.emergency": "Emergency Vehicle",
    "vehicle.motorcycle": "Motorcycle",
    "vehicle.bicycle": "Bicycle",
    "human.pedestrian": "Pedestrian",
    "human.pedestrian.personal_mobility": "Personal Mobility Device",
    "animal": "Animals - Other",
    "movable_object.trafficcone": "Cones",
    "movable_object.barrier": "Temporary Construction Barriers",
    "movable_object.pushable_pullable": "Rolling Containers",
}
COLUMNS = {
    "scene": ("token", "name"),
    "sample": ("token", "scene_token", "timestamp"),
    "sample_data": ("token", "sample_token", "ego_pose_token", "calibrated_sensor_token", "filename", "timestamp"),
    "ego_pose": ("token", "translation", "rotation"),
    "calibrated_sensor": ("token", "sensor_token", "translation", "rotation", "camera_intrinsic"),
    "sensor": ("token", "channel"),
    "sample_annotation": ("token", "sample_token", "instance_token", "translation", "size", "rotation"),
    "instance": ("token", "category_token"),
    "category": ("token", "name"),
}
Row = dict[str, Any]


def find(source: Path, rate: float, poses: str | None) -> dict[str, Callable[[], Log]]:
    """The scenes of a folder of nuScenes, by name; see `open_log`."""
    versions = [source] if (source / "sample_data.json").exists() else sorted(source.glob("v1.0-*/"))
    versions = [folder for folder in versions if (folder / "scene.json").is_file()]
    if len(versions) != 1:
        have = f"several, {', '.join(folder.name for folder in versions)}; give one" if versions else "none"
        raise InputError(f"{source} should have one folder v1.0-* with nuScenes' tables and has {have}")
    (tables,) = versions
    read = {name: _table(tables / f"{name}.json", columns) for name, columns in COLUMNS.items()}
    of_scene: dict[str, list[Row]] = {}
    for row in read["sample_data"].values():
        sample = _row(read, "sample", row["sample_token"], tables)
        of_scene.setdefault(sample["scene_token"], []).append(row)
    labelled: dict[str, list[Row]] = {}
    for row in read["sample_annotation"].values():
        sample = _row(read, "sample", row["sample_token"], tables)
        labelled.setdefault(sample["scene_token"], []).append(row)
    return {
        folder_name(row["name"], tables / "scene.json"): partial(
            open_log, tables, read, of_scene.get(token, []), labelled.get(token, []), str(row["name"]), poses
        )
        for token, row in read["scene"].items()
    }


def _table(path: Path, columns: tuple[str, ...]) -> dict[str, Row]:
    """The rows of a table by their tokens. InputError where they have no such columns or no texts where they should."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path} is no table of nuScenes; copy it again")
    for row in rows:
        if not isinstance(row, dict) or not set(columns) <= row.keys():
            raise InputError(f"{path} has a row without {', '.join(columns)}; copy it again")
        if not all(isinstance(row[name], str) for name in columns if name.endswith(("token", "name", "channel"))):
            raise InputError(f"{path} has a row whose tokens are no texts; copy it again")
        if "timestamp" in columns and not (type(row["timestamp"]) in (int, float) and 0 <= row["timestamp"] < 1e17):
            raise InputError(f"{path} has a row whose timestamp is no time in microseconds; copy it again")
    return {row["token"]: {name: row[name] for name in columns} for row in rows}


def _row(read: dict[str, dict[str, Row]], table: str, token: str, tables: Path) -> Row:
    row = read[table].get(token)
    if row is None:
        raise InputError(f"{tables / table}.json has no row {token[:40]!r} that others name; copy it again")
    return row


def open_log(
    tables: Path, read: dict[str, dict[str, Row]], rows: list[Row], annotations: list[Row], name: str, poses: str | None
) -> Log:
    """One scene. The LiDAR is taken to have the vehicle's axes, level and forward, at its own place.

    Args:
        read: all tables. rows: the scene's of sample_data. annotations: its of sample_annotation.
        poses: a file with 12 numbers for each sweep (LiDAR to world), `kiss-icp` for none, None for the log's own.

    Raises InputError for rows and files that are missing, broken or do not fit each other.
    """
    by_channel: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["timestamp"]):
        sensor = _row(read, "calibrated_sensor", row["calibrated_sensor_token"], tables)
        channel = _row(read, "sensor", sensor["sensor_token"], tables)["channel"]
        if channel == LIDAR or channel in CAMERAS:
            by_channel.setdefault(channel, []).append(row | {"sensor": sensor})
    if LIDAR not in by_channel or len(by_channel) < 2:
        raise InputError(f"{tables / 'sample_data.json'} has no {LIDAR} or no camera of {name}; copy it again")
    where = tables / "calibrated_sensor.json"

    def vehicles(channel: str) -> np.ndarray:
        """(N, 4, 4) vehicle to world at a sensor's data."""
        found = [_row(read, "ego_pose", row["ego_pose_token"], tables) for row in by_channel[channel]]
        path = tables / "ego_pose.json"
        return of_quaternions([row["rotation"] for row in found], [row["translation"] for row in found], path)

    def mounted(channel: str) -> np.ndarray:
        """(N, 4, 4) sensor to vehicle."""
        found = [row["sensor"] for row in by_channel[channel]]
        return of_quaternions([row["rotation"] for row in found], [row["translation"] for row in found], where)

    sweeps, moments = _files(tables, by_channel[LIDAR]), _times(tables, by_channel[LIDAR])
    turn = mounted(LIDAR)
    lidar = shifted(turn[0, :3, 3])
    track = vehicles(LIDAR) @ lidar
    to_lidar = np.linalg.inv(lidar) @ turn
    cameras = {}
    for channel, camera in CAMERAS.items():
        if channel in by_channel:
            found = mounted(channel)
            cameras[camera] = LogCamera(
                _files(tables, by_channel[channel]),
                _times(tables, by_channel[channel]),
                _intrinsics(by_channel[channel][0]["sensor"], where),
                np.linalg.inv(found[0]) @ lidar,
                where,
                vehicles(channel) @ found,
            )
    samples = {row["sample_token"] for row in rows}
    keys = np.unique([_row(read, "sample", token, tables)["timestamp"] for token in samples]) / 1e6
    boxes = _boxes(tables, read, annotations, keys, moments, track) if annotations else None
    log = Log(
        sweeps,
        moments,
        AXES,
        lambda i: _sweep(sweeps[i], to_lidar[i]),
        cameras,
        track,
        "ego_pose.json",
        boxes,
        compensated=True,
    )
    return with_poses(log, poses)


def _files(tables: Path, rows: list[Row]) -> list[Path]:
    """The files that rows of sample_data name, which must be there."""
    out = []
    for row in rows:
        inside = PurePosixPath(row["filename"])
        if inside.is_absolute() or ".." in inside.parts or not inside.parts or "\0" in row["filename"]:
            raise InputError(f"{tables / 'sample_data.json'} names a file {row['filename'][:60]!r} outside its folder")
        out.append(tables.parent / inside)
        if not out[-1].is_file():
            raise InputError(f"{out[-1]} does not exist; unpack all of nuScenes' parts that hold the scene")
        kinds = (".bin",) if rows[0]["sensor"]["camera_intrinsic"] == [] else tuple(images.SUFFIXES)
        if not out[-1].name.lower().endswith(kinds):
            raise InputError(f"{out[-1]} is no {kinds[0]} file, as it should be by sample_data.json; copy it again")
    return out


def _times(tables: Path, rows: list[Row]) -> np.ndarray:
    return growing(np.array([row["timestamp"] for row in rows], np.float64) / 1e6, tables / "sample_data.json")


def _intrinsics(row: Row, path: Path) -> np.ndarray:
    try:
        K = np.array(row["camera_intrinsic"], np.float64).reshape(3, 3)
        if not (np.isfinite(K).all() and min(K[0, 0], K[1, 1], K[2, 2]) > 0 and abs(K[0, 1]) < 1e-6 * K[0, 0]):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} has a camera_intrinsic that is no pinhole camera; copy it again") from error
    return K


def _sweep(path: Path, to_lidar: np.ndarray) -> Sweep:
    found = point_files.read_floats(path, 5)
    xyz = np.stack([found[k] for k in "xyz"], -1) @ to_lidar[:3, :3].T + to_lidar[:3, 3]
    return Sweep(xyz, np.clip(np.nan_to_num(found["intensity"]), 0, 255), None)


def _boxes(
    tables: Path,
    read: dict[str, dict[str, Row]],
    rows: list[Row],
    keys: np.ndarray,
    moments: np.ndarray,
    track: np.ndarray,
) -> Callable[[int], Boxes | None]:
    """The boxes of a sweep by its number; None before the first key frame and after the last.

    Between the key frames before and after it a thing that both have goes straight and turns evenly, as the devkit's
    `NuScenes.get_boxes` has it.
    """
    path = tables / "sample_annotation.json"
    times = np.array([_row(read, "sample", row["sample_token"], tables)["timestamp"] for row in rows]) / 1e6
    poses = of_quaternions([row["rotation"] for row in rows], [row["translation"] for row in rows], path)
    try:
        sizes = np.array([row["size"] for row in rows], np.float64).reshape(-1, 3)
        if not (np.isfinite(sizes).all() and (sizes > 0).all()):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} has a size that is not width, length, height; copy it again") from error
    of_thing: dict[str, list[int]] = {}
    for number in np.argsort(times, kind="stable"):
        of_thing.setdefault(rows[number]["instance_token"], []).append(int(number))
    # a key frame has its sweep's time, but for some milliseconds
    snapped = np.array([keys[np.argmin(np.abs(keys - moment))] for moment in moments])
    moments = np.where(np.abs(snapped - moments) < 0.02, snapped, moments)
    found: list[list[tuple[str, str, np.ndarray, np.ndarray]]] = [[] for _ in moments]
    for token, numbers in of_thing.items():
        category = _row(read, "category", _row(read, "instance", token, tables)["category_token"], tables)["name"]
        own, known = times[numbers], poses[numbers]
        if (np.diff(own) <= 0).any():
            raise InputError(f"{path} has {token[:40]} twice in a sample; copy it again")
        places = np.searchsorted(own, moments, "right") - 1
        before = own[np.maximum(places, 0)]
        # the key frame that follows must have it too, unless this is one
        after = own[np.minimum(places + 1, len(own) - 1)]
        follows = np.searchsorted(keys, after) - np.searchsorted(keys, before) == 1
        there = (places >= 0) & ((moments == before) | (follows & (moments < after)))
        at = poses_at(own, known, moments)
        for i in np.flatnonzero(there):
            found[i].append((token, label_of(category), sizes[numbers[places[i]]], np.linalg.inv(track[i]) @ at[i]))

    def boxes(i: int) -> Boxes | None:
        if not keys[0] <= moments[i] <= keys[-1]:
            return None
        names, labels = (np.array([row[k] for row in found[i]], object) for k in (0, 1))
        size, pose = (np.array([row[k] for row in found[i]]) for k in (2, 3))
        return Boxes(names, labels, size.reshape(-1, 3), pose.reshape(-1, 4, 4))

    return boxes


def label_of(category: str) -> str:
    """PandaSet's label of a category of nuScenes; a category that has none is its own."""
    parts = category.split(".")
    beginnings = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((LABELS[name] for name in beginnings if name in LABELS), category)
