"""Gaussians in `.splat` files (antimatter15): 32 bytes each, no header, no harmonics.

Position and scale are float32; then red, green, blue and opacity, and w, x, y, z of the rotation, as bytes.
"""

from pathlib import Path

import numpy as np

from recon4d.files import InputError, write_bytes
from recon4d.splat.gaussians import Gaussians, of_arrays, to_arrays
from recon4d.splat.harmonics import SH0

_RECORD = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("colour", "u1", 4), ("quat", "u1", 4)])


def read(path: str | Path) -> Gaussians:
    """Read a file. Raises InputError where its size or its numbers are not those of such a file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    data = path.read_bytes()
    if not data or len(data) % _RECORD.itemsize:
        raise InputError(f"{path} has {len(data)} bytes; a .splat file has 32 for each Gaussian: copy it again")
    found = np.frombuffer(data, _RECORD)
    if not (np.isfinite(found["means"]).all() and np.isfinite(found["scales"]).all() and (found["scales"] >= 0).all()):
        raise InputError(f"{path} holds no Gaussians; give a .splat file")
    colour = found["colour"] / 255
    quats = (found["quat"] - 128.0) / 128
    quats[(quats == 0).all(1)] = [1, 0, 0, 0]
    sh = ((colour[:, :3] - 0.5) / SH0)[:, None]
    return of_arrays(found["means"], quats, np.log(np.maximum(found["scales"], 1e-20)), colour[:, 3], sh)


def write(path: str | Path, gaussians: Gaussians) -> None:
    """Write a file, atomically; extra properties and harmonics beyond the first, which it cannot hold, are left out."""
    means, quats, log_scales, opacities, sh = to_arrays(gaussians)
    found = np.empty(len(means), _RECORD)
    found["means"], found["scales"] = means, np.exp(log_scales)
    colour = np.concatenate([sh[:, 0] * SH0 + 0.5, opacities[:, None]], 1)
    found["colour"] = np.rint(colour * 255).clip(0, 255)
    found["quat"] = np.rint(quats * 128 + 128).clip(0, 255)
    write_bytes(path, found.tobytes())
