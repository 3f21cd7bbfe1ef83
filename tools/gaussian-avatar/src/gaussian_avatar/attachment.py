"""Attaching Gaussians to posed triangles on a CPU: frames, means and rotations in one pass, forward and backward.

The same as `avatar.attach` in plain torch, which is also its reference in tests; about thirty times faster, since
nothing per face or per Gaussian is written to memory but the result.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from recon4d import threads
from torch import Tensor
from torch.autograd.function import once_differentiable


@njit(inline="always", error_model="numpy", fastmath={"contract", "reassoc"})
def _frame(v: np.ndarray, i: int, j: int, k: int, uv: np.ndarray, R: np.ndarray, q: np.ndarray) -> None:
    """The triangle's tangent, bitangent, normal into the columns of R (3, 3), and its quaternion wxyz into q."""
    # Scaled to about 1: float32 squares of millimetres to the fourth power get close to its smallest numbers.
    for c in range(3):
        e1, e2 = 1e3 * (v[j, c] - v[i, c]), 1e3 * (v[k, c] - v[i, c])
        R[c, 0] = (e1 * uv[3] - e2 * uv[1]) * uv[4]
        R[c, 1] = e2 * uv[0] - e1 * uv[2]
    ax, ay, az = 1e3 * (v[j, 0] - v[i, 0]), 1e3 * (v[j, 1] - v[i, 1]), 1e3 * (v[j, 2] - v[i, 2])
    bx, by, bz = 1e3 * (v[k, 0] - v[i, 0]), 1e3 * (v[k, 1] - v[i, 1]), 1e3 * (v[k, 2] - v[i, 2])
    R[0, 2] = ay * bz - az * by
    R[1, 2] = az * bx - ax * bz
    R[2, 2] = ax * by - ay * bx
    for c in range(3):
        length = np.sqrt(R[0, c] * R[0, c] + R[1, c] * R[1, c] + R[2, c] * R[2, c])
        scale = np.float32(1) / max(length, np.float32(1e-12))
        R[0, c] *= scale
        R[1, c] *= scale
        R[2, c] *= scale
    # Markley 2008 (as roma has it): of four vectors proportional to q, the one whose own entry is largest.
    w = 1 + R[0, 0] + R[1, 1] + R[2, 2]
    x = 1 + R[0, 0] - R[1, 1] - R[2, 2]
    y = 1 - R[0, 0] + R[1, 1] - R[2, 2]
    z = 1 - R[0, 0] - R[1, 1] + R[2, 2]
    yz, zx, xy = R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]
    sx, sy, sz = R[2, 1] + R[1, 2], R[0, 2] + R[2, 0], R[1, 0] + R[0, 1]
    if w >= x and w >= y and w >= z:
        q[0], q[1], q[2], q[3] = w, yz, zx, xy
    elif x >= y and x >= z:
        q[0], q[1], q[2], q[3] = yz, x, sz, sy
    elif y >= z:
        q[0], q[1], q[2], q[3] = zx, sz, y, sx
    else:
        q[0], q[1], q[2], q[3] = xy, sy, sx, z
    scale = np.float32(1) / np.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    for c in range(4):
        q[c] *= scale


@njit(nogil=True, cache=True, error_model="numpy")
def _forward(
    vertices: np.ndarray,
    corners: np.ndarray,
    bary: np.ndarray,
    uv: np.ndarray,
    eye: np.ndarray,
    first: int,
    last: int,
    local: np.ndarray,
    quats: np.ndarray,
    means: np.ndarray,
    turned: np.ndarray,
    facing: np.ndarray,
) -> None:
    """Means (B, N, 3), quaternions (B, N, 4) and facing (B, N) of Gaussians first to last of the B N."""
    R, q = np.empty((3, 3), np.float32), np.empty(4, np.float32)
    n = len(corners)
    for item in range(first, last):
        b, g = item // n, item % n
        v = vertices[b]
        i, j, k = corners[g, 0], corners[g, 1], corners[g, 2]
        _frame(v, i, j, k, uv[g], R, q)
        x, y, z = local[b, g, 0], local[b, g, 1], local[b, g, 2]
        along, squared = np.float32(0), np.float32(0)
        for c in range(3):
            point = bary[g, 0] * v[i, c] + bary[g, 1] * v[j, c] + bary[g, 2] * v[k, c]
            means[b, g, c] = point + R[c, 0] * x + R[c, 1] * y + R[c, 2] * z
            away = eye[b, c] - point
            along += away * R[c, 2]
            squared += away * away
        facing[b, g] = along / np.sqrt(squared)
        pw, px, py, pz = q[0], q[1], q[2], q[3]
        qw, qx, qy, qz = quats[b, g, 0], quats[b, g, 1], quats[b, g, 2], quats[b, g, 3]
        turned[b, g, 0] = pw * qw - px * qx - py * qy - pz * qz
        turned[b, g, 1] = pw * qx + px * qw + py * qz - pz * qy
        turned[b, g, 2] = pw * qy - px * qz + py * qw + pz * qx
        turned[b, g, 3] = pw * qz + px * qy - py * qx + pz * qw


@njit(nogil=True, cache=True, error_model="numpy")
def _backward(
    vertices: np.ndarray,
    corners: np.ndarray,
    uv: np.ndarray,
    first: int,
    last: int,
    by_means: np.ndarray,
    by_turned: np.ndarray,
    by_local: np.ndarray,
    by_quats: np.ndarray,
) -> None:
    """Gradients by local means and quaternions from those by what `_forward` makes of them."""
    R, q = np.empty((3, 3), np.float32), np.empty(4, np.float32)
    n = len(corners)
    for item in range(first, last):
        b, g = item // n, item % n
        _frame(vertices[b], corners[g, 0], corners[g, 1], corners[g, 2], uv[g], R, q)
        x, y, z = by_means[b, g, 0], by_means[b, g, 1], by_means[b, g, 2]
        for c in range(3):
            by_local[b, g, c] = R[0, c] * x + R[1, c] * y + R[2, c] * z
        # The transpose of multiplying by q from the left is multiplying by its conjugate.
        pw, px, py, pz = q[0], -q[1], -q[2], -q[3]
        qw, qx, qy, qz = by_turned[b, g, 0], by_turned[b, g, 1], by_turned[b, g, 2], by_turned[b, g, 3]
        by_quats[b, g, 0] = pw * qw - px * qx - py * qy - pz * qz
        by_quats[b, g, 1] = pw * qx + px * qw + py * qz - pz * qy
        by_quats[b, g, 2] = pw * qy - px * qz + py * qw + pz * qx
        by_quats[b, g, 3] = pw * qz + px * qy - py * qx + pz * qw


def _parts(items: int) -> list[int]:
    """Where the parts of the work end: each goes from one number to the next."""
    count = 4 * threads.count()
    return [items * part // count for part in range(count + 1)]


class Attach(torch.autograd.Function):
    """(vertices, corners, bary, uv, eye, local, quats) to means, quats and facing; see `avatar.attach`.

    Differentiable in local and quats. CPU, float32.

    corners: (N, 3) int64, the vertices of each Gaussian's triangle. uv: (N, 5), its two texture-space edges and their
    orientation (-1 or 1).
    """

    @staticmethod
    def forward(
        ctx: Any,
        vertices: Tensor,
        corners: Tensor,
        bary: Tensor,
        uv: Tensor,
        eye: Tensor,
        local: Tensor,
        quats: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        v, c, b, e, o = (x.detach().contiguous().numpy() for x in (vertices, corners, bary, uv, eye))
        m, q = (x.detach().contiguous().numpy() for x in (local, quats))
        means, turned = np.empty_like(m), np.empty_like(q)
        facing = np.empty(means.shape[:2], np.float32)
        threads.announce_compile("the avatar's deformation", 5, _forward)
        ends = _parts(means.shape[0] * means.shape[1])
        threads.share(
            lambda i: _forward(v, c, b, e, o, ends[i], ends[i + 1], m, q, means, turned, facing), len(ends) - 1
        )
        ctx.fixed = (v, c, e)
        out = torch.from_numpy(means), torch.from_numpy(turned), torch.from_numpy(facing)
        ctx.mark_non_differentiable(out[2])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_means: Tensor, by_turned: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        v, c, e = ctx.fixed
        m, q = (x.contiguous().numpy() for x in (by_means, by_turned))
        by_local, by_quats = np.empty_like(m), np.empty_like(q)
        ends = _parts(by_local.shape[0] * by_local.shape[1])
        threads.share(lambda i: _backward(v, c, e, ends[i], ends[i + 1], m, q, by_local, by_quats), len(ends) - 1)
        return None, None, None, None, None, torch.from_numpy(by_local), torch.from_numpy(by_quats)
