"""Segments of the Waymo Open Dataset's perception part, version 2 (Sun et al., CVPR 2020): parquet files.

SRC/COMPONENT/SEGMENT.parquet     camera_image, camera_calibration, lidar, lidar_calibration, lidar_pose, vehicle_pose;
                                  lidar_box where there are cuboids

Columns, units and axes are those of waymo_open_dataset/v2/perception of the official devkit: the vehicle's and the
cameras' axes are forward, left, up; a matrix goes from a sensor to the vehicle, or from the vehicle to the world.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from recon4d import InputError, images

from flux4d import arrow_files, range_images
from flux4d.logs import AXES, Boxes, Log, about, folder_name, growing, of_rows, shifted, with_poses
from flux4d.waymo_cameras import camera_of

CAMERAS = {1: "front_camera", 2: "front_left_camera", 3: "front_right_camera", 4: "left_camera", 5: "right_camera"}
LABELS = {1: "Car", 2: "Pedestrian", 3: "Signs", 4: "Bicycle"}
TOP = 1  # the LiDAR that turns
MIDDLE = 0.05  # seconds from a frame's time, when its turn begins, to where its pose is the vehicle's
TIME = "key.frame_timestamp_micros"
BOX = tuple(f"[LiDARBoxComponent].box.{name}" for name in (*(f"center.{k}" for k in "xyz"), "heading"))
SIZE = tuple(f"[LiDARBoxComponent].box.size.{k}" for k in "yxz")  # width, length, height


def find(source: Path, rate: float, poses: str | None) -> dict[str, Callable[[], Log]]:
    """The segments of a folder, by name; see `open_log`."""
    if not (source / "lidar").is_dir():
        raise InputError(f"{source} has no lidar; give a folder of Waymo's parquet files, version 2")
    there = [path for path in (source / "lidar").glob("*.parquet") if path.name[0] != "."]
    if not there:
        raise InputError(f"{source / 'lidar'} has no parquet files; check that the log is complete")
    names = sorted((folder_name(path.stem, path) for path in there), key=images.natural_key)
    return {name: partial(open_log, source, name, poses) for name in names}


def open_log(source: Path, name: str, poses: str | None) -> Log:
    """A segment. The LiDAR is taken to be where the one that turns is, with the vehicle's axes.

    Args:
        poses: a file with 12 numbers for each sweep (LiDAR to world), `kiss-icp` for none, None for the log's own.

    Raises InputError for files that are missing or broken, or do not fit each other.
    """
    path = {
        part: source / part / f"{name}.parquet"
        for part in (
            "camera_image",
            "camera_calibration",
            "lidar",
            "lidar_calibration",
            "lidar_pose",
            "lidar_box",
            "vehicle_pose",
        )
    }
    column = "[VehiclePoseComponent].world_from_vehicle.transform"
    table = arrow_files.read(path["vehicle_pose"], (TIME, column))
    order = np.argsort(table[TIME], kind="stable")
    clock = table[TIME][order].astype(np.int64)
    times = growing(clock / 1e6 + MIDDLE, path["vehicle_pose"])
    vehicle = of_rows(table[column][order], path["vehicle_pose"])
    sensors = range_images.calibrations(path["lidar_calibration"])
    if TOP not in sensors:
        raise InputError(f"{path['lidar_calibration']} has no calibration of the LiDAR that turns; copy it again")
    lidar = shifted(sensors[TOP].to_vehicle[:3, 3])

    cameras = {}
    for number, camera in CAMERAS.items():
        found = camera_of(path["camera_image"], path["camera_calibration"], number, lidar)
        if found is not None:
            cameras[camera] = found
    if not cameras:
        raise InputError(f"{path['camera_image']} has no pictures of the cameras 1 to 5; copy it again")
    frames = [path["lidar"].with_suffix("") / str(time) for time in clock]
    read = range_images.sweeps(path["lidar"], path["lidar_pose"], sensors, clock, vehicle, lidar[:3, 3])
    boxes = _boxes(path["lidar_box"], clock, lidar) if path["lidar_box"].exists() else None
    log = Log(frames, times, AXES, read, cameras, vehicle @ lidar, "vehicle_pose", boxes, compensated=True)
    return with_poses(log, poses)


def _boxes(path: Path, clock: np.ndarray, lidar: np.ndarray) -> Callable[[int], Boxes | None]:
    """The boxes of a sweep by its number, given at the frame's pose; None before the first labelled and after the
    last."""
    kind = "[LiDARBoxComponent].type"
    table = arrow_files.read(path, (TIME, "key.laser_object_id", kind, *BOX, *SIZE))
    values = arrow_files.numbers(table, (*BOX, *SIZE), path)
    times = arrow_files.numbers(table, (TIME,), path)[:, 0].astype(np.int64)
    pose = np.tile(np.eye(4), (len(values), 1, 1))
    pose[:, :3, :3] = about(2, values[:, 3])
    pose[:, :3, 3] = values[:, :3] - lidar[:3, 3]
    labels = np.array([LABELS.get(number, "Other Vehicle - Uncommon") for number in table[kind].tolist()], object)

    def boxes(i: int) -> Boxes | None:
        if not len(times) or not times.min() <= clock[i] <= times.max():
            return None
        rows = np.flatnonzero(times == clock[i])
        return Boxes(table["key.laser_object_id"][rows], labels[rows], values[rows, 4:], pose[rows])

    return boxes
