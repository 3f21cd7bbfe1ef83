"""Tracking a whole clip: from its landmarks and, where asked, from its images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recon4d.files import InputError
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from torch import Tensor

from flame_encoder.frames import frame_paths
from flame_encoder.report import Log, Progress, Report, unreported, unsaid, unseen
from flame_encoder.tracker import gaze, initial, observations, photometric, run
from flame_encoder.tracker.observations import Observations
from flame_encoder.tracker.photometric import Surface
from flame_encoder.tracker.points import Rig
from flame_encoder.tracker.problem import CHUNK, Options, Problem

DOUBTFUL = 0.06  # median error of a frame's landmarks, share of the distance between the eyes
POOR = 10.0  # % of the eye distance; real faces give 2 to 5
Start = Callable[[Problem], tuple[Tensor, Tensor]]  # shared and per-frame unknowns to start from


class Tracked(NamedTuple):
    """A track, and how well it fits; see `fit`."""

    track: Track
    figures: dict[str, Any]


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
    photometric: bool = False,
    init: str = "pnp",
    encoder: str | Path | None = None,
    write: Sequence[str] = (),
    preview: bool = True,
    force: bool = False,
    log: Log = unsaid,
    progress: Progress = unseen,
) -> Tracked:
    """Track one person in a folder of frames; writes track.npz, checkpoint/*.frame and track.json (the figures).

    Args:
        frames: folder of images. landmarks: folder of `<stem>.npy` (68, 2) or (P, 68, 2), pixels.
        head_model: a FLAME file with `landmark_embedding` beside it or given; the open head when None.
        person: whose face, where files hold several: 0 is who is in most frames.
        identity: a file of `encode --same-person`, or of one picture: who that is, as sure as the file is.
        focal: focal length in pixels; estimated when None. fps: frames per second; when None of `frames.jsonl`, or 30.
        iterations: solver steps at most.
        photometric: refine on the images too.
        init: where to start: `pnp`, or `encoder`, which replaces wrong landmarks too. encoder: its file; the shipped
            one when None.
        write: more formats: `arkit` (arkit.csv, of the open head), `vhap` (vhap/, of FLAME).
        preview: write overlay.png and overlay.mp4.
        force: replace what is there.

    Raises:
        InputError: input that cannot be read or tracked; an output that exists without `force`.
    """
    frames, landmarks, out = Path(frames), Path(landmarks), Path(out)
    head, network = run.models(head_model, landmark_embedding, init, encoder, write)
    seen = observations.read(frames, landmarks, fps, person)
    known = run.identity(identity, head)
    paths, options = frame_paths(frames), Options(focal=focal, identity=known, iterations=iterations)
    start: Start = Problem.start
    replaced = {}
    with run.claimed(out, force, [frames, landmarks, head_model, landmark_embedding, encoder, identity]):
        missing = int((~seen.valid).sum())
        if missing:
            log(f"{missing} of {len(seen.valid)} frames have no landmarks; they are interpolated and marked")
        if network is not None:
            seen, wrong = initial.confirmed(seen, network, paths, focal or options.focal_prior * max(seen.image_size))
            if wrong:
                log(f"the encoder contradicts the landmarks of {wrong} frames; its own take their place there")
            start, replaced = partial(initial.encoded, encoder=network, frames=paths), {"replaced": wrong}
        with progress("track", options.steps(photometric, seen.dense is not None)) as report:
            found = fit(head, seen, options, paths if photometric else None, start, report)
        found = found._replace(figures=found.figures | replaced)
        run.write(out, found.track, found.figures, head, frames, write)
        if found.figures["mean_iod"] > POOR:
            far = f"{found.figures['mean_iod']:.0f} % of the eye distance from the landmarks of {landmarks}"
            log(f"warning: the head stays {far}; see whether they are of these frames, and look at overlay.png")
        if found.figures["doubted"]:
            log(f"{found.figures['doubted']} frames have landmarks that no head explains; they are bridged and marked")
        if preview:
            run.draw(out, head, found.track, frames, seen.landmarks)
    return found


def fit(
    head: HeadModel,
    seen: Observations,
    options: Options | None = None,
    frames: list[Path] | None = None,
    start: Start = Problem.start,
    report: Report = unreported,
) -> Tracked:
    """Fit the head model to the landmarks of a clip and, where `frames` are given, to its images.

    Args:
        head: with 68 landmarks.
        seen: N frames of landmarks; at least one must be valid.
        frames: the N image files, for the photometric stage.
        start: gives the unknowns to start from: PnP, or `initial.encoded`.
        report: called with the step and a text as the work goes on.

    Returns:
        The track, and a dictionary of figures: `mean_px`, `p95_px` (mean and 95th percentile over landmarks and valid
        frames of the reprojection error), `mean_iod` (the mean in % of the distance between the outer eye corners),
        `focal`, `interpolated` (frames without landmarks, or with doubted ones), `doubted` (frames whose dense
        landmarks no head explains: bridged, and marked), `jitter_mm` (mean second difference of the face's vertices),
        `steps`; with `frames` also `photometric_error` (mean absolute difference, of 1, between the drawn head and
        the frames) and `found` (share of the drawn points in sight that were found), before each round.

    Raises:
        InputError: no frame with landmarks; a head model without landmarks; an unreadable frame.
    """
    options = options or Options()
    if not seen.valid.any():
        raise InputError("no frame has landmarks; check them with prep-faces landmarks")
    rig = Rig(head)
    problem = Problem(rig, seen, options)
    g, q = start(problem)
    g, q, steps = _solve(problem, g, q, options.iterations, report)
    doubted = _doubted(problem, g, q) if problem.dense else np.zeros(len(q), bool)
    if doubted.any():
        seen = replace(seen, valid=seen.valid & ~doubted)
        problem = Problem(rig, seen, options)
        q, more = problem.solve(g, q, options.iterations, after(report, steps), hold=True)[1:]
        steps += more
    figures: dict[str, Any] = {}
    if frames is not None:
        g, q, more, figures = _refine(problem, g, q, frames, after(report, steps))
        steps += more
    found = problem.as_track(g, q)
    errors = problem.errors(g, q)
    figures = {
        "mean_px": float(np.nanmean(errors)),
        "p95_px": float(np.nanpercentile(errors, 95)),
        "mean_iod": float(100 * np.nanmean(errors / seen.unit[seen.valid][:, None])),
        "focal": float(np.exp(g[-1])),
        "interpolated": int((~seen.valid).sum()),
        "doubted": int(doubted.sum()),
        "jitter_mm": _jitter(head, found),
        "steps": steps,
    } | figures
    return Tracked(found, figures)


def key_frames(problem: Problem) -> np.ndarray | None:
    """Frames that identity and focal length are found from, or None where that is all: neighbours say the same."""
    rows = np.flatnonzero(problem.seen.valid)
    step = -(-len(rows) // problem.options.key_frames)
    return rows[::step] if step > 1 and problem.dense else None


def _solve(problem: Problem, g: Tensor, q: Tensor, most: int, report: Report) -> tuple[Tensor, Tensor, int]:
    """Solve for all unknowns: in a long clip those of the key frames with the shared ones, then all other frames'."""
    keys = key_frames(problem)
    if keys is None:
        return problem.solve(g, q, most, report)
    g, q, done = _solve_some(problem.part(keys), keys, g, q, most, report)
    q, more = problem.solve(g, q, most, after(report, done), hold=True)[1:]
    return g, q, done + more


def _solve_some(
    part: Problem, rows: np.ndarray, g: Tensor, q: Tensor, most: int, report: Report
) -> tuple[Tensor, Tensor, int]:
    """Solve some frames with the shared unknowns; the frames between them change as their neighbours do."""
    g, new, steps = part.solve(g, q[rows], most, report)
    change = (new - q[rows]).numpy()
    spread = [np.interp(np.arange(len(q)), rows, column) for column in change.T]
    return g, q + torch.from_numpy(np.stack(spread, 1)), steps


def _doubted(problem: Problem, g: Tensor, q: Tensor) -> np.ndarray:
    """(N,) frames whose landmarks fit no head; none where that would leave less than half of them."""
    share = np.nanmedian(problem.errors(g, q), 1) / problem.seen.unit[problem.seen.valid]
    found = np.zeros(problem.n, bool)
    found[problem.seen.valid] = share > DOUBTFUL
    return found if found.sum() <= 0.5 * problem.seen.valid.sum() else np.zeros(problem.n, bool)


def _refine(
    problem: Problem, g: Tensor, q: Tensor, frames: list[Path], report: Report
) -> tuple[Tensor, Tensor, int, dict[str, Any]]:
    """Stage 3: draw the head as it looks, find the drawing in the frames, solve; from coarse to fine."""
    head, seen, options = problem.rig.head, problem.seen, problem.options
    surface = Surface(head)
    problem.surface = problem.rig.points(surface.faces, surface.bary)
    problem.shares = (options.landmark_share * problem.evidence, options.photometric_evidence / photometric.POINTS)
    iod = float(np.median(seen.unit[seen.valid]))
    found = problem.as_track(g, q)
    windows, done = photometric.cut(frames, found, found.vertices(head)), 0
    figures: dict[str, Any] = {"photometric_error": [], "found": []}
    rounds, keys = options.levels(problem.dense), key_frames(problem)
    coarsest = max(rounds)
    for levels in rounds:
        if levels > coarsest:
            continue
        few = keys if levels > min(rounds) else None  # coarse rounds look at the key frames
        part, there = (problem, windows) if few is None else (problem.part(few), windows.some(few))
        found = part.as_track(g, q if few is None else q[few])
        vertices = found.vertices(head)
        looks = photometric.looks(surface, there, found, vertices)
        part.matches = photometric.match(surface, looks, there, found, vertices, iod, levels)
        errors = figures["photometric_error"]
        settled = len(errors) > 0 and part.matches.error > 0.95 * errors[-1]
        errors.append(part.matches.error)
        figures["found"].append(float(part.matches.found.mean()))
        most, told = options.photometric_iterations, after(report, done)
        if few is None:
            g, q, steps = _solve(problem, g, q, most, told)
        else:
            g, q, steps = _solve_some(part, few, g, q, most, told)
        done += steps
        if settled:  # coarse rounds go on only while they help
            coarsest = min(rounds)
    found = problem.as_track(g, q)
    measured = gaze.measure(head, windows, found, found.vertices(head), options.gaze_prior_sigma)
    problem.rig.columns.split(q)["gaze"][:] = problem.smooth_gaze(*measured)
    return g, q, done, figures


def after(report: Report, done: int) -> Report:
    """Reports of a later stage, which began when `done` steps were made."""
    return lambda step, text: report(done + step, text)


def _jitter(head: HeadModel, track: Track) -> float:
    """Mean length, mm, of the second differences over frames of a sample of the head's vertices; 0 for short clips."""
    if len(track) < 3:
        return 0.0
    total = []
    for start in range(0, len(track) - 2, CHUNK):
        v = track.vertices(head, slice(start, start + CHUNK + 2))[:, ::16]
        total.append((v[2:] - 2 * v[1:-1] + v[:-2]).norm(dim=-1))
    return 1000 * float(torch.cat(total).mean())
