"""Frames as they arrive: from a subject's folder at a video's pace, or from a tracker's pipe as they come."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import torch
from recon4d import InputError
from recon4d.cameras import Camera
from recon4d.formats import track_stream
from recon4d.formats.track import Track, join
from recon4d.head import HeadModel
from torch import Tensor

from gaussian_avatar import captures, memory, motions
from gaussian_avatar.config import Config
from gaussian_avatar.sampling import Frame

T = TypeVar("T")
WAITING = 64  # frames that may wait for the optimiser; a reader that is further ahead waits itself


@dataclass(frozen=True, eq=False)
class Stream:
    """Where frames come from.

    Attributes:
        arrivals: frames that are valid, as they are asked for: a track of one frame, and its picture (H, W, 4) uint8.
        pose: an arrival's camera, which is the same for all, and its frame; to be called in the order of arrival.
        track: the track of all that have come so far, or, of a folder, of the whole clip.
        count: how many frames will come; 0 where nobody knows.
        name: what to call it in errors.
    """

    arrivals: Iterator[tuple[Track, Tensor]]
    pose: Callable[[tuple[Track, Tensor]], tuple[Camera, Frame]]
    track: Callable[[], Track]
    count: int
    name: str

    @property
    def frames(self) -> Iterator[tuple[Camera, Frame]]:
        """The arrivals, posed."""
        return map(self.pose, self.arrivals)


def from_folder(
    folder: Path,
    head: HeadModel,
    config: Config,
    device: torch.device,
    repeat: int,
    log: Callable[[str], None],
) -> Stream:
    """The chosen split of a subject's folder, frame after frame, the whole `repeat` times.

    With `data.preload` its pictures are read here, before the stream begins: a camera's need no decoding.

    Raises InputError as `capture.open_capture` does, or when its frames would not fit into memory.
    """
    data = config.data
    capture = captures.open_capture(folder, data.image_size, log, data.frame_offset, data.pairs == "common")
    motions.check_track(capture.track, head, str(folder), log)
    chosen = captures.with_heads(capture, captures.choose_frames(capture, config, config.split, log), log)
    kept = min(len(chosen) * repeat, config.online.local_pool + config.online.global_pool)
    n_pictures = len(chosen) if config.data.preload else kept
    memory.check_memory(config, head, kept, n_pictures, capture.width, capture.height, device)
    ready: dict[int, Tensor] = {}
    if config.data.preload:
        log(f"reading {len(chosen)} pictures")
        ready = dict(zip(chosen.tolist(), captures.preload(capture, chosen)))

    def arrivals() -> Iterator[tuple[Track, Tensor]]:
        for _ in range(repeat):
            for i in chosen.tolist():
                pixels = ready.get(i)
                yield (
                    capture.track.take([i]),
                    torch.from_numpy(captures.read_frame(capture, i)) if pixels is None else pixels,
                )

    return Stream(
        arrivals(), _poser(head, lambda: capture.track.t[0]), lambda: capture.track, repeat * len(chosen), str(folder)
    )


def from_pipe(
    lines: TextIO | Iterable[str], folder: Path, head: HeadModel, config: Config, name: str | None = None
) -> Stream:
    """The frames of a track stream (`recon4d.formats.track_stream`), with pictures from a folder beside it.

    Pictures are `online.images`, or the subject's; with `online.masks` they may be without alpha. `name` is what to
    call the lines in errors; None asks their file.

    Raises InputError for a folder that is missing; the frames raise it as `track_stream.read` does.
    """
    images = Path(config.online.images or folder / "images")
    masks = Path(config.online.masks) if config.online.masks else None
    for place in filter(None, (images, masks)):
        if not place.is_dir():
            raise InputError(f"{place} is not a folder; name the stream's pictures with --images and --masks")
    called: str = getattr(lines, "name", "the stream") if name is None else name
    seen: dict[str, Track] = {}  # by name: a clip shown again and again does not grow

    def tracks() -> Iterator[Track]:
        for track in track_stream.read(lines, called):
            seen.setdefault(str(track.names[0]), track)
            yield track

    arrivals = _arrivals(tracks(), head, config, images, masks)
    return Stream(
        arrivals,
        _poser(head, lambda: next(iter(seen.values())).t[0]),
        lambda: join(list(seen.values())),
        0,
        called,
    )


def _arrivals(
    tracks: Iterable[Track],
    head: HeadModel,
    config: Config,
    images: Path,
    masks: Path | None,
) -> Iterator[tuple[Track, Tensor]]:
    """Tracks of one frame each with their pictures in `images`; those that are not valid are passed over."""
    for track in tracks:
        if not track.valid[0]:
            continue
        name = str(track.names[0])
        motions.check_track(track, head, "the track stream")
        size = (int(track.image_size[0]), int(track.image_size[1]))
        width, height = captures.reduced_size(*size, config.data.image_size)
        image = _await_image(images, name, masks, width, height, size, config.online.image_wait)
        yield track, torch.from_numpy(np.ascontiguousarray(image))


def _poser(head: HeadModel, origin: Callable[[], np.ndarray]) -> Callable[[tuple[Track, Tensor]], tuple[Camera, Frame]]:
    """A stream's `pose`. origin: (3,) the camera's translation, that of the first track, valid or not."""
    indices = count()

    def pose(arrival: tuple[Track, Tensor]) -> tuple[Camera, Frame]:
        track, pixels = arrival
        height, width = pixels.shape[:2]
        motion = motions.resized(motions.from_track(track, head, origin=origin()), width, height)
        return motion.camera, Frame(next(indices), str(track.names[0]), motion.vertices[0], motion.inputs[0], pixels)

    return pose


def _await_image(
    images: Path, name: str, masks: Path | None, width: int, height: int, size: tuple[int, int], seconds: float
) -> np.ndarray:
    """The picture of a frame, which may come a little later than the frame.

    Raises InputError as `read_image` does, and for an empty mask.
    """
    until = time.monotonic() + seconds
    folders = [images] if masks is None else [images, masks]
    while not all(captures.picture(folder, name).is_file() for folder in folders) and time.monotonic() < until:
        time.sleep(0.02)
    path = captures.picture(images, name)
    image = captures.read_image(path, width, height, size, masks)
    if not image[..., 3].any():
        raise InputError(f"{path} has an empty mask (alpha is 0 everywhere); make it again with prep-faces matte")
    return image


def paced(items: Iterable[T], fps: float) -> Iterator[T]:
    """The items, none of them before its time: item i comes i / fps seconds after the second is asked for."""
    started = None
    for i, item in enumerate(items):
        if started is not None:
            time.sleep(max(0.0, started + i / fps - time.monotonic()))
        yield item
        started = time.monotonic() if started is None else started


def as_they_come(items: Iterable[Any], then: Callable[[Any], Any] = lambda item: item) -> Iterator[list[Any]]:
    """What has arrived since the last time, again and again until the items end: an empty list where nothing has.

    The first item comes alone, and nothing is read ahead before the second list is asked for: who takes them can get
    ready with it. Then the items are made in a thread of their own, so that work can go on meanwhile. None is lost:
    where `WAITING` of them have not been taken, the thread waits. An exception in it is raised here.

    Args:
        then: what becomes of an item when it is taken, in the taker's thread.
    """
    items = iter(items)
    first = list(map(then, islice(items, 1)))
    if not first:
        return
    yield first
    arrived: queue.Queue[Any] = queue.Queue(WAITING)
    stopped = threading.Event()
    end = object()

    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                arrived.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(end)
        except BaseException as error:  # raised again by the taker
            put(error)

    thread = threading.Thread(target=read, name="frames", daemon=True)
    thread.start()
    taken: list[Any] = []
    try:
        while True:
            while not arrived.empty():
                taken.append(arrived.get())
            ended = taken and (taken[-1] is end or isinstance(taken[-1], BaseException))
            if not ended:
                yield list(map(then, taken))
            else:
                if len(taken) > 1:
                    yield list(map(then, taken[:-1]))
                if isinstance(taken[-1], BaseException):
                    raise taken[-1]
                return
            taken = []
    finally:
        stopped.set()


def in_step(items: Iterable[T], steps_per_item: float) -> Iterator[list[T]]:
    """The same without a clock: so many lists per item on average, whatever the machine."""
    due, arrived = 0.0, []
    for item in items:
        arrived.append(item)
        due += steps_per_item
        while due >= 1:
            yield arrived
            arrived, due = [], due - 1
    if arrived:
        yield arrived
