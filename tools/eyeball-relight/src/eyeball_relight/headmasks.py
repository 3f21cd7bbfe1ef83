"""Masks of hair and eyes for a capture of a tracked head, from the head model's mesh and from landmarks."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from recon4d import mesh
from recon4d.cameras import Camera
from recon4d.formats.landmarks import to_dense, to_ibug
from recon4d.head import HeadModel
from torch import Tensor

from eyeball_relight import eyes

# Outlines of the eyes among MediaPipe's points, left then right, along the lower lid and back along the upper one
RINGS = (
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
)
EYES = ("left_eye", "right_eye")
BROWS, MOUTH = range(17, 27), range(48, 68)  # of the 68 points
BESIDE = 0.012  # metres outside the mesh from which the matte is hair below the brows
SIDEWAYS = 0.75  # radians between an eye's line of sight and the camera up to which its outline is trusted
FEWEST = 8  # pixels of an eye that are worth a mask
SNAPPED, MUCH = 80, 1.6  # pixels of an eye whose outline may follow its colours, and by how much its area may change


@dataclass(frozen=True, eq=False)
class HeadView:
    """What a camera sees of the still head. inside: (H, W) bool, the mesh. scalp, left, right: (H, W) bool."""

    inside: np.ndarray
    scalp: np.ndarray
    left: np.ndarray
    right: np.ndarray


def head_view(head: HeadModel, vertices: Tensor, camera: Camera) -> HeadView:
    """Regions of the mesh (V, 3) as a camera sees them; all of a region is False where the model does not know it."""
    clip = camera.clip(vertices[None].float())
    ids = mesh.visibility(clip, head.faces, (camera.height, camera.width))[0][0].long()
    inside, regions = ids >= 0, head.regions or {}

    def seen(name: str) -> np.ndarray:
        if name not in regions:
            return np.zeros(inside.shape, bool)
        of_face = regions[name][head.faces].all(1)
        return (inside & of_face[ids.clamp(min=0)]).numpy()

    return HeadView(inside.numpy(), seen("scalp"), *(seen(name) for name in EYES))


def hair_mask(head: HeadModel, vertices: Tensor, camera: Camera, view: HeadView, mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: where the matte (H, W) uint8 shows the scalp, or something outside the mesh that is above the brows,
    or above the mouth and well away from it."""
    matte = mask > 127
    _, depth = camera.project(vertices.float())
    pixel = float(depth.median()) / float(camera.K[0, 0])  # metres
    outside = cv2.distanceTransform((~view.inside).astype(np.uint8), cv2.DIST_L2, 5) * pixel
    up = camera.world_to_camera[:2, 1].numpy()  # the head's upward axis in the picture
    marks, _ = camera.project(head.landmarks(vertices[None].float())[0])
    brows, mouth = (float((marks[list(which)].numpy() @ up).mean()) for which in (BROWS, MOUTH))
    rows, columns = np.mgrid[0 : camera.height, 0 : camera.width] + 0.5
    height = columns * up[0] + rows * up[1]
    loose = ((height > brows) & (outside > 0)) | ((height > mouth) & (outside > BESIDE))
    found: np.ndarray = matte & (view.scalp | loose)
    return found


def eye_outlines(points: np.ndarray | None) -> list[np.ndarray] | None:
    """Outlines (M, 2) of the left and the right eye from landmarks (n, 2) of any layout; None without."""
    if points is None:
        return None
    dense = to_dense(points)
    if dense is not None and np.isfinite(dense[list(RINGS[0] + RINGS[1])]).all():
        return [dense[list(ring)] for ring in RINGS]
    ibug = to_ibug(points)
    if not np.isfinite(ibug[36:48]).all():
        return None
    return [eyes.curve(np.pad(ibug[list(eyes.IBUG[side])], ((0, 0), (0, 1))))[:, :2] for side in eyes.SIDES]


def eye_masks(
    head: HeadModel, camera: Camera, view: HeadView, mask: np.ndarray, outlines: list[np.ndarray] | None
) -> list[np.ndarray]:
    """(H, W) bool of the left and the right eye: what the head model's eyeballs show, where landmarks can be trusted
    only what lies inside their outline.

    Either is too large where lids are: skin in a mask makes eyeballs too large, for which a mask without an eye's
    corners does not.

    Args:
        outlines: pixels of this picture, see `eye_outlines`.
    """
    forward = camera.world_to_camera[2, :3].numpy() @ np.array([0.0, 0.0, -1.0])  # cosine, the face looks along +z
    frontal = forward > np.cos(SIDEWAYS)
    found = []
    for k, seen in enumerate((view.left, view.right)):
        eye = seen.copy()
        if outlines is not None and frontal and seen.any():
            canvas = np.zeros(eye.shape, np.uint8)
            # in sixteenths of a pixel, whose first centre is 0
            cv2.fillPoly(canvas, [np.round((outlines[k] - 0.5) * 16).astype(np.int32)], 1, shift=4)
            eye &= canvas > 0
        eye &= mask > 127
        found.append(eye if eye.sum() >= FEWEST else np.zeros_like(eye))
    found[1] &= ~found[0]
    return found


def snapped(pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """`eyes.snap`, where eyes are large enough for it; a mask that it makes much larger or smaller stays as it was.

    Args:
        pictures: (N, H, W, 3) uint8. masks: (N, H, W) bool, of one eye.
    """
    area = masks.sum((1, 2))
    if not area.any() or np.median(area[area > 0]) < SNAPPED:
        return masks
    found = eyes.snap(pictures, masks)
    ratio = found.sum((1, 2)) / np.maximum(area, 1)
    fine = (ratio > 1 / MUCH) & (ratio < MUCH)
    return np.where(fine[:, None, None], found, masks)


def eyeballs(head: HeadModel, vertices: Tensor) -> list[list[float]]:
    """Centre and radius (4,) of the head model's left and right eyeball, by least squares; [] where it has none."""
    out = []
    for name in EYES:
        region = (head.regions or {}).get(name)
        if region is None:
            return []
        ball = vertices[region].double().numpy()
        # |x|^2 = 2 c x + r^2 - |c|^2
        solved = np.linalg.lstsq(np.c_[2 * ball, np.ones(len(ball))], (ball**2).sum(1), rcond=None)[0]
        radius = float(np.sqrt(solved[3] + (solved[:3] ** 2).sum()))
        out.append([round(float(value), 6) for value in (*solved[:3], radius)])
    return out


def eye_points(head: HeadModel, vertices: Tensor, n: int = 8) -> list[list[list[float]]]:
    """n points on the front of each of the head model's eyeballs, left then right; none where it has none."""
    out: list[list[list[float]]] = []
    for name in EYES:
        region = (head.regions or {}).get(name)
        if region is None:
            out.append([])
            continue
        ball = vertices[region]
        middle = ball.mean(0)
        away = torch.nn.functional.normalize(ball - middle, dim=1)
        order = away[:, 2].argsort(descending=True)[:n]
        out.append([[round(float(x), 6) for x in point] for point in ball[order]])
    return out
