"""Where a picture sees a point, or through its place."""

import torch
from torch import Tensor

from flux4d.clips import Clip, in_view

AROUND = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # pixels


def behind(points: Tensor, clip: Clip, frame: int, depth: Tensor, sky: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of points (N, 3) whether (N,) they are in view of a picture; of those M the share of its distance by which what
    is seen there lies behind a point, less than 0 before it, infinite for the sky; and the distances (M,)."""
    pixels, far, inside = in_view(points, clip.camera(frame))
    depth = torch.where(sky, torch.inf, depth)
    relative = torch.stack([depth[at] / far[inside] - 1 for at in _around(pixels[inside], clip)])
    return inside, relative.gather(0, relative.abs().argmin(0, keepdim=True))[0], far[inside]


def _around(pixels: Tensor, clip: Clip) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns of pixels (M, 2) and of those beside them: the depth of edges is not known better."""
    column, row = pixels.long().unbind(-1)
    return [((row + y).clamp(0, clip.height - 1), (column + x).clamp(0, clip.width - 1)) for y, x in AROUND]
