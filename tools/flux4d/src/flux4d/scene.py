"""A reconstructed clip on disk: `scene.ply`, Gaussians with velocities in the world, and `cameras.json`."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch
from recon4d import InputError, splat
from recon4d.files import write_text
from torch import Tensor

from flux4d.clip import Clip
from flux4d.lift import Gaussians, inverse_softplus
from flux4d.rendering import Views, scales

FORMAT = "flux4d-scene-1"
_SH0 = 0.28209479177387814


@dataclass(frozen=True)
class CameraPath:
    """The camera's path. times: (F,) seconds since the clip's start. poses: (F, 4, 4) camera to world. K: (3, 3)."""

    times: Tensor
    poses: Tensor
    K: Tensor
    width: int
    height: int


def to_world(gaussians: Gaussians, ego_to_world: np.ndarray) -> Gaussians:
    """Gaussians of a clip's frame in the world: moved and rotated, velocities rotated."""
    pose = torch.from_numpy(ego_to_world)
    rotation = pose[:3, :3]
    x, y, z, w = roma.rotmat_to_unitquat(rotation).tolist()
    turn = torch.tensor([[x, y, z, w]], dtype=torch.float64)
    own = gaussians.quats.cpu().double()[:, [1, 2, 3, 0]]
    quats = roma.quat_product(turn.expand(len(own), 4), own)[:, [3, 0, 1, 2]]
    return Gaussians(
        means=(gaussians.means.cpu().double() @ rotation.T + pose[:3, 3]).float(),
        scales=gaussians.scales.cpu(),
        quats=quats.float(),
        opacities=gaussians.opacities.cpu(),
        colours=gaussians.colours.cpu(),
        times=gaussians.times.cpu(),
        velocities=(gaussians.velocities.cpu().double() @ rotation.T).float(),
        sky=gaussians.sky.cpu(),
    )


def write_gaussians(path: str | Path, gaussians: Gaussians) -> None:
    """A 3DGS file with `time` (seconds), velocity coefficients `vx vy vz`, `vx_1 ...` (m/s, m/s^2 ...) and `sky`."""
    names = [f"v{axis}{f'_{j}' if j else ''}" for j in range(gaussians.velocities.shape[1]) for axis in "xyz"]
    extra = dict(zip(names, gaussians.velocities.flatten(1).T.numpy().astype(np.float32)))
    extra |= {"time": gaussians.times.numpy(), "sky": gaussians.sky.numpy().astype(np.uint8)}
    splats = splat.Gaussians(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=scales(gaussians),
        opacities=gaussians.opacities[:, 0].sigmoid(),
        sh=((gaussians.colours.sigmoid() - 0.5) / _SH0)[:, None],
    )
    splat.write_ply(path, splats, extra)


def read_gaussians(path: str | Path) -> Gaussians:
    """The inverse of `write_gaussians`. Raises InputError for a file without time and velocities."""
    splats = splat.read_ply(path)
    extra = splats.extra
    missing = [name for name in ("time", "vx", "vy", "vz", "sky") if name not in extra]
    if missing:
        raise InputError(f"{path} has no property {missing[0]}; give a scene.ply of flux4d reconstruct")
    degree = 0
    while f"vx_{degree + 1}" in extra:
        degree += 1
    columns = [extra[f"v{axis}{f'_{j}' if j else ''}"] for j in range(degree + 1) for axis in "xyz"]
    velocities = torch.from_numpy(np.stack(columns, -1).astype(np.float32)).unflatten(1, (degree + 1, 3))
    return Gaussians(
        means=splats.means,
        scales=inverse_softplus(splats.scales.clamp_min(1e-6)),
        quats=splats.quats,
        opacities=splats.opacities.clamp(1e-6, 1 - 1e-6).logit()[:, None],
        colours=(splats.sh[:, 0] * _SH0 + 0.5).clamp(1e-4, 1 - 1e-4).logit(),
        times=torch.from_numpy(np.asarray(extra["time"], np.float32)),
        velocities=velocities,
        sky=torch.from_numpy(np.asarray(extra["sky"]) > 0),
    )


def camera_path(clip: Clip) -> CameraPath:
    """The camera's path of a clip, in the world."""
    poses = torch.from_numpy(clip.ego_to_world) @ torch.linalg.inv(clip.world_to_camera.double())
    order = clip.times.argsort()
    return CameraPath(clip.times[order], poses[order].float(), clip.K, clip.width, clip.height)


def write(folder: Path, gaussians: Gaussians, path: CameraPath) -> None:
    """Write a scene; Gaussians in the world."""
    write_gaussians(folder / "scene.ply", gaussians)
    values = {
        "format": FORMAT,
        "times": path.times.tolist(),
        "camera_to_world": path.poses.tolist(),
        "K": path.K.tolist(),
        "size": [path.width, path.height],
    }
    write_text(folder / "cameras.json", json.dumps(values))


def read(folder: Path) -> tuple[Gaussians, CameraPath]:
    """Read a scene. Raises InputError when a file is missing or something else."""
    place = folder / "cameras.json"
    if not place.is_file():
        raise InputError(f"{folder} holds no cameras.json; give a folder of flux4d reconstruct or edit")
    try:
        values = json.loads(place.read_text())
        if values["format"] != FORMAT:
            raise ValueError(values["format"])
        times, poses, K = (torch.tensor(values[key]) for key in ("times", "camera_to_world", "K"))
        width, height = (int(side) for side in values["size"])
        if poses.shape != (len(times), 4, 4) or K.shape != (3, 3) or len(times) == 0:
            raise ValueError("other shapes")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place} is not a camera path of flux4d ({error}); write it again") from error
    return read_gaussians(folder / "scene.ply"), CameraPath(times, poses, K, width, height)


def at_times(path: CameraPath, times: Tensor) -> Views:
    """Views along the path at any times: straight between positions, the shortest rotation between headings."""
    times = times.clamp(path.times[0], path.times[-1])
    right = torch.searchsorted(path.times, times).clamp(1, max(len(path.times) - 1, 1))
    right = right.clamp(max=len(path.times) - 1)
    left = (right - 1).clamp_min(0)
    gap = (path.times[right] - path.times[left]).clamp_min(1e-9)
    share = ((times - path.times[left]) / gap).clamp(0, 1)
    quats = roma.rotmat_to_unitquat(path.poses[:, :3, :3].contiguous())
    a, b = quats[left], quats[right]
    turned = torch.stack([roma.unitquat_slerp(p, q, s[None], shortest_arc=True)[0] for p, q, s in zip(a, b, share)])
    poses = torch.eye(4).repeat(len(times), 1, 1)
    poses[:, :3, :3] = roma.unitquat_to_rotmat(turned)
    poses[:, :3, 3] = torch.lerp(path.poses[left, :3, 3], path.poses[right, :3, 3], share[:, None])
    steps = torch.full_like(times, float(torch.diff(path.times).median()) if len(path.times) > 1 else 0.1)
    return Views(torch.linalg.inv(poses), path.K, times, steps, path.width, path.height)
