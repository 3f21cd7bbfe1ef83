"""Depth between a LiDAR's beams: for each pixel of an image that of the points around it, guided by the colours."""

import cv2
import numpy as np
import roma
import torch
from recon4d.cameras import Camera, unproject
from scipy.spatial import cKDTree
from torch import Tensor

from flux4d.clips import Clip

NEIGHBOURS = 8  # measured pixels that a pixel's depth comes from
COLOUR = 12.0  # spread of Lab colours of one surface
SAME = 0.08  # difference of inverse depths, by the nearest's, up to which they are one surface
FOOTPRINT = 0.4  # standard deviation of a pixel's Gaussian, pixels
LONG = 10.0  # how much longer than high a pixel's footprint on a slanted surface may get
THIN = 0.3  # thickness of a Gaussian by its width
FLAT = 60.0  # gradient of the sky's brightness, at most, in levels
DARK = 60.0  # level from which a pixel may be sky


def depth_map(image: np.ndarray, pixels: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) in metres of every pixel, and (H, W) bool: where the sky is.

    A pixel takes the inverse depths of the measured pixels around it, by their distance and colour (Kopf et al. 2007),
    but of one surface only: that of the one which counts most. Above the highest beam it is that of the measured
    pixels below, as of walls and trees, but for what looks like sky.

    Args:
        image: (H, W, 3) uint8. pixels, depth: (M,) numbers row by row, and depths there, as in `Clip.depths`.
    """
    height, width = image.shape[:2]
    row, column = np.divmod(pixels, width)
    sparse = np.full((height, width), 1e6, np.float32)
    sparse[row, column] = depth
    # the LiDAR stands higher than the camera, and sees over near things what the camera does not
    nearest = cv2.erode(sparse, np.ones((5, 3), np.uint8))[row, column]
    seen = depth < 1.3 * nearest + 0.5
    row, column, depth = row[seen], column[seen], depth[seen]
    if len(depth) == 0:
        return np.ones((height, width)), np.ones((height, width), bool)
    lab = cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), 0.7), cv2.COLOR_RGB2LAB).astype(np.float32)
    count = min(NEIGHBOURS, len(depth))
    places = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    distance, near = cKDTree(np.stack([column, row], -1)).query(places, count)
    distance, near = distance.reshape(-1, count), near.reshape(-1, count)
    unlike = np.square(lab[row, column][near] - lab.reshape(-1, 1, 3)).sum(-1)
    weight = np.exp(-np.square(distance / (1 + distance[:, :1])) / 2 - unlike / (2 * COLOUR**2)) + 1e-12
    inverse = 1 / depth[near]
    leading = inverse[np.arange(len(near)), weight.argmax(1)][:, None]
    weight *= np.abs(inverse - leading) < SAME * leading
    found = ((weight * inverse).sum(1) / weight.sum(1)).reshape(height, width)
    for _ in range(2):  # a pixel's neighbours are all of one beam: without this a road has steps
        found = _smooth(found)
    top = np.full(width, height)
    np.minimum.at(top, column, row)
    return 1 / found, _sky(image, np.minimum.reduce([np.roll(top, shift) for shift in (-1, 0, 1)]))


def _smooth(inverse: np.ndarray, reach: int = 3) -> np.ndarray:
    """The mean of what is the same surface within some pixels."""
    padded = np.pad(inverse, reach, mode="edge")
    height, width = inverse.shape
    total, count = np.zeros_like(inverse), np.zeros_like(inverse)
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            other = padded[down : down + height, right : right + width]
            same = np.abs(other - inverse) < SAME * inverse
            total += same * other
            count += same
    return total / count


def _slopes(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) change of the inverse depth per pixel to the right and down; 0 at the edge of a surface."""
    out = []
    for axis in (1, 0):
        step = np.gradient(inverse, axis=axis)
        one_surface = np.abs(step) < SAME * inverse / 2
        out.append(np.where(one_surface, step, 0))
    return out[0], out[1]


def footprints(depth: np.ndarray, camera: Camera) -> tuple[Tensor, Tensor]:
    """What a pixel covers of the surface behind it: deviations (H, W, 3) in metres, before `FOOTPRINT`, and rotations
    (H, W, 3, 3), whose columns are the right, the down and the normal of the surface.

    On a plane the inverse depth w is linear in the pixel (u, v), P = K^-1 (u, v, 1) / w, so that
    dP/du = K^-1 e_1 / w - P (dw/du) / w.
    """
    height, width = depth.shape
    row, column = np.mgrid[:height, :width] + 0.5
    K = camera.K.double().numpy()
    rays = np.stack([(column - K[0, 2]) / K[0, 0], (row - K[1, 2]) / K[1, 1], np.ones_like(depth)], -1)
    spans = []
    for axis, slope in enumerate(_slopes(1 / depth)):
        straight = np.zeros(3)
        straight[axis] = 1 / K[axis, axis]
        span = depth[..., None] * (straight - rays * (slope * depth)[..., None])
        length = np.linalg.norm(span, axis=-1, keepdims=True)
        spans.append(span * np.minimum(1, LONG * depth[..., None] / K[axis, axis] / length))
    right, down = spans
    wide = np.linalg.norm(right, axis=-1, keepdims=True)
    right = right / wide
    normal = np.cross(right, down)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    down = np.cross(normal, right)
    high = (spans[1] * down).sum(-1, keepdims=True)
    sizes = np.concatenate([wide, high, THIN * np.minimum(wide, high)], -1)
    to_frame = camera.world_to_camera[:3, :3].double().numpy().T
    turns = to_frame @ np.stack([right, down, normal], -1)
    return torch.from_numpy(sizes).float(), torch.from_numpy(turns).float()


def _sky(image: np.ndarray, top: np.ndarray) -> np.ndarray:
    """(H, W) bool: bright and smooth, joined to the image's upper edge, above the highest beam `top` (W,)."""
    smooth = cv2.GaussianBlur(image, (0, 0), 1).astype(np.float32)
    steep = [np.abs(cv2.Sobel(smooth, cv2.CV_32F, *axis)).max(-1) for axis in ((1, 0), (0, 1))]
    grey = smooth.mean(-1)
    bright = grey > max(1.15 * np.median(grey), DARK)
    may = (np.maximum(*steep) < FLAT) & bright & (np.arange(len(image))[:, None] < top)
    may = cv2.morphologyEx(may.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) * (
        np.arange(len(image))[:, None] < top
    )
    _, parts = cv2.connectedComponents(may.astype(np.uint8), connectivity=4)
    return np.isin(parts, np.setdiff1d(parts[0], 0))


def points(clip: Clip, most: int) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
    """Per input frame, places (N, 3), colours (N, 3), moments (N,), deviations (N, 3) and quaternions (N, 4) of its
    pixels' Gaussians, discs on the surfaces; and where (H, W) its sky is.

    Of more than `most` pixels an even share is taken, other ones in each frame, so that those of several frames
    together leave no gaps where nothing moves.
    """
    maps = []
    for frame in clip.input:
        pixels, known = clip.depths[frame]
        maps.append(depth_map(clip.images[frame].numpy(), pixels.numpy(), known.numpy()))
    total = sum(int((~sky).sum()) for _, sky in maps)
    share = min(most / max(total, 1), 1.0)
    row, column = np.mgrid[: clip.height, : clip.width]
    out: list[tuple[Tensor, ...]] = []
    for number, (frame, (depth, sky)) in enumerate(zip(clip.input, maps)):
        # a low-discrepancy pattern (Roberts 2018): its share is spread evenly
        kept = ~sky & ((0.7548776662 * column + 0.5698402910 * row + 0.6180339887 * number) % 1 < share)
        camera, chosen = clip.camera(frame), torch.from_numpy(kept)
        places = torch.from_numpy(np.stack([column[kept], row[kept]], -1) + 0.5).float()
        far = torch.from_numpy(depth[kept]).float()
        means = unproject(places, far, camera.K, camera.world_to_camera)
        sizes, turns = footprints(depth, camera)
        quats = roma.rotmat_to_unitquat(turns[chosen])[:, [3, 0, 1, 2]]
        colours, moments = clip.images[frame][chosen].float() / 255, clip.times[frame].expand(len(far))
        out.append((means, colours, moments, FOOTPRINT * share**-0.5 * sizes[chosen], quats))
    return out, [torch.from_numpy(sky) for _, sky in maps]
