"""Training on clips, one or many: render at the frames' moments, compare with the images, no labels (Flux4D, 3.3)."""

import math
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning_fabric as lightning
import numpy as np
import torch
from recon4d import InputError, metrics
from recon4d.cli import progress_bar
from recon4d.files import atomic_path
from torch import Tensor

from flux4d import clip as clips
from flux4d import config as settings
from flux4d import depthmaps, lift, pictures
from flux4d.clip import Clip
from flux4d.config import Config, Losses
from flux4d.lift import Gaussians
from flux4d.model import Flux, Input, prepare
from flux4d.rendering import Views, render, velocity_at

LAST = "ckpt_last.pt"


@dataclass(frozen=True)
class Sample:
    """A clip ready for the network, on a device. images: (F, H, W, 3) in [0, 1]. depths: per frame, as in `Clip`."""

    clip: Clip
    given: Input
    images: Tensor
    views: Views
    depths: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Result:
    """What a run reports. psnr: mean over the frames since the log line before the last."""

    steps: int
    seconds: float
    loss: float
    psnr: float
    gaussians: int


def views_of(clip: Clip, device: torch.device) -> Views:
    """The frames of a clip as views."""
    order = clip.times.argsort()
    gaps = torch.diff(clip.times[order])
    steps = torch.empty_like(clip.times)
    steps[order] = torch.cat([gaps, gaps[-1:]])
    return Views(
        clip.world_to_camera.to(device), clip.K.to(device), clip.times.to(device), steps.to(device),
        clip.width, clip.height,
    )  # fmt: skip


def some_views(views: Views, frames: list[int]) -> Views:
    """Only the frames of these positions."""
    return Views(
        views.world_to_camera[frames], views.K, views.times[frames], views.steps[frames], views.width, views.height
    )


def load_sample(entry: dict[str, Any], root: Path, config: Config, device: torch.device) -> Sample:
    """Read a clip of an index, lift it and find its voxels; with depth maps where the settings ask for them."""
    kind, camera = config.lift.points, config.data.camera
    if kind != "lidar" and config.data.depth_dir is None:
        raise InputError(f"lift.points {kind} needs depth maps; give their folder with --depth-dir")
    clip = clips.load(entry, root, camera, config.data.image_size, lidar=kind != "depth")
    points, depths = None, clip.depths
    if kind != "lidar":
        folder = Path(config.data.depth_dir or "")
        points = depthmaps.points(folder, clip, camera, config.lift.depth_stride)
        if kind == "depth":
            depths = depthmaps.samples(folder, clip, camera)
    gaussians = lift.lift(clip, config.lift, config.seed, points).to(device)
    return Sample(
        clip,
        prepare(gaussians, config.model),
        clip.images.to(device).float() / 255,
        views_of(clip, device),
        [(pixels.to(device), depth.to(device)) for pixels, depth in depths],
    )


def frame_loss(
    gaussians: Gaussians, sample: Sample, frames: list[int], losses: Losses, within: float = math.inf
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the loss terms on some frames, and their values with the PSNR.

    0.8 L1 + 0.2 (1 - SSIM) + 0.01 depth L1 at projected LiDAR points + 5e-3 mean speed; with `reweight` a pixel's L1
    counts 1 + |v_r|, v_r the rendered image-plane motion (Flux4D, equations 5 to 7 and appendix A.1). within: as in
    `render`.
    """
    images = sample.images[frames]
    shown = render(gaussians, some_views(sample.views, frames), flow=losses.reweight, within=within)
    difference = (shown.colour - images).abs()
    weight = 1 + shown.flow.detach().norm(dim=-1, keepdim=True) if losses.reweight else 1.0
    terms = {"l1": losses.l1 * (weight * difference).mean()}
    if losses.ssim:
        similarity = metrics.ssim(shown.colour.permute(0, 3, 1, 2), images.permute(0, 3, 1, 2)).mean()
        terms["ssim"] = losses.ssim * (1 - similarity)
    if losses.depth or losses.inverse_depth:
        found = torch.cat([shown.depth[i].flatten()[sample.depths[f][0]] for i, f in enumerate(frames)])
        known = torch.cat([sample.depths[f][1] for f in frames])
        error = losses.depth * (found - known).abs()
        if losses.inverse_depth:
            error = error + 10 * losses.inverse_depth * (1 / found.clamp_min(0.5) - 1 / known).abs()
        terms["depth"] = error.sum() / max(len(known), 1)
    if losses.velocity:
        speed = velocity_at(gaussians, sample.views.times[frames]).norm(dim=-1)
        terms["velocity"] = losses.velocity * speed[:, ~gaussians.sky].mean()
    total = torch.stack(list(terms.values())).sum()
    values = {name: float(value.detach()) for name, value in terms.items()}
    values["psnr"] = float(-10 * difference.detach().square().mean().log10())
    return total, values


def guide(sample: Sample, config: Config) -> Callable[[Gaussians], Tensor]:
    """The loss that guides refinement: photometric and depth, on a few input frames, no labels of the targets."""
    given = sample.clip.input
    chosen = np.linspace(0, len(given) - 1, min(config.model.refine_frames, len(given))).round().astype(int)
    losses = config.losses.model_copy(update={"reweight": False, "velocity": 0.0})
    frames = [given[i] for i in chosen]
    return lambda gaussians: frame_loss(gaussians, sample, frames, losses)[0]


def reconstruct(model: torch.nn.Module, sample: Sample, config: Config) -> Gaussians:
    """The Gaussians that the network makes of a clip."""
    parameters, velocities = model(sample.given, guide(sample, config) if config.model.refinements else None)
    return sample.given.gaussians.with_parameters(parameters, velocities)


def rate(step: int, config: Config) -> float:
    """Linear warm-up, then exponential decay to the final rate."""
    run = config.train
    share = min(step / run.iterations, 1.0)
    return run.rate * (run.final_rate / run.rate) ** share * min((step + 1) / max(run.warmup, 1), 1.0)


def weights(step: int, config: Config) -> Losses:
    """The loss's weights in a step: that of the velocity goes to its final one in the second half."""
    losses, share = config.losses, max(2 * step / config.train.iterations - 1, 0.0)
    if losses.final_velocity is None:
        return losses
    return losses.model_copy(update={"velocity": losses.velocity + share * (losses.final_velocity - losses.velocity)})


def chosen_clips(step: int, config: Config, number: int, accumulate: int = 1) -> list[int]:
    """The clips of a step: a place in the endless sequence of shuffled passes, so that a resumed run goes on in it."""
    size = config.train.batch_size * accumulate
    places = np.arange(step * size, (step + 1) * size)
    order = {
        epoch: np.random.default_rng((config.seed, 3, epoch)).permutation(number) for epoch in set(places // number)
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
    gone = (share - run.narrow) / max(1 - run.narrow, 1e-9) if run.narrow else 1.0
    return run.window + 2 * gone if gone < 0.5 else math.inf


def chosen_frames(step: int, item: int, config: Config, clip: Clip, fixed: int | None) -> list[int]:
    """Frames to render in a step: the fixed one, else a random choice of inputs and targets.

    A frame without an input in the window has nothing to show. With a narrow one only targets are chosen: an input's
    own points show it whatever their velocity.
    """
    if fixed is not None:
        return [fixed]
    narrow = step < config.train.narrow * config.train.iterations
    wanted = clip.target if narrow else sorted(clip.input + clip.target)
    gaps = (clip.times[wanted][:, None] - clip.times[clip.input]).abs().amin(1)
    everything = [f for f, gap in zip(wanted, gaps) if gap <= window(step, config)] or wanted
    rng = np.random.default_rng((config.seed, 4, step, item))
    return sorted(int(i) for i in rng.choice(everything, min(config.train.frames, len(everything)), replace=False))


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
    entries: list[dict[str, Any]],
    root: Path,
    output: Path,
    fabric: lightning.Fabric,
    resume_from: Path | None = None,
    with_optimizer: bool = True,
    accumulate: int = 1,
    fixed_frame: int | None = None,
    keep: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = print,
) -> Result:
    """Train on the clips of an index; write checkpoints, train.log and, now and then, renders into `output`.

    Every process of `fabric` takes its share of a step's clips; the gradients are the mean over all of them.

    Args:
        accumulate: batches per step.
        fixed_frame: the only frame to compare with.
        keep: called after each log line.

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
    model = Flux(config.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.train.rate)
    first = load_checkpoint(resume_from, model, optimizer if with_optimizer else None, log) if resume_from else 0
    model, optimizer = fabric.setup(model, optimizer)
    device = fabric.device

    def read(number: int) -> Sample:
        return load_sample(entries[number], root, config, device)

    sample_of = Cache(read, config.train.cache_clips)
    main = fabric.is_global_zero
    started, loss, means, gaussians = time.perf_counter(), float("nan"), {"psnr": float("nan")}, 0
    total = config.train.iterations
    seen: list[dict[str, float]] = []
    with progress_bar("training", total) as show:
        for step in range(first, total):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, config)
            mine = list(enumerate(chosen_clips(step, config, len(entries), accumulate)))[
                fabric.global_rank :: fabric.world_size
            ]
            optimizer.zero_grad(set_to_none=True)
            for place, (item, number) in enumerate(mine):
                sample = sample_of(number)
                frames = chosen_frames(step, item, config, sample.clip, fixed_frame)
                with fabric.no_backward_sync(model, enabled=fabric.world_size > 1 and place + 1 < len(mine)):
                    found = reconstruct(model, sample, config)
                    if step < config.train.still * total:
                        found = replace(found, velocities=0 * found.velocities)
                    value, values = frame_loss(found, sample, frames, weights(step, config), window(step, config))
                    fabric.backward(value / len(mine))
                loss, gaussians = float(value.detach()), len(found)
                if main:
                    seen.append(values)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_gradient)
            optimizer.step()
            if not main:
                continue
            done = step + 1
            if done % 10 == 0:
                show(done, f"loss {loss:.4f}, {values['psnr']:.1f} dB")
            if done % config.train.log_every == 0 or done == total:
                means = {name: float(np.mean([v[name] for v in seen])) for name in values}
                seen.clear()
                text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
                _append(output / "train.log", f"step {done}: {text}, {time.perf_counter() - started:.0f} s")
                keep()
            if done % config.train.checkpoint_every == 0 or done == total:
                save_checkpoint(output, fabric, model, optimizer, done, config)
                with torch.no_grad():
                    shown = pictures.comparison(found, sample, frames[len(frames) // 2])
                pictures.write_png(output / f"step_{done:06d}" / f"{sample.clip.name}.png", shown)
    fabric.barrier()
    return Result(total, time.perf_counter() - started, loss, means["psnr"], gaussians)


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(line + "\n")


# -------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(output: Path, fabric: Any, model: Any, optimizer: Any, step: int, config: Config) -> None:
    """`ckpt_step_XXXXXX.pt` and its copy `ckpt_last.pt`, atomically. Frames and clips are functions of the step, so no
    random state is in it."""
    state = {
        "step": step,
        "model": getattr(model, "module", model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": config.model_dump(),
    }
    path = output / f"ckpt_step_{step:06d}.pt"
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
    with atomic_path(output / LAST) as temporary:
        shutil.copyfile(path, temporary)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content. Raises InputError when it is missing, broken, or not one of ours."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a checkpoint that overfit or train has written")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {"step", "model", "optimizer", "config"} <= set(state):
            raise ValueError("other content")
    except Exception as error:  # truncated archives raise many types
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is not a checkpoint of flux4d ({reason}); give another or train anew") from error
    return state


def load_checkpoint(
    path: str | Path, model: Flux, optimizer: torch.optim.Optimizer | None, log: Callable[[str], None] = print
) -> int:
    """Fill model and optimizer; the step to go on at.

    Without an optimizer the parameters may differ: those missing in the file keep their start, which is logged.
    """
    state = read_checkpoint(path)
    try:
        missing, extra = model.load_state_dict(state["model"], strict=optimizer is not None)
        if optimizer is not None:
            optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path} is of another model ({reason}); use its own settings, or --resume-no-optim for what fits"
        ) from error
    if missing or extra:
        log(f"{path}: {len(missing)} parameters begin anew and {len(extra)} are not used")
    return int(state["step"])


def load_model(
    path: str | Path,
    device: torch.device,
    source: str | None = None,
    overrides: tuple[str, ...] = (),
    camera: str | None = None,
) -> tuple[Flux, Config]:
    """A trained network, and the settings it was trained with, or those of a config that it fits."""
    state = read_checkpoint(path)
    config = settings.resolve(state["config"] if source is None else source, str(path), overrides, data__camera=camera)
    model = Flux(config.model)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise InputError(f"{path} is of another model than the settings given; leave --config away") from error
    return model.to(device).eval(), config


def summary(result: Result, output: Path) -> dict[str, Any]:
    """A run's result for stdout."""
    return asdict(result) | {"folder": str(output)}
