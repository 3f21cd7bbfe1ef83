"""Waymo's cameras: pictures in a parquet file, bent by their lenses, each with the pose of its own moment."""

from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from recon4d import InputError
from recon4d.lenses import Lens, LensCamera

from flux4d import arrow_files
from flux4d.logs import LogCamera, growing, of_rows

TIME, CAMERA = "key.frame_timestamp_micros", "key.camera_name"
IMAGE, CALIBRATION = "[CameraImageComponent]", "[CameraCalibrationComponent]"
VELOCITY = tuple(f"{IMAGE}.velocity.{kind}_velocity.{k}" for kind in ("linear", "angular") for k in "xyz")
SHUTTER = tuple(
    f"{IMAGE}.rolling_shutter_params.{name}" for name in ("camera_trigger_time", "camera_readout_done_time")
)
INTRINSIC = tuple(f"{CALIBRATION}.intrinsic.{k}" for k in ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3"))
SIZE = (f"{CALIBRATION}.width", f"{CALIBRATION}.height")
LARGEST = 20_000  # pixels of a side
TO_OPENCV = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # OpenCV's axes in Waymo's


def camera_of(pictures: Path, calibration: Path, number: int, lidar: np.ndarray) -> LogCamera | None:
    """A camera by its number; None where it has no pictures.

    A picture's time is the middle of trigger and end of readout. The vehicle's pose is given for a moment beside it,
    with velocities in the world, by which it is moved there: r + v dt, exp([w] dt) R (waymo_open_dataset/dataset.proto,
    CameraImage).

    Args:
        lidar: (4, 4) LiDAR to vehicle.
    """
    pose, moment = f"{IMAGE}.pose.transform", f"{IMAGE}.pose_timestamp"
    table = arrow_files.read(pictures, (TIME, CAMERA, pose, moment, *VELOCITY, *SHUTTER))
    rows = np.flatnonzero(table[CAMERA] == number)
    if not len(rows):
        return None
    values = arrow_files.numbers(table, (moment, *VELOCITY, *SHUTTER), pictures)[rows]
    times = values[:, 7:].mean(1)
    order = np.argsort(times, kind="stable")
    rows, values, times = rows[order], values[order], growing(times[order], pictures)
    to_vehicle, bent, K = _calibration(calibration, number)
    poses = of_rows([table[pose][row] for row in rows], pictures)
    step = (times - values[:, 0])[:, None]
    poses[:, :3, 3] += values[:, 1:4] * step
    poses[:, :3, :3] = roma.rotvec_to_rotmat(torch.from_numpy(values[:, 4:7] * step)).numpy() @ poses[:, :3, :3]
    at = arrow_files.rows(pictures, (CAMERA, f"{IMAGE}.image"))

    def read(i: int) -> bytes:
        content: Any = at(int(rows[i]))[f"{IMAGE}.image"].as_py()
        if not isinstance(content, bytes):
            raise InputError(f"{pictures} has a row without a picture; copy it again")
        return content

    files = [pictures.with_suffix("") / f"{table[TIME][row]}-{number}.jpg" for row in rows]
    to_camera = np.linalg.inv(to_vehicle) @ lidar
    return LogCamera(
        files, times, K, to_camera, calibration, poses @ to_vehicle, read, None if bent.lens.straight else bent
    )


def _calibration(path: Path, number: int) -> tuple[np.ndarray, LensCamera, np.ndarray]:
    """Camera (OpenCV's axes) to vehicle, the camera as it is, and K, the first pixel's centre at 0, of one without
    distortion that sees nothing beyond its pictures."""
    transform = f"{CALIBRATION}.extrinsic.transform"
    table = arrow_files.read(path, (CAMERA, transform, *INTRINSIC, *SIZE))
    rows = np.flatnonzero(table[CAMERA] == number)
    if len(rows) != 1:
        raise InputError(f"{path} has {len(rows)} calibrations of camera {number}; copy it again")
    (row,) = rows
    fx, fy, cx, cy, k1, k2, p1, p2, k3 = arrow_files.numbers(table, INTRINSIC, path)[row]
    width, height = (int(n) for n in arrow_files.numbers(table, SIZE, path)[row])
    if min(fx, fy) <= 0 or not 0 < min(width, height) <= max(width, height) <= LARGEST:
        raise InputError(f"{path} has a camera {number} without a size or focal length; copy it again")
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])  # 0 is the left edge of the first pixel
    bent = LensCamera(K, width, height, Lens((k1, k2, k3), (), (p1, p2)))
    to_vehicle = of_rows([table[transform][row]], path)[0] @ TO_OPENCV
    return to_vehicle, bent, _within(bent, path) - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def _within(bent: LensCamera, path: Path) -> np.ndarray:
    """K of the widest camera without distortion, of the same centre and size, that sees only what a lens shows."""
    x, y = np.linspace(0, bent.width, 65), np.linspace(0, bent.height, 65)
    edge = np.concatenate([[(a, b) for a in x for b in (0, bent.height)], [(a, b) for a in (0, bent.width) for b in y]])
    for zoom in np.arange(1, 2, 0.002):
        K = bent.K * np.array([[zoom, 1, 1], [1, zoom, 1], [1, 1, 1]])
        rays = np.concatenate([edge, np.ones((len(edge), 1))], 1) @ np.linalg.inv(K).T
        seen = bent.project(rays)
        if ((seen >= -0.5) & (seen <= np.array([bent.width, bent.height]) + 0.5)).all():
            return K
    raise InputError(f"{path} has a lens that bends more than half of the picture away; copy it again")
