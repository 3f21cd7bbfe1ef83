"""Colours of the head alone where it is mixed with what is behind it.

Germer, Uelwer, Conrad and Harmeling 2020, Fast multi-level foreground estimation; as there, from one pixel up to the
whole picture, but at each level only for the pixels that are mixed.
"""

import cv2
import numpy as np

from prep_faces.mattekernels import jacobi

REGULARIZATION = 1e-5
SMALL = 32  # pixels of a side, up to which there are
SMALL_ITERATIONS = 10
ITERATIONS = 2
MIXED = 0.004  # of alpha, below a step of 8 bits


def foreground(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The head's own colours (H, W, 3) uint8 of an image (H, W, 3) uint8 where 0 < alpha (H, W) < 1; else the image."""
    mixed = (alpha > MIXED) & (alpha < 1 - MIXED)
    if not mixed.any():
        return image
    ys, xs = np.nonzero(mixed)
    margin = 8
    part = np.s_[
        max(int(ys.min()) - margin, 0) : ys.max() + margin + 1, max(int(xs.min()) - margin, 0) : xs.max() + margin + 1
    ]
    whole, cover = image[part].astype(np.float32), np.clip(alpha[part], 0, 1).astype(np.float32)
    levels: list[tuple[np.ndarray, np.ndarray]] = [(whole, cover)]
    while max(levels[-1][1].shape) > 1:
        h, w = (-(-length // 2) for length in levels[-1][1].shape)
        color, share = (cv2.resize(array, (w, h), interpolation=cv2.INTER_AREA) for array in levels[-1])
        levels.append((color.reshape(h, w, 3), share.reshape(h, w)))
    front: np.ndarray = levels[-1][0]
    back: np.ndarray = front
    for color, share in reversed(levels):
        h, w = share.shape
        front = cv2.resize(front, (w, h), interpolation=cv2.INTER_NEAREST).reshape(h, w, 3)
        back = cv2.resize(back, (w, h), interpolation=cv2.INTER_NEAREST).reshape(h, w, 3)
        np.copyto(front, color, where=(share >= 1 - MIXED)[..., None])
        np.copyto(back, color, where=(share <= MIXED)[..., None])
        rounds = SMALL_ITERATIONS if max(h, w) <= SMALL else ITERATIONS if share is not cover else 1
        here = np.flatnonzero((share > MIXED) & (share < 1 - MIXED))
        if len(here):
            jacobi(color, share, here, front, back, REGULARIZATION, rounds)
    result = image.copy()
    chosen = mixed[part]
    result[part][chosen] = np.rint(np.clip(front, 0, 255))[chosen].astype(np.uint8)
    return result
