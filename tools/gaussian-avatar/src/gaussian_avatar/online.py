"""Online training: the avatar grows while its frames arrive (RGBAvatar, section 3.4 and online.yaml)."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from recon4d import InputError, settings
from recon4d.cameras import Camera
from recon4d.cli import pick_device, progress_bar
from recon4d.files import parse_json, write_text
from recon4d.formats import track_stream
from recon4d.head import HeadModel
from recon4d.runs import claim
from recon4d.stages import lines_of, stopped_by_signal

from gaussian_avatar import checkpoint, learners, live, model_file, motions, running_mean, sampling, streams
from gaussian_avatar.avatars import Avatar
from gaussian_avatar.backgrounds import random_backgrounds
from gaussian_avatar.checkpoint import CHECKPOINT
from gaussian_avatar.config import Config, config_file
from gaussian_avatar.sampling import Frame, Pools
from gaussian_avatar.streams import Stream
from gaussian_avatar.training import COMMAND, log_scalars, tensorboard_writer


@dataclass(frozen=True)
class Result:
    """What a stream's run reports."""

    gaussians: int
    frames: int  # that arrived
    used: int  # of these, in a batch at least once
    kept: int  # in the pools at the end
    images: int  # learned from while frames arrived
    post_images: int  # and after
    stream_seconds: float
    seconds: float
    images_per_second: float
    unseen: int
    folder: str


def start(
    folder: str | Path,
    data: str | Path | None = None,
    config: Config | str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    stream: TextIO | None = None,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    video_fps: float = 25.0,
    images_per_frame: float | None = None,
    repeat: int = 1,
    post_steps: int | None = None,
    head_model: str | Path | None = None,
    split: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    tensorboard: bool = False,
    view: bool = False,
    host: str = "127.0.0.1",
    port: int = 8080,
    open_browser: bool = False,
    log: Callable[[str], None] = print,
) -> Result | live.Result:
    """Train an avatar while the frames of a clip or of a tracker arrive; see `train` for what is written.

    A stream of `prep-faces camera` and `flame-encoder track --stream -` has its pictures with it: see `live.run`.

    Args:
        folder: the run's, `<output_dir>/<subject>/<work_name>`.
        data: the subject's, with images and a track; None is the one of the same name in the settings' `data_dir`.
        config: a preset (`online`, which None is too, or `cpu-online`), a YAML file, or settings.
        overrides: `key=value` strings that replace single settings.
        stream: lines of a track stream (`recon4d.formats.track_stream`), instead of the track in `data`.
        images, masks: folders of the stream's pictures, and of greyscale masks for those without alpha.
        video_fps: frames of a clip arrive at this pace. images_per_frame: by work instead, so many are learned from
            for each frame that arrives.
        repeat: how often a clip is shown. post_steps: steps after the end.
        head_model: a FLAME file. split: `train`, `test` or `all`. seed: of all random numbers. None: by `config`.
        device: cpu, cuda, cuda:N, or auto.
        resume: go on with the run's avatar and its own settings.
        force: replace what an earlier run wrote into the folder.
        tensorboard: write TensorBoard events too.
        view: show camera and avatar in a browser, of a camera's stream. host, port, open_browser: of the page.

    Raises:
        InputError: settings, frames or a checkpoint that cannot be used; options that do not fit each other; an
            occupied folder; too little memory.
    """
    if stream is None and (images or masks):
        raise InputError("--images and --masks are for the frames of --stream; a subject's folder has its own")
    if view and (stream is None or images or masks or images_per_frame or post_steps):
        raise InputError("--view shows a camera's frames (--stream), which bring their pictures and their pace")
    if stream is not None and (split or repeat > 1):
        raise InputError("--split and --repeat need a clip whose end is known; leave them away with --stream")
    folder = Path(folder)
    replaced = {"images": images, "masks": masks, "post_steps": post_steps}
    chosen = checkpoint.run_config(
        folder,
        data,
        config,
        "online",
        (*overrides, *(f"online.{key}={value}" for key, value in replaced.items() if value is not None)),
        resume,
        force,
        head_model=None if head_model is None else str(head_model),
        split="all" if stream is not None and not resume else split,
        seed=seed,
    )
    place = pick_device(device)
    head = motions.load_head(chosen.head_model)
    subject = Path(data or Path(chosen.data_dir) / folder.parent.name)
    if resume:
        checkpoint.check(folder / CHECKPOINT, chosen, head, 0)
    inputs = [subject, images, masks, head_model, config_file(config)]
    with claim(folder, COMMAND, force=force, resume=resume, inputs=inputs) as claimed:
        resume = resume and checkpoint.can_resume(claimed, log)
        with stopped_by_signal(), _page(view, host, port, folder, open_browser, log) as page:
            lines, of_camera = (None, False) if stream is None else _begun(stream)
            if stream is not None and lines is not None and (view or of_camera):
                if images or masks or images_per_frame or post_steps:
                    raise InputError(
                        "a camera's stream brings its pictures and its pace; leave --images, --masks, "
                        "--images-per-frame and --post-steps away"
                    )
                settings.write(folder / "config.yaml", chosen)
                tracked = track_stream.read_all(lines, stream.name)
                return live.run(chosen, head, tracked, folder, place, page, resume, log, claimed.keep)
        if lines is None:
            source = streams.from_folder(subject, head, chosen, place, repeat, log)
        else:
            source = streams.from_pipe(lines, subject, head, chosen, getattr(stream, "name", None))
        if images_per_frame is not None:
            arrivals = streams.in_step(source.frames, images_per_frame / chosen.train.batch_size)
        else:
            paced = streams.paced(source.arrivals, video_fps) if stream is None else source.arrivals
            arrivals = streams.as_they_come(paced, source.pose)
        settings.write(folder / "config.yaml", chosen)
        return train(chosen, head, arrivals, source, folder, place, resume, tensorboard, log, claimed.keep)


def _page(
    view: bool, host: str, port: int, folder: Path, open_browser: bool, log: Callable[[str], None]
) -> contextlib.AbstractContextManager[live.Page | None]:
    """The page of a live run, where one is wanted."""
    if not view:
        return contextlib.nullcontext()
    from gaussian_avatar import live_page  # imports a web server

    return live_page.opened(host, port, folder, open_browser, log)


def _begun(stream: TextIO) -> tuple[Iterator[str], bool]:
    """The lines of a stream, and whether they are a camera's: then the first names the folder of its pictures."""
    # The stages before need seconds to begin: enough to get ready.
    threading.Thread(target=learners.warm_up, name="warm up", daemon=True).start()
    lines = lines_of(stream)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{stream.name} is empty: the command that should write it ended first; see what it says")
    try:
        record = parse_json(first, "the first line")
    except InputError:  # said where all lines are read
        record = None
    if isinstance(record, dict) and "end" in record:
        raise InputError(f"{record['end']} before a frame came; see what the commands before this one say")
    return chain([first], lines), isinstance(record, dict) and isinstance(record.get("folder"), str)


def train(
    config: Config,
    head: HeadModel,
    arrivals: Iterator[list[tuple[Camera, Frame]]],
    stream: Stream,
    output: Path,
    device: torch.device,
    resume: bool = False,
    tensorboard: bool = False,
    log: Callable[[str], None] = print,
    keep: Callable[[], None] = lambda: None,
) -> Result:
    """Learn beside a stream until it ends, then for `online.post_steps` more.

    A stream's end is not known, so rates cannot fall towards it. Instead, what is written is a running mean of the
    avatar over its last steps, about 1 / (1 - `online.average`) of them (Polyak and Juditsky 1992).

    Writes `model.ply` and `track.npz` (every `train.preview_seconds` too), `checkpoint.pt`, `speed.txt`; `sample.txt`
    has a line for each step with the indices of its frames, `step2frame.txt` the index of the newest one then.

    Args:
        arrivals: before each step, the frames of the stream that have arrived since the last one; at least one before
            the first.
        resume: go on with the avatar of `checkpoint.pt`. The pools begin empty: their frames are not stored.
        keep: called when there is a checkpoint.

    Raises:
        InputError: no frame came, or what the stream raises.
    """
    for name in ("refine_pose", "exposure"):
        if getattr(config.train, name):
            raise InputError(f"train.{name} is for train-offline, which knows all frames; set it to false")
    first = next(arrivals, None)
    if first is None:
        raise InputError(f"{stream.name} ended before a tracked frame came; see what the tracker says")
    camera, frame = first[0]
    learner = learners.new(config, head, camera, len(frame.inputs), 0, device)
    log(f"{len(learner.avatar)} Gaussians, frames of {camera.width}x{camera.height}")
    pools = Pools(config.online, np.random.default_rng((config.seed, 3)))
    before, seconds = 0, 0.0
    if resume:
        before, seconds = checkpoint.load_checkpoint(output / CHECKPOINT, learner)
        log(f"resumed after {before} images")
    shown = running_mean.copy_of(learner.avatar) if config.online.average else learner.avatar
    every, preview = config.train.checkpoint_every, config.train.preview_seconds
    learned, used, streamed, stream_seconds = before, 0, before, 0.0
    writer = tensorboard_writer(output) if tensorboard else None
    batches = _batches(pools, chain([first], arrivals), config.train.batch_size, config.online.post_steps)
    with (
        open(output / "sample.txt", "a") as samples,
        open(output / "step2frame.txt", "a") as newest,
        progress_bar("frames", stream.count) as show,
    ):
        started = previewed = time.perf_counter()
        for step, (frames, post) in enumerate(batches):
            search = learners.searched(step)
            background = random_backgrounds(learned, len(frames), config.seed)
            terms = learners.step(learner, learners.batch_of(frames, background, device), learned, post, search)
            if config.online.average:
                running_mean.follow(shown, learner.avatar, running_mean.share(config.online.average, step))
            used += sum(not frame.used for frame in frames)
            for frame in frames:
                frame.used = True
            samples.write(" ".join(str(frame.index) for frame in frames) + "\n")
            newest.write(f"{pools.arrived - 1}\n")
            learned += len(frames)
            now = time.perf_counter()
            speed = (learned - before) / (now - started)
            if post == 0:
                streamed, stream_seconds = learned, now - started
            if step % 20 == 0:
                show(pools.arrived, f"loss {float(sum(terms.values())):.4f}, {speed:.0f} images/s")
                if writer is not None:
                    log_scalars(writer, terms, speed, learned)
            if learned // every > (learned - len(frames)) // every:
                checkpoint.save_checkpoint(output / CHECKPOINT, learner, learned, seconds + now - started)
                keep()
                loss = float(sum(terms.values()))
                log(f"{pools.arrived} frames, {learned} images: loss {loss:.4f}, {speed:.0f} images/s")
            if preview and now - previewed > preview:
                publish(output, shown, stream)
                previewed = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - started
    if writer is not None:
        writer.close()
    checkpoint.save_checkpoint(output / CHECKPOINT, learner, learned, seconds + elapsed)
    unseen = learners.finish(replace(learner, avatar=shown))
    publish(output, shown, stream)
    speed = (learned - before) / max(elapsed, 1e-9)
    write_text(output / "speed.txt", f"Training FPS: {speed:.2f}\n")
    return Result(
        gaussians=len(learner.avatar),
        frames=pools.arrived,
        used=used,
        kept=len(pools),
        images=streamed - before,
        post_images=learned - streamed,
        stream_seconds=stream_seconds,
        seconds=elapsed,
        images_per_second=speed,
        unseen=unseen,
        folder=str(output),
    )


def publish(output: Path, avatar: Avatar, stream: Stream) -> None:
    """What `view`, `metrics` and `render` read, the track first: the avatar is never newer than its frames."""
    stream.track().write(output / "track.npz")
    model_file.write_ply(output / "model.ply", avatar)


def _batches(
    pools: Pools, arrivals: Iterable[list[tuple[Camera, Frame]]], size: int, post_steps: int
) -> Iterator[tuple[list[Frame], float]]:
    """The frames of each step, and how far the post-process has come (0 to 1): of the stream, then of all it left."""
    for arrived in arrivals:
        for _, frame in arrived:
            sampling.add(pools, frame)
        yield sampling.draw(pools, size), 0.0
    kept = [*pools.reservoir, *pools.local]
    for step in range(post_steps):
        chosen = pools.rng.choice(len(kept), min(size, len(kept)), replace=False)
        yield [kept[i] for i in chosen], (step + 1) / post_steps
