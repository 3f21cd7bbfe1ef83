"""A run's checkpoint: what training goes on from, and what an export is made of."""

import json
from pathlib import Path
from typing import Any

import torch
from recon4d import InputError
from recon4d.files import parse_json, write_torch
from recon4d.runs import read_checkpoint
from torch import Tensor
from torch.utils._pytree import tree_map

from eyeball_relight import config
from eyeball_relight.field import Field

CHECKPOINT = "latest.pth"


def write(
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
        field, optimizer: on any device; kept as of the CPU. grid: cached distances. intensity: (3,) of the flash.
        n_rays: of the next step. seconds: spent so far.
    """
    state = {
        "step": step,
        "seconds": seconds,
        "n_rays": n_rays,
        "grid": grid,
        "intensity": intensity.cpu(),
        "field": tree_map(_on_cpu, field.state_dict()),
        "optimizer": tree_map(_on_cpu, optimizer.state_dict()),
        "config": json.dumps(field.config.model_dump()),
    }
    write_torch(path, state)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, its numbers checked. Raises InputError for a missing, broken or foreign file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; train first, or give another --ckpt-path")
    state = read_checkpoint(path)
    try:
        intensity = state["intensity"]
        fine = isinstance(state["step"], int) and 0 <= state["step"] < 2**53 and isinstance(state["n_rays"], int)
        fine = fine and 0 < state["n_rays"] < 2**32 and 0 <= float(state["seconds"]) < float("inf")
        fine = fine and isinstance(state["config"], str) and state["grid"].ndim == 3
        fine = fine and intensity.shape == (3,) and bool(intensity.isfinite().all())
        fine = fine and {"field", "optimizer"} <= set(state)
    except (KeyError, TypeError, ValueError, AttributeError):
        fine = False
    if not fine:
        raise InputError(f"{path} is not a readable checkpoint (it holds something else); train again")
    return state


def fill(field: Field, state: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's parameters. Raises InputError where they do not fit."""
    try:
        field.load_state_dict(state["field"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not fit these settings ({str(error).splitlines()[-1].strip()[:150]})") from error


def resume(
    field: Field, optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path
) -> tuple[Tensor, int, int, float]:
    """Load all that training goes on from: cached distances, rays of the next step, the step, seconds so far.

    Raises InputError where the checkpoint is of other settings.
    """
    fill(field, state, path)
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not fit these settings ({error}); train again") from error
    if state["grid"].shape != (field.config.train.grid + 1,) * 3:
        raise InputError(f"{path} does not fit these settings (its grid has another size); train again")
    return state["grid"], state["n_rays"], state["step"], float(state["seconds"])


def open_field(path: Path) -> tuple[Field, Tensor, int]:
    """A trained field, its flash intensity (3,) and step. Raises InputError as `read` does."""
    state = read(path)
    settings = config.check(parse_json(state["config"], path), path)
    try:
        field = Field(settings, len(state["field"]["occlusion"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} holds no field; train again") from error
    fill(field, state, path)
    return field.requires_grad_(False), state["intensity"], state["step"]
