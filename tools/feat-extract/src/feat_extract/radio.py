"""RADIO (Ranzinger et al. 2024), loaded with the Python code that comes with its weights."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from recon4d import InputError

REPOSITORY = "NVlabs/RADIO"


def load(version: str, revision: str | None, folder: Path) -> tuple[Any, str]:
    """RADIO's module, in evaluation mode on the CPU, and where it is from. This runs the code that comes with it.

    Args:
        version: of torch.hub's `NVlabs/RADIO`, a repository of Hugging Face, or a folder with a snapshot of one.
        revision: of the repository; None is the newest.
        folder: where code and weights are kept, or found without network.

    Raises:
        InputError: what cannot be fetched or loaded; the message says which files to put where.
    """
    local = next((path for path in (Path(version), folder / Path(version).name) if path.is_dir()), None)
    if local is not None:
        model, source = _from_snapshot(local), str(local)
    elif "/" in version:
        model, source = _from_hugging_face(version, revision, folder), f"{version} at {revision}"
    else:
        model, source = _from_hub(version, revision or "main", folder)
    return model.eval().float(), source


def _from_snapshot(folder: Path) -> Any:
    """A snapshot from Hugging Face: config.json, its modules and model.safetensors."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; give a snapshot of a C-RADIO repository from Hugging Face")
    return _auto_model(str(folder), f"{folder} can't be loaded", "get the whole snapshot again", local_files_only=True)


def _from_hugging_face(name: str, revision: str | None, folder: Path) -> Any:
    place = folder / name.rpartition("/")[2]
    remedy = f"without network, put the files of its repository (config.json, *.py, model.safetensors) into {place}"
    return _auto_model(name, f"{name} can't be fetched", remedy, revision=revision, cache_dir=str(folder))


def _auto_model(name: str, what: str, remedy: str, **options: Any) -> Any:
    from transformers import AutoModel, PreTrainedModel

    if not hasattr(PreTrainedModel, "all_tied_weights_keys"):
        # RADIO's published classes do not call post_init, which would set it; they tie no weights.
        PreTrainedModel.all_tied_weights_keys = {}
    try:
        with redirect_stdout(sys.stderr):
            return AutoModel.from_pretrained(name, trust_remote_code=True, dtype=torch.float32, **options)
    except Exception as error:  # foreign code runs here
        raise InputError(f"{what} ({short(error)}); {remedy}") from error


def _from_hub(version: str, revision: str, folder: Path) -> tuple[Any, str]:
    code = folder / f"{REPOSITORY.replace('/', '_')}_{revision}"  # where torch.hub unpacks it
    options: dict[str, Any] = {"version": version, "progress": False}
    with _hub_folder(folder):
        try:
            if (code / "hubconf.py").is_file():
                model = torch.hub.load(str(code), "radio_model", source="local", **options)
            else:
                repository = f"{REPOSITORY}:{revision}"
                model = torch.hub.load(repository, "radio_model", trust_repo=True, skip_validation=True, **options)
        except Exception as error:  # foreign code runs here
            raise InputError(
                f"radio:{version} can't be loaded ({short(error)}); without network, unpack {REPOSITORY} at "
                f"{revision} into {code} and put the weights that its hubconf.py names for {version} into "
                f"{folder / 'checkpoints'}"
            ) from error
    return model, f"{REPOSITORY} at {revision}"


@contextmanager
def _hub_folder(folder: Path) -> Iterator[None]:
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(folder))
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the result
            yield
    finally:
        torch.hub.set_dir(before)


def short(error: Exception) -> str:
    """What an error of foreign code says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
