"""Points from depth maps, where there is no LiDAR or beside it."""

from pathlib import Path

import cv2
import numpy as np
import torch
from recon4d import InputError, images
from recon4d.cameras import unproject
from recon4d.files import read_npy
from torch import Tensor

from flux4d.clips import Clip

LIMIT = 120.0  # metres; farther pixels are left to the sky


def read(path: Path) -> np.ndarray:
    """Depth (H, W) in metres along the optical axis, from `.npy`, or a 16-bit `.png` in millimetres; 0 is unknown."""
    if path.suffix == ".npy":
        depth = read_npy(path)
    else:
        images.size(path)  # refuses what is too large, or none
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None or image.dtype != np.uint16:
            raise InputError(f"{path} is not a 16-bit PNG; write depth in millimetres, or metres as npy")
        depth = image / 1000.0
    if depth.ndim != 2 or depth.size == 0 or depth.dtype.kind not in "fiu":
        raise InputError(f"{path} has shape {depth.shape}; give one depth per pixel, (height, width)")
    return np.where(np.isfinite(depth) & (depth > 0) & (depth < 1e9), depth, 0).astype(np.float32)


def _place(folder: Path, clip: Clip, picture: int) -> Path:
    return folder / clip.entry["scene"] / clip.name_of_camera(picture) / clip.image_file(picture).stem


def find(folder: Path, clip: Clip, picture: int) -> Path | None:
    """The depth map of a picture: FOLDER/SCENE/CAMERA/<image's stem>.npy or .png."""
    for suffix in (".npy", ".png"):
        path = Path(f"{_place(folder, clip, picture)}{suffix}")
        if path.is_file():
            return path
    return None


def of_picture(folder: Path, clip: Clip, picture: int) -> Tensor | None:
    """The depth map (H, W) of a picture at the clip's image size; None where there is none."""
    path = find(folder, clip, picture)
    if path is None:
        return None
    # nearest: between a car and the house behind it there is nothing
    depth = cv2.resize(read(path), (clip.width, clip.height), interpolation=cv2.INTER_NEAREST)
    return torch.from_numpy(depth)


def points(folder: Path, clip: Clip, stride: int) -> list[tuple[Tensor, Tensor]]:
    """Per input picture, points (N, 3) in the clip's frame and their colours (N, 3): every `stride`-th row and column.

    Raises InputError when an input picture has no depth map.
    """
    out = []
    for frame in clip.input:
        depth = of_picture(folder, clip, frame)
        if depth is None:
            path = f"{_place(folder, clip, frame)}.npy"
            raise InputError(f"{path} does not exist; give a depth map for every input frame")
        row, column = torch.meshgrid(
            torch.arange(stride // 2, clip.height, stride), torch.arange(stride // 2, clip.width, stride), indexing="ij"
        )
        near = (depth[row, column] > 0) & (depth[row, column] < LIMIT)
        row, column = row[near], column[near]
        seen = clip.camera(frame)
        places = unproject(torch.stack([column, row], -1) + 0.5, depth[row, column], seen.K, seen.world_to_camera)
        out.append((places, clip.images[frame][row, column].float() / 255))
    return out


def samples(folder: Path, clip: Clip) -> list[tuple[Tensor, Tensor]]:
    """Per picture, pixels and depths to compare renders with; none for those without a map."""
    out = []
    for frame in range(len(clip.times)):
        depth = of_picture(folder, clip, frame)
        flat = torch.zeros(0) if depth is None else depth.flatten()
        (pixels,) = ((flat > 0) & (flat < LIMIT)).nonzero(as_tuple=True)
        out.append((pixels, flat[pixels]))
    return out
