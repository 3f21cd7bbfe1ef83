"""A multi-resolution hash grid (Müller et al. 2022) with smoothstep interpolation, twice differentiable.

Level l divides the unit cube into resolution[l] cells per side and stores `features` numbers at each corner, in a table
of `entries` rows, a power of two: by position where all corners fit, by a spatial hash otherwise. On the CPU by the
kernels of `gridcpu`, on a GPU by those of `gridgpu`, which need Triton.
"""

import functools
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from eyeball_relight import gridcpu
from eyeball_relight.gridcpu import PRIMES


def resolutions(coarsest: int, finest: int, levels: int) -> list[int]:
    """Cells per side of each level, growing geometrically (Müller et al. 2022, equation 2)."""
    growth = math.log(finest / coarsest) / max(levels - 1, 1)
    return [round(coarsest * math.exp(growth * level)) for level in range(levels)]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, kernels: Any, resolution: Any) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.kernels, ctx.resolution = kernels, resolution
        out: Tensor = kernels.forward(x, table, resolution)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, table = ctx.saved_tensors
        grad_x, grad_table = _EncodeBackward.apply(  # type: ignore[no-untyped-call]
            x, table, grad_out, ctx.kernels, ctx.resolution, *ctx.needs_input_grad[:2]
        )
        return grad_x, grad_table, None, None


class _EncodeBackward(torch.autograd.Function):
    """The gradient, whose part by x is differentiable again; the part by the table is not."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, grad_out: Tensor, kernels: Any, resolution: Any, by_x: bool, by_table: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, table, grad_out)
        ctx.kernels, ctx.resolution = kernels, resolution
        grad_x, grad_table = kernels.backward(x, table, grad_out, resolution, by_x, by_table)
        ctx.mark_non_differentiable(grad_table)
        return grad_x, grad_table

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, table, grad_out = ctx.saved_tensors
        by_x = ctx.needs_input_grad[0]
        grads = ctx.kernels.double_backward(x, table, grad_out, upstream, ctx.resolution, by_x)
        return grads[0] if by_x else None, grads[1], grads[2], None, None, None, None


@functools.cache
def _triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.lru_cache(maxsize=64)
def _on_gpu(resolution: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(resolution, dtype=torch.int32, device=device)


def encode(x: Tensor, table: Tensor, resolution: list[int]) -> Tensor:
    """Features (N, L F) of points x (N, 3) in [0, 1]; points outside are clamped.

    Differentiable by x and table, and the gradient by x once more by x, table and the upstream gradient, which is
    what losses on normals need. On the CPU float32 or float64; on a GPU without Triton, with a type other than float32
    or with another number of features than a power of two by `encode_torch`.

    Args:
        table: (L, entries, F). resolution: cells per side of each of the first levels; the features of the levels
            that it leaves out are zero.
    """
    active = len(resolution)
    kernels: Any = gridcpu
    sides: Any = tuple(resolution)
    if x.device.type != "cpu":
        if not (x.is_cuda and _triton()):
            return encode_torch(x, table, resolution)
        from eyeball_relight import gridgpu

        if not gridgpu.usable(x, table):
            return encode_torch(x, table, resolution)
        kernels, sides = gridgpu, _on_gpu(sides, x.device)
    features = _Encode.apply(x, table[:active], kernels, sides)  # type: ignore[no-untyped-call]
    missing = (table.shape[0] - active) * table.shape[2]
    return torch.nn.functional.pad(features, (0, missing)) if missing else features


def encode_torch(x: Tensor, table: Tensor, resolution: list[int]) -> Tensor:
    """`encode` in plain torch, for any device and type: what the kernels are tested against, and what runs
    where they can not.

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
