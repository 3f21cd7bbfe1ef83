"""Tracking while frames arrive: identity and focal length from the first frames, then a short window for each frame."""

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from recon4d.files import InputError
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from torch import Tensor

from flame_encoder import observations
from flame_encoder.observations import View
from flame_encoder.points import Rig
from flame_encoder.tracker import Options, Problem

WINDOW = 6  # frames solved together; the newest is given out
STEPS = 3  # for each frame
POLL = 0.05  # seconds


def arrivals(frames: Path, landmarks: Path, follow: bool = False, timeout: float = 30.0) -> Iterator[View]:
    """The views of a folder in the order of their names and, with `follow`, those that come while it is read.

    A new frame is ready when its landmarks are there, or when those of a later frame are, which says that it has none.
    A clip ends when `frames.json` beside the folder says that all frames are written and `landmarks.json` that all
    landmarks are, or when nothing new came for `timeout` seconds.

    Raises:
        InputError: as `observations.read`; nothing came at all.
    """
    before, waited, done = None, 0.0, ""
    while True:
        ended = not follow or all((frames.parent / name).is_file() for name in ("frames.json", "landmarks.json"))
        paths = [p for p in _images(frames) if p.name > done]
        ready = {p.stem for p in landmarks.glob("*.npy")} if landmarks.is_dir() else set()
        newest = max((p.name for p in paths if p.stem in ready), default="")
        sizes = observations.landmark_sizes(landmarks)
        over = ended or waited >= timeout
        for path in paths:
            if not over and path.name > newest:
                break
            before = observations.view(path, landmarks, sizes, before)
            yield before
            done, waited = path.name, 0.0
        if over:
            if not done:
                observations.frame_paths(frames)  # says what is wrong with the folder
            return
        time.sleep(POLL)
        waited += POLL


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in observations.IMAGE_SUFFIXES)


def track(
    head: HeadModel, views: Iterable[View], fps: float, options: Options, calibration: int = 45, person: int = 0
) -> Iterator[tuple[Track, float]]:
    """Each frame as a track of one frame and its reprojection error in pixels (NaN without landmarks), as it comes.

    The first `calibration` frames are solved together, which fixes identity and focal length, and given out at once.
    Each later frame is solved with the WINDOW frames up to it; it never waits for another. Where the window shows
    nobody the last pose is kept, and the next face starts afresh.

    Args:
        person: whose face: 0 is who is in most of the first frames, 1 the next. Later the nearest face is theirs.

    Raises:
        InputError: no landmarks in the first frames; those of `observations.read`.
    """
    source = iter(views)
    first = list(itertools.islice(source, calibration))
    people = observations.follow([view.faces for view in first])
    if not any((rows >= 0).any() for rows in people):
        raise InputError(f"none of the first {len(first)} frames has landmarks; begin where a face is seen")
    if not 0 <= person < len(people):
        raise InputError(f"--person {person}: the first {len(first)} frames show {len(people)} people, counted from 0")
    rows = people[person]
    seen = observations.of_one(first, rows, fps)
    observations.check_faces(seen, Path("the landmarks"))
    rig = Rig(head)
    problem = Problem(rig, seen, options)
    g, q, _ = problem.solve(*problem.start(), options.iterations)
    found, errors = problem.as_track(g, q), _errors(problem, g, q)
    for i in range(len(first)):
        yield found.take([i]), errors[i]

    options = replace(options, focal=float(g[-1].exp()))
    window, rows, q = first[-WINDOW:], list(rows[-WINDOW:]), q[-WINDOW:]
    face = seen.landmarks[seen.valid][-1]
    for view in source:
        row = _nearest(view.faces, face)
        face = view.faces[row] if row >= 0 else face
        if row >= 0 and max(rows) < 0:
            window, rows = [view], [row]
            problem = Problem(rig, observations.of_one(window, np.array(rows), fps), options)
            q = problem.start()[1]
        else:
            window, rows = [*window, view][-WINDOW:], [*rows, row][-WINDOW:]
            problem = Problem(rig, observations.of_one(window, np.array(rows), fps), options)
            q = torch.cat([q, q[-1:]])[-WINDOW:]
        if max(rows) >= 0:
            _, q, _ = problem.solve(g, q, STEPS, hold=True)
        yield problem.as_track(g, q).take([-1]), _errors(problem, g, q)[-1]


def _nearest(faces: np.ndarray, face: np.ndarray) -> int:
    """Which of faces (P, 68, 2) is nearest to the last one seen, -1 where there is none near; one alone always is."""
    far = [observations.distance(f, face) for f in faces]
    if not far or (len(far) > 1 and min(far) > 2):
        return -1
    return int(np.argmin(far))


def _errors(problem: Problem, g: Tensor, q: Tensor) -> np.ndarray:
    """(N,) mean reprojection error of each frame, pixels, NaN where it has no landmarks."""
    errors = np.full(len(problem.seen.valid), np.nan)
    errors[problem.seen.valid] = problem.errors(g, q).mean(1)
    return errors
