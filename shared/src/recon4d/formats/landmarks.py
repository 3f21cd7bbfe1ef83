"""Landmarks of faces: files of one array, whose number of points says what they are.

| points | whose |
| --- | --- |
| 68 | iBUG (300-W): dlib, face-alignment, `prep-faces landmarks --points ibug` |
| 70 | iBUG and the centres of both irises: VHAP |
| 51 | iBUG without the jaw line |
| 478, 468 | MediaPipe's face mesh, with and without irises: `prep-faces landmarks` |
| 105 | the points of MediaPipe's that FLAME's own `mediapipe_landmark_embedding.npz` places |
"""

from pathlib import Path

import numpy as np

from recon4d.files import InputError, read_npy

FAR = 1e6  # pixels: no image is so large
N_DENSE = 478
COUNTS = (68, 70, 51, 478, 468, 105)
IRISES = (473, 468)  # centres of the person's left and right iris among the 478

# The dense point nearest to each of iBUG's 68. Those of the jaw stay on the surface; iBUG's slide along the outline.
IBUG = np.array(
    [
        127, 234, 93, 132, 58, 172, 150, 148, 152, 377, 379, 397, 288, 361, 323, 454, 356, 70, 63, 105, 66, 107, 336,
        296, 334, 293, 300, 168, 197, 5, 4, 98, 97, 2, 326, 327, 33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373,
        380, 61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
    ],
    np.int64,
)  # fmt: skip

# FLAME's published choice of 105 (brows, eyes, nose, lips).
FLAME_105 = np.array(
    [
        276, 282, 283, 285, 293, 295, 296, 300, 334, 336, 46, 52, 53, 55, 63, 65, 66, 70, 105, 107, 249, 263, 362, 373,
        374, 380, 381, 382, 384, 385, 386, 387, 388, 390, 398, 466, 7, 33, 133, 144, 145, 153, 154, 155, 157, 158, 159,
        160, 161, 163, 173, 246, 168, 6, 197, 195, 5, 4, 129, 98, 97, 2, 326, 327, 358, 0, 13, 14, 17, 37, 39, 40, 61,
        78, 80, 81, 82, 84, 87, 88, 91, 95, 146, 178, 181, 185, 191, 267, 269, 270, 291, 308, 310, 311, 312, 314, 317,
        318, 321, 324, 375, 402, 405, 409, 415,
    ],
    np.int64,
)  # fmt: skip


def read_landmarks(path: str | Path) -> np.ndarray:
    """(P, n, 2) float64 pixels of the faces in a file, n one of `COUNTS`; missing files and NaN faces are no faces.

    Raises:
        InputError: an unreadable file, another shape.
    """
    path = Path(path)
    if not path.is_file():
        return np.empty((0, 68, 2))
    try:
        points = read_npy(path)
    except InputError as error:
        raise InputError(f"{path} is not a readable landmark file ({error}); make it again") from error
    shaped = points.ndim in (2, 3) and points.shape[-1] in (2, 3) and points.shape[-2] in COUNTS
    if not shaped or points.dtype.kind not in "fiu":
        counts = ", ".join(map(str, COUNTS))
        raise InputError(
            f"{path} has shape {points.shape}, {points.dtype}; (68, 2) or (people, 68, 2) is needed, or another number "
            f"of points that is known ({counts})"
        )
    points = points[..., :2].reshape(-1, *points.shape[-2:-1], 2).astype(np.float64)  # a third number is a depth
    answer: np.ndarray = points[(np.abs(points) < FAR).all((1, 2))]
    return answer


def to_dense(points: np.ndarray) -> np.ndarray | None:
    """Points (..., n, 2 or 3) of a layout of MediaPipe's as (..., 478, 2), NaN where unknown; None for iBUG's."""
    n = points.shape[-2]
    if n not in (478, 468, 105):
        return None
    dense = np.full((*points.shape[:-2], N_DENSE, 2), np.nan)
    dense[..., FLAME_105 if n == 105 else np.arange(n), :] = points[..., :2]
    return dense


def to_ibug(points: np.ndarray) -> np.ndarray:
    """Points (..., n, 2 or 3) of any layout as iBUG's (..., 68, 2), NaN where unknown; float types stay."""
    n = points.shape[-2]
    if n in (68, 70):
        return points[..., :68, :2]
    dense = to_dense(points)
    if dense is not None:
        return dense[..., IBUG, :].astype(points.dtype)
    answer = np.full((*points.shape[:-2], 68, 2), np.nan, points.dtype)
    answer[..., 17:, :] = points[..., :2]
    return answer


def to_irises(points: np.ndarray) -> np.ndarray:
    """Iris centres (..., 2, 2), the person's left first, of a layout that has them; NaN otherwise."""
    n = points.shape[-2]
    if n == 478:
        return points[..., IRISES, :2].astype(np.float64)
    if n == 70:  # in either order: whose eye a centre lies in
        two = points[..., 68:, :2].astype(np.float64)
        left_eye = points[..., 42:48, :2].mean(-2, keepdims=True)
        first = np.linalg.norm(two - left_eye, axis=-1).argmin(-1)[..., None, None]
        return np.take_along_axis(two, np.concatenate([first, 1 - first], -2), -2)
    return np.full((*points.shape[:-2], 2, 2), np.nan)
