"""PandaSet's tables: DataFrames in gzipped pickles, written by pandas and read without it.

Pickles run code when they are loaded, so no pandas constructor is called here. The restricted unpickler resolves the
few names that a DataFrame's pickle needs to stand-ins, which only collect arrays; every other name is refused.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError
from recon4d.files import atomic_path, numpy_globals, restricted_unpickle


class _Record:
    """Stands in for a DataFrame or its manager: keeps the arguments and the state that the pickle gives it."""

    def __init__(self, *args: Any):
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _new_index(_kind: Any, fields: dict) -> np.ndarray:
    if "data" in fields:
        return np.asarray(fields["data"])
    return np.arange(fields.get("start", 0), fields.get("stop", 0), fields.get("step", 1))


def _block(values: Any, places: Any, _ndim: int = 2) -> tuple:
    return values, places


def _placement(places: Any) -> Any:
    return places


def _allowed() -> dict[tuple[str, str], Any]:
    allowed = numpy_globals() | {
        ("pandas.core.indexes.base", "_new_Index"): _new_index,
        ("pandas._libs.internals", "_unpickle_block"): _block,
        ("pandas.core.internals.blocks", "new_block"): _block,
        ("pandas._libs.internals", "BlockPlacement"): _placement,
    }
    for module, names in {  # where pandas 0.25 to 3 say that these are
        "pandas": ("DataFrame", "Index", "RangeIndex"),
        "pandas.core.frame": ("DataFrame",),
        "pandas.core.internals": ("BlockManager",),
        "pandas.core.internals.managers": ("BlockManager",),
        "pandas.core.indexes.base": ("Index",),
        "pandas.core.indexes.range": ("RangeIndex",),
        "pandas.core.indexes.numeric": ("Int64Index", "Float64Index"),
    }.items():
        allowed |= {(module, name): _Record for name in names}
    return allowed


def _columns(table: Any) -> dict[str, np.ndarray]:
    """The columns of what the stand-ins collected."""
    state = table.state
    manager = state.get("_mgr", state.get("_data")) if isinstance(state, dict) else state
    if isinstance(manager.state, tuple) and len(manager.state) >= 4:  # pandas before 1.3
        layout = manager.state[3]["0.14.1"]
        axes = layout["axes"]
        blocks = [(block["values"], block["mgr_locs"]) for block in layout["blocks"]]
    else:
        blocks, axes = manager.args
    columns: dict[str, np.ndarray] = {}
    for values, places in blocks:
        values = np.atleast_2d(np.asarray(values))
        for place, row in zip(np.arange(len(axes[0]))[places], values, strict=True):
            columns[str(axes[0][place])] = row
    return {str(name): columns[str(name)] for name in axes[0]}


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
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            table = restricted_unpickle(file, _allowed(), path)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a readable gzip file ({error}); copy it again") from error
    try:
        columns = _columns(table)
        lengths = {len(column) for column in columns.values()}
        if len(lengths) > 1:
            raise ValueError("its columns differ in length")
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold a pandas table ({error}); give PandaSet's file") from error
    missing = [name for name in needed if name not in columns]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}; its columns are {', '.join(columns)}")
    return columns


def write(path: str | Path, columns: dict[str, np.ndarray]) -> None:
    """Write a table as pandas does, atomically; text columns stay plain objects, which any pandas reads."""
    import pandas as pd

    with pd.option_context("future.infer_string", False), atomic_path(path) as temporary:
        table = pd.DataFrame(columns)
        with gzip.GzipFile(temporary, "wb", compresslevel=4, mtime=0) as file:
            table.to_pickle(file, compression=None, protocol=4)
