"""Texture coordinates for head models that come without any."""

import contextlib
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recon4d.files import InputError, read_npz, write_npz
from recon4d.head.model import HeadModel


def with_uv(head: HeadModel) -> HeadModel:
    """The model with texture coordinates: its own, or an unwrap by xatlas, kept in the user's cache folder.

    The cache is `$XDG_CACHE_HOME/recon4d`, or `~/.cache/recon4d`. Charts of an unwrap differ from FLAME's own, so
    textures and avatars made on one do not fit the other.
    """
    if head.vt is not None and head.ft is not None:
        return head
    vertices, faces = head.v_template.float().cpu().numpy(), head.faces.cpu().numpy()
    key = hashlib.sha256(vertices.tobytes() + faces.tobytes()).hexdigest()[:16]
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recon4d" / f"uv-{key}.npz"
    try:
        arrays = read_npz(path)
        vt, ft = arrays["vt"], arrays["ft"]
    except (InputError, KeyError):
        vt, ft = _unwrap(vertices, faces)
        with contextlib.suppress(InputError):  # a cache that cannot be written is done without
            write_npz(path, vt=vt, ft=ft)
    device = head.v_template.device
    return replace(head, vt=torch.from_numpy(vt).to(device), ft=torch.from_numpy(ft).to(device))


def _unwrap(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import xatlas

    mapping, corners, uvs = xatlas.parametrize(vertices, faces.astype(np.uint32))
    if not np.array_equal(mapping[corners], faces):  # face order is what ties ft to f
        raise InputError("the head model cannot be unwrapped; give its UV layout (head_template_mesh.obj beside it)")
    return uvs.astype(np.float32), corners.astype(np.int64)
