"""The folder of one training run: what was written when it was trained, read back for metrics and rendering."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError
from recon4d.cli import pick_device
from recon4d.formats.track import Track
from recon4d.formats.track import read as read_track
from recon4d.head import HeadModel

from gaussian_avatar import captures, framing, model_file, motions
from gaussian_avatar.avatars import Avatar
from gaussian_avatar.captures import Capture
from gaussian_avatar.config import Config, load_config
from gaussian_avatar.motions import Motion


@dataclass(frozen=True, eq=False)
class Run:
    """A trained avatar with all it needs: no file outside its folder but the head model."""

    folder: Path
    config: Config
    head: HeadModel
    avatar: Avatar
    track: Track  # of the training clip, before its first camera
    motion: Motion  # the same, posed, for whole pictures with the head as large as in training
    trained: Track  # with the pictures of all cameras


def open_run(
    folder: str | Path,
    device: str | torch.device = "auto",
    head_model: str | Path | None = None,
    model: str | Path | None = None,
) -> Run:
    """Read a run's folder, `<output_dir>/<subject>/<work_name>`.

    Args:
        device: where the avatar goes: cpu, cuda, cuda:N, or auto.
        head_model: a FLAME file instead of the one that was trained on.
        model: a file of the avatar instead of `model.ply`: another PLY file, or an exported safetensors file.

    Raises InputError when there is no finished training in it.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} holds no training run; train with gaussian-avatar train-offline first")
    place = pick_device(str(device))
    config = load_config(folder / "config.yaml")
    head = motions.load_head(head_model or config.head_model)
    trained = read_track(folder / "track.npz")
    motions.check_track(trained, head, str(folder / "track.npz"))
    track = trained.of_one_camera()
    motion = motions.from_track(track, head)
    motion = motions.resized(motion, *framing.view_size(motion, config.data))
    avatar = model_file.read(model or folder / "model.ply", head, motion.inputs.shape[1]).to(place)
    return Run(folder, config, head, avatar, track, motion, trained)


def pictures(run: Run, folder: Path) -> tuple[Run, Capture]:
    """The pictures of a run's frames, in a subject's folder or where its stream had them; the run as it sees those.

    Raises InputError when the folder is missing.
    """
    online = run.config.online
    images, masks = (Path(place) if place else None for place in (online.images, online.masks))
    if images is None:
        images, own = captures.places(folder) if (folder / "images").is_dir() else (folder / "images", None)
        masks = masks or own
    if not images.is_dir():
        raise InputError(f"{images} is not a folder; name the training data's place with --data-dir")
    width, height = (int(side) for side in run.trained.image_size)
    whole = Capture(folder, run.trained, width, height, images, masks)
    capture, motion = framing.fitted(whole, motions.from_track(run.trained, run.head), run.config.data)
    return replace(run, track=run.trained, motion=motion), capture


def held_out(run: Run, split: int | None, log: Callable[[str], None]) -> np.ndarray:
    """Indices of the frames to measure: from `split` on (negative counts from the end), or the run's test split."""
    capture = Capture(run.folder, run.track, run.motion.camera.width, run.motion.camera.height)
    if split is None:
        if run.config.split != "train":
            log(f"the run was trained on its {run.config.split} frames: what is measured is no test of new ones")
        return captures.choose_frames(capture, run.config, "test", log)
    n = len(run.track)
    first = split if split >= 0 else n + split
    if not 0 <= first < n:
        raise InputError(f"--split {split} leaves no frame of the {n}; give a number between {-n} and {n - 1}")
    chosen: np.ndarray = np.arange(first, n)[run.track.valid[first:]]
    return chosen
