"""Tables of Apache Arrow: feather files, and parquet files that are too large to be held at once."""

import importlib
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
    wrong = (_arrow("pyarrow").ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError)
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
    _needed([field.name for field in file.schema_arrow], needed, path)
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
    unpacked = max(sum(group.total_byte_size for group in groups), 8 * values, 8 * file.metadata.num_rows)
    if unpacked > most_bytes(path.stat().st_size):
        raise InputError(f"{path} says that it unpacks to {unpacked >> 20} MiB; copy it again")
    return file


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
