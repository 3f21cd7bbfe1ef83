"""The folder of one training run: what was written when it was trained, read back for metrics and rendering."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError
from recon4d import head as heads
from recon4d.formats import track as track_format
from recon4d.formats.track import Track
from recon4d.head import HeadModel

from gaussian_avatar import capture as captures
from gaussian_avatar import config as settings
from gaussian_avatar import model_file
from gaussian_avatar import motion as motions
from gaussian_avatar.avatar import Avatar
from gaussian_avatar.capture import Capture
from gaussian_avatar.motion import Motion


@dataclass(frozen=True)
class Run:
    """A trained avatar with all it needs: no file outside its folder but the head model."""

    folder: Path
    config: settings.Config
    head: HeadModel
    avatar: Avatar
    track: Track  # of the training clip
    motion: Motion  # the same, posed, for images of the training size


def plain_name(option: str, name: str) -> str:
    """The name, if it is one folder's and not a path. Raises InputError otherwise."""
    if not name or name in (".", "..") or Path(name).name != name:
        raise InputError(f"{option} {name!r} must be a plain folder name")
    return name


def folder_of(output_dir: str | Path, subject: str, work_name: str) -> Path:
    """`<output_dir>/<subject>/<work_name>`. Raises InputError for names that are paths."""
    return Path(output_dir) / plain_name("--subject", subject) / plain_name("--work-name", work_name)


def load_head(path: str | None) -> HeadModel:
    """The open head, or the FLAME file, with its own texture coordinates or unwrapped ones.

    Raises InputError as `recon4d.head.load` does.
    """
    return heads.with_uv(heads.load(path))


def training_size(config: settings.Config, track: Track) -> tuple[int, int]:
    """Width and height of the images an avatar is trained and measured on."""
    width, height = (int(x) for x in track.image_size)
    return captures.reduced_size(width, height, config.data.image_size)


def open_run(folder: Path, device: torch.device, head_model: str | None = None, model: str | Path | None = None) -> Run:
    """Read a run's folder; the avatar from `model.ply`, or from another file.

    Raises InputError when there is no finished training in it.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} holds no training run; train with gaussian-avatar train-offline first")
    config = settings.load(folder / "config.yaml")
    head = load_head(head_model or config.head_model)
    track = track_format.read(folder / "track.npz")
    motions.check_track(track, head, str(folder / "track.npz"))
    motion = motions.resized(motions.from_track(track, head), *training_size(config, track))
    avatar = model_file.read(model or folder / "model.ply", head, motion.inputs.shape[1]).to(device)
    return Run(folder, config, head, avatar, track, motion)


def pictures(run: Run, folder: Path) -> Capture:
    """The pictures of a run's frames, in a subject's folder or where its stream had them.

    Raises InputError when the folder is missing.
    """
    online = run.config.online
    images = Path(online.images) if online.images else folder / "images"
    if not images.is_dir():
        raise InputError(f"{images} is not a folder; name the training data's place with --data-dir")
    masks = Path(online.masks) if online.masks else None
    return Capture(folder, run.track, run.motion.width, run.motion.height, images, masks)


def held_out(run: Run, split: int | None, log: Callable[[str], None]) -> np.ndarray:
    """Indices of the frames to measure: from `split` on (negative counts from the end), or the run's test split."""
    capture = Capture(run.folder, run.track, run.motion.width, run.motion.height)
    if split is None:
        if run.config.split != "train":
            log(f"the run was trained on its {run.config.split} frames: what is measured is no test of new ones")
        return captures.choose_frames(capture, run.config, "test", log)
    n = len(run.track)
    first = split if split >= 0 else n + split
    if not 0 <= first < n:
        raise InputError(f"--split {split} leaves no frame of the {n}; give a number between {-n} and {n - 1}")
    return np.arange(first, n)[run.track.valid[first:]]
