"""Training on clips, one or many: render at the frames' moments, compare with the images, no labels (Flux4D, 3.3)."""

import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning_fabric as lightning
import numpy as np
import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from recon4d import InputError, images, runs, settings
from recon4d.cli import pick_device, progress_bar

from flux4d import checkpoints, memory, pictures, schedule, shipped
from flux4d.config import Config, config_file
from flux4d.model import Flux
from flux4d.plans import Entry, Given, Plan, make_plan
from flux4d.reconstruction import frame_loss, gaussians_of
from flux4d.samples import load_sample
from flux4d.streams import Stream


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
    one_clip: bool = False,
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
    accumulate: int | None = None,
    seed: int | None = None,
    resume: bool = False,
    resume_from: str | Path | None = None,
    with_optimizer: bool = True,
    init: str | None = None,
    force: bool = False,
    device: str = "auto",
    processes: int = 1,
    log: Callable[[str], None] = print,
) -> Result:
    """Train a network on all clips of an index's split `train`, or on one clip.

    `output_dir` gets config.yaml with all settings, train.log, checkpoints and renders; see `train`.

    Args:
        one_clip: train on one clip alone, `clip_index`, or the first one.
        camera: whose images, by name; None, as of all that follows, is what the config says.
        fixed_frame: the only frame to compare with.
        config, overrides: as in `config.load_config`; None is cpu-quick, or with `init` the shipped network's.
        data_root: where the scenes are, when they are not where the index was made.
        depth_dir: depth maps; without a setting of `lift.points` they take the place of LiDAR points.
        projected_depth: False leaves the loss on LiDAR depth out.
        accumulate: batches per step.
        resume: go on with a stopped run in `output_dir`, with its own settings; what is given must be the same. Where
            there is nothing to go on with, begin.
        resume_from: a checkpoint to go on from, in a new folder. with_optimizer: False takes what fits of its network.
        init: `shipped` begins with the network that ships.
        force: replace an earlier run in `output_dir`.
        processes: on this machine; each runs the calling script. Under torchrun leave it at 1.

    Raises:
        InputError: an index, config, clip or checkpoint that cannot be read or does not fit, an output that exists.
    """
    output = Path(output_dir)
    if resume and (resume_from or force):
        raise InputError("--resume goes on in the output; leave --resume-from and --force away")
    if init and resume_from:
        raise InputError("--init begins with the network that ships; leave --resume-from away")
    if init not in (None, shipped.PRESET):
        raise InputError(f"--init {init} is not {shipped.PRESET}; a checkpoint is given with --resume-from")
    overrides = tuple(overrides)
    if resume_from:
        checkpoints.read(resume_from)
    replaces_lidar = depth_dir and not any(override.startswith("lift.points=") for override in overrides)
    values = {
        "data.camera": camera,
        "data.clip": clip_index,
        "data.depth_dir": depth_dir and str(depth_dir),
        "lift.points": "depth" if replaces_lidar else None,
        "lift.sky_points": sky_points,
        "lift.max_gaussians": max_gaussians,
        "losses.depth": None if projected_depth else 0.0,
        "losses.inverse_depth": None if projected_depth else 0.0,
        "train.iterations": iterations,
        "train.batch_size": 1 if one_clip else None,
        "train.accumulate": accumulate,
        "train.fixed_frame": fixed_frame,
        "seed": seed,
    }
    given = Given(index_path, data_root, config, overrides, values, one_clip, init)
    with ExitStack() as stack:
        plan: Plan | None = None
        keep: Callable[[], None] = _nothing
        if getattr(rank_zero_only, "rank", 0) == 0:  # it plans for all processes
            plan = make_plan(given, output if resume else None)
            claimed = stack.enter_context(
                runs.claim(
                    output,
                    "flux4d train",  # a run on one clip is a run too
                    force=force,
                    resume=resume,
                    inputs=[index_path, plan.root, config_file(config), plan.config.data.depth_dir, resume_from],
                )
            )
            keep = claimed.keep
            if plan.resumes and not claimed.resumed:  # a killed run's first checkpoint was not yet to be kept
                plan = make_plan(given, None)
            if resume and not plan.resumes:
                log(f"{output} holds no training to resume; it begins anew")
            if not plan.resumes:
                settings.write(output / "config.yaml", plan.config)
        fabric = lightning.Fabric(**fabric_options(device, processes))
        fabric.launch()
        plan = fabric.broadcast(plan)
        assert plan is not None
        start_from = output / checkpoints.LAST if plan.resumes else resume_from
        ready = bool(init) and not plan.resumes
        return train(plan.config, plan.entries, plan.root, output, fabric, start_from, with_optimizer, ready, keep, log)


def _nothing() -> None:
    pass


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


def train(
    config: Config,
    entries: list[Entry],
    root: Path,
    output: Path,
    fabric: lightning.Fabric,
    resume_from: str | Path | None = None,
    with_optimizer: bool = True,
    ready: bool = False,
    keep: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = print,
) -> Result:
    """Train on the clips of an index; write checkpoints, train.log and, now and then, renders into `output`.

    Every process of `fabric` takes its share of a step's clips; the gradients are the mean over all of them.

    Args:
        root: where the index's paths begin. resume_from, with_optimizer: as in `start`. ready: begin with the network
            that ships.
        keep: called when there is a checkpoint.

    Raises:
        InputError: unreadable clips, a checkpoint that does not fit, batches that do not divide among the processes.
    """
    run = config.train
    batch = run.batch_size * run.accumulate
    if batch % fabric.world_size:
        raise InputError(
            f"train.batch_size {batch} does not divide among {fabric.world_size} processes; "
            f"use --set train.batch_size={fabric.world_size}"
        )
    torch.manual_seed(config.seed)
    network = Flux(config.model)
    adam = torch.optim.Adam(network.parameters(), lr=run.rate)
    say = log if fabric.is_global_zero else lambda text: None
    first = checkpoints.fill(resume_from, network, adam if with_optimizer else None, say) if resume_from else 0
    if ready:
        shipped.fill(network, say)
    say(memory.sentence(memory.of_training(config, entries), fabric.device))
    model, optimizer = fabric.setup(network, adam)

    total = config.train.iterations
    started, loss, psnr, count = time.perf_counter(), math.nan, math.nan, 0
    seen: list[dict[str, float]] = []  # loss terms since the log's last line
    stream = Stream(lambda number: load_sample(entries[number], root, config, fabric.device), run.cache_clips)
    with stream, progress_bar("training", total) as show:
        for step in range(first, total):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step, config)
            optimizer.zero_grad(set_to_none=True)
            items = list(enumerate(schedule.chosen_clips(step, config, len(entries))))
            mine = items[fabric.global_rank :: fabric.world_size]
            coming = schedule.chosen_clips(step + 1, config, len(entries))[fabric.global_rank :: fabric.world_size]
            for place, (item, number) in enumerate(mine):
                sample = stream(number)
                stream.ahead([*(later for _, later in mine[place + 1 :]), *(coming if step + 1 < total else [])])
                frames = schedule.chosen_frames(step, item, config, sample.clip)
                with fabric.no_backward_sync(model, enabled=fabric.world_size > 1 and item != mine[-1][0]):
                    found = gaussians_of(model, sample, config)
                    if step < config.train.still * total:
                        found = replace(found, velocities=0 * found.velocities)
                    value, terms = frame_loss(
                        found, sample, frames, schedule.weights(step, config), schedule.window(step, config)
                    )
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
                names = dict.fromkeys(name for each in seen for name in each)  # not all clips have all terms
                means = {name: float(np.mean([each[name] for each in seen if name in each])) for name in names}
                seen.clear()
                psnr = means["psnr"]
                text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
                _append(output / "train.log", f"step {done}: {text}, {time.perf_counter() - started:.0f} s")
            if done % config.train.checkpoint_every == 0 or done == total:
                checkpoints.save(output, model, optimizer, done, config)
                keep()
                with torch.no_grad():
                    shown = pictures.comparison(found, sample, frames[len(frames) // 2])
                images.write_png(output / f"step_{done:06d}" / f"{sample.clip.name}.png", shown)
    fabric.barrier()
    return Result(total, time.perf_counter() - started, loss, psnr, count, str(output))


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(line + "\n")
