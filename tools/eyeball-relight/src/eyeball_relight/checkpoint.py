"""A run's checkpoint: what training goes on from, and what an export is made of."""

import json
from pathlib import Path
from typing import Any

import torch
from recon4d import InputError
from recon4d.files import atomic_path
from torch import Tensor

from eyeball_relight import config
from eyeball_relight.field import Field

CHECKPOINT = "latest.pth"


def write_checkpoint(
    path: Path,
    field: Field,
    optimizer: torch.optim.Optimizer,
    grid: Tensor,
    intensity: Tensor,
    step: int,
    n_rays: int,
    seconds: float,
) -> None:
    """Everything that training needs to go on at `step`, atomically. No random state: it is a function of the step.

    Args:
        grid: cached distances. intensity: (3,) of the flash. n_rays: of the next step. seconds: spent so far.
    """
    state = {
        "step": step,
        "seconds": seconds,
        "n_rays": n_rays,
        "grid": grid,
        "intensity": intensity,
        "field": field.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": json.dumps(field.config.model_dump()),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint. Raises InputError for a missing or broken file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; train first, or give another --ckpt-path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {"field", "step", "config", "intensity"} <= set(state):
            raise ValueError("it holds something else")
        return state
    except Exception as error:  # truncated archives raise many types
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is not a readable checkpoint ({reason}); train again") from error


def fill(field: Field, state: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's parameters. Raises InputError where they do not fit."""
    try:
        field.load_state_dict(state["field"])
    except RuntimeError as error:
        raise InputError(f"{path} does not fit these settings ({str(error).splitlines()[-1].strip()})") from error


def open_field(path: Path) -> tuple[Field, Tensor, int]:
    """A trained field, its flash intensity (3,) and step. Raises InputError as `read_checkpoint` does."""
    state = read_checkpoint(path)
    settings = config.check(json.loads(state["config"]), path)
    field = Field(settings, len(state["field"]["occlusion"]))
    fill(field, state, path)
    return field.requires_grad_(False), state["intensity"], state["step"]
