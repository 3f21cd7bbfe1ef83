"""A clip of an index made ready for the network."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from recon4d import InputError
from torch import Tensor

from flux4d import clips, depthmaps, indices, labels, model
from flux4d.clips import Clip
from flux4d.config import Config, load_config
from flux4d.lift import lift
from flux4d.timed_cameras import TimedCameras


@dataclass(frozen=True, eq=False)
class Sample:
    """A clip ready for the network, on a device. given: its initial Gaussians and their voxels. images: (C F, H, W, 3)
    in [0, 1]. cameras: of the pictures. depths: per picture, as in `Clip`. motion: (N, 3) m/s of the Gaussians by the
    scene's cuboids, where `losses.flow` asks for it and there are some."""

    clip: Clip
    given: model.Input
    images: Tensor
    cameras: TimedCameras
    depths: list[tuple[Tensor, Tensor]]
    motion: Tensor | None = None


def load_sample(entry: dict[str, Any], root: Path, config: Config, device: torch.device) -> Sample:
    """Read a clip of an index, lift it and find its voxels; with depth maps where the settings ask for them."""
    kind, camera = config.lift.points, config.data.camera
    if kind != "lidar" and config.data.depth_dir is None:
        raise InputError(f"lift.points {kind} needs depth maps; give their folder with --depth-dir")
    clip = clips.load(entry, root, camera, config.data.image_size, lidar=kind != "depth")
    points, depths = None, clip.depths
    if kind != "lidar":
        folder = Path(config.data.depth_dir or "")
        points = depthmaps.points(folder, clip, config.lift.depth_stride)
        if kind == "depth":
            depths = depthmaps.samples(folder, clip)
    gaussians = lift(clip, config.lift, config.seed, points, config.model.matched).to(device)
    motion = labels.motion(clip, root, gaussians) if config.losses.flow else None
    # the points are in the Gaussians and depths now: a clip held in memory for a training needs them no more
    none = [torch.zeros(0, 3)] * len(clip.points), [torch.zeros(0)] * len(clip.points)
    return Sample(
        replace(clip, points=none[0], point_times=none[1]),
        model.prepare(gaussians, config.model),
        clip.images.to(device).float() / 255,
        clip.cameras.to(device),
        [(pixels.to(device), depth.to(device)) for pixels, depth in depths],
        None if motion is None else motion.to(device),
    )


def inspect(
    index_path: str | Path,
    clip_index: int = 0,
    config: str | Path = "cpu-quick",
    overrides: Iterable[str] = (),
    data_root: str | Path | None = None,
    camera: str = "front_camera",
    sky_points: int | None = None,
) -> dict[str, Any]:
    """Lift a clip, sort its Gaussians into voxels, and count them: its name and `model.describe`.

    Args:
        config, overrides: as in `config.load_config`. sky_points: in place of the config's.

    Raises:
        InputError: an index, config or clip that cannot be read.
    """
    settings = load_config(config, overrides, {"data.camera": camera, "lift.sky_points": sky_points})
    sample = load_sample(*indices.open_clip(index_path, clip_index, data_root), settings, torch.device("cpu"))
    return {"clip": sample.clip.name, **model.describe(sample.given)}
