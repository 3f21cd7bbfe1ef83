"""Gaussians at a moment, and images of them: colour, depth and motion on the image."""

import math
from dataclasses import dataclass

import torch
from recon4d import splat
from torch import Tensor

from flux4d.lift import Gaussians

MAX_FLOW = 10.0  # pixels, in the weights of the loss


@dataclass(frozen=True)
class Views:
    """F views of one size. world_to_camera: (F, 4, 4). K: (3, 3). times: (F,) seconds. steps: (F,) seconds to the next
    frame, for image-plane motion."""

    world_to_camera: Tensor
    K: Tensor
    times: Tensor
    steps: Tensor
    width: int
    height: int


@dataclass(frozen=True)
class Rendering:
    """colour: (F, H, W, 3). depth: (F, H, W) expected, metres. alpha: (F, H, W). flow: (F, H, W, 2) pixels per step,
    or None."""

    colour: Tensor
    depth: Tensor
    alpha: Tensor
    flow: Tensor | None


def moved(gaussians: Gaussians, times: Tensor) -> Tensor:
    """Means (F, N, 3) at times (F,): p + sum_j v_j (t^(j+1) - t_i^(j+1)) / (j + 1) (Flux4D, equation 3)."""
    start, end = gaussians.times[None, :], times[:, None]
    means = gaussians.means[None].expand(len(times), -1, -1)
    for j in range(gaussians.velocities.shape[1]):
        means = means + gaussians.velocities[None, :, j] * ((end ** (j + 1) - start ** (j + 1)) / (j + 1))[..., None]
    return means


def velocity_at(gaussians: Gaussians, times: Tensor) -> Tensor:
    """(F, N, 3) velocities in m/s at times (F,): sum_j v_j t^j."""
    out = gaussians.velocities.new_zeros(len(times), len(gaussians), 3)
    for j in range(gaussians.velocities.shape[1]):
        out = out + gaussians.velocities[None, :, j] * (times[:, None, None] ** j)
    return out


def scales(gaussians: Gaussians) -> Tensor:
    """(N, 3) standard deviations: softplus, at most 1 m, and for the sky 100 m."""
    grown = torch.nn.functional.softplus(gaussians.scales)
    return torch.where(gaussians.sky[:, None], grown.clamp(max=100.0), grown.clamp(max=1.0))


def image_velocity(means: Tensor, velocities: Tensor, views: Views) -> Tensor:
    """(F, N, 2) pixels per step on the image of a camera that stands still: J R v dt, J the projection's Jacobian.

    The norm is clipped to MAX_FLOW; points nearer than half a metre to the camera's plane have none.
    """
    rotation, shift = views.world_to_camera[:, :3, :3], views.world_to_camera[:, None, :3, 3]
    x, y, z = (means @ rotation.transpose(1, 2) + shift).unbind(-1)
    vx, vy, vz = (velocities @ rotation.transpose(1, 2) * views.steps[:, None, None]).unbind(-1)
    near = z < 0.5
    z = z.clamp_min(0.5)
    flow = torch.stack([views.K[0, 0] * (vx - x / z * vz) / z, views.K[1, 1] * (vy - y / z * vz) / z], -1)
    norm = flow.norm(dim=-1, keepdim=True)
    flow = flow * (MAX_FLOW / norm.clamp_min(MAX_FLOW))
    return torch.where(near[..., None], 0.0, flow)


def render(gaussians: Gaussians, views: Views, flow: bool = False, within: float = math.inf) -> Rendering:
    """Images of Gaussians at the views' times; with `flow` also their motion on the image, weighted as colour is.

    Args:
        within: seconds; a view shows only the sky and what was seen so shortly before or after it.
    """
    means = moved(gaussians, views.times)
    count = len(views.times)

    def each(values: Tensor) -> Tensor:
        return values[None].expand(count, *values.shape)

    colours = each(gaussians.colours.sigmoid())
    if flow:
        motion = image_velocity(means.detach(), velocity_at(gaussians, views.times).detach(), views)
        colours = torch.cat([colours, motion], -1)
    opacities = each(gaussians.opacities[:, 0].sigmoid())
    if within < math.inf:
        near = (gaussians.times - views.times[:, None]).abs() <= within
        opacities = torch.where(near | gaussians.sky, opacities, 0.0)
    image, alpha, _ = splat.rasterize(
        means,
        each(gaussians.quats),
        each(scales(gaussians)),
        opacities,
        colours,
        views.world_to_camera[:, None],
        views.K.expand(count, 1, 3, 3),
        views.width,
        views.height,
        near_plane=0.5,
        render_mode="RGB+ED",
    )
    image, alpha = image[:, 0], alpha[:, 0, ..., 0]
    return Rendering(image[..., :3], image[..., -1], alpha, image[..., 3:5] if flow else None)
