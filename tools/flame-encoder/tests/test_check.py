"""check-model on files in the released formats, right and wrong."""

import json
import pickle
import re

import numpy as np
import pytest
from click.testing import CliRunner
from flame_encoder.cli import main
from flame_files import flame_arrays, write_flame_pickle
from recon4d import head


def check(path, *more):
    return CliRunner().invoke(main, ["check-model", str(path), *map(str, more)])


def sound_arrays():
    """Plain arrays, the sparse regressor too."""
    arrays = flame_arrays()
    return arrays | {"J_regressor": arrays["J_regressor"].toarray()}


@pytest.mark.parametrize("kind", ["2020", "2023", "npz"])
def test_released_formats(tmp_path, kind):
    arrays = sound_arrays()
    path = tmp_path / ("flame.npz" if kind == "npz" else f"flame{kind}.pkl")
    if kind == "2020":  # chumpy objects, Python 2 strings
        write_flame_pickle(path, arrays)
    elif kind == "2023":  # plain arrays
        path.write_bytes(pickle.dumps(arrays | {"bs_style": "lbs"}, protocol=2))
    else:
        np.savez(path, **arrays)
    result = check(path)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["vertices"], found["shape_components"], found["expression_components"]) == (120, 300, 100)
    assert found["landmarks"] == 0 and "FLAME" in found["licence"]


def swapped_landmarks(arrays):
    rows = np.arange(68)
    return arrays | {"lmk_faces_idx": rows, "lmk_bary_coords": np.tile([1.0, 0, 0], (68, 1))}


WRONG = {
    "a missing key": (lambda a: {k: v for k, v in a.items() if k != "posedirs"}, "it has no posedirs"),
    "weights of another mesh": (lambda a: a | {"weights": a["weights"][:50]}, r"weights has shape \(50, 5\)"),
    "NaN": (lambda a: a | {"v_template": a["v_template"] * np.nan}, "v_template holds NaN"),
    "no expressions": (lambda a: a | {"shapedirs": a["shapedirs"][..., :300]}, "shapedirs has 300 components"),
    "a triangle outside": (lambda a: a | {"f": a["f"] + 100}, "f points outside its array of 120"),
    "other joints": (lambda a: a | {"kintree_table": a["kintree_table"][::-1]}, "kintree_table has parents"),
    "weights that do not sum to one": (lambda a: a | {"weights": a["weights"] * 2}, "do not sum to one"),
    "joints that do not sum to one": (lambda a: a | {"J_regressor": a["J_regressor"] * 2}, "rows of J_regressor"),
    "millimetres": (lambda a: a | {"v_template": a["v_template"] * 1000}, "must be in metres"),
    "text": (lambda a: a | {"v_template": np.array(["x"] * 120)}, "v_template is not a numeric array"),
    "landmarks of another order": (swapped_landmarks, "not in iBUG order"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays(tmp_path, case):
    change, message = WRONG[case]
    np.savez(tmp_path / "m.npz", **change(sound_arrays()))
    result = check(tmp_path / "m.npz")
    assert result.exit_code == 2 and re.search(message, result.stderr) and result.stderr.count("\n") == 1
    assert "m.npz" in result.stderr


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("truncated pickle", "is not a readable pickle|truncated|not a complete"),
        ("truncated npz", "is not a readable npz"),
        ("pickled npz", "holds Python objects|pickle"),
        ("hostile", "os.system, which is not allowed"),
        ("a list", "holds a list, not the dictionary"),
        ("another suffix", "must be a .pkl or .npz file"),
        ("missing", "does not exist"),
    ],
)
def test_wrong_files(tmp_path, case, message):
    path = tmp_path / "m.pkl"
    if case == "truncated pickle":
        write_flame_pickle(path, flame_arrays())
        path.write_bytes(path.read_bytes()[:5000])
    elif case == "truncated npz":
        path = tmp_path / "m.npz"
        np.savez(path, **sound_arrays())
        path.write_bytes(path.read_bytes()[:5000])
    elif case == "pickled npz":
        path = tmp_path / "m.npz"
        np.savez(path, **sound_arrays() | {"f": np.array([None, 1], object)})
    elif case == "hostile":
        path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    elif case == "a list":
        path.write_bytes(pickle.dumps([1, 2]))
    elif case == "another suffix":
        path = tmp_path / "m.obj"
        path.write_text("v 0 0 0")
    result = check(path)
    assert result.exit_code == 2 and re.search(message, result.stderr), result.stderr
    assert path.name in result.stderr and result.stderr.count("\n") == 1


def test_the_open_head_is_sound(tmp_path):
    result = CliRunner().invoke(main, ["check-model"])
    assert result.exit_code == 0 and json.loads(result.stdout)["name"] == head.load().name
