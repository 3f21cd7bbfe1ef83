"""Offline training: batches of images against batches of deformed Gaussians (RGBAvatar, section 3 and offline.yaml)."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recon4d.cli import progress_bar
from recon4d.files import write_text
from recon4d.head import HeadModel
from torch import Tensor

from gaussian_avatar import capture as captures
from gaussian_avatar import learner as learners
from gaussian_avatar import model_file
from gaussian_avatar.avatar import View
from gaussian_avatar.capture import Capture
from gaussian_avatar.config import Config
from gaussian_avatar.learner import CHECKPOINT, Batch
from gaussian_avatar.motion import Motion

COLOUR_STEPS = 20  # after the first pass, colours are initialised every so many steps only: it doubles a step's cost


@dataclass(frozen=True)
class Result:
    """What a run reports."""

    gaussians: int
    images: int
    seconds: float
    images_per_second: float
    unseen: int


def batch_frames(step: int, batch_size: int, n: int, seed: int) -> np.ndarray:
    """Positions (batch_size,) of one step in the endless sequence of shuffled passes over n frames.

    A function of the step alone, so that a resumed run goes on with the frames an uninterrupted one would have.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    order = {epoch: np.random.default_rng((seed, 1, epoch)).permutation(n) for epoch in np.unique(places // n)}
    return np.array([order[place // n][place % n] for place in places])


def backgrounds(step: int, batch_size: int, seed: int) -> Tensor:
    """One random colour (batch_size, 3) per image of a step."""
    return torch.from_numpy(np.random.default_rng((seed, 2, step)).random((batch_size, 3), np.float32))


def train(
    config: Config,
    capture: Capture,
    motion: Motion,
    head: HeadModel,
    frames: np.ndarray,
    images: Tensor | None,
    output: Path,
    device: torch.device,
    resume: bool = False,
    tensorboard: bool = False,
    log: Callable[[str], None] = print,
) -> Result:
    """Train an avatar on the chosen frames; write `model.ply`, `speed.txt` and `checkpoint.pt` into `output`.

    `model.ply` is rewritten every `train.preview_seconds`, so that it can be watched.

    Args:
        images: (n, H, W, 4) uint8 of the frames, or None to read them as they are needed.
        resume: go on from `checkpoint.pt`.

    Raises:
        InputError: unusable images, a checkpoint that does not fit.
    """
    batch_size, total, every = config.train.batch_size, config.train.iterations, config.train.checkpoint_every
    view = View(motion.world_to_camera, motion.K, capture.width, capture.height)
    corrections = len(frames) if config.train.refine_pose else 0
    learner = learners.new(config, head, view, motion.inputs.shape[1], corrections, device)
    first, seconds = 0, 0.0
    if resume:
        first, seconds = learners.load_checkpoint(output / CHECKPOINT, learner)
        log(f"resumed at image {first * batch_size}")
    log(
        f"{len(learner.avatar)} Gaussians, {len(frames)} training frames of {capture.width}x{capture.height}, "
        f"{total} images"
    )
    vertices, inputs = motion.vertices[frames].to(device), motion.inputs[frames].to(device)
    first_pass = -(-len(frames) // batch_size)  # steps until every frame has been seen once
    steps = range(first, -(-total // batch_size))
    writer = tensorboard_writer(output) if tensorboard else None
    with progress_bar("training", total) as show:
        started = previewed = time.perf_counter()
        for step, (chosen, pixels, background) in zip(steps, _batches(config, capture, frames, images, steps, device)):
            done = step * batch_size
            batch = Batch(vertices[chosen], inputs[chosen], pixels, background, chosen)
            unpainted = slice(None) if step < first_pass or step % COLOUR_STEPS == 0 else None
            terms = learners.step(learner, batch, done, done / total, unpainted)

            done += batch_size
            last = step + 1 == steps.stop
            now = time.perf_counter()
            elapsed = now - started
            speed = (step + 1 - first) * batch_size / elapsed
            if step % 20 == 0 or last:
                loss = float(sum(terms.values()))
                show(min(done, total), f"loss {loss:.4f}, {speed:.0f} images/s")
                if writer is not None:
                    log_scalars(writer, terms, speed, done)
            if not last and done // every > (done - batch_size) // every:
                learners.save_checkpoint(output / CHECKPOINT, learner, step + 1, seconds + elapsed)
                log(f"image {done}: loss {float(sum(terms.values())):.4f}, {speed:.0f} images/s")
            if config.train.preview_seconds and now - previewed > config.train.preview_seconds:
                model_file.write_ply(output / "model.ply", learner.avatar)
                previewed = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += time.perf_counter() - started
    if writer is not None:
        writer.close()

    images_done = max(steps.stop, first) * batch_size
    learners.save_checkpoint(output / CHECKPOINT, learner, max(steps.stop, first), seconds)
    unseen = learners.finish(learner)
    model_file.write_ply(output / "model.ply", learner.avatar)
    result = Result(
        gaussians=len(learner.avatar),
        images=images_done,
        seconds=seconds,
        images_per_second=images_done / max(seconds, 1e-9),
        unseen=unseen,
    )
    write_text(output / "speed.txt", f"Training FPS: {result.images_per_second:.2f}\n")
    return result


def tensorboard_writer(output: Path):
    """Writes events into the run's folder."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(output))


def log_scalars(writer, terms: dict[str, Tensor], speed: float, images: int) -> None:
    """The loss terms, their sum and the speed after so many images."""
    for name, value in (terms | {"total": sum(terms.values())}).items():
        writer.add_scalar(f"loss/{name}", float(value), images)
    writer.add_scalar("images_per_second", speed, images)


def _batches(
    config: Config,
    capture: Capture,
    frames: np.ndarray,
    stored: Tensor | None,
    steps: range,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Positions (B,), images (B, H, W, 4) uint8 and backgrounds (B, 3) of each step, on the device, one step ahead."""
    size, seed = config.train.batch_size, config.seed
    pin = device.type == "cuda"

    def fetch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        positions = batch_frames(step, size, len(frames), seed)
        chosen = torch.from_numpy(positions)
        if stored is None:
            images = torch.from_numpy(np.stack(list(captures.read_images(capture, frames[positions]))))
        else:
            images = stored[chosen]
        batch = (chosen, images, backgrounds(step, size, seed))
        return tuple(x.pin_memory().to(device, non_blocking=True) for x in batch) if pin else batch

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(fetch, steps.start) if len(steps) else None
        for step in steps:
            batch = ahead.result()
            ahead = pool.submit(fetch, step + 1)
            yield batch
