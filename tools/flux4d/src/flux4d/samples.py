"""A clip of an index made ready for the network."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recon4d import InputError
from torch import Tensor

from flux4d import clips, depthmaps, indices, model
from flux4d.clips import Clip
from flux4d.config import Config, load_config
from flux4d.lift import lift
from flux4d.timed_cameras import TimedCameras


@dataclass(frozen=True, eq=False)
class Sample:
    """A clip ready for the network, on a device. given: its initial Gaussians and their voxels. images: (F, H, W, 3) in
    [0, 1]. cameras: of the F frames. depths: per frame, as in `Clip`."""

    clip: Clip
    given: model.Input
    images: Tensor
    cameras: TimedCameras
    depths: list[tuple[Tensor, Tensor]]


def load_sample(entry: dict[str, Any], root: Path, config: Config, device: torch.device) -> Sample:
    """Read a clip of an index, lift it and find its voxels; with depth maps where the settings ask for them."""
    kind, camera = config.lift.points, config.data.camera
    if kind != "lidar" and config.data.depth_dir is None:
        raise InputError(f"lift.points {kind} needs depth maps; give their folder with --depth-dir")
    clip = clips.load(entry, root, camera, config.data.image_size, lidar=kind != "depth")
    points, depths = None, clip.depths
    if kind != "lidar":
        folder = Path(config.data.depth_dir or "")
        points = depthmaps.points(folder, clip, camera, config.lift.depth_stride)
        if kind == "depth":
            depths = depthmaps.samples(folder, clip, camera)
    gaussians = lift(clip, config.lift, config.seed, points).to(device)
    return Sample(
        clip,
        model.prepare(gaussians, config.model),
        clip.images.to(device).float() / 255,
        clip.cameras.to(device),
        [(pixels.to(device), depth.to(device)) for pixels, depth in depths],
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
