"""What a training run goes on from: its checkpoint, the same online and offline, and the settings it began with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from recon4d import InputError
from recon4d.cameras import Camera
from recon4d.files import write_torch
from recon4d.head import HeadModel
from recon4d.runs import Claim, read_checkpoint

from gaussian_avatar import learners, motions
from gaussian_avatar.avatars import TRAINED
from gaussian_avatar.config import Config, load_config
from gaussian_avatar.learners import Learner

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(path: Path, learner: Learner, images: int, seconds: float) -> None:
    """Everything a later `load_checkpoint` needs to go on after so many images, atomically.

    No random state is in it: frames and backgrounds are functions of the number of images.
    """
    avatar = learner.avatar
    state = {
        "images": images,
        "seconds": seconds,
        "attributes": {name: getattr(avatar, name).detach() for name in TRAINED},
        "seen": avatar.seen,
        "mlp": avatar.mlp.state_dict(),
        "corrections": learner.corrections.detach(),
        "gains": learner.gains.detach(),
        "optimizer": learner.optimizer.state_dict(),
    }
    write_torch(path, state)


def load_checkpoint(path: Path, learner: Learner) -> tuple[int, float]:
    """Fill a learner from a checkpoint; the images learned from and the seconds spent so far.

    Raises InputError for a missing or broken file, or one of another model size.
    """
    avatar = learner.avatar
    state = read_checkpoint(path, avatar.means.device)
    try:
        images, seconds = int(state["images"]), float(state["seconds"])
        if not (0 <= images < 2**53 and 0 <= seconds < float("inf")):
            raise ValueError(f"{images} images in {seconds} seconds")
        with torch.no_grad():
            for name in TRAINED:
                fill(getattr(avatar, name), state["attributes"][name], name)
            fill(avatar.seen, state["seen"], "seen")
            fill(learner.corrections, state["corrections"], "corrections")
            fill(learner.gains, state["gains"], "gains")
        avatar.mlp.load_state_dict(state["mlp"])
        learner.optimizer.load_state_dict(state["optimizer"])
        return images, seconds
    except Exception as error:  # foreign shapes and types raise many kinds
        reason = str(error).split("\n")[0][:150]
        raise InputError(f"{path} does not fit this run ({reason}); train anew with --force") from error


def check(path: Path, config: Config, head: HeadModel, n_frames: int) -> None:
    """Raise InputError, before a run's folder is touched, for a checkpoint that a run can't go on from."""
    if path.is_file():
        camera = Camera(torch.eye(3), torch.eye(4), 4096, 4096)  # not in a checkpoint
        n_inputs = motions.n_inputs(head)
        load_checkpoint(path, learners.new(config, head, camera, n_inputs, n_frames, torch.device("cpu")))


def fill(target: torch.Tensor, values: Any, name: str) -> None:
    """Copy values into a tensor of the same shape. Raises ValueError for anything else."""
    if not torch.is_tensor(values) or values.shape != target.shape:
        raise ValueError(f"{name} is of another shape")
    target.copy_(values)


def run_config(
    out: Path,
    data: str | Path | None,
    source: Config | str | Path | None,
    default: str,
    overrides: Sequence[str],
    resume: bool,
    force: bool,
    **top: Any,
) -> Config:
    """The settings of a run that begins in `out`, or of the one that is kept there to be gone on with.

    Args:
        data: the subject's folder, where it is not to be the one that the settings name.
        source: settings, a preset or a YAML file; None is `default`.
        top: top-level settings that replace its own; None is left alone.

    Raises:
        InputError: settings that are not readable, or are not those of the run that is gone on with.
    """
    if resume and force:
        raise InputError("--resume goes on with what --force would delete; give one")
    data_dir = None if data is None else str(Path(data).parent)
    given = source is not None or bool(overrides) or any(value is not None for value in top.values())
    own = out / "config.yaml"
    if not resume or not own.is_file() or (given and not (out / CHECKPOINT).is_file()):
        return load_config(
            default if source is None else source,
            overrides,
            data_dir=data_dir,
            output_dir=str(out.parent.parent),
            **top,
        )
    kept = load_config(own, data_dir=data_dir)
    if given:
        wanted = load_config(kept if source is None else source, overrides, **top)
        key = _first_difference(kept.model_dump(), wanted.model_dump())
        if key is not None:
            raise InputError(f"--resume goes on with the settings of {own}, whose {key} is another; leave it away")
    return kept


def _first_difference(kept: dict[str, Any], wanted: dict[str, Any], section: str = "") -> str | None:
    """The first key, with its section, whose values differ; folders may have moved."""
    for key, value in kept.items():
        if isinstance(value, dict):
            found = _first_difference(value, wanted[key], f"{section}{key}.")
            if found is not None:
                return found
        elif value != wanted[key] and key not in ("data_dir", "output_dir"):
            return section + key
    return None


def can_resume(claimed: Claim, log: Callable[[str], None]) -> bool:
    """Whether a folder that was claimed with --resume holds something to go on with; says so where it does not.

    Raises InputError for a folder with something else in it.
    """
    if not claimed.resumed:
        log(f"{claimed.folder} holds nothing to go on with: training begins anew")
        return False
    if not (claimed.folder / CHECKPOINT).is_file():
        raise InputError(f"{claimed.folder} holds no {CHECKPOINT} to go on from; leave --resume away")
    return True
