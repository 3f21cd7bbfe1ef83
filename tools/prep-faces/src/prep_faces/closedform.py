"""Closed-form matting in a band: Levin, Lischinski and Weiss 2008, A closed-form solution to natural image matting.

Only the unknown pixels become unknowns of the linear system, and only the 3x3 windows that touch one enter it, so a
narrow band costs little.
"""

import cv2
import numpy as np
import scipy.sparse
from recon4d.threads import announce_compile

from prep_faces.mattekernels import window_sums

EPSILON = 3e-5  # of the colour lines, for colours in [0, 1]
TOLERANCE = 1e-3  # of the residual, relative
MOST = 300  # iterations


def laplacian_rows(image: np.ndarray, unknown: np.ndarray, epsilon: float = EPSILON) -> scipy.sparse.csr_array:
    """Rows of the matting Laplacian at the unknown pixels: (n unknown, H W), equation 12.

    Args:
        image: (H, W, 3) float in [0, 1]. unknown: (H, W) bool.
    """
    height, width = unknown.shape
    near = cv2.dilate(unknown.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    near[[0, -1]] = False
    near[:, [0, -1]] = False
    rows = np.flatnonzero(unknown)
    number = np.full(height * width, -1, np.int32)
    number[rows] = np.arange(len(rows))
    # A pixel shares windows with the 25 of its 5x5 neighbourhood.
    sums = np.zeros((len(rows), 25))
    announce_compile("matting", 5, window_sums)
    window_sums(np.ascontiguousarray(image, np.float64), np.flatnonzero(near), number, epsilon, sums)
    columns = (rows[:, None] + (np.arange(-2, 3)[:, None] * width + np.arange(-2, 3)).ravel()).astype(np.int32)
    used = sums != 0
    starts = np.concatenate([[0], np.cumsum(used.sum(1))]).astype(np.int32)
    return scipy.sparse.csr_array((sums[used], columns[used], starts), shape=(len(rows), height * width))


def closed_form(
    image: np.ndarray, known: np.ndarray, unknown: np.ndarray, prior: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Alpha (H, W) float32 in [0, 1], by conjugate gradients from the prior.

    Args:
        image: (H, W, 3) float in [0, 1].
        known: (H, W) alpha where it is not `unknown`, (H, W) bool.
        prior, weight: (H, W) what alpha may be, and how much a deviation from it counts beside the Laplacian; a
            little of it decides where colours do not, and keeps regions that no known pixel reaches.
    """
    alpha = np.where(unknown, 0, known).astype(np.float64)
    if not unknown.any():
        return alpha.astype(np.float32)
    rows = laplacian_rows(image, unknown)
    inside = np.flatnonzero(unknown)
    trust = weight.ravel()[inside].astype(np.float64) + 1e-9
    right = trust * prior.ravel()[inside] - rows @ alpha.ravel()
    matrix = (rows[:, inside] + scipy.sparse.diags_array(trust)).tocsr()
    alpha.ravel()[inside] = conjugate_gradients(matrix, right, prior.ravel()[inside].astype(np.float64))
    return np.clip(alpha, 0, 1).astype(np.float32)


def conjugate_gradients(matrix: scipy.sparse.csr_array, right: np.ndarray, start: np.ndarray) -> np.ndarray:
    """x of matrix x = right, preconditioned by the diagonal, until the residual is TOLERANCE of the right side.

    SciPy's own takes its inner products from BLAS, whose threads cost hundreds of times what they do where another
    process has the cores.
    """
    scale = 1 / matrix.diagonal()
    x = start.copy()
    residual = right - matrix @ x
    step = scale * residual
    direction = step.copy()
    size = _inner(residual, step)
    enough = TOLERANCE**2 * _inner(right, scale * right)
    for _ in range(MOST):
        if size <= enough:
            break
        moved = matrix @ direction
        length = size / _inner(direction, moved)
        x += length * direction
        residual -= length * moved
        step = scale * residual
        size, before = _inner(residual, step), size
        direction = step + size / before * direction
    return x


def _inner(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.einsum("i,i", a, b))
