"""Folders of pictures and of masks: which file is meant by a name that another program wrote down."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from recon4d.files import InputError
from recon4d.images import SUFFIXES, natural_key

# how masks are named after their picture: COLMAP's NAME.jpg.png, Metashape's, instant-ngp's, and the picture's own name
_MASKS = ("{file}", "{stem}_mask", "dynamic_mask_{stem}", "{stem}")


@dataclass(frozen=True, eq=False)
class PictureFolder:
    """A folder's pictures, its sub folders' too, hidden files left out.

    files: by path below the folder, as it is and in lower case. stems: the same without the suffix of a picture. bases:
    by stem of the file name alone in lower case, wherever it lies.
    """

    folder: Path
    files: dict[str, Path]
    stems: dict[str, Path]
    bases: dict[str, list[Path]]


def without_suffix(name: str) -> str:
    """A path without the suffix of a picture; anything else after a dot belongs to the name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in SUFFIXES else name


def open_folder(folder: str | Path) -> PictureFolder:
    """List a folder. Raises InputError where it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of the pictures")
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        below = Path(place).relative_to(folder)
        found += [(below / n).as_posix() for n in names if Path(n).suffix.lower() in SUFFIXES and n[0] != "."]
    files: dict[str, Path] = {}
    stems: dict[str, Path] = {}
    bases: dict[str, list[Path]] = {}
    # of a PNG and a JPEG of one name the PNG is taken, which was not compressed with losses
    for name in sorted(found, key=lambda n: (not n.lower().endswith(".png"), natural_key(n))):
        for key in (name, name.lower()):
            files.setdefault(key, folder / name)
            stems.setdefault(without_suffix(key), folder / name)
        bases.setdefault(PurePosixPath(without_suffix(name)).name.lower(), []).append(folder / name)
    return PictureFolder(folder, files, stems, bases)


def _tails(name: str) -> list[str]:
    """A path's ends, longest first: a/b/c, b/c, c."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    return ["/".join(parts[i:]) for i in range(len(parts))]


def find(pictures: PictureFolder, name: str) -> Path | None:
    """The picture meant by a name, with or without suffix and folders, in any case of letters; None where none is.

    Raises InputError where several are meant.
    """
    tails = _tails(name)
    for tail in tails:
        for key in (tail, tail.lower()):
            path = pictures.files.get(key) or pictures.stems.get(without_suffix(key)) or pictures.stems.get(key)
            if path is not None:
                return path
    return _anywhere(pictures, [without_suffix(tails[-1]).lower()] if tails else [], name)


def find_mask(masks: PictureFolder, name: str, picture: Path) -> Path | None:
    """The mask of the picture called `name`, which is the file `picture`: named as COLMAP (`NAME.jpg.png`), Metashape
    (`NAME_mask.png`), instant-ngp (`dynamic_mask_NAME.png`) or just as the picture. Else as `find`.
    """
    for form in _MASKS:
        for tail in _tails(name):
            place, stem = PurePosixPath(tail).parent, PurePosixPath(without_suffix(tail)).name
            wanted = (place / form.format(file=picture.name, stem=stem)).as_posix()
            path = masks.stems.get(wanted) or masks.stems.get(wanted.lower())
            if path is not None and path != picture:
                return path
    stem = PurePosixPath(without_suffix(picture.name.lower())).name
    return _anywhere(masks, [form.format(file=picture.name.lower(), stem=stem) for form in _MASKS], name, picture)


def _anywhere(pictures: PictureFolder, bases: Iterable[str], name: str, but: Path | None = None) -> Path | None:
    for base in bases:
        found = [path for path in pictures.bases.get(base, []) if path != but]
        if len({path.parent for path in found}) > 1:
            raise InputError(f"{pictures.folder} has {found[0]} and {found[1]} for {name}; keep one of them")
        if found:
            return found[0]
    return None


def distinct_stems(names: list[str]) -> list[str]:
    """Names for files of one folder: the stem of each, with its folders before it where stems alone are the same.

    Raises InputError where two names are the same even so.
    """
    paths = [PurePosixPath(without_suffix(name.replace("\\", "/"))) for name in names]
    stems = [path.name for path in paths]
    if len({stem.lower() for stem in stems}) < len(stems):
        stems = ["_".join(part for part in path.parts if part not in ("/", ".", "..")) for path in paths]
    seen: set[str] = set()
    for stem in stems:
        if stem.lower() in seen:
            raise InputError(f"two pictures are named {stem}; every picture needs a name of its own")
        seen.add(stem.lower())
    return stems
