"""Files of LiDAR points: KITTI's .bin, .npy, .ply, and .pcd of PCL."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError
from recon4d.files import read_npy
from recon4d.formats import ply

SUFFIXES = (".bin", ".npy", ".ply", ".pcd")
INTENSITIES = ("intensity", "i", "reflectance", "reflectivity", "scalar_intensity")
TIMES = ("t", "time", "timestamp", "timestamps", "scalar_time")
_HEADER = ("version", "fields", "size", "type", "count", "width", "height", "viewpoint", "points", "data")


def read(path: Path) -> dict[str, np.ndarray]:
    """Columns (N,) float64 by name: x, y, z in metres, `intensity` and `t` where the file has them.

    A `.bin` holds float32 x y z intensity; an `.npy` (N, 3 to 5) x y z intensity t. Points without finite coordinates,
    or at the sensor itself, are those of beams that met nothing: they are left out.

    Raises:
        InputError: a missing, truncated or unknown file, or one without any point.
    """
    return _kept({".bin": _bin, ".npy": _npy, ".ply": _ply, ".pcd": _pcd}[path.suffix.lower()], path)


def read_floats(path: Path, width: int) -> dict[str, np.ndarray]:
    """As `read`, of a file of float32 x y z intensity and more, `width` a point."""
    return _kept(lambda path: _bin(path, width), path)


def _kept(reader: Callable[[Path], dict[str, np.ndarray]], path: Path) -> dict[str, np.ndarray]:
    try:
        found = reader(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check that the log is complete") from error
    xyz = np.stack([found[k] for k in "xyz"], -1)
    with np.errstate(over="ignore", invalid="ignore"):
        kept = np.isfinite(xyz).all(1) & (np.abs(xyz) < 1e5).all(1) & (np.abs(xyz) > 1e-3).any(1)
    if not kept.any():
        raise InputError(f"{path} holds no point with finite coordinates; remove it with its frame")
    return {name: column[kept] for name, column in found.items()}


def _named(columns: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    lower = {name.lower(): np.asarray(column).astype(np.float64) for name, column in columns.items()}
    if not {"x", "y", "z"} <= lower.keys():
        raise InputError(f"{path} has no x, y, z; it has {', '.join(columns)[:200]}")
    out = {name: lower[name] for name in "xyz"}
    for name, others in (("intensity", INTENSITIES), ("t", TIMES)):
        there = [lower[other] for other in others if other in lower]
        out |= {name: there[0]} if there else {}
    return out


def _bin(path: Path, width: int = 4) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    if len(data) % (4 * width) or not data:
        raise InputError(f"{path} holds {len(data)} bytes, which are no points of {4 * width}; copy it again")
    rows = np.frombuffer(data, "<f4").reshape(-1, width)[:, :4]
    return dict(zip(("x", "y", "z", "intensity"), rows.T.astype(np.float64)))


def _npy(path: Path) -> dict[str, np.ndarray]:
    values = read_npy(path)
    if values.ndim != 2 or not 3 <= values.shape[1] <= 5 or values.dtype.kind not in "fiu":
        raise InputError(f"{path} is {values.dtype} of shape {values.shape}; give numbers (N, 3 to 5): x y z i t")
    return dict(zip(("x", "y", "z", "intensity", "t"), values.T.astype(np.float64)))


def _ply(path: Path) -> dict[str, np.ndarray]:
    content = ply.read(path)
    if "vertex" not in content:
        raise InputError(f"{path} has no vertex element; export it again")
    vertices = content["vertex"].data
    return _named({name: vertices[name] for name in vertices.dtype.names if not vertices.dtype[name].hasobject}, path)


def _pcd(path: Path) -> dict[str, np.ndarray]:
    data, place = path.read_bytes(), 0
    head: dict[str, list[str]] = {}
    while "data" not in head:
        end = data.find(b"\n", place, place + 10_000)
        words = data[place : max(end, place)].decode("ascii", "replace").split()
        if end < 0 or (words and words[0].lower() not in _HEADER and not words[0].startswith("#")):
            raise InputError(f"{path} is not a readable PCD file (its header); export it again")
        head |= {words[0].lower(): words[1:]} if words else {}
        place = end + 1
    try:
        counts = [int(n) for n in head.get("count", ["1"] * len(head["fields"]))]
        kinds = [f"<{kind.lower()}{int(size)}" for kind, size in zip(head["type"], head["size"], strict=True)]
        fields = list(zip(head["fields"], kinds, counts, strict=True))
        n = int(head["points"][0]) if "points" in head else int(head["width"][0]) * int(head["height"][0])
        names = [f"{name}_{i}" if name == "_" else name for i, (name, *_) in enumerate(fields)]  # _ is padding
        kind = np.dtype([(name, k, (c,)) if c != 1 else (name, k) for name, (_, k, c) in zip(names, fields)])
        if head["data"] == ["binary"]:
            if not 0 <= n * kind.itemsize <= len(data) - place:
                raise ValueError(f"it says {n} points and holds {(len(data) - place) // max(kind.itemsize, 1)}")
            rows = np.frombuffer(data, kind, n, place)
            return _named({name: rows[name] for name in names if rows[name].ndim == 1}, path)
        if head["data"] == ["ascii"]:
            values = np.loadtxt(io.BytesIO(data[place:]), np.float64, ndmin=2)
            if values.shape != (n, sum(counts)):
                raise ValueError(f"it says {n} points of {sum(counts)} numbers and holds {values.shape}")
            starts = np.cumsum([0, *counts])
            return _named({name: values[:, s] for name, s, c in zip(names, starts, counts) if c == 1}, path)
    except InputError:
        raise
    except (KeyError, ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
        raise InputError(f"{path} is not a readable PCD file ({str(error)[:120]}); export it again") from error
    raise InputError(
        f"{path} is {' '.join(head['data'])[:40]}; write it as binary or ascii, for example by pcl_convert"
    )
