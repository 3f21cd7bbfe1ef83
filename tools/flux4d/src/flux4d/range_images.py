"""Waymo's range images: what a LiDAR measures as rows of beams and columns of directions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError

from flux4d import arrow_files
from flux4d.logs import Sweep, about, of_rows

TIME, LASER = "key.frame_timestamp_micros", "key.laser_name"
CALIBRATION = "[LiDARCalibrationComponent]"
RETURNS = tuple(f"[LiDARComponent].range_image_return{n}" for n in (1, 2))
POSE = "[LiDARPoseComponent].range_image_return1"
LARGEST = 1 << 24  # numbers in an image; the largest of Waymo's has a million


@dataclass(frozen=True, eq=False)
class Beams:
    """A LiDAR's place. to_vehicle: (4, 4). inclinations: radians from the lowest beam up, or the lowest and the highest
    edge where they are evenly spread."""

    to_vehicle: np.ndarray
    inclinations: np.ndarray
    even: bool

    def rows(self, height: int) -> np.ndarray:
        """(height,) inclinations of a range image's rows, of which the first is the highest beam."""
        if not self.even:
            return self.inclinations[::-1]
        low, high = self.inclinations
        spread: np.ndarray = (low + (np.arange(height) + 0.5) / height * (high - low))[::-1]
        return spread


def points(ranges: np.ndarray, beams: Beams) -> np.ndarray:
    """(H, W, 3) in the vehicle's axes of ranges (H, W) in metres.

    The formula is that of `compute_range_image_polar` and `compute_range_image_cartesian` in the official devkit's
    waymo_open_dataset/utils/range_image_utils.py: columns go clockwise from behind, in the vehicle's axes.
    """
    height, width = ranges.shape
    forward = np.arctan2(beams.to_vehicle[1, 0], beams.to_vehicle[0, 0])
    azimuth = ((np.arange(width, 0, -1) - 0.5) / width * 2 - 1) * np.pi - forward
    inclination = beams.rows(height)[:, None]
    across = np.cos(inclination) * ranges
    local = np.stack([np.cos(azimuth) * across, np.sin(azimuth) * across, np.sin(inclination) * ranges], -1)
    found: np.ndarray = local @ beams.to_vehicle[:3, :3].T + beams.to_vehicle[:3, 3]
    return found


def calibrations(path: Path) -> dict[int, Beams]:
    """The LiDARs by their numbers."""
    transform = f"{CALIBRATION}.extrinsic.transform"
    low, high, values = (f"{CALIBRATION}.beam_inclination.{name}" for name in ("min", "max", "values"))
    table = arrow_files.read(path, (LASER, transform, low, high))
    uneven = arrow_files.read(path, (values,), gaps=True)[values]
    edges = arrow_files.numbers(table, (low, high), path)
    out = {}
    for i, number in enumerate(table[LASER].tolist()):
        try:
            given = np.array(list(uneven[i] or ()), np.float64)
            if not np.isfinite(given).all():
                raise ValueError
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path} has a calibration that is not numbers; copy it again") from error
        inclinations = given if len(given) else edges[i]
        out[number] = Beams(of_rows([table[transform][i]], path)[0], inclinations, not len(given))
    return out


def sweeps(
    path: Path, poses: Path, sensors: dict[int, Beams], clock: np.ndarray, vehicle: np.ndarray, lidar: np.ndarray
) -> Callable[[int], Sweep]:
    """A function of a frame's number for the points of all LiDARs, both returns.

    A pixel of the LiDAR that turns has a pose of its own, the vehicle's when it was measured: the point goes to the
    world by it and back by the frame's pose. Intensity, which has no bound, goes through tanh.

    Args:
        clock: (N,) microseconds of the frames. vehicle: (N, 4, 4) their poses, vehicle to world.
        lidar: (3,) the place in the vehicle that points are counted from.
    """
    wanted = tuple(f"{name}.{part}" for name in RETURNS for part in ("values", "shape"))
    pose = (f"{POSE}.values", f"{POSE}.shape")
    images_at = arrow_files.rows(path, (TIME, LASER, *wanted))
    poses_at = arrow_files.rows(poses, (TIME, LASER, *pose))
    places = {key: row for row, key in enumerate(_keys(path))}
    pose_places = {key: row for row, key in enumerate(_keys(poses))}

    def read(i: int) -> Sweep:
        time, back = int(clock[i]), np.linalg.inv(vehicle[i])
        found = sorted((row, laser) for (moment, laser), row in places.items() if moment == time and laser in sensors)
        parts = []
        for row, laser in found:
            image = images_at(row)
            moved = None
            if (time, laser) in pose_places:
                moved = _image(poses_at(pose_places[time, laser]), POSE, 6, poses)
            for name in RETURNS:
                values = _image(image, name, 4, path)
                if values is None:
                    continue
                rows = sensors[laser].inclinations
                if not sensors[laser].even and len(rows) != len(values):
                    raise InputError(f"{path} has {len(values)} rows of LiDAR {laser} and {len(rows)} beams")
                hit = (values[..., 0] > 0) & (values[..., 0] < 1e4)
                xyz = points(values[..., 0], sensors[laser])[hit]
                if moved is not None:
                    if moved.shape[:2] != values.shape[:2]:
                        raise InputError(f"{poses} does not fit {path.name} of lidar at {time}; copy it again")
                    xyz = _moved(xyz, moved[hit]) @ back[:3, :3].T + back[:3, 3]
                parts.append(np.concatenate([xyz, 255 * np.tanh(np.maximum(values[hit][:, 1:2], 0))], 1))
        together = np.concatenate([np.zeros((0, 4)), *parts])
        together = together[np.isfinite(together).all(1)]
        if not len(together):
            raise InputError(f"{path} has no points at {time}; copy it again")
        return Sweep(together[:, :3] - lidar, together[:, 3], None)

    return read


def _keys(path: Path) -> list[tuple[int, int]]:
    """Time and LiDAR of each row."""
    table = arrow_files.read(path, (TIME, LASER))
    return list(zip(table[TIME].tolist(), table[LASER].tolist()))


def _image(row: dict[str, Any], name: str, channels: int, path: Path) -> np.ndarray | None:
    """(H, W, channels) float64 of a row's image; None where it has none."""
    flat, shape = (arrow_files.list_of(row[f"{name}.{part}"], path) for part in ("values", "shape"))
    if flat is None or shape is None:
        return None
    size = tuple(int(n) for n in np.nan_to_num(shape[:4]).clip(0, LARGEST))
    if len(size) != 3 or min(size) < 1 or size[2] != channels or size[0] * size[1] * size[2] != len(flat):
        raise InputError(f"{path} has a range image of {size} with {len(flat)} numbers; copy it again")
    if len(flat) > LARGEST:
        raise InputError(f"{path} has a range image larger than any LiDAR's; copy it again")
    return flat.reshape(size).astype(np.float64)


def _moved(xyz: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Points (N, 3) by poses (N, 6): roll, pitch, yaw and a place; first the roll turns, about x."""
    for axis in range(3):
        xyz = np.einsum("nij,nj->ni", about(axis, poses[:, axis]), xyz)
    found: np.ndarray = xyz + poses[:, 3:]
    return found
