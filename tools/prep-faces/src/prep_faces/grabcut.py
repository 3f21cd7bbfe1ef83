"""Cutting a head out of one image: GrabCut (Rother et al. 2004) seeded by the head's shape."""

from dataclasses import dataclass

import cv2
import numpy as np

from prep_faces.affine import warp
from prep_faces.headshape import HeadShape, draw_polygon, shape_mask

FACE_PIXELS = 110  # width of the face in the picture that is cut
LARGEST = 340  # longer side of that picture
HAIR = 0.60  # hair reaches at most this far from the skull, in face widths
BESIDE = 0.35  # and from the neck, below the chin
BORDER = 0.30  # of sure background around that


@dataclass(frozen=True)
class Cut:
    """A soft matte of part of an image, at reduced size."""

    matte: np.ndarray  # (h, w) float32 in [0, 1]
    to_small: np.ndarray  # (2, 3) float64: image pixels to pixels of `matte`, centres at +0.5


def reduced_frame(
    shape: HeadShape, height: int, width: int, detail: float = 1.0
) -> tuple[np.ndarray, int, int]:
    """The part of the image that can hold the head, and its reduced size: (to_small (2, 3), h, w).

    `detail` multiplies the resolution; the image is never enlarged.
    """
    outline = np.concatenate(shape.polygons)
    reach = (HAIR + BORDER) * shape.width
    low = np.floor(np.clip(outline.min(0) - reach, 0, [width - 1, height - 1]))
    high = np.ceil(np.clip(outline.max(0) + reach, low + 1, [width, height]))
    scale = min(1.0, detail * FACE_PIXELS / shape.width, detail * LARGEST / float(max(high - low)))
    small_width, small_height = np.maximum(1, np.rint((high - low) * scale)).astype(int)
    scales = np.array([small_width, small_height]) / (high - low)
    return (
        np.array([[scales[0], 0, -low[0] * scales[0]], [0, scales[1], -low[1] * scales[1]]]),
        small_height,
        small_width,
    )


def seeds(shape: HeadShape, to_small: np.ndarray, height: int, width: int) -> np.ndarray:
    """GrabCut's labels (height, width) uint8 for a reduced picture: sure and probable head and background."""
    scale = float(np.sqrt(abs(np.linalg.det(to_small[:, :2])))) * shape.width  # pixels per face width
    head = shape_mask(shape, to_small, height, width)
    outside = (
        cv2.distanceTransform(1 - head, cv2.DIST_L2, 5) / scale if head.any() else np.full(head.shape, 9.0)
    )
    padded = cv2.copyMakeBorder(head, 1, 1, 1, 1, cv2.BORDER_REPLICATE)  # the image's edge is no outline
    inside = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1] / scale

    ys, xs = np.mgrid[0:height, 0:width] + 0.5
    offset = (np.stack([xs, ys], -1) - to_small[:, 2]) @ np.linalg.inv(to_small[:, :2]).T - shape.middle
    above = offset @ shape.up / shape.width  # face widths above the eyes

    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    labels[(outside < np.where(above < -shape.chin, BESIDE, HAIR)) & (above > -shape.neck)] = cv2.GC_PR_BGD
    # Hair thickens the skull above the eyes, less so at the sides.
    labels[outside < np.clip(0.05 + 0.15 * above, 0.0, 0.15)] = cv2.GC_PR_FGD
    labels[head > 0] = cv2.GC_PR_FGD
    labels[inside > shape.margin] = cv2.GC_FGD
    face = np.zeros_like(head)
    draw_polygon(face, shape.face, to_small)
    core = cv2.erode(face, np.ones((3, 3), np.uint8), iterations=max(1, round(0.03 * scale)), borderValue=1)
    labels[core > 0] = cv2.GC_FGD
    # The neck may be covered: by a collar, a scarf, long hair.
    labels[(above < -shape.chin) & (labels == cv2.GC_FGD)] = cv2.GC_PR_FGD
    labels[above < -shape.neck] = cv2.GC_BGD
    return labels


def cut(image: np.ndarray, shape: HeadShape) -> Cut:
    """Cut the head out of (H, W, 3) uint8 RGB at reduced size."""
    to_small, height, width = reduced_frame(shape, *image.shape[:2])
    small = warp(image, to_small, height, width)
    labels = seeds(shape, to_small, height, width)
    cv2.setRNGSeed(0)  # GrabCut starts its colour clusters at random
    models = np.zeros((2, 1, 65))
    sure = labels == cv2.GC_FGD
    if sure.any() and (labels == cv2.GC_BGD).any():
        cv2.grabCut(small, labels, None, models[0], models[1], 5, cv2.GC_INIT_WITH_MASK)
    head = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    return Cut(tidy(head, sure).astype(np.float32), to_small)


def tidy(head: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """The connected part of a 0/1 mask that holds most of `sure` (the largest without any), its holes filled."""
    count, parts = cv2.connectedComponents(head, connectivity=4)
    if count < 2:
        return head
    votes = (
        np.bincount(parts[sure & (head > 0)], minlength=count) if sure.any() else np.bincount(parts.ravel())
    )
    votes[0] = 0
    largest = (parts == votes.argmax()).astype(np.uint8) if votes.any() else head
    # Background that does not reach the border of the picture is a hole; the bottom border does not count, since
    # the neck runs into it.
    around = cv2.copyMakeBorder(1 - largest, 1, 0, 1, 1, cv2.BORDER_CONSTANT, value=1)
    _, parts = cv2.connectedComponents(around, connectivity=4)
    return (parts != parts[0, 0]).astype(np.uint8)[1:, 1:-1]
