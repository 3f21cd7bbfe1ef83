"""Closed-form matting in a band: Levin, Lischinski and Weiss 2008, A closed-form solution to natural image matting.

Only the unknown pixels become unknowns of the linear system, and only the 3x3 windows that touch one enter it, so a
narrow band costs little.
"""

import cv2
import numpy as np
import scipy.sparse

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
    around = (np.arange(-1, 2)[:, None] * width + np.arange(-1, 2)).ravel()
    windows = np.flatnonzero(near)[:, None] + around  # (m, 9)
    colors = image.reshape(-1, 3)[windows].astype(np.float64)
    colors -= colors.mean(1, keepdims=True)
    turned = colors.transpose(0, 2, 1)
    covariance = turned @ colors / 9 + np.eye(3) * epsilon / 9
    values = np.eye(9) - (1 + colors @ np.linalg.inv(covariance) @ turned) / 9  # (m, 9, 9)

    # A pixel shares windows with the 25 of its 5x5 neighbourhood; each pair of a window adds to one of the 25.
    rows = np.flatnonzero(unknown)
    number = np.full(height * width, -1)
    number[rows] = np.arange(len(rows))
    y, x = np.divmod(np.arange(9), 3)
    neighbour = (y[None] - y[:, None] + 2) * 5 + (x[None] - x[:, None] + 2)
    row = number[windows]
    chosen = row >= 0
    place = (row[:, :, None] * 25 + neighbour)[chosen]
    sums = np.bincount(place.ravel(), values[chosen].ravel(), 25 * len(rows)).reshape(-1, 25)
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
