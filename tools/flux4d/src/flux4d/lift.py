"""Lifting: LiDAR points and sky points become the Gaussians that the network starts from (Flux4D, section 3.1)."""

import math

import numpy as np
import torch
from recon4d import InputError
from scipy.spatial import cKDTree
from torch import Tensor

from flux4d import fill, matching
from flux4d.clips import Clip, in_view
from flux4d.config import Lift
from flux4d.gaussians import MovingGaussians, inverse_softplus


def coloured(points: Tensor, clip: Clip, frame: int) -> tuple[Tensor, Tensor]:
    """Colours (N, 3) in [0, 1] of points in the image of a frame, and whether (N,) they are in it."""
    pixels, _, inside = in_view(points, clip.camera(frame))
    colours = torch.full((len(points), 3), 0.5)
    column, row = pixels[inside].long().unbind(-1)
    colours[inside] = clip.images[frame][row, column].float() / 255
    return colours, inside


def neighbour_distance(points: np.ndarray, k: int = 3) -> np.ndarray:
    """(N,) mean distance of each point to its k nearest neighbours; 0.1 where there are none."""
    if len(points) <= k:
        return np.full(len(points), 0.1)
    distances, _ = cKDTree(points).query(points, k + 1)
    return distances[:, 1:].mean(1)


def voxel_downsample(points: Tensor, times: Tensor, size: float) -> Tensor:
    """Indices of one point per voxel of `size` metres and 0.05 s: a moving thing keeps a point for each moment."""
    keys = torch.cat([(points / size).floor(), (times[:, None] / 0.05).round()], 1).long()
    _, inverse = torch.unique(keys, dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1 if len(points) else 0,), len(points))
    return first.scatter_reduce(0, inverse, torch.arange(len(points)), "amin").sort().values


def sky_points(radius: float, number: int) -> Tensor:
    """(number, 3) evenly spread over the upper half of a sphere: a Fibonacci lattice."""
    i = torch.arange(number, dtype=torch.float64)
    z = (i + 0.5) / number
    angle = i * math.pi * (3 - math.sqrt(5))
    around = (1 - z * z).sqrt()
    return (radius * torch.stack([around * angle.cos(), around * angle.sin(), z], -1)).float()


def lift(
    clip: Clip,
    settings: Lift,
    seed: int = 0,
    depth_points: list[tuple[Tensor, Tensor]] | None = None,
    matched: bool = False,
) -> MovingGaussians:
    """The initial Gaussians of a clip from its input frames.

    LiDAR points keep their place and time; their colour is the image's of their own frame, and points outside of it
    have none and are left out. Scale is the mean distance to 3 neighbours of the same sweep, opacity 0.5, rotation a
    random unit quaternion. With `fill` pixels become Gaussians, at depths between the points'. Sky points stand on a
    sphere of 4 times the length of the points' bounding box.

    Args:
        depth_points: more points per input frame, (N, 3) and colours (N, 3), as from depth maps.
        matched: velocities by `matching`, of what they are known of; with `fill`.

    Raises:
        InputError: no point is in any image.
    """
    generator = torch.Generator().manual_seed(seed)
    skies: list[Tensor] | None = None
    velocity, known = torch.zeros(0, 3), torch.zeros(0, dtype=torch.bool)
    if settings.fill and depth_points is None:
        parts, maps, skies = fill.lifted(clip, settings.max_gaussians)
        mean, colour, time, scale, own_quats = (torch.cat(columns) for columns in zip(*parts))
        if matched:
            velocity, known = matching.settled(mean, colour, time, clip, matching.sweeps_of(clip, maps, skies))
    else:
        mean, colour, time, scale = _seen_points(clip, settings, generator, depth_points)
        scale, own_quats = scale[:, None].expand(-1, 3), mean.new_zeros(0, 4)
    if len(mean) == 0:
        raise InputError(f"clip {clip.name}: no point of its input frames is in the image; check poses and intrinsics")
    scale = (settings.scale * scale).clamp(0.01, settings.max_scale)
    sky, sky_colour = _sky(mean, clip, settings.sky_points, skies)
    # one point's share of the half sphere
    sky_scale = torch.full(
        (len(sky), 3), 0.7 * float(sky[:1].norm()) * math.sqrt(2 * math.pi / max(settings.sky_points, 1))
    )

    n = len(mean) + len(sky)
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=generator), dim=1)
    quats[: len(own_quats)] = own_quats
    velocities, settled = torch.zeros(n, 1, 3), torch.zeros(n, dtype=torch.bool)
    velocities[: len(velocity), 0], settled[: len(known)] = velocity, known
    return MovingGaussians(
        means=torch.cat([mean, sky]),
        scales=inverse_softplus(torch.cat([scale, sky_scale])),
        quats=quats,
        opacities=torch.full((n, 1), torch.logit(torch.tensor(settings.opacity)).item()),
        colours=torch.cat([colour, sky_colour]).clamp(0.02, 0.98).logit(),
        times=torch.cat([time, torch.zeros(len(sky))]),
        velocities=velocities,
        sky=torch.arange(n) >= len(mean),
        settled=settled,
    )


def _seen_points(
    clip: Clip, settings: Lift, generator: torch.Generator, depth_points: list[tuple[Tensor, Tensor]] | None
) -> tuple[Tensor, ...]:
    """Places (N, 3), colours (N, 3), moments (N,) and sizes (N,) of the points in the input frames' images."""
    means, colours, times, scales = [], [], [], []
    for number, frame in enumerate(clip.input):
        sets = []
        if settings.points != "depth":
            sweep = clip.frame_of(frame)
            points, moments = clip.points[sweep], clip.point_times[sweep]
            colour, inside = coloured(points, clip, frame)
            for other in clip.input[:number]:  # what another camera saw of this sweep is there already
                if clip.frame_of(other) == sweep:
                    inside &= ~in_view(points, clip.camera(other))[2]
            sets.append((points[inside], colour[inside], moments[inside]))
        if depth_points is not None:
            points, colour = depth_points[number]
            sets.append((points, colour, clip.times[frame].expand(len(points))))
        points, colour, moments = (torch.cat(parts) for parts in zip(*sets))
        if settings.voxel_size:
            kept = voxel_downsample(points, moments, settings.voxel_size)
            points, colour, moments = points[kept], colour[kept], moments[kept]
        means.append(points)
        colours.append(colour)
        times.append(moments)
        scales.append(torch.from_numpy(neighbour_distance(points.numpy())).float())
    mean, colour, time, scale = (torch.cat(parts) for parts in (means, colours, times, scales))
    if len(mean) > settings.max_gaussians:
        # a random choice, so that no region is preferred; the fewer points get larger
        kept = torch.randperm(len(mean), generator=generator)[: settings.max_gaussians].sort().values
        grow = math.sqrt(len(mean) / settings.max_gaussians)
        mean, colour, time, scale = mean[kept], colour[kept], time[kept], scale[kept] * grow
    return mean, colour, time, scale


def _sky(points: Tensor, clip: Clip, number: int, skies: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Places (M, 3) and colours (M, 3) of those of the half sphere's points that an input frame sees; where its sky is
    known, there alone."""
    length = float((points.max(0).values - points.min(0).values).max())
    sky = sky_points(max(4 * length, 100.0), number)
    colour = torch.full((len(sky), 3), 0.5)
    seen = torch.zeros(len(sky), dtype=torch.bool)
    for i, frame in enumerate(clip.input):
        found, inside = coloured(sky, clip, frame)
        if skies is not None:
            column, row = in_view(sky[inside], clip.camera(frame))[0].long().unbind(-1)
            inside[inside.clone()] = skies[i][row, column]
        colour = torch.where((inside & ~seen)[:, None], found, colour)
        seen |= inside
    return sky[seen], colour[seen]
