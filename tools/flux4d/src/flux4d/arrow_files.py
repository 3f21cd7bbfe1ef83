"""Tables of Apache Arrow: feather files, and parquet files that are too large to be held at once."""

import importlib
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError
from recon4d.files import most_bytes

ROWS = 4  # read at once of a table whose rows are pictures or range images


def _arrow(name: str) -> Any:
    """A module of pyarrow."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError("logs of this layout need the package pyarrow; install flux4d[logs]") from error


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """What pyarrow raises, as InputError."""
    wrong = (_arrow("pyarrow").ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError, struct.error)
    try:
        yield
    except InputError:
        raise
    except wrong as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path} is not a readable Arrow table ({said}); copy it again") from error


def _needed(there: list[str], needed: tuple[str, ...], path: Path) -> None:
    missing = [name for name in needed if name not in there]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}; it has {', '.join(there)[:200]}")


def _parquet(path: Path, needed: tuple[str, ...]) -> Any:
    """An open parquet file that has the columns and does not unpack to more than it may."""
    file = _arrow("pyarrow.parquet").ParquetFile(path)
    # no more of the metadata: pyarrow's RowGroupMetaData.column ends the process where a column's are broken
    groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
    unpacked = max(sum(group.total_byte_size for group in groups), 8 * file.metadata.num_rows)
    _check_size(unpacked, path)
    _needed([field.name for field in file.schema_arrow], needed, path)
    return file


def _check_size(unpacked: int, path: Path) -> None:
    if unpacked > most_bytes(path.stat().st_size):
        raise InputError(f"{path} says that it unpacks to {unpacked >> 20} MiB; copy it again")


def _unpacked(source: Any) -> int:
    """Bytes that the compressed buffers of a feather file say they unpack to.

    The format is Arrow's IPC (format/Message.fbs, "File Format" and "Compression" in its columnar specification):
    after eight bytes, messages, each with a flatbuffer that tells where in its body the buffers are; a compressed one
    begins with its length when unpacked, or -1.
    """
    source.seek(8)
    total = 0
    for message in _arrow("pyarrow.ipc").MessageReader.open_stream(source):
        data, body = message.metadata.to_pybytes(), message.body
        (root,) = struct.unpack_from("<I", data)
        header = _field(data, root, 2)
        if message.type not in ("record batch", "dictionary") or header is None:
            continue
        batch = header + struct.unpack_from("<I", data, header)[0]
        if message.type == "dictionary":  # a table of its id and its batch
            inner = _field(data, batch, 1)
            if inner is None:
                continue
            batch = inner + struct.unpack_from("<I", data, inner)[0]
        buffers = _field(data, batch, 2)
        if _field(data, batch, 3) is None or buffers is None:
            continue  # nothing is compressed
        place = buffers + struct.unpack_from("<I", data, buffers)[0]
        for i in range(struct.unpack_from("<I", data, place)[0]):
            start, length = struct.unpack_from("<qq", data, place + 4 + 16 * i)
            if length >= 8:
                total += max(struct.unpack_from("<q", body, start)[0], 0)
    return total


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a flatbuffer's table has a field; None where it has it not."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    slot = 4 + 2 * number
    if slot >= struct.unpack_from("<H", data, fields)[0]:
        return None
    (offset,) = struct.unpack_from("<H", data, fields + slot)
    return table + offset if offset else None


def read(path: Path, needed: tuple[str, ...], gaps: bool = False) -> dict[str, np.ndarray]:
    """Columns of a feather or `.parquet` file, (N,) by name: numbers, or objects of texts and lists.

    Args:
        gaps: whether values may be missing.

    Raises InputError for a file that is missing, broken, without one of the columns, or has a gap in one.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; check that the log is complete")
    with _said(path):
        if path.suffix == ".parquet":
            with _parquet(path, needed) as file:
                table = file.read(columns=list(needed))
        else:
            with _arrow("pyarrow").memory_map(str(path)) as source:
                file = _arrow("pyarrow.ipc").open_file(source)
                _check_size(_unpacked(source), path)
                _needed(file.schema.names, needed, path)
                # only these columns are unpacked
                places = [file.schema.get_field_index(name) for name in needed]
                options = _arrow("pyarrow.ipc").IpcReadOptions(included_fields=places)
                table = _arrow("pyarrow.ipc").open_file(source, options=options).read_all()
        table.validate(full=True)
        out = {}
        for name in needed:
            column = table.column(name)
            if column.null_count and not gaps:
                raise ValueError(f"column {name} has gaps")
            number = _arrow("pyarrow.types").is_primitive(column.type)
            # with a None at its end NumPy makes no table of lists of one length
            out[name] = column.to_numpy() if number else np.array([*column.to_pylist(), None], object)[:-1]
        return out


def numbers(columns: dict[str, np.ndarray], names: tuple[str, ...], path: Path) -> np.ndarray:
    """(N, K) float64 of columns. InputError where they are not finite numbers."""
    try:
        found = np.stack([columns[name].astype(np.float64) for name in names], -1)
        if not np.isfinite(found).all():
            raise ValueError("they are not finite")
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} holds {names[0]} that are no numbers ({str(error)[:100]}); copy it again") from error
    return found


def rows(path: Path, needed: tuple[str, ...]) -> Callable[[int], dict[str, Any]]:
    """A function of a row's number for what it holds, a bytes or list column as Arrow's scalar.

    Few rows are in memory at a time: it is quick when rows are asked for in the file's order, and goes through the
    file again when an earlier one is.
    """
    held: dict[str, Any] = {"rows": iter(()), "next": 0, "last": None, "at": -1}

    def batches() -> Iterator[dict[str, Any]]:
        with _parquet(path, needed) as file:
            for batch in file.iter_batches(batch_size=ROWS, columns=list(needed), use_threads=False):
                batch.validate(full=True)
                for i in range(len(batch)):
                    yield {name: batch.column(batch.schema.get_field_index(name))[i] for name in needed}

    def row(number: int) -> dict[str, Any]:
        with _said(path):
            if number == held["at"]:
                return dict(held["last"])
            if number < held["next"] or held["at"] < 0:
                held.update(rows=batches(), next=0)
            while held["next"] <= number:
                held.update(last=next(held["rows"]), at=held["next"], next=held["next"] + 1)
            return dict(held["last"])

    return row


def list_of(scalar: Any, path: Path) -> np.ndarray | None:
    """The numbers (N,) in a row of a list column; None where there are none. InputError for other things."""
    if not scalar.is_valid:
        return None
    with _said(path):
        found: Any = getattr(scalar, "values", None)
        if not hasattr(found, "to_numpy"):
            raise ValueError("a column should hold lists")
        numbers: np.ndarray = found.to_numpy(zero_copy_only=False)
        if numbers.dtype.kind not in "iuf":
            raise ValueError("a list holds no numbers")
    return numbers
