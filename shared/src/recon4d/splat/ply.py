"""Gaussians in PLY files, laid out as the 3DGS reference implementation does."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement
from torch import Tensor

from recon4d.files import InputError, atomic_path
from recon4d.formats import ply
from recon4d.splat import compressed_ply
from recon4d.splat.gaussians import Gaussians

_GEOMETRY = ("x", "y", "z")
_NORMALS = ("nx", "ny", "nz")
_OTHERS = ("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_SMALLEST_SCALE = 1e-20  # metres; zero has no logarithm
_OPACITY_MARGIN = 1e-7  # zero and one have no finite logit


def read_ply(path: str | Path) -> Gaussians:
    """Read a 3DGS file: any property order and number type, ASCII or binary; unknown properties go to `extra`.

    SuperSplat's compressed files are read too; see `recon4d.splat.compressed_ply`.

    Normals are kept in `extra` when one is not zero. Raises InputError when the file is missing, broken, or not 3DGS.
    """
    path = Path(path)
    content = ply.read(path)
    if "vertex" not in content:
        raise InputError(f"{path} has no vertex element; give a 3DGS PLY file")
    vertices = content["vertex"].data
    names = vertices.dtype.names or ()
    if "packed_position" in names:
        return compressed_ply.unpack({element.name: element.data for element in content}, path)
    missing = [name for name in (*_GEOMETRY, *_DC, *_OTHERS) if name not in names]
    if missing:
        raise InputError(f"{path} has no property {missing[0]}; give a 3DGS PLY file")
    lists = [name for name in names if vertices.dtype[name].hasobject]
    if lists:
        raise InputError(f"{path} has a list property {lists[0]} on its vertices; remove it")
    rest = [name for name in names if re.fullmatch(r"f_rest_\d+", name)]
    if len(rest) not in (0, 9, 24, 45) or {f"f_rest_{i}" for i in range(len(rest))} != set(rest):
        raise InputError(f"{path} has {len(rest)} f_rest properties; spherical harmonics need 0, 9, 24 or 45")

    def columns(wanted: Sequence[str]) -> np.ndarray:
        return np.stack([vertices[name].astype(np.float64) for name in wanted], axis=-1)

    sh = columns(_DC)[:, None]
    if rest:
        # stored channel by channel: (N, 3, K - 1)
        higher = columns([f"f_rest_{i}" for i in range(len(rest))]).reshape(len(sh), 3, len(rest) // 3)
        sh = np.concatenate([sh, higher.transpose(0, 2, 1)], axis=1)
    others = columns(_OTHERS)
    known = {*_GEOMETRY, *_DC, *_OTHERS, *rest}
    extra = {name: np.ascontiguousarray(vertices[name]) for name in names if name not in known}
    if not any(np.any(extra.get(name, 0)) for name in _NORMALS):
        extra = {name: values for name, values in extra.items() if name not in _NORMALS}
    with np.errstate(over="ignore"):
        opacities, scales = 1.0 / (1.0 + np.exp(-others[:, 0])), np.exp(others[:, 1:4])

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    return Gaussians(
        means=tensor(columns(_GEOMETRY)),
        quats=tensor(others[:, 4:]),
        scales=tensor(scales),
        opacities=tensor(opacities),
        sh=tensor(sh),
        extra=extra,
    )


def write_ply(path: str | Path, gaussians: Gaussians, extra: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a binary little-endian 3DGS file, atomically; `gaussians.extra` and `extra` follow the usual properties.

    Scales below 1e-20 and opacities closer than 1e-7 to 0 or 1 are moved there, so that logarithms and logits are
    finite. Raises ValueError when shapes or ranges do not fit.
    """
    means, quats, scales, opacities, sh = (
        t.detach().cpu().double().numpy()
        for t in (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh)
    )
    N, K = len(means), sh.shape[1] if sh.ndim == 3 else -1
    for name, array, shape in (
        ("means", means, (N, 3)),
        ("quats", quats, (N, 4)),
        ("scales", scales, (N, 3)),
        ("opacities", opacities, (N,)),
        ("sh", sh, (N, K if K in (1, 4, 9, 16) else 1, 3)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; it must be {shape}")
    if (scales < 0).any() or (opacities < 0).any() or (opacities > 1).any():
        raise ValueError("scales must not be negative and opacities must lie in [0, 1]")
    opacities = np.clip(opacities, _OPACITY_MARGIN, 1.0 - _OPACITY_MARGIN)
    higher = sh[:, 1:].transpose(0, 2, 1).reshape(N, 3 * K - 3)
    columns: dict[str, np.ndarray] = dict(zip(_GEOMETRY, means.T))
    columns |= dict.fromkeys(_NORMALS, np.zeros(N))
    columns |= dict(zip(_DC, sh[:, 0].T))
    columns |= {f"f_rest_{i}": values for i, values in enumerate(higher.T)}
    columns |= dict(
        zip(
            _OTHERS,
            (
                np.log(opacities) - np.log1p(-opacities),
                *np.log(np.maximum(scales, _SMALLEST_SCALE)).T,
                *quats.T,
            ),
        )
    )
    columns = {name: values.astype("<f4") for name, values in columns.items()}
    for name, values in {**gaussians.extra, **(extra or {})}.items():
        values = np.asarray(values)
        if name in columns and name not in _NORMALS:
            raise ValueError(f"extra property {name} is one of the usual properties")
        if values.shape != (N,):
            raise ValueError(f"extra property {name} has shape {values.shape}; it must be ({N},)")
        columns[name] = values
    vertices = np.empty(N, dtype=[(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        vertices[name] = values
    with atomic_path(path) as temporary:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(temporary)
