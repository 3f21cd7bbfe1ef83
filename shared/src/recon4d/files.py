"""Files: atomic writes, restricted unpickling, checksums, and the error a user can cause."""

import hashlib
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class InputError(ValueError):
    """Something the user gave is wrong. The message is one sentence naming the file or option and the remedy."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place when the block ends well, remove it otherwise.

    The temporary name keeps the suffix of `path`, so that writers which choose a format by suffix work.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes private files
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read an npz file without unpickling. Raises InputError when it is missing, truncated or holds objects."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        data = np.load(path, allow_pickle=False)
        if not isinstance(data, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with data:
            return {key: data[key] for key in data.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable npz file ({error}); write it again") from error


def sha256(path: str | Path) -> str:
    """Hex SHA-256 digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, find: Callable[[str, str], Any], encoding: str):
        super().__init__(file, encoding=encoding)
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        return self._find(module, name)


def restricted_unpickle(
    file: BinaryIO,
    allowed: dict[tuple[str, str], Any],
    source: str | Path,
    fallback: Callable[[str, str], Any] | None = None,
    persistent_load: Callable[[Any], Any] | None = None,
    encoding: str = "latin1",
) -> Any:
    """Unpickle `file`, resolving only the (module, name) pairs in `allowed`; anything else is refused by name.

    Args:
        allowed: what each permitted global resolves to.
        source: the path to name in errors.
        fallback: called as `fallback(module, name)` for other globals; returns a stand-in, or None to refuse.
        persistent_load: resolves persistent ids (torch storages).
        encoding: for strings written by Python 2.

    Raises:
        InputError: a forbidden global, or a file that is not a pickle. Nothing of the file has been called then
            but the functions in `allowed`.
    """

    def find(module: str, name: str) -> Any:
        if (module, name) in allowed:
            return allowed[module, name]
        stand_in = fallback(module, name) if fallback else None
        if stand_in is None:
            raise InputError(
                f"{source} asks to load {module}.{name}, which is not allowed; get it from a trusted source"
            )
        return stand_in

    unpickler = _RestrictedUnpickler(file, find, encoding)
    if persistent_load is not None:
        unpickler.persistent_load = persistent_load  # type: ignore[method-assign]
    try:
        return unpickler.load()
    except InputError:
        raise
    except Exception as error:  # a broken stream can raise almost anything from the allowed constructors
        raise InputError(f"{source} is not a readable pickle file ({type(error).__name__}: {error})") from error


def numpy_globals() -> dict[tuple[str, str], Any]:
    """The globals that pickled numpy arrays, scalars and scipy sparse matrices need (numpy 1 and 2, Python 2 and 3)."""
    import _codecs

    import scipy.sparse as sparse
    from numpy._core import multiarray

    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _codecs.encode,  # how Python 3 writes bytes at protocol 2
        ("builtins", "slice"): slice,
        ("__builtin__", "slice"): slice,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = multiarray._reconstruct
        allowed[f"{core}.multiarray", "scalar"] = multiarray.scalar
        allowed[f"{core}.numeric", "_frombuffer"] = lambda buffer, dtype, shape, order: np.frombuffer(
            buffer, dtype
        ).reshape(shape, order=order)
    for kind in ("csc", "csr", "coo"):
        cls = getattr(sparse, f"{kind}_matrix")
        for module in (f"scipy.sparse.{kind}", f"scipy.sparse._{kind}"):
            allowed[module, f"{kind}_matrix"] = cls
    return allowed
