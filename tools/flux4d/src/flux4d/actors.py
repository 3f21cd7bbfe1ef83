"""Moving things in a reconstructed scene: found by clustering, then removed, moved or copied."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from recon4d import InputError
from sklearn.cluster import DBSCAN
from torch import Tensor

from flux4d.lift import Gaussians
from flux4d.rendering import moved, velocity_at


@dataclass(frozen=True)
class Actor:
    """A cluster. centre: (3,) metres in the world at the scene's middle time. velocity: (3,) m/s. gaussians: count."""

    number: int
    centre: tuple[float, ...]
    velocity: tuple[float, ...]
    speed: float
    gaussians: int


def find(
    gaussians: Gaussians,
    time: float,
    min_speed: float = 0.5,
    distance: float = 1.0,
    speed_distance: float = 2.0,
    min_gaussians: int = 10,
) -> Tensor:
    """(N,) the cluster of each Gaussian at a time, -1 for none: DBSCAN over position and velocity.

    Args:
        min_speed: m/s, what is slower stands. distance: metres between neighbours of a cluster. speed_distance: m/s
            that count as much. min_gaussians: a smaller cluster is none.
    """
    moment = torch.tensor([time])
    places, velocity = moved(gaussians, moment)[0], velocity_at(gaussians, moment)[0]
    fast = (velocity.norm(dim=1) > min_speed) & ~gaussians.sky & (gaussians.opacities[:, 0].sigmoid() > 0.05)
    labels = torch.full((len(gaussians),), -1)
    if int(fast.sum()) >= min_gaussians:
        space = torch.cat([places[fast] / distance, velocity[fast] / speed_distance], 1).detach().numpy()
        found = DBSCAN(eps=1.0, min_samples=min_gaussians).fit_predict(space)
        labels[fast] = torch.from_numpy(found.astype(np.int64))
    return labels


def describe(gaussians: Gaussians, labels: Tensor, time: float) -> list[Actor]:
    """The clusters, largest first in size, by their numbers."""
    moment = torch.tensor([time])
    places, velocity = moved(gaussians, moment)[0], velocity_at(gaussians, moment)[0]
    out = []
    for number in range(int(labels.max()) + 1):
        on = labels == number
        v = velocity[on].median(0).values
        centre = tuple(round(float(x), 3) for x in places[on].mean(0))
        out.append(Actor(number, centre, tuple(round(float(x), 3) for x in v), float(v.norm()), int(on.sum())))
    return sorted(out, key=lambda actor: -actor.gaussians)


def _chosen(labels: Tensor, number: int, option: str) -> Tensor:
    on = labels == number
    if not on.any():
        raise InputError(f"{option} {number}: there is no such actor; edit without options lists them")
    return on


def select(gaussians: Gaussians, keep: Tensor) -> Gaussians:
    """Only some of the Gaussians: (N,) bool, or indices."""
    return Gaussians(**{name: value[keep] for name, value in vars(gaussians).items()})


def remove(gaussians: Gaussians, labels: Tensor, number: int) -> tuple[Gaussians, Tensor]:
    """The scene and labels without an actor."""
    keep = ~_chosen(labels, number, "--remove")
    return select(gaussians, keep), labels[keep]


def move(gaussians: Gaussians, labels: Tensor, number: int, offset: tuple[float, float, float]) -> Gaussians:
    """An actor shifted by metres in the world, at all times."""
    on = _chosen(labels, number, "--move")
    return replace(gaussians, means=gaussians.means + on[:, None] * torch.tensor(offset))


def add(
    gaussians: Gaussians, labels: Tensor, number: int, offset: tuple[float, float, float]
) -> tuple[Gaussians, Tensor]:
    """A copy of an actor, shifted by metres in the world; the copy has the next free number."""
    on = _chosen(labels, number, "--add")
    copy = select(gaussians, on)
    copy = replace(copy, means=copy.means + torch.tensor(offset))
    joined = Gaussians(**{name: torch.cat([value, getattr(copy, name)]) for name, value in vars(gaussians).items()})
    return joined, torch.cat([labels, torch.full((len(copy),), int(labels.max()) + 1)])
