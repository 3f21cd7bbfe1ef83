"""What structural similarity needs of two images, on a CPU in one pass over them: means, squares and products in boxes.

The same as `torch_box_means`, which is also its reference in tests; several times faster, since no product of whole
images is written to memory.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from recon4d import threads
from torch import Tensor
from torch.autograd.function import once_differentiable

SIDE = 4  # pixels of a box


def box_means(a: Tensor, b: Tensor) -> Tensor:
    """Means of a, b, a*a, b*b and a*b over boxes of 4x4 pixels, (B, H // 4, W // 4, 5, C); b gets no gradient.

    Args:
        a, b: (B, H, W, C). Rows and columns beyond the last whole box are left out.
    """
    if a.device.type == "cpu" and a.dtype == b.dtype == torch.float32:
        means: Tensor = _BoxMeans.apply(a, b.detach())  # type: ignore[no-untyped-call]
        return means
    return torch_box_means(a, b.detach())


def torch_box_means(a: Tensor, b: Tensor) -> Tensor:
    """The same in plain torch, on any device."""

    def mean(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), SIDE).permute(0, 2, 3, 1)

    return torch.stack([mean(a), mean(b), mean(a * a), mean(b * b), mean(a * b)], 3)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _forward(a: np.ndarray, b: np.ndarray, channels: int, row: int, out: np.ndarray) -> None:
    """Row `row` of the boxes of all images (B, H, W * C) into out (B, rows, columns, 5, C)."""
    columns = out.shape[2]
    width = SIDE * columns * channels
    share = np.float32(1 / SIDE**2)
    sums = np.empty((5, width), np.float32)  # down each column, which the processor does eight at a time
    for i in range(len(a)):
        sums[:] = 0
        for y in range(SIDE * row, SIDE * row + SIDE):
            for x in range(width):
                p, q = a[i, y, x], b[i, y, x]
                sums[0, x] += p
                sums[1, x] += q
                sums[2, x] += p * p
                sums[3, x] += q * q
                sums[4, x] += p * q
        for column in range(columns):
            for k in range(5):
                for c in range(channels):
                    total = np.float32(0)
                    for x in range(SIDE):
                        total += sums[k, (SIDE * column + x) * channels + c]
                    out[i, row, column, k, c] = share * total


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _backward(a: np.ndarray, b: np.ndarray, channels: int, row: int, by_out: np.ndarray, grad: np.ndarray) -> None:
    """The gradient by the first images (B, H, W * C) of row `row`, from that by the boxes (B, rows, columns, 5, C)."""
    columns = by_out.shape[2]
    width = SIDE * columns * channels
    share = np.float32(1 / SIDE**2)
    by = np.empty((3, width), np.float32)
    for i in range(len(a)):
        for column in range(columns):
            for x in range(SIDE):
                for c in range(channels):
                    place = (SIDE * column + x) * channels + c
                    by[0, place] = share * by_out[i, row, column, 0, c]
                    by[1, place] = share * by_out[i, row, column, 2, c] * 2
                    by[2, place] = share * by_out[i, row, column, 4, c]
        for y in range(SIDE * row, SIDE * row + SIDE):
            for x in range(width):
                grad[i, y, x] = by[0, x] + a[i, y, x] * by[1, x] + b[i, y, x] * by[2, x]


class _BoxMeans(torch.autograd.Function):
    """See `box_means`; a needs (B, H, W, C) float32 on the CPU."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        left, right = (x.detach().flatten(2).contiguous().numpy() for x in (a, b))
        count, height, width, channels = a.shape
        out = np.empty((count, height // SIDE, width // SIDE, 5, channels), np.float32)
        threads.announce_compile("structural similarity", 3, _forward)
        threads.share(lambda row: _forward(left, right, channels, row, out), height // SIDE)
        ctx.images, ctx.shape = (left, right), a.shape
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor, None]:
        upstream = by_out.contiguous().numpy()
        left, right = ctx.images
        grad = np.zeros_like(left)
        channels = ctx.shape[3]
        threads.share(lambda row: _backward(left, right, channels, row, upstream, grad), upstream.shape[1])
        return torch.from_numpy(grad).view(ctx.shape), None
