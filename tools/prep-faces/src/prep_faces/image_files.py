"""Which images a command works on, and how its outputs name them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from recon4d import InputError
from recon4d.images import SUFFIXES, natural_key, resize


@dataclass(frozen=True)
class ImageFile:
    """One input image: where it is, and how the outputs name it."""

    path: Path
    file: str  # relative to the folder the user gave, or the file's own name: what records carry
    name: str  # `file` without its suffix: what outputs are called


def find_images(paths: Sequence[str | Path]) -> list[ImageFile]:
    """The image files that `paths` name; folders are walked, hidden files left out, in natural order.

    A file named by itself is taken whatever its suffix (reading it will tell). Raises InputError when a path is
    missing or when there is no image at all.
    """
    found: list[ImageFile] = []
    for given in map(Path, paths):
        if given.is_dir():
            inside = [
                path.relative_to(given)
                for path in given.rglob("*")
                # A link to nowhere is taken too, so that it is recorded.
                if path.suffix.lower() in SUFFIXES and (path.is_file() or (path.is_symlink() and not path.exists()))
            ]
            visible = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
            for path in sorted(visible, key=lambda path: natural_key(path.as_posix())):
                found.append(ImageFile(given / path, path.as_posix(), path.with_suffix("").as_posix()))
        elif os.path.lexists(given):
            found.append(ImageFile(given, given.name, given.stem))
        else:
            raise InputError(f"{given} does not exist; give image files or folders of images")
    if not found:
        raise InputError(f"{', '.join(map(str, paths)) or 'nothing'} holds no image (png, jpg, tif, webp, bmp ...)")
    return found


def clashes(files: list[ImageFile]) -> list[InputError | None]:
    """For each file an error when an earlier one has the same name up to the suffix, else None."""
    first: dict[str, ImageFile] = {}
    return [
        None
        if first.setdefault(file.name, file) is file
        else InputError(f"{file.file} would overwrite what {first[file.name].file} gives; rename one of them")
        for file in files
    ]


def scaled(image: np.ndarray, longest: float) -> np.ndarray:
    """An image (H, W, 3) uint8 whose longer side has so many pixels."""
    scale = longest / max(image.shape[:2])
    return resize(image, *(max(1, round(length * scale)) for length in (image.shape[1], image.shape[0])))
