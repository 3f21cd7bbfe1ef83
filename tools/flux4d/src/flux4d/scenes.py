"""Reconstructed scenes on disk: `scene.ply`, moving Gaussians in the world, and `cameras.json`, the recorded path."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError, runs, splat
from recon4d.cli import pick_device
from recon4d.files import read_json, write_text
from recon4d.splat import scene_files
from torch import Tensor

from flux4d import checkpoints, indices, memory, pictures
from flux4d.clips import path_in_world
from flux4d.gaussians import MovingGaussians, deviations, inverse_softplus, moved, opacities_at, to_world
from flux4d.reconstruction import gaussians_of
from flux4d.samples import load_sample
from flux4d.timed_cameras import TimedCameras, timed_cameras

FORMAT = "flux4d-scene-1"
LONGEST = 3600.0  # seconds of a scene
WIDEST = 16384  # pixels of an image


def write_gaussians(path: str | Path, gaussians: MovingGaussians) -> None:
    """A 3DGS file with `time` (seconds), velocity coefficients `vx vy vz`, `vx_1 ...` (m/s, m/s^2 ...), `sky` and,
    where Gaussians come and go, `lifetime` (seconds)."""
    names = [f"v{axis}{f'_{j}' if j else ''}" for j in range(gaussians.velocities.shape[1]) for axis in "xyz"]
    extra = dict(zip(names, gaussians.velocities.flatten(1).T.numpy().astype(np.float32)))
    extra |= {"time": gaussians.times.numpy(), "sky": gaussians.sky.numpy().astype(np.uint8)}
    if gaussians.lifetimes.isfinite().any():
        extra["lifetime"] = gaussians.lifetimes.clamp(max=LONGEST).numpy()
    splat.write_ply(path, _splats(gaussians, gaussians.means, gaussians.opacities[:, 0].sigmoid()), extra)


def _splats(gaussians: MovingGaussians, means: Tensor, opacities: Tensor) -> splat.Gaussians:
    return splat.Gaussians(
        means=means,
        quats=gaussians.quats,
        scales=deviations(gaussians),
        opacities=opacities,
        sh=((gaussians.colours.sigmoid() - 0.5) / splat.SH0)[:, None],
    )


def write_static(path: str | Path, gaussians: MovingGaussians, seconds: float) -> None:
    """The Gaussians of one moment, for viewers that know no motion; the kind of file is the suffix's."""
    moment = torch.tensor([seconds])
    opacities = opacities_at(gaussians, moment)[0]
    there = opacities > 1 / 255
    splats = _splats(gaussians[there], moved(gaussians, moment)[0][there], opacities[there])
    scene_files.write(path, splats)


def read_gaussians(path: str | Path) -> MovingGaussians:
    """The inverse of `write_gaussians`. Raises InputError for a file without time and velocities."""
    splats = splat.read_ply(path)
    extra = splats.extra
    missing = [name for name in ("time", "vx", "vy", "vz", "sky") if name not in extra]
    if missing:
        raise InputError(f"{path} has no property {missing[0]}; give a scene.ply of flux4d reconstruct")
    lost = [name for name, column in extra.items() if not np.isfinite(np.asarray(column, np.float64)).all()]
    if lost or not all(values.isfinite().all() for values in (splats.means, splats.scales, splats.quats, splats.sh)):
        raise InputError(f"{path} holds numbers that are not finite; write it again")
    degree = 0
    while f"vx_{degree + 1}" in extra:
        degree += 1
    columns = [extra[f"v{axis}{f'_{j}' if j else ''}"] for j in range(degree + 1) for axis in "xyz"]
    velocities = torch.from_numpy(np.stack(columns, -1).astype(np.float32)).unflatten(1, (degree + 1, 3))
    lifetimes = torch.from_numpy(np.asarray(extra.get("lifetime", np.full(len(splats.means), np.inf)), np.float32))
    return MovingGaussians(
        means=splats.means,
        scales=inverse_softplus(splats.scales.clamp_min(1e-6)),
        quats=splats.quats,
        opacities=splats.opacities.clamp(1e-6, 1 - 1e-6).logit()[:, None],
        colours=(splats.sh[:, 0] * splat.SH0 + 0.5).clamp(1e-4, 1 - 1e-4).logit(),
        times=torch.from_numpy(np.asarray(extra["time"], np.float32)),
        velocities=velocities,
        sky=torch.from_numpy(np.asarray(extra["sky"]) > 0),
        lifetimes=torch.where(lifetimes < LONGEST, lifetimes, torch.inf),
    )


def write(folder: str | Path, gaussians: MovingGaussians, path: TimedCameras) -> None:
    """Write a scene; Gaussians in the world, the path's moments in order."""
    folder = Path(folder)
    write_gaussians(folder / "scene.ply", gaussians)
    values = {
        "format": FORMAT,
        "times": path.times.tolist(),
        "camera_to_world": torch.linalg.inv(path.batch.world_to_camera.double()).float().tolist(),
        "K": path.batch.K[0].tolist(),
        "size": [path.batch.width, path.batch.height],
    }
    write_text(folder / "cameras.json", json.dumps(values))


def read(folder: str | Path) -> tuple[MovingGaussians, TimedCameras]:
    """Read a scene: its Gaussians and the recorded path. Raises InputError when a file is missing or something else."""
    folder = Path(folder)
    place = folder / "cameras.json"
    if not place.is_file():
        raise InputError(f"{folder} holds no cameras.json; give a folder of flux4d reconstruct or edit")
    values = read_json(place)
    try:
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {str(values['format'])[:40]}")
        arrays = [np.array(values[key], np.float64) for key in ("times", "camera_to_world", "K")]
        width, height = (int(side) for side in values["size"])
        times, poses, K = arrays
        if times.ndim != 1 or len(times) == 0 or poses.shape != (len(times), 4, 4) or K.shape != (3, 3):
            raise ValueError("other shapes")
        if not all(np.isfinite(array).all() and np.abs(array).max() < 1e7 for array in arrays):
            raise ValueError("numbers that are not finite, or too large")
        if (np.diff(times) <= 0).any() or times[-1] - times[0] > LONGEST:
            raise ValueError(f"times that do not grow, or span more than {LONGEST:.0f} s")
        if min(K[0, 0], K[1, 1]) <= 0 or not (0 < width <= WIDEST and 0 < height <= WIDEST):
            raise ValueError("no focal length or image size")
        if (np.abs(np.linalg.det(poses[:, :3, :3]) - 1) > 0.01).any() or (poses[:, 3] != [0, 0, 0, 1]).any():
            raise ValueError("poses that are no rotations")
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        said = str(error)[:120]
        raise InputError(f"{place} is not a camera path of flux4d ({said}); write it again") from error
    matrices, focal, moments = (torch.from_numpy(array).float() for array in (np.linalg.inv(poses), K, times))
    return read_gaussians(folder / "scene.ply"), timed_cameras(matrices, focal, moments, width, height)


@torch.no_grad()
def reconstruct(
    checkpoint: str | Path | None,
    index_path: str | Path,
    out_dir: str | Path,
    *,
    clip_index: int = 0,
    overrides: Iterable[str] = (),
    data_root: str | Path | None = None,
    fps: float = 30.0,
    slow: float = 4.0,
    static: Iterable[str] = (),
    camera: str | None = None,
    device: str = "auto",
    force: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Reconstruct a clip by a trained network and write it as a scene, with a video along its path; a summary.

    Args:
        checkpoint: of a training; None is the network that ships.
        overrides: `key=value` settings in place of the checkpoint's.
        data_root: where the scenes are, when they are not where the index was made.
        fps: of the video. slow: seconds of the video per second of the clip.
        camera: whose images, by name, or several with commas; None: the checkpoint's.
        static: kinds of files (`spz`, `sog`, `splat`, `ply`) to write the first moment as, `static.spz` ...
        force: replace what is in `out_dir`.

    Raises:
        InputError: a checkpoint, index or clip that cannot be read, no such clip, an output that exists.
    """
    out, chosen_device = Path(out_dir), pick_device(device)
    model, settings = checkpoints.open_model(checkpoint, chosen_device, overrides=overrides, camera=camera)
    entry, root = indices.open_clip(index_path, clip_index, data_root)
    log(memory.sentence(memory.of_clip(settings, entry), chosen_device))
    with runs.claim(out, "flux4d reconstruct", force=force, inputs=[checkpoint, index_path, root]):
        sample = load_sample(entry, root, settings, chosen_device)
        started = time.perf_counter()
        gaussians = gaussians_of(model, sample, settings)
        seconds = time.perf_counter() - started
        placed, path = to_world(gaussians, sample.clip.ego_to_world), path_in_world(sample.clip)
        write(out, placed, path)
        for kind in static:
            write_static(out / f"static.{kind}", placed, float(path.times[0]))
        frames = pictures.write_video(out / "render.mp4", placed, path, fps, slow, chosen_device)
    return {
        "clip": sample.clip.name,
        "gaussians": len(placed),
        "seconds": seconds,
        "frames": frames,
        "folder": str(out),
    }
