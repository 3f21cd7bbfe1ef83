"""Depth between a LiDAR's beams: for each pixel of an image that of the points around it, at edges by colour."""

import cv2
import numpy as np
import roma
import torch
from recon4d.cameras import Camera, unproject
from scipy.spatial import Delaunay, cKDTree
from torch import Tensor

from flux4d.clips import Clip, in_view, not_hidden

COLOUR = 12.0  # spread of Lab colours of one surface
NEIGHBOURS = 8  # measured points that a pixel at an edge chooses from
EDGE = 0.15  # difference of a triangle's inverse depths, by the largest, beyond which there is an edge in it
SAME = 0.08  # the same from pixel to pixel
LEVEL = 0.3  # metres by which the corners of a triangle on the road differ in height
FOOTPRINT = 0.4  # standard deviation of a pixel's Gaussian, pixels
LONG = 10.0  # how much longer than high a pixel's footprint on a slanted surface may get
THIN = 0.3  # thickness of a Gaussian by its width
FLAT = 60.0  # gradient of the sky's brightness, at most, in levels
BRIGHT = 0.8  # of the brightest
BLUE = 15.0  # levels by which blue sky has more blue than red
DARK = 60.0  # level from which a pixel may be sky


def depth_map(
    image: np.ndarray, camera: Camera, points: Tensor, up: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) in metres of every pixel, and (H, W) bool: where the sky is.

    Between measured points inverse depth is linear in the triangles of their Delaunay triangulation, as on planes.
    Where a triangle spans an edge between near and far, a pixel takes that surface, of the points around, which it is
    most like in place and colour (Kopf et al. 2007); level ground has no edges. Above the highest beam depth is that of
    the nearest point, as on walls and trees, but for what looks like sky; below the lowest that of a level road.

    Args:
        image: (H, W, 3) uint8. camera: its camera. points: (N, 3) of the LiDAR. up: (3,) of the points; None is z.
    """
    height, width = image.shape[:2]
    places, depth, levels = _visible(camera, points, points.new_tensor([0.0, 0, 1]) if up is None else up)
    if len(depth) < 4:
        return np.ones((height, width)), np.ones((height, width), bool)
    lab = cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), 0.7), cv2.COLOR_RGB2LAB).astype(np.float32)
    own = lab[places[:, 1].astype(int), places[:, 0].astype(int)]
    row, column = (grid.ravel() for grid in np.mgrid[:height, :width])
    centres = np.stack([column, row], -1) + 0.5
    inverse = 1 / depth

    tree = cKDTree(places)
    _, nearest = tree.query(centres)
    found = inverse[nearest]
    below = _below(camera, centres, levels[nearest], points.new_tensor([0.0, 0, 1]) if up is None else up)
    lower = centres[:, 1] > places[nearest, 1] + 1
    found = np.where(lower & (below > found), np.minimum(below, 1.0), found)

    top = np.full(width, height)  # the highest beam of each column
    np.minimum.at(top, places[:, 0].astype(int), places[:, 1].astype(int))
    triangles = Delaunay(places)
    at = triangles.find_simplex(centres)
    inside = (at >= 0) & (row >= top[column])
    corners = triangles.simplices[at[inside]]
    offset = centres[inside] - triangles.transform[at[inside], 2]
    share = np.einsum("nij,nj->ni", triangles.transform[at[inside], :2], offset)
    share = np.concatenate([share, 1 - share.sum(1, keepdims=True)], 1)
    values = inverse[corners]
    low, high = values.min(1), values.max(1)
    level = np.ptp(levels[corners], axis=1) < LEVEL
    plane = (high - low < EDGE * high) | level
    found[inside] = np.where(plane, (share * values).sum(1), found[inside])

    edges = np.flatnonzero(inside)[~plane]
    count = min(NEIGHBOURS, len(depth))
    distance, near = (part.reshape(-1, count) for part in tree.query(centres[edges], count))
    unlike = np.square(own[near] - lab.reshape(-1, 1, 3)[edges]).sum(-1)
    weight = np.exp(-np.square(distance / (1 + distance[:, :1])) / 2 - unlike / (2 * COLOUR**2)) + 1e-12
    around = inverse[near]
    same = np.abs(around - around[np.arange(len(near)), weight.argmax(1)][:, None]) < SAME * around
    found[edges] = (same * weight * around).sum(1) / (same * weight).sum(1)

    sky = _sky(image, np.minimum.reduce([np.roll(top, shift) for shift in (-1, 0, 1)]))
    return 1 / found.reshape(height, width).clip(1e-3), sky


def _visible(camera: Camera, points: Tensor, up: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (M, 2), depths (M,) and heights (M,) of the points that the camera sees: the nearest in each pixel, but
    for those that the LiDAR, which stands higher, sees over near things."""
    pixels, depth, inside = in_view(points, camera)
    places, far, levels = (values[inside].double().numpy() for values in (pixels, depth, points @ up))
    order = np.argsort(far, kind="stable")
    row, column = places[order, 1].astype(int), places[order, 0].astype(int)
    _, first = np.unique(row * camera.width + column, return_index=True)
    order, row, column = order[first], row[first], column[first]
    sparse = np.full((camera.height, camera.width), np.inf)
    sparse[row, column] = far[order]
    seen = not_hidden(sparse)[row, column]
    return places[order[seen]], far[order[seen]], levels[order[seen]]


def _below(camera: Camera, pixels: np.ndarray, levels: np.ndarray, up: Tensor) -> np.ndarray:
    """(N,) inverse depth at which the rays of pixels (N, 2) meet the level planes of heights (N,); 0 where they do not
    go down."""
    K = camera.K.double().numpy()
    to_camera = camera.world_to_camera.double().numpy()
    down = -to_camera[:3, :3] @ up.double().numpy()
    eye = float(-(to_camera[:3, :3].T @ to_camera[:3, 3]) @ up.double().numpy())
    rays = np.stack([(pixels[:, 0] - K[0, 2]) / K[0, 0], (pixels[:, 1] - K[1, 2]) / K[1, 1], np.ones(len(pixels))], -1)
    fall = rays @ down
    return np.where((fall > 1e-3) & (eye - levels > 0.1), fall / np.maximum(eye - levels, 0.1), 0.0)


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
    """(H, W) bool: smooth, as bright as the brightest above the highest beam `top` (W,), or blue, and joined to the
    image's upper edge."""
    smooth = cv2.GaussianBlur(image, (0, 0), 1).astype(np.float32)
    steep = [np.abs(cv2.Sobel(smooth, cv2.CV_32F, *axis)).max(-1) for axis in ((1, 0), (0, 1))]
    grey = smooth.mean(-1)
    above = np.arange(len(image))[:, None] < top
    if not above.any():
        return above
    bright = grey > max(BRIGHT * np.quantile(grey[above], 0.95), DARK)
    blue = (smooth[..., 2] - smooth[..., 0] > BLUE) & (grey > max(1.15 * np.median(grey), DARK))
    may = (np.maximum(*steep) < FLAT) & (bright | blue) & above
    closed = cv2.morphologyEx(may.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) * above
    _, parts = cv2.connectedComponents(closed, connectivity=4)
    return np.isin(parts, np.setdiff1d(parts[0], 0))


def lifted(clip: Clip, most: int) -> tuple[list[tuple[Tensor, ...]], list[Tensor], list[Tensor]]:
    """Per input frame, places (N, 3), colours (N, 3), moments (N,), deviations (N, 3) and quaternions (N, 4) of its
    pixels' Gaussians, discs on the surfaces; its depth (H, W), and where (H, W) its sky is.

    Of more than `most` pixels an even share is taken, other ones in each frame, so that those of several frames
    together leave no gaps where nothing moves.
    """
    maps = []
    for frame in clip.input:
        points = clip.points[clip.frame_of(frame)]
        maps.append(depth_map(clip.images[frame].numpy(), clip.camera(frame), points))
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
    depths, skies = zip(*maps)
    return out, [torch.from_numpy(depth).float() for depth in depths], [torch.from_numpy(sky) for sky in skies]
