"""Plain folders: pictures, sweeps, a calibration, poses and times in text files.

SRC/sweeps/*.ply|pcd|npy|bin         points in the LiDAR's axes; intensity and t (seconds) where they are known
SRC/images/*.jpg                     of front_camera; or SRC/images/CAMERA/*.jpg for each
SRC/calibration.json                 {"cameras": {"front_camera": {"fx", "fy", "cx", "cy", "lidar_to_camera"}}}
SRC/poses.txt                        12 numbers a sweep, LiDAR to world; not needed with --poses
SRC/sweeps/timestamps.txt            seconds, one a sweep; as well beside the pictures
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from recon4d import InputError, images
from recon4d.files import read_json

from flux4d import point_files
from flux4d.logs import AXES, Log, LogCamera, Sweep, files_in, growing, logs_in, numbers, read_poses, rigid


def _name(name: str) -> str:
    if PurePosixPath(name).name != name or name[:1] in ("", ".") or not set(name).isdisjoint("\0\\"):
        raise ValueError("must be the name of a folder")
    return name


def _rows(rows: list[list[float]]) -> list[list[float]]:
    if rows[3:] not in ([], [[0, 0, 0, 1]]):
        raise ValueError("must end in 0 0 0 1")
    return rows[:3]


Row = Annotated[list[float], Field(min_length=4, max_length=4)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Camera(_Part):
    fx: float = Field(gt=0)
    fy: float = Field(gt=0)
    cx: float
    cy: float
    lidar_to_camera: Annotated[list[Row], Field(min_length=3, max_length=4), AfterValidator(_rows)]


class _Calibration(_Part):
    lidar_axes: Literal["forward-left-up", "right-forward-up"] = "forward-left-up"
    cameras: dict[Annotated[str, AfterValidator(_name)], _Camera] = Field(min_length=1)


def find(source: Path, rate: float, poses: str | None) -> dict[str, Callable[[], Log]]:
    """The logs of a folder, by name, or the one that it is, as ""; see `open_log`."""
    found = logs_in(source, ("calibration.json", "sweeps"))
    return {name: partial(open_log, place, rate, poses) for name, place in found.items()}


def open_log(source: Path, rate: float, poses: str | None) -> Log:
    """A log in plain folders.

    Args:
        rate: frames a second where there are no timestamps.
        poses: a file with 12 numbers for each sweep, None for `poses.txt`, `kiss-icp` for none.

    Raises InputError for folders and calibration that are missing or broken, and for files that do not fit each other.
    """
    sweeps = files_in(source / "sweeps", point_files.SUFFIXES, "sweeps")
    path = source / "calibration.json"
    try:
        calibration = _Calibration.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]
        raise InputError(f"{path} is no calibration of undistorted pictures ({said}); see docs/formats.md") from error
    pictures = {}
    for name in calibration.cameras:
        place = source / "images" / name if (source / "images" / name).is_dir() else source / "images"
        if place.name != name and len(calibration.cameras) > 1:
            raise InputError(f"{source / 'images'} has no folder {name}, a camera of {path}; name the folders alike")
        pictures[name] = (place, files_in(place, tuple(sorted(images.SUFFIXES)), "pictures"))
    sensors = {source / "sweeps": sweeps} | dict(pictures.values())
    clocked = all((place / "timestamps.txt").is_file() for place in sensors)
    times = {}
    for place, files in sensors.items():
        if not clocked and len(files) != len(sweeps):
            raise InputError(
                f"{place} has {len(files)} files and {source / 'sweeps'} {len(sweeps)}; give timestamps.txt in both"
            )
        clock = place / "timestamps.txt"
        found = numbers(clock, 1)[:, 0] if clocked else np.arange(len(files)) / rate
        if len(found) != len(files):
            raise InputError(f"{clock} has {len(found)} times for {len(files)} files; give one line for each")
        times[place] = growing(found, clock)
    cameras = {}
    for name, camera in calibration.cameras.items():
        place, files = pictures[name]
        K = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        cameras[name] = LogCamera(files, times[place], K, rigid(np.array(camera.lidar_to_camera), path), path)
    moments = times[source / "sweeps"]
    track = Path(poses) if poses not in (None, "kiss-icp") else source / "poses.txt"
    known = None
    if poses == "oxts":
        raise InputError("--poses oxts is for KITTI's drives; give a file of poses, or kiss-icp")
    if poses != "kiss-icp" and (poses is not None or track.is_file()):
        known = read_poses(track, len(sweeps))
    axes = AXES if calibration.lidar_axes == "forward-left-up" else np.eye(3)
    origin = track.name if known is not None else "kiss-icp"
    return Log(sweeps, moments, axes, lambda i: _sweep(sweeps[i], moments[i]), cameras, known, origin)


def _sweep(path: Path, time: float) -> Sweep:
    found = point_files.read(path)
    xyz = np.stack([found[k] for k in "xyz"], -1)
    intensity = np.nan_to_num(found.get("intensity", np.zeros(len(xyz))), nan=0.0, posinf=0.0, neginf=0.0)
    intensity = np.clip(intensity * (255 if intensity.max() <= 1 else 1), 0, 255)
    if "t" not in found:
        return Sweep(xyz, intensity, None)
    offsets = found["t"]
    if not np.isfinite(offsets).all():
        raise InputError(f"{path} holds times that are not finite; write its t in seconds")
    if abs(np.median(offsets) - time) < abs(np.median(offsets)):  # on the clock of timestamps.txt
        offsets = offsets - time
    if np.abs(offsets).max() > 1:
        raise InputError(f"{path} holds times more than a second from its own; write its t in seconds")
    return Sweep(xyz, intensity, offsets)
