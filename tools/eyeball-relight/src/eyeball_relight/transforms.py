"""A capture's `transforms.json`: frames of one pinhole camera. Other programs' are read by `recon4d.formats.nerf`."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from recon4d import InputError, cameras, images, picture_folders
from recon4d.files import write_text
from recon4d.formats import nerf, shots
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Transforms:
    """N frames.

    Attributes:
        files: pictures as the file names them.
        poses: (N, 4, 4) float64, the matrices as they stand in the file: camera-to-world, usually of OpenGL's axes.
        K: (3, 3) float64, pixels. width, height: of the pictures.
    """

    files: list[str]
    poses: Tensor
    K: Tensor
    width: int
    height: int


def stem(file: str) -> str:
    """A frame's name: its file without folders and without the suffix of a picture."""
    return PurePosixPath(picture_folders.without_suffix(file.replace("\\", "/"))).name


def read(path: Path) -> Transforms:
    """Read and check the file.

    Raises:
        InputError: missing or broken, missing keys, fewer than two frames, numbers that are no camera, a lens or
            several cameras, a frame that is named twice.
    """

    def size_of(name: str) -> tuple[int, int]:
        found = picture_folders.find(picture_folders.open_folder(path.parent / "image"), stem(name))
        if found is None:
            raise InputError(f"{path} has no w and h, and its picture {name} is not in image/; add them")
        return images.size(found)

    found = nerf.read(path, size_of)
    if len(found) < 2:
        raise InputError(f"{path} must hold at least two frames with 4x4 transform_matrix, not {len(found)}")
    for shot in found:
        shots.check(shot, path)
    first = found[0].camera
    if any(not shot.camera.lens.straight for shot in found):
        raise InputError(f"{path} has a lens that distorts; bring the capture in with eyeball-relight import")
    if any(
        (shot.camera.width, shot.camera.height) != (first.width, first.height)
        or not np.allclose(shot.camera.K, first.K, rtol=0, atol=1e-3)
        for shot in found
    ):
        raise InputError(f"{path} has several cameras; bring the capture in with eyeball-relight import")
    files = [shot.file for shot in found]
    if len(set(map(stem, files))) < len(files):
        raise InputError(f"{path} names a file twice; every frame needs a name of its own")
    poses = cameras.to_opengl(torch.from_numpy(np.stack([shot.world_to_camera for shot in found])))
    return Transforms(files, poses, torch.from_numpy(first.K), first.width, first.height)


def write(path: Path, transforms: Transforms) -> None:
    """Write the file, atomically."""
    K = transforms.K
    data: dict[str, object] = {"w": transforms.width, "h": transforms.height}
    data |= {"fl_x": float(K[0, 0]), "fl_y": float(K[1, 1]), "cx": float(K[0, 2]), "cy": float(K[1, 2])}
    frames = [{"file_path": f, "transform_matrix": p.tolist()} for f, p in zip(transforms.files, transforms.poses)]
    write_text(path, json.dumps(data | {"frames": frames}, indent=1) + "\n")
