"""A clip in memory: images, cameras, depth samples and LiDAR points, all in the ego frame of its first frame."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import InputError, images
from recon4d.cameras import Camera
from torch import Tensor

from flux4d import pandaset
from flux4d.timed_cameras import TimedCameras, timed_cameras


@dataclass(frozen=True, eq=False)
class Clip:
    """F frames of one camera. Space is the ego frame of the first one, time is seconds since it.

    The epoch and the world's origin are subtracted in float64, so that float32 holds microseconds and micrometres.

    images: (F, H, W, 3) uint8. cameras: at the times of the images. points: per frame (N_i, 3). point_times:
    per frame (N_i,). ego_to_world: (4, 4) float64. lidar_times: (F,). depths: per frame, pixel numbers (M_i,) row by
    row and depths (M_i,) in metres of the nearest point in each. input, target: positions of frames. entry: the clip
    in its index.
    """

    name: str
    images: Tensor
    cameras: TimedCameras
    points: list[Tensor]
    point_times: list[Tensor]
    ego_to_world: np.ndarray
    lidar_times: Tensor
    depths: list[tuple[Tensor, Tensor]]
    input: list[int]
    target: list[int]
    entry: dict[str, Any]

    @property
    def times(self) -> Tensor:
        """(F,) of the images."""
        return self.cameras.times

    @property
    def height(self) -> int:
        return self.images.shape[1]

    @property
    def width(self) -> int:
        return self.images.shape[2]

    def camera(self, frame: int) -> Camera:
        """The camera of one frame."""
        return self.cameras.one(frame)


def name_of(entry: dict[str, Any]) -> str:
    """The name of an index's clip: its scene and first frame."""
    return f"{entry['scene']}_{entry['frames'][0]:02d}"


def in_view(points: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (N, 2), depth (N,), and whether (N,) points are before the camera and in its image."""
    pixels, depth = camera.project(points)
    # a point in the camera's plane has no pixel
    inside = (depth > 0.1) & (pixels >= 0).all(-1) & (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)
    return pixels, depth, inside


def depth_samples(points: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """The nearest point in each pixel that has any: pixel numbers (M,) and depths (M,)."""
    pixels, depth, inside = in_view(points, camera)
    column, row = pixels[inside].long().unbind(-1)
    size = camera.width * camera.height
    nearest = torch.full((size,), torch.inf).scatter_reduce(0, row * camera.width + column, depth[inside], "amin")
    (found,) = nearest.isfinite().nonzero(as_tuple=True)
    return found, nearest[found]


def load(
    entry: dict[str, Any],
    root: Path,
    camera: str = "front_camera",
    longer_side: int | None = None,
    lidar: bool = True,
) -> Clip:
    """Read a clip of an index.

    Args:
        root: where the index's paths begin.
        camera: the name of the one whose images are read.
        longer_side: reduce images to this many pixels.
        lidar: read the points; without, there are none.

    Raises:
        InputError: a camera that the clip lacks, missing or broken files, images of different sizes.
    """
    if camera not in entry["cameras"]:
        raise InputError(f"--camera {camera} is not in the index; it has {', '.join(entry['cameras'])}")
    recorded = entry["cameras"][camera]
    what = f"the index entry of scene {entry['scene']}"
    lidar_poses, camera_poses = (pandaset.pose_matrices(p, what) for p in (entry["lidar_poses"], recorded["poses"]))
    ego_to_world = lidar_poses[0]
    world_to_ego = np.linalg.inv(ego_to_world)
    start = float(entry["timestamps"][0])

    pictures = [images.read(root / name, upright=False) for name in recorded["images"]]  # as the camera's K has them
    if len({picture.shape for picture in pictures}) > 1:
        raise InputError(f"{root / recorded['images'][0]} and the images after it differ in size; copy the scene again")
    height, width = pictures[0].shape[:2]
    K = torch.from_numpy(pandaset.intrinsics_matrix(recorded["intrinsics"], what)).float()
    if longer_side is not None and longer_side < max(width, height):
        scale = longer_side / max(width, height)
        size = (max(round(width * scale), 16), max(round(height * scale), 16))
        pictures = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
        K = K * torch.tensor([[size[0] / width], [size[1] / height], [1.0]])
        width, height = size
    world_to_camera = torch.from_numpy(np.linalg.inv(world_to_ego @ camera_poses)).float()
    times = torch.tensor([t - start for t in recorded["timestamps"]])
    cameras = timed_cameras(world_to_camera, K, times, width, height)

    points, point_times, depths = [], [], []
    for i, name in enumerate(entry["lidar"]):
        sweep = pandaset.read_points(root / name) if lidar else {"xyz": np.zeros((0, 3)), "t": np.zeros(0)}
        xyz = sweep["xyz"] @ world_to_ego[:3, :3].T + world_to_ego[:3, 3]
        points.append(torch.from_numpy(xyz).float())
        point_times.append(torch.from_numpy(sweep["t"] - start).float())
        depths.append(depth_samples(points[-1], cameras.one(i)))
    return Clip(
        name=name_of(entry),
        images=torch.from_numpy(np.stack(pictures)),
        cameras=cameras,
        points=points,
        point_times=point_times,
        ego_to_world=ego_to_world,
        lidar_times=torch.tensor([t - start for t in entry["timestamps"]]),
        depths=depths,
        input=list(entry["input"]),
        target=list(entry["target"]),
        entry=entry,
    )


def path_in_world(clip: Clip) -> TimedCameras:
    """The cameras of a clip in the world, in order of time."""
    order = clip.times.argsort()
    world_to_camera = clip.cameras.batch.world_to_camera.double() @ torch.from_numpy(np.linalg.inv(clip.ego_to_world))
    K = clip.cameras.batch.K[0]
    return timed_cameras(world_to_camera[order].float(), K, clip.times[order], clip.width, clip.height)
