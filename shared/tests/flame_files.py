"""Head-model files of the released format, made of random numbers."""

import pickle
import struct
import sys
import types
from typing import ClassVar

import numpy as np
import scipy.sparse


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, so that reading needs encoding="latin1"."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def flame_arrays(seed=0, vertices=120, identities=300, expressions=100):
    """Random arrays with the shapes and constraints of a FLAME file (fewer vertices)."""
    rng = np.random.default_rng(seed)
    weights = rng.random((vertices, 5))
    regressor = scipy.sparse.random(5, vertices, 0.2, format="csc", random_state=seed)
    regressor = scipy.sparse.csc_matrix(regressor / np.maximum(regressor.sum(1), 1e-6))
    return {
        "v_template": rng.normal(size=(vertices, 3)) * 0.1,
        "shapedirs": rng.normal(size=(vertices, 3, identities + expressions)) * 0.005,
        "posedirs": rng.normal(size=(vertices, 3, 36)) * 0.005,
        "J_regressor": regressor,
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.array([[4294967295, 0, 1, 1, 1], [0, 1, 2, 3, 4]], dtype=np.int64),
        "f": rng.integers(0, vertices, (200, 3)).astype(np.uint32),
    }


def write_flame_pickle(path, arrays, chumpy_keys=("v_template", "shapedirs", "posedirs", "weights")):
    """A pickle as FLAME is released: Python 2 strings, chumpy objects, scipy's and numpy's old module names."""
    chumpy, ch = types.ModuleType("chumpy"), types.ModuleType("chumpy.ch")
    Ch = type("Ch", (), {"__module__": "chumpy.ch"})
    ch.Ch = Ch
    sys.modules |= {"chumpy": chumpy, "chumpy.ch": ch}
    try:
        data = dict(arrays)
        for key in chumpy_keys:
            wrapped = Ch()
            wrapped.__dict__ = {"x": np.asarray(arrays[key]), "_dirty_vars": {"x"}, "_itr": None}
            data[key] = wrapped
        data["bs_type"] = "lrotmin"
        with open(path, "wb") as file:
            Python2Pickler(file, protocol=2, fix_imports=True).dump(data)
    finally:
        del sys.modules["chumpy"], sys.modules["chumpy.ch"]
    raw = path.read_bytes()
    for new, old in (
        (b"scipy.sparse._csc\n", b"scipy.sparse.csc\n"),
        (b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"),
    ):
        raw = raw.replace(new, old)
    path.write_bytes(raw)
