"""Folders of images and of their landmarks, as prep-faces writes them."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import images
from recon4d.files import InputError, parse_json
from recon4d.formats.landmarks import read_landmarks, to_ibug

FAR = 1e6  # pixels: no image is so large


def frame_paths(folder: Path) -> list[Path]:
    """The images of a folder in natural order. Raises InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of frames; make one with prep-faces frames")
    paths = images.in_folder(folder)
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


def frame_rate(frames: Path) -> float | None:
    """Frames per second from the `frames.jsonl` that prep-faces writes beside the folder of frames, if it is there."""
    table = frames.parent / "frames.jsonl"
    if not table.is_file():
        return None
    times = [record["time"] for record in records(table.read_bytes(), table) if number(record.get("time"))]
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return 1 / step if step > 1e-5 else None


def check_landmarks(landmarks: Path) -> None:
    """Raise InputError where there is no such folder."""
    if landmarks.is_file():
        raise InputError(f"{landmarks} is one file, which track alone takes, without --stream; give a folder of files")
    if not landmarks.is_dir():
        raise InputError(f"{landmarks} is not a folder of landmarks; make one with prep-faces landmarks")


def read_ibug(path: Path) -> np.ndarray:
    """(P, 68, 2): the faces of a landmark file of any layout that has all of iBUG's points."""
    faces = to_ibug(read_landmarks(path))
    answer: np.ndarray = faces[np.isfinite(faces).all((1, 2))]
    return answer


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
    for record in records(data, table):
        name, width, height = (record.get(key) for key in ("file", "width", "height"))
        if isinstance(name, str) and number(width, 1) and number(height, 1):
            sizes[Path(name).stem] = np.array([width, height], float)
    return state.st_ino, start + data.rfind(b"\n") + 1


def records(lines: bytes, source: Path) -> list[dict[str, Any]]:
    """The JSON objects in lines of a table; lines that are none, as one cut short is, are passed over."""
    found = []
    for line in lines.splitlines():
        try:
            record = parse_json(line, source)
        except InputError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def number(value: Any, least: float = -FAR, most: float = FAR) -> bool:
    """Whether a value of a record is a finite number within bounds."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and least <= value <= most and math.isfinite(value)
