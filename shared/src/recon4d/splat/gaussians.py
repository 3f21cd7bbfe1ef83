"""The Gaussians of the library, in the units that `rasterize` takes."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussians:
    """A set of N Gaussians in the units that `rasterize` takes (not the logarithms and logits of the file).

    means (N, 3) metres; quats (N, 4) wxyz of any length; scales (N, 3) standard deviations in metres, positive;
    opacities (N,) in [0, 1]; sh (N, K, 3) spherical-harmonics coefficients, K = (degree + 1)^2 of degree 0 to 3,
    with colour = 0.28209479177387814 sh[:, 0] + 0.5 at degree 0; extra: other properties by name, each (N,).
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    sh: Tensor
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def sh_degree(self) -> int:
        """The degree that `sh` holds, for `rasterize(..., sh_degree=...)`."""
        degrees: int = round(self.sh.shape[-2] ** 0.5)
        return degrees - 1


def of_arrays(
    means: np.ndarray, quats: np.ndarray, log_scales: np.ndarray, opacities: np.ndarray, sh: np.ndarray
) -> Gaussians:
    """Gaussians of what files hold: scales as logarithms, opacities in [0, 1], sh (N, K, 3)."""
    with np.errstate(over="ignore"):
        scales = np.exp(log_scales)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    return Gaussians(tensor(means), tensor(quats), tensor(scales), tensor(opacities), tensor(sh))


def to_arrays(gaussians: Gaussians) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of `of_arrays`, float64; quaternions of length 1."""
    means, quats, scales, opacities, sh = (
        t.detach().cpu().double().numpy()
        for t in (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh)
    )
    length = np.linalg.norm(quats, axis=1, keepdims=True)
    quats = np.where(length > 1e-12, quats / np.maximum(length, 1e-12), [1.0, 0.0, 0.0, 0.0])
    return means, quats, np.log(np.maximum(scales, 1e-20)), opacities, sh


# Smallest three: of a unit quaternion the largest component is left out, and made positive. Row k: the other three.
OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])


def smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which component of each unit quaternion (N, 4) is largest (N,), and the other three in order (N, 3)."""
    largest = np.abs(quats).argmax(1)
    rows = np.arange(len(quats))
    signed = quats * np.where(quats[rows, largest] < 0, -1.0, 1.0)[:, None]
    return largest, np.take_along_axis(signed, OTHERS[largest], 1)


def from_smallest_three(largest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The inverse of `smallest_three`."""
    quats = np.zeros((len(others), 4))
    np.put_along_axis(quats, OTHERS[largest], others, 1)
    quats[np.arange(len(quats)), largest] = np.sqrt(np.maximum(0.0, 1.0 - (others**2).sum(1)))
    return quats
