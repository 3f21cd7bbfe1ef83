"""PandaSet's folders: poses, timestamps, intrinsics, and the points and cuboids of a frame.

Conventions are those of the official devkit (docs/formats.md). Intrinsics are OpenCV's, with the first pixel's centre
at 0; they are moved by half a pixel here, where the files are read.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from recon4d import InputError, images
from recon4d.files import read_json

from flux4d import tables

TABLES = (".pkl.gz", ".pkl")
POINT_COLUMNS = ("x", "y", "z", "i", "t", "d")
CUBOID_COLUMNS = (
    "uuid", "label", "yaw", "stationary", "position.x", "position.y", "position.z",
    "dimensions.x", "dimensions.y", "dimensions.z",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sensor:
    """A sensor of a scene. poses: (N, 4, 4) float64, sensor to world. times: (N,) float64, seconds. files: its data."""

    poses: np.ndarray
    times: np.ndarray
    files: list[Path]


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene's LiDAR and cameras. K: (3, 3) by camera, pixel centres at +0.5. sizes: width, height by camera.

    cuboids: one file for each of the LiDAR's, of the same name; None where there is none.
    """

    folder: Path
    lidar: Sensor
    cameras: dict[str, Sensor]
    K: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]
    cuboids: list[Path | None]


@dataclass(frozen=True, eq=False)
class Cuboids:
    """The boxes of a frame: uuid (B,), label (B,), pose (B, 4, 4) box to world, size (B, 3) width, length, height.

    sensor: (B,) which LiDAR the box belongs to, -1 for both. stationary: (B,) bool.
    """

    uuid: np.ndarray
    label: np.ndarray
    pose: np.ndarray
    size: np.ndarray
    sensor: np.ndarray
    stationary: np.ndarray


def pose_matrices(entries: Any, path: Path | str) -> np.ndarray:
    """(N, 4, 4) float64 of PandaSet's poses: position x y z, heading quaternion w x y z."""
    try:
        position = np.array([[e["position"][k] for k in "xyz"] for e in entries], np.float64).reshape(-1, 3)
        heading = np.array([[e["heading"][k] for k in "xyzw"] for e in entries], np.float64).reshape(-1, 4)
    except (TypeError, LookupError, ValueError, OverflowError) as error:
        said = repr(error)[:120]
        raise InputError(f"{path} does not hold poses with position and heading ({said}); copy it again") from error
    lengths = np.linalg.norm(heading, axis=1, keepdims=True)
    if not (np.isfinite(position).all() and np.isfinite(lengths).all() and (lengths > 1e-6).all()):
        raise InputError(f"{path} holds a pose that is not finite or has no heading; remove the scene")
    poses = np.tile(np.eye(4), (len(position), 1, 1))
    poses[:, :3, :3] = roma.unitquat_to_rotmat(torch.from_numpy(heading / lengths)).numpy()
    poses[:, :3, 3] = position
    return poses


def pose_entry(matrix: np.ndarray) -> dict[str, Any]:
    """PandaSet's form of a 4x4 pose."""
    x, y, z, w = roma.rotmat_to_unitquat(torch.from_numpy(np.ascontiguousarray(matrix[:3, :3]))).tolist()
    px, py, pz = matrix[:3, 3].tolist()
    return {"position": {"x": px, "y": py, "z": pz}, "heading": {"w": w, "x": x, "y": y, "z": z}}


def intrinsics_matrix(entry: Any, path: Path | str) -> np.ndarray:
    """K (3, 3) with pixel centres at +0.5 from fx, fy, cx, cy."""
    try:
        fx, fy, cx, cy = (float(entry[key]) for key in ("fx", "fy", "cx", "cy"))
        if not (np.isfinite([fx, fy, cx, cy]).all() and min(fx, fy) > 0):
            raise ValueError
    except (TypeError, LookupError, ValueError, OverflowError) as error:
        raise InputError(f"{path} does not hold numbers fx, fy, cx, cy; copy it again") from error
    return np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]])


def _sensor(folder: Path, suffixes: tuple[str, ...]) -> Sensor:
    names = [path.name for path in folder.iterdir() if path.name.lower().endswith(suffixes) and path.name[0] != "."]
    if not names:
        what = "tables" if suffixes is TABLES else "pictures"
        raise InputError(f"{folder} holds no {what} ({', '.join(suffixes)}); check that the scene is complete")
    files = [folder / name for name in sorted(names, key=images.natural_key)]
    poses = pose_matrices(read_json(folder / "poses.json"), folder / "poses.json")
    times = read_json(folder / "timestamps.json")
    try:
        seconds = np.array(times, np.float64).reshape(-1)
        if not np.isfinite(seconds).all():
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{folder / 'timestamps.json'} is not a list of numbers; copy it again") from error
    if not len(files) == len(poses) == len(seconds):
        raise InputError(
            f"{folder} has {len(files)} files, {len(poses)} poses in poses.json and {len(seconds)} times in "
            "timestamps.json; copy it again"
        )
    return Sensor(poses, seconds, files)


def is_scene(folder: Path) -> bool:
    """Whether a folder looks like a scene of PandaSet."""
    return (folder / "lidar").is_dir() and (folder / "camera").is_dir()


def open_scene(folder: str | Path, cameras: tuple[str, ...] = ("front_camera",)) -> Scene:
    """Read a scene's poses, timestamps and intrinsics; its points and images stay on disk. InputError when broken."""
    folder = Path(folder)
    if not is_scene(folder):
        raise InputError(f"{folder} has no folders lidar and camera; give a scene of PandaSet")
    lidar = _sensor(folder / "lidar", TABLES)
    sensors, K, sizes = {}, {}, {}
    there = sorted(path.name for path in (folder / "camera").iterdir() if path.is_dir())
    for name in cameras:
        if name not in there:
            raise InputError(f"{folder} has no camera {name}; it has {', '.join(there) or 'none'}")
        place = folder / "camera" / name
        sensors[name] = _sensor(place, tuple(sorted(images.SUFFIXES)))
        K[name] = intrinsics_matrix(read_json(place / "intrinsics.json"), place / "intrinsics.json")
        sizes[name] = images.read(sensors[name].files[0], upright=False).shape[1::-1]
    boxes = folder / "annotations" / "cuboids"
    found = {_number(path): path for path in boxes.glob("*") if path.name.endswith(TABLES) and path.name[0] != "."}
    return Scene(folder, lidar, sensors, K, sizes, [found.get(_number(path)) for path in lidar.files])


def _number(path: Path) -> str:
    """What files of one frame have in common: 07 of 07.pkl.gz and 007.pkl."""
    name = path.name.split(".")[0]
    return str(int(name)) if name.isdecimal() else name


def read_points(path: str | Path) -> dict[str, np.ndarray]:
    """Points of a sweep: xyz (N, 3) world and t (N,) seconds, float64; d (N,) the sensor. Only finite ones."""
    columns = tables.read(path, POINT_COLUMNS)
    try:
        xyz = np.stack([columns[k].astype(np.float64) for k in "xyz"], -1)
        t, d = columns["t"].astype(np.float64), columns["d"].astype(np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} holds points that are not numbers; copy it again") from error
    fine = np.isfinite(xyz).all(1) & np.isfinite(t)
    return {"xyz": xyz[fine], "t": t[fine], "d": d[fine]}


@lru_cache(maxsize=64)
def read_cuboids(path: str | Path) -> Cuboids:
    """The cuboids of a frame, see `Cuboids`. Yaw 0 heads along world y, counterclockwise."""
    columns = tables.read(path, CUBOID_COLUMNS)
    try:
        yaw = columns["yaw"].astype(np.float64)
        centre = np.stack([columns[f"position.{k}"].astype(np.float64) for k in "xyz"], -1)
        size = np.stack([columns[f"dimensions.{k}"].astype(np.float64) for k in "xyz"], -1)
        stationary = columns["stationary"].astype(bool)
        sensor = columns.get("cuboids.sensor_id", np.full(len(yaw), -1)).astype(np.int64)
        if not (np.isfinite(yaw).all() and np.isfinite(centre).all() and np.isfinite(size).all()):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} holds cuboids that are not numbers; copy it again") from error
    pose = np.tile(np.eye(4), (len(yaw), 1, 1))
    pose[:, 0, 0], pose[:, 0, 1], pose[:, 1, 0], pose[:, 1, 1] = np.cos(yaw), -np.sin(yaw), np.sin(yaw), np.cos(yaw)
    pose[:, :3, 3] = centre
    return Cuboids(columns["uuid"].astype(str), columns["label"].astype(str), pose, size, sensor, stationary)
