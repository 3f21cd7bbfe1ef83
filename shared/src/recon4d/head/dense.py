"""Where MediaPipe's dense points lie on a head model, and the files that say it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recon4d.files import InputError, read_npz, write_npz

UNSAID = 0.002  # metres: the deviation of points whose file gives none
FLAMES_OWN = "mediapipe_landmark_embedding.npz"


@dataclass(frozen=True, eq=False)
class Activations:
    """What MediaPipe's 52 blendshapes say of a head's pose of the face: a linear regression.

    weights: (53, 5 + E), times 1 and the blendshapes: the jaw's rotation vector, left and right eyelid, expression.
    sigma: (5 + E,) standard deviations of what they leave open; infinite where they say nothing.
    """

    weights: Tensor
    sigma: Tensor


@dataclass(frozen=True, eq=False)
class DensePoints:
    """Points of MediaPipe's face mesh on a head model.

    indices: (n,) int64 which of the 468. faces: (n,) int64. bary: (n, 3). sigma: (n,) metres, how far a detected point
    lies from its place. bias: (n + 2, 2, 8), where it puts a point (last the left and the right iris) beside its place
    when the head is seen from the side: times `view_terms`, right and down of the upright face, in distances between
    the outer eye corners. activations: of the blendshapes, where they were calibrated.
    """

    indices: Tensor
    faces: Tensor
    bary: Tensor
    sigma: Tensor
    bias: Tensor
    activations: Activations | None = None


def view_terms(to_camera: Tensor, centre: Tensor) -> Tensor:
    """(N, 8) terms of the direction to the camera in the head's axes: 1, x, y, xx, xy, yy, xxx, xxy.

    Args:
        to_camera: (N, 3, 3) rotations head to camera. centre: (N, 3) of the points, in the camera.
    """
    towards = -(to_camera.mT @ torch.nn.functional.normalize(centre, dim=1)[..., None])[..., 0]
    return torch.from_numpy(view_terms_of(towards.numpy()))


def view_terms_of(towards: np.ndarray) -> np.ndarray:
    """The same of unit vectors (..., 3) towards the camera, in the head's axes."""
    x, y = towards[..., 0], towards[..., 1]
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y, x**3, x * x * y], -1)


def upright(to_camera: Tensor) -> Tensor:
    """(N, 2, 2) unit vectors right and down of the upright face in a picture; rotations (N, 3, 3) head to camera."""
    return torch.from_numpy(upright_of(to_camera.numpy()))


def upright_of(to_camera: np.ndarray) -> np.ndarray:
    """The same of rotations (..., 3, 3), as an array (..., 2, 2)."""
    up = to_camera[..., :2, 1]
    x, y = np.moveaxis(-up / np.maximum(np.linalg.norm(up, axis=-1, keepdims=True), 1e-9), -1, 0)
    return np.stack([np.stack([y, -x], -1), np.stack([x, y], -1)], -2)


def beside(model: Path) -> Path:
    """The file in which the points of a head model of one's own are kept."""
    return model.with_name(f"{model.stem}_dense.npz")


def read_dense(path: str | Path, n_faces: int) -> DensePoints:
    """A file of `write_dense`, or FLAME's `mediapipe_landmark_embedding.npz`.

    Raises:
        InputError: another file, indices out of range.
    """
    data = read_npz(path)
    names = ("landmark_indices", "lmk_face_idx", "lmk_b_coords")
    missing = [name for name in names if name not in data]
    if missing:
        raise InputError(f"{path} is no embedding of dense landmarks: it has no {', '.join(missing)}")
    indices, faces, bary = (data[name] for name in names)
    n = len(indices) if indices.ndim == 1 else 0
    sigma = data.get("sigma", np.full(n, UNSAID))
    bias = data.get("bias", np.zeros((n + 2, 2, 8)))
    weights, spread = data.get("blendshape_weights"), data.get("blendshape_sigma")
    sound = (
        n > 0
        and faces.shape == sigma.shape == (n,)
        and bary.shape == (n, 3)
        and all(a.dtype.kind in "iu" for a in (indices, faces))
        and bias.shape == (n + 2, 2, 8)
        and all(a.dtype.kind == "f" and np.isfinite(a).all() for a in (bary, sigma, bias))
        and indices.min() >= 0
        and indices.max() < 468
        and len(np.unique(indices)) == n
        and faces.min() >= 0
        and faces.max() < n_faces
        and sigma.min() > 0
        and (weights is None) == (spread is None)
    )
    activations = None
    if weights is not None and spread is not None:
        sound = sound and _sound(weights, spread)
        activations = weights, spread
    if not sound:
        raise InputError(f"{path} does not fit the head model: its points are not on its {n_faces} faces")
    return DensePoints(
        torch.from_numpy(indices.astype(np.int64)),
        torch.from_numpy(faces.astype(np.int64)),
        torch.from_numpy(bary.astype(np.float32)),
        torch.from_numpy(sigma.astype(np.float32)),
        torch.from_numpy(bias.astype(np.float32)),
        activations and Activations(*(torch.from_numpy(x.astype(np.float32)) for x in activations)),
    )


def _sound(weights: np.ndarray, spread: np.ndarray) -> bool:
    """Whether two arrays are those of `Activations`."""
    shapes = weights.ndim == 2 and weights.shape[0] == 53 and spread.shape == weights.shape[1:] and len(spread) >= 5
    return bool(
        shapes and weights.dtype.kind == spread.dtype.kind == "f" and np.isfinite(weights).all() and (spread > 0).all()
    )


def write_dense(path: str | Path, dense: DensePoints) -> None:
    """Write points with the keys of FLAME's own file, and what that file does not have."""
    more = {}
    if dense.activations is not None:
        more = {
            "blendshape_weights": dense.activations.weights.numpy(),
            "blendshape_sigma": dense.activations.sigma.numpy(),
        }
    write_npz(
        path,
        landmark_indices=dense.indices.numpy(),
        lmk_face_idx=dense.faces.numpy(),
        lmk_b_coords=dense.bary.numpy(),
        sigma=dense.sigma.numpy(),
        bias=dense.bias.numpy(),
        **more,
    )
