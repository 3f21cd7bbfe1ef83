"""Files: atomic writes, containers read within bounds, checksums, and the error a user can cause."""

import gzip
import hashlib
import io
import json
import math
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class InputError(ValueError):
    """Something the user gave is wrong. The message is one sentence naming the file or option and the remedy."""


def temporary_owner(name: str) -> int | None:
    """The process that made a temporary file of this name by `atomic_path`; None for other names."""
    found = re.match(r"\.recon4d-(\d+)-", name)
    return int(found[1]) if found else None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place when the block ends well, remove it otherwise.

    The temporary name keeps the suffix of `path`, so that writers which choose a format by suffix work, and names the
    process, so that what a killed one left can be told from what is being written.
    """
    path = Path(path)
    missing = [folder for folder in path.parents if not os.path.lexists(folder)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".recon4d-{os.getpid()}-", suffix=path.suffix[-32:])
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file to write")
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes private files
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and error.filename in (None, name, str(path)):
            raise InputError(f"{path} cannot be written ({error.strerror or error})") from error
        raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    write_bytes(path, text.encode())


def write_npz(path: str | Path, **arrays: Any) -> None:
    """Write arrays to a compressed npz file atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """Write a plain array to an npy file atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def write_torch(path: str | Path, content: Any) -> None:
    """Write plain values and tensors with `torch.save`, atomically."""
    import torch

    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how torch says that a disk is full
            raise InputError(f"{path} cannot be written ({str(error).splitlines()[0][:120]})") from error


def most_bytes(size: int) -> int:
    """How many bytes a compressed file of `size` bytes may unpack to: enough for any real one, no bomb."""
    return max(256 << 20, 100 * size)


def read_member(archive: zipfile.ZipFile, name: str, source: str | Path) -> bytes:
    """A member of a zip archive. Raises InputError when it is encrypted, oddly packed, or larger than it may be."""
    info = archive.getinfo(name)
    if info.flag_bits & 1:
        raise InputError(f"{source} is encrypted; write it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{source} is packed in an unusual way ({name}); write it again")
    if info.file_size > most_bytes(info.compress_size):
        raise InputError(f"{source} says that {name} unpacks to {info.file_size >> 20} MiB; write it again")
    with archive.open(info) as file:
        return file.read(info.file_size)


def read_npy_header(file: BinaryIO, source: str | Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of an npy file, and the file at its content.

    Raises InputError for anything else, and for a shape that the file has no bytes for.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # headers are Python literals: what is none raises many types
        said = str(error).split("\n")[0][:120]
        raise InputError(f"{source} is not a readable npy file ({said})") from error
    start = file.tell()
    held = file.seek(0, 2) - start
    file.seek(start)
    if dtype.kind != "O" and (min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize > held):
        raise InputError(f"{source} is not a readable npy file (it says {shape} {dtype} and holds {held} bytes)")
    return shape, fortran, dtype


Objects = Callable[[bytes, tuple[int, ...]], Any]


def read_npy(path: str | Path) -> np.ndarray:
    """An npy file of a plain array. Raises InputError for anything else."""
    with open(path, "rb") as file:
        found: np.ndarray = _array_of(file, path)
    return found


def _array_of(file: BinaryIO, source: str | Path, objects: Objects | None = None) -> Any:
    shape, _, dtype = read_npy_header(file, source)
    if dtype.kind == "O" and objects is not None:
        return objects(file.read(), shape)
    if dtype.hasobject:
        raise InputError(f"{source} holds objects, not numbers; write it again without pickles")
    if len(shape) > 32:
        raise InputError(f"{source} holds an array of {len(shape)} dimensions")
    file.seek(0)
    found: np.ndarray = np.load(file, allow_pickle=False)
    return found


def read_npz(path: str | Path, objects: Objects | None = None) -> dict[str, Any]:
    """Read an npz file without unpickling.

    Args:
        objects: what becomes of an array of objects, from its pickle and shape; see `recon4d.pickles.read_npz`.

    Raises InputError when it is missing or truncated, holds objects, or declares more than it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            total = sum(archive.getinfo(name).file_size for name in names)
            if total > most_bytes(path.stat().st_size):
                raise InputError(f"it says that it unpacks to {total >> 20} MiB")
            return {
                name.removesuffix(".npy"): _array_of(io.BytesIO(read_member(archive, name, name)), name, objects)
                for name in names
            }
    except _DAMAGED as error:
        raise InputError(f"{path} is not a readable npz file ({error}); write it again") from error


_DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    zlib.error,
    zipfile.BadZipFile,
)


def parse_json(text: str | bytes, source: str | Path) -> Any:
    """JSON of a stranger. Raises InputError for what is none, is nested too deeply or holds endless numbers."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a broken encoding and a number of 5,000 digits are ValueErrors
        raise InputError(f"{source} is not readable JSON ({str(error)[:120]})") from error


def read_json(path: str | Path) -> Any:
    """The content of a JSON file (UTF-8). Raises InputError when it is missing or `parse_json` refuses it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a JSON file") from error
    return parse_json(data, path)


def read_gzip(path: str | Path) -> bytes:
    """The content of a gzip file. Raises InputError when it is missing, damaged, or unpacks to more than it may."""
    path = Path(path)
    try:
        limit = most_bytes(path.stat().st_size)
        with gzip.open(path) as file:
            data = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a readable gzip file ({error}); copy it again") from error
    if len(data) > limit:
        raise InputError(f"{path} is not a readable gzip file (it unpacks to over {limit >> 20} MiB); copy it again")
    return data


def sha256(path: str | Path) -> str:
    """Hex SHA-256 digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
