"""Images of moving Gaussians at a moment: colour, depth and motion on the image."""

import math
from dataclasses import dataclass

import torch
from recon4d import splat
from torch import Tensor

from flux4d.gaussians import MovingGaussians, deviations, moved, opacities_at, velocity_at
from flux4d.timed_cameras import TimedCameras

MAX_FLOW = 10.0  # pixels, in the weights of the loss
LEAST_COVER = 0.05  # share of a pixel that has to be covered, for its colour to be that of what covers it


@dataclass(frozen=True, eq=False)
class Rendering:
    """colour: (F, H, W, 3); what nothing covers of a pixel is as the rest of it. over_black: (F, H, W, 3) the same
    before black, to learn to cover. depth: (F, H, W) expected, metres. alpha: (F, H, W). flow: (F, H, W, 2) pixels per
    step, 0 where `render` was not asked for it."""

    colour: Tensor
    depth: Tensor
    alpha: Tensor
    flow: Tensor
    over_black: Tensor


def image_velocity(means: Tensor, velocities: Tensor, cameras: TimedCameras) -> Tensor:
    """(F, N, 2) pixels per step on the image of a camera that stands still: J R v dt, J the projection's Jacobian.

    The norm is clipped to MAX_FLOW; points nearer than half a metre to the camera's plane have none.
    """
    K, world_to_camera = cameras.batch.K[:, None], cameras.batch.world_to_camera
    rotation, shift = world_to_camera[:, :3, :3], world_to_camera[:, None, :3, 3]
    x, y, z = (means @ rotation.transpose(1, 2) + shift).unbind(-1)
    vx, vy, vz = (velocities @ rotation.transpose(1, 2) * cameras.steps[:, None, None]).unbind(-1)
    near = z < 0.5
    z = z.clamp_min(0.5)
    flow = torch.stack([K[..., 0, 0] * (vx - x / z * vz) / z, K[..., 1, 1] * (vy - y / z * vz) / z], -1)
    norm = flow.norm(dim=-1, keepdim=True)
    flow = flow * (MAX_FLOW / norm.clamp_min(MAX_FLOW))
    return torch.where(near[..., None], 0.0, flow)


def render(
    gaussians: MovingGaussians, cameras: TimedCameras, flow: bool = False, within: float = math.inf
) -> Rendering:
    """Images of Gaussians at the cameras' times; with `flow` also their motion on the image, by their share of a pixel.

    Args:
        within: seconds; an image shows only the sky and what was seen so shortly before or after it.
    """
    means = moved(gaussians, cameras.times)
    count = len(cameras)

    def each(values: Tensor) -> Tensor:
        return values[None].expand(count, *values.shape)

    colours = each(gaussians.colours.sigmoid())
    if flow:
        motion = image_velocity(means.detach(), velocity_at(gaussians, cameras.times).detach(), cameras)
        colours = torch.cat([colours, motion], -1)
    opacities = opacities_at(gaussians, cameras.times)
    if within < math.inf:
        near = (gaussians.times - cameras.times[:, None]).abs() <= within
        opacities = torch.where(near | gaussians.sky, opacities, 0.0)
    image, alpha, _ = splat.rasterize(
        means,
        each(gaussians.quats),
        each(deviations(gaussians)),
        opacities,
        colours,
        cameras.batch.world_to_camera[:, None],
        cameras.batch.K[:, None],
        cameras.batch.width,
        cameras.batch.height,
        near_plane=0.5,
        render_mode="RGB+ED",
    )
    image, alpha = image[:, 0], alpha[:, 0, ..., 0]
    motion = image[..., 3:5] if flow else image.new_zeros(()).expand(*image.shape[:-1], 2)
    dark = image[..., :3]
    return Rendering(dark / alpha[..., None].clamp_min(LEAST_COVER), image[..., -1], alpha, motion, dark)
