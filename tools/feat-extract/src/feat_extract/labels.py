"""Labels and predictions: CSV files with one row per sequence."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError
from recon4d.files import write_text


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header. Raises InputError when it is missing, empty or has ragged rows."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a readable CSV file ({error}); correct it") from error
    if not rows:
        raise InputError(f"{path} has no rows; give a header and one row per sequence")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise InputError(f"{path} line {number} has more or fewer cells than the header; correct it")
    return rows


def read_labels(path: Path, classes: list[str]) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """Per sequence its 0/1 labels (C,) and its row. The first column is the sequence's name.

    Raises InputError for a missing class, another value than 0 or 1, or a sequence named twice.
    """
    rows = read_table(path)
    key = next(iter(rows[0]))
    missing = [name for name in classes if name not in rows[0]]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}; its header must name the classes of the config")
    labels: dict[str, tuple[np.ndarray, dict[str, str]]] = {}
    for row in rows:
        values = [row[name].strip() for name in classes]
        if set(values) - {"0", "1"}:
            raise InputError(f"{path}: {row[key]} has {', '.join(values)}; labels are 0 or 1")
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
