"""The data set on disk: files of features and images by sequence and frame, and what kind of features they are."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
from recon4d import InputError
from recon4d.files import atomic_path, write_text

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
PREFIX = "expr_"  # of coefficient files

Files = dict[str, dict[str, Path]]  # sequence -> frame -> file


def natural(name: str) -> list:
    """Sort key under which frame 10 comes after frame 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def find_frames(folder: Path, suffixes: tuple[str, ...], prefix: str = "") -> Files:
    """The files `<sequence>/<prefix><frame><suffix>` of a folder, in natural order; {} when it is missing.

    A sequence's name is its path inside the folder. Raises InputError for two files of one frame.
    """
    found: Files = {}
    for path in sorted(folder.rglob("*"), key=lambda path: natural(path.relative_to(folder).as_posix())):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or path.parent == folder:
            continue
        sequence = path.parent.relative_to(folder).as_posix()
        frame = path.stem.removeprefix(prefix)
        other = found.setdefault(sequence, {}).setdefault(frame, path)
        if other != path:
            raise InputError(f"{other} and {path.name} are the same frame; remove one")
    return found


def find_images(folder: Path) -> Files:
    """The images of a folder. Raises InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; make it with prep-faces crop, or correct the config")
    found = find_frames(folder, IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"{folder} has no images SEQUENCE/FRAME.png; make them with prep-faces crop")
    return found


def read_image(path: Path) -> np.ndarray:
    """RGB uint8 (H, W, 3). Raises InputError for a file that is not a picture."""
    image = cv2.imread(str(path))
    if image is None:
        raise InputError(f"{path} is not a readable image; make it again")
    return np.ascontiguousarray(image[..., ::-1])


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write one array atomically."""
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def read_npy(path: Path) -> np.ndarray:
    """One array of finite numbers, without unpickling. Raises InputError for anything else."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a readable npy file ({error}); make it again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise InputError(f"{path} holds no array of numbers; make it again")
    if not np.isfinite(array).all():
        raise InputError(f"{path} holds NaN or infinite numbers; make it again")
    return array


def read_manifest(folder: Path) -> dict | None:
    """What a folder's features are: its `<name>.json`, None when there is none. Raises InputError for a broken one."""
    path = folder / f"{folder.name}.json"
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); make the features again with --force") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path} holds no JSON object; make the features again with --force")
    return manifest


def claim_features(folder: Path, manifest: dict, force: bool) -> None:
    """Begin or go on writing features of one kind into a folder; with `force`, those of another kind are removed.

    Raises InputError when the folder holds features of another kind.
    """
    held = read_manifest(folder) if not force else None
    files = [path for names in find_frames(folder, (".npy",)).values() for path in names.values()]
    if held is None and files and not force:
        raise InputError(f"{folder} holds features of unknown kind; give another output or --force to replace them")
    if held is not None and held != manifest:
        differ = sorted(key for key in {*held, *manifest} if held.get(key) != manifest.get(key))
        raise InputError(
            f"{folder} holds features with another {', '.join(differ)} ({held.get(differ[0])}, not "
            f"{manifest.get(differ[0])}); two kinds are not mixed: give another output or --force to replace them"
        )
    if force:
        for path in files:
            path.unlink()
    write_text(folder / f"{folder.name}.json", json.dumps(manifest, indent=2) + "\n")
