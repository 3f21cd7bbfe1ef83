"""Video to frames: decoding upright RGB, choosing frames by rate and by sharpness."""

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from recon4d import InputError, hdr, images, landmarker
from recon4d.records import Record, Watch, number, record, run, unwatched

from prep_faces.upright import upright

LOOKING = threading.Lock()  # the detector looks at one picture at a time


@dataclass(frozen=True)
class VideoInfo:
    """What the container says about its first video stream; sizes are upright, 0 stands for unknown.

    fps: in the mean; most_fps: where its frames are closest. frames: to be shown, without what an edit list hides.
    hdr: PQ or HLG, else empty.
    """

    fps: float
    most_fps: float
    width: int
    height: int
    frames: int
    seconds: float
    hdr: str


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """A PyAV container and its first video stream, for the block. Raises InputError when there is none."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a video file (landmarks and matte take folders of images)")
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a video file")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))  # FFmpeg itself takes only names that are UTF-8
            container = stack.enter_context(av.open(file))
        except (OSError, ValueError) as error:  # PyAV's errors derive from these
            raise InputError(
                f"{path} is not a readable video ({_reason(error)}); re-encode or copy it again"
            ) from error
        if not container.streams.video:
            raise InputError(f"{path} has no video stream; give a video file")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def decode(path: str | Path) -> Iterator[tuple[float, np.ndarray] | InputError]:
    """Frames of a video in display order: (time in seconds from the first frame, (H, W, 3) uint8 RGB upright).

    The display matrix (phone videos: rotation, mirror image), the pixel aspect ratio and the edit list (a clip trimmed
    in the phone keeps frames that are not shown) are applied; HDR is tone-mapped. Frames that the decoder marks as
    damaged are left out; what goes wrong on the way comes as one InputError at the end.
    """
    with opened(path) as (container, stream):
        start: float | None = None
        last = end = 0.0
        good = corrupt = packets = 0
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    if frame.is_corrupt:
                        corrupt += 1
                        continue
                    time = frame.time if frame.time is not None else last + _frame_seconds(stream)
                    start = time if start is None else start
                    last, end = time, time + float((frame.duration or 0) * (frame.time_base or 0))
                    good += 1
                    yield time - start, upright(frame, stream)
        except (OSError, ValueError) as error:
            yield InputError(f"{path} stops being readable after {good} frames ({_reason(error)}); copy it again")
            return
        seconds = _seconds(container, stream)
        if container.format.name.startswith(("matroska", "avi")):  # their duration counts from zero
            seconds -= start or 0.0
        if good + corrupt == 0:
            yield InputError(f"{path} holds no frame that can be decoded; copy or re-encode it")
        elif corrupt:
            yield InputError(f"{path} has {corrupt} damaged frames, which were left out; copy it again")
        elif "mp4" in container.format.name and stream.frames:  # a table of all packets, shown or not
            if packets < stream.frames:
                yield InputError(f"{path} ends early, after {packets} of {stream.frames} frames; copy it again")
        elif seconds > 1.05 * (end - (start or 0.0)) + 1.0:
            yield InputError(f"{path} ends early, {last:.1f} s into {seconds:.1f} s; copy it again")


def probe(path: str | Path) -> VideoInfo:
    """What the container says, and the upright size of the first frame. Raises InputError when none can be read."""
    with opened(path) as (container, stream):
        try:
            first = next(container.decode(stream), None)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} holds no readable frame ({_reason(error)}); copy or re-encode it") from error
        if first is None:
            raise InputError(f"{path} holds no frame that can be decoded; copy or re-encode it")
        height, width = upright(first, stream).shape[:2]
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        # The rate that all timestamps fit; clocks of containers, such as 90,000 a second, are none.
        fits = [float(other or 0) for other in (stream.guessed_rate, stream.base_rate)]
        most = max([rate, *(other for other in fits if other <= 240)])
        hidden = sum(entry.is_discard for entry in stream.index_entries)
        seconds = _seconds(container, stream)
        name = hdr.NAMES.get(int(first.color_trc), "")
        return VideoInfo(rate, most, width, height, max(0, stream.frames - hidden), seconds, name)


def _frame_seconds(stream: Any) -> float:
    rate = stream.average_rate or stream.guessed_rate
    return 1 / float(rate) if rate else 1 / 30


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def choose_by_rate(frames: Iterator[Any], fps: float | None) -> Iterator[Any]:
    """Bring `frames` (time first) to a steady `fps`: for each tick k / fps what a player shows then.

    That is the last frame before the tick (or 1 ms after it, as containers round), again where it stays for long.
    """
    if fps is None:
        yield from frames
        return
    tick = 0
    shown: Any = None
    for item in frames:
        problem = isinstance(item, InputError)
        until = (shown[0] + 2e-3 if shown else 0.0) if problem else item[0]
        while shown is not None and tick / fps < until - 1e-3:
            yield shown
            tick += 1
        shown = None if problem else item
        if problem:
            yield item
    if shown is not None and tick / fps <= shown[0] + 1e-3:
        yield shown


def sharpness(image: np.ndarray) -> tuple[float, bool]:
    """Variance of the Laplacian of the grey values (0..255) on the face, or on the whole image without a face.

    (Pech-Pacheco et al. 2000, Diatom autofocusing in brightfield microscopy: LAPV.) Returns it and whether there
    was a face.
    """
    with LOOKING:
        boxes = landmarker.detect(image)[0]
    region = image
    if len(boxes):
        x0, y0, x1, y1 = np.rint(boxes[0]).astype(int).clip(0)
        region = image[y0 : y1 + 1, x0 : x1 + 1]
    grey = cv2.cvtColor(region if region.size else image, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var()), bool(len(boxes))


def extract_frames(
    video: str | Path,
    out: str | Path,
    fps: float | None = None,
    size: int | None = None,
    sharpest: int = 1,
    max_frames: int | None = None,
    force: bool = False,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Write the frames of `video` as out/frames/00000.png ... and out/frames.jsonl, out/frames.json.

    Args:
        fps: bring to this rate (frames per second); a frame that stays for longer is repeated.
        size: scale so that the longer side has this many pixels.
        sharpest: of every N frames (after `fps`) keep the sharpest.
        max_frames: stop after this many are written.
        force: replace frames of another video or with other options.
        watch: wraps the iteration, for a progress bar.

    Returns the summary that also goes to frames.json, and how many frames were kept. A run that was killed goes on
    where it stopped. Raises InputError when nothing can be decoded or the folder holds something else.
    """
    out, video = Path(out), Path(video)
    info = probe(video)
    if fps is not None and info.fps and fps > info.most_fps * 1.01:
        raise InputError(f"--fps {fps:g} is more than the {info.most_fps:g} of {video}; give at most that")
    steady = info.fps and info.most_fps < info.fps * 1.002
    if fps is not None and steady and abs(fps / info.fps - 1) <= 0.01:
        rate = None  # 30 of 29.97: all of them, none twice
    else:
        rate = fps
    options = {
        "video": video.name,
        "bytes": video.stat().st_size,
        "fps": fps,
        "size": size,
        "sharpest": sharpest,
        "max_frames": max_frames,
    }
    folder = out / "frames"

    def work(known: dict[int, Record]) -> Iterator[Record]:
        def keep(index: int, time: float, image: np.ndarray, score: float | None, face: bool) -> Record:
            name = f"{index:05d}.png"
            path = folder / name
            if index in known and path.exists():
                return known[index]
            if score is None:
                score, face = sharpness(image)
            images.write_png(path, image)
            return {
                "index": index,
                "name": name,
                "time": round(time, 6),
                "sharpness": round(score, 3),
                "face": face,
                "width": image.shape[1],
                "height": image.shape[0],
            }

        problem: InputError | None = None
        pending: deque[Future[Record]] = deque()
        # Decoding, scoring and PNG compression release the interpreter lock in part, so threads overlap them.
        with ThreadPoolExecutor(2) as pool:
            for index, item in enumerate(itertools.islice(_chosen(video, rate, size, sharpest), max_frames)):
                if isinstance(item, InputError):
                    problem = item
                    break
                pending.append(pool.submit(keep, index, *item))
                if len(pending) > 8:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        if problem is not None:
            if index == 0:
                raise problem
            yield {"error": str(problem)}

    def summary(records: list[Record]) -> dict[str, Any]:
        frames = [item for item in records if "error" not in item]
        if not frames:
            raise InputError(f"{video} holds no frame; give another video")
        return {
            "video": video.name,
            "fps": (rate or info.fps) / sharpest,
            "source_fps": info.fps,
            "width": frames[0]["width"],
            "height": frames[0]["height"],
            "frames": len(frames),
            "seconds": frames[-1]["time"],
            "errors": [item["error"] for item in records if "error" in item],
            "notes": _notes(info, video.name, [item["time"] for item in frames], rate, sharpest),
        }

    def is_whole(item: Record) -> bool:
        return all(number(item.get(key), 0) for key in ("index", "time", "width", "height"))

    total = _expected(info, rate, sharpest, max_frames)
    with run(out, "prep-faces frames", options, ["frames"], inputs=[video], force=force) as claimed:
        return record(claimed, "frames", options, work, summary, key="index", whole=is_whole, total=total, watch=watch)


def _notes(info: VideoInfo, name: str, times: list[float], fps: float | None, sharpest: int) -> list[str]:
    """What was made of the video that its user may not expect."""
    notes = [f"{name} is HDR ({info.hdr}); it is tone-mapped to sRGB"] if info.hdr else []
    steps = np.diff(times)
    repeated = int((steps <= 0).sum())
    if repeated and fps is not None:
        notes.append(f"{repeated} of {len(times)} frames repeat the one before: {name} has {info.fps:.4g} a second")
    elif fps is None and sharpest == 1 and len(steps) and steps.max() > 1.5 * np.median(steps):
        most = f"{info.most_fps:.4g}"
        notes.append(f"frames of {name} are up to {steps.max():.3g} s apart; --fps {most} takes them at a steady rate")
    return notes


def _expected(info: VideoInfo, fps: float | None, sharpest: int, max_frames: int | None) -> int | None:
    total = info.frames or int(info.seconds * info.fps)
    if fps and info.fps:
        total = int(total * fps / info.fps)
    total = -(-total // sharpest)
    return min(total, max_frames) if max_frames is not None and total else total or max_frames


def _chosen(
    video: Path, fps: float | None, size: int | None, sharpest: int
) -> Iterator[tuple[float, np.ndarray, float | None, bool] | InputError]:
    """(time, image, sharpness or None, face) of the frames to write, sized."""
    best: tuple[float, np.ndarray, float, bool] | None = None
    seen = 0
    for item in choose_by_rate(decode(video), fps):
        if isinstance(item, InputError):
            if best is not None:
                yield best
                best = None
            yield item
            continue
        time, image = item
        if size is not None:
            scale = size / max(image.shape[:2])
            image = images.resize(
                image, *(max(1, round(length * scale)) for length in (image.shape[1], image.shape[0]))
            )
        if sharpest == 1:
            yield time, image, None, False
            continue
        score, face = sharpness(image)
        # A frame without a visible face is kept only where its whole group has none.
        if best is None or (face, score) > (best[3], best[2]):
            best = (time, image, score, face)
        seen += 1
        if seen % sharpest == 0:
            yield best
            best = None
    if best is not None:
        yield best
