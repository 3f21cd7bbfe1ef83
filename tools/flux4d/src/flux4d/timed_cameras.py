"""Cameras at moments: the frames of a clip, the path of a reconstructed scene, an image to be rendered."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import roma
import torch
from recon4d.cameras import Camera
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TimedCameras:
    """F cameras, each at a moment.

    batch: all F. times: (F,) seconds. steps: (F,) seconds to the next frame, for motion on the image.
    """

    batch: Camera
    times: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, frames: Sequence[int] | Tensor) -> "TimedCameras":
        """Those of these positions."""
        batch = replace(self.batch, K=self.batch.K[frames], world_to_camera=self.batch.world_to_camera[frames])
        return TimedCameras(batch, self.times[frames], self.steps[frames])

    def one(self, frame: int) -> Camera:
        """The camera of a position, without a batch."""
        return replace(self.batch, K=self.batch.K[frame], world_to_camera=self.batch.world_to_camera[frame])

    def to(self, device: torch.device | str) -> "TimedCameras":
        return TimedCameras(self.batch.to(device), self.times.to(device), self.steps.to(device))


def timed_cameras(world_to_camera: Tensor, K: Tensor, times: Tensor, width: int, height: int) -> TimedCameras:
    """F cameras (F, 4, 4) with the same K (3, 3), in any order of their times (F,)."""
    batch = Camera(K.expand(len(times), 3, 3), world_to_camera, width, height)
    return TimedCameras(batch, times, steps_to_next(times))


def joined(parts: Sequence[TimedCameras]) -> TimedCameras:
    """All of several, one after the other; images of one size."""
    batches = [part.batch for part in parts]
    batch = replace(
        batches[0],
        K=torch.cat([one.K for one in batches]),
        world_to_camera=torch.cat([one.world_to_camera for one in batches]),
    )
    return TimedCameras(batch, torch.cat([p.times for p in parts]), torch.cat([p.steps for p in parts]))


def steps_to_next(times: Tensor) -> Tensor:
    """(F,) seconds from each moment to the next; the last has the step before it, a single one has 0.1."""
    order = times.argsort()
    gaps = torch.diff(times[order]) if len(times) > 1 else times.new_tensor([0.1])
    steps = torch.empty_like(times)
    steps[order] = torch.cat([gaps, gaps[-1:]])[: len(times)]
    return steps


def at_times(path: TimedCameras, times: Tensor) -> TimedCameras:
    """A camera that moves along a path, at any times: straight between positions, by the shortest rotation between
    headings; before and after the path it stands. The path's moments are in order, its K is one."""
    times = times.clamp(path.times[0], path.times[-1])
    right = torch.searchsorted(path.times, times).clamp(1, max(len(path) - 1, 1)).clamp(max=len(path) - 1)
    left = (right - 1).clamp_min(0)
    gap = (path.times[right] - path.times[left]).clamp_min(1e-9)
    share = ((times - path.times[left]) / gap).clamp(0, 1).double()
    recorded = torch.linalg.inv(path.batch.world_to_camera.double())
    quats = roma.rotmat_to_unitquat(recorded[:, :3, :3].contiguous())
    ends = zip(quats[left], quats[right], share)
    turned = torch.stack([roma.unitquat_slerp(a, b, s[None], shortest_arc=True)[0] for a, b, s in ends])
    poses = torch.eye(4, dtype=torch.float64).repeat(len(times), 1, 1)
    poses[:, :3, :3] = roma.unitquat_to_rotmat(turned)
    poses[:, :3, 3] = torch.lerp(recorded[left, :3, 3], recorded[right, :3, 3], share[:, None])
    batch = replace(path.batch, K=path.batch.K[left], world_to_camera=torch.linalg.inv(poses).float())
    return TimedCameras(batch, times, path.steps.median().expand(len(times)))
