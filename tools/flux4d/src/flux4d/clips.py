"""A clip in memory: images, cameras, depth samples and LiDAR points, all in the ego frame of its first sweep."""

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
from flux4d.timed_cameras import TimedCameras, joined, timed_cameras

SEEN_OVER = 1.3, 0.5  # times as far, and metres more, as a point beside it, from which a point is hidden
BESIDE = 5, 3  # rows and columns around it


@dataclass(frozen=True, eq=False)
class Clip:
    """F frames of one camera or several, C F pictures: all frames of the first camera, then those of the next. Space
    is the ego frame of the first sweep, time is seconds since it.

    The epoch and the world's origin are subtracted in float64, so that float32 holds microseconds and micrometres.

    names: of the C cameras. images: (C F, H, W, 3) uint8; those of other cameras are brought to the first one's size.
    cameras: at the times of the images. points: per sweep (N_i, 3). point_times: per sweep (N_i,). ego_to_world:
    (4, 4) float64. lidar_times: (F,). depths: per picture, pixel numbers (M_i,) row by row and depths (M_i,) in metres
    of the nearest point in each. input, target: numbers of pictures. entry: the clip in its index.
    """

    name: str
    names: tuple[str, ...]
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
        """(C F,) of the images."""
        return self.cameras.times

    @property
    def height(self) -> int:
        return self.images.shape[1]

    @property
    def width(self) -> int:
        return self.images.shape[2]

    def frame_of(self, picture: int) -> int:
        """The frame, and so the sweep, of a picture."""
        return picture % len(self.lidar_times)

    def name_of_camera(self, picture: int) -> str:
        """Of which camera a picture is."""
        return self.names[picture // len(self.lidar_times)]

    def image_file(self, picture: int) -> Path:
        """Where a picture was read, from the index's root."""
        return Path(self.entry["cameras"][self.name_of_camera(picture)]["images"][self.frame_of(picture)])

    def camera(self, picture: int) -> Camera:
        """The camera of one picture."""
        return self.cameras.one(picture)


def name_of(entry: dict[str, Any]) -> str:
    """The name of an index's clip: its scene and first frame."""
    return f"{entry['scene']}_{entry['frames'][0]:02d}"


def in_view(points: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (N, 2), depth (N,), and whether (N,) points are before the camera and in its image."""
    pixels, depth = camera.project(points)
    # a point in the camera's plane has no pixel
    inside = (depth > 0.1) & (pixels >= 0).all(-1) & (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)
    return pixels, depth, inside


def not_hidden(nearest: np.ndarray) -> np.ndarray:
    """(H, W) bool: where there is a point, and no much nearer one beside it: a LiDAR stands higher than the camera and
    sees over things what they hide from it. nearest: (H, W) metres, infinite where there is none."""
    known = np.where(np.isfinite(nearest), nearest, 1e6).astype(np.float32)
    times, more = SEEN_OVER
    return np.isfinite(nearest) & (known < times * cv2.erode(known, np.ones(BESIDE, np.uint8)) + more)


def depth_samples(points: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """The nearest point in each pixel that has any, but for hidden ones: pixel numbers (M,) and depths (M,)."""
    pixels, depth, inside = in_view(points, camera)
    column, row = pixels[inside].long().unbind(-1)
    size = camera.width * camera.height
    nearest = torch.full((size,), torch.inf).scatter_reduce(0, row * camera.width + column, depth[inside], "amin")
    shown = not_hidden(nearest.reshape(camera.height, camera.width).numpy()).ravel()
    (found,) = torch.from_numpy(shown).nonzero(as_tuple=True)
    return found, nearest[found]


def camera_names(text: str) -> tuple[str, ...]:
    """The names in a setting, with commas between them. Raises InputError when there is none."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise InputError("--camera names no camera; give one of the index, or several with commas")
    return names


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
        camera: the name of the one whose images are read, or several names with commas.
        longer_side: reduce images to this many pixels.
        lidar: read the points; without, there are none.

    Raises:
        InputError: a camera that the clip lacks, missing or broken files, images of different sizes.
    """
    names = camera_names(camera)
    for name in names:
        if name not in entry["cameras"]:
            raise InputError(f"--camera {name} is not in the index; it has {', '.join(entry['cameras'])}")
    what = f"the index entry of scene {entry['scene']}"
    ego_to_world = pandaset.pose_matrices(entry["lidar_poses"], what)[0]
    world_to_ego = np.linalg.inv(ego_to_world)
    start, count = float(entry["timestamps"][0]), len(entry["timestamps"])

    pictures: list[np.ndarray] = []
    parts: list[TimedCameras] = []
    size: tuple[int, int] | None = None  # of the first camera, reduced
    for name in names:
        own, K, size = _pictures(entry["cameras"][name], root, what, longer_side, size)
        poses = pandaset.pose_matrices(entry["cameras"][name]["poses"], what)
        world_to_camera = torch.from_numpy(np.linalg.inv(world_to_ego @ poses)).float()
        times = torch.tensor([t - start for t in entry["cameras"][name]["timestamps"]])
        pictures += own
        parts.append(timed_cameras(world_to_camera, K, times, *size))
    cameras = joined(parts)

    points, point_times = [], []
    for name in entry["lidar"]:
        sweep = pandaset.read_points(root / name) if lidar else {"xyz": np.zeros((0, 3)), "t": np.zeros(0)}
        xyz = sweep["xyz"] @ world_to_ego[:3, :3].T + world_to_ego[:3, 3]
        points.append(torch.from_numpy(xyz).float())
        point_times.append(torch.from_numpy(sweep["t"] - start).float())
    return Clip(
        name=name_of(entry),
        names=names,
        images=torch.from_numpy(np.stack(pictures)),
        cameras=cameras,
        points=points,
        point_times=point_times,
        ego_to_world=ego_to_world,
        lidar_times=torch.tensor([t - start for t in entry["timestamps"]]),
        depths=[depth_samples(points[i % count], cameras.one(i)) for i in range(len(pictures))],
        input=[frame + count * c for c in range(len(names)) for frame in entry["input"]],
        target=[frame + count * c for c in range(len(names)) for frame in entry["target"]],
        entry=entry,
    )


def _pictures(
    recorded: dict[str, Any], root: Path, what: str, longer_side: int | None, size: tuple[int, int] | None
) -> tuple[list[np.ndarray], Tensor, tuple[int, int]]:
    """The images of one camera at a width and height, or reduced to a longer side; its K (3, 3), and their size."""
    pictures = [images.read(root / name, upright=False) for name in recorded["images"]]  # as the camera's K has them
    if len({picture.shape for picture in pictures}) > 1:
        raise InputError(f"{root / recorded['images'][0]} and the images after it differ in size; copy the scene again")
    height, width = pictures[0].shape[:2]
    if size is None:
        scale = min((longer_side or max(width, height)) / max(width, height), 1.0)
        size = (max(round(width * scale), 16), max(round(height * scale), 16)) if scale < 1 else (width, height)
    K = torch.from_numpy(pandaset.intrinsics_matrix(recorded["intrinsics"], what)).float()
    if size != (width, height):
        # another camera's picture may be stretched by it: its K says so
        pictures = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
        K = K * torch.tensor([[size[0] / width], [size[1] / height], [1.0]])
    return pictures, K, size


def path_in_world(clip: Clip) -> TimedCameras:
    """The first camera of a clip in the world, in order of time."""
    own = clip.times[: len(clip.lidar_times)]
    order = own.argsort()
    world_to_camera = clip.cameras.batch.world_to_camera.double() @ torch.from_numpy(np.linalg.inv(clip.ego_to_world))
    K = clip.cameras.batch.K[0]
    return timed_cameras(world_to_camera[order].float(), K, own[order], clip.width, clip.height)
