"""Offline training: batches of images against batches of deformed Gaussians (RGBAvatar, section 3 and offline.yaml)."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from recon4d import settings
from recon4d.cli import pick_device, progress_bar
from recon4d.files import write_text
from recon4d.head import HeadModel
from recon4d.runs import batch_places, claim
from torch import Tensor

from gaussian_avatar import captures, checkpoint, framing, learners, memory, model_file, motions
from gaussian_avatar.backgrounds import random_backgrounds
from gaussian_avatar.captures import Capture
from gaussian_avatar.checkpoint import CHECKPOINT
from gaussian_avatar.config import Config, config_file
from gaussian_avatar.learners import Batch
from gaussian_avatar.motions import Motion

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COMMAND = "gaussian-avatar train"  # whose files a run's are, offline and online
LEAST_IMAGES, IMAGES_PER_FRAME = 4000, 12  # that a run learns from, where its settings do not say how many
COLOUR_STEPS = 20  # after the first pass, colours are initialised every so many steps only: it doubles a step's cost


@dataclass(frozen=True)
class Result:
    """What a run reports."""

    gaussians: int
    images: int
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
    head_model: str | Path | None = None,
    split: str | None = None,
    seed: int | None = None,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    tensorboard: bool = False,
    log: Callable[[str], None] = print,
) -> Result:
    """Train an avatar on a tracked capture; see `train` for what is written.

    Args:
        folder: the run's, `<output_dir>/<subject>/<work_name>`.
        data: the subject's, with images and a track; None is the one of the same name in the settings' `data_dir`.
        config: a preset (`offline`, which None is too, or `cpu-quick`), a YAML file, or settings.
        overrides: `key=value` strings that replace single settings.
        head_model: a FLAME file. split: `train`, `test` or `all`. seed: of all random numbers. None: by `config`.
        device: cpu, cuda, cuda:N, or auto.
        resume: go on from the run's last checkpoint, with its own settings.
        force: replace what an earlier run wrote into the folder.
        tensorboard: write TensorBoard events too.

    Raises:
        InputError: settings, a capture or a checkpoint that cannot be used; an occupied folder; too little memory.
    """
    folder = Path(folder)
    chosen = checkpoint.run_config(
        folder,
        data,
        config,
        "offline",
        overrides,
        resume,
        force,
        head_model=None if head_model is None else str(head_model),
        split=split,
        seed=seed,
    )
    place = pick_device(device)
    head = motions.load_head(chosen.head_model)
    source = Path(data or Path(chosen.data_dir) / folder.parent.name)
    wanted = chosen.data
    capture = captures.open_capture(source, None, log, wanted.frame_offset, wanted.pairs == "common", head)
    motions.check_track(capture.track, head, str(source), log)
    capture, motion = framing.fitted(capture, motions.from_track(capture.track, head), wanted)
    frames = captures.with_heads(capture, captures.choose_frames(capture, chosen, chosen.split, log), log)
    memory.check(chosen, capture, head, frames, place)
    if resume:
        checkpoint.check(folder / CHECKPOINT, chosen, head, len(frames))
    inputs = [source, head_model, config_file(config)]
    with claim(folder, COMMAND, force=force, resume=resume, inputs=inputs) as claimed:
        resume = resume and checkpoint.can_resume(claimed, log)
        settings.write(folder / "config.yaml", chosen)
        images = None
        if chosen.data.preload:
            images = captures.preload(capture, frames, pin=place.type == "cuda")
        else:
            captures.check_images(capture, frames)
        capture.track.write(folder / "track.npz")
        return train(
            chosen, capture, motion, head, frames, images, folder, place, resume, tensorboard, log, claimed.keep
        )


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
    keep: Callable[[], None] = lambda: None,
) -> Result:
    """Train an avatar on the chosen frames; write `model.ply`, `speed.txt` and `checkpoint.pt` into `output`.

    `model.ply` is rewritten every `train.preview_seconds`, so that it can be watched.

    Args:
        images: (n, H, W, 4) uint8 of the frames, or None to read them as they are needed.
        resume: go on from `checkpoint.pt`.
        keep: called when there is a checkpoint.

    Raises:
        InputError: unusable images, a checkpoint that does not fit.
    """
    batch_size, every = config.train.batch_size, config.train.checkpoint_every
    total = planned_images(config, len(frames))
    first_camera = motions.cameras_of(motion, frames[0])
    learner = learners.new(config, head, first_camera, motion.inputs.shape[1], len(frames), device)
    learned, seconds = 0, 0.0
    if resume:
        learned, seconds = checkpoint.load_checkpoint(output / CHECKPOINT, learner)
        log(f"resumed at image {learned}")
    log(
        f"{len(learner.avatar)} Gaussians, {len(frames)} training frames of {capture.width}x{capture.height}, "
        f"{total} images"
    )
    vertices, inputs = motion.vertices[frames].to(device), motion.inputs[frames].to(device)
    cameras = motions.cameras_of(motion, frames).to(device)
    own = cameras.K.dim() == 3
    first_pass = -(-len(frames) // batch_size)  # steps until every frame has been seen once
    first = learned // batch_size
    steps = range(first, -(-total // batch_size))
    writer = tensorboard_writer(output) if tensorboard else None
    with progress_bar("training", total) as show:
        started = previewed = time.perf_counter()
        for step, (chosen, pixels, background) in zip(steps, _batches(config, capture, frames, images, steps, device)):
            Ks, views = (cameras.K[chosen], cameras.world_to_camera[chosen]) if own else (None, None)
            batch = Batch(vertices[chosen], inputs[chosen], pixels, background, chosen, Ks, views)
            search = slice(None) if step < first_pass or step % COLOUR_STEPS == 0 else None
            learned = step * batch_size
            terms = learners.step(learner, batch, learned, learned / total, search)

            learned += batch_size
            last = step + 1 == steps.stop
            now = time.perf_counter()
            elapsed = now - started
            speed = (step + 1 - first) * batch_size / elapsed
            if step % 20 == 0 or last:
                loss = float(sum(terms.values()))
                show(min(learned, total), f"loss {loss:.4f}, {speed:.0f} images/s")
                if writer is not None:
                    log_scalars(writer, terms, speed, learned)
            if not last and learned // every > (learned - batch_size) // every:
                checkpoint.save_checkpoint(output / CHECKPOINT, learner, learned, seconds + elapsed)
                keep()
                log(f"image {learned}: loss {float(sum(terms.values())):.4f}, {speed:.0f} images/s")
            if config.train.preview_seconds and now - previewed > config.train.preview_seconds:
                model_file.write_ply(output / "model.ply", learner.avatar)
                previewed = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += time.perf_counter() - started
    if writer is not None:
        writer.close()

    checkpoint.save_checkpoint(output / CHECKPOINT, learner, learned, seconds)
    unseen = learners.finish(learner)
    model_file.write_ply(output / "model.ply", learner.avatar)
    result = Result(
        gaussians=len(learner.avatar),
        images=learned,
        seconds=seconds,
        images_per_second=learned / max(seconds, 1e-9),
        unseen=unseen,
        folder=str(output),
    )
    write_text(output / "speed.txt", f"Training FPS: {result.images_per_second:.2f}\n")
    return result


def planned_images(config: Config, n_frames: int) -> int:
    """How many images a run learns from: as its settings say, or more for a clip of more frames."""
    return config.train.iterations or max(LEAST_IMAGES, IMAGES_PER_FRAME * n_frames)


def tensorboard_writer(output: Path) -> "SummaryWriter":
    """Writes events into the run's folder."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(output))


def log_scalars(writer: "SummaryWriter", terms: dict[str, Tensor], speed: float, images: int) -> None:
    """The loss terms, their sum and the speed after so many images."""
    for name, value in (terms | {"total": torch.stack(list(terms.values())).sum()}).items():
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

    def here(values: Tensor) -> Tensor:
        return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values

    def fetch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        positions = batch_places(step, size, len(frames), seed)
        chosen = torch.from_numpy(positions)
        if stored is None:
            images = torch.from_numpy(np.stack(list(captures.read_images(capture, frames[positions]))))
        else:
            images = stored[chosen]
        return here(chosen), here(images), here(random_backgrounds(step * size, size, seed))

    with ThreadPoolExecutor(1) as pool:
        ahead: Future[tuple[Tensor, Tensor, Tensor]] = pool.submit(fetch, steps.start)
        for step in steps:
            batch = ahead.result()
            ahead = pool.submit(fetch, step + 1)
            yield batch
