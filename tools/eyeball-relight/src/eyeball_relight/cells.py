"""One level of the hash grid for a block of points at once, a point a lane, so that compilers make vectors of it.

What `hashgrid` says of levels holds here too: two features a level, float32, and points in bounds ([-1, 1]) where
`hashgrid` has them in [0, 1].
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numba import njit
from recon4d import threads
from torch import Tensor

BLOCK = 64  # points; matrix products of 64 x 64 x 64 are the largest that OpenBLAS does without threads of its own
CORNERS = 8  # of a cell; bit 0 of a corner's number is x, bit 1 y, bit 2 z
FEATURES = 2
MOST_WIDE = 64  # rows of a matrix; see BLOCK
LEAST = 4  # blocks that are worth a thread

_ZERO, _HALF, _ONE, _TWO, _THREE = (np.float32(x) for x in (0, 0.5, 1, 2, 3))
_PRIME_Y, _PRIME_Z = np.uint32(2654435761), np.uint32(805459861)  # hashgrid.PRIMES

_own = threading.local()


@contextlib.contextmanager
def torch_alone() -> Iterator[None]:
    """Within it torch uses one thread, and the kernels of `network` and `materials` as many as torch had.

    With so few points a step an operation of torch is done before a second thread has woken; a kernel is not.
    """
    before = torch.get_num_threads()
    _own.cores = before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _own.cores = None


def _cores() -> int:
    return getattr(_own, "cores", None) or threads.count()


def deal(work: Callable[[int], Any], parts: int) -> None:
    """`threads.share`, on all threads within `torch_alone` too."""
    now = torch.get_num_threads()
    torch.set_num_threads(_cores())
    try:
        threads.share(work, parts)
    finally:
        torch.set_num_threads(now)


def ends_of(points: int) -> np.ndarray:
    """Where the parts of so many points begin and end, in blocks: a part a core, but none that is small, for each
    has sums of its own."""
    blocks = -(-points // BLOCK)
    return np.linspace(0, blocks, max(1, min(_cores(), blocks // LEAST)) + 1).astype(int)


def usable(x: Tensor, table: Tensor, width: int) -> bool:
    """Whether the kernels of `network` and `materials` do for points x: on the CPU, a network of usual size."""
    usual = table.shape[2] == FEATURES and max(width, 3 + FEATURES * len(table)) <= MOST_WIDE
    return usual and x.device.type == "cpu" and x.dtype == table.dtype == torch.float32


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def locate(
    x: np.ndarray, entries: int, resolution: int, rows: np.ndarray, weight: np.ndarray, slope: np.ndarray
) -> None:
    """Where points x (3, BLOCK) are on a level, into:

    Args:
        rows: (CORNERS, BLOCK) of the table. weight: (3, BLOCK) of the upper corners along each axis, by smoothstep.
        slope: (3, BLOCK), its derivative by the position.
    """
    side = resolution + 1
    scale, last = np.float32(resolution), np.float32(resolution - 1)
    cell = np.empty((3, BLOCK), np.uint32)
    for axis in range(3):
        for n in range(BLOCK):
            scaled = (x[axis, n] + _ONE) * _HALF * scale
            low = min(max(np.float32(np.int32(scaled)), _ZERO), last)
            t = min(max(scaled - low, _ZERO), _ONE)
            cell[axis, n] = np.uint32(np.int32(low))
            weight[axis, n] = t * t * (_THREE - _TWO * t)
            slope[axis, n] = _THREE * t * (_ONE - t) * scale
    if side * side * side <= entries:
        up_y, up_z = np.uint32(side), np.uint32(side * side)
        for n in range(BLOCK):
            at = cell[0, n] + cell[1, n] * up_y + cell[2, n] * up_z
            rows[0, n] = at
            rows[1, n] = at + np.uint32(1)
            rows[2, n] = at + up_y
            rows[3, n] = at + up_y + np.uint32(1)
            rows[4, n] = at + up_z
            rows[5, n] = at + up_z + np.uint32(1)
            rows[6, n] = at + up_y + up_z
            rows[7, n] = at + up_y + up_z + np.uint32(1)
    else:
        mask = np.uint32(entries - 1)
        for n in range(BLOCK):
            a, b, c = cell[0, n], cell[1, n] * _PRIME_Y, cell[2, n] * _PRIME_Z
            a1, b1, c1 = a + np.uint32(1), b + _PRIME_Y, c + _PRIME_Z
            rows[0, n] = (a ^ b ^ c) & mask
            rows[1, n] = (a1 ^ b ^ c) & mask
            rows[2, n] = (a ^ b1 ^ c) & mask
            rows[3, n] = (a1 ^ b1 ^ c) & mask
            rows[4, n] = (a ^ b ^ c1) & mask
            rows[5, n] = (a1 ^ b ^ c1) & mask
            rows[6, n] = (a ^ b1 ^ c1) & mask
            rows[7, n] = (a1 ^ b1 ^ c1) & mask


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def look_up(
    table: np.ndarray, rows: np.ndarray, weight: np.ndarray, slope: np.ndarray, value: np.ndarray, jacobian: np.ndarray
) -> None:
    """value (2, BLOCK) of a level's table (entries, 2), and its derivative (6, BLOCK): of feature f by axis a in row
    3 f + a, unless jacobian is empty."""
    corner = np.empty((FEATURES, CORNERS, BLOCK), np.float32)
    for n in range(BLOCK):
        for c in range(CORNERS):
            row = rows[c, n]
            corner[0, c, n] = table[row, 0]
            corner[1, c, n] = table[row, 1]
    sloped = len(jacobian) > 0
    for f in range(FEATURES):
        v = corner[f]
        for n in range(BLOCK):
            a, b, c = weight[0, n], weight[1, n], weight[2, n]
            x00, x10, x01, x11 = v[1, n] - v[0, n], v[3, n] - v[2, n], v[5, n] - v[4, n], v[7, n] - v[6, n]
            low, high = v[0, n] + a * x00, v[4, n] + a * x01
            y0, y1 = v[2, n] + a * x10 - low, v[6, n] + a * x11 - high
            low, high = low + b * y0, high + b * y1
            value[f, n] = low + c * (high - low)
            if sloped:
                x0, x1 = x00 + b * (x10 - x00), x01 + b * (x11 - x01)
                jacobian[3 * f, n] = slope[0, n] * (x0 + c * (x1 - x0))
                jacobian[3 * f + 1, n] = slope[1, n] * (y0 + c * (y1 - y0))
                jacobian[3 * f + 2, n] = slope[2, n] * (high - low)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def spread(
    rows: np.ndarray,
    weight: np.ndarray,
    slope: np.ndarray,
    by_value: np.ndarray,
    towards: np.ndarray,
    by_slope: np.ndarray,
    grad_table: np.ndarray,
) -> None:
    """Add to grad_table (entries, 2) what by_value (2, BLOCK) is by the table, and sum(by_slope by_jacobian towards).

    Args:
        towards: (3, BLOCK) upstream of the gradient by position that the slopes give with by_slope (2, BLOCK), the
            gradient by the features; empty leaves it out.
    """
    add = np.empty((FEATURES, CORNERS, BLOCK), np.float32)
    sloped = len(towards) > 0
    for corner in range(CORNERS):
        u, v, w = corner & 1, (corner >> 1) & 1, corner >> 2
        # weight of the corner along an axis: base + sign * weight
        base_a, sign_a = (_ZERO, _ONE) if u else (_ONE, -_ONE)
        base_b, sign_b = (_ZERO, _ONE) if v else (_ONE, -_ONE)
        base_c, sign_c = (_ZERO, _ONE) if w else (_ONE, -_ONE)
        if sloped:
            for n in range(BLOCK):
                a, b, c = (
                    base_a + sign_a * weight[0, n],
                    base_b + sign_b * weight[1, n],
                    base_c + sign_c * weight[2, n],
                )
                along = (
                    towards[0, n] * sign_a * slope[0, n] * b * c
                    + towards[1, n] * sign_b * slope[1, n] * a * c
                    + towards[2, n] * sign_c * slope[2, n] * a * b
                )
                add[0, corner, n] = a * b * c * by_value[0, n] + along * by_slope[0, n]
                add[1, corner, n] = a * b * c * by_value[1, n] + along * by_slope[1, n]
        else:
            for n in range(BLOCK):
                share = (
                    (base_a + sign_a * weight[0, n])
                    * (base_b + sign_b * weight[1, n])
                    * (base_c + sign_c * weight[2, n])
                )
                add[0, corner, n] = share * by_value[0, n]
                add[1, corner, n] = share * by_value[1, n]
    for n in range(BLOCK):
        for corner in range(CORNERS):
            row = rows[corner, n]
            grad_table[row, 0] += add[0, corner, n]
            grad_table[row, 1] += add[1, corner, n]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def add_rows(block: np.ndarray, total: np.ndarray) -> None:
    """Add the sums of the rows of block (R, BLOCK) to total (R,)."""
    for r in range(len(block)):
        row = _ZERO
        for n in range(BLOCK):
            row += block[r, n]
        total[r] += row
