"""What a training run goes on from: its checkpoint, the same online and offline, and the settings it began with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from recon4d import InputError
from recon4d.cli import claim_output
from recon4d.files import write_torch
from recon4d.runs import read_checkpoint

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
        "optimizer": learner.optimizer.state_dict(),
    }
    write_torch(path, state)


def load_checkpoint(path: Path, learner: Learner) -> tuple[int, float]:
    """Fill a learner from a checkpoint; the images learned from and the seconds spent so far.

    Raises InputError for a missing or broken file, or one of another model size.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, so there is nothing to resume; leave --resume away")
    avatar = learner.avatar
    try:
        state = read_checkpoint(path, avatar.means.device)
        with torch.no_grad():
            for name in TRAINED:
                getattr(avatar, name).copy_(state["attributes"][name])
            avatar.seen.copy_(state["seen"])
            learner.corrections.copy_(state["corrections"])
        avatar.mlp.load_state_dict(state["mlp"])
        learner.optimizer.load_state_dict(state["optimizer"])
        return int(state["images"]), float(state["seconds"])
    except Exception as error:  # foreign shapes raise many types
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} does not fit this run ({reason}); train anew with --force") from error


def run_config(
    out: Path,
    data: str | Path | None,
    source: Config | str | Path,
    overrides: Sequence[str],
    resume: bool,
    force: bool,
    **top: Any,
) -> Config:
    """The settings of a run that begins in `out`, which must be free, or of the one to go on with there.

    Args:
        data: the subject's folder, where it is not to be the one that the settings name.
        source: settings, a preset or a YAML file; for a run that is gone on with its own are taken.
        top: top-level settings that replace those of `source`; None is left alone.

    Raises:
        InputError: settings that are not readable, an occupied folder, nothing to resume.
    """
    if resume and force:
        raise InputError("--resume goes on with what --force would delete; give one")
    data_dir = None if data is None else str(Path(data).parent)
    if not resume:
        claim_output(out, force)
        return load_config(source, overrides, data_dir=data_dir, output_dir=str(out.parent.parent), **top)
    if not (out / "config.yaml").is_file():
        raise InputError(f"{out} holds no run to resume; leave --resume away")
    if overrides or any(value is not None for value in top.values()):
        raise InputError("--resume goes on with the run's own settings; give only --subject and --work-name")
    return load_config(out / "config.yaml", data_dir=data_dir)
