"""The distance network on a CPU, fused: encoding, network, gradient by position, and the backward pass of all of it.

Losses on normals need derivatives of a gradient, for which torch's autograd runs some hundred operations on arrays that
leave the cache. Here a block of points is done from beginning to end, and blocks are dealt to the cores.
`Field` has the same in plain torch, for a GPU and for other types, against which these kernels are tested.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from recon4d.threads import announce_compile
from torch import Tensor

from eyeball_relight.cells import BLOCK, CORNERS, FEATURES, add_rows, deal, ends_of, locate, look_up, spread

SHARPNESS = 100  # beta of the softplus

_ZERO, _ONE, _SHARP = (np.float32(x) for x in (0, 1, SHARPNESS))
_FLAT, _PART = np.float32(80), np.float32(-1 / 64)


def _polynomial(function: Any, degree: int, low: float, high: float) -> list[Any]:
    """Coefficients, ascending, of the polynomial through a function's values at Chebyshev's points."""
    found = np.polynomial.Chebyshev.interpolate(function, degree, [low, high])
    return [np.float32(x) for x in found.convert(kind=np.polynomial.Polynomial).coef]


_E0, _E1, _E2, _E3, _E4, _E5, _E6, _E7 = _polynomial(np.exp, 7, -1.25, 0)  # within 1e-8
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8, _L9 = _polynomial(np.log1p, 9, 0, 1)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _softplus(z: np.ndarray, bias: np.ndarray, value: np.ndarray, slope: np.ndarray) -> None:
    """softplus(z + bias) and its derivative, (H, BLOCK), of z (H, BLOCK) and bias (H,).

    Small slopes are relatively right: Adam divides by them, so nothing that is next to zero may be rounded up.
    """
    for h in range(len(z)):
        for n in range(BLOCK):
            at = z[h, n] + bias[h]
            x = _PART * min(abs(at) * _SHARP, _FLAT)
            e = _E0 + x * (_E1 + x * (_E2 + x * (_E3 + x * (_E4 + x * (_E5 + x * (_E6 + x * _E7))))))
            e = e * e
            e = e * e
            e = e * e
            e = e * e
            e = e * e
            e = e * e  # exp(-|at| SHARPNESS)
            log = _L4 + e * (_L5 + e * (_L6 + e * (_L7 + e * (_L8 + e * _L9))))
            log = _L0 + e * (_L1 + e * (_L2 + e * (_L3 + e * log)))  # log(1 + e)
            value[h, n] = max(at, _ZERO) + log / _SHARP
            rest = _ONE / (_ONE + e)
            slope[h, n] = rest if at > _ZERO else e * rest


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
    w3: np.ndarray,
    b3: np.ndarray,
    inputs: np.ndarray,
    jacobian: np.ndarray,
    hidden: np.ndarray,
    by_input: np.ndarray,
    distance: np.ndarray,
    feature: np.ndarray,
    gradient: np.ndarray,
) -> None:
    """Blocks first..last of points x (N, 3): distance (N,), feature (N, O - 1), gradient (N, 3); or no gradient, if
    that is empty.

    What the backward pass needs is left in inputs (S, I, BLOCK), jacobian (S, 6 L, BLOCK), hidden (S, 5, H, BLOCK),
    by_input (S, I, BLOCK), where S is the number of blocks, or 1 to keep nothing. I is 3 + 2 L, or more; what is more
    is filled with zeros.
    """
    points, levels, width, outputs = len(x), len(resolution), len(b1), len(b3)
    entries = table.shape[1]
    sloped = len(gradient) > 0
    rows = np.empty((CORNERS, BLOCK), np.uint32)
    weight, slope = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
    z, v = np.empty((width, BLOCK), np.float32), np.empty((width, BLOCK), np.float32)
    out, none = np.empty((outputs, BLOCK), np.float32), np.empty((0, BLOCK), np.float32)
    for block in range(first, last):
        slot = block if len(inputs) > 1 else 0
        start = block * BLOCK
        count = min(BLOCK, points - start)
        given = inputs[slot]
        for n in range(BLOCK):
            for axis in range(3):
                given[axis, n] = x[start + min(n, count - 1), axis]
        for level in range(levels):
            at = 3 + FEATURES * level
            locate(given[:3], entries, resolution[level], rows, weight, slope)
            slopes = jacobian[slot, 3 * (at - 3) : 3 * (at - 3 + FEATURES)] if sloped else none
            look_up(table[level], rows, weight, slope, given[at : at + FEATURES], slopes)
        for i in range(3 + FEATURES * levels, len(given)):
            given[i] = _ZERO
        a1, s1, u1, a2, s2 = hidden[slot, 0], hidden[slot, 1], hidden[slot, 2], hidden[slot, 3], hidden[slot, 4]
        np.dot(w1, given, z)
        _softplus(z, b1, a1, s1)
        np.dot(w2, a1, z)
        _softplus(z, b2, a2, s2)
        np.dot(w3, a2, out)
        for n in range(count):
            distance[start + n] = out[0, n] + b3[0]
            for o in range(1, outputs):
                feature[start + n, o - 1] = out[o, n] + b3[o]
        if not sloped:
            continue
        for h in range(width):
            for n in range(BLOCK):
                v[h, n] = w3[0, h] * s2[h, n]
        np.dot(w2.T, v, u1)
        for h in range(width):
            for n in range(BLOCK):
                v[h, n] = u1[h, n] * s1[h, n]
        by, jac = by_input[slot], jacobian[slot]
        np.dot(w1.T, v, by)
        for axis in range(3):
            total = z[axis]
            for n in range(BLOCK):
                total[n] = by[axis, n]
            for f in range(FEATURES * levels):
                for n in range(BLOCK):
                    total[n] += by[3 + f, n] * jac[3 * f + axis, n]
            for n in range(count):
                gradient[start + n, axis] = total[n]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def backward_blocks(
    first: int,
    last: int,
    resolution: np.ndarray,
    w1: np.ndarray,
    w2: np.ndarray,
    w3: np.ndarray,
    inputs: np.ndarray,
    jacobian: np.ndarray,
    hidden: np.ndarray,
    by_input: np.ndarray,
    grad_distance: np.ndarray,
    grad_feature: np.ndarray,
    grad_gradient: np.ndarray,
    grad_table: np.ndarray,
    grad_w1: np.ndarray,
    grad_b1: np.ndarray,
    grad_w2: np.ndarray,
    grad_b2: np.ndarray,
    grad_w3: np.ndarray,
    grad_b3: np.ndarray,
) -> None:
    """Add what blocks first..last give to the gradients by the table and the weights.

    Args: as `forward_blocks` has and leaves them; grad_distance (N,), grad_feature (N, O - 1), grad_gradient (N, 3)
        from upstream.
    """
    points, levels, width, outputs = len(grad_distance), len(resolution), len(w2), len(w3)
    entries = grad_table.shape[1]
    sloped = len(grad_gradient) > 0
    rows = np.empty((CORNERS, BLOCK), np.uint32)
    weight, slope = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
    scratch = np.zeros((7, width, BLOCK), np.float32)
    z1, z2, v, to_u, to_v = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    to_s1, to_s2 = scratch[5], scratch[6]
    to_out = np.empty((outputs, BLOCK), np.float32)
    to_by, to_input = np.zeros(inputs.shape[1:], np.float32), np.empty(inputs.shape[1:], np.float32)
    to_gradient = np.zeros((3 if sloped else 0, BLOCK), np.float32)
    d1, d2, d3 = np.empty(w1.shape, np.float32), np.empty(w2.shape, np.float32), np.empty(w3.shape, np.float32)
    for block in range(first, last):
        start = block * BLOCK
        count = min(BLOCK, points - start)
        if count < BLOCK:
            to_out[:] = _ZERO
            to_gradient[:] = _ZERO
        for n in range(count):
            to_out[0, n] = grad_distance[start + n]
            for o in range(1, outputs):
                to_out[o, n] = grad_feature[start + n, o - 1]
        given, jac, by = inputs[block], jacobian[block], by_input[block]
        a1, s1, u1, a2, s2 = hidden[block, 0], hidden[block, 1], hidden[block, 2], hidden[block, 3], hidden[block, 4]
        np.dot(to_out, a2.T, d3)
        grad_w3 += d3
        add_rows(to_out, grad_b3)
        np.dot(w3.T, to_out, z2)
        if sloped:  # back through gradient = jac (w1.T (s1 * w2.T (s2 * w3[0]))), from its end to its beginning
            for axis in range(3):
                for n in range(count):
                    to_gradient[axis, n] = grad_gradient[start + n, axis]
                for n in range(BLOCK):
                    to_by[axis, n] = to_gradient[axis, n]
            for f in range(FEATURES * levels):
                for n in range(BLOCK):
                    to_by[3 + f, n] = (
                        jac[3 * f, n] * to_gradient[0, n]
                        + jac[3 * f + 1, n] * to_gradient[1, n]
                        + jac[3 * f + 2, n] * to_gradient[2, n]
                    )
            for h in range(width):
                for n in range(BLOCK):
                    v[h, n] = u1[h, n] * s1[h, n]
            np.dot(v, to_by.T, d1)
            grad_w1 += d1
            np.dot(w1, to_by, to_v)
            for h in range(width):
                for n in range(BLOCK):
                    to_u[h, n] = to_v[h, n] * s1[h, n]
                    to_s1[h, n] = to_v[h, n] * u1[h, n]
                    v[h, n] = w3[0, h] * s2[h, n]
            np.dot(v, to_u.T, d2)
            grad_w2 += d2
            np.dot(w2, to_u, to_v)
            for h in range(width):
                total = _ZERO
                for n in range(BLOCK):
                    total += to_v[h, n] * s2[h, n]
                    to_s2[h, n] = to_v[h, n] * w3[0, h]
                grad_w3[0, h] += total
        for h in range(width):
            for n in range(BLOCK):
                s = s2[h, n]
                z2[h, n] = s * (z2[h, n] + to_s2[h, n] * _SHARP * (_ONE - s))
        add_rows(z2, grad_b2)
        np.dot(z2, a1.T, d2)
        grad_w2 += d2
        np.dot(w2.T, z2, z1)
        for h in range(width):
            for n in range(BLOCK):
                s = s1[h, n]
                z1[h, n] = s * (z1[h, n] + to_s1[h, n] * _SHARP * (_ONE - s))
        add_rows(z1, grad_b1)
        np.dot(z1, given.T, d1)
        grad_w1 += d1
        np.dot(w1.T, z1, to_input)
        for level in range(levels):
            at = 3 + FEATURES * level
            locate(given[:3], entries, resolution[level], rows, weight, slope)
            spread(
                rows,
                weight,
                slope,
                to_input[at : at + FEATURES],
                to_gradient,
                by[at : at + FEATURES] if sloped else to_input[at : at + FEATURES],
                grad_table[level],
            )


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        resolution: tuple[int, ...],
        sloped: bool,
        table: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        w3: Tensor,
        b3: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        announce_compile("the distance network", 20, forward_blocks)
        points, levels, ends = len(x), len(resolution), ends_of(len(x))
        encoded = 3 + FEATURES * levels
        padded = np.zeros((len(w1), -(-encoded // 4) * 4), np.float32)  # levels that are off are left out
        padded[:, :encoded] = w1.detach().numpy()[:, :encoded]
        places, tables, sides = x.detach().contiguous().numpy(), table.detach().numpy(), np.array(resolution)
        weights = [padded, *(w.detach().numpy() for w in (b1, w2, b2, w3, b3))]
        out = [np.empty(shape, np.float32) for shape in (points, (points, len(b3) - 1), (points if sloped else 0, 3))]

        def room(blocks: int) -> list[np.ndarray]:
            shapes = [padded.shape[1:], (3 * FEATURES * levels,), (5, len(w1)), padded.shape[1:]]
            return [np.empty((blocks, *shape, BLOCK), np.float32) for shape in shapes]

        keep = any(ctx.needs_input_grad)
        kept = room(ends[-1]) if keep else []
        deal(
            lambda p: forward_blocks(
                ends[p], ends[p + 1], places, tables, sides, *weights, *(kept if keep else room(1)), *out
            ),
            len(ends) - 1,
        )
        if keep:
            ctx.save_for_backward(w2, w3)
            ctx.kept, ctx.first, ctx.sides, ctx.table, ctx.ends = kept, padded, sides, table.shape, ends
        distance, feature, gradient = (torch.from_numpy(x) for x in out)
        return distance, feature, gradient

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        w1, (w2, w3) = ctx.first, (w.detach().numpy() for w in ctx.saved_tensors)
        given = [g.detach().contiguous().numpy() for g in upstream]
        shapes = [ctx.table, w1.shape, len(w1), w2.shape, len(w2), w3.shape, len(w3)]
        sums = [[np.zeros(shape, np.float32) for shape in shapes] for _ in ctx.ends[1:]]
        deal(
            lambda p: backward_blocks(ctx.ends[p], ctx.ends[p + 1], ctx.sides, w1, w2, w3, *ctx.kept, *given, *sums[p]),
            len(sums),
        )
        for others in sums[1:]:
            for total, other in zip(sums[0], others):
                total += other
        table, first, *rest = (torch.from_numpy(total) for total in sums[0])
        encoded = 3 + FEATURES * len(ctx.sides)
        first = torch.nn.functional.pad(first[:, :encoded], (0, 3 + FEATURES * len(table) - encoded))
        return None, None, None, table, first, *rest


def distances(
    x: Tensor, table: Tensor, resolution: list[int], mlp: torch.nn.Sequential, sloped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance (N,), features (N, O - 1) and the distance's gradient (N, 3) by position at points x (N, 3) in bounds.

    Differentiable once by the table and the network's weights, which for the gradient are second derivatives.

    Args:
        table: (L, entries, 2). resolution: of the levels that are on. mlp: linear layers with softplus between, whose
            sharpness is SHARPNESS. sloped: False leaves the gradient empty.
    """
    weights = [w for layer in (mlp[0], mlp[2], mlp[4]) for w in (layer.weight, layer.bias)]
    found: tuple[Tensor, Tensor, Tensor] = _Distance.apply(  # type: ignore[no-untyped-call]
        x, tuple(resolution), sloped, table, *weights
    )
    return found
