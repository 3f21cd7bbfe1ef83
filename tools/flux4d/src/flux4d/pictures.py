"""Pictures to look at: truth, render, depth and motion side by side, and LiDAR points over an image."""

from pathlib import Path

import cv2
import numpy as np
from recon4d.files import atomic_path
from torch import Tensor

from flux4d.rendering import MAX_FLOW, render


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write RGB uint8 (H, W, 3) as PNG, atomically."""
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), np.ascontiguousarray(image[..., ::-1]))


def bytes_of(image: Tensor) -> np.ndarray:
    """Colours in [0, 1] as uint8."""
    return (image.detach().clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()


def depth_colours(depth: np.ndarray, near: float = 3.0, far: float = 100.0) -> np.ndarray:
    """Depth (...,) in metres as RGB uint8 (..., 3), by its logarithm, near is bright; black where it is not positive."""
    share = 1 - np.clip(np.log(np.maximum(depth, near) / near) / np.log(far / near), 0, 1)
    flat = np.round(255 * share).astype(np.uint8).reshape(-1, 1)
    colours = cv2.applyColorMap(flat, cv2.COLORMAP_TURBO)[:, 0, ::-1].reshape(*depth.shape, 3)
    return np.where((depth > 0)[..., None], colours, 0).astype(np.uint8)


def flow_colours(flow: np.ndarray, top: float = MAX_FLOW) -> np.ndarray:
    """Motion on the image (..., 2) as RGB uint8: hue is the direction (red is to the right), brightness the speed."""
    speed = np.linalg.norm(flow, axis=-1)
    hue = np.round(np.degrees(np.arctan2(flow[..., 1], flow[..., 0])) % 360 / 2)
    hsv = np.stack([hue % 180, np.full_like(hue, 255), np.round(255 * np.clip(speed / top, 0, 1))], -1).astype(np.uint8)
    return cv2.cvtColor(hsv.reshape(1, -1, 3), cv2.COLOR_HSV2RGB).reshape(*flow.shape[:-1], 3)


def comparison(gaussians, sample, frame: int) -> np.ndarray:
    """Truth over depth, render over motion, of one frame of a sample."""
    from flux4d.training import some_views

    shown = render(gaussians, some_views(sample.views, [frame]), flow=True)
    truth, image = bytes_of(sample.images[frame]), bytes_of(shown.colour[0])
    depth = depth_colours(shown.depth[0].cpu().numpy() * (shown.alpha[0] > 0.5).cpu().numpy())
    flow = flow_colours(shown.flow[0].cpu().numpy(), 5.0)
    return np.vstack([np.hstack([truth, image]), np.hstack([depth, flow])])


def overlay(image: np.ndarray, pixels: np.ndarray, depth: np.ndarray, size: int = 1) -> np.ndarray:
    """Points on an image (H, W, 3) uint8: pixels (N, 2), coloured by depth (N,), far ones below near ones."""
    out = image.copy()
    for i in np.argsort(-depth):
        x, y = pixels[i].astype(int)
        out[max(y - size + 1, 0) : y + size, max(x - size + 1, 0) : x + size] = depth_colours(depth[i : i + 1])[0]
    return out
