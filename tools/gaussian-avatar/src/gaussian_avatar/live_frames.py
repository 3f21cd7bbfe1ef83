"""Frames of a camera's stream: with their pictures as they come, unpacked and posed when they are learned from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d.formats import track_stream
from recon4d.formats.camera_stream import IMAGES, MATTES
from recon4d.formats.track import Track
from recon4d.head import HeadModel

from gaussian_avatar import motions
from gaussian_avatar.sampling import Frame

RIM = 16  # of a picture's side: how far colours are looked for around a mixed pixel


@dataclass(frozen=True, eq=False)
class Arrival:
    """One frame as it came.

    track: of one frame. picture: (S, S, 3) uint8. packed: the files of picture and matte; the matte's is empty where
    there is none. said: the whole line.
    """

    track: Track
    picture: np.ndarray
    packed: tuple[bytes, bytes]
    said: dict[str, Any]

    @property
    def matted(self) -> bool:
        """Whether there is something to learn from."""
        return bool(self.packed[1])


def arrivals(lines: Iterable[track_stream.Line], folder: Path) -> Iterator[Arrival | str | None]:
    """Frames with their pictures in a ring; None where the files are gone; at the end why it came, if lines say so."""
    for line in lines:
        if line.track is None:
            if "end" in line.said:
                yield str(line.said["end"])
            continue
        name = str(line.track.names[0])
        matte = b""
        try:
            packed = (folder / IMAGES / name).read_bytes()
            if line.track.valid[0]:
                matte = (folder / MATTES / f"{Path(name).stem}.png").read_bytes()
        except OSError:
            yield None
            continue
        picture = _decoded(packed, cv2.IMREAD_COLOR_RGB)
        if picture is None or picture.shape[:2] != (line.track.image_size[1], line.track.image_size[0]):
            yield None
            continue
        yield Arrival(line.track, picture, (packed, matte), line.said)


def _decoded(data: bytes, kind: int) -> np.ndarray | None:
    """A small picture; None where there is none."""
    found: Any = cv2.imdecode(np.frombuffer(data, np.uint8), kind) if data else None
    return found if isinstance(found, np.ndarray) else None


def unpacked(frame: Frame) -> Frame:
    """The frame with its pixels (S, S, 4), which are not kept: they would be ten times as large."""
    assert frame.packed is not None
    picture = _decoded(frame.packed[0], cv2.IMREAD_COLOR_RGB)
    matte = _decoded(frame.packed[1], cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    if matte is None or matte.shape != picture.shape[:2]:  # half a file: nothing of it counts
        matte = np.zeros(picture.shape[:2], np.uint8)
    return replace(frame, pixels=torch.from_numpy(np.dstack([own_colours(picture, matte), matte])))


def own_colours(picture: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """The picture (S, S, 3) uint8, freed of what is behind where the matte (S, S) uint8 mixes it with the head.

    One pass of blur fusion (Forte and Pitie 2021, Approximate fast foreground colour estimation, equations 5-7), its
    means at half size: otherwise the avatar would learn a rim of the wall behind.
    """
    mixed = (matte > 0) & (matte < 255)
    if not mixed.any():
        return picture
    half = (max(1, len(matte) // 2),) * 2
    window = (2 * (half[0] // RIM) + 1,) * 2
    small = cv2.resize(picture, half, interpolation=cv2.INTER_AREA).astype(np.float32)
    share = (cv2.resize(matte, half, interpolation=cv2.INTER_AREA).astype(np.float32) / 255)[..., None]
    weight = cv2.blur(share, window)[..., None]
    means = (
        cv2.blur(small * share, window) / (weight + 1e-4),
        cv2.blur(small * (1 - share), window) / (1 - weight + 1e-4),
    )
    front, back = (cv2.resize(mean, matte.shape, interpolation=cv2.INTER_LINEAR)[mixed] for mean in means)
    cover = (matte[mixed].astype(np.float32) / 255)[:, None]
    own = front + cover * (picture[mixed] - cover * front - (1 - cover) * back)
    found = picture.copy()
    found[mixed] = np.rint(np.clip(own, 0, 255)).astype(np.uint8)
    return found


def posed(frame: Frame, head: HeadModel, origin: np.ndarray) -> Frame:
    """The frame with its vertices, blendshape input and intrinsics. Both threads may ask: they find the same."""
    track = frame.track
    if track is not None:
        motion = motions.from_track(track, head, origin=origin)
        frame.vertices, frame.inputs = motion.vertices[0], motion.inputs[0]
        frame.K = torch.from_numpy(track.K if track.Ks is None else track.Ks[0])
        frame.track = None
    return frame
