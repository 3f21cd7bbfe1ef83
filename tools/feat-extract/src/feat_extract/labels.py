"""Labels and predictions: CSV files with one row per sequence."""

import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError
from recon4d.files import write_text

_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "0.": 0, "1.": 1, "false": 0, "true": 1, "0,0": 0, "1,0": 1}


def read_table(path: Path, classes: Collection[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as spreadsheets and pandas write it.

    Cells are separated by commas, semicolons or tabs, text is UTF-8, UTF-16 or Windows' own. Excel's line `sep=;`, rows
    of empty cells and pandas's unnamed column of row numbers are passed over. Where a column of `classes` comes next,
    the numbers are the sequences' names.

    Raises InputError when it is missing, empty or has ragged rows.
    """
    try:
        text = _decoded(path.read_bytes()).lstrip("\ufeff")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable CSV file ({error}); correct it") from error
    first, _, rest = text.partition("\n")
    marked = first.strip().lower().startswith("sep=") and len(first.strip()) == 5
    text = rest if marked else text
    header = text.partition("\n")[0]
    try:
        separator = (
            first.strip()[4] if marked else max(",;\t", key=lambda s: len(next(csv.reader([header], delimiter=s))))
        )
        rows = list(csv.DictReader(io.StringIO(text), delimiter=separator, strict=True))
    except (csv.Error, StopIteration) as error:
        raise InputError(f"{path} is not a readable CSV file ({error}); correct it") from error
    numbered = [(number, row) for number, row in enumerate(rows, 3 if marked else 2) if any(_cells(row))]
    if not numbered:
        raise InputError(f"{path} has no rows; give a header and one row per sequence")
    for number, row in numbered:
        if None in row or None in row.values():
            raise InputError(f"{path} line {number} has more or fewer cells than the header; correct it")
    kept = [{key.strip(): value.strip() for key, value in row.items()} for _, row in numbered]
    key, *others = kept[0]
    numbers = (not key or key.startswith("Unnamed:")) and all(row[key].isdecimal() for row in kept)
    if numbers and others and others[0] not in classes:
        return [{name: row[name] for name in others} for row in kept]
    return kept


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def _cells(row: dict[str, Any]) -> list[str]:
    return [str(value).strip() for value in row.values() if value is not None and value != []]


def read_labels(path: Path, classes: list[str]) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """Per sequence its 0/1 labels (C,) and its row. The first column is the sequence's name.

    Labels may be written 1, 1.0 or True. Raises InputError for a missing class, another value, or a sequence named
    twice.
    """
    rows = read_table(path, classes)
    key = next(iter(rows[0]))
    missing = [name for name in classes if name not in rows[0]]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}; its header must name the classes of the config")
    labels: dict[str, tuple[np.ndarray, dict[str, str]]] = {}
    for row in rows:
        values = [_LABELS.get(row[name].lower()) for name in classes]
        if None in values:
            said = ", ".join(row[name] or "nothing" for name in classes)
            raise InputError(f"{path}: {row[key]} has {said}; labels are 0 or 1")
        if row[key] in labels:
            raise InputError(f"{path} names {row[key]} twice; keep one row")
        labels[row[key]] = np.array(values, int), row
    return labels


def write_table(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of equal keys as CSV, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
