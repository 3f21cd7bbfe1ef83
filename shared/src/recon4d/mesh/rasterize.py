"""Rasterization with derivatives: barycentrics, depth and attributes of the triangles that `visibility` found.

Two versions of each step give the same numbers: plain torch (any device, any dtype, differentiable any number of
times) and Numba kernels with a hand-written backward (CPU float32, `kernels.py`), held against each other in tests.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d.mesh import kernels
from recon4d.mesh.barycentric import barycentrics, pixel_ndc
from recon4d.mesh.visibility import visibility


@dataclass(frozen=True)
class Rasterization:
    """What the pixels see. B images of H x W pixels, row 0 at the top.

    tri_id: (B, H, W) int32, triangle, -1 where nothing is seen.
    bary: (B, H, W, 3) perspective-correct barycentrics, 0 where nothing is seen; differentiable.
    depth: (B, H, W) NDC z in [-1, 1], 1 where nothing is seen; differentiable.
    """

    tri_id: Tensor
    bary: Tensor
    depth: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, H, W) bool, whether anything is seen."""
        return self.tri_id >= 0


def rasterize(
    pos_clip: Tensor,
    tri: Tensor,
    size: tuple[int, int],
    backend: str | None = None,
    cull: str | None = None,
    tri_id: Tensor | None = None,
) -> Rasterization:
    """Visibility, and where on its triangle each pixel is, differentiable in `pos_clip`.

    Args, beside those of `visibility`:
        tri_id: (B, H, W) known visibility, to skip finding it.
    """
    if tri_id is None:
        tri_id, _ = visibility(pos_clip, tri, size, backend, cull)
    if kernels.applies(pos_clip):
        bary, depth = kernels.Barycentrics.apply(pos_clip, tri, tri_id)  # type: ignore[no-untyped-call]
    else:
        bary, depth = barycentrics(pos_clip, tri, tri_id)
    return Rasterization(tri_id, bary, depth)


def _match(attr: Tensor, rast: Rasterization) -> None:
    if attr.ndim != 3 or attr.shape[0] not in (1, rast.tri_id.shape[0]):
        raise ValueError(f"attr has shape {tuple(attr.shape)}; give (1 or {len(rast.tri_id)}, vertices, channels)")


def interpolate(attr: Tensor, rast: Rasterization, tri: Tensor) -> Tensor:
    """Interpolate vertex attributes: attr (B or 1, V, C), tri (F, 3) -> (B, H, W, C), 0 where nothing is seen.

    `tri` may be another index into other attributes (texture coordinates with their own topology) as long as its
    triangles correspond. Differentiable in `attr` and, through the barycentrics, in the positions.
    """
    _match(attr, rast)
    if kernels.applies(attr) and kernels.applies(rast.bary):
        values: Tensor = kernels.Interpolate.apply(attr, rast.bary, tri, rast.tri_id)  # type: ignore[no-untyped-call]
        return values
    return interpolate_torch(attr, rast, tri)


def interpolate_torch(attr: Tensor, rast: Rasterization, tri: Tensor) -> Tensor:
    """`interpolate` in plain torch."""
    batch, height, width = rast.tri_id.shape
    item, row, column = rast.mask.nonzero(as_tuple=True)
    index = tri.long()[rast.tri_id[item, row, column].long()]
    source = item if attr.shape[0] > 1 else torch.zeros_like(item)
    corners = attr[source[:, None], index]  # (N, 3, C)
    value = (rast.bary[item, row, column][..., None] * corners).sum(-2)
    return value.new_zeros(batch, height, width, attr.shape[-1]).index_put((item, row, column), value)


def screen_derivatives(
    attr: Tensor, rast: Rasterization, pos_clip: Tensor, tri: Tensor, attr_tri: Tensor | None = None
) -> Tensor:
    """Derivatives of interpolated attributes by the pixel coordinates: (B, H, W, C, 2), last axis d/dx, d/dy (y down).

    What mip mapping needs: `texture(tex, uv, "trilinear", screen_derivatives(uv, rast, pos_clip, tri, uv_tri))`.
    From b_i = a_i / s: db_i = (da_i - b_i ds) / s, with a_i linear in the pixel position (see `barycentrics`).

    Args:
        attr: (B or 1, V', C) attributes. attr_tri: (F, 3) their own triangles, `tri` if not given.
    """
    _match(attr, rast)
    batch, height, width = rast.tri_id.shape
    item, row, column = rast.mask.nonzero(as_tuple=True)
    face = rast.tri_id[item, row, column].long()
    corners = pos_clip[item[:, None], tri.long()[face]]
    px, py = pixel_ndc(height, width, pos_clip)
    w = corners[..., 3]
    x = corners[..., 0] - px[column][:, None] * w
    y = corners[..., 1] - py[row][:, None] * w
    j, k = [1, 2, 0], [2, 0, 1]
    area = x[:, j] * y[:, k] - y[:, j] * x[:, k]
    total = area.sum(-1, keepdim=True)
    bary = area / total
    by_px = -w[:, j] * y[:, k] + y[:, j] * w[:, k]
    by_py = -x[:, j] * w[:, k] + w[:, j] * x[:, k]
    by_ndc = torch.stack([by_px, by_py], -1)  # (N, 3, 2)
    d_bary = (by_ndc - bary[..., None] * by_ndc.sum(-2, keepdim=True)) / total[..., None]
    d_bary = d_bary * d_bary.new_tensor([2.0 / width, -2.0 / height])
    source = item if attr.shape[0] > 1 else torch.zeros_like(item)
    values = attr[source[:, None], (tri if attr_tri is None else attr_tri).long()[face]]
    out = (values[..., None] * d_bary[:, :, None, :].to(values)).sum(1)
    return out.new_zeros(batch, height, width, attr.shape[-1], 2).index_put((item, row, column), out)
