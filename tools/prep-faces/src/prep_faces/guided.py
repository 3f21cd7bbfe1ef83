"""The guided filter: smoothing that follows the edges of a picture."""

import cv2
import numpy as np


def guided_filter(guide: np.ndarray, values: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Edge-preserving smoothing of `values` (H, W) along the edges of `guide` (H, W, 3), both float32 in [0, 1].

    He, Sun and Tang 2013, Guided image filtering, equations 14-16 (colour guide); windows of 2 radius + 1.
    """
    slope, offset = linear_model(guide, values, radius, eps)
    smooth: np.ndarray = np.clip(np.einsum("hwc,hwc->hw", slope, guide) + offset, 0, 1)
    return smooth


def linear_model(guide: np.ndarray, values: np.ndarray, radius: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """How `values` (H, W) follow the colours of `guide` (H, W, 3) around each pixel: slopes (H, W, 3), offsets (H, W).

    The means of equation 15; at a higher resolution they give values of that resolution (He and Sun 2015, Fast guided
    filter).
    """

    def mean(array: np.ndarray) -> np.ndarray:
        return cv2.blur(array, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_values = mean(guide), mean(values)
    covariance = [mean(guide[..., i] * values) - mean_guide[..., i] * mean_values for i in range(3)]
    product = {
        (i, j): mean(guide[..., i] * guide[..., j]) - mean_guide[..., i] * mean_guide[..., j] + (eps if i == j else 0)
        for i in range(3)
        for j in range(i, 3)
    }
    rr, rg, rb, gg, gb, bb = (product[key] for key in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
    # The inverse of a symmetric 3x3 matrix by cofactors: far faster than a general solver on this many.
    c00, c01, c02 = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    c11, c12, c22 = rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg
    determinant = rr * c00 + rg * c01 + rb * c02
    rows = ((c00, c01, c02), (c01, c11, c12), (c02, c12, c22))
    slope = np.stack([sum(c * v for c, v in zip(row, covariance)) / determinant for row in rows], axis=-1)
    offset = mean_values - np.einsum("hwc,hwc->hw", slope, mean_guide)
    return mean(slope), mean(offset)
