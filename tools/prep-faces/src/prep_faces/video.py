"""Video to frames: decoding upright RGB, choosing frames by rate and by sharpness."""

import contextlib
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from recon4d import InputError, images

from prep_faces.dlib_faces import find_boxes
from prep_faces.image_files import scaled
from prep_faces.records import Record, Watch, number, record, run, unwatched


@dataclass(frozen=True)
class VideoInfo:
    """What the container says about its first video stream; sizes are upright, 0 stands for unknown."""

    fps: float
    width: int
    height: int
    frames: int
    seconds: float


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

    The display matrix (phone videos: rotation, mirror image) and the pixel aspect ratio are applied. Frames that
    the decoder marks as damaged are left out; what goes wrong on the way comes as one InputError at the end.
    """
    with opened(path) as (container, stream):
        start: float | None = None
        last = 0.0
        good = corrupt = 0
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    corrupt += 1
                    continue
                time = frame.time if frame.time is not None else last + _frame_seconds(stream)
                start = time if start is None else start
                last = time
                good += 1
                yield time - start, _upright(frame, stream)
        except (OSError, ValueError) as error:
            yield InputError(f"{path} stops being readable after {good} frames ({_reason(error)}); copy it again")
            return
        if good + corrupt == 0:
            yield InputError(f"{path} holds no frame that can be decoded; copy or re-encode it")
        elif corrupt:
            yield InputError(f"{path} has {corrupt} damaged frames, which were left out; copy it again")
        elif 0 < good < stream.frames:
            yield InputError(f"{path} ends early, after {good} of {stream.frames} frames; copy it again")
        elif _seconds(container, stream) > 1.05 * (last - (start or 0.0)) + 1.0:
            seconds = _seconds(container, stream)
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
        height, width = _upright(first, stream).shape[:2]
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(float(rate or 0), width, height, stream.frames, _seconds(container, stream))


def _frame_seconds(stream: Any) -> float:
    rate = stream.average_rate or stream.guessed_rate
    return 1 / float(rate) if rate else 1 / 30


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _upright(frame: Any, stream: Any) -> np.ndarray:
    """The frame as RGB, squeezed to square pixels, rotated and mirrored as its display matrix says."""
    # Swscale takes untagged video for BT.601; players take it for BT.709 from 720 lines up.
    space = "itu709" if frame.colorspace == 2 and frame.height >= 720 else None
    image: np.ndarray = frame.reformat(format="rgb24", src_colorspace=space).to_ndarray()
    aspect = stream.sample_aspect_ratio
    if aspect and aspect != 1:
        image = images.resize(image, max(1, round(image.shape[1] * float(aspect))), image.shape[0])
    with contextlib.suppress(KeyError):
        # Nine 32-bit numbers, a b u c d v x y w: a pixel (p, q) goes to (a p + c q, b p + d q) (ISO 14496-12, 8.3.2).
        matrix = np.frombuffer(bytes(frame.side_data[SideDataType.DISPLAYMATRIX]), "<i4")[:9]
        (a, b), (c, d) = np.sign(np.rint(matrix[[[0, 1], [3, 4]]] / 65536)).astype(int)
        if abs(a * d - b * c) != 1:  # not a quarter turn: nothing a grid of pixels can follow
            return image
        if a == 0:
            image = image.transpose(1, 0, 2)
            flip_x, flip_y = c < 0, b < 0
        else:
            flip_x, flip_y = a < 0, d < 0
        image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return np.ascontiguousarray(image)


def choose_by_rate(frames: Iterator[Any], fps: float | None) -> Iterator[Any]:
    """Thin `frames` (time first) to `fps`: for each tick k / fps the first frame at or after it (less 1 ms)."""
    tick = 0
    for item in frames:
        if isinstance(item, InputError) or fps is None:
            yield item
        elif item[0] >= tick / fps - 1e-3:
            # A gap in a variable-rate video is not filled with copies.
            tick = max(tick + 1, int((item[0] + 1e-3) * fps) + 1)
            yield item


def sharpness(image: np.ndarray) -> tuple[float, bool]:
    """Variance of the Laplacian of the grey values (0..255) on the face, or on the whole image without a face.

    (Pech-Pacheco et al. 2000, Diatom autofocusing in brightfield microscopy: LAPV.) Returns it and whether there
    was a face.
    """
    scale = min(1.0, 320 / max(image.shape[:2]))  # the box need not be precise
    small = scaled(image, scale * max(image.shape[:2]))
    boxes, _ = find_boxes(small)
    region = image
    if len(boxes):
        x0, y0, x1, y1 = np.rint(boxes[0] / scale).astype(int).clip(0)
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
        fps: thin to this rate (frames per second).
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
    if fps is not None and info.fps and fps > info.fps * 1.01:
        raise InputError(f"--fps {fps:g} is more than the {info.fps:g} of {video}; give at most that")
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
            for index, item in enumerate(itertools.islice(_chosen(video, fps, size, sharpest), max_frames)):
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
            "fps": info.fps / sharpest if fps is None else fps / sharpest,
            "source_fps": info.fps,
            "width": frames[0]["width"],
            "height": frames[0]["height"],
            "frames": len(frames),
            "seconds": frames[-1]["time"],
            "errors": [item["error"] for item in records if "error" in item],
        }

    def is_whole(item: Record) -> bool:
        return all(number(item.get(key), 0) for key in ("index", "time", "width", "height"))

    total = _expected(info, fps, sharpest, max_frames)
    with run(out, "frames", options, ["frames"], inputs=[video], force=force) as claimed:
        return record(claimed, "frames", options, work, summary, key="index", whole=is_whole, total=total, watch=watch)


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
