"""Whether a run fits into memory, asked before it begins."""

import contextlib
import ctypes
import sys
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError
from recon4d.head import HeadModel

from gaussian_avatar import avatars
from gaussian_avatar.captures import Capture
from gaussian_avatar.config import Config


def check(config: Config, capture: Capture, head: HeadModel, frames: np.ndarray, device: torch.device) -> None:
    """Raise InputError for a batch larger than the number of frames, or a run that would not fit into memory."""
    batch_size = config.train.batch_size
    if batch_size > len(frames):
        raise InputError(
            f"train.batch_size {batch_size} is larger than the {len(frames)} training frames; "
            f"lower it with --set train.batch_size={len(frames)}"
        )
    n_pictures = len(frames) if config.data.preload else 0
    check_memory(config, head, len(frames), n_pictures, capture.width, capture.height, device)


def check_memory(
    config: Config, head: HeadModel, n_frames: int, n_pictures: int, width: int, height: int, device: torch.device
) -> None:
    """Raise InputError when the run would not fit into memory, saying what would.

    Args:
        n_frames: posed meshes that are kept. n_pictures: pictures that are kept, on the host whatever the device.
    """
    available, size = available_bytes(device), config.model.tex_size
    pictures = n_pictures * width * height * 4
    if device.type != "cpu":
        free = available_bytes(torch.device("cpu"))
        if pictures > free:
            raise InputError(
                f"{n_pictures} pictures of {width}x{height} need {pictures / 2**30:.1f} GiB and {free / 2**30:.1f} GiB "
                "are free; use --set data.preload=false or a smaller data.image_size"
            )
        pictures = 0

    def needed(gaussians: float) -> float:
        return pictures + memory_needed(config, gaussians, n_frames, width, height, len(head.v_template))

    gaussians = avatars.texel_count(head, size)
    if needed(gaussians) <= available:
        return
    wanted = f"needs about {needed(gaussians) / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are free on {device}"
    fits = size
    while fits >= 16 and needed(gaussians * (fits / size) ** 2) > available:
        fits = int(fits * 0.95)
    if fits >= 16:
        raise InputError(f"model.tex_size {size} {wanted}; {fits} fits (--set model.tex_size={fits})")
    raise InputError(
        f"the training {wanted}; use --set data.preload=false, a smaller data.image_size or train.batch_size"
    )


def memory_needed(config: Config, gaussians: float, n_frames: int, width: int, height: int, n_vertices: int) -> float:
    """Bytes a run takes at its peak beside its pictures, roughly: meshes, parameters with Adam's moments, one batch."""
    batch = config.train.batch_size
    vertices = n_frames * n_vertices * 12
    parameters = gaussians * (14 + 10 * config.model.basis) * 4 * 4
    activations = batch * gaussians * 4 * 150 + batch * width * height * 4 * 60
    return vertices + parameters + activations


def available_bytes(device: torch.device) -> float:
    """Free memory of the device; on a CPU what the system or its container has left."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = float(Path("/sys/fs/cgroup/memory.current").read_text())
        statistics = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        cache = float(statistics.get("inactive_file", 0))  # counted as used, but given back when needed
        limits += [float(limit) - used + cache] if limit != "max" else []
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or no container limit
    return min(limits, default=8.0 * 2**30)


def give_back() -> None:
    """Return to the system what was freed: glibc keeps it in gaps between what is in use, which only grow."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
