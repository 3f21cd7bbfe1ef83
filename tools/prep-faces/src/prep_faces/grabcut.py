"""Cutting a head out of one image: GrabCut (Rother et al. 2004) seeded by the head's shape."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from prep_faces.affine import warp
from prep_faces.guided import guided_filter
from prep_faces.headshape import HeadShape, draw_polygon, shape_mask

FACE_PIXELS = 110  # width of the face in the picture that is cut
LARGEST = 340  # longer side of that picture
HAIR = 0.60  # hair reaches at most this far from the skull, in face widths
BESIDE = 2.5  # and from the neck, below the chin, this many times the margin of the outline: clothes begin there
BORDER = 0.30  # of sure background around that


@dataclass(frozen=True, eq=False)
class Cut:
    """A soft matte of part of an image, at reduced size."""

    matte: np.ndarray  # (h, w) float32 in [0, 1]
    to_small: np.ndarray  # (2, 3) float64: image pixels to pixels of `matte`, centres at +0.5


def reduced_frame(
    shape: HeadShape, height: int, width: int, detail: float = 1.0, whole: bool = False
) -> tuple[np.ndarray, int, int]:
    """The part of the image that can hold the head, and its reduced size: (to_small (2, 3), h, w).

    `detail` multiplies the resolution; the image is never enlarged. With `whole` the part can hold shoulders and arms,
    and reaches down to the image's border.
    """
    outline = np.concatenate(shape.polygons)
    reach = (HAIR + BORDER) * shape.width
    beside, below = (2.5 * shape.width, float(height)) if whole else (reach, reach)
    low = np.floor(np.clip(outline.min(0) - np.array([beside, reach]), 0, [width - 1, height - 1]))
    high = np.ceil(np.clip(outline.max(0) + np.array([beside, below]), low + 1, [width, height]))
    scale = min(1.0, detail * FACE_PIXELS / shape.width, detail * LARGEST / float(max(high - low)))
    small_width, small_height = np.maximum(1, np.rint((high - low) * scale)).astype(int)
    scales = np.array([small_width, small_height]) / (high - low)
    return (
        np.array([[scales[0], 0, -low[0] * scales[0]], [0, scales[1], -low[1] * scales[1]]]),
        small_height,
        small_width,
    )


def distances(
    shape: HeadShape, to_small: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per pixel of a reduced picture, in face widths: distance outside of the head's outline, distance inside of it,
    and height above the eyes along the head's axis; each (height, width) float."""
    scale = float(np.sqrt(abs(np.linalg.det(to_small[:, :2])))) * shape.width  # pixels per face width
    head = shape_mask(shape, to_small, height, width)
    outside = cv2.distanceTransform(1 - head, cv2.DIST_L2, 5) / scale if head.any() else np.full(head.shape, 9.0)
    padded = cv2.copyMakeBorder(head, 1, 1, 1, 1, cv2.BORDER_REPLICATE)  # the image's edge is no outline
    if not padded.all():
        inside = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1] / scale
    else:
        inside = np.full(head.shape, 9.0)
    along = shape.up @ np.linalg.inv(to_small[:, :2]) / shape.width  # (2,) height per pixel right and down
    start = shape.middle @ shape.up / shape.width + along @ to_small[:, 2]
    above = along[1] * (np.arange(height)[:, None] + 0.5) + (along[0] * (np.arange(width) + 0.5) - start)
    return outside, inside, above


def seeds(
    shape: HeadShape, to_small: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """What the shape alone says of a reduced picture.

    Returns GrabCut's labels (height, width) uint8, GC_FGD and GC_BGD where it is sure; prior log odds of head
    against background (height, width) float; and how much each pixel's colour says of the head's colours and of the
    background's, two (height, width) floats: nothing where there may be hair, else whatever touches the head would
    be learnt as hair, or hair as background.
    """
    outside, inside, above = distances(shape, to_small, height, width)
    # Hair thickens the skull, the more the further up: there the shape cannot tell.
    hair = np.clip(0.03 + 0.25 * above, 0.0, 0.20)
    beyond = outside - hair
    # A track may leave the skull too small: then hair is thick outside of it, and must not be learnt as background.
    thick_hair = np.clip(0.03 + 0.7 * above, 0.0, 0.4)
    odds = np.where(outside > 0, np.clip(-beyond / 0.06, -4, 0), np.minimum(inside / 0.03, 4))
    # The neck may be covered: by a collar, a scarf, long hair.
    odds = np.where(above < -shape.chin, np.minimum(odds, 0.5), odds)
    labels = np.where(odds > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[outside > np.where(above < -shape.chin, BESIDE * shape.margin, HAIR)] = cv2.GC_BGD
    face = np.zeros((height, width), np.uint8)
    draw_polygon(face, shape.face, to_small)
    pixels = float(np.sqrt(abs(np.linalg.det(to_small[:, :2])))) * shape.width
    core = cv2.erode(face, np.ones((3, 3), np.uint8), iterations=max(1, round(0.03 * pixels)), borderValue=1)
    labels[(core > 0) | ((inside > shape.margin) & (above > -shape.chin))] = cv2.GC_FGD
    labels[above < -shape.neck] = cv2.GC_BGD
    odds[labels == cv2.GC_FGD] = 8
    odds[labels == cv2.GC_BGD] = -8
    front = np.where(outside > 0, 0.0, 1 / (1 + np.exp(-odds)))
    back = np.where(labels == cv2.GC_BGD, 1.0, np.clip((outside - thick_hair) / 0.2, 0, 1))
    return labels, odds, (front, back)


def color_odds(
    picture: np.ndarray, odds: np.ndarray, weights: tuple[np.ndarray, np.ndarray], rounds: int = 3
) -> np.ndarray:
    """Log odds of head against background from colours and the prior `odds` (h, w), of (h, w, 3) uint8 RGB.

    `weights` say which pixels teach the first colours of head and background, two (h, w). Expectation maximisation
    with one smoothed Lab histogram for the head and one for the rest, because GrabCut alone has no
    place for a prior per pixel, and on a busy background its mixtures drift to colours that only touch the head.
    """
    bins = np.array([24, 48, 48])
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.intp) * bins // 256
    index = (lab[..., 0] * bins[1] + lab[..., 1]) * bins[2] + lab[..., 2]
    floor = 0.1 / bins.prod()  # colours that neither side has tell nothing
    posterior = odds
    for _ in range(rounds):
        front, back = (
            gaussian_filter(np.bincount(index.ravel(), weight.ravel(), bins.prod()).reshape(bins), 1.0)
            for weight in weights
        )
        ratio = np.log((front / max(front.sum(), 1e-9) + floor) / (back / max(back.sum(), 1e-9) + floor))
        posterior = odds + np.clip(ratio.ravel()[index], -6, 6)
        share = 1 / (1 + np.exp(-posterior))
        weights = (share, 1 - share)
    return posterior


def cut(image: np.ndarray, shape: HeadShape) -> Cut:
    """Cut the head out of (H, W, 3) uint8 RGB at reduced size."""
    to_small, height, width = reduced_frame(shape, *image.shape[:2])
    picture = warp(image, to_small, height, width)
    given, odds, weights = seeds(shape, to_small, height, width)
    share = (1 / (1 + np.exp(-color_odds(picture, odds, weights)))).astype(np.float32)
    share = guided_filter(picture.astype(np.float32) / 255, share, 4, 1e-3)
    labels = np.where(share > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[share < 0.05] = cv2.GC_BGD
    labels[share > 0.96] = cv2.GC_FGD
    for sure in (cv2.GC_BGD, cv2.GC_FGD):
        labels[given == sure] = sure
    if all((labels == sure).any() for sure in (cv2.GC_BGD, cv2.GC_FGD)):
        cv2.setRNGSeed(0)  # GrabCut starts its colour clusters at random
        models = np.zeros((2, 1, 65))
        cv2.grabCut(picture, labels, (0, 0, 0, 0), models[0], models[1], 2, cv2.GC_INIT_WITH_MASK)
    head = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    return Cut(tidy(head, given == cv2.GC_FGD).astype(np.float32), to_small)


def tidy(head: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """The connected part of a 0/1 mask that holds most of `sure` (the largest without any), its holes filled."""
    count, parts = cv2.connectedComponents(head, connectivity=4)
    if count < 2:
        return head
    votes = np.bincount(parts[sure & (head > 0)], minlength=count) if sure.any() else np.bincount(parts.ravel())
    votes[0] = 0
    largest = (parts == votes.argmax()).astype(np.uint8) if votes.any() else head
    # Background that does not reach the border of the picture is a hole; the bottom border does not count, since
    # the neck runs into it.
    around = cv2.copyMakeBorder(1 - largest, 1, 0, 1, 1, cv2.BORDER_CONSTANT, value=1)
    _, parts = cv2.connectedComponents(around, connectivity=4)
    whole: np.ndarray = (parts != parts[0, 0]).astype(np.uint8)[1:, 1:-1]
    return whole
