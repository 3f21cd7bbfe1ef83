"""Gaussians that move: how the network holds them, where they are at a moment, and how fast."""

from dataclasses import dataclass, replace

import numpy as np
import roma
import torch
from torch import Tensor

PARAMETERS = 14  # mean 3, scale 3, quaternion 4, opacity 1, colour 3


@dataclass(frozen=True, eq=False)
class MovingGaussians:
    """N Gaussians in the form in which the network changes them, in a clip's frame or in the world.

    means: (N, 3) metres. scales: (N, 3), metres through softplus. quats: (N, 4) wxyz. opacities: (N, 1), [0, 1]
    through sigmoid. colours: (N, 3), sRGB through sigmoid. times: (N,) seconds, when each was seen.
    velocities: (N, L, 3), coefficients of time^0 .. time^(L-1), m/s. sky: (N,) bool. lifetimes: (N,) seconds, after
    and before which its opacity has fallen to exp(-1/2); left out, or infinite, it is there always. settled: (N,) bool,
    whether the velocity is known by `matching`, for the network alone; left out, none is.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    colours: Tensor
    times: Tensor
    velocities: Tensor
    sky: Tensor
    lifetimes: Tensor = None  # type: ignore[assignment]
    settled: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.lifetimes is None:
            object.__setattr__(self, "lifetimes", torch.full_like(self.times, torch.inf))
        if self.settled is None:
            object.__setattr__(self, "settled", torch.zeros_like(self.sky))

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, keep: Tensor) -> "MovingGaussians":
        """Only some of them: (N,) bool, or indices."""
        return MovingGaussians(**{name: value[keep] for name, value in vars(self).items()})

    @property
    def parameters(self) -> Tensor:
        """(N, 14) in the order of `PARAMETERS`."""
        return torch.cat([self.means, self.scales, self.quats, self.opacities, self.colours], 1)

    def with_parameters(
        self, parameters: Tensor, velocities: Tensor, lifetimes: Tensor | None = None
    ) -> "MovingGaussians":
        """The same with other parameters (N, 14), whose quaternions are normalised, velocities, and lifetimes where
        they are given."""
        means, scales, quats, opacities, colours = parameters.split([3, 3, 4, 1, 3], 1)
        quats = torch.nn.functional.normalize(quats, dim=1)
        return replace(
            self,
            means=means,
            scales=scales,
            quats=quats,
            opacities=opacities,
            colours=colours,
            velocities=velocities,
            lifetimes=self.lifetimes if lifetimes is None else lifetimes,
        )

    def to(self, device: torch.device | str) -> "MovingGaussians":
        return MovingGaussians(**{name: value.to(device) for name, value in vars(self).items()})


def joined(one: MovingGaussians, other: MovingGaussians) -> MovingGaussians:
    """Both, one after the other."""
    return MovingGaussians(**{name: torch.cat([value, getattr(other, name)]) for name, value in vars(one).items()})


def inverse_softplus(x: Tensor) -> Tensor:
    """log(exp(x) - 1), for positive x of any size."""
    return x + torch.log(-torch.expm1(-x))


def moved(gaussians: MovingGaussians, times: Tensor) -> Tensor:
    """Means (F, N, 3) at times (F,): p + sum_j v_j (t^(j+1) - t_i^(j+1)) / (j + 1) (Flux4D, equation 3)."""
    start, end = gaussians.times[None, :], times[:, None]
    means = gaussians.means[None].expand(len(times), -1, -1)
    for j in range(gaussians.velocities.shape[1]):
        means = means + gaussians.velocities[None, :, j] * ((end ** (j + 1) - start ** (j + 1)) / (j + 1))[..., None]
    return means


def velocity_at(gaussians: MovingGaussians, times: Tensor) -> Tensor:
    """(F, N, 3) velocities in m/s at times (F,): sum_j v_j t^j."""
    out = gaussians.velocities.new_zeros(len(times), len(gaussians), 3)
    for j in range(gaussians.velocities.shape[1]):
        out = out + gaussians.velocities[None, :, j] * (times[:, None, None] ** j)
    return out


def opacities_at(gaussians: MovingGaussians, times: Tensor) -> Tensor:
    """(F, N) opacities at times (F,): o exp(-(t - t_i)^2 / (2 l^2)), l the lifetime; o for ever before the first and
    after the last Gaussian's time, where nothing newer takes its place."""
    opacities = gaussians.opacities[:, 0].sigmoid().expand(len(times), -1)
    mortal = gaussians.lifetimes.isfinite()
    if not mortal.any():
        return opacities
    first, last = gaussians.times[mortal].aminmax()
    away = (times.clamp(first, last)[:, None] - gaussians.times) / gaussians.lifetimes.clamp_min(1e-3)
    return opacities * torch.exp(-away.square() / 2)


def deviations(gaussians: MovingGaussians) -> Tensor:
    """(N, 3) standard deviations in metres: softplus of the scales, at most 1 m, and for the sky 100 m."""
    grown = torch.nn.functional.softplus(gaussians.scales)
    return torch.where(gaussians.sky[:, None], grown.clamp(max=100.0), grown.clamp(max=1.0))


def to_world(gaussians: MovingGaussians, ego_to_world: np.ndarray) -> MovingGaussians:
    """Gaussians of a clip's frame in the world, on the CPU: moved and rotated, velocities rotated."""
    gaussians = gaussians.to("cpu")
    pose = torch.from_numpy(ego_to_world)
    rotation = pose[:3, :3]
    x, y, z, w = roma.rotmat_to_unitquat(rotation).tolist()
    turn = torch.tensor([[x, y, z, w]], dtype=torch.float64)
    own = gaussians.quats.double()[:, [1, 2, 3, 0]]
    quats = roma.quat_product(turn.expand(len(own), 4), own)[:, [3, 0, 1, 2]]
    return replace(
        gaussians,
        means=(gaussians.means.double() @ rotation.T + pose[:3, 3]).float(),
        quats=quats.float(),
        velocities=(gaussians.velocities.double() @ rotation.T).float(),
    )
