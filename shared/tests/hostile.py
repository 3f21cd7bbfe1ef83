"""What tests of all tools share: broken and hostile inputs made from scratch, and what a command may do with them.

A door is a command with one input (file, folder, option, output) that can be replaced. `check` runs it in this process
and holds it to the promise: exit 0 or 2, one `error:` line that names file or option, nothing new, nothing changed,
no temporary, bounded memory.
"""

import functools
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np
import scipy.sparse
import torch
from click.testing import CliRunner, Result

MOST_MEMORY = 1 << 30  # bytes that a refusal may take


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


def array_state(shape, dtype, content):
    """An array whose state says what it likes."""
    return Call(np.empty(0).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, shape, dtype, False, content))


def sparse_of(kind, **state):
    matrix = getattr(scipy.sparse, f"{kind}_matrix")((3, 3))
    matrix.__dict__.update(state)
    return matrix


def deep(n, opening, closing):
    return opening * n + b"N" + closing * n + b"."


PICKLES: dict[str, Callable[[], bytes]] = {
    "objects over bytes": lambda: pickle.dumps(array_state((2,), np.dtype("O"), b"A" * 16)),
    "ndarray called": lambda: pickle.dumps(Call(np.ndarray, (2,), np.dtype("O"), b"A" * 16)),
    "object fields": lambda: pickle.dumps(array_state((2,), np.dtype([("a", "O")]), b"A" * 16)),
    "dtype by commas": lambda: pickle.dumps(array_state((2,), Call(np.dtype, "O,O"), b"A" * 32)),
    "larger than its bytes": lambda: pickle.dumps(array_state((1 << 40,), np.dtype("f8"), b"A" * 16)),
    "negative shape": lambda: pickle.dumps(array_state((-1,), np.dtype("f8"), b"")),
    "huge empty shape": lambda: pickle.dumps(array_state((1 << 60, 0), np.dtype("f8"), b"")),
    "100 dimensions": lambda: pickle.dumps(array_state((1,) * 100, np.dtype("f8"), b"A" * 8)),
    "text of huge items": lambda: pickle.dumps(array_state((1,), Call(np.dtype, "U99999999"), b"")),
    "fewer objects than said": lambda: pickle.dumps(array_state((3,), np.dtype("O"), [1])),
    "scalar of an object": lambda: pickle.dumps(Call(np.float64(1).__reduce__()[0], np.dtype("O"), b"A" * 8)),
    "sparse indices outside": lambda: pickle.dumps(
        sparse_of("csr", data=np.ones(1), indices=np.array([1 << 40]), indptr=np.array([0, 1, 1, 1]))
    ),
    "sparse pointers outside": lambda: pickle.dumps(
        sparse_of("csc", data=np.ones(1), indices=np.array([0]), indptr=np.array([0, 1 << 40, 1, 1]))
    ),
    "sparse negative row": lambda: pickle.dumps(
        sparse_of("coo", data=np.ones(1), coords=(np.array([-5]), np.array([0])))
    ),
    "os.system": lambda: pickle.dumps(Call(os.system, "true")),
    "builtins.exec": lambda: pickle.dumps(Call(exec, "1")),
    "builtins.getattr": lambda: pickle.dumps(Call(getattr, 1, "real")),
    "copyreg of another class": lambda: b"ccopyreg\n_reconstructor\n(cbuiltins\nexec\nc__builtin__\nobject\nNtR.",
    "numpy.load": lambda: pickle.dumps(Call(np.load, "x")),
    "scipy's constructor": lambda: pickle.dumps(Call(scipy.sparse.dia_matrix, (3, 3))),
    "torch.load": lambda: pickle.dumps(Call(torch.load, "x")),
    "bytes not there": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "number of 5,000 digits": lambda: b"I" + b"9" * 5000 + b"\n.",
    "lists 100,000 deep": lambda: deep(100_000, b"(", b"l"),
    "tuples 100,000 deep": lambda: b"N" + b"\x85" * 100_000 + b".",
    "deep tuple as a key": lambda: b"}N" + b"\x85" * 100_000 + b"Ns.",
    "list in itself": lambda: b"]q\x00h\x00a.",
    "extension": lambda: b"\x82\x01.",
    "persistent id": lambda: b"Px\n.",
    "no stack": lambda: b"0.",
    "no mark": lambda: b"l.",
    "name of a number": lambda: b"K\x01K\x02\x93.",
    "state of a list": lambda: b"]}b.",
    "nothing": lambda: b"",
    "no pickle": lambda: b"hello",
    "no end": lambda: b"N",
}


def npy_header(shape, descr="<f8"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def npz(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def zipped(content: bytes, method: int, encrypted: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("x.npy", content)
    data = bytearray(stream.getvalue())
    if encrypted:
        data[data.index(b"PK\x03\x04") + 6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def png(width: int, height: int) -> bytes:
    """A PNG whose header says its size, and little more."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def picture(suffix: str, size: int = 64) -> bytes:
    values = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    return cv2.imencode(suffix, values)[1].tobytes()


def torch_zip(pickled: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def object_npy(pickled: bytes) -> bytes:
    return npy_header((2,), "|O") + pickled


CONTENTS: dict[str, dict[str, Callable[[], bytes]]] = {
    "picture": {
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "half a PNG": lambda: picture(".png")[:3000],
        "half a JPEG": lambda: picture(".jpg")[:1200],
        "30,000 pixels square": lambda: png(30_000, 30_000),
        "no pixels": lambda: png(0, 0),
        "less than said": lambda: png(64, 64),
    },
    "npz": {
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "one array": lambda: npy_header((2,)) + bytes(16),
        "nothing in it": lambda: npz(),
        "other arrays": lambda: npz(x=npy_header((2,)) + bytes(16)),
        "more than it holds": lambda: npz(x=npy_header((5, 10**9)) + bytes(80)),
        "objects": lambda: npz(x=object_npy(pickle.dumps(np.array([1, 2], object)))),
        "encrypted": lambda: zipped(npy_header((2,)) + bytes(16), zipfile.ZIP_STORED, encrypted=True),
        "odd packing": lambda: zipped(npy_header((2,)) + bytes(16), zipfile.ZIP_LZMA),
        "a bomb": lambda: zipped(npy_header((300 << 17,)) + bytes(300 << 20), zipfile.ZIP_DEFLATED),
        "a deep header": lambda: npz(x=npy_header((2,)).replace(b"{'descr': '<f8'", b"[" * 15)),
    },
    "npy": {
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "more than it holds": lambda: npy_header((5, 10**9)) + bytes(80),
        "objects": lambda: object_npy(PICKLES["objects over bytes"]()),
        "another shape": lambda: npy_header((3,)) + bytes(24),
        "words": lambda: npy_header((2,), "<U4") + bytes(32),
        "half": lambda: npy_header((100,)) + bytes(80),
    },
    "pickle": PICKLES,
    "pickle.gz": {name: (lambda made=made: gzip.compress(made())) for name, made in PICKLES.items()}
    | {"no gzip": lambda: b"hello", "a gzip bomb": lambda: gzip.compress(bytes(300 << 20), 1)},
    "frame": {name: (lambda made=made: torch_zip(made())) for name, made in PICKLES.items()}
    | {
        "no zip": lambda: b"hello",
        "an empty file": lambda: b"",
        "a dictionary of text": lambda: torch_zip(pickle.dumps({"flame": "x"})),
    },
    "json": {
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "100,000 deep": lambda: b"[" * 100_000,
        "a number of 5,000 digits": lambda: b"9" * 5000,
        "not UTF-8": lambda: b'{"a": "\xff\xfe"}',
        "a number": lambda: b"3",
        "a list": lambda: b"[1, 2]",
        "nothing in it": lambda: b"{}",
        "not a number": lambda: b'{"x": NaN}',
    },
    "yaml": {
        "3,000 brackets": lambda: b"a: " + b"[" * 3000,
        "not YAML": lambda: b"a: [",
        "a tag that runs code": lambda: b"!!python/object/apply:os.system ['true']",
        "references without end": lambda: b"a0: &a0 [1,1]\n"
        + b"".join(b"a%d: &a%d [*a%d,*a%d,*a%d,*a%d]\n" % (i, i, i - 1, i - 1, i - 1, i - 1) for i in range(1, 20)),
        "a number of 5,000 digits": lambda: b"seed: " + b"9" * 5000,
        "a date that is none": lambda: b"seed: 2026-99-99",
        "not a number": lambda: b"seed: .nan",
        "an unknown key": lambda: b"what_is_this: 1",
        "a list": lambda: b"[1, 2]",
        "a word": lambda: b"hello",
    },
    "ply": {
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "more than it holds": lambda: ply_header(10**9) + bytes(56),
        "half": lambda: ply_header(2) + bytes(56),
        "a list property": lambda: b"ply\nformat ascii 1.0\nelement vertex 1\n"
        b"property list uchar int x\nend_header\n1 2\n",
        "no vertices": lambda: b"ply\nformat ascii 1.0\nend_header\n",
    },
    "safetensors": {
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "a header of an exabyte": lambda: struct.pack("<Q", 1 << 60) + b"{}",
        "more than it holds": lambda: safetensors_header(
            {"x": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}
        ),
        "nothing in it": lambda: safetensors_header({}),
    },
    "checkpoint": {
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "a call": lambda: torch_zip(PICKLES["os.system"]()),
        "no dictionary": lambda: torch_zip(pickle.dumps([1])),
        "an empty dictionary": lambda: torch_zip(pickle.dumps({})),
    },
    "video": {
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "a header alone": lambda: struct.pack(">I", 24) + b"ftypisom" + bytes(12),
    },
}  # fmt: skip


def ply_header(count: int) -> bytes:
    names = [
        "x",
        "y",
        "z",
        "f_dc_0",
        "f_dc_1",
        "f_dc_2",
        "opacity",
        "scale_0",
        "scale_1",
        "scale_2",
        "rot_0",
        "rot_1",
        "rot_2",
        "rot_3",
    ]
    properties = "".join(f"property float {name}\n" for name in names)
    return f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n{properties}end_header\n".encode()


def safetensors_header(header: dict) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "9" * 40,
    "x",
    "",
)  # for options; where -1 means something, leave it out


def outputs(root: Path, suffix: str = "") -> dict[str, Path]:
    """Outputs that cannot be written, below a folder `root`: what is wrong, and the path to give."""
    (root / "file").write_text("mine")
    (root / "loop").symlink_to(root / "loop")
    (root / "nowhere").symlink_to(root / "gone" / "away")
    return {
        "below a file": root / "file" / f"out{suffix}",
        "a long name": root / ("n" * 300 + suffix),
        "a link to itself": root / "loop" / f"out{suffix}",
        "no place for files": Path("/proc") / f"out{suffix}",
    }


@functools.cache
def content(kind: str, case: str) -> bytes:
    """What a file is replaced by; bombs take seconds to make."""
    return CONTENTS[kind][case]()


def tree(root: Path) -> dict[str, tuple]:
    """Everything below a folder: kind, size and time of change of each path."""
    found = {}
    for base, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(base, name)
            state = os.lstat(path)
            whole = name in files
            found[os.path.relpath(path, root)] = (state.st_mode, whole and state.st_size, whole and state.st_mtime_ns)
    return found


def put_back(root: Path, good: Path) -> None:
    """Make `root`, a copy of `good` in which a case changed something, its copy again."""
    before, after = tree(good), tree(root)
    for name in sorted(after, reverse=True):
        path = root / name
        if after[name] == before.get(name) or not os.path.lexists(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for name in sorted(before):
        if os.path.lexists(root / name):
            continue
        if (good / name).is_dir():
            (root / name).mkdir(mode=before[name][0] & 0o777, parents=True)
        else:
            shutil.copy2(good / name, root / name, follow_symlinks=False)


def _memory(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))


def check(
    group: click.Group, args: list, root: Path, named: str | list[str] | None = None, fine: bool = False
) -> Result:
    """Run a command and hold it to the promise for bad input.

    Args:
        args: its words. root: the folder in which nothing may change; inputs are below it.
        named: what the error must name (one of several), the file's name or the option; the last word if None.
        fine: whether exit 0 is as good; then `root` may have new files, and what was there is unchanged.
    """
    words = [str(word) for word in args]
    before = tree(root)
    if os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the peak of resident memory
        at_first = _memory("VmRSS")
    result = CliRunner().invoke(group, words)
    if os.path.exists("/proc/self/clear_refs"):
        taken = _memory("VmHWM") - at_first
        assert taken < MOST_MEMORY, f"{words} took {taken >> 20} MiB"
    said = result.stderr
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{words} ended in a traceback") from result.exception
    after = tree(root)
    if fine and result.exit_code == 0:
        assert {path: after.get(path) for path in before} == before, f"{words} changed what was there"
        assert not [path for path in after if ".recon4d-" in path], f"{words} left temporaries"
        return result
    assert result.exit_code == 2, f"{words} exits {result.exit_code}: {said}{result.stdout[:300]}"
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said.splitlines()[-1] == errors[0], f"{words} says {said!r}"
    assert len(errors[0]) < 700, f"{words} says {len(errors[0])} letters"
    names = [named] if isinstance(named, str) else named or [words[-1]]
    assert any(name in errors[0] for name in names), f"{words} names none of {names}: {errors[0]}"
    new = set(after) - set(before)
    assert not new, f"{words} left {sorted(new)}"
    assert after == before, f"{words} changed {[path for path in before if after.get(path) != before[path]]}"
    return result


def replaced(source: Path, target: Path, content: bytes) -> Path:
    """A copy of a file or folder tree's parent with one file of other content; the path of that file.

    source: the good file. target: where a copy of its folder goes.
    """
    shutil.copytree(source.parent, target, symlinks=True)
    (target / source.name).unlink(missing_ok=True)
    (target / source.name).write_bytes(content)
    return target / source.name
