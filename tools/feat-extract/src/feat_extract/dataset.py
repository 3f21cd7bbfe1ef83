"""The data set on disk: files of features and images by sequence and frame, and what kind of features they are."""

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError, images, runs
from recon4d.files import atomic_path, read_json, read_npy, write_text

PREFIX = "expr_"  # of coefficient files

Files = dict[str, dict[str, Path]]  # sequence -> frame -> file


def find_frames(folder: Path, suffixes: Collection[str], prefix: str = "") -> Files:
    """The files `<sequence>/<prefix><frame><suffix>` of a folder, in natural order; {} when it is missing.

    A sequence's name is its path inside the folder; what is hidden is left out. Raises InputError for two files of one
    frame.
    """
    found: Files = {}
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in suffixes]
    for name in sorted(names, key=lambda name: images.natural_key(name.as_posix())):
        if len(name.parts) < 2 or any(part.startswith(".") for part in name.parts):
            continue
        path, sequence = folder / name, name.parent.as_posix()
        frame = path.stem.removeprefix(prefix)
        other = found.setdefault(sequence, {}).setdefault(frame, path)
        if other != path:
            raise InputError(f"{other} and {path.name} are the same frame; remove one")
    return found


def find_images(folder: Path) -> Files:
    """The images of a folder. Raises InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; make it with prep-faces crop, or correct the config")
    found = find_frames(folder, images.SUFFIXES)
    if not found:
        raise InputError(f"{folder} has no images SEQUENCE/FRAME.png; make them with prep-faces crop")
    return found


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write one array atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def read_numbers(path: Path) -> np.ndarray:
    """One array of finite numbers of an npy file. Raises InputError for anything else."""
    try:
        array = read_npy(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it again") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path} holds no array of numbers; make it again")
    if not np.isfinite(array).all():
        raise InputError(f"{path} holds NaN or infinite numbers; make it again")
    return array


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder's features are: its `<name>.json`, None when there is none. Raises InputError for a broken one."""
    path = manifest_path(folder)
    if not path.is_file():
        return None
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise InputError(f"{path} holds no JSON object; make the features again with --force")
    return manifest


def manifest_path(folder: Path) -> Path:
    return folder / f"{folder.name}.json"


@contextmanager
def claim_features(
    folder: Path, manifest: dict[str, Any], command: str, force: bool, inputs: Iterable[Path]
) -> Iterator[runs.Claim]:
    """Take a folder for features of one kind while the block runs; what is there of the same kind is gone on with.

    Args:
        force: replace features of another kind that an earlier run of the command wrote.
        inputs: what is read.

    Raises:
        InputError: the folder holds features of another kind, or as `recon4d.runs.claim`.
    """
    held = read_manifest(folder) if not force else None
    if held is not None and held != manifest:
        differ = sorted(key for key in {*held, *manifest} if held.get(key) != manifest.get(key))
        raise InputError(
            f"{folder} holds features with another {', '.join(differ)} ({held.get(differ[0])}, not "
            f"{manifest.get(differ[0])}); two kinds are not mixed: give another output or --force to replace them"
        )
    with runs.claim(folder, command, force=force, resume=held is not None, inputs=inputs) as claimed:
        write_text(manifest_path(folder), json.dumps(manifest, indent=2) + "\n")
        yield claimed
