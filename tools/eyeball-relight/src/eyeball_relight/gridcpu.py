"""Kernels of the hash grid for the CPU, in Numba, for float32 and float64.

Each level is one job of `share`, so no two threads write to the same table, and a level's table stays in the cache.
"""

import math

import numpy as np
import torch
from numba import njit
from recon4d.threads import announce_compile, share
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)  # of the hash of a corner (Müller et al. 2022, equation 4)


@njit(cache=True, nogil=True, inline="always")
def _row(x: int, y: int, z: int, side: int, entries: int) -> int:
    """Where corner (x, y, z) of a level with `side` corners per axis is stored."""
    if side * side * side <= entries:
        return (z * side + y) * side + x
    return (x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]) & (entries - 1)


@njit(cache=True, nogil=True, inline="always")
def _axis(coordinate: float, resolution: int) -> tuple[int, float, float, float]:
    """Cell, and smoothstep weight with its first and second derivative by the coordinate."""
    scaled = coordinate * resolution
    cell = min(max(math.floor(scaled), 0), resolution - 1)
    t = min(max(scaled - cell, 0.0), 1.0)
    return (
        cell,
        t * t * (3 - 2 * t),
        6 * t * (1 - t) * resolution,
        (6 - 12 * t) * resolution * resolution,
    )


@njit(cache=True, nogil=True)
def forward_level(x: np.ndarray, table: np.ndarray, resolution: int, out: np.ndarray) -> None:
    """out (N, F) of points x (N, 3) in [0, 1] and one level's table (entries, F)."""
    entries, features = table.shape
    for n in range(len(x)):
        i, a, _, _ = _axis(x[n, 0], resolution)
        j, b, _, _ = _axis(x[n, 1], resolution)
        k, c, _, _ = _axis(x[n, 2], resolution)
        for f in range(features):
            out[n, f] = 0
        for corner in range(8):
            u, v, w = corner & 1, (corner >> 1) & 1, corner >> 2
            row = _row(i + u, j + v, k + w, resolution + 1, entries)
            weight = (a if u else 1 - a) * (b if v else 1 - b) * (c if w else 1 - c)
            for f in range(features):
                out[n, f] += weight * table[row, f]


@njit(cache=True, nogil=True)
def backward_level(
    x: np.ndarray,
    table: np.ndarray,
    resolution: int,
    grad_out: np.ndarray,
    grad_table: np.ndarray,
    grad_x: np.ndarray,
    by_table: bool,
    by_x: bool,
) -> None:
    """Add to grad_table (entries, F) and set grad_x (N, 3), from grad_out (N, F); each only where asked for."""
    entries, features = table.shape
    for n in range(len(x)):
        i, a, da, _ = _axis(x[n, 0], resolution)
        j, b, db, _ = _axis(x[n, 1], resolution)
        k, c, dc, _ = _axis(x[n, 2], resolution)
        gx = gy = gz = 0.0
        for corner in range(8):
            u, v, w = corner & 1, (corner >> 1) & 1, corner >> 2
            row = _row(i + u, j + v, k + w, resolution + 1, entries)
            wa, wb, wc = (a if u else 1 - a), (b if v else 1 - b), (c if w else 1 - c)
            if by_table:
                weight = wa * wb * wc
                for f in range(features):
                    grad_table[row, f] += weight * grad_out[n, f]
            if by_x:
                dot = 0.0
                for f in range(features):
                    dot += table[row, f] * grad_out[n, f]
                gx += (da if u else -da) * wb * wc * dot
                gy += wa * (db if v else -db) * wc * dot
                gz += wa * wb * (dc if w else -dc) * dot
        if by_x:
            grad_x[n, 0], grad_x[n, 1], grad_x[n, 2] = gx, gy, gz


@njit(cache=True, nogil=True)
def double_backward_level(
    x: np.ndarray,
    table: np.ndarray,
    resolution: int,
    grad_out: np.ndarray,
    upstream: np.ndarray,
    grad_table: np.ndarray,
    grad_grad_out: np.ndarray,
    grad_x: np.ndarray,
    by_x: bool,
) -> None:
    """Derivatives of sum(upstream * grad_x), with grad_x as `backward_level` sets it and upstream (N, 3).

    Adds to grad_table (entries, F); sets grad_grad_out (N, F), and grad_x (N, 3) where asked for.
    """
    entries, features = table.shape
    for n in range(len(x)):
        i, a, da, dda = _axis(x[n, 0], resolution)
        j, b, db, ddb = _axis(x[n, 1], resolution)
        k, c, dc, ddc = _axis(x[n, 2], resolution)
        p, q, r = upstream[n, 0], upstream[n, 1], upstream[n, 2]
        for f in range(features):
            grad_grad_out[n, f] = 0
        gx = gy = gz = 0.0
        for corner in range(8):
            u, v, w = corner & 1, (corner >> 1) & 1, corner >> 2
            row = _row(i + u, j + v, k + w, resolution + 1, entries)
            wa, wb, wc = (a if u else 1 - a), (b if v else 1 - b), (c if w else 1 - c)
            ea, eb, ec = (da if u else -da), (db if v else -db), (dc if w else -dc)
            along = p * ea * wb * wc + q * wa * eb * wc + r * wa * wb * ec
            dot = 0.0
            for f in range(features):
                grad_table[row, f] += along * grad_out[n, f]
                grad_grad_out[n, f] += along * table[row, f]
                dot += table[row, f] * grad_out[n, f]
            if by_x:
                fa, fb, fc = (dda if u else -dda), (ddb if v else -ddb), (ddc if w else -ddc)
                gx += (p * fa * wb * wc + q * ea * eb * wc + r * ea * wb * ec) * dot
                gy += (p * ea * eb * wc + q * wa * fb * wc + r * wa * eb * ec) * dot
                gz += (p * ea * wb * ec + q * wa * eb * ec + r * wa * wb * fc) * dot
        if by_x:
            grad_x[n, 0], grad_x[n, 1], grad_x[n, 2] = gx, gy, gz


def forward(x: Tensor, table: Tensor, resolution: tuple[int, ...]) -> Tensor:
    """Features (N, L F) of points x (N, 3) in [0, 1]; table (L, entries, F), resolution of each level."""
    announce_compile("the hash grid", 12, forward_level)
    levels, _, features = table.shape
    out = np.empty((levels, len(x), features), _type(x))
    xs, tables = _array(x), _array(table)
    share(lambda level: forward_level(xs, tables[level], resolution[level], out[level]), levels)
    return _features_last(out)


def backward(
    x: Tensor, table: Tensor, grad_out: Tensor, resolution: tuple[int, ...], by_x: bool, by_table: bool
) -> tuple[Tensor, Tensor]:
    """Gradients by x (N, 3) and by the table, zero where they are not asked for."""
    levels, _, features = table.shape
    xs, tables, upstream = _array(x), _array(table), _levels_first(grad_out, levels, features)
    grad_table = np.zeros(table.shape if by_table else (levels, 0, 0), tables.dtype)
    grad_x = np.zeros((levels, len(x), 3) if by_x else (levels, 0, 3), xs.dtype)
    share(
        lambda level: backward_level(
            xs, tables[level], resolution[level], upstream[level], grad_table[level], grad_x[level], by_table, by_x
        ),
        levels,
    )
    by_position = torch.from_numpy(grad_x).sum(0) if by_x else torch.zeros_like(x)
    return by_position, torch.from_numpy(grad_table) if by_table else x.new_zeros(table.shape)


def double_backward(
    x: Tensor, table: Tensor, grad_out: Tensor, upstream: Tensor, resolution: tuple[int, ...], by_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, table and grad_out of sum(upstream * grad_x), with grad_x of `backward` and upstream (N, 3)."""
    levels, _, features = table.shape
    xs, tables, towards = _array(x), _array(table), _array(upstream)
    out = _levels_first(grad_out, levels, features)
    grad_table = np.zeros(table.shape, tables.dtype)
    grad_grad_out = np.empty((levels, len(x), features), xs.dtype)
    grad_x = np.zeros((levels, len(x), 3) if by_x else (levels, 0, 3), xs.dtype)
    share(
        lambda level: double_backward_level(
            xs,
            tables[level],
            resolution[level],
            out[level],
            towards,
            grad_table[level],
            grad_grad_out[level],
            grad_x[level],
            by_x,
        ),
        levels,
    )
    return torch.from_numpy(grad_x).sum(0), torch.from_numpy(grad_table), _features_last(grad_grad_out)


def _type(x: Tensor) -> type[np.floating]:
    return np.float64 if x.dtype == torch.float64 else np.float32


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _features_last(out: np.ndarray) -> Tensor:
    """(L, N, F) -> (N, L F)."""
    return torch.from_numpy(out).permute(1, 0, 2).reshape(out.shape[1], -1)


def _levels_first(features: Tensor, levels: int, per_level: int) -> np.ndarray:
    return features.detach().view(-1, levels, per_level).permute(1, 0, 2).contiguous().numpy()
