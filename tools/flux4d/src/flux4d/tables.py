"""PandaSet's tables: DataFrames in gzipped pickles, written by any pandas from 0.25 on and read without it.

The library's reader of pickles gives a DataFrame as records of what pandas would have been called with
(`recon4d.pickles`); this module knows what the records of a table mean.
"""

import gzip
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError, pickles
from recon4d.files import read_gzip, write_bytes
from recon4d.pickles import Record

MOST_COLUMNS = 10_000


def _values(found: Any) -> np.ndarray:
    """The numbers or texts of a column, of a block of columns (rows are columns), or of an index."""
    if isinstance(found, np.ndarray):
        return found
    if isinstance(found, list | tuple):
        return np.array(found, object)
    if found.name.endswith("._new_Index"):
        fields = found.args[1]
        if "data" in fields:
            return _values(fields["data"])
        numbers = range(fields.get("start", 0), fields.get("stop", 0), fields.get("step", 1))
        return np.array(numbers[:MOST_COLUMNS])  # of rows, whose numbers nobody asks for, there may be more
    state = found.state
    if isinstance(state, tuple):  # pandas from 1.3: a type, and an array in its terms
        (codes,) = (part for part in state if isinstance(part, np.ndarray))
        kinds = [part.state for part in state if isinstance(part, Record)]
        return _of_categories(codes, kinds[0]) if kinds and "categories" in (kinds[0] or {}) else codes
    if "_codes" in state:
        return _of_categories(state["_codes"], state["_dtype"].state)
    if "_mask" in state:  # numbers some of which are missing
        data, mask = state["_data"], state["_mask"]
        return np.where(mask, np.nan, data) if mask.any() else data
    text = state.get("_pa_array", state.get("_data"))
    return _of_arrow(text) if isinstance(text, Record) else _values(text)


def _of_categories(codes: np.ndarray, kind: dict[str, Any]) -> np.ndarray:
    categories = _values(kind["categories"])
    if codes.dtype.kind not in "iu" or (len(codes) and not -1 <= codes.min() <= codes.max() < len(categories)):
        raise ValueError("its categories do not fit")
    values = np.empty(len(categories) + 1, object)  # the last one, None, is for -1: missing
    values[:-1] = categories
    return values[codes]


def _of_arrow(found: Record) -> np.ndarray:
    """Text as pyarrow keeps it: where each ends, in one run of letters, and a bit for each that is there."""
    if found.name.endswith(".chunked_array"):
        return np.concatenate([np.empty(0, object), *(_of_arrow(part) for part in found.args[0])])
    kind, count, _, first, (valid, ends, letters), *_ = found.args[0]
    wide = kind.args[0] in ("large_string", "large_utf8")
    places = np.frombuffer(ends.args[0], np.int64 if wide else np.int32)[first : first + count + 1]
    text = b"" if letters is None else bytes(letters.args[0])
    if min(count, first) < 0 or (count and (len(places) != count + 1 or places[0] < 0 or (np.diff(places) < 0).any())):
        raise ValueError("its texts do not fit")
    words = [text[start:end].decode() for start, end in pairwise(places)]
    if valid is not None:
        bits = np.unpackbits(np.frombuffer(valid.args[0], np.uint8), bitorder="little")[first : first + count]
        return np.array([word if bit else None for word, bit in zip(words, bits, strict=True)], object)
    return np.array(words, object)


def _columns(table: Record) -> dict[str, np.ndarray]:
    """The columns of a DataFrame's record."""
    state: Any = table.state
    manager: Any = state.get("_mgr", state.get("_data")) if isinstance(state, dict) else state
    if isinstance(manager.state, tuple):  # pandas before 1.3
        layout = manager.state[3]["0.14.1"]
        names, blocks = layout["axes"][0], [(block["values"], block["mgr_locs"]) for block in layout["blocks"]]
    else:
        names, blocks = manager.args[1][0], [block.args[:2] for block in manager.args[0]]
    titles = [str(name) for name in _values(names)]
    columns: dict[str, np.ndarray] = {}
    for values, places in blocks:
        rows = np.atleast_2d(_values(values))
        where = places.args[0] if isinstance(places, Record) else places  # a slice or numbers
        for place, row in zip(np.arange(len(titles))[where], rows, strict=True):
            columns[titles[place]] = row
    return {title: columns[title] for title in titles}


def read(path: str | Path, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of a DataFrame in a `.pkl.gz` or `.pkl` file, by name.

    Args:
        needed: columns that must be there.

    Raises:
        InputError: a missing or truncated file, something else than a table, a missing column, or a pickle that asks
            for anything but a table's own classes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; check that the scene is complete")
    data = read_gzip(path) if path.suffix == ".gz" else path.read_bytes()
    table = pickles.loads(data, path, ("pandas", "pyarrow"))
    try:
        columns = _columns(table)
        shapes = {column.shape for column in columns.values()}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            raise ValueError("its columns differ in length")
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} does not hold a pandas table ({str(error)[:120]}); give PandaSet's file") from error
    missing = [name for name in needed if name not in columns]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}; its columns are {', '.join(columns)[:200]}")
    return columns


def write(path: str | Path, columns: dict[str, np.ndarray]) -> None:
    """Write a table as pandas does, atomically; text columns stay plain objects, which any pandas reads."""
    import pandas as pd

    packed = io.BytesIO()
    with pd.option_context("future.infer_string", False), gzip.GzipFile("", "wb", 4, packed, mtime=0) as file:
        pd.DataFrame(columns).to_pickle(file, compression=None, protocol=4)
    write_bytes(path, packed.getvalue())
