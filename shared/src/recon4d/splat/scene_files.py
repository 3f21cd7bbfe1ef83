"""Gaussians in files of any known kind by suffix: `.ply`, also compressed, `.spz`, `.sog` or `meta.json`, `.splat`."""

from collections.abc import Callable
from pathlib import Path

from recon4d.files import InputError
from recon4d.splat import sog, splat_file, spz
from recon4d.splat.gaussians import Gaussians
from recon4d.splat.ply import read_ply, write_ply

_READ: dict[str, Callable[[Path], Gaussians]] = {
    ".ply": read_ply, ".spz": spz.read, ".sog": sog.read, ".json": sog.read, ".splat": splat_file.read
}  # fmt: skip
_WRITE: dict[str, Callable[[Path, Gaussians], None]] = {
    ".ply": write_ply, ".spz": spz.write, ".sog": sog.write, ".splat": splat_file.write
}  # fmt: skip
KINDS = tuple(suffix[1:] for suffix in _WRITE)


def read(path: str | Path) -> Gaussians:
    """Read a file by its suffix. Raises InputError for another suffix, and as the reader of the kind does."""
    path = Path(path)
    if path.suffix.lower() not in _READ:
        raise InputError(f"{path} has no suffix of Gaussians; give one of {', '.join(_READ)}")
    return _READ[path.suffix.lower()](path)


def write(path: str | Path, gaussians: Gaussians) -> None:
    """Write a file by its suffix, atomically; what the kind cannot hold is left out, see there.

    Raises InputError for another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITE:
        raise InputError(f"{path} has no suffix of Gaussians; give one of {', '.join(_WRITE)}")
    _WRITE[path.suffix.lower()](path, gaussians)
