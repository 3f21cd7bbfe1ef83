"""MediaPipe's face blendshapes as JSON, in the forms that programs dump them. Described in docs/formats.md."""

from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch

from recon4d.files import InputError, parse_json
from recon4d.formats.arkit import NAMES, Activations

FPS = 30.0  # where a file does not say
SHAPES = ("blendshapes", "face_blendshapes", "faceBlendshapes")
MATRICES = ("facial_transformation_matrixes", "facialTransformationMatrixes", "matrix")
CLOCKS = {"timestamp_ms": 1e3, "timestampMs": 1e3, "timestamp": 1.0, "time": 1.0}  # units in a second
BYTES = 512 * 2**20


def read(path: str | Path) -> Activations:
    """Read blendshapes: a JSON list with an entry for each frame, such a list as `frames` beside `fps`, or JSON lines.

    A frame is a list of `{categoryName, score}` (Python's `category_name` too), names with their values, or an object
    with either as `blendshapes` (or MediaPipe's own name of it); of several faces the first counts. Beside them
    `facial_transformation_matrixes` (4x4, or its 16 numbers by rows or columns) turns the head, and `timestamp_ms`
    gives the frame rate, which is 30 where nothing does. A frame without a face is as the one before.

    Raises:
        InputError: a missing or broken file, one without a frame with ARKit's names.
    """
    content = _content(Path(path))
    fps = None
    if isinstance(content, dict):
        fps = content.get("fps")
        content = next((content[key] for key in ("frames", *SHAPES) if isinstance(content.get(key), list)), [content])
    frames = content if isinstance(content, list) else []
    values = np.zeros((len(frames), len(NAMES)), np.float32)
    turns = np.zeros((len(frames), 3, 3), np.float32)
    found = [_values(frame) for frame in frames]
    if not any(one is not None for one in found):
        raise InputError(
            f"{path} holds no frame with MediaPipe's blendshapes; write a list of names and scores for each frame"
        )
    first = next(i for i, one in enumerate(found) if one is not None)
    for i in (*range(first, len(frames)), *range(first)):  # frames before the first face are as it is
        one = found[i]
        before = first if i < first else i - 1
        if one is None:
            values[i], turns[i] = values[before], turns[before]
            continue
        values[i], matrix = one, _matrix(frames[i])
        if matrix is not None:
            turns[i, 0] = roma.rotmat_to_euler("YXZ", torch.from_numpy(matrix)).numpy()
    return Activations(_rate(fps, frames), values.clip(0, 1), turns)


def _content(path: Path) -> Any:
    """The file's JSON, or its lines' as a list."""
    try:
        if path.stat().st_size > BYTES:
            raise InputError(f"{path} is larger than {BYTES} bytes; split it")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give MediaPipe's blendshapes as JSON") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not JSON; give MediaPipe's blendshapes") from error
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        return parse_json(text, path)
    except InputError:
        if len(lines) < 2:
            raise
    return [parse_json(line, path) for line in lines]


def _values(frame: Any) -> np.ndarray | None:
    """A frame's 52 activations in ARKit's order; None where it has no face."""
    if isinstance(frame, dict):
        frame = next((frame[key] for key in SHAPES if key in frame), frame)
    while isinstance(frame, list) and frame and isinstance(frame[0], list):  # several faces
        frame = frame[0]
    if isinstance(frame, list) and len(frame) == 1 and isinstance(frame[0], dict) and "categories" in frame[0]:
        frame = frame[0]  # JavaScript's
    if isinstance(frame, dict) and isinstance(frame.get("categories"), list):
        frame = frame["categories"]
    pairs: dict[Any, Any] = {}
    if isinstance(frame, dict):
        pairs = frame
    elif isinstance(frame, list):
        for item in frame:
            if isinstance(item, dict):
                pairs[str(item.get("categoryName", item.get("category_name", item.get("name"))))] = item.get("score")
    values = np.zeros(len(NAMES), np.float32)
    known = [name for name in NAMES if _number(pairs.get(name))]
    for name in known:
        values[NAMES.index(name)] = pairs[name]
    return values if known else None


def _matrix(frame: Any) -> np.ndarray | None:
    """The rotation (3, 3) of a frame's head, y up and z towards the camera; None where it has none."""
    given = next((frame[key] for key in MATRICES if key in frame), None) if isinstance(frame, dict) else None
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, dict):
        given = given.get("data")
    try:
        matrix = np.asarray(given, np.float32).reshape(4, 4)
    except (ValueError, TypeError):
        return None
    if np.abs(matrix[3, :3]).max() > np.abs(matrix[:3, 3]).max():  # its numbers by columns
        matrix = matrix.T
    if not np.isfinite(matrix).all() or np.linalg.det(matrix[:3, :3]) < 1e-3:
        return None
    rotation: np.ndarray = roma.special_procrustes(torch.from_numpy(matrix[:3, :3].copy())).numpy()
    return rotation


def _rate(fps: Any, frames: list[Any]) -> float:
    if _number(fps) and 0 < fps < 1e4:
        return float(fps)
    for key, unit in CLOCKS.items():
        times = [frame.get(key) for frame in frames if isinstance(frame, dict)]
        if len(times) > 1 and all(map(_number, times)):
            step = float(np.median(np.diff(np.array(times, np.float64)))) / unit
            if 1e-4 < step < 100:
                return 1 / step
    return FPS


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
