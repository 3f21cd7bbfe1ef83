"""Where a picture sees a point, or through its place."""

import cv2
import torch
from torch import Tensor

from flux4d.clips import Clip, in_view

AROUND = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # pixels
BLUR = 1.0  # pixels


def behind(points: Tensor, clip: Clip, frame: int, depth: Tensor, sky: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of points (N, 3) whether (N,) they are in view of a picture; of those M the share of its distance by which what
    is seen there lies behind a point, less than 0 before it, infinite for the sky; and the distances (M,)."""
    pixels, far, inside = in_view(points, clip.camera(frame))
    depth = torch.where(sky, torch.inf, depth)
    relative = torch.stack([depth[at] / far[inside] - 1 for at in _around(pixels[inside], clip)])
    return inside, relative.gather(0, relative.abs().argmin(0, keepdim=True))[0], far[inside]


def carried(points: Tensor, colours: Tensor, times: Tensor, velocity: Tensor, clip: Clip) -> Tensor:
    """(N,) whether the input pictures show points (N, 3), of colours (N, 3) in [0, 1] at times (N,), where they are
    carried by velocities (N, 3) in m/s rather than where they were."""
    error, count = torch.zeros(2, len(points)), torch.zeros(2, len(points))
    for picture in clip.input:
        image = torch.from_numpy(cv2.GaussianBlur(clip.images[picture].numpy(), (0, 0), BLUR)).float() / 255
        apart = (clip.times[picture] - times)[:, None]
        for way, places in enumerate((points, points + apart * velocity)):
            pixels, _, inside = in_view(places, clip.camera(picture))
            inside &= apart[:, 0] != 0
            column, row = pixels[inside].long().unbind(-1)
            error[way, inside] += (image[row, column] - colours[inside]).abs().mean(1)
            count[way, inside] += 1
    still, along = error / count.clamp_min(1)
    return (count > 0).all(0) & (along < still)


def _around(pixels: Tensor, clip: Clip) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns of pixels (M, 2) and of those beside them: the depth of edges is not known better."""
    column, row = pixels.long().unbind(-1)
    return [((row + y).clamp(0, clip.height - 1), (column + x).clamp(0, clip.width - 1)) for y, x in AROUND]
