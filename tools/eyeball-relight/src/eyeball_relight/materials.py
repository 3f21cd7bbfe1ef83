"""The material's network on a CPU, fused as the distance's is in `network`; differentiable once, also by position."""

from typing import Any

import numpy as np
import torch
from numba import njit
from recon4d.threads import announce_compile
from torch import Tensor

from eyeball_relight.cells import BLOCK, CORNERS, FEATURES, add_rows, deal, ends_of, locate, look_up, spread

_ZERO = np.float32(0)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def forward_blocks(
    first: int,
    last: int,
    x: np.ndarray,
    table: np.ndarray,
    resolution: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    inputs: np.ndarray,
    jacobian: np.ndarray,
    hidden: np.ndarray,
    out: np.ndarray,
) -> None:
    """out (N, O) for blocks first..last of points x (N, 3).

    What the backward pass needs is left in inputs (S, I, BLOCK), jacobian (S, 6 L, BLOCK) unless it has no rows, and
    hidden (S, H, BLOCK), where S is the number of blocks, or 1 to keep nothing.
    """
    points, levels, width, outputs = len(x), len(resolution), len(b1), len(b2)
    rows = np.empty((CORNERS, BLOCK), np.uint32)
    weight, slope = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
    raw = np.empty((outputs, BLOCK), np.float32)
    for block in range(first, last):
        slot = block if len(inputs) > 1 else 0
        start = block * BLOCK
        count = min(BLOCK, points - start)
        given, a1 = inputs[slot], hidden[slot]
        for n in range(BLOCK):
            for axis in range(3):
                given[axis, n] = x[start + min(n, count - 1), axis]
        for level in range(levels):
            at = 3 + FEATURES * level
            locate(given[:3], table.shape[1], resolution[level], rows, weight, slope)
            slopes = jacobian[slot, 3 * (at - 3) : 3 * (at - 3 + FEATURES)]
            look_up(table[level], rows, weight, slope, given[at : at + FEATURES], slopes)
        for i in range(3 + FEATURES * levels, len(given)):
            given[i] = _ZERO
        np.dot(w1, given, a1)
        for h in range(width):
            for n in range(BLOCK):
                a1[h, n] = max(a1[h, n] + b1[h], _ZERO)
        np.dot(w2, a1, raw)
        for n in range(count):
            for o in range(outputs):
                out[start + n, o] = raw[o, n] + b2[o]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def backward_blocks(
    first: int,
    last: int,
    resolution: np.ndarray,
    w1: np.ndarray,
    w2: np.ndarray,
    inputs: np.ndarray,
    jacobian: np.ndarray,
    hidden: np.ndarray,
    grad_out: np.ndarray,
    grad_x: np.ndarray,
    grad_table: np.ndarray,
    grad_w1: np.ndarray,
    grad_b1: np.ndarray,
    grad_w2: np.ndarray,
    grad_b2: np.ndarray,
) -> None:
    """Add what blocks first..last give to the gradients by table and weights, from grad_out (N, O); set grad_x (N, 3),
    unless that is empty."""
    points, levels, width, outputs = len(grad_out), len(resolution), len(w1), len(w2)
    sloped = len(grad_x) > 0
    rows = np.empty((CORNERS, BLOCK), np.uint32)
    weight, slope = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
    to_out, z1 = np.empty((outputs, BLOCK), np.float32), np.empty((width, BLOCK), np.float32)
    to_input, none = np.empty(inputs.shape[1:], np.float32), np.empty((0, BLOCK), np.float32)
    d1, d2 = np.empty(w1.shape, np.float32), np.empty(w2.shape, np.float32)
    for block in range(first, last):
        start = block * BLOCK
        count = min(BLOCK, points - start)
        if count < BLOCK:
            to_out[:] = _ZERO
        for n in range(count):
            for o in range(outputs):
                to_out[o, n] = grad_out[start + n, o]
        given, a1 = inputs[block], hidden[block]
        np.dot(to_out, a1.T, d2)
        grad_w2 += d2
        add_rows(to_out, grad_b2)
        np.dot(w2.T, to_out, z1)
        for h in range(width):
            for n in range(BLOCK):
                z1[h, n] = z1[h, n] if a1[h, n] > _ZERO else _ZERO
        add_rows(z1, grad_b1)
        np.dot(z1, given.T, d1)
        grad_w1 += d1
        np.dot(w1.T, z1, to_input)
        for level in range(levels):
            at = 3 + FEATURES * level
            by = to_input[at : at + FEATURES]
            locate(given[:3], grad_table.shape[1], resolution[level], rows, weight, slope)
            spread(rows, weight, slope, by, none, by, grad_table[level])
        if not sloped:
            continue
        for axis in range(3):
            for n in range(count):
                total = to_input[axis, n]
                for f in range(FEATURES * levels):
                    total += to_input[3 + f, n] * jacobian[block, 3 * f + axis, n]
                grad_x[start + n, axis] = total


class _Material(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, resolution: tuple[int, ...], table: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> Tensor:
        announce_compile("the material's network", 10, forward_blocks)
        levels, ends = len(resolution), ends_of(len(x))
        encoded = 3 + FEATURES * levels
        padded = np.zeros((len(w1), -(-encoded // 4) * 4), np.float32)  # levels that are off are left out
        padded[:, :encoded] = w1.detach().numpy()[:, :encoded]
        places, tables, sides = x.detach().contiguous().numpy(), table.detach().numpy(), np.array(resolution)
        weights = [padded, *(w.detach().numpy() for w in (b1, w2, b2))]
        out = np.empty((len(x), len(b2)), np.float32)
        slopes = 3 * FEATURES * levels if ctx.needs_input_grad[0] else 0

        def room(blocks: int) -> list[np.ndarray]:
            return [np.empty((blocks, r, BLOCK), np.float32) for r in (padded.shape[1], slopes, len(w1))]

        keep = any(ctx.needs_input_grad)
        kept = room(ends[-1]) if keep else []
        given = [places, tables, sides, *weights]
        deal(
            lambda p: forward_blocks(ends[p], ends[p + 1], *given, *(kept if keep else room(1)), *[out]),
            len(ends) - 1,
        )
        if keep:
            ctx.save_for_backward(w2)
            ctx.kept, ctx.first, ctx.sides, ctx.table, ctx.ends = kept, padded, sides, table.shape, ends
        return torch.from_numpy(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        w1, w2 = ctx.first, ctx.saved_tensors[0].detach().numpy()
        given = upstream.detach().contiguous().numpy()
        by_x = np.empty((len(given) if ctx.needs_input_grad[0] else 0, 3), np.float32)
        shapes = [ctx.table, w1.shape, len(w1), w2.shape, len(w2)]
        sums = [[np.zeros(shape, np.float32) for shape in shapes] for _ in ctx.ends[1:]]
        known = [ctx.sides, w1, w2, *ctx.kept, given, by_x]
        deal(lambda p: backward_blocks(ctx.ends[p], ctx.ends[p + 1], *known, *sums[p]), len(sums))
        for others in sums[1:]:
            for total, other in zip(sums[0], others):
                total += other
        table, first, *rest = (torch.from_numpy(total) for total in sums[0])
        encoded = 3 + FEATURES * len(ctx.sides)
        first = torch.nn.functional.pad(first[:, :encoded], (0, 3 + FEATURES * len(table) - encoded))
        return torch.from_numpy(by_x) if len(by_x) else None, None, table, first, *rest


def raw(x: Tensor, table: Tensor, resolution: list[int], mlp: torch.nn.Sequential) -> Tensor:
    """What the material's network says (N, O) at points x (N, 3) in bounds, before it is bounded.

    Differentiable once by x, the table and the network's weights.

    Args:
        table: (L, entries, 2). resolution: of the levels that are on. mlp: two linear layers with a ReLU between.
    """
    weights = [w for layer in (mlp[0], mlp[2]) for w in (layer.weight, layer.bias)]
    out: Tensor = _Material.apply(x, tuple(resolution), table, *weights)  # type: ignore[no-untyped-call]
    return out
