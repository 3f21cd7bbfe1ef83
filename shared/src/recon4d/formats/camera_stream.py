"""A camera's frames while they come: one JSON object a line, their files in a folder that forgets (docs/formats.md)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon4d.files import InputError, parse_json

FORMAT = "recon4d-camera-stream-1"
IMAGES, MATTES, LANDMARKS = "images", "mattes", "landmarks"  # in the folder
KEYS = ("name", "time", "size", "window", "face")  # of a frame's line
OVER = "over"  # and who has read enough, and ends in order, says so by this one
AGAIN = "again"  # a file in the folder: whoever writes it asks the stages to begin anew
SOURCE = "prep-faces camera"


@dataclass(frozen=True)
class CameraFrame:
    """One frame.

    name: of its picture, which is square. time: when the camera had it, seconds since 1970. size: width and height of
    what the camera sees. window: left, top and side of the square of it that the picture shows. face: whether there
    is one, and so a matte and landmarks. said: the whole line.
    """

    name: str
    time: float
    size: tuple[int, int]
    window: tuple[float, float, float]
    face: bool
    said: dict[str, Any]


@dataclass(frozen=True)
class Header:
    """The first line. folder: where the files are. side: of a picture, pixels. fps: frames a second, about.

    live: whether they come by the clock: what is late is dropped. Otherwise the stages wait for one another.
    """

    folder: Path
    side: int
    fps: float
    live: bool


def header(first: Header) -> dict[str, Any]:
    """The first line."""
    return {"format": FORMAT, "folder": str(first.folder), "side": first.side, "fps": first.fps, "live": first.live}


def frame(shown: CameraFrame) -> dict[str, Any]:
    """A frame's line."""
    return {
        "name": shown.name,
        "time": round(shown.time, 4),
        "size": list(shown.size),
        "window": [round(value, 3) for value in shown.window],
        "face": shown.face,
        **shown.said,
    }


def end(why: str) -> dict[str, Any]:
    """The last line: the camera ended as it should."""
    return {"end": why}


def records(lines: Iterable[str], source: str, maker: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The JSON objects of lines, each with where it is; up to the one with `end`, which is among them.

    Raises InputError for a line that is no JSON object; `maker` is who should have written it.
    """
    for number, line in enumerate(lines, 1):
        where = f"{source}, line {number}"
        if not line.strip():
            continue
        try:
            record = parse_json(line, where)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise InputError(f"{where} is not a JSON object ({error}); it must come from {maker}") from error
        yield record, where
        if "end" in record:
            return


def read_header(record: dict[str, Any], where: str) -> Header:
    """What the first line says. Raises InputError where it is none."""
    if record.get("format") != FORMAT:
        raise InputError(f"{where} is not the header of a camera's frames ({FORMAT}); see {SOURCE}")
    values: list[Any] = [record.get(key) for key in ("folder", "side", "fps", "live")]
    folder, side, fps, live = values
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise InputError(f"{where}: the folder {folder!r} does not exist; is {SOURCE} at work on this machine?")
    if not (_number(side, 16, 8192) and _number(fps, 0.1, 1000)):
        raise InputError(f"{where}: side or fps is no number of pixels, or of frames a second; see {SOURCE}")
    return Header(Path(folder), int(side), float(fps), live is not False)


def read_frame(record: dict[str, Any], where: str) -> CameraFrame:
    """The frame of a line. Raises InputError for missing or strange keys."""
    values: list[Any] = [record.get(key) for key in KEYS]
    name, time, size, window, face = values
    plain = isinstance(name, str) and name and Path(name).name == name
    lengths = isinstance(size, list) and len(size) == 2 and all(_number(x, 1, 1e5) for x in size)
    placed = isinstance(window, list) and len(window) == 3 and all(_number(x, -1e5, 1e5) for x in window)
    if not (plain and lengths and placed and _number(time, 0, 1e11) and isinstance(face, bool)) or window[2] <= 0:
        raise InputError(f"{where} is no frame: it needs name, time, size, window and face; see {SOURCE}")
    said = {key: value for key, value in record.items() if key not in KEYS}
    left, top, side = (float(value) for value in window)
    return CameraFrame(name, float(time), (int(size[0]), int(size[1])), (left, top, side), face, said)


def _number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
