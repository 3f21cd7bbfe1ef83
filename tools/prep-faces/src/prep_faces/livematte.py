"""A head's matte while frames come, in a few milliseconds: selfie segmentation, and a guided filter at half size.

As `clipmatte.live_cover`, for square pictures that a head fills, with less resolution where it does not show.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from prep_faces import networks
from prep_faces.affine import head_motion, warp
from prep_faces.guided import linear_model
from prep_faces.headshape import HeadShape
from prep_faces.trimap import below_the_head

SMALL = 128  # pixels of the side that are filtered
CUT = 64  # and where the cut below the head is drawn
KEPT = 0.4  # of the answer on the frame before, moved with the head


@dataclass(frozen=True, eq=False)
class Before:
    """What the frame before left.

    person: (SMALL, SMALL) float32. anchors: (k, 2) pixels of the picture. looked: whether the network saw that frame.
    """

    person: np.ndarray
    anchors: np.ndarray
    looked: bool


def live_matte(
    picture: np.ndarray, shape: HeadShape, before: Before | None, keep: str = "head"
) -> tuple[np.ndarray, Before]:
    """Alpha (S, S) uint8 of a picture (S, S, 3) uint8 RGB, and what the next frame needs.

    The network sees every second frame; to the others its answer is moved with the head.

    Args:
        shape: of the head, in pixels of the picture. before: of the same picture's window.
        keep: as for `matte.write_mattes`.
    """
    side = len(picture)
    scale = SMALL / side
    look = before is None or not before.looked
    person: np.ndarray = np.zeros((SMALL, SMALL), np.float32)
    if look:
        person = cv2.resize(networks.person(picture), (SMALL, SMALL), interpolation=cv2.INTER_AREA)
    if before is not None:
        moved = warp(before.person, head_motion(before.anchors * scale, shape.anchors * scale), SMALL, SMALL)
        person = (1 - KEPT) * person + KEPT * moved if look else moved
    guide = cv2.resize(picture, (SMALL, SMALL), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    slope, offset = linear_model(guide, person.astype(np.float32), 2, 1e-3)
    both = cv2.resize(np.dstack([slope, offset]), (side, side), interpolation=cv2.INTER_LINEAR)
    cover = np.einsum("hwc,hwc->hw", both[..., :3], picture.astype(np.float32) / 255) + both[..., 3]
    to_small = np.array([[CUT / side, 0, 0], [0, CUT / side, 0]])
    kept = cv2.resize(below_the_head(shape, to_small, (CUT, CUT), keep), (side, side), interpolation=cv2.INTER_LINEAR)
    alpha = np.clip((cover - 0.02) / 0.96, 0, 1) * kept
    matte: np.ndarray = np.rint(255 * np.where(alpha < 0.012, 0, alpha)).astype(np.uint8)
    return matte, Before(person.astype(np.float32), shape.anchors, look)
