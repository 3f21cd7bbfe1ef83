"""Pickles of strangers, read without running anything: the one file of the project that unpickles.

A pickle is a program. Python's own unpickler runs it and calls whatever it names; even numpy's constructors, called
with a hostile file's arguments, make arrays over memory that is not there. This reader interprets the program itself
and calls nothing of NumPy, SciPy, pandas or torch: arrays, sparse matrices and tensors become stand-ins, which turn
into NumPy arrays of our making once kind, shape, size and indices have been checked. Names that it does not know are
refused; classes of modules that the caller expects (`pandas`, `chumpy`) become inert records.

Opcodes and their arguments are read by `pickletools`; what each does is in its documentation.
"""

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse

from recon4d import files
from recon4d.files import InputError, read_member, read_npy_header

DEEPEST = 100  # containers inside one another
_STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "u2", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "b1",
}  # fmt: skip
_OPERATIONS = {operation.code.encode("latin1"): operation for operation in pickletools.opcodes}
_KEYS = (str, bytes, int, float, type(None), np.generic)


class _Refused(Exception):
    """The pickle asks for something that is not allowed; the message ends the sentence "SOURCE ..."."""


@dataclass(eq=False)
class Record:
    """An object of an expected module that was not made: what the pickle would have called it with, and its state.

    name: module and class or function. args: of its construction. state: what BUILD set, or None.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class _Global:
    module: str
    name: str

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class _Dtype:
    code: str
    order: str = "<"

    def build(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise _Refused("holds an array of structured or unknown type")
        self.order = order

    def value(self) -> np.dtype:
        return np.dtype("O") if self.code[0] == "O" else np.dtype(self.order + self.code)


@dataclass(eq=False)
class _Array:
    """A NumPy array: shape, type, order and content as the pickle gives them."""

    state: Any = None

    def build(self, state: Any) -> None:
        self.state = state[-4:]  # a version number may come first

    def value(self, resolve: Callable[[Any], Any]) -> np.ndarray:
        if self.state is None:
            return np.empty(0)
        shape, dtype, fortran, content = self.state
        return _array(shape, dtype, "F" if fortran else "C", content, resolve)


@dataclass(eq=False)
class _Sparse:
    """A SciPy sparse matrix: the arrays of its attributes."""

    kind: str
    state: dict[str, Any] = field(default_factory=dict)

    def build(self, state: Any) -> None:
        self.state = dict(state)

    def value(self, resolve: Callable[[Any], Any]) -> Any:
        state = {str(key): resolve(value) for key, value in self.state.items()}
        shape = tuple(int(n) for n in state.get("_shape", state.get("shape", ())))
        data = np.asarray(state["data"])
        if len(shape) != 2 or min(shape) < 0 or data.ndim != 1 or data.dtype.kind not in "biufc":
            raise _Refused("holds a sparse matrix without numbers or shape")
        if self.kind == "coo":
            places = state["coords"] if "coords" in state else (state["row"], state["col"])
            row, column = (_indices(along, size) for along, size in zip(places, shape, strict=True))
        else:
            major, minor = shape if self.kind == "csr" else shape[::-1]
            starts = _indices(state["indptr"], data.size + 1)
            if len(starts) != major + 1 or starts[0] != 0 or (np.diff(starts) < 0).any():
                raise _Refused("holds a sparse matrix whose index pointers do not fit it")
            data = data[: starts[-1]]
            along = np.repeat(np.arange(major), np.diff(starts))
            across = _indices(state["indices"], minor)[: starts[-1]]
            row, column = (along, across) if self.kind == "csr" else (across, along)
        if not len(row) == len(column) == len(data):
            raise _Refused("holds a sparse matrix whose arrays differ in length")
        return scipy.sparse.coo_matrix((data, (row, column)), shape)


@dataclass(eq=False)
class _Tensor:
    """A torch tensor: its storage's array and how it is laid out there."""

    args: tuple[Any, ...]

    def value(self, resolve: Callable[[Any], Any]) -> np.ndarray:
        storage, offset, size, stride = self.args[:4]
        if isinstance(storage, _Tensor):  # a parameter
            return storage.value(resolve)
        size, stride = _whole(size), _whole(stride)
        if not isinstance(storage, np.ndarray) or len(size) != len(stride) or _whole((offset,))[0] > storage.size:
            raise _Refused("holds a tensor that does not fit its storage")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if 0 in size:
            return np.empty(size, storage.dtype)
        if last >= storage.size or math.prod(size) > storage.size:
            raise _Refused("holds a tensor that is larger than its storage")
        strides = tuple(step * storage.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _whole(numbers: Any) -> tuple[int, ...]:
    """A tuple of numbers from 0 to 2^40, for shapes and strides."""
    if isinstance(numbers, int):
        numbers = (numbers,)
    if not isinstance(numbers, tuple | list) or len(numbers) > 32:
        raise _Refused("holds an array without a shape")
    if not all(isinstance(n, int | np.integer) and 0 <= n < 1 << 40 for n in numbers):
        raise _Refused("holds an array of an impossible shape")
    return tuple(int(n) for n in numbers)


def _array(shape: Any, dtype: Any, order: Any, content: Any, resolve: Callable[[Any], Any]) -> np.ndarray:
    """An array of checked content: bytes for numbers and text, a list for objects."""
    shape = _whole(shape)
    if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise _Refused("holds an array without a type")
    kind, count = dtype.value(), math.prod(shape)
    if kind.kind == "O":
        if not isinstance(content, list) or len(content) != count:
            raise _Refused(f"holds an array of {count} objects with other content")
        objects = np.empty(count, object)
        for i, item in enumerate(content):
            objects[i] = resolve(item)
        return objects.reshape(shape, order=order)
    if isinstance(content, str):  # written by Python 2
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or len(content) != count * kind.itemsize:
        raise _Refused(f"holds an array of shape {shape} and type {kind} with content of another size")
    if not content:
        return np.empty(shape, kind)
    return np.frombuffer(bytes(content), kind).reshape(shape, order=order).copy()


def _indices(values: Any, limit: int) -> np.ndarray:
    """(n,) int64 indices below a limit."""
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (found.size and not 0 <= found.min() <= found.max() < limit):
        raise _Refused("holds a sparse matrix with indices outside it")
    return found.astype(np.int64)


def _make_dtype(code: Any, *_: Any) -> _Dtype:
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,6}|O8?", code):
        raise _Refused("holds an array of a type other than numbers and text")
    return _Dtype(code)


def _make_scalar(dtype: Any, content: Any = b"") -> Any:
    return _array((1,), dtype, "C", content, lambda item: item)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused("encodes text in an unknown way")
    return text.encode("latin1")


def _bytes(content: Any = b"", *encoding: Any) -> bytes:
    return _encode(content, *encoding) if isinstance(content, str) else _of(content, bytes)


def _pairs(items: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in (items.items() if isinstance(items, dict) else items)}


def _slice(*args: Any) -> slice:
    if not all(arg is None or isinstance(arg, int) for arg in args):
        raise _Refused("holds a slice without numbers")
    return slice(*args)


def _members(items: Any = ()) -> set[Any]:
    return {_key(item) for item in items}


def _new_array(cls: Any, *_: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array((shape, dtype, order == "F", content))


def _callables() -> dict[str, Callable[..., Any]]:
    """What each global that may be called does here, by its full name."""
    found: dict[str, Callable[..., Any]] = {
        "numpy.dtype": _make_dtype,
        "_codecs.encode": _encode,
        "collections.OrderedDict": _pairs,
    }
    for builtins in ("builtins", "__builtin__"):  # Python 3's name and Python 2's
        found |= {f"{builtins}.{name}": _bytes for name in ("bytes", "bytearray")}
        found |= {f"{builtins}.{name}": _members for name in ("set", "frozenset")}
        found[f"{builtins}.slice"] = _slice
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray._reconstruct"] = _new_array
        found[f"{core}.multiarray.scalar"] = _make_scalar
        found[f"{core}.numeric._frombuffer"] = _from_buffer
    for kind in ("csc", "csr", "coo"):
        for module in (f"scipy.sparse.{kind}", f"scipy.sparse._{kind}"):
            for suffix in ("matrix", "array"):
                found[f"{module}.{kind}_{suffix}"] = lambda *_, kind=kind: _Sparse(kind)
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        found[f"torch._utils.{name}"] = lambda *args: _Tensor(args if len(args) >= 4 else (*args, 0, 0, 0, 0)[:4])
    return found


_CALLABLES = _callables()
_CLASSES = {"numpy.ndarray", "numpy.matrixlib.defmatrix.matrix", "builtins.object", "__builtin__.object"}
_REBUILD = ("copyreg._reconstructor", "copy_reg._reconstructor")


def _key(value: Any) -> Any:
    """A key of a dictionary: text or a number, or a tuple of them. Deep tuples would overflow the stack in hash()."""
    parts = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(part, _KEYS) for part in parts):
        raise _Refused("holds a dictionary with keys other than text and numbers")
    return value


class _Machine:
    """The stack machine that a pickle is a program for."""

    def __init__(self, modules: tuple[str, ...], storage: Callable[[Any], Any] | None):
        self.modules, self.storage = modules, storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        while True:
            code = file.read(1)
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise _Refused("ends early" if not code else "is no pickle")
            name = operation.name
            if name == "STRING":  # pickletools reads ASCII only
                argument: Any = _string(file.readline())
            else:
                argument = None if operation.arg is None else operation.arg.reader(file)
            if name == "STOP":
                return self.stack.pop()
            self.step(name, argument)

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PUSHES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self.since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name == "LIST":
            stack.append(self.since_mark())
        elif name == "DICT":
            items = self.since_mark()
            stack.append(_pairs(zip(items[::2], items[1::2])))
        elif name == "FROZENSET":
            stack.append(_members(self.since_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.since_mark()
            _of(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.since_mark()
            _of(stack[-1], dict).update(_pairs(zip(items[::2], items[1::2])))
        elif name == "ADDITEMS":
            items = self.since_mark()
            _of(stack[-1], set).update(_members(items))
        elif name == "GLOBAL":
            stack.append(self.find(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = stack[-2:]
            stack[-2:] = [self.find(_of(module, str), _of(attribute, str))]
        elif name in ("REDUCE", "NEWOBJ"):
            args = stack.pop()
            stack[-1] = self.call(stack[-1], _of(args, tuple))
        elif name == "NEWOBJ_EX":
            named, args = stack.pop(), stack.pop()
            stack[-1] = self.call(stack[-1], (*_of(args, tuple), *_of(named, dict).values()))
        elif name == "OBJ":
            cls, *args = self.since_mark()
            stack.append(self.call(cls, tuple(args)))
        elif name == "INST":
            args = self.since_mark()
            stack.append(self.call(self.find(*argument.split(" ", 1)), tuple(args)))
        elif name == "BUILD":
            state = stack.pop()
            self.build(stack[-1], state)
        elif name in ("BINPERSID", "PERSID") and self.storage is not None:
            stack.append(self.storage(stack.pop() if name == "BINPERSID" else argument))
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"asks for {name.lower()}, which is not allowed")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def find(self, module: str, name: str) -> _Global:
        found = _Global(module, name)
        expected = module.split(".")[0] in self.modules
        torch = self.storage is not None and (module in ("torch", "torch.storage"))
        if expected or found.full in _CALLABLES or found.full in _CLASSES or found.full in _REBUILD or torch:
            return found
        raise _Refused(f"asks to load {found.full}, which is not allowed; get it from a trusted source")

    def call(self, called: Any, args: tuple[Any, ...]) -> Any:
        if not isinstance(called, _Global):
            raise _Refused("calls something that is not a class")
        if called.full in _REBUILD:  # Python 2's way to make an object: class, base, the base's state
            return self.call(args[0], ())
        if called.module.split(".")[0] in self.modules:
            return Record(called.full, args)
        if called.full not in _CALLABLES:
            raise _Refused(f"calls {called.full}, which is not allowed")
        return _CALLABLES[called.full](*args)

    def build(self, built: Any, state: Any) -> None:
        if isinstance(built, Record):
            built.state = state
        elif isinstance(built, _Dtype | _Array):
            built.build(_of(state, tuple))
        elif isinstance(built, _Sparse):
            built.build(_of(state, dict))
        elif not isinstance(built, dict):  # an OrderedDict may carry attributes; they are left out
            raise _Refused("sets the state of something that has none")


_PUSHES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _Refused(f"gives a {type(value).__name__} where a {kind.__name__} is due")
    return value


def _string(line: bytes) -> str:
    """The text of Python 2's quoted form."""
    import codecs

    quoted = line.rstrip(b"\n")
    if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in (b"'", b'"'):
        raise _Refused("ends early")
    return codecs.escape_decode(quoted[1:-1])[0].decode("latin1")


class _Resolver:
    """Turns the stand-ins in nested containers into what they stand for, each once."""

    def __init__(self) -> None:
        self.done: dict[int, tuple[Any, Any]] = {}  # by id: the stand-in, held so that its id stays its own; its value
        self.depth = 0

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, list | tuple | dict | Record | _Array | _Sparse | _Tensor | _Dtype):
            return value
        if id(value) in self.done:
            return self.done[id(value)][1]
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Refused(f"is nested more than {DEEPEST} deep")
        found: Any
        if isinstance(value, Record):
            found = Record(value.name)
            self.done[id(value)] = value, found  # records may refer to each other
            found.args, found.state = self(value.args), self(value.state)
        elif isinstance(value, dict):
            found = {key: self(item) for key, item in value.items()}
        elif isinstance(value, list):
            found = [self(item) for item in value]
        elif isinstance(value, tuple):
            found = tuple(self(item) for item in value)
        elif isinstance(value, _Dtype):
            found = value.value()
        else:
            found = value.value(self)
        self.depth -= 1
        self.done[id(value)] = value, found
        return found


def loads(
    data: bytes,
    source: str | Path,
    modules: tuple[str, ...] = (),
    storage: Callable[[Any], Any] | None = None,
) -> Any:
    """The content of a pickle: plain values, containers, NumPy arrays, SciPy sparse matrices, and records.

    Args:
        source: the path to name in errors.
        modules: top-level modules (`chumpy`, `pandas`, `pyarrow`) whose objects become inert `Record`s.
        storage: what torch's persistent ids stand for, as arrays; without it they are refused.

    Raises:
        InputError: anything but these is asked for, or the pickle is damaged. Nothing of the file has been called.
    """
    try:
        resolver = _Resolver()
        return resolver(_Machine(modules, storage).run(io.BytesIO(data)))
    except _Refused as error:
        said = str(error)
        if said.startswith("asks to load"):
            raise InputError(f"{source} {said}") from error
        raise InputError(f"{source} is not a readable pickle file (it {said})") from error
    except RecursionError as error:
        raise InputError(f"{source} is not a readable pickle file (it is nested too deeply)") from error
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError, EOFError) as error:
        said = str(error).split("\n")[0][:120]
        raise InputError(f"{source} is not a readable pickle file ({type(error).__name__}: {said})") from error


def read_npz(path: str | Path, modules: tuple[str, ...] = ()) -> dict[str, Any]:
    """An `.npz` file whose arrays may hold objects, as `numpy.savez` writes a dictionary of more than arrays.

    An array of objects of size one is its only item. Raises InputError as `files.read_npz` and `loads`.
    """

    def objects(data: bytes, shape: tuple[int, ...]) -> Any:
        return _item(loads(data, path, modules), shape, path)

    return files.read_npz(path, objects)


def _item(found: Any, shape: tuple[int, ...], path: str | Path) -> Any:
    if not isinstance(found, np.ndarray) or found.shape != shape:
        raise InputError(f"{path} is not a readable npy file (its content does not fit its header)")
    return found.item() if found.size == 1 else found


def read_npy(path: str | Path) -> Any:
    """An `.npy` file: a plain array, or what an array of objects holds (an array of size one: its only item).

    Raises InputError for a missing or damaged file, or objects that `loads` refuses.
    """
    path = Path(path)
    with open(path, "rb") as file:
        shape, _, dtype = read_npy_header(file, path)
        if dtype.kind != "O":
            file.seek(0)
            return np.load(file, allow_pickle=False)
        return _item(loads(file.read(), path), shape, path)


def read_torch(path: str | Path) -> Any:
    """The content of a zip archive of `torch.save`: tensors and parameters become NumPy arrays.

    Raises InputError for a missing or damaged file, or objects that `loads` refuses.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(pickled) != 1:
                raise InputError(f"{path} is not a file of torch.save (it has no data.pkl)")
            folder = pickled[0][: -len("data.pkl")]

            def storage(reference: Any) -> np.ndarray:
                _, kind, key, _, count = reference
                code = _STORAGES.get(kind.name if isinstance(kind, _Global) else "")
                if code is None:
                    raise _Refused("holds a tensor of an unknown type")
                content = read_member(archive, f"{folder}data/{key}", path)
                if len(content) != count * np.dtype(code).itemsize:
                    raise _Refused("holds a tensor whose storage has another size")
                found = np.frombuffer(content, code)
                if kind.name == "BFloat16Storage":  # the upper half of a float32
                    found = (found.astype(np.uint32) << 16).view(np.float32)
                return found

            return loads(read_member(archive, pickled[0], path), path, storage=storage)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a readable file of torch.save ({error})") from error
