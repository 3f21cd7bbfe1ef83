"""Camera poses and focal length of a tracked head by what the pictures show of its skin.

The track begins, pieces of skin found in all pictures (`patches`) and bundle adjustment (`bundle`) go on. It needs no
more of a picture than the track does, where structure from motion places only those that show enough corners.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import roma
import torch
from recon4d import InputError, images
from recon4d.cameras import Camera
from recon4d.formats.shot import intrinsics
from recon4d.head import HeadModel
from recon4d.lenses import LensCamera
from scipy.spatial import cKDTree
from torch import Tensor

from eyeball_relight import bundle, motion, patches
from eyeball_relight.frames import Frame, looking_at

SPACINGS = (0.0014, 0.0009)  # metres between a piece's samples, at least, in each round; and a pixel at least
COARSEST = 0.002  # metres on the head that a pixel may be: pieces of larger ones are not flat
STRAYS = 0.004  # metres that the head model's surface is likely to be off by
LEAST = 40  # sightings that place a picture
REACH = 0.012  # metres over which the surface moves with a piece
AROUND = 0.025  # the same of an eyeball's front, which has skin around it only
FRONT = 0.7  # share of an eyeball's vertices that are behind its front
SETTLED = 8  # rounds of settling
EYES = ("left_eye", "right_eye")
TOLD = 1.0  # pieces within reach by which the surface moves half as far as they do
ENOUGH = 0.8  # of the pictures that must be placed for --poses auto to take them
FOCAL = (0.6, 1.7)  # of the track's focal length between which another is believed


@dataclass(frozen=True, eq=False)
class Skin:
    """What skin says of N pictures. world_to_camera: (N, 4, 4), about the head's middle. still: (V, 3), the head's
    vertices as its points lie. focal: pixels. counts: (N,) sightings that fit. error: pixels, root mean square."""

    world_to_camera: np.ndarray
    still: Tensor
    focal: float
    counts: np.ndarray
    error: float


def by_skin(
    grey: np.ndarray, alpha: np.ndarray, K: np.ndarray, poses: np.ndarray, head: HeadModel, still: Tensor
) -> Skin:
    """Poses and focal length by pieces of skin.

    Args:
        grey, alpha: (N, H, W) uint8. K: (3, 3). poses: (N, 4, 4) world-to-camera, to begin with.
        still: (V, 3) vertices; with the poses, about the head's middle.
    """
    height, width = grey.shape[1:]
    if np.median(poses[:, 2, 3]) / K[0, 0] > COARSEST:
        return Skin(poses, still, float(K[0, 0]), np.zeros(len(poses)), float("inf"))
    K, first = K.copy(), float(K[0, 0])
    balls = [(head.regions or {})[name] for name in EYES if name in (head.regions or {})]
    track, shown = patches.pieces_of(head, still), still
    for least in SPACINGS:
        pieces = patches.placed(head, shown, track.corners, track.shares)  # as the round before has shown the surface
        camera = Camera(torch.from_numpy(K), torch.from_numpy(poses), width, height)
        seen = patches.in_sight(head, shown, camera, pieces)
        spacing = max(float(np.median(poses[:, 2, 3])) / K[0, 0], least)
        found = patches.find(grey, alpha, camera, pieces, seen, spacing)
        if len(found.view) < LEAST:
            return Skin(poses, still, first, np.zeros(len(poses)), float("inf"))
        for free in (True, False):
            result = bundle.adjust(found, poses, K, pieces.position.numpy(), STRAYS, free)
            if FOCAL[0] < result.focal / first < FOCAL[1]:
                break
        poses = result.world_to_camera
        K[[0, 1], [0, 1]] *= result.focal / K[0, 0]
        sure = np.bincount(found.piece, result.trust, len(pieces.shares)).clip(0, 6) / 6
        # the track's surface moved once, not that of the last round: what is noise would add up
        turn, shift = settling(track.position.numpy(), result.points, sure, track.normal.numpy())
        settled = (still.double() @ torch.from_numpy(turn.T) + torch.from_numpy(shift)).float()
        start = patches.placed(head, settled, track.corners, track.shares)
        away = result.points - start.position.numpy()
        shown = following(settled, start.position.numpy(), away, sure, start.normal.numpy(), balls)
    counts = np.bincount(found.view, result.trust > 0.5, len(poses))
    error = float(np.sqrt((result.trust * (result.left**2).sum(1)).sum() / result.trust.sum()))
    return Skin(poses, shown, result.focal, counts, error)


def settling(
    start: np.ndarray, found: np.ndarray, sure: np.ndarray, normals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turn (3, 3) and shift (3,) by which the surface that pieces were cut out of fits best where they are found.

    A track turns the head by some tenths of a degree in all frames alike. No picture tells that from another place of
    the same skin on the head, and so neither do pieces that move along the surface: only how far they are off it does
    (Chen and Medioni 1992, with Cauchy's weights).

    Args:
        start, found: (M, 3), where pieces were and are. sure: (M,). normals: (M, 3), of the surface where they were.
    """
    turn, shift = np.eye(3), np.zeros(3)
    tree = cKDTree(start)
    for _ in range(SETTLED):
        _, near = tree.query((found - shift) @ turn)
        at, out = start[near] @ turn.T + shift, normals[near] @ turn.T
        away = ((found - at) * out).sum(1)
        weight = sure / (1 + (away / STRAYS) ** 2)
        slope = np.concatenate([np.cross(at, out), out], 1)
        step = np.linalg.lstsq(slope * np.sqrt(weight)[:, None], away * np.sqrt(weight), rcond=None)[0]
        small = roma.rotvec_to_rotmat(torch.from_numpy(step[:3])).numpy()
        turn, shift = small @ turn, small @ shift + step[3:]
    return turn, shift


def following(
    still: Tensor,
    start: np.ndarray,
    moved: np.ndarray,
    sure: np.ndarray,
    normals: np.ndarray,
    balls: Sequence[Tensor] = (),
) -> Tensor:
    """Vertices (V, 3) that go along with the pieces near them, along the pieces' normals: along the surface a piece's
    place means nothing. An eyeball goes as a whole, as what lies around its front does.

    Args:
        start, moved: (M, 3), where pieces were and how far they are from there. sure: (M,). normals: (M, 3).
        balls: which vertices (V,) are an eyeball's, of each.
    """
    out = (moved * normals).sum(1)

    def told(at: np.ndarray, reach: float) -> np.ndarray:
        weight = sure * np.exp(-0.5 * ((at[:, None] - start) ** 2).sum(-1) / reach**2)
        move: np.ndarray = (weight * out) @ normals / (weight.sum(1, keepdims=True) + TOLD)
        return move

    move = told(still.double().numpy(), REACH)
    for ball in balls:
        own = still[ball].double().numpy()
        front = own[own[:, 2] > np.quantile(own[:, 2], FRONT)].mean(0)
        move[ball.numpy()] = told(front[None], AROUND)
    return (still.double() + torch.from_numpy(move)).float()


def refine(
    views: list[Frame],
    lens: LensCamera,
    head: HeadModel,
    still: Tensor,
    middle: np.ndarray,
    optional: bool,
    log: Callable[[str], None],
) -> tuple[list[Frame], LensCamera, Tensor, dict[str, Any]]:
    """Views with poses by skin, their camera, the head's vertices as the skin shows them, and a summary.

    Views with too little skin are left out.

    Args:
        still: (V, 3) of the head. middle: (3,) of it. optional: keep the track's poses where fewer than ENOUGH of the
            views are placed.

    Raises InputError: too few are placed and it is not `optional`.
    """
    pictures = [images.read(frame.file, "RGBA") for frame in views]
    grey = np.stack([cv2.cvtColor(p[..., :3], cv2.COLOR_RGB2GRAY) for p in pictures])
    track = np.stack([frame.world_to_camera for frame in views])
    poses = track.copy()
    poses[:, :3, 3] += poses[:, :3, :3] @ middle
    about = (still.double() - torch.from_numpy(middle)).float()
    skin = by_skin(grey, np.stack([p[..., 3] for p in pictures]), lens.K, poses, head, about)
    placed = np.flatnonzero(skin.counts >= LEAST)
    if len(placed) < max(4, (ENOUGH if optional else 0) * len(views)):
        text = f"skin places {len(placed)} of {len(views)} pictures"
        if not optional:
            raise InputError(f"{text}; it is too small or too plain in them: take --poses track")
        log(f"--poses auto: {text}; the track's poses are taken")
        return views, lens, still, {"poses": "track", "placed": len(placed)}
    poses = skin.world_to_camera.copy()
    poses[:, :3, 3] -= poses[:, :3, :3] @ middle
    fitted = motion.into_head(poses[placed], track[placed], middle, lens.K[0, 0] / skin.focal)
    apart = motion.agreement(fitted, track[placed], middle)  # but for the turn, place and size of all
    log(
        f"skin places {len(placed)} of {len(views)} pictures to {skin.error:.2f} pixels, with a focal length of "
        f"{skin.focal:.0f} where the track has {lens.K[0, 0]:.0f}; it and the track are {apart['degrees']:.2f} degrees "
        f"and {apart['mm']:.1f} mm apart (medians)"
    )
    kept = [
        replace(views[i], world_to_camera=poses[i], turn=looking_at(poses[i, :3, :3] @ middle + poses[i, :3, 3]))
        for i in placed
    ]
    K = intrinsics(skin.focal, skin.focal * lens.K[1, 1] / lens.K[0, 0], lens.K[0, 2], lens.K[1, 2])
    said = {"poses": "skin", "placed": len(placed), "focal": skin.focal, "pixels": skin.error, "from_track": apart}
    return kept, LensCamera(K, lens.width, lens.height), (skin.still.double() + torch.from_numpy(middle)).float(), said
