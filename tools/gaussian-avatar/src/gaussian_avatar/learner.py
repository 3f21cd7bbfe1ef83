"""What is trained and one step of it, the same offline and online: rates, colour initialisation, checkpoints."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch
from recon4d import InputError
from recon4d.files import atomic_path
from recon4d.head import HeadModel
from torch import Tensor

from gaussian_avatar import avatar as avatars
from gaussian_avatar import capture as captures
from gaussian_avatar import losses, unseen
from gaussian_avatar.avatar import Avatar, Splats, View, rasterize
from gaussian_avatar.config import Config, Rates

TRAINED = (
    "means",
    "log_scales",
    "opacity_logits",
    "quats",
    "sh0",
    "mean_basis",
    "quat_basis",
    "sh0_basis",
)
CHECKPOINT = "checkpoint.pt"
HEAD_RADIUS = 0.1  # metres: a correction's translation is in these, so that it moves pixels as its rotation does


@dataclass(frozen=True)
class Learner:
    """What a run trains, and what it needs beside the data."""

    config: Config
    head: HeadModel
    view: View  # before corrections
    avatar: Avatar
    corrections: Tensor  # (n, 6) rotation vector and translation of each training frame's pose; n = 0 without
    optimizer: torch.optim.Optimizer
    init_log_scale: Tensor  # (N, 1)
    pairs: Tensor  # (P, 2) neighbouring Gaussians


@dataclass(frozen=True)
class Batch:
    """B frames to learn from, on the learner's device."""

    vertices: Tensor  # (B, V, 3) posed head
    inputs: Tensor  # (B, D) blendshape input
    pixels: Tensor  # (B, H, W, 4) uint8
    background: Tensor  # (B, 3)
    frames: Tensor | None = None  # (B,) rows of the corrections


def new(
    config: Config, head: HeadModel, view: View, n_inputs: int, n_corrections: int, device: torch.device
) -> Learner:
    """A learner before its first step. Raises InputError for images too small for the structural similarity."""
    if config.train.losses.ssim and min(view.width, view.height) < losses.SSIM_PIXELS:
        raise InputError(
            f"train.losses.ssim needs images of {losses.SSIM_PIXELS} pixels a side, not {view.width}x{view.height}; "
            "set it to 0 or give a larger data.image_size"
        )
    avatar = avatars.new(
        head,
        config.model.tex_size,
        n_inputs,
        config.model.basis,
        config.model.hidden,
        config.model.init_scale,
        config.model.init_opacity,
        torch.Generator().manual_seed(config.seed),
    ).to(device)
    for name in TRAINED:
        getattr(avatar, name).requires_grad_(True)
    corrections = torch.zeros(n_corrections, 6, device=device, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [getattr(avatar, name)], "name": name} for name in TRAINED]
        + [{"params": list(avatar.mlp.parameters()), "name": "mlp"}, {"params": [corrections], "name": "corrections"}],
        lr=0.0,
        eps=config.train.rates.epsilon,
        fused=True,
    )
    return Learner(
        config=config,
        head=head.to(device),
        view=View(view.world_to_camera.to(device), view.K.to(device), view.width, view.height),
        avatar=avatar,
        corrections=corrections,
        optimizer=optimizer,
        init_log_scale=avatar.log_scales.detach()[:, :1].clone(),
        pairs=avatars.neighbours(head, config.model.tex_size).to(device),
    )


def step(
    learner: Learner, batch: Batch, done: int, share: float, unpainted: Tensor | slice | None
) -> dict[str, Tensor]:
    """Optimise on one batch; the weighted loss terms before it.

    Args:
        done: images learned from before. share: how far training has come, 0 to 1; rates fall with it.
        unpainted: which frames of the batch may show Gaussians for the first time; looking for them costs about as
            much as rendering the frames.
    """
    config, avatar, optimizer = learner.config, learner.avatar, learner.optimizer
    for group, rate in zip(optimizer.param_groups, learning_rates(config.train.rates, done, share).values()):
        group["lr"] = rate
    view = learner.view
    if batch.frames is not None and len(learner.corrections):
        # Without its mean: the avatar shall stay where the poses of frames to come expect it.
        corrections = learner.corrections - learner.corrections.mean(0)
        view = corrected(view, corrections[batch.frames], batch.vertices)

    def deform(chosen: Tensor | slice = slice(None)) -> tuple[Splats, Tensor]:
        return avatars.deform(
            avatar,
            learner.head,
            batch.vertices[chosen],
            batch.inputs[chosen],
            learner.view.world_to_camera,
            done >= config.train.blend_start,
            config.model.one_sided,
        )

    if unpainted is not None:
        with torch.no_grad():
            splats, _ = deform(unpainted)
        initialise_colours(
            avatar,
            splats,
            learner.view,
            batch.pixels[unpainted],
            config.train.colour_weight,
            config.train.initial_colours,
        )
    splats, weights = deform()
    target, mask = captures.composite(batch.pixels, batch.background)
    image, alpha = rasterize(splats, view, batch.background)
    terms = losses.loss_terms(
        avatar,
        weights,
        image,
        alpha,
        target,
        mask,
        config.train.losses,
        done,
        learner.init_log_scale,
        learner.pairs,
    )
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    return {name: value.detach() for name, value in terms.items()}


def finish(learner: Learner) -> int:
    """What is left to do for an avatar that has been trained; how many Gaussians were never seen."""
    count = int((~learner.avatar.seen).sum())
    if learner.config.model.fill_unseen:
        unseen.fill(learner.avatar, learner.head, learner.init_log_scale, learner.config.model.init_opacity)
    return count


def corrected(view: View, corrections: Tensor, vertices: Tensor) -> View:
    """A view from which each head appears turned and moved a little about its own middle.

    Args:
        corrections: (B, 6) rotation vector and translation in units of `HEAD_RADIUS`. vertices: (B, V, 3).
    """
    centre = vertices.mean(1)
    R = roma.rotvec_to_rotmat(corrections[:, :3])
    t = centre + HEAD_RADIUS * corrections[:, 3:] - (R @ centre[..., None])[..., 0]
    move = torch.cat(
        [torch.cat([R, t[..., None]], 2), view.world_to_camera.new_tensor([0, 0, 0, 1]).expand(len(t), 1, 4)], 1
    )
    return View(view.world_to_camera @ move, view.K, view.width, view.height)


def learning_rates(rates: Rates, images: int, share: float) -> dict[str, float]:
    """Adam's learning rate of each attribute after so many images, a share of all."""
    position = _log_linear(
        rates.position,
        rates.position_final,
        images / rates.position_images,
        images / rates.position_delay_images if rates.position_delay_images else 1.0,
        rates.position_delay_factor,
    )
    rest = rates.final_factor ** min(share, 1.0)
    return {
        "means": position,
        "log_scales": rates.scale * rest,
        "opacity_logits": rates.opacity * rest,
        "quats": rates.rotation * rest,
        "sh0": rates.colour * rest,
        "mean_basis": position * rates.basis_position,
        "quat_basis": rates.rotation * rates.basis_rotation * rest,
        "sh0_basis": rates.colour * rates.basis_colour * rest,
        "mlp": rates.mlp * rest,
        "corrections": rates.pose * rest,
    }


def _log_linear(start: float, end: float, share: float, delay_share: float, delay_factor: float) -> float:
    """Plenoxels' schedule (Yu et al. 2022): log-linear from start to end, held down by delay_factor in the delay."""
    if start == 0:
        return 0.0
    share = min(share, 1.0)
    delay = delay_factor + (1 - delay_factor) * np.sin(0.5 * np.pi * min(delay_share, 1.0))
    return float(delay * np.exp((1 - share) * np.log(start) + share * np.log(max(end, 1e-12))))


def covered_colours(splats: Splats, view: View, target: Tensor) -> tuple[Tensor, Tensor]:
    """The colours of the pixels each Gaussian covers, weighted by its share in them (section 3.3 of the paper).

    The share w_ip of Gaussian i in pixel p is the derivative of the render with respect to its colour, so both sums
    are one vector-Jacobian product. Pixels count by the head's mask: the background is not the head's colour.

    Args:
        target: RGBA uint8 (B, H, W, 4).

    Returns:
        Mean colours (N, 3) and the summed weights (N,), over all frames.
    """
    fixed = {name: value.detach() for name, value in vars(splats).items()}
    probe = fixed["means"].new_zeros(*fixed["means"].shape[:2], 4, requires_grad=True)
    image, _ = rasterize(Splats(**(fixed | {"colors": probe})), view)
    pixels = target.float() / 255
    pixels = torch.cat([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    (sums,) = torch.autograd.grad(image, probe, pixels)
    sums = sums.sum(0)
    return sums[:, :3] / sums[:, 3:].clamp_min(1e-8), sums[:, 3]


def initialise_colours(
    avatar: Avatar, splats: Splats, view: View, target: Tensor, threshold: float, paint: bool = True
) -> bool:
    """Note which Gaussians are seen for the first time, and set their colour unless `paint` is off; whether any are."""
    colours, weights = covered_colours(splats, view, target)
    fresh = (weights > threshold) & ~avatar.seen
    with torch.no_grad():
        if paint:
            avatar.sh0[fresh] = (colours[fresh] - 0.5) / avatars.SH0
        avatar.seen[fresh] = True
    return bool(fresh.any())


def save_checkpoint(path: Path, learner: Learner, step: int, seconds: float) -> None:
    """Everything a later `load_checkpoint` needs to go on at `step`, atomically.

    No random state is in it: frames and backgrounds are functions of the step.
    """
    avatar = learner.avatar
    state = {
        "step": step,
        "seconds": seconds,
        "attributes": {name: getattr(avatar, name).detach() for name in TRAINED},
        "seen": avatar.seen,
        "mlp": avatar.mlp.state_dict(),
        "corrections": learner.corrections.detach(),
        "optimizer": learner.optimizer.state_dict(),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, learner: Learner) -> tuple[int, float]:
    """Fill a learner from a checkpoint; the step to go on at and the seconds spent so far.

    Raises InputError for a missing or broken file, or one of another model size.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, so there is nothing to resume; leave --resume away")
    avatar = learner.avatar
    try:
        state = torch.load(path, map_location=avatar.means.device, weights_only=True)
        with torch.no_grad():
            for name, value in state["attributes"].items():
                getattr(avatar, name).copy_(value)
            avatar.seen.copy_(state["seen"])
            learner.corrections.copy_(state["corrections"])
        avatar.mlp.load_state_dict(state["mlp"])
        learner.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), float(state["seconds"])
    except Exception as error:  # truncated archives and foreign shapes raise many types
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} does not fit this run ({reason}); train anew with --force") from error
