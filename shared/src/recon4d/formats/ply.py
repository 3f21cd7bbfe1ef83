"""PLY files of any kind, read whole by plyfile."""

import re
from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyParseError

from recon4d.files import InputError


def read(path: str | Path) -> PlyData:
    """A PLY file, ASCII or binary; nothing points into the file afterwards, so it may be written anew.

    Raises InputError when the file is missing, broken, or says that it holds more than it can.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        _check_size(path)
        # mapped, plyfile reads a table at once; not mapped, row by row
        content = PlyData.read(path)
        for element in content:
            element.data = np.array(element.data)
        return content
    except (PlyParseError, KeyError, ValueError, OSError, EOFError, OverflowError, MemoryError, IndexError) as error:
        raise InputError(f"{path} is not a readable PLY file ({str(error)[:120]}); export it again") from error


def _check_size(path: Path) -> None:
    """Raise ValueError for a file whose header declares more rows than it has bytes: plyfile makes room for them."""
    with open(path, "rb") as file:
        header = file.read(1 << 20).split(b"end_header")[0].decode("ascii", "replace")
    counts = [int(count) for count in re.findall(r"^element\s+\S+\s+(\d{1,18})\s", header, re.MULTILINE)]
    if sum(counts) > path.stat().st_size:
        raise ValueError(f"it says that it holds {sum(counts)} elements")
