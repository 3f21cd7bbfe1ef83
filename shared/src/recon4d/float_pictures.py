"""Pictures of floats that Pillow does not read: Radiance (.hdr), OpenEXR where OpenCV has it, TIFF of three floats."""

import re
import struct
from pathlib import Path

import cv2
import numpy as np

from recon4d.files import InputError

_RADIANCE, _EXR = (b"#?RADIANCE", b"#?RGBE"), b"\x76\x2f\x31\x01"
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}


def known(content: bytes) -> bool:
    """Whether a file looks like one of these."""
    return content.startswith((*_RADIANCE, _EXR, *_TIFF))


def read(content: bytes, source: str | Path, most_pixels: int) -> np.ndarray:
    """A file as (H, W, 3) uint8 RGB; linear light (Radiance, OpenEXR) goes through sRGB's curve, and stops at white.

    Raises InputError for a file that is damaged, that OpenCV was built without, or of more than `most_pixels`.
    """
    width, height = _size(content, source)
    if width * height > most_pixels:
        raise InputError(f"{source} is too large a picture ({width}x{height} pixels); make it smaller")
    try:
        found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    except cv2.error:
        found = None
    if found is None:
        what = "; this OpenCV may be built without its format" if content.startswith(_EXR) else ""
        raise InputError(f"{source} is not a readable picture{what}; convert it to PNG")
    if found.dtype == np.uint8:
        return np.ascontiguousarray(found[..., ::-1])
    values: np.ndarray = np.nan_to_num(found[..., ::-1].astype(np.float32))
    if found.dtype == np.uint16:
        values = values / 65535
    elif not content.startswith(tuple(_TIFF)):
        values = values.clip(0, 1)
        values = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    elif values.max(initial=0) > 1:
        values = values / 255
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _size(content: bytes, source: str | Path) -> tuple[int, int]:
    """Width and height from the header, before anything is decoded."""
    try:
        if content.startswith(_RADIANCE):
            lines = re.search(rb"\n[-+]([XY]) (\d{1,9}) [-+][XY] (\d{1,9})\n", content[:65536])
            if lines is None:
                raise ValueError
            first, second = int(lines[2]), int(lines[3])
            return (first, second) if lines[1] == b"X" else (second, first)
        if content.startswith(_EXR):
            at = content.index(b"dataWindow\0box2i\0", 0, 65536) + 21
            left, top, right, bottom = struct.unpack_from("<4i", content, at)
            return max(right - left + 1, 0), max(bottom - top + 1, 0)
        order = _TIFF[content[:4]]
        (at,) = struct.unpack_from(order + "I", content, 4)
        (count,) = struct.unpack_from(order + "H", content, at)
        found: dict[int, int] = {}
        for i in range(count):
            tag, kind = struct.unpack_from(order + "HH", content, at + 2 + 12 * i)
            found[tag] = struct.unpack_from(order + {3: "H", 4: "I"}.get(kind, "I"), content, at + 10 + 12 * i)[0]
        return found[256], found[257]
    except (ValueError, KeyError, struct.error) as error:
        raise InputError(f"{source} is not a readable picture; convert it to PNG") from error
