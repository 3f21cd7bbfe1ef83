"""The network that ships with flux4d: weights in half precision, checked by their hash, with settings of their own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from recon4d import InputError, shipped
from recon4d.files import write_bytes
from recon4d.runs import read_checkpoint

from flux4d.model import Flux

NAME = "streets.safetensors"
SHA256 = "fb9b3fef0eed37f7fd099a483a73d8ef8c587a6a13b3f0f5b5e2f83a085f2845"
PRESET = "shipped"  # the settings it is used with
INSTEAD = "a checkpoint of flux4d train"


def weights() -> dict[str, torch.Tensor]:
    """Its parameters by name, float32. Raises InputError where the file is missing or another one."""
    content = shipped.read("flux4d", NAME, SHA256, INSTEAD)
    return {name: value.float() for name, value in safetensors.torch.load(content).items()}


def fill(model: Flux, log: Callable[[str], None] = print) -> None:
    """Put the shipped weights into a network.

    Raises InputError where its settings are of another one: only a further refinement is the same network.
    """
    try:
        model.load_state_dict(weights())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"--init {PRESET} is of another model than the settings ({reason}); use --config {PRESET}, or leave the "
            "settings of model alone"
        ) from error
    log("begins with the network that ships with flux4d")


def pack(files: Sequence[str | Path], path: str | Path) -> int:
    """Write the mean of checkpoints of one run as the file that ships; its size in bytes. For who trains the next one.

    The mean of the last few does what a slower end of the training would (Izmailov et al. 2018).
    """
    states = [read_checkpoint(file)["model"] for file in files]
    mean = {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}
    content = safetensors.torch.save({name: value.half().contiguous() for name, value in mean.items()})
    write_bytes(Path(path), content)
    return len(content)
