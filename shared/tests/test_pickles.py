"""Pickles of strangers: real ones are read as they are meant, hostile ones are refused and crash nothing."""

import contextlib
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import scipy.sparse
import torch
from hostile import PICKLES
from recon4d import InputError, pickles

ARRAYS = {
    "floats": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "bools": np.array([True, False]),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "complex": np.array([1j]),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5),
    "objects": np.array([1, "two", None, {"three": 3}], object),
}


@pytest.mark.parametrize("protocol", range(6))
def test_values_are_read_as_python_reads_them(protocol):
    data = {
        "arrays": ARRAYS,
        "numbers": [0, -1, 255, 1 << 70, 1.5, math.inf, True, None, np.float32(2), np.int64(-3)],
        "words": ("", "ä€", b"", b"\x00\xff", bytearray(b"xy")),
        "more": OrderedDict(a=1, b=[{1, 2}, frozenset("x"), slice(1, None, 2)]),
    }
    data["again"] = data["numbers"]
    found = pickles.loads(pickle.dumps(data, protocol), "x.pkl")
    for name, array in ARRAYS.items():
        assert found["arrays"][name].dtype == array.dtype, name
        np.testing.assert_array_equal(found["arrays"][name], array, err_msg=name)
    assert found["numbers"] == data["numbers"] and found["again"] == data["numbers"]
    assert found["words"] == data["words"]
    assert found["more"] == data["more"]


@pytest.mark.parametrize("kind", ["csc", "csr", "coo"])
@pytest.mark.parametrize("cls", ["matrix", "array"])
def test_sparse_matrices(kind, cls):
    dense = np.random.default_rng(0).random((5, 7)) * (np.random.default_rng(1).random((5, 7)) > 0.6)
    matrix = getattr(scipy.sparse, f"{kind}_{cls}")(dense)
    for protocol in (2, 4, 5):
        np.testing.assert_array_equal(pickles.loads(pickle.dumps(matrix, protocol), "x").toarray(), dense)


def test_what_python_2_wrote():
    """Protocols 0 to 2 as Python 2 writes them: strings of bytes, quoted text, its names of modules."""
    array = np.arange(4.0).reshape(2, 2)
    state = (
        f"(I1\n(I2\nI2\ntcnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS{array.tobytes()!r}\ntb"
    )
    state = state.replace("Sb'", "S'")
    text = f"(dS'a'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR{state}s."
    np.testing.assert_array_equal(pickles.loads(text.encode("latin1"), "x")["a"], array)
    chumpy = b"ccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nc__builtin__\nobject\nNtR(dS'x'\nI7\nsb."
    record = pickles.loads(chumpy, "x", modules=("chumpy",))
    assert record.name == "chumpy.ch.Ch" and record.state == {"x": 7}


def test_tensors_and_parameters(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    data = {
        "plain": base,
        "view": base[1:, ::2],
        "turned": base.T,
        "parameter": torch.nn.Parameter(base[0]),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "whole": torch.arange(3),
        "bools": base > 3,
        "none": torch.zeros(0, 3),
        "array": base.numpy(),
    }
    torch.save(data, tmp_path / "x.pt")
    found = pickles.read_torch(tmp_path / "x.pt")
    for name, value in data.items():
        expected = value.detach().float() if name == "bfloat16" else torch.as_tensor(value).detach()
        np.testing.assert_array_equal(found[name], expected.numpy(), err_msg=name)


def test_npy_files(tmp_path):
    np.save(tmp_path / "plain.npy", np.arange(3))
    assert pickles.read_npy(tmp_path / "plain.npy").tolist() == [0, 1, 2]
    np.save(tmp_path / "dict.npy", np.array({"a": np.arange(2)}, object), allow_pickle=True)
    assert pickles.read_npy(tmp_path / "dict.npy")["a"].tolist() == [0, 1]
    np.save(tmp_path / "many.npy", np.array([None, 2], object), allow_pickle=True)
    assert pickles.read_npy(tmp_path / "many.npy").tolist() == [None, 2]


@pytest.mark.parametrize("kind", PICKLES)
def test_hostile_pickles_are_refused(kind):
    with pytest.raises(InputError, match=r"^evil\.pkl (is not a readable pickle file|asks to load)") as raised:
        pickles.loads(PICKLES[kind](), "evil.pkl")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_what_only_asks_for_memory_gets_none():
    assert pickles.loads(b"]r\xff\xff\xff\x7f.", "x") == []  # a memo place of 2 billion
    assert pickles.loads(b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.", "x") is None  # a frame of an exabyte


def test_hostile_tensors_are_refused(tmp_path):
    def saved(edit):
        stream = io.BytesIO()
        torch.save({"x": torch.arange(4.0)}, stream)
        out = io.BytesIO()
        with zipfile.ZipFile(stream) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, edit(content) if name.endswith("data.pkl") else content)
        (tmp_path / "x.pt").write_bytes(out.getvalue())
        return tmp_path / "x.pt"

    assert pickles.read_torch(saved(lambda content: content))["x"].tolist() == [0, 1, 2, 3]
    four = b"K\x04\x85"
    assert four in saved(lambda content: content).read_bytes()
    for old, new in (
        (four, b"K\xff\x85"),  # larger than its storage
        (four, b"J\xff\xff\xff\xff\x85"),  # a negative size
        (b"K\x01\x85", b"M\xff\xff\x85"),  # a stride beyond it
    ):
        with pytest.raises(InputError, match="is not a readable pickle file"):
            pickles.read_torch(saved(lambda content, old=old, new=new: content.replace(old, new)))
    for damage in (b"", b"PK\x03\x04", b"no zip"):
        (tmp_path / "x.pt").write_bytes(damage)
        with pytest.raises(InputError, match=r"x\.pt is not a readable file"):
            pickles.read_torch(tmp_path / "x.pt")


def test_truncations_and_flipped_bytes_crash_nothing():
    whole = pickle.dumps({"arrays": ARRAYS, "sparse": scipy.sparse.eye(3, format="csc")}, 2)
    rng = np.random.default_rng(0)
    for _ in range(1500):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            broken[place] = rng.integers(256)
        with contextlib.suppress(InputError):
            pickles.loads(bytes(broken[: rng.integers(1, len(whole) + 1)]), "x")


def test_every_opcode_is_known():
    """What Python's newest protocol adds is either read or refused by name, never passed over."""
    known = pickles._PUSHES | set(pickles._CONSTANTS)
    with open(pickles.__file__, encoding="utf-8") as file:
        source = file.read()
    for operation in pickletools.opcodes:
        named = operation.name in known or f'"{operation.name}"' in source
        assert named or operation.name in ("NEXT_BUFFER", "READONLY_BUFFER", "EXT1", "EXT2", "EXT4"), operation.name
