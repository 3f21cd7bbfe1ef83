"""2x3 affine matrices on pixels whose centres are at +0.5: fitting, composing, moving images."""

import cv2
import numpy as np


def head_motion(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The 2x3 similarity that best carries points (n, 2) `source` to `target` (Umeyama 1991, in complex numbers)."""
    a = np.asarray(source, np.float64) @ [1, 1j]
    b = np.asarray(target, np.float64) @ [1, 1j]
    centered = a - a.mean()
    spread = float(np.vdot(centered, centered).real)
    turn = np.vdot(centered, b - b.mean()) / spread if spread > 0 else 1.0 + 0j
    shift = b.mean() - turn * a.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def compose(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The 2x3 matrix that does `first`, then `second`."""
    return np.hstack([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2:] + second[:, 2:]])


def invert(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a 2x3 affine matrix."""
    inverse = np.linalg.inv(matrix[:, :2])
    return np.hstack([inverse, -inverse @ matrix[:, 2:]])


def warp(image: np.ndarray, matrix: np.ndarray, height: int, width: int, border: float = 0) -> np.ndarray:
    """`image` moved by the 2x3 `matrix` into (height, width); smoothed first when it shrinks."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.7:
        image = cv2.GaussianBlur(image, (0, 0), 0.35 / scale)
    centered = matrix.copy()
    centered[:, 2] += 0.5 * matrix[:, :2].sum(1) - 0.5
    return cv2.warpAffine(
        image,
        centered,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=border,
    )
