"""The differentiable steps of rasterization as Numba kernels with hand-written backwards, for float32 on the CPU.

Each `_rows` function works on a range of image rows (all images of the batch stacked); ranges are dealt to threads.
Gradients that many pixels add to the same vertex are added in a buffer per part (or per image, when there are more
images than threads) and summed in a fixed order: no atomics, and the same result every time. The arithmetic is
float64 inside, so that differences of large coordinates lose nothing.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from recon4d import threads

BLOCK = 16  # rows dealt at a time


def applies(tensor: Tensor) -> bool:
    """Whether the kernels handle this tensor: float32 on the CPU, not traced by functorch."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


@njit(cache=True, nogil=True, boundscheck=False)
def _bary_rows(pos, tri, ids, first, last, bary, depth):
    height, width = ids.shape[1], ids.shape[2]
    vertices, faces = pos.shape[1], tri.shape[0]
    for row in range(first, last):
        b, r = row // height, row % height
        py = 1.0 - (r + 0.5) * (2.0 / height)
        for c in range(width):
            f = ids[b, r, c]
            if f < 0:
                for n in range(3):
                    bary[b, r, c, n] = 0.0
                depth[b, r, c] = 1.0
                continue
            if f >= faces:
                return 1
            i, j, k = tri[f, 0], tri[f, 1], tri[f, 2]
            if min(i, j, k) < 0 or max(i, j, k) >= vertices:
                return 1
            px = (c + 0.5) * (2.0 / width) - 1.0
            w0, w1, w2 = np.float64(pos[b, i, 3]), np.float64(pos[b, j, 3]), np.float64(pos[b, k, 3])
            x0, y0 = pos[b, i, 0] - px * w0, pos[b, i, 1] - py * w0
            x1, y1 = pos[b, j, 0] - px * w1, pos[b, j, 1] - py * w1
            x2, y2 = pos[b, k, 0] - px * w2, pos[b, k, 1] - py * w2
            a0 = x1 * y2 - y1 * x2
            a1 = x2 * y0 - y2 * x0
            a2 = x0 * y1 - y0 * x1
            s = a0 + a1 + a2
            m = a0 * w0 + a1 * w1 + a2 * w2
            if s == 0.0 or m == 0.0:
                for n in range(3):
                    bary[b, r, c, n] = 0.0
                depth[b, r, c] = 1.0
                continue
            inverse = 1.0 / s
            bary[b, r, c, 0] = a0 * inverse
            bary[b, r, c, 1] = a1 * inverse
            bary[b, r, c, 2] = a2 * inverse
            depth[b, r, c] = (a0 * pos[b, i, 2] + a1 * pos[b, j, 2] + a2 * pos[b, k, 2]) / m
    return 0


@njit(cache=True, nogil=True, boundscheck=False)
def _bary_backward_rows(pos, tri, ids, first, last, grad_bary, grad_depth, grad):
    """Adds to grad (B, V, 4) float64. Derivatives of b_i = a_i / s and depth = sum a_i z_i / sum a_i w_i."""
    height, width = ids.shape[1], ids.shape[2]
    for row in range(first, last):
        b, r = row // height, row % height
        py = 1.0 - (r + 0.5) * (2.0 / height)
        for c in range(width):
            f = ids[b, r, c]
            if f < 0:
                continue
            g0, g1, g2 = (
                np.float64(grad_bary[b, r, c, 0]),
                np.float64(grad_bary[b, r, c, 1]),
                np.float64(grad_bary[b, r, c, 2]),
            )
            gd = np.float64(grad_depth[b, r, c])
            if g0 == 0.0 and g1 == 0.0 and g2 == 0.0 and gd == 0.0:
                continue
            i, j, k = tri[f, 0], tri[f, 1], tri[f, 2]
            px = (c + 0.5) * (2.0 / width) - 1.0
            z0, z1, z2 = np.float64(pos[b, i, 2]), np.float64(pos[b, j, 2]), np.float64(pos[b, k, 2])
            w0, w1, w2 = np.float64(pos[b, i, 3]), np.float64(pos[b, j, 3]), np.float64(pos[b, k, 3])
            x0, y0 = pos[b, i, 0] - px * w0, pos[b, i, 1] - py * w0
            x1, y1 = pos[b, j, 0] - px * w1, pos[b, j, 1] - py * w1
            x2, y2 = pos[b, k, 0] - px * w2, pos[b, k, 1] - py * w2
            a0 = x1 * y2 - y1 * x2
            a1 = x2 * y0 - y2 * x0
            a2 = x0 * y1 - y0 * x1
            s = a0 + a1 + a2
            m = a0 * w0 + a1 * w1 + a2 * w2
            if s == 0.0 or m == 0.0:
                continue
            depth = (a0 * z0 + a1 * z1 + a2 * z2) / m
            gm = gd / m
            mean = (g0 * a0 + g1 * a1 + g2 * a2) / s
            e0 = (g0 - mean) / s + gm * (z0 - depth * w0)  # by a_0
            e1 = (g1 - mean) / s + gm * (z1 - depth * w1)
            e2 = (g2 - mean) / s + gm * (z2 - depth * w2)
            gx0, gy0 = e2 * y1 - e1 * y2, e1 * x2 - e2 * x1
            gx1, gy1 = e0 * y2 - e2 * y0, e2 * x0 - e0 * x2
            gx2, gy2 = e1 * y0 - e0 * y1, e0 * x1 - e1 * x0
            grad[b, i, 0] += gx0
            grad[b, i, 1] += gy0
            grad[b, i, 2] += gm * a0
            grad[b, i, 3] -= px * gx0 + py * gy0 + gm * depth * a0
            grad[b, j, 0] += gx1
            grad[b, j, 1] += gy1
            grad[b, j, 2] += gm * a1
            grad[b, j, 3] -= px * gx1 + py * gy1 + gm * depth * a1
            grad[b, k, 0] += gx2
            grad[b, k, 1] += gy2
            grad[b, k, 2] += gm * a2
            grad[b, k, 3] -= px * gx2 + py * gy2 + gm * depth * a2


@njit(cache=True, nogil=True, boundscheck=False)
def _interpolate_rows(attr, tri, ids, bary, first, last, out):
    height, width = ids.shape[1], ids.shape[2]
    channels = attr.shape[2]
    vertices, faces = attr.shape[1], tri.shape[0]
    for row in range(first, last):
        b, r = row // height, row % height
        a = b if attr.shape[0] > 1 else 0
        for c in range(width):
            f = ids[b, r, c]
            if f < 0:
                for n in range(channels):
                    out[b, r, c, n] = 0.0
                continue
            if f >= faces:
                return 1
            i, j, k = tri[f, 0], tri[f, 1], tri[f, 2]
            if min(i, j, k) < 0 or max(i, j, k) >= vertices:
                return 1
            b0, b1, b2 = bary[b, r, c, 0], bary[b, r, c, 1], bary[b, r, c, 2]
            for n in range(channels):
                out[b, r, c, n] = b0 * attr[a, i, n] + b1 * attr[a, j, n] + b2 * attr[a, k, n]
    return 0


@njit(cache=True, nogil=True, boundscheck=False)
def _interpolate_backward_rows(attr, tri, ids, bary, first, last, grad_out, grad_attr, grad_bary):
    """Adds to grad_attr (1 or B, V, C) unless it is empty; sets grad_bary unless it is empty."""
    height, width = ids.shape[1], ids.shape[2]
    channels = attr.shape[2]
    for row in range(first, last):
        b, r = row // height, row % height
        a = b if attr.shape[0] > 1 else 0
        for c in range(width):
            f = ids[b, r, c]
            if f < 0:
                if grad_bary.size:
                    for n in range(3):
                        grad_bary[b, r, c, n] = 0.0
                continue
            i, j, k = tri[f, 0], tri[f, 1], tri[f, 2]
            if grad_bary.size:
                s0 = s1 = s2 = 0.0
                for n in range(channels):
                    g = np.float64(grad_out[b, r, c, n])
                    s0 += g * attr[a, i, n]
                    s1 += g * attr[a, j, n]
                    s2 += g * attr[a, k, n]
                grad_bary[b, r, c, 0] = s0
                grad_bary[b, r, c, 1] = s1
                grad_bary[b, r, c, 2] = s2
            if grad_attr.size:
                b0, b1, b2 = bary[b, r, c, 0], bary[b, r, c, 1], bary[b, r, c, 2]
                for n in range(channels):
                    g = grad_out[b, r, c, n]
                    grad_attr[a, i, n] += b0 * g
                    grad_attr[a, j, n] += b1 * g
                    grad_attr[a, k, n] += b2 * g


def _numpy(tensor: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    return tensor.detach().to("cpu", dtype).contiguous().numpy()


def _raise_if(bad: int) -> None:
    if bad:
        raise ValueError("tri and tri_id name triangles or vertices that do not exist; check that they belong together")


def _deal(ids: np.ndarray) -> list[tuple[int, int]]:
    """Cut the rows of a batch of images into ranges, some per thread."""
    rows = ids.shape[0] * ids.shape[1]
    parts = min(4 * threads.count(), -(-rows // 8)) if threads.count() > 1 else 1
    return [(rows * part // parts, rows * (part + 1) // parts) for part in range(parts)]


def _gather(ids: np.ndarray, own_images: bool, shape: tuple[int, ...], dtype: Any, work: Any) -> np.ndarray:
    """Run work(first row, last row, buffer), which adds to a buffer of `shape`, and return the sum.

    With `own_images` an image adds only to its own part of the buffer, so that images can share one.
    """
    items, height = ids.shape[:2]
    count = threads.count()
    if np.prod(shape) * count > 4 * ids.size:  # clearing and summing the buffers would cost more than they save
        work(0, items * height, total := np.zeros(shape, dtype))
        return total
    if count == 1 or (own_images and items >= count):
        total = np.zeros(shape, dtype)
        threads.share(lambda item: work(item * height, (item + 1) * height, total), items)
        return total
    parts = min(2 * count, items * height)
    buffers = np.zeros((parts, *shape), dtype)

    def block(part: int) -> None:  # interleaved, so that parts are about equally full
        for row in range(part * BLOCK, items * height, parts * BLOCK):
            work(row, min(row + BLOCK, items * height), buffers[part])

    threads.share(block, parts)
    return buffers.sum(0)


class Barycentrics(torch.autograd.Function):
    """`barycentric.barycentrics` in Numba: (pos_clip, tri, tri_id) -> bary (B, H, W, 3), depth (B, H, W)."""

    @staticmethod
    def forward(ctx: Any, pos_clip: Tensor, tri: Tensor, tri_id: Tensor) -> tuple[Tensor, Tensor]:
        pos, faces, ids = _numpy(pos_clip), _numpy(tri, torch.int32), _numpy(tri_id, torch.int32)
        bary = np.empty((*ids.shape, 3), np.float32)
        depth = np.empty(ids.shape, np.float32)
        threads.announce_compile("the mesh interpolator", 5, _bary_rows)
        ranges = _deal(ids)
        bad = [0] * len(ranges)

        def work(part: int) -> None:
            bad[part] = _bary_rows(pos, faces, ids, *ranges[part], bary, depth)

        threads.share(work, len(ranges))
        _raise_if(any(bad))
        ctx.save_for_backward(pos_clip, tri, tri_id)
        return torch.from_numpy(bary), torch.from_numpy(depth)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bary: Tensor, grad_depth: Tensor) -> tuple[Tensor, None, None]:
        pos_clip, tri, tri_id = ctx.saved_tensors
        pos, faces, ids = _numpy(pos_clip), _numpy(tri, torch.int32), _numpy(tri_id, torch.int32)
        by_bary, by_depth = _numpy(grad_bary), _numpy(grad_depth)

        def work(first: int, last: int, grad: np.ndarray) -> None:
            _bary_backward_rows(pos, faces, ids, first, last, by_bary, by_depth, grad)

        grad = _gather(ids, True, pos.shape, np.float64, work)
        return torch.from_numpy(grad.astype(np.float32)), None, None


class Interpolate(torch.autograd.Function):
    """`rasterize.interpolate_torch` in Numba: (attr, bary, tri, tri_id) -> (B, H, W, C)."""

    @staticmethod
    def forward(ctx: Any, attr: Tensor, bary: Tensor, tri: Tensor, tri_id: Tensor) -> Tensor:
        values, weights = _numpy(attr), _numpy(bary)
        faces, ids = _numpy(tri, torch.int32), _numpy(tri_id, torch.int32)
        out = np.empty((*ids.shape, values.shape[-1]), np.float32)
        threads.announce_compile("the mesh interpolator", 5, _interpolate_rows)
        ranges = _deal(ids)
        bad = [0] * len(ranges)

        def work(part: int) -> None:
            bad[part] = _interpolate_rows(values, faces, ids, weights, *ranges[part], out)

        threads.share(work, len(ranges))
        _raise_if(any(bad))
        ctx.save_for_backward(attr, bary, tri, tri_id)
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        attr, bary, tri, tri_id = ctx.saved_tensors
        values, weights = _numpy(attr), _numpy(bary)
        faces, ids = _numpy(tri, torch.int32), _numpy(tri_id, torch.int32)
        by_out = _numpy(grad_out)
        want_attr, want_bary = ctx.needs_input_grad[:2]
        grad_bary = np.empty(bary.shape if want_bary else (0, 0, 0, 3), np.float32)

        def work(first: int, last: int, grad: np.ndarray) -> None:
            _interpolate_backward_rows(values, faces, ids, weights, first, last, by_out, grad, grad_bary)

        own = len(values) > 1 or not want_attr
        grad_attr = _gather(ids, own, values.shape if want_attr else (0, 0, 0), np.float32, work)
        return (
            torch.from_numpy(grad_attr) if want_attr else None,
            torch.from_numpy(grad_bary) if want_bary else None,
            None,
            None,
        )
