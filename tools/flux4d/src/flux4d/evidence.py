"""What the other input frames see where a point was seen: the same surface, or through its place.

That needs no motion: where something stands, all frames that look there see it; where it moved away, they see what is
behind. So the network is told what stands, and when something was where.
"""

import torch
from torch import Tensor

from flux4d.clips import Clip, in_view

NEAR = 0.03  # relative difference of depths up to which it is the same surface
FAR = 0.13  # from which it is another one
AROUND = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # pixels
COLOUR = 4.0  # brings differences of colours to about 1


def timeline(
    points: Tensor, colours: Tensor, clip: Clip, depths: list[Tensor], skies: list[Tensor], moments: int
) -> Tensor:
    """(N, 2 M) of points (N, 3) with colours (N, 3) in [0, 1], for each of M moments, evenly over a second: from -1,
    where the frames of then see something at the point's place, to 1, where they see through it; 0 where it is hidden
    or out of view. Then how much its colour differs from theirs, where they see something.

    Args:
        depths: (H, W) metres of each input picture. skies: (H, W) bool.
    """
    place, unlike, weight = (points.new_zeros(len(points), moments) for _ in range(3))
    if moments == 0:
        return place
    for frame, depth, sky in zip(clip.input, depths, skies):
        inside, relative, _ = behind(points, clip, frame, depth, sky)
        pixels = in_view(points, clip.camera(frame))[0][inside]
        image = clip.images[frame].float() / 255
        differences = [(image[at] - colours[inside]).abs().mean(1) for at in _around(pixels, clip)]
        through, hidden = (((side - NEAR) / (FAR - NEAR)).clamp(0, 1) for side in (relative, -relative))
        there = 1 - through - hidden
        difference = COLOUR * torch.stack(differences).amin(0) * there
        tent = (1 - (clip.times[frame] * (moments - 1) - torch.arange(moments)).abs()).clamp_min(0)
        place[inside] += (through - there)[:, None] * tent
        unlike[inside] += difference[:, None] * tent
        weight[inside] += tent
    return torch.cat([place, unlike], 1) / weight.clamp_min(1e-6).repeat(1, 2)


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
