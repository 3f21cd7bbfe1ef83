"""How much memory a run takes, said before it is taken. Rough: within a third of what was measured on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flux4d.clips import camera_names
from flux4d.config import Config

PROGRAM = 0.6e9  # bytes of torch and Numba themselves
POINT = 32  # bytes of a LiDAR point as it is read
SWEEP = 150_000  # points of one
GAUSSIAN = 130  # bytes of a Gaussian and its voxel


def _pictures(config: Config, entry: dict[str, Any]) -> tuple[int, int]:
    """How many pictures a clip has, and the pixels of each."""
    names = [name for name in camera_names(config.data.camera) if name in entry["cameras"]]
    width, height = entry["cameras"][names[0]]["size"] if names else (0, 0)
    scale = min((config.data.image_size or max(width, height, 1)) / max(width, height, 1), 1.0)
    return len(names) * len(entry["frames"]), round(width * height * scale * scale)


def gaussians(config: Config, entry: dict[str, Any]) -> int:
    """The most that a clip is lifted to, the sky's in view among them: about a fifth of its half sphere."""
    number, pixels = _pictures(config, entry)
    inputs = number * len(entry["input"]) // max(len(entry["frames"]), 1)
    most = inputs * pixels if config.lift.fill else inputs * SWEEP
    return min(config.lift.max_gaussians, most) + config.lift.sky_points // 5


def _held(config: Config, entry: dict[str, Any]) -> float:
    number, pixels = _pictures(config, entry)
    return 15.0 * number * pixels + GAUSSIAN * gaussians(config, entry)  # bytes and floats of the pictures


def _passes(config: Config) -> list[int]:
    """Floats that each pass of the network holds per Gaussian."""
    model = config.model
    own = 15 + model.moments + (model.lifetime is not None)
    slopes = 14 + (3 * (model.polynomial + 1) if model.refine_velocity else 0)
    widths = [own, *[own + slopes] * model.refinements]
    return [model.channels[0] + 4 * width + 3 + 4 * model.hidden for width in widths]


def of_clip(config: Config, entry: dict[str, Any]) -> float:
    """Bytes to reconstruct a clip."""
    reading = POINT * SWEEP * len(entry["frames"])
    return PROGRAM + reading + _held(config, entry) + 7.0 * max(_passes(config)) * gaussians(config, entry)


def of_training(config: Config, entries: Sequence[dict[str, Any]]) -> float:
    """Bytes of a training on clips, in each of its processes."""
    entry = max(entries, key=lambda one: _held(config, one))
    clips = min(len(entries), max(config.train.cache_clips, 1))
    step = 8.0 * sum(_passes(config)) * gaussians(config, entry)
    return PROGRAM + POINT * SWEEP * len(entry["frames"]) + clips * _held(config, entry) + step


def available(device: torch.device) -> float | None:
    """Bytes that are free on a device; None where nobody says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    known = Path("/proc/meminfo")
    if not known.is_file():
        return None
    lines = [line.split() for line in known.read_text().splitlines()]
    return next((1024.0 * int(line[1]) for line in lines if line[0] == "MemAvailable:"), None)


def sentence(needed: float, device: torch.device) -> str:
    """What to tell: how much it takes, how much there is, and how to take less where that is not enough."""
    free = available(device)
    said = f"takes about {needed / 1e9:.1f} GB of memory"
    if free is None:
        return said
    said += f"; {free / 1e9:.1f} GB are free"
    if needed > free:
        said += ": take less with --set lift.max_gaussians, data.image_size or train.cache_clips"
    return said
