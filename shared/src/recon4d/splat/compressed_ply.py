"""SuperSplat's compressed PLY files: chunks of 256 Gaussians with their bounds, and 16 bytes for each Gaussian.

Positions and scales are 11, 10 and 11 bits between the bounds of the chunk, rotations the smallest three in 10 bits
each, colours and opacity bytes (colours between bounds where the chunk has them). https://github.com/playcanvas/splat-transform
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from recon4d.files import InputError
from recon4d.splat.gaussians import Gaussians, from_smallest_three, of_arrays
from recon4d.splat.harmonics import SH0

_CHUNK = 256


def unpack(elements: Mapping[str, np.ndarray], path: Path) -> Gaussians:
    """Gaussians of a file's elements `chunk`, `vertex` and perhaps `sh`. Raises InputError where they do not fit."""
    try:
        chunk, vertex = elements["chunk"], elements["vertex"]
        n = len(vertex)
        if len(chunk) * _CHUNK < n:
            raise ValueError(f"it has {len(chunk)} chunks for {n} Gaussians")
        of = np.arange(n) // _CHUNK

        def bounds(form: str, axes: str) -> tuple[np.ndarray, np.ndarray]:
            low, high = (np.stack([chunk[form.format(end, axis)] for axis in axes], -1) for end in ("min", "max"))
            return low[of].astype(np.float64), high[of].astype(np.float64)

        def between(form: str, axes: str, shares: np.ndarray) -> np.ndarray:
            low, high = bounds(form, axes)
            mixed: np.ndarray = low * (1 - shares) + high * shares
            return mixed

        means = between("{}_{}", "xyz", _three(vertex["packed_position"]))
        log_scales = between("{}_scale_{}", "xyz", _three(vertex["packed_scale"]))
        packed = vertex["packed_rotation"].astype(np.int64)
        fields = np.stack([packed >> 20 & 1023, packed >> 10 & 1023, packed & 1023], -1)
        quats = from_smallest_three(packed >> 30 & 3, (fields / 1023 - 0.5) * np.sqrt(2))
        packed = vertex["packed_color"].astype(np.int64)
        colour = np.stack([packed >> 24 & 255, packed >> 16 & 255, packed >> 8 & 255], -1) / 255
        if "min_r" in (chunk.dtype.names or ()):
            colour = between("{}_{}", "rgb", colour)
        sh = ((colour - 0.5) / SH0)[:, None]
        if "sh" in elements:
            sh = np.concatenate([sh, _harmonics(elements["sh"], n)], 1)
        return of_arrays(means, quats, log_scales, (packed & 255) / 255, sh)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path} is not a whole compressed PLY file ({error}); export it again") from error


def _three(packed: np.ndarray) -> np.ndarray:
    """11, 10 and 11 bits as shares (N, 3) of their range."""
    bits = packed.astype(np.int64)
    return np.stack([(bits >> 21 & 2047) / 2047, (bits >> 11 & 1023) / 1023, (bits & 2047) / 2047], -1)


def _harmonics(element: np.ndarray, n: int) -> np.ndarray:
    names = element.dtype.names or ()
    if len(names) not in (9, 24, 45) or len(element) != n:
        raise ValueError(f"it has {len(names)} harmonics for {len(element)} Gaussians")
    values = np.stack([element[f"f_rest_{i}"] for i in range(len(names))], -1).astype(np.float64)
    shares = np.where(values == 0, 0.0, np.where(values == 255, 1.0, (values + 0.5) / 256))
    return ((shares - 0.5) * 8).reshape(n, 3, -1).transpose(0, 2, 1)
