"""Baking into UV space: which surface point each texel of a texture sees."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recon4d.mesh.rasterize import Rasterization, rasterize


@dataclass(frozen=True)
class Texels:
    """The surface points of the texels of a texture, row 0 at the top (v = 1).

    tri_id: (Ht, Wt) int32, the triangle of each texel, -1 where there is none.
    bary: (Ht, Wt, 3) barycentrics of the texel centre on it, 0 where there is none.
    """

    tri_id: Tensor
    bary: Tensor

    @property
    def mask(self) -> Tensor:
        """(Ht, Wt) bool, whether the texel lies on the surface."""
        return self.tri_id >= 0

    def interpolate(self, attr: Tensor, tri: Tensor) -> Tensor:
        """Bake vertex attributes: attr (..., V, C), tri (F, 3) of the mesh -> (..., Ht, Wt, C); 0 outside."""
        row, column = self.mask.nonzero(as_tuple=True)
        index = tri.long().to(attr.device)[self.tri_id[row, column].long().to(attr.device)]
        weight = self.bary[row, column].to(attr)
        value = (attr[..., index, :] * weight[..., None]).sum(-2)  # (..., N, C)
        out = value.new_zeros(*attr.shape[:-2], *self.tri_id.shape, attr.shape[-1])
        out[..., row, column, :] = value
        return out


def bake_uv(vt: Tensor, ft: Tensor, size: tuple[int, int], backend: str | None = None) -> Texels:
    """Rasterize a mesh in UV space.

    Where charts overlap the triangle that comes first wins. Texel centres outside 0..1 are not seen: wrap
    coordinates beforehand if yours tile.

    Args:
        vt: (Vt, 2) texture coordinates, v up. ft: (F, 3) integers. size: (Ht, Wt) texels.
    """
    if vt.ndim != 2 or vt.shape[-1] != 2:
        raise ValueError(f"vt has shape {tuple(vt.shape)}; give (texture vertices, 2)")
    flat = torch.cat([vt * 2 - 1, torch.zeros_like(vt[:, :1]), torch.ones_like(vt[:, :1])], -1)[None]
    found: Rasterization = rasterize(flat, ft, size, backend)
    return Texels(found.tri_id[0], found.bary[0])


def fill_gutter(tex: Tensor, mask: Tensor, distance: float | None = None) -> Tensor:
    """Give texels outside the charts the colour of the nearest one inside, so that filtering finds no seams.

    Args:
        tex: (..., Ht, Wt, C). mask: (Ht, Wt) bool, texels that hold colour.
        distance: how far from a chart to fill, in texels; None fills all. An all-False mask changes nothing.
    """
    from scipy.ndimage import distance_transform_edt

    if not bool(mask.any()):
        return tex
    far, nearest = distance_transform_edt(~mask.cpu().numpy(), return_indices=True)
    index = np.ravel_multi_index(tuple(nearest), mask.shape)
    if distance is not None:
        index = np.where(far <= distance, index, np.arange(mask.numel()).reshape(mask.shape))
    flat = tex.flatten(-3, -2)
    return flat[..., torch.from_numpy(index.ravel()).to(tex.device), :].view(tex.shape)
