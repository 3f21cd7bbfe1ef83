"""A track while it is being made: one JSON object a line, through a pipe or a file. Described in docs/formats.md."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from recon4d.files import InputError
from recon4d.formats import camera_stream
from recon4d.formats.track import PER_FRAME, Track, from_arrays

FORMAT = "recon4d-track-stream-1"
COMMON = ("head_model", "image_size", "fps", "K", "shape")


def header(track: Track, **more: Any) -> dict[str, Any]:
    """The first line of a stream: what all frames have in common. A later one replaces it for the frames after it."""
    return {"format": FORMAT} | {key: _plain(getattr(track, key)) for key in COMMON} | more


def frame(track: Track, i: int = 0, **more: Any) -> dict[str, Any]:
    """The line of one frame of a track; `more` is passed on as it is."""
    own = {} if track.Ks is None else {"K": _plain(track.Ks[i])}
    return {_key(name): _plain(getattr(track, name)[i]) for name in PER_FRAME} | own | more


def header_line(track: Track) -> str:
    """`header` as text."""
    return json.dumps(header(track))


def frame_lines(track: Track) -> Iterator[str]:
    """One line for each frame of a track."""
    for i in range(len(track)):
        yield json.dumps(frame(track, i))


def read(lines: Iterable[str], source: str) -> Iterator[Track]:
    """The frames of a stream as they come, each as a track of one frame.

    Args:
        lines: an open text file will do.
        source: what to call it in errors.

    Raises:
        InputError: no header, a line that is not JSON, wrong or missing keys; the message names source and line.
    """
    for item in read_all(lines, source):
        if item.track is not None:
            yield item.track


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a stream. track: of one frame, its Ks where the line has a K; None for a header and the end.

    said: the whole line, with what other stages passed on.
    """

    track: Track | None
    said: dict[str, Any]


def read_all(lines: Iterable[str], source: str) -> Iterator[Line]:
    """Every line of a stream as it comes, headers too; ends after the line that has `end`. Raises as `read`."""
    common: dict[str, np.ndarray] = {}
    for record, where in camera_stream.records(lines, source, "flame-encoder track"):
        if not common or "format" in record:
            if "end" in record:
                raise InputError(f"{source} has no frame: {record['end']}")
            if record.get("format") != FORMAT:
                raise InputError(f"{where} is not the header of a track stream ({FORMAT}); see flame-encoder track")
            common = {key: _array(record, key, where) for key in COMMON}
            yield Line(None, record)
        elif "end" in record:
            yield Line(None, record)
        else:
            arrays = {name: _array(record, _key(name), where)[None] for name in PER_FRAME}
            if "K" in record:
                arrays["Ks"] = _array(record, "K", where)[None]
            yield Line(from_arrays(common | arrays, where), record)
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
