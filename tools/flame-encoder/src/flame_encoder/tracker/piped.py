"""Tracking a camera's frames from a pipe: each line of `prep-faces camera` is passed on with the head's pose added.

Identity and focal length are found from the first second, and refined by a thread beside while frames go on.
"""

import contextlib
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from recon4d.files import InputError
from recon4d.formats import camera_stream, track_stream
from recon4d.formats.camera_stream import CameraFrame
from recon4d.formats.landmarks import read_landmarks, to_dense, to_ibug, to_irises
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from recon4d.stages import NOBODY, Meter, lines_of, newest, stopped_by_signal, until_closed, while_read, write_line
from torch import Tensor

from flame_encoder.report import Log, unsaid
from flame_encoder.tracker import live
from flame_encoder.tracker.observations import FrameFaces, check_faces, of_one
from flame_encoder.tracker.points import Rig
from flame_encoder.tracker.problem import Identity, Options, Problem

FIRST = 1.0  # seconds of frames that show a face until identity and focal length are known
CALIBRATED = 20  # frames of those, at most
KEYS = 40  # frames that they are refined from
KEY_EVERY = 0.4  # seconds
REFINED = (2.0, 5.0, 10.0, 20.0)  # seconds after the first second
STEPS = (12, 5)  # of the solver: at first, and when refined
WRONG = 0.12  # error of a face that no head explains, share of the distance between the eyes
SECONDS_TO_READ = (5.0, 30.0)  # at the end: so long the camera's files are kept for who reads them, as in prep-faces


class Key(NamedTuple):
    """A frame to refine from: what it shows, its unknowns (P,), its time."""

    shown: FrameFaces
    unknowns: np.ndarray
    time: float


@dataclass(eq=False)
class Keys:
    """Frames to refine from, spread over the time so far: never more than `KEYS`. rng decides which go."""

    kept: list[Key]
    rng: np.random.Generator
    passed: int = 0
    last: float = -np.inf

    def offer(self, key: Key) -> None:
        """Take a frame now and then; where there are enough, one at random goes (Vitter's algorithm R)."""
        if key.time - self.last < KEY_EVERY:
            return
        self.passed, self.last = self.passed + 1, key.time
        place = len(self.kept) if len(self.kept) < KEYS else int(self.rng.integers(self.passed))
        if place < KEYS:
            self.kept[place : place + 1] = []
            self.kept.append(key)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the person: unknowns g (S + 1,) and what one frame is solved with."""

    g: Tensor
    solver: live.Solver
    who: live.Person
    one: Problem  # of one frame, for its sizes


def follow(
    lines: TextIO,
    out: TextIO,
    head: HeadModel,
    *,
    focal: float | None = None,
    identity: Identity | None = None,
    iterations: int = STEPS[0],
    log: Log = unsaid,
) -> None:
    """Read a camera's lines, write a track stream of the same frames, until they end or nobody reads.

    Args:
        lines: `recon4d.formats.camera_stream`. out: gets `recon4d.formats.track_stream`, with what the lines say.
        head: with dense landmarks. focal: pixels of the camera's pictures; estimated when None.
        identity: what is known of the person.

    Raises:
        InputError: lines that are none of a camera, that stop without an end, or have no frame; nobody reads.
    """
    if head.dense is None:
        raise InputError("--stream - needs MediaPipe's points on the head model; run flame-encoder check-model --embed")
    torch.set_num_threads(1)  # frames are small, and the other stages need the other cores
    with stopped_by_signal():
        why, ended = "flame-encoder track was stopped", False
        incoming = camera_stream.records(lines_of(lines), "the camera's lines", camera_stream.SOURCE)
        first = next(incoming, None)
        if first is None:
            raise InputError(
                "no line came; prep-faces camera must come before this command in the pipe, see what it says"
            )
        camera = camera_stream.read_header(*first)
        try:
            options = Options(focal=focal, identity=identity, iterations=iterations)
            with while_read(out), contextlib.closing(_records(incoming, camera, head, options, log)) as records:
                for record in records:
                    write_line(out, record)
                    if "end" in record:
                        why, ended = str(record["end"]), True
        except KeyboardInterrupt:
            ended = True
            with contextlib.suppress(InputError):
                write_line(out, camera_stream.end(why))
        except InputError as error:
            if str(error) != NOBODY or not (camera.folder / camera_stream.OVER).exists():
                raise
            why, ended = "the others have ended", True
        if not ended:
            why = "the camera's lines stopped without an end: prep-faces camera has died"
            with contextlib.suppress(InputError):
                write_line(out, camera_stream.end(why))
        log(f"{why}; flame-encoder track has ended")
        until_closed(out, SECONDS_TO_READ[not camera.live], camera.folder / camera_stream.OVER)


def _records(
    incoming: Iterator[tuple[dict[str, Any], str]],
    camera: camera_stream.Header,
    head: HeadModel,
    options: Options,
    log: Log,
) -> Generator[dict[str, Any]]:
    """The lines to write."""
    tracker = _Tracker(Rig(head), options, camera, log)
    meter = Meter()
    try:
        for (record, where), dropped in newest(incoming, patient=not camera.live):
            if "end" in record:
                yield record
                return
            begin = time.perf_counter()
            shown = camera_stream.read_frame(record, where)
            answer, header = tracker.take(shown)
            if header is not None:
                yield header
            if answer is None:
                meter = Meter()  # what was dropped while the person was measured is not counted
                continue
            meter.add(time.perf_counter() - begin, dropped)
            stages = {**shown.said.get("stages", {}), "track": meter.figures()}
            yield track_stream.frame(answer, **{**shown.said, "time": shown.time, "stages": stages})
    finally:
        if tracker.refining is not None:  # a thread that computes while the process ends would abort it
            tracker.refining.join()


class _Tracker:
    """What goes on from frame to frame."""

    def __init__(self, rig: Rig, options: Options, camera: camera_stream.Header, log: Log):
        self.rig, self.options, self.log, self.live = rig, options, log, camera.live
        self.folder, self.side, self.fps = camera.folder, camera.side, camera.fps
        self.begin()

    def begin(self) -> None:
        """Forget the person."""
        self.known: Known | None = None
        self.gathered: list[tuple[float, FrameFaces]] = []
        self.last = self.before = np.zeros(0)
        self.follows = False
        self.keys = Keys([], np.random.default_rng(0))
        self.since, self.refined = 0.0, 0
        self.refining: threading.Thread | None = None
        self.better: Tensor | None = None
        self.asked = self._asked()

    def _asked(self) -> float | None:
        """When somebody asked to begin anew."""
        try:
            return (self.folder / camera_stream.AGAIN).stat().st_mtime
        except OSError:
            return None

    def take(self, frame: CameraFrame) -> tuple[Track | None, dict[str, Any] | None]:
        """A frame as a track of one frame, None before the person is known; a header line where there is a new one."""
        if self._asked() != self.asked or (self.known is not None and frame.size != self.known.one.seen.image_size):
            self.begin()
            self.log("the person is measured anew")
        shown = self._faces(frame)
        if self.known is None:
            if shown is None:
                return None, None
            self.gathered.append((frame.time, shown))
            if frame.time - self.gathered[0][0] < FIRST:
                return None, None
            self.known = self._first()
            self.since = frame.time
            return None, self._header(frame)
        header = self._take_up(frame)
        known = self.known
        error = float("nan")
        if shown is not None:
            points = np.concatenate([shown.dense[0, known.solver.indices], shown.irises[0]])  # type: ignore[index]
            unit = float(of_one([shown], np.array([0]), self.fps).unit[0])
            expected = self.last + live.GOES_ON * (self.last - self.before) if self.follows else None
            begin = expected
            if begin is None:
                begin = Problem(self.rig, of_one([shown], np.array([0]), self.fps), self.options).start()[1][0].numpy()
            steps = live.STEPS if self.follows else live.FIRST_STEPS
            believed = known.solver.believed(shown.dense[0])  # type: ignore[index]
            found, error = live.solve(known.solver, known.who, points, unit, begin, expected, believed, steps)
            error /= unit
            self.before, self.last = (self.last if self.follows else found), found
        self.follows = shown is not None and error < WRONG
        if self.follows and shown is not None:
            self.keys.offer(Key(shown, self.last, frame.time))
            self._refine(frame.time)
        track = known.one.as_track(known.g, torch.from_numpy(self.last)[None])
        named = replace(track, names=np.array([frame.name]), valid=np.array([self.follows]))
        return replace(named, Ks=self._K(frame)[None], image_size=np.array([self.side] * 2)), header

    def _faces(self, frame: CameraFrame) -> FrameFaces | None:
        """The face in pixels of the camera's picture; None where there is none, or its file is gone again."""
        if not frame.face:
            return None
        try:
            points = read_landmarks(self.folder / camera_stream.LANDMARKS / f"{Path(frame.name).stem}.npy")
        except InputError:
            return None
        dense = to_dense(points) if len(points) else None
        if dense is None:
            return None
        left, top, side = frame.window
        scale, corner = side / self.side, np.array([left, top])
        placed = [part[:1, :, :2] * scale + corner for part in (to_ibug(points), to_irises(points), dense)]
        return FrameFaces(frame.name, placed[0], placed[1], frame.size, placed[2])

    def _first(self) -> Known:
        """Identity and focal length from the frames gathered."""
        chosen = np.unique(np.linspace(0, len(self.gathered) - 1, CALIBRATED).round().astype(int))
        shown = [self.gathered[i][1] for i in chosen]
        seen = of_one(shown, np.zeros(len(shown), int), self.fps * len(shown) / max(len(self.gathered), 1))
        check_faces(seen, Path("the camera's frames"))
        problem = Problem(self.rig, seen, self.options)
        g, q, _ = problem.solve(*problem.start(), self.options.iterations)
        self.before, self.last, self.follows = q[-1].numpy(), q[-1].numpy(), False
        self.gathered = []
        return self._known(g, shown[-1])

    def _known(self, g: Tensor, shown: FrameFaces) -> Known:
        one = Problem(self.rig, of_one([shown], np.array([0]), self.fps), self.options)
        return Known(g, live.Solver.of(one), live.person(self.rig, g), one)

    def _refine(self, now: float) -> None:
        """Begin to refine where it is time; the result is taken up with a later frame."""
        if self.refined >= len(REFINED) or self.refining is not None or now - self.since < REFINED[self.refined]:
            return
        assert self.known is not None
        kept = self.keys.kept  # in the order of time
        shown = [key.shown for key in kept]
        q = torch.from_numpy(np.stack([key.unknowns for key in kept]))
        spacing = (kept[-1].time - kept[0].time) / max(len(kept) - 1, 1)
        seen = of_one(shown, np.zeros(len(shown), int), 1 / max(spacing, 1e-2))
        g, self.better = self.known.g, None

        def work() -> None:
            self.better = Problem(self.rig, seen, self.options).solve(g, q, STEPS[1])[0]

        self.refining = threading.Thread(target=work, name="refine", daemon=True)
        self.refining.start()
        self.refined += 1
        if not self.live:
            self.refining.join()

    def _take_up(self, frame: CameraFrame) -> dict[str, Any] | None:
        """The header line of a refined person, once."""
        if self.refining is None or self.refining.is_alive():
            return None
        better, self.refining, self.better = self.better, None, None
        if better is None or self.known is None:
            return None
        self.known = replace(self.known, g=better, who=live.person(self.rig, better))
        return self._header(frame)

    def _K(self, frame: CameraFrame) -> np.ndarray:
        """(3, 3) intrinsics of a frame's picture."""
        assert self.known is not None
        left, top, side = frame.window
        focal, scale = float(self.known.g[-1].exp()), self.side / side
        x, y = ((length / 2 - low) * scale for length, low in zip(frame.size, (left, top)))
        return np.array([[focal * scale, 0, x], [0, focal * scale, y], [0, 0, 1]], np.float32)

    def _header(self, frame: CameraFrame) -> dict[str, Any]:
        assert self.known is not None
        track = self.known.one.as_track(self.known.g, torch.from_numpy(self.last)[None])
        whole = replace(track, K=self._K(frame), image_size=np.array([self.side] * 2), fps=self.fps)
        return track_stream.header(whole, folder=str(self.folder), live=self.live, measured=self.refined)
