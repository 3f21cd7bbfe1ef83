"""Normals and tangents of triangle meshes. All differentiable, any batch shape before (V, C)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def _corners(vertices: Tensor, tri: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tri = tri.long()
    return vertices[..., tri[:, 0], :], vertices[..., tri[:, 1], :], vertices[..., tri[:, 2], :]


def face_normals(vertices: Tensor, tri: Tensor, unit: bool = True) -> Tensor:
    """Normals of triangles, out of the counterclockwise side: (..., V, 3), (F, 3) -> (..., F, 3).

    `unit=False` keeps the length, twice the area. Degenerate triangles give 0.
    """
    a, b, c = _corners(vertices, tri)
    normal = torch.linalg.cross(b - a, c - a)
    return normalize(normal, dim=-1, eps=1e-20) if unit else normal


def vertex_normals(vertices: Tensor, tri: Tensor) -> Tensor:
    """Unit normals at vertices, the area-weighted mean of their triangles': (..., V, 3), (F, 3) -> (..., V, 3).

    Vertices of no (or only degenerate) triangles give 0.
    """
    normal = face_normals(vertices, tri, unit=False)
    tri = tri.long()
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(-2, tri[:, corner], normal)
    return normalize(total, dim=-1, eps=1e-20)


def tangents(vertices: Tensor, tri: Tensor, uv: Tensor, uv_tri: Tensor) -> tuple[Tensor, Tensor]:
    """Unit tangent (along u) and bitangent (along v) of each triangle: two (..., F, 3).

    Solves [b-a, c-a] = [T, B] [duv1, duv2] per triangle (Lengyel 2001). They need not be orthogonal; where the
    texture coordinates are degenerate both are 0.

    Args:
        vertices: (..., V, 3). tri: (F, 3). uv: (Vt, 2). uv_tri: (F, 3).
    """
    a, b, c = _corners(vertices, tri)
    ta, tb, tc = _corners(uv, uv_tri)
    p, q, r, s = (tb - ta)[..., 0:1], (tb - ta)[..., 1:2], (tc - ta)[..., 0:1], (tc - ta)[..., 1:2]
    det = p * s - r * q
    sign = torch.where(det > 0, 1.0, torch.where(det < 0, -1.0, 0.0))
    tangent = ((b - a) * s - (c - a) * q) * sign
    bitangent = ((c - a) * p - (b - a) * r) * sign
    return normalize(tangent, dim=-1, eps=1e-20), normalize(bitangent, dim=-1, eps=1e-20)


def tangent_frames(vertices: Tensor, tri: Tensor, uv: Tensor | None = None, uv_tri: Tensor | None = None) -> Tensor:
    """A rotation per triangle that moves with it: (..., F, 3, 3), columns tangent, bitangent, normal.

    The tangent follows u where texture coordinates are given, else the edge a-b (GaussianAvatars, Qian et al. 2024,
    section 3.2); Gram-Schmidt makes the columns orthonormal and right-handed. Degenerate triangles give a frame whose
    columns may be 0.
    """
    normal = face_normals(vertices, tri)
    if uv is None or uv_tri is None:
        a, b, _ = _corners(vertices, tri)
        tangent = b - a
    else:
        tangent, _ = tangents(vertices, tri, uv, uv_tri)
    tangent = normalize(tangent - (tangent * normal).sum(-1, keepdim=True) * normal, dim=-1, eps=1e-20)
    return torch.stack([tangent, torch.linalg.cross(normal, tangent), normal], -1)
