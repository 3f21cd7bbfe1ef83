"""Training beside a camera: frames come from the stages before, the avatar is shown beside them, and learns meanwhile.

One thread takes what has come and shows the newest frame and the avatar in its pose, another learns from what is kept.
Nothing grows: frames that wait, frames that are kept, and the track that is written all have a most.
"""

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError, threads
from recon4d.formats import track_stream
from recon4d.formats.camera_stream import AGAIN, OVER
from recon4d.formats.track import Track, join
from recon4d.head import HeadModel
from recon4d.stages import Inbox, Meter, stand_back

from gaussian_avatar import avatars, checkpoint, learners, memory, model_file, motions, running_mean, sampling
from gaussian_avatar.avatars import Avatar
from gaussian_avatar.backgrounds import random_backgrounds
from gaussian_avatar.checkpoint import CHECKPOINT
from gaussian_avatar.config import Config
from gaussian_avatar.learners import Learner
from gaussian_avatar.live_frames import Arrival, arrivals, posed, unpacked
from gaussian_avatar.sampling import Frame, Pools

WAITING = 8  # frames that may wait to be taken; then the oldest is dropped
SWITCH = 5e-4  # seconds after which Python lets another thread go on: showing and serving are not to wait for learning
TRACKED = 1500  # of the last frames in track.npz
TRACKER_DIED = "the tracker's lines stopped without an end: flame-encoder track has died"
TIDYING = 5.0  # seconds between two returns of freed memory
RECOGNISABLE = 60  # images learned from, after which a face is one's own


@dataclass(frozen=True, eq=False)
class Seen:
    """What there is to see: camera picture and avatar (S, S, 3) uint8, None before there is one; figures by stage."""

    camera: np.ndarray
    avatar: np.ndarray | None
    figures: dict[str, Any]


@dataclass
class Wishes:
    """What whoever watches asks for; set from other threads. stop: end and save."""

    learn: bool = True
    save: bool = False
    again: bool = False
    stop: bool = False


@dataclass(frozen=True)
class Page:
    """Who watches. show: gets what there is to see with each new frame. wishes: what is asked for."""

    show: Callable[[Seen], None]
    wishes: Wishes


@dataclass(frozen=True)
class Result:
    """What a live run reports. latency_ms: from the camera to the shown picture, median and 95th percentile."""

    gaussians: int
    frames: int
    dropped: int
    images: int
    seconds: float
    images_per_second: float
    shown_per_second: float
    latency_ms: tuple[float, float]
    first_face_seconds: float | None  # from the first line until the avatar was shown after RECOGNISABLE images
    stages: dict[str, Any]  # figures at the end
    ended: str
    folder: str


@dataclass(eq=False)
class _State:
    """An avatar that learns, and what it learns from; another one after `start again`."""

    learner: Learner
    shown: Avatar  # the running mean of the learner's
    pools: Pools
    origin: np.ndarray
    images: int = 0
    steps: int = 0
    seconds: float = 0.0  # spent on learning
    tracks: deque[Track] = field(default_factory=lambda: deque(maxlen=TRACKED))


@dataclass(eq=False)
class _Session:
    """What both threads share. lock: guards the state's pools and tracks, and which state it is."""

    config: Config
    head: HeadModel
    device: torch.device
    page: Page
    folder: Path  # the ring
    inbox: Inbox[Arrival | str | None]
    log: Callable[[str], None]
    resumed: Path | None
    began: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    state: _State | None = None
    error: BaseException | None = None
    ended: str = ""
    lost: int = 0
    frames: int = 0
    showing: Meter = field(default_factory=Meter)
    learning: Meter = field(default_factory=Meter)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    first_face: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def run(
    config: Config,
    head: HeadModel,
    lines: Iterator[track_stream.Line],
    output: Path,
    device: torch.device,
    page: Page | None = None,
    resume: bool = False,
    log: Callable[[str], None] = print,
    keep: Callable[[], None] = lambda: None,
) -> Result:
    """Learn beside a camera until it ends, is stopped, or a stage before dies; the avatar is an ordinary run.

    Writes `model.ply` and `track.npz` every `train.preview_seconds`, and with `checkpoint.pt` at the end.

    Args:
        lines: of the tracker; the first has the folder of the pictures.
        page: who watches; None: nobody.
        resume: go on with the avatar of `checkpoint.pt`.
        keep: called when there is something to keep.

    Raises:
        InputError: no frame of a face came.
    """
    first = next(lines, None)
    header = {} if first is None else first.said
    if not isinstance(header.get("folder"), str):
        raise InputError("the stream is not a camera's; pipe prep-faces camera through flame-encoder track to it")
    folder, patient = Path(str(header["folder"])), header.get("live") is False
    inbox = Inbox(arrivals(lines, folder), 1 if patient else WAITING, patient)
    page = page or Page(lambda seen: None, Wishes())
    session = _Session(config, head, device, page, folder, inbox, log, output if resume else None)
    sys.setswitchinterval(SWITCH)
    looking = threading.Thread(target=_look, args=(session,), name="show", daemon=True)
    learning = threading.Thread(target=_learn_on, args=(session, output, keep), name="learn", daemon=True)
    looking.start()
    learning.start()
    try:
        while learning.is_alive():
            learning.join(0.1)  # Ctrl-C gets through
    except KeyboardInterrupt:
        session.ended = "stopped"
    session.over.set()
    learning.join()
    if session.ended:
        with contextlib.suppress(OSError):  # the folder is the camera's, which may be gone
            (folder / OVER).write_text(session.ended)
    looking.join()
    error, state = session.error, session.state
    if error is not None and (state is None or not state.images or not isinstance(error, InputError)):
        raise error
    session.ended = session.ended or str(error or TRACKER_DIED)
    if state is None or not state.images:
        raise InputError(f"{session.ended} before a face was learned; see what prep-faces camera says")
    return _finish(session, state, output)


def _look(session: _Session) -> None:
    """Until nothing more comes: take frames, keep those that show the head, show the newest and the avatar."""
    threads.work_alone()
    try:
        while not session.over.is_set() and (taken := session.inbox.take(0.1)) is not None:
            newest: tuple[Arrival, Frame | None] | None = None
            for item in taken:
                if isinstance(item, Arrival):
                    newest = item, _take(session, item)
                elif item is None:
                    session.lost += 1
                else:
                    session.ended = item
            if newest is not None:
                _show(session, *newest)
    except BaseException as error:  # raised again by the other thread
        session.error = error
    session.over.set()


def _take(session: _Session, item: Arrival) -> Frame | None:
    """A frame of a head, kept to learn from; the first begins the avatar."""
    session.frames += 1
    state = session.state
    if state is None:
        if not item.matted:
            return None
        state = session.state = _begin(session, item)
    if not item.track.valid[0]:
        return None
    none = torch.empty(0)  # posed when it is needed
    frame = Frame(session.frames, str(item.track.names[0]), none, none, none, track=item.track, packed=item.packed)
    with session.lock:
        state.tracks.append(item.track)
        if item.matted and session.page.wishes.learn:
            sampling.add(state.pools, frame)
    return frame


def _show(session: _Session, item: Arrival, frame: Frame | None) -> None:
    begin = time.perf_counter()
    state, picture = session.state, None
    if state is not None and state.images and frame is not None:
        picture = _picture(state, posed(frame, session.head, state.origin))
        if session.first_face is None and state.images >= RECOGNISABLE:
            session.first_face = time.monotonic() - session.began
    age = max(0.0, time.time() - float(item.said.get("time", 0.0)))
    if picture is not None:
        session.latencies.append(age)
    session.showing.add(time.perf_counter() - begin)
    session.showing.dropped = session.inbox.dropped + session.lost
    stages, latest = item.said.get("stages", {}), list(session.latencies)[-25:]
    figures = {
        **(stages if isinstance(stages, dict) else {}),
        "show": session.showing.figures(),
        "learn": {"fps": session.learning.figures()["fps"], "images": 0 if state is None else state.images},
        "latency_ms": round(1e3 * float(np.median(latest))) if latest else None,
        "age_ms": round(1e3 * age),
        "name": str(item.track.names[0]),
    }
    session.figures = figures
    session.page.show(Seen(item.picture, picture, figures))


def _learn_on(session: _Session, output: Path, keep: Callable[[], None]) -> None:
    """Learn, behind what has to be in time: frames are to be shown, and the stages before need the cores too."""
    stand_back()
    threads.share(lambda _: None, threads.count())  # starts the threads that help: they stand back as well
    try:
        _learn_until_over(session, output, keep)
    except BaseException as error:  # raised again by the main thread
        session.error = error
    session.over.set()


def _learn_until_over(session: _Session, output: Path, keep: Callable[[], None]) -> None:
    """Until frames are at their end: learn, save now and then, do what is wished for."""
    wishes, saving, saved = session.page.wishes, None, time.monotonic()
    tidied = saved
    every = session.config.train.preview_seconds
    while not session.over.is_set():
        state = session.state
        if state is None or not wishes.learn or not len(state.pools):
            session.over.wait(0.02)
        else:
            _learn(session, state)
        if wishes.again:
            wishes.again, session.state = False, None
            (session.folder / AGAIN).write_text("")
            session.log("a new avatar begins")
        now = time.monotonic()
        due = bool(every) and now - saved > every
        if state is not None and state.images and (due or wishes.save) and (saving is None or not saving.is_alive()):
            if wishes.save:
                session.log(f"saved in {output}")
            wishes.save, saved = False, now
            saving = threading.Thread(target=_publish, args=(output, *_snapshot(session, state)), name="save")
            saving.start()
            keep()
        if now - tidied > TIDYING:
            memory.give_back()
            tidied = now
        if wishes.stop:
            session.ended = "stopped"
            break
    if saving is not None:
        saving.join()
    state = session.state
    if state is not None and not state.images and len(state.pools):  # it ended soon
        _learn(session, state)


def _begin(session: _Session, item: Arrival) -> _State:
    """An avatar before its first step, for pictures like this one."""
    config, head = session.config, session.head
    motions.check_track(item.track, head, "the tracker's lines", session.log)
    height, width = item.picture.shape[:2]
    origin = item.track.t[0]
    motion = motions.resized(motions.from_track(item.track, head, origin=origin), width, height)
    learner = learners.new(config, head, motion.camera, motion.inputs.shape[1], 0, session.device)
    session.log(f"{len(learner.avatar)} Gaussians, pictures of {width}x{height}")
    images, seconds = 0, 0.0
    if session.resumed is not None:
        images, seconds = checkpoint.load_checkpoint(session.resumed / CHECKPOINT, learner)
        session.resumed = None
        session.log(f"resumed after {images} images")
    pools = Pools(config.online, np.random.default_rng((config.seed, 3)))
    return _State(learner, running_mean.copy_of(learner.avatar), pools, origin, images, 0, seconds)


def _learn(session: _Session, state: _State) -> None:
    """One step."""
    config, learner = session.config, state.learner
    begin = time.perf_counter()
    with session.lock:
        frames = sampling.draw(state.pools, config.train.batch_size)
    frames = [unpacked(posed(frame, session.head, state.origin)) for frame in frames]
    background = random_backgrounds(state.images, len(frames), config.seed)
    batch = learners.batch_of(frames, background, session.device)
    learners.step(learner, batch, state.images, 0.0, learners.searched(state.steps))
    running_mean.follow(state.shown, learner.avatar, running_mean.share(config.online.average, state.steps))
    spent = time.perf_counter() - begin
    for _ in frames:
        session.learning.add(spent / len(frames))
    state.images += len(frames)
    state.steps += 1
    state.seconds += spent


@torch.no_grad()
def _picture(state: _State, frame: Frame) -> np.ndarray:
    """The avatar as a posed frame has it, before black: (S, S, 3) uint8."""
    learner, device = state.learner, state.shown.means.device
    assert frame.K is not None
    camera = replace(learner.camera, K=frame.K.to(device))
    splats, _ = avatars.deform(
        state.shown,
        learner.head,
        frame.vertices[None].to(device),
        frame.inputs[None].to(device),
        camera.world_to_camera,
        state.images >= learner.config.train.blend_start,
        learner.config.model.one_sided,
    )
    hidden = splats.opacities * state.shown.seen
    image, _ = avatars.rasterize(replace(splats, opacities=hidden), camera)
    picture: np.ndarray = (image[0].clamp(0, 1) * 255).round().byte().cpu().numpy()
    return picture


def _snapshot(session: _Session, state: _State) -> tuple[Avatar, list[Track]]:
    """What is to be written, sharing nothing with what goes on."""
    with session.lock:
        return running_mean.copy_of(state.shown), list(state.tracks)


def _publish(output: Path, avatar: Avatar, tracks: list[Track]) -> None:
    """What `view`, `render` and `export` read, the track first. Its identity is the last one measured."""
    replace(join(tracks), shape=tracks[-1].shape).write(output / "track.npz")
    model_file.write_ply(output / "model.ply", avatar)


def _finish(session: _Session, state: _State, output: Path) -> Result:
    """Write the run as it is, and what to report."""
    elapsed = time.monotonic() - session.began
    checkpoint.save_checkpoint(output / CHECKPOINT, state.learner, state.images, state.seconds)
    avatar, tracks = _snapshot(session, state)
    learners.finish(replace(state.learner, avatar=avatar))
    _publish(output, avatar, tracks)
    session.log(f"{session.ended}; the avatar is saved in {output}")
    times = sorted(session.latencies) or [0.0]
    return Result(
        gaussians=len(avatar),
        frames=session.frames,
        dropped=session.inbox.dropped + session.lost,
        images=state.images,
        seconds=round(elapsed, 1),
        images_per_second=round(state.images / max(elapsed, 1e-9), 1),
        shown_per_second=round(session.showing.frames / max(elapsed, 1e-9), 1),
        latency_ms=(round(1e3 * times[len(times) // 2]), round(1e3 * times[int(0.95 * (len(times) - 1))])),
        first_face_seconds=None if session.first_face is None else round(session.first_face, 1),
        stages=session.figures,
        ended=session.ended,
        folder=str(output),
    )
