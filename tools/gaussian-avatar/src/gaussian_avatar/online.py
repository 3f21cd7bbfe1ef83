"""Online training: the avatar grows while its frames arrive (RGBAvatar, section 3.4 and online.yaml)."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError
from recon4d.cli import progress_bar
from recon4d.files import write_text
from recon4d.head import HeadModel
from torch import Tensor

from gaussian_avatar import learner as learners
from gaussian_avatar import model_file, sampling
from gaussian_avatar.avatar import Avatar, View
from gaussian_avatar.config import Config
from gaussian_avatar.learner import CHECKPOINT, Batch
from gaussian_avatar.sampling import Frame, Pools
from gaussian_avatar.stream import Stream
from gaussian_avatar.training import log_scalars, tensorboard_writer

FIRST_STEPS = 4  # each of which initialises colours
COLOUR_STEPS = 10  # after them every so many do: what comes into view stays for longer


SOON = 0.05  # of the steps so far: the most that the mean reaches back, so that a young avatar is not held back


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


def train(
    config: Config,
    head: HeadModel,
    arrivals: Iterator[list[tuple[View, Frame]]],
    stream: Stream,
    output: Path,
    device: torch.device,
    resume: bool = False,
    tensorboard: bool = False,
    log: Callable[[str], None] = print,
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

    Raises:
        InputError: no frame came, or what the stream raises.
    """
    if config.train.refine_pose:
        raise InputError("train.refine_pose is for train-offline, which knows all frames; set it to false")
    first = next(arrivals, None)
    if first is None:
        raise InputError(f"{stream.name} ended before a tracked frame came; see what the tracker says")
    view, frame = first[0]
    learner = learners.new(config, head, view, len(frame.inputs), 0, device)
    log(f"{len(learner.avatar)} Gaussians, frames of {view.width}x{view.height}")
    pools = Pools(config.online, np.random.default_rng((config.seed, 3)))
    before, seconds = 0, 0.0
    if resume:
        before, seconds = learners.load_checkpoint(output / CHECKPOINT, learner)
        log(f"resumed after {before} images")
    shown = _copy(learner.avatar) if config.online.average else learner.avatar
    every, preview = config.train.checkpoint_every, config.train.preview_seconds
    done, used, streamed, stream_seconds = before, 0, before, 0.0
    writer = tensorboard_writer(output) if tensorboard else None
    batches = _batches(pools, chain([first], arrivals), config.train.batch_size, config.online.post_steps)
    with (
        open(output / "sample.txt", "a") as samples,
        open(output / "step2frame.txt", "a") as newest,
        progress_bar("frames", stream.count) as show,
    ):
        started = previewed = time.perf_counter()
        for step, (batch, post) in enumerate(batches):
            fresh = torch.tensor([not frame.used for frame in batch])
            unpainted = slice(None) if step < FIRST_STEPS or step % COLOUR_STEPS == 0 else None
            terms = learners.step(learner, _stack(batch, config.seed, done, device), done, post, unpainted)
            if config.online.average:
                follow(shown, learner.avatar, max(1 - config.online.average, 1 / (1 + SOON * step)))
            used += int(fresh.sum())
            for frame in batch:
                frame.used = True
            samples.write(" ".join(str(frame.index) for frame in batch) + "\n")
            newest.write(f"{pools.arrived - 1}\n")
            done += len(batch)
            now = time.perf_counter()
            speed = (done - before) / (now - started)
            if post == 0:
                streamed, stream_seconds = done, now - started
            if step % 20 == 0:
                show(pools.arrived, f"loss {float(sum(terms.values())):.4f}, {speed:.0f} images/s")
                if writer is not None:
                    log_scalars(writer, terms, speed, done)
            if done // every > (done - len(batch)) // every:
                learners.save_checkpoint(output / CHECKPOINT, learner, done, seconds + now - started)
                loss = float(sum(terms.values()))
                log(f"{pools.arrived} frames, {done} images: loss {loss:.4f}, {speed:.0f} images/s")
            if preview and now - previewed > preview:
                _publish(output, shown, stream)
                previewed = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - started
    if writer is not None:
        writer.close()
    learners.save_checkpoint(output / CHECKPOINT, learner, done, seconds + elapsed)
    unseen = learners.finish(replace(learner, avatar=shown))
    _publish(output, shown, stream)
    speed = (done - before) / max(elapsed, 1e-9)
    write_text(output / "speed.txt", f"Training FPS: {speed:.2f}\n")
    return Result(
        gaussians=len(learner.avatar),
        frames=pools.arrived,
        used=used,
        kept=len(pools),
        images=streamed - before,
        post_images=done - streamed,
        stream_seconds=stream_seconds,
        seconds=elapsed,
        images_per_second=speed,
        unseen=unseen,
    )


def _publish(output: Path, avatar: Avatar, stream: Stream) -> None:
    """What `view`, `metrics` and `render` read, the track first: the avatar is never newer than its frames."""
    stream.track().write(output / "track.npz")
    model_file.write_ply(output / "model.ply", avatar)


def _trained(avatar: Avatar) -> list[Tensor]:
    return [
        *(getattr(avatar, name).detach() for name in learners.TRAINED),
        *(x.detach() for x in avatar.mlp.parameters()),
    ]


def _copy(avatar: Avatar) -> Avatar:
    tensors = {name: getattr(avatar, name).detach().clone() for name in (*learners.TRAINED, "seen")}
    return replace(avatar, mlp=copy.deepcopy(avatar.mlp), **tensors)


def follow(shown: Avatar, avatar: Avatar, share: float) -> None:
    """Move what is shown this share of the way to the avatar; what has been seen for the first time is taken over."""
    with torch.no_grad():
        torch._foreach_lerp_(_trained(shown), _trained(avatar), share)
        fresh = avatar.seen & ~shown.seen
        shown.sh0[fresh] = avatar.sh0[fresh]
        shown.seen.copy_(avatar.seen)


def _batches(
    pools: Pools, arrivals: Iterable[list[tuple[View, Frame]]], size: int, post_steps: int
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


def _stack(frames: list[Frame], seed: int, done: int, device: torch.device) -> Batch:
    rng = np.random.default_rng((seed, 2, done))
    background = torch.from_numpy(rng.random((len(frames), 3), np.float32))
    vertices, inputs, pixels = (
        torch.stack([getattr(frame, name) for frame in frames]) for name in ("vertices", "inputs", "pixels")
    )
    return Batch(*(x.to(device) for x in (vertices, inputs, pixels, background)))
