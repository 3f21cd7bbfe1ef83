"""Training: volume rendering until there is a surface, then its material alone on whole pictures."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError
from recon4d.cameras import Camera
from recon4d.cli import pick_device, progress_bar
from recon4d.runs import claim
from torch import Tensor

from eyeball_relight import (
    captures,
    checkpoint,
    config,
    headstart,
    losses,
    marching,
    shading,
    spheres,
    surface_phase,
    volume,
)
from eyeball_relight.batches import Batch, gather
from eyeball_relight.captures import Capture
from eyeball_relight.cells import torch_alone
from eyeball_relight.checkpoint import CHECKPOINT
from eyeball_relight.config import Config
from eyeball_relight.field import Field, new_field
from eyeball_relight.flash import flash_intensity, light_offset, light_warning
from eyeball_relight.rays import draw, pool_of, rays_through
from eyeball_relight.refinement import corrected, refined
from eyeball_relight.replay import Recording, record, replay
from eyeball_relight.room import room_share


@dataclass(frozen=True)
class Result:
    """What a run reports."""

    steps: int
    seconds: float
    rays: int
    loss: float
    beta: float
    light_offset: list[float]  # in the camera's axes
    light_warning: str | None
    folder: str


def start(
    config_path: str | Path,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    workspace: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    device: str = "auto",
    log: Callable[[str], None] = print,
) -> Result:
    """Train on a capture as its config file says; write `config.yaml` and `latest.pth` into the workspace.

    Args:
        config_path: the capture's `config.yaml`, whose keys replace the preset's.
        preset: None is `cpu-quick`.
        overrides: `key=value` strings that replace both.
        workspace: where the run goes; None is `workspace/<capture>`, with what the config file's name has after
            `config`.
        resume: go on from the workspace's last checkpoint, with the run's own settings.
        force: replace what an earlier run wrote into the workspace.

    Raises:
        InputError: settings, a capture or a checkpoint that cannot be used; an occupied workspace; a device that is
            not there.
    """
    chosen = pick_device("auto" if device == "0" else device)
    if resume and force:
        raise InputError("--resume goes on with what --force would delete; give one")
    settings = config.load(config_path, preset or "cpu-quick", overrides)
    suffix = Path(config_path).stem.removeprefix("config")  # config_wo-hybrid.yaml has a workspace of its own
    out = Path(workspace or Path("workspace") / (settings.folder.resolve().name + suffix))
    own, saved = out / "config.yaml", out / CHECKPOINT
    given = preset is not None or bool(overrides)
    if resume and own.is_file() and (saved.is_file() or not given):
        kept = config.load(own)
        wanted = settings if preset is not None else config.load(own, None, overrides)
        key = config.first_difference(kept, wanted) if given else None
        if key is not None:
            raise InputError(f"--resume goes on with the settings of {own}, whose {key} is another; leave it away")
        settings = kept
    capture = captures.read(settings.folder, log)
    if resume and saved.is_file():  # before the folder is touched
        field = new_field(settings, len(capture))
        checkpoint.resume(field, adam(field), checkpoint.read(saved), saved)
    inputs = [settings.folder, config_path]
    with claim(out, "eyeball-relight train", force=force, resume=resume, inputs=inputs) as claimed:
        if resume and not claimed.resumed:
            log(f"{out} holds nothing to go on with: training begins anew")
        elif resume and not saved.is_file():
            raise InputError(f"{out} holds no {CHECKPOINT} to go on from; leave --resume away")
        config.write(own, settings)
        result = train(settings, capture, out, log, claimed.resumed, claimed.keep, chosen)
    if result.light_warning:
        log(f"warning: {result.light_warning}")
    return result


def rate(settings: Config, step: int) -> float:
    """Adam's learning rate at a step: warm-up, then a factor at each milestone; the mesh phase has its own."""
    train = settings.train
    if step >= train.mesh_render_iter:
        share = (step - train.mesh_render_iter) / max(train.iterations - train.mesh_render_iter, 1)
        return float(train.mesh_lr * 0.1**share)
    passed = sum(step >= milestone for milestone in train.milestones)
    return train.lr * min(1.0, (step + 1) / train.warm_up) * train.milestone_factor**passed


def generator_of(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step: a resumed run draws what an uninterrupted one would have."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))


def adam(field: Field) -> torch.optim.Adam:
    """The optimizer. Rates of the eyeballs' centres and radius are scaled so that a step moves both about as far.

    A pose has few rays in a step, so that its gradient is noisy: `train.pose_rate` makes its steps small.
    """
    plan = field.config.train
    slow = [field.eye_centres, field.eye_radius_logit, *([field.pose, field.focal] if plan.refine_pose else [])]
    names = {id(p) for p in slow}
    groups = [
        {"params": [p for p in field.parameters() if id(p) not in names], "scale": 1.0, "eyes": False},
        {"params": [field.eye_centres], "scale": 0.1, "eyes": True},
        {"params": [field.eye_radius_logit], "scale": 5.0, "eyes": True},
    ]
    if plan.refine_pose:
        rates = zip(slow[2:], (plan.pose_rate, plan.pose_rate if plan.refine_focal else 0.0))
        groups += [{"params": [p], "scale": scale, "eyes": False, "pose": True} for p, scale in rates]
    return torch.optim.Adam(groups, lr=0.0, eps=1e-15, fused=field.device.type in ("cpu", "cuda"))


def train(
    settings: Config,
    capture: Capture,
    output: Path,
    log: Callable[[str], None],
    resume: bool = False,
    keep: Callable[[], None] = lambda: None,
    device: torch.device | str = "cpu",
) -> Result:
    """Train a field on the capture; write `latest.pth` into `output`.

    Args:
        resume: go on from it. keep: called when there is one. device: of the field; rays are marched, and surfaces
            extracted, on the CPU.

    Raises InputError: unusable masks, eyes that cannot be placed, a checkpoint that does not fit.
    """
    plan, started = settings.train, time.perf_counter()
    field = new_field(settings, len(capture))
    grid = torch.zeros((plan.grid + 1,) * 3)
    n_rays, first, seconds = plan.samples // plan.per_ray, 0, 0.0
    intensity = flash_intensity(settings, capture)
    if not resume:
        if settings.data.head is not None:
            begin = headstart.read(settings.folder / settings.data.head)
            off = headstart.learn(field, *begin, settings.seed) * settings.data.bound
            log(f"begins with {settings.data.head}, which the field follows to {off:.2g}")
        if settings.eyes.enabled:
            spheres.place_eyes(field, capture, intensity, log)
    field, intensity = field.to(device), intensity.to(device)
    optimizer = adam(field)
    if resume:
        state = checkpoint.read(output / CHECKPOINT)
        grid, n_rays, first, seconds = checkpoint.resume(field, optimizer, state, output / CHECKPOINT)
        log(f"resumed at step {first}")
    pool, loss, views, rays_seen = pool_of(capture), torch.zeros(()), None, 0
    camera, recorded = capture.camera.to(field.device), field.device.type == "cuda"
    recording: Recording | None = None

    def save(step: int) -> None:
        spent = seconds + time.perf_counter() - started
        checkpoint.write(output / CHECKPOINT, field, optimizer, grid, intensity, step, n_rays, spent)
        keep()

    with progress_bar("training", plan.iterations) as show:
        for step in range(first, plan.iterations):
            generator = generator_of(settings.seed, step)
            for group in optimizer.param_groups:
                still = settings.eyes.still if group["eyes"] else plan.refine_after if group.get("pose") else 0
                group["lr"] = 0.0 if step < still else rate(settings, step) * group["scale"]
            active = field.active(step)
            if step < plan.mesh_render_iter:
                if plan.refine_pose and settings.eyes.enabled and step == settings.eyes.still:
                    spheres.place_eyes(field, corrected(field, capture), intensity, log)  # by better poses
                if step % plan.grid_every == 0:
                    marching.update_grid(grid, field, active, step // plan.grid_every)
                pixels = draw(pool, n_rays, generator)
                with torch_alone():
                    batch, sampled = gather(field, capture, grid, pixels, step, generator)
                    terms_of = partial(volume_terms, field, camera, active=active, intensity=intensity)
                    if recorded:
                        if recording is None or recording.levels != len(active):
                            recording = None  # frees its memory first
                            recording = record(terms_of, batch.to(field.device), list(field.parameters()), len(active))
                        replay(recording, batch)
                        optimizer.step()
                        terms, loss = recording.terms, recording.loss
                    else:
                        terms = terms_of(batch.to(field.device))
                        loss = descend(optimizer, terms)
                # as many pixels as have that many rays worth sampling
                n_rays = max(64, min(4 * plan.samples, round(plan.samples / plan.per_ray * len(pixels) / sampled)))
                rays_seen += len(pixels)
            else:
                if views is None:
                    recording = None
                    capture = corrected(field, capture)
                    for k in range(plan.shading if step == plan.mesh_render_iter else 0):  # later it has been
                        with torch_alone():
                            told = shading.refine(field, active, capture, intensity, settings.seed + k)
                        log(f"step {step}: pictures tell the normals of {told} points, and the surface bends to them")
                    views = surface_phase.surface_views(field, active, capture)
                terms = surface_phase.surface_terms(field, capture, views, active, intensity, generator)
                loss = descend(optimizer, terms)
            if step % 20 == 0:
                show(step, f"loss {float(loss.detach()):.4f}")
            if (step + 1) % plan.checkpoint_every == 0 and step + 1 < plan.iterations:
                save(step + 1)
                log(f"step {step + 1}: " + ", ".join(f"{k} {float(v.detach()):.4f}" for k, v in terms.items()))
    save(max(plan.iterations, first))
    active, generator = field.active(plan.iterations), generator_of(settings.seed, plan.iterations)
    if views is None:
        capture = corrected(field, capture)
        views = surface_phase.surface_views(field, active, capture)
    offset = light_offset(field, capture, views, active, intensity, generator)
    return Result(
        steps=plan.iterations,
        seconds=seconds + time.perf_counter() - started,
        rays=rays_seen,
        loss=float(loss.detach()),
        beta=float(field.width(plan.mesh_render_iter).detach()) * settings.data.bound,
        light_offset=offset,
        light_warning=light_warning(capture, offset),
        folder=str(output),
    )


def descend(optimizer: torch.optim.Optimizer, terms: dict[str, Tensor]) -> Tensor:
    """One step down the sum of the terms, which is returned."""
    loss = torch.stack(list(terms.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


def volume_terms(field: Field, camera: Camera, batch: Batch, active: list[int], intensity: Tensor) -> dict[str, Tensor]:
    """Loss terms of a batch of rays. Camera (of the capture), batch and intensity are on the field's device."""
    settings = field.config
    rays = rays_through(refined(field, camera), settings.data.bound, batch.pixel)
    beta = field.width_below(batch.ceiling)
    samples = volume.render(field, rays, batch.edges, beta, active, intensity, batch.where)
    terms = losses.loss_terms(field, batch, samples, rays, active)
    if settings.losses.room:
        terms["room"] = settings.losses.room * room_share(field, camera, intensity)
    return terms
