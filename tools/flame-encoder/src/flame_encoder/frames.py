"""Folders of images and of their landmarks, as prep-faces writes them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from recon4d.files import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def frame_paths(folder: Path) -> list[Path]:
    """The images of a folder by name. Raises InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of frames; make one with prep-faces frames")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"{folder} has no images; make frames with prep-faces frames")
    return paths


def image_paths(sources: Sequence[Path]) -> list[Path]:
    """Files as they are given, and the images of folders. Raises InputError for what is neither, or an empty folder."""
    paths: list[Path] = []
    for source in sources:
        paths += frame_paths(source) if source.is_dir() else [source]
    names = [path.name for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"two images are named {twice}; encode them in two calls")
    return paths


def read_image(path: Path) -> np.ndarray:
    """RGB uint8 (H, W, 3). Raises InputError for what is not an image."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if image is None:
        raise InputError(f"{path} is not a readable image; give a PNG or JPEG file")
    return np.ascontiguousarray(image[..., ::-1])


def frame_rate(frames: Path) -> float | None:
    """Frames per second from the `frames.jsonl` that prep-faces writes beside the folder of frames, if it is there."""
    manifest = frames.parent / "frames.jsonl"
    if not manifest.is_file():
        return None
    times = []
    for line in manifest.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line cut short
        if isinstance(record.get("time"), int | float):
            times.append(record["time"])
    steps = np.diff(times)
    return float(1 / np.median(steps)) if len(steps) and np.median(steps) > 0 else None


def check_landmarks(landmarks: Path) -> None:
    """Raise InputError where there is no such folder."""
    if not landmarks.is_dir():
        raise InputError(f"{landmarks} is not a folder of landmarks; make one with prep-faces landmarks")


def read_landmarks(path: Path) -> np.ndarray:
    """(P, 68, 2): the faces of one file, which holds one face or several; NaN faces and missing files are no faces."""
    if not path.is_file():
        return np.empty((0, 68, 2))
    try:
        points = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a readable landmark file ({error}); make it again") from error
    if points.shape[-2:] not in ((68, 2), (68, 3)) or points.ndim > 3 or points.dtype.kind not in "fiu":
        raise InputError(f"{path} has shape {points.shape}, {points.dtype}; (68, 2) or (people, 68, 2) is needed")
    points = points[..., :2].reshape(-1, 68, 2).astype(np.float64)  # a third number is a depth
    return points[np.isfinite(points).all((1, 2))]


def landmark_sizes(landmarks: Path) -> dict[str, np.ndarray]:
    """Image size (width, height) that each landmark file was made on, from `landmarks.jsonl`, where it is there."""
    sizes: dict[str, np.ndarray] = {}
    read_on(landmarks.parent / "landmarks.jsonl", sizes)
    return sizes


def read_on(table: Path, sizes: dict[str, np.ndarray], position: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Add to `sizes` what a `landmarks.jsonl` that is still being written says from a position on.

    Returns the position to go on at: which file it was, and its bytes up to the end of the last whole line.
    """
    if not table.is_file():
        return 0, 0
    with open(table, "rb") as file:
        state = os.fstat(file.fileno())
        same = state.st_ino == position[0] and state.st_size >= position[1]  # at its end the table is written anew
        start = position[1] if same else 0
        file.seek(start)
        data = file.read()
    for line in data.splitlines():
        try:
            record = json.loads(line)
            sizes[Path(record["file"]).stem] = np.array([record["width"], record["height"]], float)
        except (KeyError, TypeError, ValueError):
            continue  # an error record, or a line cut short
    return state.st_ino, start + data.rfind(b"\n") + 1
