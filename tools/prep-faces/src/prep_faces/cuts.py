"""Mattes by GrabCut or a network of the user's: cut each image, steady the cuts over time, soften their edges."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from recon4d import InputError, images
from recon4d.parallel import ordered_map
from recon4d.records import Record

from prep_faces.affine import compose, head_motion, invert, warp
from prep_faces.alpha import BAND, foreground_colors, refine
from prep_faces.clipmatte import Frame
from prep_faces.grabcut import Cut, cut
from prep_faces.headshape import HeadShape
from prep_faces.image_files import ImageFile


@dataclass(frozen=True, eq=False)
class Job:
    """One image to matte: its head's shape; `model` a TorchScript file, or None for GrabCut."""

    file: ImageFile
    shape: HeadShape
    model: str | None


def steady(cuts: list[Cut], motions: list[np.ndarray], current: int) -> Cut:
    """The cut at index `current` after a vote with its neighbours: the median of all, moved with the head.

    `motions[j]` is the 2x3 matrix that carries image pixels of frame j to those of the current frame. A median
    keeps an outline that moves steadily where it is, and drops what shows in a minority of frames.
    """
    here = cuts[current]
    height, width = here.matte.shape
    stack = []
    for other, motion in zip(cuts, motions):
        if other is here:
            stack.append(here.matte)
            continue
        there = compose(here.to_small, compose(motion, invert(other.to_small)))
        stack.append(warp(other.matte, there, height, width))
    return Cut(np.median(np.stack(stack), axis=0).astype(np.float32), here.to_small)


def cut_clip(frames: Sequence[Frame], model: str | None, reach: int, workers: int) -> Iterator[Record]:
    """Cut, steady and write the frames that are wanted; the record of each of those, in order, without its file's name.

    Args:
        model: a TorchScript file in place of GrabCut. reach: frames before and after that vote.
    """
    # Images that vote on one that is wanted are cut as well.
    jobs = [
        Job(frame.file, frame.shape, model)
        for i, frame in enumerate(frames)
        if any(other.wanted for other in frames[max(0, i - reach) : i + reach + 1])
        and isinstance(frame.shape, HeadShape)
    ]
    answers = ordered_map(cut_file, iter(jobs), len(jobs), workers)
    cutting = {job.file.file for job in jobs}
    cuts = (
        frame.shape if isinstance(frame.shape, InputError) else next(answers) if frame.file.file in cutting else None
        for frame in frames
    )
    tasks = (
        (frame.file.path, frame.target, item) for frame, item in zip(frames, steadied(cuts, reach)) if frame.wanted
    )
    wanted = [frame for frame in frames if frame.wanted]
    for frame, answer in zip(wanted, ordered_map(finish_file, tasks, len(wanted), workers)):
        if isinstance(answer, InputError) and isinstance(frame.shape, HeadShape):
            frame.target.unlink(missing_ok=True)  # of an earlier run
        yield {"error": str(answer)} if isinstance(answer, InputError) else answer


def cut_file(job: Job) -> tuple[Cut, HeadShape]:
    """Cut one image. Raises InputError when it cannot be read or does not fit the shape."""
    image = images.read(job.file.path)
    shape = job.shape.fitted(*image.shape[:2])
    if not shape.visible(*image.shape[:2]):
        raise InputError(f"{job.file.file}: the head lies outside of the image; check that the points belong to it")
    if job.model is not None:
        from prep_faces.mattemodel import cut_with_model

        return cut_with_model(image, shape, job.model), shape
    return cut(image, shape), shape


Answer = tuple[Cut, HeadShape] | InputError | None


def steadied(cuts: Iterator[Answer], reach: int) -> Iterator[Answer]:
    """Each cut after the vote with up to `reach` neighbours on each side; errors and None pass through."""
    window: deque[Answer] = deque(itertools.islice(cuts, reach + 1))
    current = 0
    while current < len(window):
        here = window[current]
        if isinstance(here, tuple) and reach:
            # As many before as after: a lopsided median lags behind a head that moves.
            each = min(current, len(window) - 1 - current)
            around = list(window)[current - each : current + each + 1]
            voters = [item for item in around if isinstance(item, tuple)]
            motions = [head_motion(shape.anchors, here[1].anchors) for _, shape in voters]
            index = next(i for i, item in enumerate(voters) if item is here)
            yield steady([cut for cut, _ in voters], motions, index), here[1]
        else:
            yield here
        following = next(cuts, ...)
        if following is not ...:
            window.append(following)
        if current < reach:
            current += 1
        else:
            window.popleft()


def finish_file(task: tuple[Path, Path, Answer]) -> Record:
    """Refine the cut of one image and write its RGBA PNG; what to record. Raises InputError for a failed cut."""
    path, target, answer = task
    if not isinstance(answer, tuple):
        raise answer or InputError(f"{path} was not cut")
    here, shape = answer
    image = images.read(path)
    alpha = refine(image, here, shape.width)
    if not alpha.any():
        raise InputError("no head found around the face")
    colors = foreground_colors(image, alpha, max(2, round(2 * BAND * shape.width)))
    images.write_png(target, np.dstack([colors, np.rint(255 * alpha).astype(np.uint8)]))
    ys, xs = np.nonzero(alpha > 0.5)
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "coverage": round(float(alpha.mean()), 5),
        "box": [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1] if len(xs) else None,
    }
