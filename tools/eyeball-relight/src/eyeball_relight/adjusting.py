"""Camera poses and focal length of a tracked head by what the pictures show of its skin.

The track begins, pieces of skin found in all pictures (`patches`) and bundle adjustment (`bundle`) go on. It needs no
more of a picture than the track does, where structure from motion places only those that show enough corners.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import InputError, images
from recon4d.cameras import Camera
from recon4d.formats.shot import intrinsics
from recon4d.head import HeadModel
from recon4d.lenses import LensCamera
from torch import Tensor

from eyeball_relight import bundle, motion, patches
from eyeball_relight.frames import Frame, looking_at

SPACINGS = (0.0014, 0.0009)  # metres between a piece's samples, at least, in each round; and a pixel at least
COARSEST = 0.002  # metres on the head that a pixel may be: pieces of larger ones are not flat
STRAYS = 0.004  # metres that the head model's surface is likely to be off by
LEAST = 40  # sightings that place a picture
REACH = 0.012  # metres over which the surface moves with a piece
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
    pieces = patches.pieces_of(head, still)
    start, K, first = pieces.position.numpy(), K.copy(), float(K[0, 0])
    for least in SPACINGS:
        camera = Camera(torch.from_numpy(K), torch.from_numpy(poses), width, height)
        seen = patches.in_sight(head, still, camera, pieces)
        spacing = max(float(np.median(poses[:, 2, 3])) / K[0, 0], least)
        found = patches.find(grey, alpha, camera, pieces, seen, spacing)
        if len(found.view) < LEAST:
            return Skin(poses, still, first, np.zeros(len(poses)), float("inf"))
        for free in (True, False):
            result = bundle.adjust(found, poses, K, start, STRAYS, free)
            if FOCAL[0] < result.focal / first < FOCAL[1]:
                break
        poses, pieces = result.world_to_camera, replace(pieces, position=torch.from_numpy(result.points))
        K[[0, 1], [0, 1]] *= result.focal / K[0, 0]
    counts = np.bincount(found.view, result.trust > 0.5, len(poses))
    error = float(np.sqrt((result.trust * (result.left**2).sum(1)).sum() / result.trust.sum()))
    sure = np.bincount(found.piece, result.trust, len(start)).clip(0, 6) / 6
    return Skin(
        poses, following(still, start, result.points - start, sure, pieces.normal.numpy()), result.focal, counts, error
    )


def following(still: Tensor, start: np.ndarray, moved: np.ndarray, sure: np.ndarray, normals: np.ndarray) -> Tensor:
    """Vertices (V, 3) that go along with the pieces near them, along the pieces' normals: along the surface a piece's
    place means nothing.

    Args:
        start, moved: (M, 3), where pieces were and how far they are from there. sure: (M,). normals: (M, 3).
    """
    out = (moved * normals).sum(1)
    square = ((still.double().numpy()[:, None] - start) ** 2).sum(-1)
    weight = sure * np.exp(-0.5 * square / REACH**2)
    whole = weight.sum(1, keepdims=True) + TOLD
    return (still.double() + torch.from_numpy((weight * out) @ normals / whole)).float()


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
