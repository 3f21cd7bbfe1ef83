"""Where on its triangle a pixel is, in plain torch: any device and type, differentiable any number of times."""

import torch
from torch import Tensor


def pixel_ndc(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """NDC x (W,) and y (H,) of the pixel centres, row 0 at the top."""
    x = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) * (2.0 / width) - 1.0
    y = 1.0 - (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) * (2.0 / height)
    return x, y


def barycentrics(pos_clip: Tensor, tri: Tensor, tri_id: Tensor) -> tuple[Tensor, Tensor]:
    """Perspective-correct barycentrics (B, H, W, 3) and NDC depth (B, H, W) at the pixel centres, in plain torch.

    Homogeneous edge functions (Olano and Greer 1997, section 3), which need no clipping: with (x, y, w) of the
    corners moved so that the pixel is at the origin, a_0 = x_1 y_2 - y_1 x_2 (cyclic) and b_i = a_i / sum a.
    """
    batch, height, width = tri_id.shape
    item, row, column = (tri_id >= 0).nonzero(as_tuple=True)
    corners = pos_clip[item[:, None], tri.long()[tri_id[item, row, column].long()]]  # (N, 3, 4)
    px, py = pixel_ndc(height, width, pos_clip)
    w = corners[..., 3]
    x = corners[..., 0] - px[column][:, None] * w
    y = corners[..., 1] - py[row][:, None] * w
    area = x[:, [1, 2, 0]] * y[:, [2, 0, 1]] - y[:, [1, 2, 0]] * x[:, [2, 0, 1]]
    bary = area / area.sum(-1, keepdim=True)
    depth = (bary * corners[..., 2]).sum(-1) / (bary * w).sum(-1)
    full = pos_clip.new_zeros(batch, height, width, 3).index_put((item, row, column), bary)
    return full, pos_clip.new_ones(batch, height, width).index_put((item, row, column), depth)
