"""Where to sample rays: distances cached on a grid stand in for the network, which is then asked near surfaces only."""

import math

import numpy as np
import torch
from numba import njit
from recon4d.threads import announce_compile
from torch import Tensor

from eyeball_relight.cells import deal
from eyeball_relight.field import Field

CHUNK = 65536
FAR_FROM_SURFACE = 0.15  # bounds; grid points farther away are asked for rarely
REFRESH_ALL = 8  # every so many-th update


def grid_points(size: int) -> Tensor:
    """The (size + 1)^3 corners of a grid over [-1, 1]^3, (..., 3), x slowest."""
    axis = torch.linspace(-1, 1, size + 1)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


@torch.no_grad()
def face_distances(field: Field, x: Tensor, active: list[int]) -> Tensor:
    """Distances (N,) to the face, in chunks, on the device of x (N, 3)."""
    device = field.device
    parts = [field.face(part.to(device), active)[0].to(x.device) for part in x.split(CHUNK)]
    return torch.cat(parts) if parts else x[:, 0]


def update_grid(grid: Tensor, field: Field, active: list[int], number: int) -> None:
    """Refresh cached distances (S, S, S) in place: those near the surface, and all in every few-th update."""
    points = grid_points(len(grid) - 1).view(-1, 3)
    flat = grid.view(-1)
    if number % REFRESH_ALL == 0:
        flat.copy_(face_distances(field, points, active))
    else:
        near = (flat.abs() < FAR_FROM_SURFACE).nonzero()[:, 0]
        flat[near] = face_distances(field, points[near], active)


@njit(cache=True, nogil=True, inline="always")
def _distance(grid: np.ndarray, centres: np.ndarray, radius: float, x: float, y: float, z: float) -> float:
    size = len(grid) - 1
    u, v, w = (x + 1) * 0.5 * size, (y + 1) * 0.5 * size, (z + 1) * 0.5 * size
    i, j, k = min(max(int(u), 0), size - 1), min(max(int(v), 0), size - 1), min(max(int(w), 0), size - 1)
    a, b, c = u - i, v - j, w - k
    low = (grid[i, j, k] * (1 - a) + grid[i + 1, j, k] * a) * (1 - b) + (
        grid[i, j + 1, k] * (1 - a) + grid[i + 1, j + 1, k] * a
    ) * b
    high = (grid[i, j, k + 1] * (1 - a) + grid[i + 1, j, k + 1] * a) * (1 - b) + (
        grid[i, j + 1, k + 1] * (1 - a) + grid[i + 1, j + 1, k + 1] * a
    ) * b
    out: float = low * (1 - c) + high * c
    for e in range(len(centres)):
        dx, dy, dz = x - centres[e, 0], y - centres[e, 1], z - centres[e, 2]
        out = min(out, math.sqrt(dx * dx + dy * dy + dz * dz) - radius)
    return out


@njit(cache=True, nogil=True)
def _march(
    grid: np.ndarray,
    centres: np.ndarray,
    radius: float,
    beta: float,
    origins: np.ndarray,
    directions: np.ndarray,
    wanted: np.ndarray,
    jitter: np.ndarray,
    edges: np.ndarray,
    hit: np.ndarray,
    first: int,
    last: int,
) -> None:
    """For rays first..last: the edges of `edges.shape[1] - 1` bins of about equal opacity, and whether it hits."""
    size = len(grid) - 1
    step = 1.0 / size  # half a cell
    most = 4 * size
    times = np.empty(most + 1)
    mass = np.empty(most)
    bins = edges.shape[1] - 1
    for ray in range(first, last):
        near, far = 0.0, 1e9
        for axis in range(3):
            d = directions[ray, axis]
            if abs(d) < 1e-9:
                d = 1e-9
            t0, t1 = (-1 - origins[ray, axis]) / d, (1 - origins[ray, axis]) / d
            near, far = max(near, min(t0, t1)), min(far, max(t0, t1))
        hit[ray] = False
        if near >= far:
            continue
        count, time, through = 0, near, 1.0
        total = 0.0
        while time < far and count < most and through > 1e-4:
            x = origins[ray, 0] + time * directions[ray, 0]
            y = origins[ray, 1] + time * directions[ray, 1]
            z = origins[ray, 2] + time * directions[ray, 2]
            s = _distance(grid, centres, radius, x, y, z)
            length = max(step, 0.7 * (s - 4 * beta))  # stride through empty space
            length = min(length, far - time)
            density = 0.5 * math.exp(-s / beta) if s > 0 else 1 - 0.5 * math.exp(s / beta)
            alpha = 1 - math.exp(-density / beta * length)
            times[count] = time
            mass[count] = through * alpha
            total += mass[count]
            through *= 1 - alpha
            time += length
            count += 1
        times[count] = time
        hit[ray] = total > 1e-2 or wanted[ray]
        if not hit[ray]:
            continue
        # a little everywhere, so that a surface can appear where none is yet
        spare = (0.02 + 0.3 * (1 - min(total, 1.0))) / (time - near) if wanted[ray] else 0.0
        for i in range(count):
            mass[i] += spare * (times[i + 1] - times[i])
        whole = 0.0
        for i in range(count):
            if mass[i] < 1e-4:
                mass[i] = 0.0
            whole += mass[i]
        if whole <= 0:
            hit[ray] = False
            continue
        cell, below = 0, 0.0
        for e in range(bins + 1):
            share_ = e / bins
            if 0 < e < bins:
                share_ += (jitter[ray, e] - 0.5) / bins
            goal = share_ * whole
            while cell < count - 1 and (mass[cell] == 0.0 or below + mass[cell] < goal):
                below += mass[cell]
                cell += 1
            inside = (goal - below) / mass[cell] if mass[cell] > 0 else 0.0
            edges[ray, e] = times[cell] + min(max(inside, 0.0), 1.0) * (times[cell + 1] - times[cell])


def bins_along(
    grid: Tensor,
    centres: Tensor,
    radius: float,
    beta: float,
    origins: Tensor,
    directions: Tensor,
    wanted: Tensor,
    per_ray: int,
    jitter: Tensor,
) -> tuple[Tensor, Tensor]:
    """Edges (R, per_ray + 1) of sampling bins along rays, and whether a ray is worth sampling (R,).

    Weights of volume rendering are found from the cached distances (VolSDF, Yariv et al. 2021, equations 2 to 5) with a
    beta of at least half a cell, and cut into parts of about equal weight. On the CPU, whatever the rays' device.

    Args:
        grid: (S, S, S) distances to the face. centres: (E, 3) eyeballs; 0 of them is fine. radius: theirs.
        origins, directions: (R, 3), unit directions. wanted: (R,) bool, rays that see something by their mask: they
            are sampled a little everywhere.
        jitter: (R, per_ray + 1) in [0, 1]; 0.5 is the regular position.
    """
    announce_compile("ray marching", 6, _march)
    arrays = [x.detach().cpu().float().contiguous().numpy() for x in (grid, centres, origins, directions, jitter)]
    edges, hit = np.zeros((len(origins), per_ray + 1), np.float32), np.zeros(len(origins), np.bool_)
    flags = wanted.numpy()
    beta = max(beta, 0.5 * 2 / (len(grid) - 1))
    parts = max(1, min(32, len(origins) // 128))
    ends = np.linspace(0, len(origins), parts + 1).astype(int)
    deal(
        lambda p: _march(
            arrays[0], arrays[1], radius, beta, arrays[2], arrays[3], flags, arrays[4], edges, hit, ends[p], ends[p + 1]
        ),
        parts,
    )
    return torch.from_numpy(edges), torch.from_numpy(hit)
