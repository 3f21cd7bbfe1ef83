"""Landmarks of faces: files of one array, whose number of points says what they are.

| points | whose |
| --- | --- |
| 68 | iBUG (300-W): dlib, face-alignment, `prep-faces landmarks --points ibug` |
| 70 | iBUG and the centres of both irises: VHAP |
| 51 | iBUG without the jaw line |
| 478, 468 | MediaPipe's face mesh, with and without irises: `prep-faces landmarks` |
| 105 | the points of MediaPipe's that FLAME's own `mediapipe_landmark_embedding.npz` places |

A file is of one picture, or of a whole clip (`read_clip`): VHAP's `<camera>.npz` and others.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recon4d.files import InputError, read_npy, read_npz

FAR = 1e6  # pixels: no image is so large
N_DENSE = 478
CLIP_KEYS = ("face_landmark_2d", "landmarks", "lmks", "arr_0")  # the first is VHAP's
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
    """(P, n, 2) float64 pixels of the faces in a file, n one of `COUNTS`.

    Missing files are no faces, nor are faces of NaN, or whose points are all the same: several programs write zeros
    where they see nobody. Points in fractions of the picture stay so: see `in_pixels`.

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
    if not _known(points, (2, 3)):
        counts = ", ".join(map(str, COUNTS))
        raise InputError(
            f"{path} has shape {points.shape}, {points.dtype}; (68, 2) or (people, 68, 2) is needed, or another number "
            f"of points that is known ({counts})"
        )
    return _faces(points)


def read_clip(path: str | Path, frames: int) -> list[np.ndarray]:
    """The faces (P, n, 2) in each frame of a clip, as `read_landmarks`, from one file of all.

    That is an npy or npz file of an array (frames, n, 2 or 3) or (frames, people, n, 2 or 3), in the frames' order.

    Raises:
        InputError: an unreadable file, no such array or several, another number of frames.
    """
    path = Path(path)
    arrays = read_npz(path) if path.suffix.lower() == ".npz" else {"": read_npy(path)}
    fitting = [key for key, value in arrays.items() if _known(value, (3, 4))]
    key = next((key for key in CLIP_KEYS if key in fitting), fitting[0] if len(fitting) == 1 else None)
    if key is None:
        held = ", ".join(f"{key or 'array'} {value.shape}" for key, value in arrays.items()) or "nothing"
        raise InputError(
            f"{path} holds {held}; landmarks of a clip are one array (frames, 68, 2), or of another number of points "
            f"that is known ({', '.join(map(str, COUNTS))})"
        )
    if len(arrays[key]) != frames:
        raise InputError(f"{path} has landmarks of {len(arrays[key])} frames, not of {frames}; give those of all")
    return [_faces(points) for points in arrays[key]]


def _known(points: np.ndarray, dimensions: tuple[int, int]) -> bool:
    shape = points.shape
    return points.ndim in dimensions and shape[-1] in (2, 3) and shape[-2] in COUNTS and points.dtype.kind in "fiu"


def _faces(points: np.ndarray) -> np.ndarray:
    points = points[..., :2].reshape(-1, *points.shape[-2:-1], 2).astype(np.float64)  # a third number is a depth
    seen = (np.abs(points) < FAR).all((1, 2)) & (np.ptp(points, axis=1) > 0).any(1)
    answer: np.ndarray = points[seen]
    return answer


def in_pixels(points: np.ndarray, size: Sequence[float] | np.ndarray) -> np.ndarray:
    """Faces (P, n, 2) in pixels of a picture of `size` (width, height) where they are fractions of it: 0 to 1.

    No face whose points lie within two pixels is one in pixels.
    """
    fractions = (np.nanmax(np.abs(points), axis=(1, 2)) <= 2) if len(points) else np.zeros(0, bool)
    answer: np.ndarray = np.where(fractions[:, None, None], points * np.asarray(size, float), points)
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
