"""`transforms.json` as NeRF's synthetic scenes, instant-ngp and nerfstudio have it.

Matrices are camera-to-world with OpenGL's axes. Intrinsics and lens stand at the top, in a frame, or in both; the
frame's count. What the file does not say has the defaults of those programs: square pixels, the principal point in the
middle, a focal length from `camera_angle_x` (radians) or `x_fov` (degrees), the picture's own size.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recon4d import cameras
from recon4d.files import InputError, read_json
from recon4d.formats.shot import Shot, intrinsics
from recon4d.lenses import Lens, LensCamera

_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV", "PERSPECTIVE")
_FISHEYE = ("OPENCV_FISHEYE", "FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
_LENS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_OTHERS = ("ftheta_p0", "latlong", "equirectangular", "orthographic")  # lenses of instant-ngp
_MOVING = ("transform_matrix_start", "transform_matrix_end")


def read(path: str | Path, size_of: Callable[[str], tuple[int, int]]) -> list[Shot]:
    """The frames of a file.

    Args:
        size_of: width and height of a picture by its `file_path`, where the file has no w and h.

    Raises:
        InputError: missing or broken, a key that is missing, a lens that can't be honoured; the frame is named.
    """
    path = Path(path)
    try:
        data = read_json(path)
        frames = data["frames"]
        if not isinstance(frames, list):
            raise TypeError("frames is not a list")
        return [_shot({**data, **frame}, path, size_of) for frame in frames]
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        missing = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)[:200]
        raise InputError(f"{path} is not a readable transforms.json: {missing}; write it again") from error


def _shot(frame: dict[str, Any], path: Path, size_of: Callable[[str], tuple[int, int]]) -> Shot:
    name = frame["file_path"]
    if not isinstance(name, str):
        raise TypeError(f"file_path {str(name)[:40]} is not text")
    if any(key in frame for key in _MOVING) or any(map(float, frame.get("rolling_shutter") or ())):
        raise InputError(f"{path}: {name} has a rolling shutter, which is not supported; give one pose per picture")
    matrix = np.array(frame["transform_matrix"], np.float64)
    if matrix.shape == (3, 4):
        matrix = np.concatenate([matrix, [[0.0, 0.0, 0.0, 1.0]]])
    if matrix.shape != (4, 4):
        raise ValueError(f"transform_matrix of {name} has shape {matrix.shape}, not (4, 4)")
    mask = frame.get("mask_path")
    return Shot(
        name, _inverse(matrix, name), _camera(frame, path, name, size_of), mask if isinstance(mask, str) else None
    )


def _inverse(matrix: np.ndarray, name: str) -> np.ndarray:
    try:
        return cameras.from_opengl(torch.from_numpy(matrix)).numpy()
    except RuntimeError as error:
        raise ValueError(f"transform_matrix of {name} has no inverse") from error


def _camera(frame: dict[str, Any], path: Path, name: str, size_of: Callable[[str], tuple[int, int]]) -> LensCamera:
    if frame.get("w") is None or frame.get("h") is None:
        width, height = size_of(name)
    else:
        width, height = int(frame["w"]), int(frame["h"])
    fx, fy = _focal(frame, "x", width), _focal(frame, "y", height)
    if fx is None and fy is None:
        raise KeyError("fl_x")
    fx, fy = (fy if fx is None else fx), (fx if fy is None else fy)
    assert fx is not None and fy is not None
    cx, cy = _number(frame, "cx", width / 2), _number(frame, "cy", height / 2)
    return LensCamera(intrinsics(fx, fy, cx, cy), width, height, lens(frame, path, name))


def _number(frame: dict[str, Any], key: str, default: float) -> float:
    return default if frame.get(key) is None else float(frame[key])


def _focal(frame: dict[str, Any], axis: str, size: int) -> float | None:
    if frame.get(f"fl_{axis}") is not None:
        return float(frame[f"fl_{axis}"])
    degrees, radians = frame.get(f"{axis}_fov"), frame.get(f"camera_angle_{axis}")
    if degrees is None and radians is None:
        return None
    half = math.radians(float(degrees)) / 2 if degrees is not None else float(radians or 0) / 2
    return size / 2 / math.tan(half) if 0 < half < math.pi / 2 else math.nan


def lens(frame: dict[str, Any], path: Path, name: str) -> Lens:
    """The lens of a frame's keys, or of the file's. Raises InputError for one that is not supported, naming it."""
    model = str(frame.get("camera_model") or ("OPENCV_FISHEYE" if frame.get("is_fisheye") else "OPENCV")).upper()
    others = [key for key in _OTHERS if frame.get(key)]
    if model not in (*_PERSPECTIVE, *_FISHEYE) or others:
        raise InputError(f"{path}: the camera model {(others or [model])[0]} of {name} is not supported")
    k1, k2, k3, k4, k5, k6, p1, p2 = (_number(frame, key, 0.0) for key in _LENS)
    if model in _FISHEYE or frame.get("is_fisheye"):
        return Lens((k1, k2, k3, k4), fisheye=True)  # OpenCV's fisheye has no tangential terms
    return Lens((k1, k2, k3), (k4, k5, k6) if k4 or k5 or k6 else (), (p1, p2))
