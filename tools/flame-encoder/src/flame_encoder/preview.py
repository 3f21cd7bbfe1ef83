"""Pictures of a track: the mesh and the landmarks over the frames, as a contact sheet and as a video."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from recon4d import cameras, mesh
from recon4d.files import InputError, atomic_path
from recon4d.formats.track import Track
from recon4d.head import HeadModel

GREEN, RED = (0, 220, 0), (230, 30, 30)  # detected or true landmarks, and the model's


def overlays(head: HeadModel, track: Track, frames: Path, seen: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB with the shaded mesh half over them, its landmarks (red) and the detected (green).

    Args:
        seen: (N, 68, 2) detected landmarks, NaN where there are none.
        rows: which frames.
    """
    width, height = (int(s) for s in track.image_size)
    for i in rows:
        image = cv2.imread(str(frames / track.names[i]))
        if image is None or image.shape[:2] != (height, width):
            raise InputError(
                f"{frames / track.names[i]} is not a readable {width}x{height} image; make the frames again"
            )
        image = image[..., ::-1] / 255.0
        vertices = track.vertices(head, np.array([i]))
        shading, mask = shaded(head, vertices, track.K, (height, width))
        out = np.where(mask[..., None], 0.45 * image + 0.55 * shading, image)
        out = np.ascontiguousarray((out * 255).round().astype(np.uint8))
        model = head.landmarks(vertices)[0] @ torch.from_numpy(track.K).T
        for points, colour in ((seen[i], GREEN), ((model[:, :2] / model[:, 2:]).numpy(), RED)):
            dot(out, points, colour)
        yield out


def dot(image: np.ndarray, points: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw points (n, 2), pixels, into an image (H, W, 3) uint8; those that are NaN or far outside are left out."""
    near = np.isfinite(points).all(1) & (np.abs(points) < 1e5).all(1)
    for x, y in points[near]:
        cv2.circle(image, (round((x - 0.5) * 8), round((y - 0.5) * 8)), 10, colour, -1, cv2.LINE_AA, 3)


def shaded(
    head: HeadModel, vertices: torch.Tensor, K: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Grey shading (H, W, 3) in [0, 1] and mask (H, W) of a mesh (1, V, 3) in camera space, lit from the camera."""
    camera = cameras.Camera(torch.from_numpy(K), torch.eye(4), size[1], size[0])
    rast = mesh.rasterize(camera.clip(vertices), head.faces, size)
    normals = mesh.interpolate(mesh.vertex_normals(vertices, head.faces), rast, head.faces)[0]
    facing = torch.nn.functional.normalize(normals, dim=-1)[..., 2].neg().clamp(0, 1)
    grey = (0.25 + 0.7 * facing).numpy()
    return np.repeat(grey[..., None], 3, -1), rast.mask[0].numpy()


def contact_sheet(path: Path, images: list[np.ndarray], columns: int = 4, width: int = 320) -> None:
    """Images (H, W, 3) uint8 RGB side by side in a PNG."""
    small = [
        cv2.resize(im, (width, round(im.shape[0] * width / im.shape[1])), interpolation=cv2.INTER_AREA) for im in images
    ]
    blank = np.zeros_like(small[0])
    small += [blank] * (-len(small) % columns)
    sheet = np.vstack([np.hstack(small[i : i + columns]) for i in range(0, len(small), columns)])
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), sheet[..., ::-1])
