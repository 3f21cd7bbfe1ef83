"""A camera's frames for the stages of a live pipe: the face found, the head's matte, files in a ring, a line each.

prep-faces camera | flame-encoder track --stream - | gaussian-avatar train-online --stream - --view
"""

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import av
import cv2
import numpy as np
from recon4d import InputError, landmarker
from recon4d.formats import camera_stream
from recon4d.formats.camera_stream import CameraFrame, Header
from recon4d.formats.landmarks import to_ibug
from recon4d.stages import NOBODY, Meter, newest, stopped_by_signal, until_closed, while_read, write_line

from prep_faces import networks, ring
from prep_faces.headshape import shape_from_landmarks
from prep_faces.livematte import Before, live_matte
from prep_faces.sources import Shots, Source
from prep_faces.upright import upright
from prep_faces.video import choose_by_rate, decode, probe

BROWSER = "browser"
ROOM = 2.5  # side of the window, in sides of the face's box
ASIDE = 0.10  # of the window's side: how far the face may leave its middle before the window follows
LARGER = 1.25  # how much the face may grow or shrink before it does
KEPT, KEPT_FOR_ALL = 128, 1024  # frames in the ring: in pipes there is room for hundreds of lines
SECONDS_TO_READ = (5.0, 30.0)  # at the end: how long the others have to read the last files, of a camera or not


@contextlib.contextmanager
def from_file(path: str, realtime: bool, loop: bool, fps: float | None) -> Iterator[Source]:
    """A video file. realtime: its frames come as a camera's would. loop: again and again. fps: at this rate."""
    info = probe(path)
    rate = fps or info.fps or 25.0

    def shots() -> Shots:
        start, passed = time.time(), 0.0
        while True:
            last = 0.0
            for number, item in enumerate(choose_by_rate(decode(path), fps)):
                if isinstance(item, InputError):
                    raise item
                last, image = (item[0] if fps is None else number / fps), item[1]
                due = start + passed + last
                if realtime:
                    time.sleep(max(0.0, due - time.time()))
                yield due, image
            if not loop:
                return
            passed += last + 1 / rate

    yield Source(rate, shots(), f"{Path(path).name} ended")


@contextlib.contextmanager
def from_device(name: str | None, fps: float | None) -> Iterator[Source]:
    """A camera of this machine, or a URL that FFmpeg reads. Raises InputError where it cannot be opened."""
    kind = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}.get(sys.platform)
    url = name is not None and "://" in name
    first = {"v4l2": "/dev/video0", "avfoundation": "0"}.get(kind or "")
    place = name or first
    if place is None:
        raise InputError(
            'name the camera: prep-faces camera "video=NAME OF THE CAMERA", or use: prep-faces camera browser'
        )
    place = f"/dev/video{place}" if kind == "v4l2" and place.isdecimal() else place
    options = {} if url or fps is None else {"framerate": f"{fps:g}"}
    try:
        container = av.open(place, format=None if url else kind, options=options, timeout=10.0)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"the camera {place} cannot be opened ({why}); name another, a video, or use: prep-faces camera browser"
        ) from error
    with container:
        if not container.streams.video:
            raise InputError(f"{place} has no pictures; name another camera")
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # threads by frame would each hold one back

        def shots() -> Shots:
            try:
                for frame in container.decode(stream):
                    yield time.time(), upright(frame, stream)
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error)
                raise InputError(f"the camera {place} stopped ({why}); is it still plugged in?") from error

        yield Source(float(stream.average_rate or fps or 30.0), shots(), f"the camera {place} ended")


def opened(
    source: str | None,
    realtime: bool,
    loop: bool,
    fps: float | None,
    host: str,
    port: int,
    open_browser: bool,
    log: Callable[[str], None],
) -> contextlib.AbstractContextManager[Source]:
    """What a name means: a file, `browser`, a URL, a device; None is the first camera of this machine."""
    if source == BROWSER:
        from prep_faces.browser_camera import from_browser

        return from_browser(host, port, fps or 25.0, open_browser, log)
    if source is not None and (Path(source).is_file() or Path(source).suffix.lower() in (".mp4", ".mov", ".mkv")):
        return from_file(source, realtime, loop, fps)
    return from_device(source, fps)


def stream(
    source: str | None = None,
    folder: str | Path | None = None,
    *,
    size: int = 256,
    fps: float | None = None,
    realtime: bool = False,
    loop: bool = False,
    seconds: float | None = None,
    keep: int | None = None,
    leave: bool = False,
    host: str = "127.0.0.1",
    port: int = 8081,
    open_browser: bool = False,
    out: TextIO = sys.stdout,
    log: Callable[[str], None] = print,
) -> None:
    """Write a camera's frames into a ring and a line for each to `out` until they end, or nobody reads.

    Each picture is a square around the head, which follows it; its matte and its landmarks are in pixels of it.

    Args:
        source: see `opened`. folder: of the ring; None makes one in memory.
        size: pixels of a picture's side. fps: frames per second that a device or a browser is asked for, and of a file.
        realtime: show a file at its own pace, as a camera would. loop: again and again.
        seconds: end after so long. keep: frames whose files are kept; None is enough for stages that keep up.
        leave: do not remove them at the end.

    Raises:
        InputError: a source that cannot be opened, or that stops with an error; nobody reads any more.
    """
    networks.check("live")
    landmarker.landmarks(np.zeros((64, 64, 3), np.uint8), landmarker.Square((32.0, 32.0), 64.0, 0.0))  # loads it
    cv2.setNumThreads(1)  # the other stages need the other cores
    live = realtime or source is None or not Path(source).is_file()
    with (
        stopped_by_signal(),
        ring.opened(folder, keep or (KEPT if live else KEPT_FOR_ALL), leave) as files,
        opened(source, realtime, loop, fps, host, port, open_browser, log) as camera,
    ):
        write_line(out, camera_stream.header(Header(files.folder, size, camera.fps, live)))
        why = camera.ended
        try:
            shots = newest(camera.shots, patient=not live)
            start: float | None = None
            with while_read(out):
                for shown in frames(shots, files, size):
                    start = start if start is not None else shown.time
                    write_line(out, camera_stream.frame(shown))
                    if seconds is not None and shown.time - start >= seconds:
                        why = f"{seconds:g} seconds are over"
                        break
        except KeyboardInterrupt:
            why = "the camera was stopped"
        except InputError as error:
            if str(error) != NOBODY or not (files.folder / camera_stream.OVER).exists():
                raise
            why = "the others have ended"
        with contextlib.suppress(InputError):
            write_line(out, camera_stream.end(why))
        log(f"{why}; prep-faces camera has ended")
        until_closed(out, SECONDS_TO_READ[not live], files.folder / camera_stream.OVER)


def frames(shots: Iterator[tuple[tuple[float, np.ndarray], int]], files: ring.Ring, size: int) -> Iterator[CameraFrame]:
    """Find the face and the matte of each picture, write its files, and give out its line.

    Args:
        shots: pictures, each with how many before it were dropped.
    """
    gc.freeze()  # what is there now stays: looking through it again and again would take time
    meter, square, lost = Meter(), None, 0
    window: tuple[int, int, int] | None = None
    before: Before | None = None
    for number, ((taken, image), dropped) in enumerate(shots):
        begin = time.perf_counter()
        face = landmarker.follow(image, square, lost)
        lost = 0 if face is not None else lost + 1
        square = square if face is None else face.next_square()
        moved = window_of(window, None if face is None else face.box, image.shape[1], image.shape[0])
        before, window = (before if moved == window else None), moved
        left, top, side = moved
        scale = size / side
        picture = cv2.resize(
            image[top : top + side, left : left + side],
            (size, size),
            interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
        )
        matte = points = None
        if face is not None:
            points = ((face.points - np.array([left, top, 0], np.float32)) * scale).astype(np.float32)
            shape = shape_from_landmarks(to_ibug(points[None])[0], (size, size))
            matte, before = live_matte(picture, shape, before)
        else:
            before = None
        name = files.write(f"{number:08d}", picture, matte, points)
        shown = CameraFrame(name, taken, (image.shape[1], image.shape[0]), moved, face is not None, {})
        meter.add(time.perf_counter() - begin, dropped)
        yield replace(shown, said={"stages": {"camera": meter.figures()}})
        if number % 32 == 0:
            gc.collect()  # side data of PyAV's frames hold the frames in circles: half a megabyte each


def window_of(
    window: tuple[int, int, int] | None, box: np.ndarray | None, width: int, height: int
) -> tuple[int, int, int]:
    """The square (left, top, side) of a picture that is shown: around the face, still while that stays in its middle.

    Args:
        window: the last one. box: (4,) x0 y0 x1 y1 of the face; None where there is none.
    """
    most = min(width, height)
    if box is None:
        same = window is not None and window[0] + window[2] <= width and window[1] + window[2] <= height
        return window if window is not None and same else ((width - most) // 2, (height - most) // 2, most)
    side = int(min(most, max(ROOM * float(max(box[2] - box[0], box[3] - box[1])), 32.0)))
    middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2

    def placed(side: int) -> tuple[int, int, int]:
        left, top = np.clip(np.rint(middle - side / 2), 0, [width - side, height - side]).astype(int)
        return int(left), int(top), side

    if window is not None and 1 / LARGER < side / window[2] < LARGER and window[2] <= most:
        left, top, _ = placed(window[2])
        if max(abs(left - window[0]), abs(top - window[1])) <= ASIDE * window[2]:
            return window
    return placed(side)
