"""What is trained and one step of it, the same offline and online: rates, colour initialisation, pose corrections."""

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import roma
import torch
from recon4d import InputError, splat, threads
from recon4d.cameras import Camera
from recon4d.head import HeadModel
from torch import Tensor

from gaussian_avatar import avatars, losses, unseen
from gaussian_avatar.avatars import TRAINED, Avatar, Splats, rasterize
from gaussian_avatar.backgrounds import composite
from gaussian_avatar.config import Config, Rates
from gaussian_avatar.sampling import Frame

FIRST_STEPS = 4  # of a stream, each of which initialises colours
COLOUR_STEPS = 10  # after them every so many do: what comes into view stays for longer
HEAD_RADIUS = 0.1  # metres: a correction's translation is in these, so that it moves pixels as its rotation does


@dataclass(frozen=True, eq=False)
class Learner:
    """What a run trains, and what it needs beside the data."""

    config: Config
    head: HeadModel
    camera: Camera  # before corrections
    avatar: Avatar
    corrections: Tensor  # (n, 6) rotation vector and translation of each training frame's pose; n = 0 without
    gains: Tensor  # (n, 3) logarithm of what each training frame's exposure multiplies colours by; n = 0 without
    optimizer: torch.optim.Optimizer
    init_log_scale: Tensor  # (N, 1)
    pairs: Tensor  # (P, 2) neighbouring Gaussians
    inside: Tensor  # (M,) the Gaussians inside the mouth


@dataclass(frozen=True, eq=False)
class Batch:
    """B frames to learn from, on the learner's device."""

    vertices: Tensor  # (B, V, 3) posed head
    inputs: Tensor  # (B, D) blendshape input
    pixels: Tensor  # (B, H, W, 4) uint8
    background: Tensor  # (B, 3)
    frames: Tensor | None = None  # (B,) rows of the corrections and gains
    Ks: Tensor | None = None  # (B, 3, 3) intrinsics of the pictures, where they are not the learner's camera's
    views: Tensor | None = None  # (B, 4, 4) world_to_camera of the pictures, where it is not the learner's camera's


def new(config: Config, head: HeadModel, camera: Camera, n_inputs: int, n_frames: int, device: torch.device) -> Learner:
    """A learner before its first step, of so many training frames; of a stream, which has no last one, 0.

    Raises InputError for images too small for the structural similarity.
    """
    if config.train.losses.ssim and min(camera.width, camera.height) < losses.SSIM_PIXELS:
        raise InputError(
            f"train.losses.ssim needs images of {losses.SSIM_PIXELS} pixels a side, "
            f"not {camera.width}x{camera.height}; set it to 0 or give a larger data.image_size"
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
        config.model.stretch,
    ).to(device)
    for name in TRAINED:
        getattr(avatar, name).requires_grad_(True)
    corrections = torch.zeros(n_frames * config.train.refine_pose, 6, device=device, requires_grad=True)
    gains = torch.zeros(n_frames * config.train.exposure, 3, device=device, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [getattr(avatar, name)], "name": name} for name in TRAINED]
        + [{"params": list(avatar.mlp.parameters()), "name": "mlp"}]
        + [{"params": [corrections], "name": "corrections"}, {"params": [gains], "name": "gains"}],
        lr=0.0,
        eps=config.train.rates.epsilon,
        fused=True,
    )
    cavity = (head.regions or {}).get("mouth_interior", torch.zeros(len(head.v_template), dtype=torch.bool))
    inside = cavity[head.faces[avatar.face_id.cpu()]].float().mean(1) > 0.5
    return Learner(
        config=config,
        head=head.to(device),
        camera=camera.to(device),
        avatar=avatar,
        corrections=corrections,
        gains=gains,
        optimizer=optimizer,
        init_log_scale=avatar.log_scales.detach()[:, :1].clone(),
        pairs=avatars.neighbours(head, config.model.tex_size).to(device),
        inside=inside.nonzero()[:, 0].to(device),
    )


def searched(step: int) -> slice | None:
    """What `step` searches for Gaussians that were never seen, in a stream's step of this number."""
    return slice(None) if step < FIRST_STEPS or step % COLOUR_STEPS == 0 else None


def batch_of(frames: list[Frame], background: Tensor, device: torch.device) -> Batch:
    """Frames and their backgrounds (B, 3) on the device."""
    vertices, inputs, pixels = (
        torch.stack([getattr(frame, name) for frame in frames]) for name in ("vertices", "inputs", "pixels")
    )
    Ks = [frame.K for frame in frames if frame.K is not None]
    own = torch.stack(Ks).to(device) if Ks else None
    vertices, inputs, pixels = (x.to(device) for x in (vertices, inputs, pixels))
    return Batch(vertices, inputs, pixels, background.to(device), Ks=own)


def warm_up() -> None:
    """Import what the first optimiser of a process imports, which takes seconds."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def step(
    learner: Learner, batch: Batch, images: int, progress: float, search: Tensor | slice | None
) -> dict[str, Tensor]:
    """Optimise on one batch; the weighted loss terms before it.

    Args:
        images: how many have been learned from before.
        progress: how far training has come, 0 to 1; rates fall with it.
        search: in which frames of the batch to look for Gaussians that were never seen, whose colours are then
            initialised; None skips that, which costs about as much as rendering the frames.
    """
    config, avatar, optimizer = learner.config, learner.avatar, learner.optimizer
    for group, rate in zip(optimizer.param_groups, learning_rates(config.train.rates, images, progress).values()):
        group["lr"] = rate
    if search is not None:
        with torch.no_grad():
            splats, _ = _deform(learner, batch, images, search)
        initialise_colours(
            avatar,
            splats,
            _camera(learner, batch, search),
            batch.pixels[search],
            config.train.colour_weight,
            config.train.initial_colours,
        )
    count = len(batch.vertices)
    # On a CPU each thread learns from some of the pictures: most of torch's operations are too small to be shared.
    parts = min(threads.count(), count) if batch.vertices.device.type == "cpu" else 1
    found: list[tuple[dict[str, Tensor], list[Tensor | None]]] = [({}, [])] * parts

    def learn(k: int) -> None:
        some = range(k * count // parts, (k + 1) * count // parts)
        with threads.one_thread() if parts > 1 else contextlib.nullcontext():
            found[k] = _gradients(learner, batch, images, slice(some.start, some.stop), len(some) / count, k == 0)

    threads.share(learn, parts)
    for tensor, *gradients in zip(_trained(learner), *(gradients for _, gradients in found)):
        given = [gradient for gradient in gradients if gradient is not None]
        tensor.grad = sum(given[1:], given[0]) if given else None
    optimizer.step()
    total = {name: torch.zeros_like(value) for terms, _ in found for name, value in terms.items()}
    for terms, _ in found:
        for name, value in terms.items():
            total[name] += value
    return total


def _trained(learner: Learner) -> list[Tensor]:
    """All that the optimiser changes."""
    return [tensor for group in learner.optimizer.param_groups for tensor in group["params"] if tensor.numel()]


def _deform(learner: Learner, batch: Batch, images: int, chosen: Tensor | slice) -> tuple[Splats, Tensor]:
    """The avatar as the chosen frames of a batch have it, and the weights of its basis."""
    return avatars.deform(
        learner.avatar,
        learner.head,
        batch.vertices[chosen],
        batch.inputs[chosen],
        _camera(learner, batch, chosen).world_to_camera,
        images >= learner.config.train.blend_start,
        learner.config.model.one_sided,
    )


def _gradients(
    learner: Learner, batch: Batch, images: int, chosen: slice, share: float, priors: bool
) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """Weighted loss terms of some pictures of a batch, and their gradients by all that is trained.

    Args:
        share: of the batch's pictures; means over them count so much. priors: with the terms of the avatar itself.
    """
    config = learner.config.train
    camera, background = _camera(learner, batch, chosen), batch.background[chosen]
    frames = None if batch.frames is None else batch.frames[chosen]
    if frames is not None and len(learner.corrections):
        # Without its mean: the avatar shall stay where the poses of frames to come expect it.
        corrections = learner.corrections - learner.corrections.mean(0)
        camera = corrected(camera, corrections[frames], batch.vertices[chosen])
    splats, weights = _deform(learner, batch, images, chosen)
    target, mask = composite(batch.pixels[chosen], background)
    image, alpha = rasterize(splats, camera, background)
    if frames is not None and len(learner.gains):
        # Without their mean: frames to come are shown as bright as those of the clip are on average.
        gains = (learner.gains - learner.gains.mean(0))[frames].exp()
        behind = (1 - alpha) * background[:, None, None]
        image = (image - behind) * gains[:, None, None] + behind
    terms = losses.image_terms(weights, image, alpha, target, mask, config.losses, images)
    terms = {name: share * value for name, value in terms.items()}
    if priors:
        terms |= losses.prior_terms(
            learner.avatar, config.losses, learner.init_log_scale, learner.pairs, learner.inside
        )
    total = torch.stack(list(terms.values())).sum()
    gradients = torch.autograd.grad(total, _trained(learner), allow_unused=True)
    return {name: value.detach() for name, value in terms.items()}, list(gradients)


def _camera(learner: Learner, batch: Batch, chosen: Tensor | slice = slice(None)) -> Camera:
    """The camera of the chosen pictures of a batch, before corrections."""
    camera = learner.camera
    K = camera.K if batch.Ks is None else batch.Ks[chosen]
    return replace(camera, K=K, world_to_camera=camera.world_to_camera if batch.views is None else batch.views[chosen])


def finish(learner: Learner) -> int:
    """What is left to do for an avatar that has been trained; how many Gaussians were never seen."""
    count = int((~learner.avatar.seen).sum())
    if learner.config.model.fill_unseen:
        unseen.fill(learner.avatar, learner.head, learner.init_log_scale, learner.config.model.init_opacity)
    return count


def corrected(camera: Camera, corrections: Tensor, vertices: Tensor) -> Camera:
    """B cameras from which each head appears turned and moved a little about its own middle.

    Args:
        corrections: (B, 6) rotation vector and translation in units of `HEAD_RADIUS`. vertices: (B, V, 3).
    """
    centre = vertices.mean(1)
    R = roma.rotvec_to_rotmat(corrections[:, :3])
    t = centre + HEAD_RADIUS * corrections[:, 3:] - (R @ centre[..., None])[..., 0]
    move = torch.cat(
        [torch.cat([R, t[..., None]], 2), camera.world_to_camera.new_tensor([0, 0, 0, 1]).expand(len(t), 1, 4)], 1
    )
    return replace(camera, world_to_camera=camera.world_to_camera @ move)


def learning_rates(rates: Rates, images: int, progress: float) -> dict[str, float]:
    """Adam's learning rate of each attribute after so many images, at a progress from 0 to 1."""
    position = _log_linear(
        rates.position,
        rates.position_final,
        progress if rates.position_images is None else images / rates.position_images,
        images / rates.position_delay_images if rates.position_delay_images else 1.0,
        rates.position_delay_factor,
    )
    rest = rates.final_factor ** min(progress, 1.0)
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
        "gains": rates.exposure * rest,
    }


def _log_linear(start: float, end: float, share: float, delay_share: float, delay_factor: float) -> float:
    """Plenoxels' schedule (Yu et al. 2022): log-linear from start to end, held down by delay_factor in the delay."""
    if start == 0:
        return 0.0
    share = min(share, 1.0)
    delay = delay_factor + (1 - delay_factor) * np.sin(0.5 * np.pi * min(delay_share, 1.0))
    return float(delay * np.exp((1 - share) * np.log(start) + share * np.log(max(end, 1e-12))))


def covered_colours(splats: Splats, camera: Camera, target: Tensor) -> tuple[Tensor, Tensor]:
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
    image, _ = rasterize(Splats(**(fixed | {"colors": probe})), camera)
    pixels = target.float() / 255
    pixels = torch.cat([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    (sums,) = torch.autograd.grad(image, probe, pixels)
    sums = sums.sum(0)
    return sums[:, :3] / sums[:, 3:].clamp_min(1e-8), sums[:, 3]


def initialise_colours(
    avatar: Avatar, splats: Splats, camera: Camera, target: Tensor, threshold: float, paint: bool = True
) -> bool:
    """Note which Gaussians are seen for the first time, and set their colour unless `paint` is off; whether any are."""
    colours, weights = covered_colours(splats, camera, target)
    fresh = (weights > threshold) & ~avatar.seen
    with torch.no_grad():
        if paint:
            avatar.sh0[fresh] = (colours[fresh] - 0.5) / splat.SH0
        avatar.seen[fresh] = True
    return bool(fresh.any())
