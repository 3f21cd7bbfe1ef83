"""Bundle adjustment: poses, focal length and points that explain best where points are in pictures.

Triggs et al. 2000, "Bundle adjustment: a modern synthesis": Levenberg and Marquardt's steps, points eliminated by the
Schur complement, outliers held down by Cauchy's weights.
"""

from dataclasses import dataclass

import numpy as np
import roma
import torch

from eyeball_relight.patches import Sightings

STEPS = 60
OUTLIER = 2.0  # standard deviations from which what is left counts less
LEAST = 1e-5  # of the cost; less improvement than that ends it


@dataclass(frozen=True, eq=False)
class Adjusted:
    """world_to_camera: (N, 4, 4). points: (M, 3). focal: pixels. left: (P, 2), pixels that are left over.
    trust: (P,) in [0, 1]."""

    world_to_camera: np.ndarray
    points: np.ndarray
    focal: float
    left: np.ndarray
    trust: np.ndarray


def adjust(
    seen: Sightings,
    world_to_camera: np.ndarray,
    K: np.ndarray,
    points: np.ndarray,
    near: float,
    free_focal: bool = True,
) -> Adjusted:
    """Poses, points and focal length by `seen`.

    Args:
        world_to_camera: (N, 4, 4), to begin with. K: (3, 3), whose focal lengths keep their ratio.
        points: (M, 3); they are likely to stay within `near`, which is what fixes turn, place and size of all.
        free_focal: False keeps the focal length.
    """
    R, t = world_to_camera[:, :3, :3].copy(), world_to_camera[:, :3, 3].copy()
    x, zoom = points.copy(), 0.0
    view, piece = seen.view, seen.piece
    focal = K[[0, 1], [0, 1]]

    def left_over(R: np.ndarray, t: np.ndarray, x: np.ndarray, zoom: float) -> tuple[np.ndarray, np.ndarray]:
        there = (R[view] @ x[piece][..., None])[..., 0] + t[view]
        at = np.exp(zoom) * focal * there[:, :2] / there[:, 2:] + K[:2, 2]
        return at - seen.pixel, there

    def white(away: np.ndarray) -> np.ndarray:
        values: np.ndarray = (seen.weight @ away[..., None])[..., 0]
        return values

    def cost(away: np.ndarray, x: np.ndarray) -> float:
        square = (white(away) ** 2).sum(1) / OUTLIER**2
        return float(OUTLIER**2 * np.log1p(square).sum() + (((x - points) / near) ** 2).sum())

    away, there = left_over(R, t, x, zoom)
    now, damping = cost(away, x), 1e-3
    n, m = len(R), len(x)
    for _ in range(STEPS):
        trust = 1 / (1 + (white(away) ** 2).sum(1) / OUTLIER**2)
        scale = (np.exp(zoom) * focal / there[:, 2:])[..., None]  # (P, 2, 1)
        by_place = scale * np.concatenate(
            [np.tile(np.eye(2), (len(view), 1, 1)), -(there[:, :2] / there[:, 2:])[..., None]], 2
        )
        turned = there - t[view]
        zero = np.zeros(len(view))
        cross = np.stack(
            [zero, turned[:, 2], -turned[:, 1], -turned[:, 2], zero, turned[:, 0], turned[:, 1], -turned[:, 0], zero], 1
        ).reshape(-1, 3, 3)  # -[turned]x
        by_focal = (away + seen.pixel - K[:2, 2])[..., None] * float(free_focal)
        weight = seen.weight * np.sqrt(trust)[:, None, None]
        camera = weight @ np.concatenate([by_place @ cross, by_place, by_focal], 2)  # (P, 2, 7)
        point = weight @ by_place @ R[view]
        rest = (weight @ away[..., None])[..., 0]
        index = np.concatenate([6 * view[:, None] + np.arange(6), np.full((len(view), 1), 6 * n)], 1)
        U, g = np.zeros((6 * n + 1,) * 2), np.zeros(6 * n + 1)
        np.add.at(U, (index[:, :, None], index[:, None]), camera.transpose(0, 2, 1) @ camera)
        np.add.at(g, index, (camera * rest[..., None]).sum(1))
        W = np.zeros((m, 6 * n + 1, 3))
        np.add.at(W, (piece[:, None], index), camera.transpose(0, 2, 1) @ point)
        V, h = np.tile(np.eye(3) / near**2, (m, 1, 1)), (x - points) / near**2
        np.add.at(V, piece, point.transpose(0, 2, 1) @ point)
        np.add.at(h, piece, (point * rest[..., None]).sum(1))
        U[-1, -1] += 1.0  # of the logarithm: a focal length that nothing tells stays
        g[-1] += zoom
        better = False
        while damping < 1e8:
            inverse = np.linalg.inv(V * (1 + damping * np.eye(3)))
            reduced = W @ inverse
            flat = W.transpose(1, 0, 2).reshape(6 * n + 1, -1)
            S = U * (1 + damping * np.eye(len(U))) - reduced.transpose(1, 0, 2).reshape(6 * n + 1, -1) @ flat.T
            S += 1e-9 * np.trace(U) / len(U) * np.eye(len(U))
            step = np.linalg.solve(S, -(g - (reduced @ h[..., None])[..., 0].sum(0)))
            move = -(inverse @ (h + (W.transpose(0, 2, 1) @ step))[..., None])[..., 0]
            turn = roma.rotvec_to_rotmat(torch.from_numpy(step[:-1].reshape(n, 6)[:, :3])).numpy()
            tried = turn @ R, t + step[:-1].reshape(n, 6)[:, 3:], x + move, zoom + float(step[-1])
            away_there, there_there = left_over(*tried)
            then = cost(away_there, tried[2]) if (there_there[:, 2] > 0).all() else np.inf
            if then < now:
                better = then < now * (1 - LEAST)
                (R, t, x, zoom), away, there, now = tried, away_there, there_there, then
                damping = max(damping / 5, 1e-9)
                break
            damping *= 5
        if not better:
            break
    pose = np.tile(np.eye(4), (n, 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = R, t
    trust = 1 / (1 + (white(away) ** 2).sum(1) / OUTLIER**2)
    return Adjusted(pose, x, float(np.exp(zoom) * K[0, 0]), away, trust)
