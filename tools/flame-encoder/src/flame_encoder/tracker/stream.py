"""Tracking while frames arrive: identity and focal length from the first frames, then a short window for each frame."""

import itertools
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from recon4d.files import InputError, read_json
from recon4d.formats.track import Track, join
from recon4d.head import HeadModel
from recon4d.images import SUFFIXES, natural_key
from torch import Tensor

from flame_encoder.frames import check_landmarks, frame_paths, frame_rate, read_on
from flame_encoder.tracker import live, run
from flame_encoder.tracker.initial import confirmed_frame
from flame_encoder.tracker.observations import FrameFaces, check_faces, follow_people, nearest, of_one, read_frame
from flame_encoder.tracker.points import Rig
from flame_encoder.tracker.problem import Options, Problem

WINDOW = 6  # frames solved together; the newest is given out
STEPS = 3  # for each frame
POLL = 0.05  # seconds
LISTING = 20  # times as long as listing the folders took is waited before it is done again


def arrivals(frames: Path, landmarks: Path, follow: bool = False, timeout: float = 30.0) -> Iterator[FrameFaces]:
    """The frames of a folder in the order of their names and, with `follow`, those that come while it is read.

    A new frame is ready when its landmarks are there, or when those of a later frame are, which says that it has none.
    A clip ends when `frames.json` beside the folder has the result of making all frames and `landmarks.json` that of
    all landmarks, or when nothing new came for `timeout` seconds.

    Raises:
        InputError: as `observations.read`; nothing came at all.
    """
    if not follow:
        frame_paths(frames)
        check_landmarks(landmarks)
    before: FrameFaces | None = None
    waiting: deque[Path] = deque()
    sizes: dict[str, np.ndarray] = {}
    position, waited, last, newest, due = (0, 0), 0.0, "", "", 0.0
    while True:
        over = not follow or waited >= timeout or _finished(frames.parent)
        if over or time.monotonic() >= due:
            begin = time.monotonic()
            found = sorted((name for name in _images(frames) if natural_key(name) > natural_key(last)), key=natural_key)
            newest = max((path.stem for path in landmarks.glob("*.npy")), key=natural_key, default="") if follow else ""
            # Listing takes the longer the longer the clip is: a share of the time is enough for it.
            due = time.monotonic() + LISTING * (time.monotonic() - begin)
        else:
            found = [] if not last else list(itertools.takewhile(lambda n: (frames / n).is_file(), _numbered_on(last)))
        waiting.extend(frames / name for name in found)
        last = found[-1] if found else last
        position = read_on(landmarks.parent / "landmarks.jsonl", sizes, position)
        while waiting:
            stem = waiting[0].stem
            if not (over or natural_key(stem) <= natural_key(newest) or (landmarks / f"{stem}.npy").is_file()):
                break
            before = read_frame(waiting.popleft(), landmarks, sizes, before)
            yield before
            waited = 0.0
        if over:
            if before is None:
                frame_paths(frames)  # says what is wrong with the folder
            return
        time.sleep(POLL)
        waited += POLL


def _images(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (
                entry.name for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES and entry.name[0] != "."
            )


def _numbered_on(name: str) -> Iterator[str]:
    """00008.png, 00009.png ... after 00007.png; nothing after a name that does not end in a number."""
    number = re.fullmatch(r"(.*?)(\d+)(\.\w+)", name)
    if number:
        before, digits, after = number.groups()
        for i in itertools.count(int(digits) + 1):
            yield f"{before}{i:0{len(digits)}d}{after}"


def _finished(folder: Path) -> bool:
    """Whether prep-faces has written all frames and all landmarks of a clip's folder."""
    for name in ("frames.json", "landmarks.json"):
        try:
            begun = read_json(folder / name)
        except InputError:
            return False
        if not isinstance(begun, dict) or "result" not in begun:
            return False
    return True


def track(
    frames: str | Path,
    landmarks: str | Path,
    out: str | Path,
    *,
    head_model: str | Path | None = None,
    landmark_embedding: str | Path | None = None,
    person: int = 0,
    identity: str | Path | None = None,
    focal: float | None = None,
    fps: float | None = None,
    iterations: int = 40,
    init: str = "pnp",
    encoder: str | Path | None = None,
    calibrate: int = 45,
    follow: bool = False,
    timeout: float = 30.0,
    write: Sequence[str] = (),
    preview: bool = True,
    force: bool = False,
) -> Iterator[Track]:
    """Track one person in a folder of frames, frame by frame: each is given out as a track of one frame.

    When the last is taken, the whole track is written as `clip.track` does; `track.json` has `mean_px`, `focal`,
    `extrapolated` (frames without landmarks) and `frames`. Arguments that are not here: see `clip.track`.

    Args:
        calibrate: how many frames are solved together at the start, which fixes identity and focal length.
        follow: wait for frames that are still being written, `timeout` seconds at most; see `arrivals`.

    Raises:
        InputError: as `clip.track`.
    """
    frames, landmarks, out = Path(frames), Path(landmarks), Path(out)
    head, network = run.models(head_model, landmark_embedding, init, encoder, write)
    arriving = arrivals(frames, landmarks, follow, timeout)
    if network is not None:
        arriving = (confirmed_frame(shown, network, frames, focal) for shown in arriving)
    rate = fps or frame_rate(frames) or 30.0
    options = Options(focal=focal, identity=run.identity(identity, head), iterations=iterations)
    parts, errors = [], []
    with run.claimed(out, force, [frames, landmarks, head_model, landmark_embedding, encoder, identity]):
        for part, error in fit(head, arriving, rate, options, calibrate, person):
            yield part
            parts.append(part)
            errors.append(error)
        whole = join(parts)
        figures = {
            "mean_px": float(np.nanmean(errors)),
            "focal": float(whole.K[0, 0]),
            "extrapolated": int((~whole.valid).sum()),
            "frames": len(whole),
        }
        run.write(out, whole, figures, head, frames, write)
        if preview:
            run.draw(out, head, whole, frames, np.full((len(whole), 68, 2), np.nan))


def fit(
    head: HeadModel,
    arriving: Iterable[FrameFaces],
    fps: float,
    options: Options,
    calibration: int = 45,
    person: int = 0,
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
    source = iter(arriving)
    first = list(itertools.islice(source, calibration))
    people = follow_people([shown.faces for shown in first])
    if not any((rows >= 0).any() for rows in people):
        raise InputError(f"none of the first {len(first)} frames has landmarks; begin where a face is seen")
    if not 0 <= person < len(people):
        raise InputError(f"--person {person}: the first {len(first)} frames show {len(people)} people, counted from 0")
    seen = of_one(first, people[person], fps)
    check_faces(seen, Path("the landmarks"))
    rig = Rig(head)
    problem = Problem(rig, seen, options)
    g, q, _ = problem.solve(*problem.start(), options.iterations)
    found, errors = problem.as_track(g, q), _errors(problem, g, q)
    for i in range(len(first)):
        yield found.take([i]), errors[i]

    face = seen.landmarks[seen.valid][-1]
    if problem.dense:
        yield from _live(problem, g, q, source, face, fps)
        return
    options = replace(options, focal=float(g[-1].exp()))
    window, rows, q = first[-WINDOW:], people[person][-WINDOW:].tolist(), q[-WINDOW:]
    for shown in source:
        row = nearest(shown.faces, face)
        face = shown.faces[row] if row >= 0 else face
        if row >= 0 and max(rows) < 0:
            window, rows = [shown], [row]
            problem = Problem(rig, of_one(window, np.array(rows), fps), options)
            q = problem.start()[1]
        else:
            window, rows = [*window, shown][-WINDOW:], [*rows, row][-WINDOW:]
            problem = Problem(rig, of_one(window, np.array(rows), fps), options)
            q = torch.cat([q, q[-1:]])[-WINDOW:]
        if max(rows) >= 0:
            _, q, _ = problem.solve(g, q, STEPS, hold=True)
        yield problem.as_track(g, q).take([-1]), _errors(problem, g, q)[-1]


def _live(
    problem: Problem, g: Tensor, q: Tensor, source: Iterator[FrameFaces], face: np.ndarray, fps: float
) -> Iterator[tuple[Track, float]]:
    """The frames after the first ones, by dense landmarks."""
    solver, who = live.Solver.of(problem), live.person(problem.rig, g)
    last, before = q[-1].numpy(), q[-2 if len(q) > 1 else -1].numpy()
    follows = bool(problem.seen.valid[-1])
    for shown in source:
        row = nearest(shown.faces, face)
        one = Problem(problem.rig, of_one([shown], np.array([row]), fps), problem.options)
        error = float("nan")
        if row >= 0 and one.dense and one.seen.dense is not None and shown.dense is not None:
            face, expected = shown.faces[row], last + live.GOES_ON * (last - before)
            seen = np.concatenate([one.seen.dense[0, solver.indices], one.seen.irises[0]])
            begin, steps = (expected, live.STEPS) if follows else (one.start()[1][0].numpy(), live.FIRST_STEPS)
            believed = solver.believed(shown.dense[row])
            found, error = live.solve(
                solver, who, seen, float(one.seen.unit[0]), begin, expected if follows else None, believed, steps
            )
            before, last = (last, found) if follows else (found, found)
        follows = row >= 0
        yield one.as_track(torch.from_numpy(who.g), torch.from_numpy(last)[None]), error


def _errors(problem: Problem, g: Tensor, q: Tensor) -> np.ndarray:
    """(N,) mean reprojection error of each frame, pixels, NaN where it has no landmarks."""
    errors = np.full(len(problem.seen.valid), np.nan)
    errors[problem.seen.valid] = np.nanmean(problem.errors(g, q), 1)
    return errors
