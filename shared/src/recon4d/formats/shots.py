"""Pictures with the cameras that took them, as photogrammetry programs describe them, whichever wrote the file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recon4d.files import InputError
from recon4d.formats import colmap, metashape, nerf
from recon4d.formats.shot import Shot
from recon4d.images import MOST_PIXELS


@dataclass(frozen=True, eq=False)
class Shots:
    """The pictures of one source in its order, and what of it was left out, one sentence each."""

    shots: list[Shot]
    notes: list[str] = field(default_factory=list)


def read(source: str | Path, size_of: Callable[[str], tuple[int, int]]) -> Shots:
    """Cameras of a Metashape XML file, a `transforms.json` (or its folder), or the folder of a COLMAP model.

    Args:
        size_of: width and height of a picture by its name, for files that do not say it.

    Raises:
        InputError: none of these, broken, a lens or a camera that can't be honoured, numbers that are no camera.
    """
    source = Path(source)
    if source.is_dir() and (source / "transforms.json").is_file():
        source = source / "transforms.json"
    notes: list[str] = []
    if source.is_dir():
        shots = colmap.read(source)
    elif source.suffix.lower() == ".xml" and source.is_file():
        shots = metashape.read(source, notes.append)
    elif source.suffix.lower() == ".json" and source.is_file():
        shots = nerf.read(source, size_of)
    else:
        raise InputError(f"{source} is neither Metashape's .xml, nor a transforms.json, nor a folder of a COLMAP model")
    for shot in shots:
        check(shot, source)
    return Shots(shots, notes)


def check(shot: Shot, source: Path) -> None:
    """Raise InputError for a pose or a camera that can't be one, and for a size that no picture has."""
    camera, lens = shot.camera, shot.camera.lens
    terms = (*lens.radial, *lens.rational, *lens.tangential, *lens.prism)
    if not (np.isfinite(shot.world_to_camera).all() and np.isfinite(camera.K).all() and np.isfinite(terms).all()):
        raise InputError(
            f"{source}: {shot.file} has a pose or a lens with a number that is not finite; export it again"
        )
    if min(camera.K[0, 0], camera.K[1, 1]) <= 0 or min(camera.width, camera.height) < 1:
        raise InputError(f"{source}: {shot.file} has no positive focal length or size; correct it")
    if camera.width * camera.height > MOST_PIXELS:
        raise InputError(
            f"{source} is of too large pictures ({camera.width}x{camera.height} pixels); make them smaller"
        )
