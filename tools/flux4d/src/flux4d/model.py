"""The networks: initial Gaussians in, Gaussians with velocities out, one pass and a few refinements (Flux4D, 3.2)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flux4d import sparse
from flux4d.config import Model as Settings
from flux4d.gaussians import PARAMETERS, MovingGaussians
from flux4d.sparse import Grid

# How far an output of 1 moves each parameter: the mean in metres, the rest in their own units
_GAINS = torch.tensor([0.1] * 3 + [1.0] * 3 + [0.5] * 4 + [1.0] + [1.0] * 3)
_SPEED = 5.0  # m/s per output of 1
_LIFE = (-1.5, 3.5)  # logarithms of the least and the longest lifetime, by the first


@dataclass(frozen=True, eq=False)
class Input:
    """What the network needs of a clip: its Gaussians, and their voxels."""

    gaussians: MovingGaussians
    grid: Grid


def _reach(settings: Settings, like: Tensor) -> Tensor:
    return like.new_tensor([settings.range_xy, settings.range_xy, settings.range_z])


def prepare(gaussians: MovingGaussians, settings: Settings) -> Input:
    """Gaussians with their voxels around the clip's first ego frame."""
    high = _reach(settings, gaussians.means)
    grid = sparse.voxelize(gaussians.means, settings.voxel, -high, high, len(settings.channels))
    return Input(gaussians, grid)


def features(gaussians: MovingGaussians, settings: Settings) -> Tensor:
    """(N, 15) the 14 parameters and the time, each about -1..1; then what the settings add: in which part of a second
    it was seen, how long it is there."""
    g = gaussians
    columns = [
        (g.means / _reach(settings, g.means)).clamp(-2, 2),
        g.scales / 3,
        g.quats,
        g.opacities / 3,
        g.colours / 3,
        2 * g.times[:, None] - 1,
    ]
    if settings.moments:
        # a tent over each moment, so that a voxel's mean says how its points share in them
        place = g.times[:, None] * (settings.moments - 1) - torch.arange(settings.moments).to(g.times)
        columns.append((1 - place.abs()).clamp_min(0) * ~g.sky[:, None])
    if settings.lifetime is not None:
        columns.append((g.lifetimes / settings.lifetime).clamp(1e-3, 1e3).log()[:, None] / 3)
    return torch.cat(columns, 1)


def _width(settings: Settings) -> int:
    """Of `features`."""
    return PARAMETERS + 1 + settings.moments + (settings.lifetime is not None)


class Branch(nn.Module):
    """A U-Net over the voxels and a head over the points: residuals of parameters and velocities.

    The head sees its point's place in the voxel and the difference of its features to the voxel's mean: what
    averaging loses.
    """

    def __init__(self, inputs: int, settings: Settings):
        super().__init__()
        self.settings = settings
        self.unet = sparse.UNet(inputs, settings.channels)
        width = settings.channels[0] + 2 * inputs + 3
        first, second = nn.Linear(width, settings.hidden), nn.Linear(settings.hidden, settings.hidden)
        self.widths = [PARAMETERS, 3 * (settings.polynomial + 1), int(settings.lifetime is not None)]
        last = nn.Linear(settings.hidden, sum(self.widths))
        self.head = nn.Sequential(first, nn.LeakyReLU(0.1), second, nn.LeakyReLU(0.1), last)
        nn.init.normal_(last.weight, std=1e-3)  # begin at the initial Gaussians
        nn.init.zeros_(last.bias)

    def forward(self, given: Input, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, C) -> residuals (N, 14), velocity coefficients (N, L, 3), changes of lifetimes (N, 1 or 0)."""
        grid, gaussians = given.grid, given.gaussians
        voxels = grid.levels[0]
        mean = sparse.mean_by_row(values[grid.inside], grid.rows, len(voxels))
        found = self.unet(mean, grid.levels)
        inside = grid.inside[:, None].to(values.dtype)

        def to_points(rows: Tensor) -> Tensor:
            return rows.new_zeros(len(values), rows.shape[1]).index_put((grid.inside,), rows.index_select(0, grid.rows))

        low = -_reach(self.settings, gaussians.means)
        place = ((gaussians.means - low) / self.settings.voxel).frac() - 0.5
        out = self.head(torch.cat([to_points(found), values, (values - to_points(mean)) * inside, place * inside], 1))
        residuals, velocities, lives = out.split(self.widths, 1)
        velocities = _SPEED * velocities.unflatten(1, (-1, 3)) * inside[:, None]
        gains = _GAINS.to(out).expand(len(out), -1).clone()
        gains[gaussians.sky, :3] = 0  # the sky stays on its sphere
        return residuals * gains, velocities, lives


class Flux(nn.Module):
    """The network: `base` in one pass and, where the settings ask for refinements, `refiner` in each of them (f and r
    in the paper)."""

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings
        self.base = Branch(_width(settings), settings)
        slopes = PARAMETERS + (3 * (settings.polynomial + 1) if settings.refine_velocity else 0)
        self.refiner = Branch(_width(settings) + slopes, settings) if settings.refinements else None

    def forward(
        self, given: Input, loss: Callable[[MovingGaussians], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The parameters (N, 14), velocities (N, L, 3) and lifetimes (N,) of a clip's Gaussians.

        Args:
            loss: of Gaussians on the input frames; its gradient guides the refinements. Needed when there are any.
        """
        start = given.gaussians
        if self.settings.lifetime is not None:
            start = replace(start, lifetimes=start.times.new_full((len(start),), self.settings.lifetime))
        found = self._changed(start, start.velocities[:, :0], self.base(given, features(start, self.settings)))
        for _ in range(self.settings.refinements):
            if self.refiner is None or loss is None:
                raise ValueError("a network with refinements needs a loss")
            slope = gradient(found, loss, self.settings.refine_velocity)
            values = torch.cat([features(found, self.settings), slope], 1)
            found = self._changed(found, found.velocities, self.refiner(given, values))
        return found.parameters, found.velocities, found.lifetimes

    def _changed(
        self, gaussians: MovingGaussians, before: Tensor, change: tuple[Tensor, Tensor, Tensor]
    ) -> MovingGaussians:
        """Gaussians moved on by a branch's outputs; `before` are their velocities, where there are any."""
        residuals, velocities, lives = change
        if before.shape[1]:
            velocities = before + velocities
        if self.settings.matched:
            more = velocities.shape[1] - gaussians.velocities.shape[1]
            known = nn.functional.pad(gaussians.velocities, (0, 0, 0, more))
            velocities = torch.where(gaussians.settled[:, None, None], known, velocities)
        lifetimes = gaussians.lifetimes
        if self.settings.lifetime is not None:
            low, high = (self.settings.lifetime * math.exp(side) for side in _LIFE)
            mortal = lifetimes.clamp(max=high)  # infinity times the gradient 0 would be no number
            lifetimes = (mortal * lives[:, 0].clamp(-3, 3).exp()).clamp(low, high)
            lifetimes = torch.where(gaussians.sky, torch.inf, lifetimes)
        return gaussians.with_parameters(gaussians.parameters + residuals, velocities, lifetimes)


def gradient(gaussians: MovingGaussians, loss: Callable[[MovingGaussians], Tensor], moving: bool = False) -> Tensor:
    """(N, 14) gradient of a loss by the parameters, and, if `moving`, by the velocities (N, 3 L); detached, scaled to
    a typical size of 1 per column."""
    with torch.enable_grad():
        parameters = gaussians.parameters.detach().requires_grad_(True)
        velocities = gaussians.velocities.detach().requires_grad_(moving)
        value = loss(gaussians.with_parameters(parameters, velocities, gaussians.lifetimes.detach()))
        slopes = torch.autograd.grad(value, [parameters, velocities] if moving else [parameters])
    slope = torch.cat([part.flatten(1) for part in slopes], 1)
    spread = slope.square().mean(0).sqrt().clamp_min(1e-12)
    return (slope / spread).clamp(-5, 5)


def describe(given: Input) -> dict[str, Any]:
    """Counts of a clip's Gaussians, voxels and points per voxel, and what they span in space and time."""
    gaussians, grid = given.gaussians, given.grid
    finest = grid.levels[0]
    per_voxel = torch.bincount(grid.rows, minlength=len(finest)).double()
    low, high = gaussians.means[~gaussians.sky].aminmax(dim=0)
    return {
        "gaussians": len(gaussians),
        "sky": int(gaussians.sky.sum()),
        "inside": int(grid.inside.sum()),
        "voxels": [len(level) for level in grid.levels],
        "points_per_voxel_mean": float(per_voxel.mean()) if len(finest) else 0.0,
        "points_per_voxel_max": int(per_voxel.max()) if len(finest) else 0,
        "neighbours_mean": sum(len(rows) for rows, _ in finest.same) / max(len(finest), 1) - 1,
        "low": low.tolist(),
        "high": high.tolist(),
        "time_from": float(gaussians.times.min()),
        "time_to": float(gaussians.times.max()),
    }
