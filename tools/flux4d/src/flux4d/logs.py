"""A driving log as it was recorded, whatever its layout: sweeps, cameras and poses in the LiDAR's own axes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import roma
import torch
from recon4d import InputError, images
from recon4d.lenses import LensCamera

MOST_TEXT = 64 << 20  # bytes of a file of numbers


@dataclass(frozen=True, eq=False)
class Sweep:
    """Points of one turn. xyz: (N, 3) metres, LiDAR. intensity: (N,) 0 to 255. offsets: (N,) seconds from the sweep's
    own time, or None where they are unknown. All float64."""

    xyz: np.ndarray
    intensity: np.ndarray
    offsets: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Boxes:
    """Labelled things of one sweep. uuid, label: (B,) text, the label PandaSet's. size: (B, 3) width, length, height.

    pose: (B, 4, 4) box to LiDAR; a box heads along its own x, has y at its left, and its centre at 0.
    offsets: (B,) seconds from the sweep's time at which the LiDAR was where `pose` is meant; None for its own time.
    """

    uuid: np.ndarray
    label: np.ndarray
    size: np.ndarray
    pose: np.ndarray
    offsets: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class LogCamera:
    """A camera without distortion. K: (3, 3), the first pixel's centre at 0. lidar_to_camera: (4, 4), OpenCV axes.

    times: (N,) seconds, one for each of its files. calibration: the file that K is from, for messages.
    poses: (N, 4, 4) camera to the world of the log's poses, where the log knows them for its pictures themselves.
    read: the bytes of a picture by its number, where `files` are no files. bent: the camera that took the pictures,
    where these have yet to be straightened.
    """

    files: list[Path]
    times: np.ndarray
    K: np.ndarray
    lidar_to_camera: np.ndarray
    calibration: Path
    poses: np.ndarray | None = None
    read: Callable[[int], bytes] | None = None
    bent: LensCamera | None = None


@dataclass(frozen=True, eq=False)
class Log:
    """A log. times: (N,) seconds by sweep. axes: (3, 3), a rotation from the LiDAR's axes to right, forward, up.

    read: a sweep by its number. poses: (N, 4, 4) LiDAR to world by sweep, None where the log has none; their origin as
    users know it. boxes: what is labelled in a sweep, None where that is unknown. compensated: whether the points of a
    sweep are already where the LiDAR would have seen them at the sweep's own time.
    """

    sweeps: list[Path]
    times: np.ndarray
    axes: np.ndarray
    read: Callable[[int], Sweep]
    cameras: dict[str, LogCamera]
    poses: np.ndarray | None
    origin: str
    boxes: Callable[[int], Boxes | None] | None = None
    compensated: bool = False


AXES = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x forward, y left, z up to x right, y forward, z up


def with_poses(log: Log, poses: str | None) -> Log:
    """A log that has poses with those of a file in their place, or without for `kiss-icp`; as it is for None."""
    if poses is None:
        return log
    if poses == "oxts":
        raise InputError("--poses oxts is for KITTI's drives; give a file of poses, or kiss-icp")
    cameras = {name: replace(camera, poses=None) for name, camera in log.cameras.items()}
    if poses == "kiss-icp":
        return replace(log, cameras=cameras, poses=None, origin="kiss-icp")
    path = Path(poses)
    return replace(log, cameras=cameras, poses=read_poses(path, len(log.sweeps)), origin=path.name)


def folder_name(name: Any, where: Path) -> str:
    """A name that a foreign file gives to a scene, if a folder may have it. InputError otherwise."""
    fine = isinstance(name, str) and PurePosixPath(name).name == name and set(name).isdisjoint("\0\\:")
    if not fine or name[:1] in ("", ".") or len(name) > 200:
        raise InputError(f"{where} names a scene {str(name)[:40]!r}, which is no name of a folder; copy it again")
    return str(name)


def shifted(offset: np.ndarray) -> np.ndarray:
    """(4, 4) a shift by (3,)."""
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def about(axis: int, angles: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotations about a coordinate axis."""
    a, b = (axis + 1) % 3, (axis + 2) % 3
    R = np.tile(np.eye(3), (len(angles), 1, 1))
    R[:, a, a], R[:, a, b], R[:, b, a], R[:, b, b] = np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)
    return R


def of_quaternions(quaternions: Any, places: Any, where: Path) -> np.ndarray:
    """(N, 4, 4) of quaternions wxyz (N, 4) and places (N, 3). InputError for what are none."""
    try:
        q, xyz = np.array(quaternions, np.float64).reshape(-1, 4), np.array(places, np.float64).reshape(-1, 3)
        lengths = np.linalg.norm(q, axis=1, keepdims=True)
        if len(q) != len(xyz) or not (np.isfinite(q).all() and np.isfinite(xyz).all() and (lengths > 1e-6).all()):
            raise ValueError("they are not finite")
    except (TypeError, ValueError, OverflowError) as error:
        said = str(error)[:100]
        raise InputError(f"{where} holds poses that are no rotation and place ({said}); copy it again") from error
    matrices = np.tile(np.eye(4), (len(q), 1, 1))
    matrices[:, :3, :3] = roma.unitquat_to_rotmat(torch.from_numpy((q / lengths)[:, [1, 2, 3, 0]])).numpy()
    matrices[:, :3, 3] = xyz
    return matrices


def numbers(path: Path, width: int) -> np.ndarray:
    """(N, width) float64 of a text file, a row a line; empty lines are left out. InputError for anything else."""
    rows = []
    for number, line in enumerate(lines(path), 1):
        try:
            row = [float(word.replace("_", "x")) for word in line.replace(",", " ").split()]  # 1_0 is no number
        except ValueError as error:
            raise InputError(f"{path}: line {number} is not numbers; copy it again") from error
        if row and (len(row) != width or not np.isfinite(row).all()):
            raise InputError(f"{path}: line {number} is not {width} finite numbers; copy it again")
        rows += [row] if row else []
    return np.array(rows, np.float64).reshape(-1, width)


def lines(path: Path) -> list[str]:
    """The lines of a text file. InputError as `text_of`."""
    return text_of(path).splitlines()


def text_of(path: Path) -> str:
    """A text file. InputError when it is missing, too large or no text."""
    try:
        if path.stat().st_size > MOST_TEXT:
            raise InputError(f"{path} is larger than {MOST_TEXT >> 20} MiB; give a text file of the log")
        return path.read_text()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); the log is not complete without it") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; copy it again") from error


def rigid(values: np.ndarray, path: Path) -> np.ndarray:
    """(..., 4, 4) of (..., 12) row by row, or of (..., 3, 4). InputError unless they are rotations and places."""
    matrices = np.zeros((*values.shape[: values.ndim - (1 if values.shape[-1] == 12 else 2)], 4, 4))
    matrices[..., :3, :] = values.reshape(*matrices.shape[:-2], 3, 4)
    matrices[..., 3, 3] = 1
    R = matrices[..., :3, :3]
    if not np.isfinite(matrices).all():
        raise InputError(f"{path} holds a pose that is not finite; remove it with its frame")
    if (np.abs(R @ np.swapaxes(R, -1, -2) - np.eye(3)) > 1e-3).any() or (np.linalg.det(R) < 0).any():
        raise InputError(f"{path} holds a matrix that is no rotation; give rows of a 3 x 4 rotation and translation")
    return matrices


def of_rows(rows: Any, path: Path) -> np.ndarray:
    """(N, 4, 4) of N times 16 numbers row by row. InputError for what is none."""
    try:
        found = np.array([list(row) for row in rows], np.float64).reshape(-1, 4, 4)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} has a transform that is not 16 numbers; copy it again") from error
    return rigid(found[:, :3], path)


def read_poses(path: Path, count: int) -> np.ndarray:
    """(count, 4, 4) LiDAR to world of a file with 12 numbers a line, a row-major 3 x 4 matrix for each sweep."""
    found = numbers(path, 12)
    if len(found) != count:
        raise InputError(f"{path} has {len(found)} poses and the log {count} sweeps; give one line for each sweep")
    return rigid(found, path)


def poses_at(times: np.ndarray, poses: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """(M, 4, 4) poses at any moments (M,) between known ones at growing times (N,), straight and turning evenly.

    Before the first and after the last the motion beside them goes on; a single pose stands.
    """
    if len(times) == 1:
        return np.tile(poses[0], (len(moments), 1, 1))
    i = np.clip(np.searchsorted(times, moments, "right") - 1, 0, len(times) - 2)
    share = (moments - times[i]) / (times[i + 1] - times[i])
    R = torch.from_numpy(np.ascontiguousarray(poses[:, :3, :3]))
    turns = roma.rotmat_to_rotvec(R[:-1].mT @ R[1:]).numpy()
    out = np.tile(np.eye(4), (len(moments), 1, 1))
    turned = roma.rotvec_to_rotmat(torch.from_numpy(share[:, None] * turns[i])).numpy()
    out[:, :3, :3] = poses[i, :3, :3] @ turned
    out[:, :3, 3] = poses[i, :3, 3] + share[:, None] * (poses[i + 1, :3, 3] - poses[i, :3, 3])
    return out


def poses_in_sweep(times: np.ndarray, poses: np.ndarray, i: int, offsets: np.ndarray) -> np.ndarray:
    """(N, 4, 4) the LiDAR's poses at the moments of a sweep's points, from those of the sweeps beside it.

    They are taken in steps of a hundredth of the span, which at 30 m/s moves a point by 3 cm at most.
    """
    near = slice(max(i - 1, 0), i + 2)
    steps = np.linspace(offsets.min(), offsets.max(), 101 if np.ptp(offsets) > 0 else 1)
    which = np.rint((offsets - steps[0]) / max(np.ptp(offsets), 1e-12) * (len(steps) - 1)).astype(int)
    # relative to the sweep, so that seconds since 1970 lose nothing
    return poses_at(times[near] - times[i], poses[near], steps)[which]


def growing(times: np.ndarray, where: Path) -> np.ndarray:
    """The times, if each is later than the one before; InputError otherwise."""
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise InputError(f"{where} holds times that do not grow from line to line; sort the log by time")
    return times


def logs_in(source: Path, signs: tuple[str, ...]) -> dict[str, Path]:
    """The logs in a folder by their names, or the folder itself as "".

    signs: files and folders one of which marks a log; the first also marks one among others.
    """
    if any((source / sign).exists() for sign in signs):
        return {"": source}
    found = [path for path in source.iterdir() if path.is_dir() and path.name[0] != "." and (path / signs[0]).exists()]
    return {path.name: path for path in sorted(found, key=lambda path: images.natural_key(path.name))} or {"": source}


def files_in(folder: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """The files of a kind in a folder in natural order, hidden ones left out. InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; it should hold the log's {what}")
    there = [path for path in folder.iterdir() if path.name.lower().endswith(suffixes) and path.name[0] != "."]
    found = [path for path in there if path.is_file()]
    if not found:
        raise InputError(f"{folder} holds no {what} ({', '.join(suffixes)}); check that the log is complete")
    return sorted(found, key=lambda path: images.natural_key(path.name))
