"""Which frames of a tracked video make a capture: sharp ones of one face that keeps still, seen from all sides."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from recon4d import InputError
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from torch import Tensor

CHANGED = 1.5e-3  # metres; how far a face may be from its median shape, root mean square over its vertices
CHANGED_LIPS = 2.5e-3  # metres; the same of lips and lids, the worst tenth of them
CLOSED = 0.6  # of the median opening of the lids
OUTSIDE = 0.02  # share of a head's points that may lie outside the picture
BLURRED = 0.5  # of the sharpness of the frames seen from about the same side
NEAR = np.radians(12)  # what about the same side is
FEWEST = 6


@dataclass(frozen=True, eq=False)
class Poses:
    """N frames. world_to_camera: (N, 4, 4) float64, from the space of the still head to the camera, metres.

    towards: (N, 3) unit, from the head's middle to the camera. middle: (3,) of the head.
    """

    world_to_camera: np.ndarray
    towards: np.ndarray
    middle: np.ndarray


def head_shape(track: Track, head: HeadModel) -> Tensor:
    """Vertices (N, V, 3) of each frame with its expression, in the space of the skull: pose and neck are taken out."""
    parameters = track.parameters()
    del parameters["neck"]
    if head.eyelids is None:
        del parameters["eyelids"]
    vertices: Tensor = head(**parameters)
    return vertices


def poses(track: Track, head: HeadModel, still: Tensor) -> Poses:
    """Where the camera stands before a head that keeps still: x_camera = R (N (x - j) + j) + t, N the neck's turn
    about its joint j.

    Args:
        still: (V, 3) vertices of the still head.
    """
    joint = head.joints(torch.from_numpy(track.shape[None]))[0, 1].double().numpy()
    R, neck = track.R.astype(np.float64), track.neck.astype(np.float64)
    out = np.tile(np.eye(4), (len(track), 1, 1))
    out[:, :3, :3] = R @ neck
    out[:, :3, 3] = (R @ (joint - neck @ joint)[..., None])[..., 0] + track.t
    middle = ((still.amin(0) + still.amax(0)) / 2).double().numpy()
    centre = -(out[:, :3, :3].transpose(0, 2, 1) @ out[:, :3, 3:])[..., 0]
    towards = centre - middle
    return Poses(out, towards / np.linalg.norm(towards, axis=1, keepdims=True), middle)


def openings(head: HeadModel, vertices: Tensor) -> np.ndarray:
    """Distance (N, 2) between the lids of the left and the right eye, metres; of vertices (N, V, 3)."""
    points = head.landmarks(vertices).numpy()
    left = np.linalg.norm(points[:, [43, 44]] - points[:, [47, 46]], axis=-1).mean(1)
    right = np.linalg.norm(points[:, [37, 38]] - points[:, [41, 40]], axis=-1).mean(1)
    return np.stack([left, right], 1)


def keeps_still(track: Track, head: HeadModel, vertices: Tensor) -> tuple[np.ndarray, dict[str, int]]:
    """Which frames (N,) show the face as it is in most, with open eyes, tracked and whole; and how many were left out
    for which reason.

    Args:
        vertices: (N, V, 3), see `head_shape`.
    """
    regions = head.regions or {}
    everywhere = torch.ones(vertices.shape[1], dtype=torch.bool)
    face = regions.get("face", everywhere) & ~regions.get("mouth_interior", ~everywhere)
    median = vertices[track.valid].median(0).values if track.valid.any() else vertices.median(0).values
    away = (vertices - median).norm(dim=-1)
    whole = away[:, face].square().mean(1).sqrt().numpy()
    lips = away[:, regions["lips"]].quantile(0.9, 1).numpy() if "lips" in regions else whole
    opening = openings(head, vertices)
    closed = (opening < CLOSED * np.median(opening, 0)).any(1)
    pixels = track.vertices(head)[:, face] @ torch.from_numpy(track.K).T
    at = (pixels[..., :2] / pixels[..., 2:].clamp(min=1e-6)).numpy()
    cut = ((at < 0) | (at > track.image_size)).any(-1).mean(1) > OUTSIDE
    tests = {
        "not tracked": ~track.valid,
        "cut off by the picture": cut,
        "eyes closed": closed,
        # of a face that never rests the calmer half is taken
        "another expression": (whole > max(CHANGED, np.median(whole))) | (lips > max(CHANGED_LIPS, np.median(lips))),
    }
    kept, counts = np.ones(len(track), bool), {}
    for reason, bad in tests.items():
        counts[reason] = int((kept & bad).sum())
        kept &= ~bad
    return kept, counts


def sharpness(picture: np.ndarray, alpha: np.ndarray) -> float:
    """Variance of the Laplacian of a picture (H, W, 3) inside the matte (H, W), uint8, relative to its brightness."""
    inside = cv2.erode(alpha, np.ones((5, 5), np.uint8)) > 127
    if inside.sum() < 100:
        return 0.0
    plain = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = cv2.GaussianBlur(plain, (0, 0), 0.8)  # grain is not sharpness
    edges = cv2.Laplacian(grey, cv2.CV_32F)[inside]
    return float(edges.var() / max(float(grey[inside].mean()), 1.0) ** 2)


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Radians (N, M) between unit directions (N, 3) and (M, 3)."""
    found: np.ndarray = np.arccos(np.clip(a @ b.T, -1, 1))
    return found


def spread(towards: np.ndarray, sharp: np.ndarray, n: int) -> np.ndarray:
    """Which n of N frames see the head from sides as different as they are, each the sharpest of those beside it.

    Frames that are blurred for their side are left out first. In the order of the video.

    Args:
        towards: (N, 3) unit. sharp: (N,).
    """
    beside = angles(towards, towards)
    usual = np.array([np.median(sharp[row < NEAR]) for row in beside])
    good = np.flatnonzero(sharp >= BLURRED * usual)
    if len(good) <= n:
        rest = np.setdiff1d(np.arange(len(sharp)), good)
        rest = rest[np.argsort(-sharp[rest] / np.maximum(usual[rest], 1e-12))][: max(0, min(n, len(sharp)) - len(good))]
        return np.sort(np.concatenate([good, rest]))
    between = beside[np.ix_(good, good)]
    mean = towards.mean(0)
    picked = [int((towards[good] @ mean).argmax())]
    nearest = between[picked[0]].copy()
    while len(picked) < n:
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, between[picked[-1]])
    owner = between[picked].argmin(0)  # each frame goes with the picked one nearest to it: the sharpest stands for them
    sharpest = [max(np.flatnonzero(owner == k), key=lambda i: float(sharp[good[i]])) for k in range(n)]
    chosen: np.ndarray = np.sort(good[np.array(sharpest)])
    return chosen


def choose(
    track: Track,
    head: HeadModel,
    vertices: Tensor,
    n: int,
    sharp_of: Callable[[int], float],
    log: Callable[[str], None],
) -> tuple[np.ndarray, Poses]:
    """The frames of a capture, in the order of the video, and the poses of all.

    Args:
        vertices: (N, V, 3), see `head_shape`. n: at most so many. sharp_of: the sharpness of a frame by its number.

    Raises:
        InputError: fewer than FEWEST are left.
    """
    kept, counts = keeps_still(track, head, vertices)
    for reason, count in counts.items():
        if count:
            log(f"{count} of {len(track)} frames left out: {reason}")
    if kept.sum() < FEWEST:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items() if count)
        raise InputError(
            f"{kept.sum()} of {len(track)} frames show one still face with open eyes ({reasons}); "
            f"at least {FEWEST} are needed: film longer, with the face at rest"
        )
    every = poses(track, head, vertices[torch.from_numpy(kept)].median(0).values)
    places = np.flatnonzero(kept)
    # of a long video the same side is seen many times: enough of them to find a sharp one
    places = places[np.unique(np.linspace(0, len(places) - 1, min(len(places), 8 * n)).round().astype(int))]
    sharp = np.array([sharp_of(int(i)) for i in places])
    return places[spread(every.towards[places], sharp, n)], every
