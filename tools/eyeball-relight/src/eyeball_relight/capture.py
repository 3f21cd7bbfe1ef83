"""A flash capture on disk: poses, pictures and masks, in the layout of docs/formats.md."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError, cameras
from recon4d.cameras import Camera
from recon4d.files import write_text
from torch import Tensor

from eyeball_relight import images

FOLDERS = ("image", "mask", "hair_mask", "leye_mask", "reye_mask", "specular_bfm")
HELD_OUT = 10  # every so many-th frame is for validation


def held_out(n: int) -> list[int]:
    """Which of n views are for validation: every tenth, beginning with the sixth; the middle one of fewer than six.

    Not the first, which lies at the end of the camera's path, where there are views on one side only.
    """
    return list(range(min(HELD_OUT // 2, n // 2), n, HELD_OUT))


@dataclass(frozen=True)
class Capture:
    """N views that share intrinsics, in the space that models live in. Values are uint8, 255 is 1.

    names: stems of the files. camera: K (3, 3), world_to_camera (N, 4, 4).
    image: (N, H, W, 3). mask, hair, left, right: (N, H, W). specular: (N, H, W), or None where nothing was fitted.
    """

    folder: Path
    names: tuple[str, ...]
    camera: Camera
    image: Tensor
    mask: Tensor
    hair: Tensor
    left: Tensor
    right: Tensor
    specular: Tensor | None

    def __len__(self) -> int:
        return len(self.names)

    def view(self, i: int) -> Camera:
        """The camera of one view."""
        return Camera(self.camera.K, self.camera.world_to_camera[i], self.camera.width, self.camera.height)

    @property
    def held_out(self) -> list[int]:
        """Views for validation."""
        return held_out(len(self))

    @property
    def trained(self) -> list[int]:
        return sorted(set(range(len(self))) - set(self.held_out))


def read_poses(folder: Path) -> tuple[list[str], Camera]:
    """File paths and the camera of `transforms.json`, or of `transforms_aligned.json` where that is missing.

    Poses of transforms.json are NeRF camera-to-world matrices (OpenGL axes), and go through instant-ngp's permutation
    of the axes at scale 1. Poses of transforms_aligned.json are camera-to-world in the model's space, OpenCV axes.

    Raises:
        InputError: a missing or broken file, missing keys, matrices that are not poses.
    """
    path = folder / "transforms.json"
    aligned = not path.is_file() and (folder / "transforms_aligned.json").is_file()
    if aligned:
        path = folder / "transforms_aligned.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a folder with transforms.json (eyeball-relight import makes it)")
    try:
        data = json.loads(path.read_text(errors="replace"))
        width, height = int(data["w"]), int(data["h"])
        numbers = [float(data[key]) for key in ("fl_x", "fl_y", "cx", "cy")]
        files = [str(frame["file_path"]) for frame in data["frames"]]
        pose = torch.tensor([frame["transform_matrix"] for frame in data["frames"]], dtype=torch.float64)
    except (ValueError, TypeError, KeyError) as error:
        missing = f"the key {error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path} is not a readable transforms.json: {missing}; write it again") from error
    if len(files) < 2 or pose.shape[1:] != (4, 4):
        raise InputError(f"{path} must hold at least two frames with 4x4 transform_matrix, not {tuple(pose.shape)}")
    if not all(math.isfinite(x) for x in numbers) or min(numbers[:2]) <= 0 or min(width, height) < 1:
        raise InputError(f"{path}: w, h, fl_x, fl_y must be positive and cx, cy finite; correct them")
    rotation = pose[:, :3, :3]
    off = (rotation @ rotation.transpose(1, 2) - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
    bad = (~(off < 1e-2) | ~pose.isfinite().all(-1).all(-1)).nonzero()[:, 0].tolist()
    if bad:
        raise InputError(
            f"{path}: transform_matrix of frame {bad[0]} ({files[bad[0]]}) is not a rotation and a position"
        )
    fx, fy, cx, cy = numbers
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    to_world = pose if aligned else cameras.to_ngp(cameras.from_opengl(pose), scale=1.0, offset=0.0)
    return files, Camera(K, torch.linalg.inv(to_world).float(), width, height)


def write_poses(folder: Path, files: list[str], camera: Camera) -> None:
    """Write `transforms.json`, the inverse of `read_poses`."""
    nerf = cameras.from_ngp(torch.linalg.inv(camera.world_to_camera.double()), scale=1.0, offset=0.0)
    pose = cameras.to_opengl(nerf)
    K = camera.K
    data = {
        "w": camera.width,
        "h": camera.height,
        "fl_x": float(K[0, 0]),
        "fl_y": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
        "frames": [{"file_path": f, "transform_matrix": p.tolist()} for f, p in zip(files, pose)],
    }
    write_text(folder / "transforms.json", json.dumps(data, indent=1) + "\n")


def find(folder: Path, stem: str) -> Path | None:
    """The image called `stem` in a folder, with any usual suffix."""
    for suffix in (".png", ".jpg", ".jpeg", ".JPG", ".PNG"):
        if (folder / (stem + suffix)).is_file():
            return folder / (stem + suffix)
    return None


def read(folder: Path, log: Callable[[str], None]) -> Capture:
    """Read a capture whole. Folders that are missing mean zeros, which `log` says.

    Raises:
        InputError: no poses, no pictures, no masks, a picture of another size, eye masks that overlap.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a capture, for example one of eyeball-relight synth")
    files, camera = read_poses(folder)
    names = tuple(Path(file).stem if Path(file).suffix else Path(file).name for file in files)
    if len(set(names)) < len(names):
        raise InputError(f"{folder}/transforms.json names a file twice; every frame needs a name of its own")
    for needed in ("image", "mask"):
        if not (folder / needed).is_dir():
            raise InputError(f"{folder} has no folder {needed}/; a capture needs pictures and masks of the head")
    absent = [name for name in FOLDERS[2:5] if not (folder / name).is_dir()]
    if absent:
        log(f"{folder} has no {', '.join(absent)}: taken as zeros")

    def stack(name: str, channels: int) -> Tensor | None:
        if not (folder / name).is_dir():
            return None
        out = np.empty((len(names), camera.height, camera.width, channels), np.uint8)
        for i, stem in enumerate(names):
            path = find(folder / name, stem)
            if path is None:
                raise InputError(f"{folder / name} has no picture {stem} that transforms.json names; add it")
            image = images.read(path, channels)
            if image.shape[:2] != out.shape[1:3]:
                raise InputError(
                    f"{path} has {image.shape[1]}x{image.shape[0]} pixels and transforms.json says "
                    f"{camera.width}x{camera.height}; scale one of them"
                )
            out[i] = image * 255 + 0.5
        return torch.from_numpy(out if channels == 3 else out[..., 0])

    image, mask = stack("image", 3), stack("mask", 1)
    zeros = torch.zeros_like(mask)
    hair, left, right = (x if (x := stack(name, 1)) is not None else zeros for name in FOLDERS[2:5])
    both = ((left > 127) & (right > 127)).sum((1, 2))
    if bool((both > 0).any()):
        i = int(both.argmax())
        raise InputError(
            f"{folder}: leye_mask and reye_mask of {names[i]} overlap in {int(both[i])} pixels; a pixel sees one eye"
        )
    if not bool((mask > 127).any()):
        raise InputError(f"{folder}/mask is black everywhere; white is the head")
    return Capture(folder, names, camera, image, mask, hair, left, right, stack("specular_bfm", 1))
