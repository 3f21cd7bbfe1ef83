"""From a clip to its Gaussians by a network, and the loss that judges them: images and depth, no labels."""

import math
from collections.abc import Callable

import numpy as np
import torch
from recon4d import metrics
from torch import Tensor

from flux4d.config import Config, Losses
from flux4d.gaussians import MovingGaussians, velocity_at
from flux4d.rendering import render
from flux4d.samples import Sample


def frame_loss(
    gaussians: MovingGaussians, sample: Sample, frames: list[int], losses: Losses, within: float = math.inf
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the loss terms on some frames, and their values with the PSNR.

    0.8 L1 + 0.2 (1 - SSIM) + 0.01 depth L1 at projected LiDAR points + 5e-3 mean speed; with `reweight` a pixel's L1
    counts 1 + |v_r|, v_r the rendered image-plane motion (Flux4D, equations 5 to 7 and appendix A.1). within: as in
    `render`.
    """
    images = sample.images[frames]
    shown = render(gaussians, sample.cameras[frames], flow=losses.reweight, within=within)
    difference = (shown.over_black - images).abs()
    weight = 1 + shown.flow.detach().norm(dim=-1, keepdim=True) if losses.reweight else 1.0
    terms = {"l1": losses.l1 * (weight * difference).mean()}
    if losses.ssim:
        similarity = metrics.ssim(shown.over_black.permute(0, 3, 1, 2), images.permute(0, 3, 1, 2)).mean()
        terms["ssim"] = losses.ssim * (1 - similarity)
    if losses.depth or losses.inverse_depth:
        found = torch.cat([shown.depth[i].flatten()[sample.depths[f][0]] for i, f in enumerate(frames)])
        known = torch.cat([sample.depths[f][1] for f in frames])
        error = losses.depth * (found - known).abs()
        if losses.inverse_depth:
            error = error + 10 * losses.inverse_depth * (1 / found.clamp_min(0.5) - 1 / known).abs()
        terms["depth"] = error.sum() / max(len(known), 1)
    if losses.velocity:
        speed = velocity_at(gaussians, sample.cameras.times[frames]).norm(dim=-1)
        terms["velocity"] = losses.velocity * speed[:, ~gaussians.sky].mean()
    if losses.flow and sample.motion is not None:
        terms["flow"] = losses.flow * _motion_error(gaussians, sample.motion)
    total = torch.stack(list(terms.values())).sum()
    values = {name: float(value.detach()) for name, value in terms.items()}
    values["psnr"] = float(-10 * difference.detach().square().mean().log10())
    return total, values


def _motion_error(gaussians: MovingGaussians, known: Tensor) -> Tensor:
    """Mean error in m/s of the velocities at the Gaussians' own times; known: (N, 3).

    What moves and what stands count by the root of their shares: by the shares themselves the few that move are hardly
    heard, both alike what may move, a parked car, is sooner given a motion than not.
    """
    powers = gaussians.times[:, None, None] ** torch.arange(gaussians.velocities.shape[1]).to(known)[:, None]
    own = ~gaussians.sky
    error = ((gaussians.velocities * powers).sum(1) - known)[own].square().sum(1).add(1e-4).sqrt()
    moves = known[own].square().sum(1) > 0.01
    total = error.new_zeros(())
    for chosen in (moves, ~moves):
        if chosen.any():
            total = total + chosen.float().mean().sqrt() * error[chosen].mean()
    return total


def guide(sample: Sample, config: Config) -> Callable[[MovingGaussians], Tensor]:
    """The loss that guides refinement: photometric and depth, on a few input frames, no labels of the targets."""
    given = sample.clip.input
    number = min(config.model.refine_frames * len(sample.clip.names), len(given))
    chosen = np.linspace(0, len(given) - 1, number).round().astype(int)
    losses = config.losses.model_copy(update={"reweight": False, "velocity": 0.0, "flow": 0.0})
    frames = [given[i] for i in chosen]
    return lambda gaussians: frame_loss(gaussians, sample, frames, losses)[0]


def gaussians_of(model: torch.nn.Module, sample: Sample, config: Config) -> MovingGaussians:
    """The Gaussians that the network makes of a clip."""
    found = model(sample.given, guide(sample, config) if config.model.refinements else None)
    return sample.given.gaussians.with_parameters(*found)
