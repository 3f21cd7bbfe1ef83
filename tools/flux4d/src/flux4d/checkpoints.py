"""Checkpoints of a training: network, optimizer and settings after a step."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from recon4d import InputError, runs
from recon4d.files import write_bytes, write_torch

from flux4d import shipped
from flux4d.config import Config, change_config, load_config
from flux4d.model import Flux

LAST = "ckpt_last.pt"


def save(output: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, config: Config) -> None:
    """`ckpt_step_<step>.pt` and its copy `ckpt_last.pt`, atomically. Frames and clips are functions of the step, so no
    random state is in it."""
    state = {
        "step": step,
        "model": getattr(model, "module", model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": config.model_dump(),
    }
    path = output / f"ckpt_step_{step:06d}.pt"
    write_torch(path, state)
    write_bytes(output / LAST, path.read_bytes())


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content. Raises InputError when it is missing, broken, or not one of ours."""
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; give a checkpoint that overfit or train has written")
    try:
        state = runs.read_checkpoint(path)
    except InputError as error:
        raise InputError(f"{error}; give a checkpoint of flux4d, or train anew") from error
    kinds = {"step": int, "model": dict, "optimizer": dict, "config": dict}
    if not all(isinstance(state.get(name), kind) for name, kind in kinds.items()) or state["step"] < 0:
        raise InputError(f"{path} is not a checkpoint of flux4d (other content); give another or train anew")
    return state


def fill(
    path: str | Path, model: Flux, optimizer: torch.optim.Optimizer | None, log: Callable[[str], None] = print
) -> int:
    """Fill model and optimizer from a checkpoint; the step to go on at.

    Without an optimizer the parameters may differ: those missing in the file keep their start, which is logged.
    """
    state = read(path)
    try:
        missing, extra = model.load_state_dict(state["model"], strict=optimizer is not None)
        if optimizer is not None:
            optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path} is of another model ({reason}); use its own settings, or --resume-no-optim for what fits"
        ) from error
    if missing or extra:
        log(f"{path}: {len(missing)} parameters begin anew and {len(extra)} are not used")
    return state["step"]


def open_model(
    path: str | Path | None,
    device: torch.device,
    config: str | Path | None = None,
    overrides: Iterable[str] = (),
    camera: str | None = None,
) -> tuple[Flux, Config]:
    """A trained network, ready to use, and the settings it was trained with, or those of a config that it fits.

    Args:
        path: a checkpoint; None is the network that ships.
        config, overrides: as in `config.load_config`; None takes the checkpoint's own. camera: whose images, by name.
    """
    values = {"data.camera": camera}
    if path is None:
        settings = load_config(config or shipped.PRESET, overrides, values)
        model = Flux(settings.model)
        shipped.fill(model, lambda text: None)
        return model.to(device).eval(), settings
    state = read(path)
    if config is None:
        settings = change_config(state["config"], str(path), overrides, values)
    else:
        settings = load_config(config, overrides, values)
    model = Flux(settings.model)
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is of another model than the settings given; leave --config away") from error
    return model.to(device).eval(), settings
