"""What DECA, EMOCA and programs like them say of a face: dictionaries and arrays of FLAME's parameters.

DECA (Feng et al. 2021) and EMOCA (Danecek et al. 2022) answer a dictionary for each picture: `shape` (100), `exp` (50),
`pose` (6: the head's turn and the jaw's, rotation vectors), `cam` (3), `tex`, `light`, `detail`; EMOCA calls the first
three `shapecode`, `expcode`, `posecode`. Neither knows a place: `cam` is of a crop that follows the face.
"""

import io
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch

from recon4d import images, pickles
from recon4d.files import InputError, read_npy
from recon4d.formats.track import Track
from recon4d.head import HeadModel

PICKLES, TORCH = (".pkl", ".pickle"), (".pt", ".pth")
SUFFIXES = PICKLES + TORCH
NAMES = {"shape": ("shape", "shapecode"), "exp": ("exp", "expcode"), "pose": ("pose", "posecode")}
MOST = {"shape": 300, "exp": 100, "pose": 6}  # numbers of a frame: FLAME has no more
FLIP = np.diag(np.array([1, -1, -1], np.float32))  # between OpenCV's axes and y up
FPS = 25.0  # not in the format


@dataclass(frozen=True, eq=False)
class Codes:
    """N frames, float32: shape (S,), expression (N, E), turn and jaw (N, 3) rotation vectors, and names (N,)."""

    shape: np.ndarray
    expression: np.ndarray
    turn: np.ndarray
    jaw: np.ndarray
    names: list[str]


def is_folder(path: Path) -> bool:
    """Whether a folder holds what `read_codes` takes."""
    return (path / "exp.npy").is_file() or bool(_files(path))


def read(path: str | Path, head: HeadModel) -> Track:
    """The same frames as a track of a FLAME model, which stays in one place and is seen by no camera.

    Raises InputError as `read_codes` does.
    """
    codes = read_codes(path)
    n = len(codes.expression)
    still = np.tile(np.eye(3, dtype=np.float32), (n, 1, 1))
    return Track(
        head_model=head.name,
        image_size=np.array([1, 1]),
        fps=FPS,
        K=np.array([[1.0, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]], np.float32),
        names=np.array([f"{name}.png" for name in codes.names]),
        valid=np.ones(n, bool),
        shape=codes.shape[: head.n_shape],
        expression=codes.expression[:, : head.n_expression],
        R=FLIP @ _matrices(codes.turn),
        t=np.zeros((n, 3), np.float32),
        neck=still,
        jaw=_matrices(codes.jaw),
        eyes=np.tile(np.eye(3, dtype=np.float32), (n, 2, 1, 1)),
        eyelids=np.zeros((n, 2), np.float32),
    )


def read_codes(path: str | Path) -> Codes:
    """Frames of a file or folder.

    Args:
        path: a pickle (.pkl, .pickle) or a file of torch.save (.pt, .pth) with one dictionary, of a frame or of arrays
            with a row for each frame, or with a list or a dictionary of such; a folder of these files, one a frame; a
            folder as EMOCA's demo leaves it with --save_codes: one in it for each frame with `exp.npy`, `pose.npy` and
            `shape.npy`, or these files themselves. Arrays may be torch's tensors. Identity is the mean of all frames.

    Raises:
        InputError: a missing or broken file, a forbidden class in a pickle, other keys or sizes.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "exp.npy").is_file():
            return _joined([(path.stem, _arrays_beside(path))], path)
        found = [(file.stem if file.is_file() else file.name, _dictionaries(file)) for file in _files(path)]
    elif path.is_file():
        found = [(path.stem, _dictionaries(path))]
    else:
        raise InputError(f"{path} does not exist")
    frames = []
    for name, some in found:
        frames += [(name if len(some) == 1 else key, codes) for key, codes in some]
    if not frames:
        raise InputError(f"{path} has no frames of DECA's or EMOCA's; give pickles or a folder of --save_codes")
    return _joined(frames, path)


def _files(folder: Path) -> list[Path]:
    """The files of a folder that are frames, or its folders that have `exp.npy`; in natural order."""
    there = [item for item in folder.iterdir() if item.name[0] != "."]
    found = [item for item in there if item.is_file() and item.suffix.lower() in SUFFIXES]
    found = found or [item for item in there if item.is_dir() and (item / "exp.npy").is_file()]
    return sorted(found, key=lambda item: images.natural_key(item.name))


def _arrays_beside(folder: Path) -> dict[str, Any]:
    return {name: read_npy(folder / f"{name}.npy") for name in MOST if (folder / f"{name}.npy").is_file()}


def _dictionaries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The dictionaries of one file or folder, each with a name."""
    if path.is_dir():
        return [(path.name, _arrays_beside(path))]
    if path.suffix.lower() in TORCH:
        content = pickles.read_torch(path)
    else:
        content = pickles.loads(path.read_bytes(), path, modules=("torch",))
    if isinstance(content, dict) and any(name in content for name in NAMES["exp"]):
        return [(path.stem, content)]
    if isinstance(content, dict):
        items = sorted(content.items(), key=lambda item: images.natural_key(str(item[0])))
    else:
        items = list(enumerate(content)) if isinstance(content, list | tuple) else []
    if not items or not all(isinstance(value, dict) for _, value in items):
        raise InputError(f"{path} has no `exp` and `pose` of DECA or EMOCA; give a pickle of their dictionaries")
    return [(f"{key:05d}" if isinstance(key, int) else Path(str(key)).stem, value) for key, value in items]


def _joined(frames: list[tuple[str, dict[str, Any]]], path: Path) -> Codes:
    """All frames of some dictionaries, each of one frame or of several."""
    parts = [_rows(codes, path) for _, codes in frames]
    for key in MOST:
        if len({part[key].shape[1] for part in parts}) > 1:
            raise InputError(f"{path}: `{key}` has different lengths in its frames; give those of one program")
    names = []
    for (name, _), part in zip(frames, parts):
        n = len(part["exp"])
        names += [name] if n == 1 else [f"{name}_{i:05d}" for i in range(n)]
    values = {key: np.concatenate([part[key] for part in parts]) for key in MOST}
    turn, jaw = values["pose"][:, :3], values["pose"][:, 3:]
    return Codes(values["shape"].mean(0), values["exp"], turn, jaw, names)


def _rows(codes: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    """A dictionary's arrays, (n, size) each; a shape of zeros where it has none."""
    found = {}
    for key, most in MOST.items():
        name = next((name for name in NAMES[key] if name in codes), None)
        if name is None and key == "shape":
            continue
        if name is None:
            raise InputError(f"{path} has no `{key}`, as DECA and EMOCA have; its keys are {_few(codes)}")
        value = _plain(codes[name], path)
        try:
            array = np.asarray(value)
            rows = array.astype(np.float32).reshape(-1, array.shape[-1])
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(f"{path}: `{name}` holds no numbers ({error}); give DECA's or EMOCA's arrays") from error
        if array.dtype.kind not in "fiu" or array.ndim > 3 or not np.isfinite(rows).all():
            raise InputError(f"{path}: `{name}` holds something else than numbers; give DECA's or EMOCA's arrays")
        if not len(rows) or not 0 < rows.shape[1] <= most or (key == "pose" and rows.shape[1] != most):
            wanted = "6 of a frame: the head's turn and the jaw's" if key == "pose" else f"at most {most} of a frame"
            raise InputError(f"{path}: `{name}` has shape {array.shape}; {wanted} are needed")
        found[key] = rows
    n = len(found["exp"])
    shape = found.setdefault("shape", np.zeros((1, 1), np.float32))
    if len(shape) == 1:
        found["shape"] = np.repeat(shape, n, 0)
    if not len(found["pose"]) == len(found["shape"]) == n:
        raise InputError(f"{path} has {n} rows of `exp` and {len(found['pose'])} of `pose`; they must be as many")
    return found


def _few(codes: dict[str, Any]) -> str:
    return ", ".join(sorted(map(str, codes))[:10]) or "none"


# ---------------------------------------------------------------------------------------- tensors in a plain pickle


def _plain(value: Any, path: Path) -> Any:
    """The array behind a tensor that `pickle.dump` wrote as torch's parts; anything else as it is.

    Such a tensor is a call of `_rebuild_tensor_v2` on its storage, which is a file of torch's old format in the pickle.
    """
    if not isinstance(value, pickles.Record):
        return value
    name = value.name.rsplit(".", 1)[-1]
    if name == "_rebuild_parameter" and value.args:
        return _plain(value.args[0], path)
    if name not in ("_rebuild_tensor_v2", "_rebuild_tensor") or len(value.args) < 4:
        raise InputError(f"{path} holds {value.name} instead of an array; save NumPy's arrays")
    storage, offset, size, stride = value.args[:4]
    known = isinstance(storage, pickles.Record) and storage.name == "torch.storage._load_from_bytes" and storage.args
    content = storage.args[0] if known else None
    numbers = _old_storage(content, path)
    sizes = (*size, *stride, offset) if isinstance(size, tuple) and isinstance(stride, tuple) else (-1,)
    sound = all(isinstance(n, int) and 0 <= n <= numbers.size for n in sizes) and len(size) == len(stride)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if sound else -1
    if not sound or 0 in size or last >= numbers.size or np.prod(size, dtype=float) > numbers.size:
        raise InputError(f"{path} holds a tensor that does not fit its storage; save NumPy's arrays")
    strides = tuple(step * numbers.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(numbers[offset:], size, strides).copy()


def _old_storage(content: Any, path: Path) -> np.ndarray:
    """The numbers of a storage in torch's old format: five pickles, of which the fourth says what it is, and bytes."""
    kinds = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2"}
    refused = InputError(f"{path} holds a tensor that cannot be read; save NumPy's arrays")
    if not isinstance(content, bytes):
        raise refused
    file, parts = io.BytesIO(content), []
    try:
        for _ in range(5):
            start = file.tell()
            for _ in pickletools.genops(file):
                pass
            parts.append(content[start : file.tell()])
    except Exception as error:  # pickletools raises what it likes on bytes that are no pickle
        raise refused from error
    said = pickles.loads(parts[3], path, storage=lambda identity: identity)
    kind = kinds.get(getattr(said[1], "name", "") if isinstance(said, tuple) and len(said) > 4 else "")
    start = file.tell() + 8  # behind the number of elements
    if kind is None or len(content) < start or (len(content) - start) % np.dtype(kind).itemsize:
        raise refused
    return np.frombuffer(content[start:], kind)


def _matrices(vectors: np.ndarray) -> np.ndarray:
    answer: np.ndarray = roma.rotvec_to_rotmat(torch.from_numpy(np.ascontiguousarray(vectors, np.float32))).numpy()
    return answer
