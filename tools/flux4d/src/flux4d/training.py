"""Training on clips, one or many: render at the frames' moments, compare with the images, no labels (Flux4D, 3.3)."""

import math
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning_fabric as lightning
import numpy as np
import torch
from recon4d import InputError, settings
from recon4d.cli import claim_output, pick_device, progress_bar

from flux4d import checkpoints, indices, pictures
from flux4d.clips import Clip
from flux4d.config import Config, Losses, load_config
from flux4d.model import Flux
from flux4d.reconstruction import frame_loss, gaussians_of
from flux4d.samples import Sample, load_sample

Entry = dict[str, Any]  # a clip as an index holds it


@dataclass(frozen=True)
class Result:
    """What a run reports. loss, gaussians: of the last step. psnr: mean over the steps of train.log's last line."""

    steps: int
    seconds: float
    loss: float
    psnr: float
    gaussians: int
    folder: str


def start(
    index_path: str | Path,
    output_dir: str | Path,
    *,
    clip_index: int | None = None,
    camera: str | None = None,
    fixed_frame: int | None = None,
    config: str | Path | None = None,
    overrides: Iterable[str] = (),
    data_root: str | Path | None = None,
    iterations: int | None = None,
    max_gaussians: int | None = None,
    sky_points: int | None = None,
    depth_dir: str | Path | None = None,
    projected_depth: bool = True,
    accumulate: int = 1,
    seed: int | None = None,
    resume: bool = False,
    resume_from: str | Path | None = None,
    with_optimizer: bool = True,
    force: bool = False,
    device: str = "auto",
    processes: int = 1,
    log: Callable[[str], None] = print,
) -> Result:
    """Train a network on all clips of an index's split `train`, or on one clip.

    `output_dir` gets config.yaml, train.log, checkpoints and renders; see `train`.

    Args:
        clip_index: the number of the only clip to train on, one per step.
        camera: whose images, by name; None and all that follows: as in the config.
        fixed_frame: the only frame to compare with.
        config, overrides: as in `config.load_config`; None is cpu-quick, or with `resume` the run's own.
        data_root: where the scenes are, when they are not where the index was made.
        depth_dir: depth maps; without a setting of `lift.points` they take the place of LiDAR points.
        projected_depth: False leaves the loss on LiDAR depth out.
        accumulate: batches per step.
        resume: go on from the last checkpoint in `output_dir`. resume_from: from this checkpoint, into a new folder;
            with_optimizer: False takes only what fits of its network.
        force: replace `output_dir`.
        processes: on this machine; more than one run the calling script once each. Under torchrun leave it at 1.

    Raises:
        InputError: an index, config, clip or checkpoint that cannot be read or does not fit, an output that exists.
    """
    output = Path(output_dir)
    if resume and (resume_from or force):
        raise InputError("--resume goes on in the output; leave --resume-from and --force away")
    if resume:
        resume_from = output / checkpoints.LAST
        checkpoints.read(resume_from)
    overrides = tuple(overrides)
    replaces_lidar = depth_dir and not any(override.startswith("lift.points=") for override in overrides)
    values = {
        "data.camera": camera,
        "data.depth_dir": depth_dir and str(depth_dir),
        "lift.points": "depth" if replaces_lidar else None,
        "lift.sky_points": sky_points,
        "lift.max_gaussians": max_gaussians,
        "losses.depth": None if projected_depth else 0.0,
        "losses.inverse_depth": None if projected_depth else 0.0,
        "train.iterations": iterations,
        "train.batch_size": None if clip_index is None else 1,
        "seed": seed,
    }
    chosen = load_config(config or (output / "config.yaml" if resume else "cpu-quick"), overrides, values)
    index = indices.read(index_path)
    if clip_index is not None:
        entries = [indices.choose(index, clip_index)]
    else:
        entries = [entry for entry in index["clips"] if entry["split"] == "train"]
    root = indices.root_of(index, data_root)
    if not entries:
        raise InputError(f"--index-path {index_path} has no clips to train on; see --val-scenes of flux4d index")
    if fixed_frame is not None and not all(0 <= fixed_frame < len(entry["frames"]) for entry in entries):
        raise InputError(
            f"--fixed-target-frame {fixed_frame}: the clip has frames 0 to {len(entries[0]['frames']) - 1}"
        )
    fabric = lightning.Fabric(**fabric_options(device, processes))
    fabric.launch()
    if fabric.is_global_zero:
        if not resume:
            _claim(output, resume_from, force)
        settings.write(output / "config.yaml", chosen)
    fabric.barrier()
    return train(chosen, entries, root, output, fabric, resume_from, with_optimizer, accumulate, fixed_frame, log)


def _claim(output: Path, resume_from: str | Path | None, force: bool) -> None:
    if resume_from:
        checkpoints.read(resume_from)
    claim_output(output, force)
    if force and output.exists():
        if resume_from and output.resolve() in Path(resume_from).resolve().parents:
            raise InputError(f"--force would delete {resume_from}; give another --output-dir or use --resume")
        shutil.rmtree(output)


def fabric_options(device: str, processes: int) -> dict[str, Any]:
    """What `lightning.Fabric` is given for a device's name and so many processes, or those that torchrun started."""
    chosen = pick_device(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if chosen.type == "cuda" and processes == 1 and world == 1:
        return {"accelerator": "cuda", "devices": [chosen.index or 0]}
    several = processes > 1 or world > 1
    # under torchrun, each process is one device of its node
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if world > 1 else processes
    return {
        "accelerator": chosen.type,
        "devices": devices,
        "num_nodes": max(world // devices, 1),
        "strategy": "ddp" if several else "auto",
    }


# ------------------------------------------------------------------------------- what happens in a step, by its number


def rate(step: int, config: Config) -> float:
    """The learning rate: linear warm-up, then exponential decay to the final rate."""
    run = config.train
    share = min(step / run.iterations, 1.0)
    return run.rate * (run.final_rate / run.rate) ** share * min((step + 1) / max(run.warmup, 1), 1.0)


def weights(step: int, config: Config) -> Losses:
    """The loss's weights: that of the velocity goes to its final one in the second half of the run."""
    losses, share = config.losses, max(2 * step / config.train.iterations - 1, 0.0)
    if losses.final_velocity is None:
        return losses
    return losses.model_copy(update={"velocity": losses.velocity + share * (losses.final_velocity - losses.velocity)})


def chosen_clips(step: int, config: Config, number: int, accumulate: int = 1) -> list[int]:
    """The clips: a place in the endless sequence of shuffled passes, so that a resumed run goes on in it."""
    size = config.train.batch_size * accumulate
    places = range(step * size, (step + 1) * size)
    order = {
        epoch: np.random.default_rng((config.seed, 3, epoch)).permutation(number)
        for epoch in {place // number for place in places}
    }
    return [int(order[place // number][place % number]) for place in places]


def window(step: int, config: Config) -> float:
    """Seconds around a frame within which a point has to be seen to be drawn in it.

    Points of neighbouring sweeps alone leave a hole, or a double, where something moves, at a distance that a small
    change of velocity mends. All points of a second together show a streak, which fading mends sooner.
    """
    run = config.train
    share = step / run.iterations
    if share < run.narrow:
        return run.window
    if run.narrow == 0:
        return math.inf
    # in the first half of what is left of the run it widens to a second more, then to everything
    left = (share - run.narrow) / max(1 - run.narrow, 1e-9)
    return run.window + 2 * left if left < 0.5 else math.inf


def chosen_frames(step: int, item: int, config: Config, clip: Clip, fixed: int | None) -> list[int]:
    """Frames to render of a step's clip number `item`: the fixed one, else a random choice of inputs and targets.

    A frame without an input in the window has nothing to show. With a narrow one only targets are chosen: an input's
    own points show it whatever their velocity.
    """
    if fixed is not None:
        return [fixed]
    narrow = step < config.train.narrow * config.train.iterations
    wanted = clip.target if narrow else sorted(clip.input + clip.target)
    gaps = (clip.times[wanted][:, None] - clip.times[clip.input]).abs().amin(1)
    shown = [frame for frame, gap in zip(wanted, gaps) if gap <= window(step, config)] or wanted
    rng = np.random.default_rng((config.seed, 4, step, item))
    return sorted(int(i) for i in rng.choice(shown, min(config.train.frames, len(shown)), replace=False))


# ------------------------------------------------------------------------------------------------------------ the loop


class Cache:
    """The samples used last, by number; the rest are read again."""

    def __init__(self, make: Callable[[int], Sample], size: int):
        self.make, self.size = make, size
        self.held: OrderedDict[int, Sample] = OrderedDict()

    def __call__(self, number: int) -> Sample:
        if number not in self.held:
            self.held[number] = self.make(number)
        self.held.move_to_end(number)
        while len(self.held) > max(self.size, 1):
            self.held.popitem(last=False)
        return self.held[number]


def train(
    config: Config,
    entries: list[Entry],
    root: Path,
    output: Path,
    fabric: lightning.Fabric,
    resume_from: str | Path | None = None,
    with_optimizer: bool = True,
    accumulate: int = 1,
    fixed_frame: int | None = None,
    log: Callable[[str], None] = print,
) -> Result:
    """Train on the clips of an index; write checkpoints, train.log and, now and then, renders into `output`.

    Every process of `fabric` takes its share of a step's clips; the gradients are the mean over all of them.

    Args:
        root: where the index's paths begin. The rest is as in `start`.

    Raises:
        InputError: unreadable clips, a checkpoint that does not fit, batches that do not divide among the processes.
    """
    batch = config.train.batch_size * accumulate
    if batch % fabric.world_size:
        raise InputError(
            f"train.batch_size {batch} does not divide among {fabric.world_size} processes; "
            f"use --set train.batch_size={fabric.world_size}"
        )
    torch.manual_seed(config.seed)
    network = Flux(config.model)
    adam = torch.optim.Adam(network.parameters(), lr=config.train.rate)
    first = checkpoints.fill(resume_from, network, adam if with_optimizer else None, log) if resume_from else 0
    model, optimizer = fabric.setup(network, adam)
    sample_of = Cache(
        lambda number: load_sample(entries[number], root, config, fabric.device), config.train.cache_clips
    )

    total = config.train.iterations
    started, loss, psnr, count = time.perf_counter(), math.nan, math.nan, 0
    seen: list[dict[str, float]] = []  # loss terms since the log's last line
    with progress_bar("training", total) as show:
        for step in range(first, total):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, config)
            optimizer.zero_grad(set_to_none=True)
            items = list(enumerate(chosen_clips(step, config, len(entries), accumulate)))
            mine = items[fabric.global_rank :: fabric.world_size]
            for item, number in mine:
                sample = sample_of(number)
                frames = chosen_frames(step, item, config, sample.clip, fixed_frame)
                with fabric.no_backward_sync(model, enabled=fabric.world_size > 1 and item != mine[-1][0]):
                    found = gaussians_of(model, sample, config)
                    if step < config.train.still * total:
                        found = replace(found, velocities=0 * found.velocities)
                    value, terms = frame_loss(found, sample, frames, weights(step, config), window(step, config))
                    fabric.backward(value / len(mine))
                loss, count = float(value.detach()), len(found)
                if fabric.is_global_zero:
                    seen.append(terms)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_gradient)
            optimizer.step()
            if not fabric.is_global_zero:
                continue
            done = step + 1
            if done % 10 == 0:
                show(done, f"loss {loss:.4f}, {terms['psnr']:.1f} dB")
            if done % config.train.log_every == 0 or done == total:
                means = {name: float(np.mean([each[name] for each in seen])) for name in terms}
                seen.clear()
                psnr = means["psnr"]
                text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
                _append(output / "train.log", f"step {done}: {text}, {time.perf_counter() - started:.0f} s")
            if done % config.train.checkpoint_every == 0 or done == total:
                checkpoints.save(output, model, optimizer, done, config)
                with torch.no_grad():
                    shown = pictures.comparison(found, sample, frames[len(frames) // 2])
                pictures.write_png(output / f"step_{done:06d}" / f"{sample.clip.name}.png", shown)
    fabric.barrier()
    return Result(total, time.perf_counter() - started, loss, psnr, count, str(output))


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(line + "\n")
