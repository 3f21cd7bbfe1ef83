"""Moving things in a reconstructed scene: found by clustering, then removed, moved or copied."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError, runs
from sklearn.cluster import DBSCAN
from torch import Tensor

from flux4d import pictures, scenes
from flux4d.gaussians import MovingGaussians, joined, moved, velocity_at


@dataclass(frozen=True)
class FoundActor:
    """A cluster. centre: (3,) metres in the world at the scene's middle time. velocity: (3,) m/s. gaussians: count."""

    number: int
    centre: tuple[float, ...]
    velocity: tuple[float, ...]
    speed: float
    gaussians: int


def find(
    gaussians: MovingGaussians,
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


def describe(gaussians: MovingGaussians, labels: Tensor, time: float) -> list[FoundActor]:
    """The clusters, largest first in size, by their numbers."""
    moment = torch.tensor([time])
    places, velocity = moved(gaussians, moment)[0], velocity_at(gaussians, moment)[0]
    out = []
    for number in range(int(labels.max()) + 1):
        on = labels == number
        v = velocity[on].median(0).values
        centre = tuple(round(float(x), 3) for x in places[on].mean(0))
        out.append(FoundActor(number, centre, tuple(round(float(x), 3) for x in v), float(v.norm()), int(on.sum())))
    return sorted(out, key=lambda actor: -actor.gaussians)


def _chosen(labels: Tensor, number: int, option: str) -> Tensor:
    on = labels == number
    if not on.any():
        raise InputError(f"{option} {number}: there is no such actor; edit without options lists them")
    return on


def remove(gaussians: MovingGaussians, labels: Tensor, number: int) -> tuple[MovingGaussians, Tensor]:
    """The scene and labels without an actor."""
    keep = ~_chosen(labels, number, "--remove")
    return gaussians[keep], labels[keep]


def move(
    gaussians: MovingGaussians, labels: Tensor, number: int, offset: tuple[float, float, float]
) -> MovingGaussians:
    """An actor shifted by metres in the world, at all times."""
    on = _chosen(labels, number, "--move")
    return replace(gaussians, means=gaussians.means + on[:, None] * torch.tensor(offset))


def add(
    gaussians: MovingGaussians, labels: Tensor, number: int, offset: tuple[float, float, float]
) -> tuple[MovingGaussians, Tensor]:
    """A copy of an actor, shifted by metres in the world; the copy has the next free number."""
    on = _chosen(labels, number, "--add")
    copy = gaussians[on]
    copy = replace(copy, means=copy.means + torch.tensor(offset))
    return joined(gaussians, copy), torch.cat([labels, torch.full((len(copy),), int(labels.max()) + 1)])


@torch.no_grad()
def edit(
    scene_dir: str | Path,
    out_dir: str | Path,
    *,
    removed: Sequence[int] = (),
    moves: Sequence[tuple[float, float, float, float]] = (),
    copies: Sequence[tuple[float, float, float, float]] = (),
    min_speed: float = 0.5,
    distance: float = 1.0,
    fps: float = 30.0,
    slow: float = 4.0,
    force: bool = False,
) -> dict[str, Any]:
    """List the moving actors of a scene; where there is something to change, write the changed scene and its video.

    Args:
        scene_dir: written by `scenes.reconstruct` or `edit`.
        removed: numbers of actors to take away, after the moves and copies.
        moves, copies: an actor's number, and by how many metres in x, y, z it, or a copy of it, is shifted.
        min_speed, distance: as in `find`.
        fps, slow: of the video, as in `scenes.reconstruct`.
        force: replace what is in `out_dir`.

    Raises:
        InputError: no scene, no such actor, an output that exists.
    """
    if not distance > 0:
        raise ValueError(f"distance {distance} must be positive")
    gaussians, path = scenes.read(scene_dir)
    middle = float(path.times[[0, -1]].mean())
    labels = find(gaussians, middle, min_speed, distance)
    result: dict[str, Any] = {"actors": [asdict(actor) for actor in describe(gaussians, labels, middle)]}
    if not (removed or moves or copies):
        return result
    for number, x, y, z in moves:
        gaussians = move(gaussians, labels, int(number), (x, y, z))
    for number, x, y, z in copies:
        gaussians, labels = add(gaussians, labels, int(number), (x, y, z))
    for actor in removed:
        gaussians, labels = remove(gaussians, labels, actor)
    out = Path(out_dir)
    with runs.claim(out, "flux4d edit", force=force, inputs=[scene_dir]):
        scenes.write(out, gaussians, path)
        frames = pictures.write_video(out / "render.mp4", gaussians, path, fps, slow)
    return result | {"frames": frames, "gaussians": len(gaussians), "folder": str(out)}
