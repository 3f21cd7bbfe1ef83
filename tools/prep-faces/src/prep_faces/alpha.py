"""Soft edges: from a cut at reduced size to alpha and foreground colours at full size."""

import cv2
import numpy as np

from prep_faces.grabcut import FACE_PIXELS, Cut
from prep_faces.guided import guided_filter

BAND = 0.035  # half width of the soft edge, in face widths


def refine(image: np.ndarray, cut: Cut, face_width: float) -> np.ndarray:
    """Soft alpha (H, W) float32 at the size of `image` (H, W, 3) uint8, its edge following the image's.

    A guided filter acts in a narrow band along the outline; inside the band alpha is 1, outside it is 0.
    """
    height, width = image.shape[:2]
    alpha = np.zeros((height, width), np.float32)
    scales = np.diag(cut.to_small[:, :2])
    low = np.floor(-cut.to_small[:, 2] / scales).astype(int)
    size = np.rint(np.array(cut.matte.shape[::-1]) / scales).astype(int)
    part = np.s_[low[1] : min(low[1] + size[1], height), low[0] : min(low[0] + size[0], width)]
    guide: np.ndarray = image[part].astype(np.float32) / 255
    rows, columns = guide.shape[:2]
    coarse = cv2.resize(cut.matte, (columns, rows), interpolation=cv2.INTER_LINEAR)
    # At most twice the resolution of the cut is filtered (He and Sun 2015, Fast guided filter, would go lower).
    factor = min(1.0, 2.2 * FACE_PIXELS / face_width)
    if factor < 1:
        small = (max(1, round(columns * factor)), max(1, round(rows * factor)))
        guide = cv2.resize(guide, small, interpolation=cv2.INTER_AREA)
    values = cv2.resize(coarse, guide.shape[1::-1], interpolation=cv2.INTER_AREA)
    band = max(1, round(BAND * face_width * factor))
    soft = guided_filter(guide, values, band, 1e-4)
    soft = np.clip((soft - 0.08) / 0.84, 0, 1)  # the filter's tails reach far
    core = (values > 0.5).astype(np.uint8)
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1, 2 * band + 1))
    soft = np.where(cv2.erode(core, brush) > 0, 1.0, np.where(cv2.dilate(core, brush) > 0, soft, 0.0))
    alpha[part] = cv2.resize(soft.astype(np.float32), (columns, rows), interpolation=cv2.INTER_LINEAR)
    return alpha


def foreground_colors(image: np.ndarray, alpha: np.ndarray, radius: int) -> np.ndarray:
    """What the head's own colour is where it is mixed with the background: (H, W, 3) uint8.

    Blur fusion (Forte and Pitie 2021, Approximate fast foreground colour estimation, equations 5-7) in windows of
    4 `radius`, then of `radius`, where 0 < alpha < 1; elsewhere the image is left as it is.
    """
    mixed = (alpha > 0) & (alpha < 1)
    if not mixed.any():
        return image
    ys, xs = np.nonzero(mixed)
    reach = 4 * radius
    part = np.s_[max(ys.min() - reach, 0) : ys.max() + reach + 1, max(xs.min() - reach, 0) : xs.max() + reach + 1]
    color = image[part].astype(np.float32)
    cover = alpha[part]
    front = back = color
    for size in (reach, radius):
        window = (2 * size + 1, 2 * size + 1)
        weight = cv2.blur(cover, window)[..., None]
        front_mean = cv2.blur(front * cover[..., None], window) / (weight + 1e-4)
        back = cv2.blur(back * (1 - cover[..., None]), window) / (1 - weight + 1e-4)
        front = front_mean + cover[..., None] * (color - cover[..., None] * front_mean - (1 - cover[..., None]) * back)
    result = image.copy()
    chosen = mixed[part]
    result[part][chosen] = np.rint(np.clip(front, 0, 255))[chosen].astype(np.uint8)
    return result
