"""A multi-resolution hash grid (Müller et al. 2022) with smoothstep interpolation, twice differentiable.

On the CPU by kernels, on a GPU in plain torch. Level l divides the unit cube into resolution[l] cells per side and
stores `features` numbers at each corner, in a table of `entries` rows, a power of two: by position where all corners
fit, by a spatial hash otherwise. Each level is one job of `share`, so no two threads write to the same table, and a
level's table stays in the cache.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from recon4d.threads import announce_compile, share
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)  # of the hash of a corner (Müller et al. 2022, equation 4)


def resolutions(coarsest: int, finest: int, levels: int) -> list[int]:
    """Cells per side of each level, growing geometrically (Müller et al. 2022, equation 2)."""
    growth = math.log(finest / coarsest) / max(levels - 1, 1)
    return [round(coarsest * math.exp(growth * level)) for level in range(levels)]


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


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, resolution: tuple[int, ...]) -> Tensor:
        announce_compile("the hash grid", 12, forward_level)
        levels, _, features = table.shape
        out = np.empty((levels, len(x), features), _type(x))
        xs, tables = _array(x), _array(table)
        share(lambda level: forward_level(xs, tables[level], resolution[level], out[level]), levels)
        ctx.save_for_backward(x, table)
        ctx.resolution = resolution
        return _features_last(out)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None]:
        x, table = ctx.saved_tensors
        grad_x, grad_table = _EncodeBackward.apply(  # type: ignore[no-untyped-call]
            x, table, grad_out, ctx.resolution, *ctx.needs_input_grad[:2]
        )
        return grad_x, grad_table, None


class _EncodeBackward(torch.autograd.Function):
    """The gradient, whose part by x is differentiable again; the part by the table is not."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, grad_out: Tensor, resolution: tuple[int, ...], by_x: bool, by_table: bool
    ) -> tuple[Tensor, Tensor]:
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
        ctx.save_for_backward(x, table, grad_out)
        ctx.resolution = resolution
        by_table_out = torch.from_numpy(grad_table) if by_table else x.new_zeros(table.shape)
        ctx.mark_non_differentiable(by_table_out)
        return torch.from_numpy(grad_x).sum(0) if by_x else torch.zeros_like(x), by_table_out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, table, grad_out = ctx.saved_tensors
        levels, _, features = table.shape
        xs, tables, towards = _array(x), _array(table), _array(upstream)
        out = _levels_first(grad_out, levels, features)
        grad_table = np.zeros(table.shape, tables.dtype)
        grad_grad_out = np.empty((levels, len(x), features), xs.dtype)
        by_x = ctx.needs_input_grad[0]
        grad_x = np.zeros((levels, len(x), 3) if by_x else (levels, 0, 3), xs.dtype)
        share(
            lambda level: double_backward_level(
                xs,
                tables[level],
                ctx.resolution[level],
                out[level],
                towards,
                grad_table[level],
                grad_grad_out[level],
                grad_x[level],
                by_x,
            ),
            levels,
        )
        by_position = torch.from_numpy(grad_x).sum(0) if by_x else None
        return by_position, torch.from_numpy(grad_table), _features_last(grad_grad_out), None, None, None


def _type(x: Tensor) -> type[np.floating]:
    return np.float64 if x.dtype == torch.float64 else np.float32


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _features_last(out: np.ndarray) -> Tensor:
    """(L, N, F) -> (N, L F)."""
    return torch.from_numpy(out).permute(1, 0, 2).reshape(out.shape[1], -1)


def _levels_first(features: Tensor, levels: int, per_level: int) -> np.ndarray:
    return features.detach().view(-1, levels, per_level).permute(1, 0, 2).contiguous().numpy()


def encode(x: Tensor, table: Tensor, resolution: list[int]) -> Tensor:
    """Features (N, L F) of points x (N, 3) in [0, 1]; points outside are clamped.

    Differentiable by x and table, and the gradient by x once more by x, table and the upstream gradient, which is
    what losses on normals need. On the CPU by kernels, float32 or float64; elsewhere by `encode_torch`.

    Args:
        table: (L, entries, F). resolution: cells per side of each of the first levels; the features of the levels
            that it leaves out are zero.
    """
    if x.device.type != "cpu":
        return encode_torch(x, table, resolution)
    active = len(resolution)
    features = _Encode.apply(x, table[:active], tuple(resolution))  # type: ignore[no-untyped-call]
    missing = (table.shape[0] - active) * table.shape[2]
    return torch.nn.functional.pad(features, (0, missing)) if missing else features


def encode_torch(x: Tensor, table: Tensor, resolution: list[int]) -> Tensor:
    """`encode` in plain torch, for any device and type: what a GPU runs, and the kernels are tested against.

    All levels and corners at once, so in some thirty operations; it holds (N, L, 8, F) numbers.
    """
    levels, entries = len(resolution), table.shape[1]
    side = torch.tensor(resolution, device=x.device)[:, None]
    scaled = x[:, None] * side  # (N, L, 3)
    cell = torch.minimum(scaled.detach().floor().clamp(min=0), side - 1)
    t = (scaled - cell).clamp(0, 1)
    upper = t * t * (3 - 2 * t)
    weights = torch.stack([1 - upper, upper], -1)  # of the lower and the upper corner along each axis
    corners = cell.long()[..., None] + torch.arange(2, device=x.device)
    at = corners * torch.cat([torch.ones_like(side), side + 1, (side + 1) ** 2], 1)[..., None]
    mixed = corners * torch.tensor(PRIMES, device=x.device)[:, None]

    def each(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, L, 3, 2) as three that broadcast to (N, L, 2, 2, 2)."""
        return u[:, :, 0, :, None, None], u[:, :, 1, None, :, None], u[:, :, 2, None, None, :]

    (a, b, c), (i, j, k), (p, q, r) = each(weights), each(at), each(mixed)
    dense = ((side + 1) ** 3 <= entries)[:, :, None, None]
    row = torch.where(dense, i + j + k, (p ^ q ^ r) & (entries - 1))
    row = row + entries * torch.arange(levels, device=x.device)[:, None, None, None]
    values = table[:levels].flatten(0, 1)[row]  # (N, L, 2, 2, 2, F)
    out = ((a * b * c)[..., None] * values).sum((2, 3, 4)).flatten(1)
    missing = (table.shape[0] - levels) * table.shape[2]
    return torch.nn.functional.pad(out, (0, missing))
