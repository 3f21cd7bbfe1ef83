"""A clip in memory: images, cameras, depth samples and LiDAR points, all in the ego frame of its first frame."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError
from recon4d.cameras import project
from torch import Tensor

from flux4d import pandaset


@dataclass(frozen=True)
class Clip:
    """F frames of one camera. Space is the ego frame of the first one, time is seconds since it.

    The epoch and the world's origin are subtracted in float64, so that float32 holds microseconds and micrometres.

    images: (F, H, W, 3) uint8. world_to_camera: (F, 4, 4). K: (3, 3). times: (F,), of the images.
    points: per frame (N_i, 3). point_times: per frame (N_i,). ego_to_world: (4, 4) float64. lidar_times: (F,).
    depths: per frame, pixel numbers (M_i,) row by row and depths (M_i,) in metres of the nearest point in each.
    input, target: positions of frames. start: epoch seconds of time 0.
    """

    name: str
    images: Tensor
    world_to_camera: Tensor
    K: Tensor
    times: Tensor
    points: list[Tensor]
    point_times: list[Tensor]
    ego_to_world: np.ndarray
    lidar_times: Tensor
    depths: list[tuple[Tensor, Tensor]]
    input: list[int]
    target: list[int]
    start: float
    entry: dict[str, Any]

    @property
    def height(self) -> int:
        return self.images.shape[1]

    @property
    def width(self) -> int:
        return self.images.shape[2]


def in_view(points: Tensor, K: Tensor, world_to_camera: Tensor, width: int, height: int) -> tuple[Tensor, ...]:
    """Pixels (N, 2), depth (N,), and whether (N,) points are before the camera and in its image."""
    pixels, depth = project(points, K, world_to_camera)
    # a point in the camera's plane has no pixel
    inside = (depth > 0.1) & (pixels >= 0).all(-1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    return pixels, depth, inside


def depth_samples(points: Tensor, K: Tensor, world_to_camera: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The nearest point in each pixel that has any: pixel numbers (M,) and depths (M,)."""
    pixels, depth, inside = in_view(points, K, world_to_camera, width, height)
    column, row = pixels[inside].long().unbind(-1)
    nearest = torch.full((height * width,), torch.inf).scatter_reduce(0, row * width + column, depth[inside], "amin")
    (found,) = nearest.isfinite().nonzero(as_tuple=True)
    return found, nearest[found]


def file_root(index: dict[str, Any], data_root: str | None) -> Path:
    """Where an index's paths begin: --data-root, else where it was made."""
    root = Path(data_root or index["root"])
    if not root.is_dir():
        raise InputError(f"{root} is not there any more; give the scenes' folder with --data-root")
    return root


def load(
    entry: dict[str, Any],
    root: Path,
    camera: str = "front_camera",
    longer_side: int | None = None,
    lidar: bool = True,
) -> Clip:
    """Read a clip of an index.

    Args:
        longer_side: reduce images to this many pixels.
        lidar: read the points; without, there are none.

    Raises:
        InputError: a camera that the clip lacks, missing or broken files, images of different sizes.
    """
    if camera not in entry["cameras"]:
        raise InputError(f"--camera {camera} is not in the index; it has {', '.join(entry['cameras'])}")
    view = entry["cameras"][camera]
    what = f"the index entry of scene {entry['scene']}"
    lidar_poses, camera_poses = (pandaset.pose_matrices(p, what) for p in (entry["lidar_poses"], view["poses"]))
    ego_to_world = lidar_poses[0]
    world_to_ego = np.linalg.inv(ego_to_world)
    start = float(entry["timestamps"][0])

    images = [pandaset.read_image(root / name) for name in view["images"]]
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{root / view['images'][0]} and the images after it differ in size; copy the scene again")
    height, width = images[0].shape[:2]
    K = torch.from_numpy(pandaset.intrinsics_matrix(view["intrinsics"], what)).float()
    if longer_side is not None and longer_side < max(width, height):
        import cv2

        scale = longer_side / max(width, height)
        size = (max(round(width * scale), 16), max(round(height * scale), 16))
        images = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
        K = K * torch.tensor([[size[0] / width], [size[1] / height], [1.0]])
        width, height = size
    world_to_camera = torch.from_numpy(np.linalg.inv(world_to_ego @ camera_poses)).float()

    points, point_times, depths = [], [], []
    for i, name in enumerate(entry["lidar"]):
        sweep = pandaset.read_points(root / name) if lidar else {"xyz": np.zeros((0, 3)), "t": np.zeros(0)}
        xyz = sweep["xyz"] @ world_to_ego[:3, :3].T + world_to_ego[:3, 3]
        points.append(torch.from_numpy(xyz).float())
        point_times.append(torch.from_numpy(sweep["t"] - start).float())
        depths.append(depth_samples(points[-1], K, world_to_camera[i], width, height))
    return Clip(
        name=f"{entry['scene']}_{entry['frames'][0]:02d}",
        images=torch.from_numpy(np.stack(images)),
        world_to_camera=world_to_camera,
        K=K,
        times=torch.tensor([t - start for t in view["timestamps"]]),
        points=points,
        point_times=point_times,
        ego_to_world=ego_to_world,
        lidar_times=torch.tensor([t - start for t in entry["timestamps"]]),
        depths=depths,
        input=list(entry["input"]),
        target=list(entry["target"]),
        start=start,
        entry=entry,
    )
