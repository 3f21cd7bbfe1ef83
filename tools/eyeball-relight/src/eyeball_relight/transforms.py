"""`transforms.json`: frames of one camera as NeRF, instant-ngp and nerfstudio write them. The tool's only reader."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError
from recon4d.files import read_json, write_text
from recon4d.images import MOST_PIXELS
from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg")  # suffixes of pictures; anything else after a dot belongs to the name
LENS = ("k1", "k2", "p1", "p2", "k3")


@dataclass(frozen=True, eq=False)
class Transforms:
    """N frames.

    Attributes:
        files: pictures as the file names them.
        poses: (N, 4, 4) float64, the matrices as they stand in the file: camera-to-world, usually of OpenGL's axes.
        K: (3, 3) float64, pixels. width, height: of the pictures.
        distortion: (5,) OpenCV's k1, k2, p1, p2, k3; zeros where the file has none.
    """

    files: list[str]
    poses: Tensor
    K: Tensor
    width: int
    height: int
    distortion: np.ndarray


def stem(file: str) -> str:
    """A frame's name: its file without folders and without the suffix of a picture."""
    path = Path(file)
    return path.stem if path.suffix.lower() in PICTURES else path.name


def read(path: Path) -> Transforms:
    """Read and check the file.

    Raises:
        InputError: missing or broken, missing keys, fewer than two frames, numbers that are no camera, a frame that
            is named twice.
    """
    try:
        data = read_json(path)
        width, height = int(data["w"]), int(data["h"])
        fx, fy, cx, cy = pinhole = [float(data[key]) for key in ("fl_x", "fl_y", "cx", "cy")]
        files = [str(frame["file_path"]) for frame in data["frames"]]
        poses = torch.tensor([frame["transform_matrix"] for frame in data["frames"]], dtype=torch.float64)
        distortion = np.array([float(data.get(key, 0)) for key in LENS])
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        missing = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)[:200]
        raise InputError(f"{path} is not a readable transforms.json: {missing}; write it again") from error
    if len(files) < 2 or poses.shape[1:] != (4, 4):
        raise InputError(f"{path} must hold at least two frames with 4x4 transform_matrix, not {tuple(poses.shape)}")
    if not np.isfinite([*pinhole, *distortion]).all() or min(fx, fy) <= 0 or min(width, height) < 1:
        raise InputError(f"{path}: w, h, fl_x, fl_y must be positive, cx, cy and the lens finite; correct them")
    if width * height > MOST_PIXELS:
        raise InputError(f"{path} is of too large pictures ({width}x{height} pixels); make them smaller")
    if len(set(map(stem, files))) < len(files):
        raise InputError(f"{path} names a file twice; every frame needs a name of its own")
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    return Transforms(files, poses, K, width, height, distortion)


def write(path: Path, transforms: Transforms) -> None:
    """Write the file, atomically; the lens only where it distorts."""
    K = transforms.K
    data: dict[str, object] = {"w": transforms.width, "h": transforms.height}
    data |= {"fl_x": float(K[0, 0]), "fl_y": float(K[1, 1]), "cx": float(K[0, 2]), "cy": float(K[1, 2])}
    if transforms.distortion.any():
        data |= dict(zip(LENS, transforms.distortion.tolist()))
    frames = [{"file_path": f, "transform_matrix": p.tolist()} for f, p in zip(transforms.files, transforms.poses)]
    write_text(path, json.dumps(data | {"frames": frames}, indent=1) + "\n")
