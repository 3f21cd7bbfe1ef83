"""Tables in pickles: what pandas writes is read, without pandas and without running anything."""

import gzip
import pickle
import sys
import types

import numpy as np
import pandas as pd
import pytest
from flux4d import pandaset, tables
from recon4d import InputError


def table(n=5):
    rng = np.random.default_rng(n)
    return {
        "uuid": np.array([f"car-{i}" for i in range(n)], dtype=object),
        "x": rng.normal(size=n),
        "stationary": rng.random(n) > 0.5,
        "y": rng.normal(size=n),
        "d": np.arange(n),
    }


def same(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("n", [0, 1, 5])
def test_pandas_reads_what_is_written(tmp_path, n):
    path = tmp_path / "00.pkl.gz"
    tables.write(path, table(n))
    read = pd.read_pickle(path)
    same({name: read[name].to_numpy() for name in read.columns}, table(n))
    assert n == 0 or read["uuid"].dtype == object  # plain objects, which older pandas reads too
    same(tables.read(path, ("x", "uuid")), table(n))


@pytest.mark.parametrize("infer_string", [True, False])
def test_text_categories_and_missing_values(tmp_path, infer_string):
    """Text as pandas 3 keeps it in Arrow's memory and as older ones do, categories, numbers with gaps."""
    with pd.option_context("future.infer_string", infer_string):
        whole = pd.DataFrame(
            {"x": np.arange(5.0), "uuid": [f"car-é{i}" for i in range(5)], "who": ["a", None, "", "b", "c"]}
        )
        whole["label"] = pd.Categorical(["Car", "Bus", None, "Car", "Car"])
        whole["text"] = whole["uuid"].astype("string")
        whole["count"] = pd.array([1, 2, None, 4, 5], dtype="Int64")
        for i, part in enumerate((whole, whole.iloc[[1, 3]], whole.iloc[2:], whole.iloc[:0])):
            path = tmp_path / f"{i}.pkl.gz"
            part.to_pickle(path)
            found = tables.read(path, ("x",))
            assert list(found) == list(part.columns)
            for name in part.columns:
                expected = [None if pd.isna(value) else value for value in part[name]]
                assert [None if pd.isna(value) else value for value in found[name]] == expected, name


def test_texts_that_do_not_fit(tmp_path):
    """Ends of Arrow's texts that go back, so that few bytes would become many."""
    path = tmp_path / "00.pkl"
    with pd.option_context("future.infer_string", True):
        pd.DataFrame({"x": ["aaaa", "bbbb", "cccc"]}).to_pickle(path)
    ends = np.array([0, 4, 8, 12]).tobytes()
    whole = path.read_bytes()
    assert ends in whole
    for other in ([0, 12, 0, 12], [-4, 4, 8, 12]):
        path.write_bytes(whole.replace(ends, np.array(other).tobytes()))
        with pytest.raises(InputError, match="does not hold a pandas table"):
            tables.read(path, ())
    path.write_bytes(whole.replace(ends, np.array([0, 4, 8, 1 << 40]).tobytes()))  # past the last letter
    assert tables.read(path, ())["x"].tolist() == ["aaaa", "bbbb", "cccc"]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_pandas_writes_is_read(tmp_path, protocol):
    with pd.option_context("future.infer_string", False):
        whole = pd.DataFrame(table(8))
        whole.insert(2, "later", np.arange(8.0))  # a block of its own
        for i, part in enumerate((whole, whole.iloc[[1, 5]], whole[["d", "x"]], whole.set_index(np.arange(8) * 3))):
            path = tmp_path / f"{i}.pkl.gz"
            part.to_pickle(path, protocol=protocol)
            same(tables.read(path, ("x",)), {name: part[name].to_numpy() for name in part.columns})


def test_layout_before_pandas_1_3(tmp_path):
    """PandaSet's own files: a manager whose state is a tuple, under the names that pandas 0.25 gives."""
    modules = {
        "pandas.core.frame": "DataFrame",
        "pandas.core.internals.managers": "BlockManager",
        "pandas.core.indexes.base": "Index",
    }
    values = table(3)
    floats, names = np.stack([values["x"], values["y"]]), list(values)

    class Old:
        def __init__(self, state):
            self.state = state

        def __getstate__(self):
            return self.state

    def kind(module, name):
        return type(name, (Old,), {"__module__": module})

    old = {name: kind(module, name) for module, name in modules.items()}

    class IndexOf:
        def __init__(self, data):
            self.data = data

        def __reduce__(self):
            return sys.modules["pandas.core.indexes.base"]._new_Index, (old["Index"], {"data": self.data, "name": None})

    axes = [IndexOf(np.array(names, dtype=object)), IndexOf(np.arange(3))]
    blocks = [
        {"values": floats, "mgr_locs": slice(1, 4, 2)},
        {"values": values["uuid"][None], "mgr_locs": np.array([0])},
        {"values": values["stationary"][None], "mgr_locs": slice(2, 3, 1)},
        {"values": values["d"][None], "mgr_locs": slice(4, 5, 1)},
    ]
    manager = old["BlockManager"]((axes, [], [], {"0.14.1": {"axes": axes, "blocks": blocks}}))
    frame = old["DataFrame"]({"_data": manager, "_typ": "dataframe", "_metadata": []})
    held = {name: sys.modules.get(name) for name in modules}
    try:
        for module, name in modules.items():  # pickle looks classes up by name
            fake = types.ModuleType(module)
            setattr(fake, name, old[name])
            if name == "Index":

                def _new_Index(cls, fields):
                    raise AssertionError

                _new_Index.__module__, _new_Index.__qualname__ = module, "_new_Index"
                fake._new_Index = _new_Index
            sys.modules[module] = fake
        data = pickle.dumps(frame, protocol=2)
    finally:
        sys.modules.update({name: module for name, module in held.items() if module is not None})
    path = tmp_path / "00.pkl.gz"
    path.write_bytes(gzip.compress(data))
    same(tables.read(path, ("x", "d")), values)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').write('ran')",)


def test_hostile_file_runs_nothing(tmp_path):
    proof = tmp_path / "proof"
    for content in (Hostile(proof), {"x": Hostile(proof)}, pd.DataFrame({"x": np.array([Hostile(proof)], object)})):
        path = tmp_path / "00.pkl.gz"
        path.write_bytes(gzip.compress(pickle.dumps(content)))
        with pytest.raises(InputError, match=r"builtins.exec, which is not allowed"):
            tables.read(path, ("x",))
    assert not proof.exists()


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "00.pkl.gz"
    with pytest.raises(InputError, match="does not exist"):
        tables.read(path, ())
    tables.write(path, table())
    whole = path.read_bytes()
    for content, message in (
        (whole[:-40], "not a readable pickle file .*EOF|truncated|end-of-stream"),
        (b"no gzip", "not a readable .*Not a gzipped file"),
        (b"", "not a readable pickle"),
        (gzip.compress(b"no pickle"), "not a readable pickle"),
        (gzip.compress(pickle.dumps([1, 2])), "does not hold a pandas table"),
        (gzip.compress(pickle.dumps({"x": 1})), "does not hold a pandas table"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            tables.read(path, ())
    tables.write(path, table())
    with pytest.raises(InputError, match=r"no column z; its columns are uuid, x"):
        tables.read(path, ("x", "z"))


def test_points_that_are_not_finite_are_left_out(tmp_path):
    columns = {name: np.arange(4.0) for name in "xyzitd"}
    columns["y"][2] = np.nan
    tables.write(tmp_path / "00.pkl.gz", columns)
    found = pandaset.read_points(tmp_path / "00.pkl.gz")
    assert found["xyz"][:, 0].tolist() == found["t"].tolist() == [0, 1, 3]
    columns["x"] = np.array(["a", "b", "c", "d"], object)
    tables.write(tmp_path / "01.pkl.gz", columns)
    with pytest.raises(InputError, match="points that are not numbers"):
        pandaset.read_points(tmp_path / "01.pkl.gz")
