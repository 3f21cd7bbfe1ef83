"""A folder that forgets: the files of the last frames, in memory where the system has a place for that."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from recon4d import InputError
from recon4d.formats.camera_stream import IMAGES, LANDMARKS, MATTES
from recon4d.images import encode

PREFIX = "recon4d-ring-"
OWNER = "owner"  # a file in the folder: the number of the process that writes there
MEMORY = Path("/dev/shm")  # a tmpfs on Linux
QUALITY = 95  # of JPEG


@dataclass
class Ring:
    """The folder, and the names of the frames in it, oldest first."""

    folder: Path
    keep: int
    names: deque[str] = field(default_factory=deque)

    def write(self, stem: str, picture: np.ndarray, matte: np.ndarray | None, points: np.ndarray | None) -> str:
        """Write a frame's files, the oldest frame's go; the name of the picture.

        Args:
            picture: (S, S, 3) uint8 RGB. matte: (S, S) uint8. points: (478, 3) float32.
        """
        name = f"{stem}.jpg"
        (self.folder / IMAGES / name).write_bytes(encode(".jpg", picture, quality=QUALITY))
        if matte is not None:
            (self.folder / MATTES / f"{stem}.png").write_bytes(encode(".png", matte))
        if points is not None:
            with open(self.folder / LANDMARKS / f"{stem}.npy", "wb") as file:
                np.save(file, points)
        self.names.append(stem)
        if len(self.names) > self.keep:
            self.forget(self.names.popleft())
        return name

    def forget(self, stem: str) -> None:
        """Remove a frame's files."""
        for kind, suffix in ((IMAGES, "jpg"), (MATTES, "png"), (LANDMARKS, "npy")):
            (self.folder / kind / f"{stem}.{suffix}").unlink(missing_ok=True)


@contextlib.contextmanager
def opened(folder: str | Path | None, keep: int, leave: bool = False) -> Iterator[Ring]:
    """A ring of at most `keep` frames for the block; when it ends the folder is gone, whatever ended it.

    Those of processes that were killed are removed first.

    Args:
        folder: None makes one in memory, or where temporary files go.
        leave: the folder stays.

    Raises:
        InputError: a folder that holds something else, or is in use.
    """
    place = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    if folder is None:
        for left in place.glob(f"{PREFIX}*"):
            if not _in_use(left):
                shutil.rmtree(left, ignore_errors=True)
        chosen = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    else:
        chosen = Path(folder)
        if chosen.is_file() or (chosen.is_dir() and any(chosen.iterdir()) and not (chosen / OWNER).is_file()):
            raise InputError(f"--ring {chosen} holds something else; give a folder that is empty or does not exist")
        if (chosen / OWNER).is_file():
            if _in_use(chosen):
                raise InputError(f"--ring {chosen} is in use by another prep-faces camera; give another folder")
            shutil.rmtree(chosen)
        chosen.mkdir(parents=True, exist_ok=True)
    (chosen / OWNER).write_text(str(os.getpid()))
    for kind in (IMAGES, MATTES, LANDMARKS):
        (chosen / kind).mkdir()
    try:
        yield Ring(chosen, keep)
    finally:
        if leave:
            (chosen / OWNER).unlink(missing_ok=True)
        else:
            shutil.rmtree(chosen, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    """Whether the process that made a ring is alive."""
    try:
        process = int((folder / OWNER).read_text())
        if sys.platform != "win32":  # there signal 0 would end the process
            os.kill(process, 0)
    except (ProcessLookupError, ValueError, FileNotFoundError):
        return False
    except OSError:
        return True
    return True
