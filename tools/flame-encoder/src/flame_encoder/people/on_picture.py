"""The head found in the picture itself: drawn with its skin and light where the landmarks put it, then looked for.

The tracker does so with a clip, whose frames give it the person's own texture (`tracker.photometric`). One picture has
no texture to compare with, so the skin is the vector's: what is found are edges that all faces share.
"""

import cv2
import numpy as np
import torch
from recon4d.color import linear_from_srgb
from recon4d.formats.track import Track
from torch import Tensor

from flame_encoder.people.refine import Picture
from flame_encoder.tracker import photometric
from flame_encoder.tracker.photometric import Looks, Surface, Windows
from flame_encoder.tracker.points import Points

TO_CAMERA = (1, -1, -1, 1, -1, 1, 1, -1, 1)  # harmonics of axes y up, z to the camera, in OpenCV's
LEVELS = (2, 1, 1)  # of the pyramid of each round: from coarse to fine
LANDMARKS = 0.3  # of the landmarks' weights is left


def matched(
    one: Picture,
    surface: Surface,
    points: Points,
    solved: Tensor,
    image: np.ndarray,
    skin: Tensor,
    light: Tensor,
    levels: int,
) -> None:
    """Let the solver know where in the image the surface is.

    Args:
        points: the surface's, as the rig moves them. solved: (S + 1 + P,) where the head is so far.
        image: (H, W, 3) uint8. skin: (T, T, 3) sRGB. light: (9, 3), as `vector.light` gives it.
    """
    problem = one.problem
    S = problem.rig.columns.n_shape
    track = problem.as_track(solved[: S + 1], solved[None, S + 1 :])
    vertices = track.vertices(surface.head)
    window = cut(image, track, vertices)
    looks = Looks(linear_from_srgb(skin), (light * light.new_tensor(TO_CAMERA)[:, None])[None])
    unit = float(problem.seen.unit[0])
    problem.surface = points
    problem.matches = photometric.match(surface, looks, window, track, vertices, unit, levels)
    problem.shares = (LANDMARKS * problem.evidence, problem.options.photometric_evidence / photometric.POINTS)


def cut(image: np.ndarray, track: Track, vertices: Tensor) -> Windows:
    """The window around the head, as `photometric.cut` does for files; small heads are not enlarged."""
    pixels = vertices[0] @ torch.from_numpy(track.K).T
    pixels = pixels[:, :2] / pixels[:, 2:]
    low, high = pixels.amin(0).numpy(), pixels.amax(0).numpy()
    extent = 1.1 * float((high - low).max())
    scale = min(1.0, photometric.WINDOW / extent)
    size = int(np.ceil(scale * extent))
    offset = size / 2 - scale * (low + high) / 2
    if scale < 1:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
    shift = offset + 0.5 * scale - 0.5  # OpenCV's pixel centres are whole numbers, ours at +0.5
    warp = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    shown = cv2.warpAffine(image, warp, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return Windows(shown[None], scale, offset[None])
