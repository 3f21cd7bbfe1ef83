"""Drawing: a head shaded in grey, dots on landmarks, pictures side by side."""

from pathlib import Path

import cv2
import numpy as np
import torch
from recon4d import cameras, images, mesh
from recon4d.head import HeadModel

GREEN, RED = (0, 220, 0), (230, 30, 30)  # detected or true landmarks, and the model's


def dot(image: np.ndarray, points: np.ndarray, colour: tuple[int, int, int], radius: float = 1.25) -> None:
    """Draw points (n, 2), pixels, into an image (H, W, 3) uint8; those that are NaN or far outside are left out."""
    near = np.isfinite(points).all(1) & (np.abs(points) < 1e5).all(1)
    for x, y in points[near]:
        cv2.circle(image, (round((x - 0.5) * 8), round((y - 0.5) * 8)), round(8 * radius), colour, -1, cv2.LINE_AA, 3)


def shaded(
    head: HeadModel, vertices: torch.Tensor, K: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Grey shading (H, W, 3) in [0, 1] and mask (H, W) of a mesh (1, V, 3) in camera space, lit from the camera."""
    camera = cameras.Camera(torch.from_numpy(K), torch.eye(4), size[1], size[0])
    rast = mesh.rasterize(camera.clip(vertices), head.faces, size)
    facing = mesh.vertex_normals(vertices, head.faces)[..., 2:].neg().clamp(0, 1)
    grey = 0.25 + 0.7 * mesh.interpolate(facing.contiguous(), rast, head.faces)[0]
    return grey.expand(-1, -1, 3).numpy(), rast.mask[0].numpy()


def contact_sheet(path: Path, pictures: list[np.ndarray], columns: int = 4, width: int = 320) -> None:
    """Pictures (H, W, 3) uint8 RGB side by side in a PNG."""
    small = [
        cv2.resize(p, (width, max(1, round(p.shape[0] * width / p.shape[1]))), interpolation=cv2.INTER_AREA)
        for p in pictures
    ]
    blank = np.zeros_like(small[0])
    small += [blank] * (-len(small) % columns)
    images.write_png(path, np.vstack([np.hstack(small[i : i + columns]) for i in range(0, len(small), columns)]))
