"""A track while it is being made: one JSON object a line, through a pipe or a file. Described in docs/formats.md."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from recon4d.files import InputError, parse_json
from recon4d.formats.track import PER_FRAME, Track, from_arrays

FORMAT = "recon4d-track-stream-1"
COMMON = ("head_model", "image_size", "fps", "K", "shape")


def header_line(track: Track) -> str:
    """The first line of a stream: what all frames have in common."""
    return json.dumps({"format": FORMAT} | {key: _plain(getattr(track, key)) for key in COMMON})


def frame_lines(track: Track) -> Iterator[str]:
    """One line for each frame of a track."""
    for i in range(len(track)):
        yield json.dumps({_key(name): _plain(getattr(track, name)[i]) for name in PER_FRAME})


def read(lines: Iterable[str], source: str) -> Iterator[Track]:
    """The frames of a stream as they come, each as a track of one frame.

    Args:
        lines: an open text file will do.
        source: what to call it in errors.

    Raises:
        InputError: no header, a line that is not JSON, wrong or missing keys; the message names source and line.
    """
    common: dict[str, np.ndarray] = {}
    for number, line in enumerate(lines, 1):
        where = f"{source}, line {number}"
        if not line.strip():
            continue
        try:
            record = parse_json(line, where)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise InputError(
                f"{where} is not a JSON object ({error}); it must come from flame-encoder track"
            ) from error
        if not common:
            if record.get("format") != FORMAT:
                raise InputError(f"{where} is not the header of a track stream ({FORMAT}); see flame-encoder track")
            common = {key: _array(record, key, where) for key in COMMON}
            continue
        frame = {name: _array(record, _key(name), where)[None] for name in PER_FRAME}
        yield from_arrays(common | frame, where)
    if not common:
        raise InputError(f"{source} is empty; it must come from flame-encoder track --stream")


def _key(name: str) -> str:
    return "name" if name == "names" else name  # of one frame


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _array(record: dict[str, Any], key: str, where: str) -> np.ndarray:
    if key not in record:
        raise InputError(f"{where} has no {key}; it must come from flame-encoder track --stream")
    kinds, what = {"head_model": ("U", "text"), "name": ("U", "text"), "valid": ("b", "true or false")}.get(
        key, ("if", "numbers")
    )
    try:
        array = np.array(record[key])
    except ValueError as error:  # rows of unequal length
        raise InputError(f"{where}: {key} is not an array ({error})") from error
    if array.dtype.kind not in kinds:
        raise InputError(f"{where}: {key} must hold {what}, not {json.dumps(record[key])[:40]}")
    return array
