"""A flash capture on disk: poses, pictures and masks, in the layout of docs/formats.md."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError, cameras, images, picture_folders
from recon4d.cameras import Camera
from torch import Tensor

from eyeball_relight import transforms
from eyeball_relight.transforms import Transforms

OPTIONAL = ("hair_mask", "leye_mask", "reye_mask")  # folders that may be missing
HELD_OUT = 10  # every so many-th frame is for validation


def held_out(n: int) -> list[int]:
    """Which of n views are for validation: every tenth, beginning with the sixth; the middle one of fewer than six.

    Not the first, which lies at the end of the camera's path, where there are views on one side only.
    """
    return list(range(min(HELD_OUT // 2, n // 2), n, HELD_OUT))


@dataclass(frozen=True, eq=False)
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
        """The other views."""
        return sorted(set(range(len(self))) - set(self.held_out))


def read_poses(folder: Path) -> tuple[list[str], Camera]:
    """Names of the frames and the camera of `transforms.json`, or of `transforms_aligned.json` where that is missing.

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
    found = transforms.read(path)
    rotation = found.poses[:, :3, :3]
    off = (rotation @ rotation.transpose(1, 2) - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
    bad = (~(off < 1e-2) | ~found.poses.isfinite().all(-1).all(-1)).nonzero()[:, 0].tolist()
    if bad:
        raise InputError(
            f"{path}: transform_matrix of frame {bad[0]} ({found.files[bad[0]]}) is not a rotation and a position"
        )
    to_world = found.poses if aligned else cameras.to_ngp(cameras.from_opengl(found.poses), scale=1.0, offset=0.0)
    camera = Camera(found.K.float(), torch.linalg.inv(to_world).float(), found.width, found.height)
    return list(map(transforms.stem, found.files)), camera


def write_poses(folder: Path, files: list[str], camera: Camera) -> None:
    """Write `transforms.json`, the inverse of `read_poses`."""
    nerf = cameras.from_ngp(torch.linalg.inv(camera.world_to_camera.double()), scale=1.0, offset=0.0)
    poses = cameras.to_opengl(nerf)
    transforms.write(folder / "transforms.json", Transforms(files, poses, camera.K, camera.width, camera.height))


def read_stack(folder: Path, names: tuple[str, ...], camera: Camera, channels: int) -> Tensor:
    """The pictures of a folder (N, H, W, 3), or its masks (N, H, W), as uint8.

    A picture is taken as it is stored where that has the size of the camera, else turned as EXIF says.

    Raises:
        InputError: one is missing, not readable, or of another size than `camera`.
    """
    there = picture_folders.open_folder(folder)
    paths = []
    for stem in names:
        path = picture_folders.find(there, stem)
        if path is None:
            raise InputError(f"{folder} has no picture {stem} that transforms.json names; add it")
        paths.append(path)
    shape = (camera.height, camera.width) if channels == 1 else (camera.height, camera.width, channels)
    out: np.ndarray | None = None
    for i, path in enumerate(paths):
        upright = images.size(path) != (camera.width, camera.height)
        image = images.read(path, upright=upright) if channels == 3 else images.read_mask(path, upright=upright)
        if image.shape != shape:
            raise InputError(
                f"{path} has {image.shape[1]}x{image.shape[0]} pixels and transforms.json says "
                f"{camera.width}x{camera.height}; scale one of them"
            )
        out = np.empty((len(paths), *shape), np.uint8) if out is None else out
        out[i] = image
    return torch.from_numpy(out)


def free_bytes() -> float:
    """Memory that the system says is free; any amount where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return min(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, IndexError):
        return float("inf")


def read(folder: str | Path, log: Callable[[str], None]) -> Capture:
    """Read a capture whole. Folders that are missing mean zeros, which `log` says.

    Raises:
        InputError: no poses, no pictures, no masks, a picture of another size, eye masks that overlap.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a capture, for example one of eyeball-relight synth")
    stems, camera = read_poses(folder)
    names = tuple(stems)
    for needed in ("image", "mask"):
        if not (folder / needed).is_dir():
            raise InputError(f"{folder} has no folder {needed}/; a capture needs pictures and masks of the head")
    absent = [name for name in OPTIONAL if not (folder / name).is_dir()]
    if absent:
        log(f"{folder} has no {', '.join(absent)}: taken as zeros")
    needed_bytes = len(names) * camera.width * camera.height * (3 + 2 + len(OPTIONAL))
    if needed_bytes > free_bytes():
        raise InputError(
            f"{folder} has {len(names)} views of {camera.width}x{camera.height} pixels, which need "
            f"{needed_bytes / 2**30:.1f} GiB; {free_bytes() / 2**30:.1f} GiB are free: make the pictures smaller"
        )
    image, mask = (read_stack(folder / name, names, camera, n) for name, n in (("image", 3), ("mask", 1)))
    hair, left, right = (
        torch.zeros_like(mask) if name in absent else read_stack(folder / name, names, camera, 1) for name in OPTIONAL
    )
    both = (left.gt(127) & right.gt(127)).sum((1, 2))
    if bool((both > 0).any()):
        i = int(both.argmax())
        raise InputError(
            f"{folder}: leye_mask and reye_mask of {names[i]} overlap in {int(both[i])} pixels; a pixel sees one eye"
        )
    if not bool(mask.gt(127).any()):
        raise InputError(f"{folder}/mask is black everywhere; white is the head")
    fitted = folder / "specular_bfm"
    specular = read_stack(fitted, names, camera, 1) if fitted.is_dir() else None
    return Capture(folder, names, camera, image, mask, hair, left, right, specular)
