"""Kernels of the hash grid for a GPU, in Triton: what `hashgrid`'s kernels for the CPU compute, level by level.

A program takes BLOCK points of one level. Sums over levels (of gradients by position) and over points (by the table)
are atomic additions, so their last bits differ from run to run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128
SECOND = tl.constexpr(2654435761 - 2**32)  # hashgrid.PRIMES in 32 bits, whose low bits are the same
THIRD = tl.constexpr(805459861)


@triton.jit
def _row(x, y, z, side, entries):
    """Where corners (x, y, z) of a level with `side` corners per axis are stored."""
    wide = side.to(tl.int64)
    dense = wide * wide * wide <= entries
    return tl.where(dense, (z * side + y) * side + x, (x ^ (y * SECOND) ^ (z * THIRD)) & (entries - 1))


@triton.jit
def _axis(coordinate, resolution):
    """Cell, and smoothstep weight with its first and second derivative by the coordinate."""
    scaled = coordinate * resolution
    cell = tl.minimum(tl.maximum(tl.floor(scaled).to(tl.int32), 0), resolution - 1)
    t = tl.minimum(tl.maximum(scaled - cell, 0.0), 1.0)
    return cell, t * t * (3 - 2 * t), 6 * t * (1 - t) * resolution, (6 - 12 * t) * resolution * resolution


@triton.jit
def _forward(x, table, resolutions, out, points, entries, F: tl.constexpr, SIZE: tl.constexpr):
    level, levels = tl.program_id(1), tl.num_programs(1)
    n = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there, f = n < points, tl.arange(0, F)
    resolution = tl.load(resolutions + level)
    i, a, _, _ = _axis(tl.load(x + 3 * n, there, 0.0), resolution)
    j, b, _, _ = _axis(tl.load(x + 3 * n + 1, there, 0.0), resolution)
    k, c, _, _ = _axis(tl.load(x + 3 * n + 2, there, 0.0), resolution)
    rows = table + level.to(tl.int64) * entries * F
    total = tl.zeros((SIZE, F), tl.float32)
    for corner in tl.static_range(8):
        u, v, w = corner & 1, (corner >> 1) & 1, corner >> 2
        row = _row(i + u, j + v, k + w, resolution + 1, entries)
        weight = (a if u else 1 - a) * (b if v else 1 - b) * (c if w else 1 - c)
        value = tl.load(rows + row[:, None] * F + f[None, :], there[:, None], 0.0)
        total += weight[:, None] * value
    tl.store(out + n.to(tl.int64)[:, None] * (levels * F) + level * F + f[None, :], total, there[:, None])


@triton.jit
def _backward(
    x, table, resolutions, grad_out, grad_table, grad_x, points, entries,
    BY_TABLE: tl.constexpr, BY_X: tl.constexpr, F: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    level, levels = tl.program_id(1), tl.num_programs(1)
    n = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there, f = n < points, tl.arange(0, F)
    resolution = tl.load(resolutions + level)
    i, a, da, _ = _axis(tl.load(x + 3 * n, there, 0.0), resolution)
    j, b, db, _ = _axis(tl.load(x + 3 * n + 1, there, 0.0), resolution)
    k, c, dc, _ = _axis(tl.load(x + 3 * n + 2, there, 0.0), resolution)
    first = level.to(tl.int64) * entries * F
    columns = n.to(tl.int64)[:, None] * (levels * F) + level * F + f[None, :]
    out = tl.load(grad_out + columns, there[:, None], 0.0)
    gx, gy, gz = tl.zeros((SIZE,), tl.float32), tl.zeros((SIZE,), tl.float32), tl.zeros((SIZE,), tl.float32)
    for corner in tl.static_range(8):
        u, v, w = corner & 1, (corner >> 1) & 1, corner >> 2
        row = first + _row(i + u, j + v, k + w, resolution + 1, entries)[:, None] * F + f[None, :]
        wa, wb, wc = a if u else 1 - a, b if v else 1 - b, c if w else 1 - c
        if BY_TABLE:
            tl.atomic_add(grad_table + row, (wa * wb * wc)[:, None] * out, there[:, None])
        if BY_X:
            dot = tl.sum(tl.load(table + row, there[:, None], 0.0) * out, 1)
            gx += (da if u else -da) * wb * wc * dot
            gy += wa * (db if v else -db) * wc * dot
            gz += wa * wb * (dc if w else -dc) * dot
    if BY_X:
        tl.atomic_add(grad_x + 3 * n, gx, there)
        tl.atomic_add(grad_x + 3 * n + 1, gy, there)
        tl.atomic_add(grad_x + 3 * n + 2, gz, there)


@triton.jit
def _double_backward(
    x, table, resolutions, grad_out, upstream, grad_table, grad_grad_out, grad_x, points, entries,
    BY_X: tl.constexpr, F: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    level, levels = tl.program_id(1), tl.num_programs(1)
    n = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there, f = n < points, tl.arange(0, F)
    resolution = tl.load(resolutions + level)
    i, a, da, dda = _axis(tl.load(x + 3 * n, there, 0.0), resolution)
    j, b, db, ddb = _axis(tl.load(x + 3 * n + 1, there, 0.0), resolution)
    k, c, dc, ddc = _axis(tl.load(x + 3 * n + 2, there, 0.0), resolution)
    p = tl.load(upstream + 3 * n, there, 0.0)
    q = tl.load(upstream + 3 * n + 1, there, 0.0)
    r = tl.load(upstream + 3 * n + 2, there, 0.0)
    first = level.to(tl.int64) * entries * F
    columns = n.to(tl.int64)[:, None] * (levels * F) + level * F + f[None, :]
    out = tl.load(grad_out + columns, there[:, None], 0.0)
    back = tl.zeros((SIZE, F), tl.float32)
    gx, gy, gz = tl.zeros((SIZE,), tl.float32), tl.zeros((SIZE,), tl.float32), tl.zeros((SIZE,), tl.float32)
    for corner in tl.static_range(8):
        u, v, w = corner & 1, (corner >> 1) & 1, corner >> 2
        row = first + _row(i + u, j + v, k + w, resolution + 1, entries)[:, None] * F + f[None, :]
        wa, wb, wc = a if u else 1 - a, b if v else 1 - b, c if w else 1 - c
        ea, eb, ec = da if u else -da, db if v else -db, dc if w else -dc
        along = p * ea * wb * wc + q * wa * eb * wc + r * wa * wb * ec
        tl.atomic_add(grad_table + row, along[:, None] * out, there[:, None])
        value = tl.load(table + row, there[:, None], 0.0)
        back += along[:, None] * value
        if BY_X:
            dot = tl.sum(value * out, 1)
            fa, fb, fc = dda if u else -dda, ddb if v else -ddb, ddc if w else -ddc
            gx += (p * fa * wb * wc + q * ea * eb * wc + r * ea * wb * ec) * dot
            gy += (p * ea * eb * wc + q * wa * fb * wc + r * wa * eb * ec) * dot
            gz += (p * ea * wb * ec + q * wa * eb * ec + r * wa * wb * fc) * dot
    tl.store(grad_grad_out + columns, back, there[:, None])
    if BY_X:
        tl.atomic_add(grad_x + 3 * n, gx, there)
        tl.atomic_add(grad_x + 3 * n + 1, gy, there)
        tl.atomic_add(grad_x + 3 * n + 2, gz, there)


def usable(x: Tensor, table: Tensor) -> bool:
    """Whether these kernels take the tensors: float32, and a power of two of features."""
    return x.dtype == table.dtype == torch.float32 and table.shape[2] & (table.shape[2] - 1) == 0


def forward(x: Tensor, table: Tensor, resolution: Tensor) -> Tensor:
    """Features (N, L F) of points x (N, 3) in [0, 1]; table (L, entries, F), resolution (L,) int32."""
    levels, entries, features = table.shape
    x, table = x.contiguous(), table.contiguous()
    out = x.new_empty(len(x), levels * features)
    if len(x):
        _forward[_programs(x, levels)](x, table, resolution, out, len(x), entries, F=features, SIZE=BLOCK)
    return out


def backward(
    x: Tensor, table: Tensor, grad_out: Tensor, resolution: Tensor, by_x: bool, by_table: bool
) -> tuple[Tensor, Tensor]:
    """Gradients by x (N, 3) and by the table, zero where they are not asked for."""
    levels, entries, features = table.shape
    x, table, grad_out = x.contiguous(), table.contiguous(), grad_out.contiguous()
    grad_x, grad_table = torch.zeros_like(x), torch.zeros_like(table)
    if len(x) and (by_x or by_table):
        _backward[_programs(x, levels)](
            x, table, resolution, grad_out, grad_table, grad_x, len(x), entries,
            BY_TABLE=by_table, BY_X=by_x, F=features, SIZE=BLOCK,
        )  # fmt: skip
    return grad_x, grad_table


def double_backward(
    x: Tensor, table: Tensor, grad_out: Tensor, upstream: Tensor, resolution: Tensor, by_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, table and grad_out of sum(upstream * grad_x), with grad_x of `backward` and upstream (N, 3)."""
    levels, entries, features = table.shape
    x, table, grad_out, upstream = (t.contiguous() for t in (x, table, grad_out, upstream))
    grad_x, grad_table, grad_grad_out = torch.zeros_like(x), torch.zeros_like(table), torch.zeros_like(grad_out)
    if len(x):
        _double_backward[_programs(x, levels)](
            x, table, resolution, grad_out, upstream, grad_table, grad_grad_out, grad_x, len(x), entries,
            BY_X=by_x, F=features, SIZE=BLOCK,
        )  # fmt: skip
    return grad_x, grad_table, grad_grad_out


def _programs(x: Tensor, levels: int) -> tuple[int, int]:
    return triton.cdiv(len(x), BLOCK), levels
