"""Where small pieces of a tracked head's surface are in each picture, found by comparing the pictures with each other.

A track places the head by its model's shape and by landmarks, and both are a few millimetres off. Pictures that look
at one piece of skin show it alike, once the head model's surface has taken out from where they look. So each piece is
cut out of every picture that sees it, on its tangent plane, and moved in that plane until all are alike (patches as of
Furukawa and Ponce 2010, moved by Lucas and Kanade's steps towards their common mean).
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from recon4d import mesh
from recon4d.cameras import Camera
from recon4d.head import HeadModel
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

PIECES = 800
SIDE = 13  # samples per side of a piece
COSINE = 0.35  # between a surface's normal and a line of sight from which it is compared
FEWEST = 3  # pictures that see a piece
ROUNDS = 8
FARTHEST = 0.008  # metres that a piece may be moved
EXPECTED = 0.003  # metres that it is likely to be
ALIKE = 0.7  # correlation with what the others show from which a piece counts as found
FLAT = 0.004  # of a picture's values; less contrast than that is noise
SURE = 0.15  # pixels that any place may be off by, for light and highlights move where skin does not
BEHIND = 0.006  # metres behind what a picture shows from which a piece is hidden
OUT = ("eyes", "mouth_interior", "neck", "scalp")  # regions that move by themselves, or that hair hides


@dataclass(frozen=True, eq=False)
class Pieces:
    """M points on the surface. position, normal: (M, 3). axes: (M, 2, 3) across the surface. All unit but position.
    corners, shares: (M, 3), vertices of the mesh between which a point lies, and how much of each."""

    position: Tensor
    axes: Tensor
    normal: Tensor
    corners: Tensor
    shares: Tensor


@dataclass(frozen=True, eq=False)
class Sightings:
    """P pairs of a picture and a piece. view, piece: (P,). pixel: (P, 2), where it is. weight: (P, 2, 2), by which
    what is left of a pixel has a variance of about 1 in each coordinate."""

    view: np.ndarray
    piece: np.ndarray
    pixel: np.ndarray
    weight: np.ndarray


def pieces_of(head: HeadModel, still: Tensor, n: int = PIECES, seed: int = 0) -> Pieces:
    """Points spread evenly over the skin of the head (V, 3) that keeps still."""
    regions = head.regions or {}
    wanted = torch.ones(len(still), dtype=torch.bool)
    for name in OUT:
        if name in regions:
            wanted &= ~regions[name]
    faces = head.faces[wanted[head.faces.long()].all(1)].long()
    vertices = still.double()
    area = mesh.face_normals(vertices, faces, unit=False).norm(dim=1).numpy()
    rng = np.random.default_rng(seed)
    at = (np.arange(n) + rng.uniform(0.2, 0.8, n)) / n * area.sum()  # one in each n-th part of the area
    face = faces[torch.from_numpy(np.searchsorted(np.cumsum(area), at).clip(0, len(faces) - 1))]
    return placed(head, still, face, torch.from_numpy(rng.dirichlet(np.full(3, 2.0), n)))


def placed(head: HeadModel, still: Tensor, corners: Tensor, shares: Tensor) -> Pieces:
    """The pieces of a surface (V, 3) that lie between given vertices; see `Pieces`."""
    vertices, part = still.double(), shares[..., None]
    normal = normalize((mesh.vertex_normals(vertices, head.faces)[corners] * part).sum(1), dim=1)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand_as(normal)
    side = normalize(torch.linalg.cross(up, normal), dim=1)
    axes = torch.stack([side, torch.linalg.cross(normal, side)], 1)
    return Pieces((vertices[corners] * part).sum(1), axes, normal, corners, shares)


def in_sight(head: HeadModel, still: Tensor, camera: Camera, pieces: Pieces) -> np.ndarray:
    """(N, M) bool, which pieces each of N cameras sees: turned towards it, and not hidden by the head itself."""
    centres = camera.center.double()
    away = normalize(centres[:, None] - pieces.position, dim=-1)
    seen: np.ndarray = ((away * pieces.normal).sum(-1) > COSINE).numpy()
    vertices, points = still.float(), pieces.position.float()
    for i in range(len(seen)):
        view = Camera(camera.K.float(), camera.world_to_camera[i].float(), camera.width, camera.height)
        rast = mesh.rasterize(view.clip(vertices[None]), head.faces, (view.height, view.width))
        z = (vertices @ view.world_to_camera[2, :3] + view.world_to_camera[2, 3])[None, :, None]
        near = mesh.interpolate(z, rast, head.faces)[0, ..., 0]
        at, depth = view.project(points)
        column, row = at[:, 0].long(), at[:, 1].long()
        inside = (column >= 0) & (column < view.width) & (row >= 0) & (row < view.height)
        column, row = column.clamp(0, view.width - 1), row.clamp(0, view.height - 1)
        seen[i] &= (inside & rast.mask[0, row, column] & (depth - near[row, column] < BEHIND)).numpy()
    return seen


def _samples(pieces: Pieces, moves: Tensor, spacing: float) -> Tensor:
    """Points (M, SIDE * SIDE, 3) on the tangent planes; moves: (M, 2) of the middles, metres."""
    axis = (torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2) * spacing
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    across = torch.stack([right, down], -1).view(1, -1, 2) + moves[:, None]
    return pieces.position[:, None] + across @ pieces.axes


def _cut(picture: Tensor, view: Camera, points: Tensor) -> Tensor:
    """Values (C, M, S) of a picture (C, H, W) at points (M, S, 3)."""
    at, _ = view.project(points.view(-1, 3).float())
    size = torch.tensor([view.width, view.height])
    grid = (at / size * 2 - 1).view(1, *points.shape[:2], 2)
    return grid_sample(picture[None], grid, align_corners=False, padding_mode="border")[0]


def _slopes() -> np.ndarray:
    """(S, 3) orthonormal: what is constant or slanted over a piece, which light does and skin does not."""
    axis = np.linspace(-1, 1, SIDE)
    down, right = np.meshgrid(axis, axis, indexing="ij")
    found: np.ndarray = np.linalg.qr(np.stack([np.ones(SIDE**2), right.ravel(), down.ravel()], 1))[0]
    return found


def find(
    pictures: np.ndarray, alpha: np.ndarray, camera: Camera, pieces: Pieces, seen: np.ndarray, spacing: float
) -> Sightings:
    """Where pieces are in pictures.

    Args:
        pictures: (N, H, W) grey, uint8. alpha: (N, H, W) uint8, the head. camera: N poses.
        seen: (N, M), see `in_sight`. spacing: of samples, metres.
    """
    views = [Camera(camera.K.float(), p.float(), camera.width, camera.height) for p in camera.world_to_camera]
    depth = np.median([float(view.project(pieces.position.float())[1].median()) for view in views])
    layers = _layers(pictures, alpha, spacing * float(camera.K[0, 0]) / depth)
    view, piece = seen.nonzero()
    moves, alike = np.zeros((len(view), 2)), np.ones(len(view))
    for turn in range(ROUNDS + 1):
        own, whole = np.zeros((len(view), SIDE * SIDE)), np.zeros(len(view), bool)
        for i, layer in enumerate(layers):
            some = view == i
            if some.any():
                which = {key: values[piece[some]] for key, values in vars(pieces).items()}
                points = _samples(replace(pieces, **which), torch.from_numpy(moves[some]), spacing)
                cut = _cut(layer, views[i], points).numpy()
                own[some], whole[some] = cut[0], (cut[1] > 0.9).mean(1) > 0.95
        alike, left, gradient = _compared(own, whole, piece, alike)
        noise = np.maximum((left**2).mean(1), 0.1 / SIDE**2)[:, None, None]
        information = gradient.transpose(0, 2, 1) @ gradient / noise / spacing**2  # per square metre
        if turn == ROUNDS:
            break
        pull = (gradient * left[..., None]).sum(1) / noise[..., 0] / spacing + moves / EXPECTED**2
        step = np.linalg.solve(information + np.eye(2) / EXPECTED**2, pull[..., None])[..., 0]
        moves -= np.clip(step, -spacing, spacing) * (alike > 0)[:, None]
        moves = moves.clip(-1.5 * FARTHEST, 1.5 * FARTHEST)
    fine = (alike > ALIKE) & (np.linalg.norm(moves, axis=1) < FARTHEST)
    return _in_pixels(views, pieces, view[fine], piece[fine], moves[fine], information[fine])


def _layers(pictures: np.ndarray, alpha: np.ndarray, pixels: float) -> list[Tensor]:
    """Grey and alpha (2, H, W) of each picture, as smooth as samples that are so many pixels apart need them."""
    out = []
    for grey, matte in zip(pictures, alpha):
        both = np.stack([grey, cv2.erode(matte, np.ones((3, 3), np.uint8))]).astype(np.float32) / 255
        if pixels > 1.2:
            both[0] = cv2.GaussianBlur(both[0], (0, 0), 0.4 * pixels)
        out.append(torch.from_numpy(both))
    return out


def _compared(
    own: np.ndarray, whole: np.ndarray, piece: np.ndarray, alike: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How alike each sighting is to the mean of the piece's others (P,), what is left (P, S), and the slope of that
    mean (P, S, 2), per sample.

    Args:
        own: (P, S) values. whole: (P,) where all of a piece is in the matte. piece: (P,). alike: (P,) of the last
            round, by which sightings count.
    """
    slopes, m = _slopes(), int(piece.max(initial=0)) + 1
    flat = own - (own @ slopes) @ slopes.T
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.maximum(length, FLAT * SIDE)
    trust = np.where(whole & (length[:, 0] > FLAT * SIDE), alike.clip(0.05) ** 2, 0.0)
    sums = np.zeros((m, own.shape[1]))
    np.add.at(sums, piece, trust[:, None] * flat)
    others = sums[piece] - trust[:, None] * flat
    others /= np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-9)
    count = np.bincount(piece, trust > 0.1, m)[piece] - (trust > 0.1)
    found = np.where(whole & (count >= FEWEST - 1), (flat * others).sum(1), 0.0)
    gradient = np.stack(np.gradient(others.reshape(-1, SIDE, SIDE), axis=(2, 1)), -1)
    return found, flat - others, gradient.reshape(len(own), -1, 2)


def _in_pixels(
    views: list[Camera], pieces: Pieces, view: np.ndarray, piece: np.ndarray, moves: np.ndarray, information: np.ndarray
) -> Sightings:
    position, axes = pieces.position.numpy()[piece], pieces.axes.numpy()[piece]
    poses = np.stack([v.world_to_camera.double().numpy() for v in views])[view]
    K = views[0].K.double().numpy()
    point = position + (moves[:, :, None] * axes).sum(1)
    there = (poses[:, :3, :3] @ point[..., None])[..., 0] + poses[:, :3, 3]
    local = there @ K.T
    pixel = local[:, :2] / local[:, 2:]
    turned = poses[:, :3, :3] @ axes.transpose(0, 2, 1)  # (P, 3, 2), metres across
    scale = K[[0, 1], [0, 1]][:, None] / there[:, 2, None, None]
    slope = scale * (turned[:, :2] - there[:, :2, None] / there[:, 2, None, None] * turned[:, 2:])
    covariance = slope @ np.linalg.inv(information + np.eye(2) / (2 * FARTHEST) ** 2) @ slope.transpose(0, 2, 1)
    weight = np.linalg.cholesky(np.linalg.inv(covariance + SURE**2 * np.eye(2))).transpose(0, 2, 1)
    return Sightings(view, piece, pixel, weight)
