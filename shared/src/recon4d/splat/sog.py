"""Gaussians in `.sog` files (PlayCanvas): a zip of `meta.json` and lossless WebP pictures, one pixel for each Gaussian.

Positions are 16 bits of sign(x) log(1 + |x|), in two pictures. Scales and colours are bytes that point into tables of
256 values; opacity is a byte; rotations are the smallest three in bytes. Harmonics are numbers of rows of a palette.
Version 1, whose bytes are linear between bounds, is read too. https://developer.playcanvas.com, formats, SOG
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recon4d import images
from recon4d.files import InputError, parse_json, read_member, write_bytes
from recon4d.splat.gaussians import Gaussians, from_smallest_three, of_arrays, smallest_three, to_arrays

_COMPONENTS = (0, 3, 8, 15)  # harmonics beyond the first, by degree
_TAG = 252  # of a rotation, plus which of w, x, y, z is largest
_MARGIN = 1e-6  # zero and one have no finite logit


def read(path: str | Path) -> Gaussians:
    """Read a `.sog` file, or a `meta.json` with its pictures beside it. Raises InputError for broken ones."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    if path.suffix.lower() == ".json":
        folder = path.parent

        def beside(name: str) -> bytes:
            if Path(name).name != name or not (folder / name).is_file():
                raise InputError(f"{path} names {name!r}, which is not beside it")
            return (folder / name).read_bytes()

        return _read(path, path.read_bytes(), beside)
    try:
        with zipfile.ZipFile(path) as archive:
            metas = [name for name in archive.namelist() if name.rpartition("/")[2] == "meta.json"]
            if not metas:
                raise InputError(f"{path} holds no meta.json; export it again")
            prefix = metas[0].removesuffix("meta.json")
            content = read_member(archive, metas[0], path)
            return _read(path, content, lambda name: read_member(archive, prefix + name, path))
    except (zipfile.BadZipFile, KeyError, OSError, NotImplementedError) as error:
        raise InputError(f"{path} is not a whole .sog file ({error}); export it again") from error


def _read(path: Path, content: bytes, load: Callable[[str], bytes]) -> Gaussians:
    meta = parse_json(content, path)
    try:
        old = int(meta.get("version", 1)) < 2
        n = int(meta["means"]["shape"][0] if old else meta["count"])

        def texels(part: str, which: int = 0) -> np.ndarray:
            """(n, 4) bytes of a picture, row by row."""
            name = str(meta[part]["files"][which])
            pixels = images.read(f"{path}: {name}", "RGBA", data=load(name), upright=False).reshape(-1, 4)
            if len(pixels) < n:
                raise ValueError(f"{name} has {len(pixels)} pixels for {n} Gaussians")
            return pixels[:n]

        def values(part: str, channels: int) -> np.ndarray:
            table, pixels = meta[part], texels(part)[:, :channels]
            if not old:
                return _look_up(table["codebook"], pixels)
            low, high = (np.array(table[key], np.float64)[:channels] for key in ("mins", "maxs"))
            return _between(low, high, pixels)

        low, high = (np.array(meta["means"][key], np.float64).reshape(3) for key in ("mins", "maxs"))
        steps = texels("means")[:, :3] + 256.0 * texels("means", 1)[:, :3]
        span = np.where(high == low, 1.0, high - low)
        logs = low + span * steps / 65535
        turn = texels("quats")
        known = turn[:, 3] >= _TAG
        quats = from_smallest_three(
            np.where(known, turn[:, 3] - _TAG * known, 0), (turn[:, :3] / 255 * 2 - 1) * np.sqrt(0.5)
        )
        quats[~known] = [1, 0, 0, 0]
        colours = values("sh0", 4 if old else 3)
        if old:  # opacity as a logit
            opacities = 1 / (1 + np.exp(-colours[:, 3].clip(-60, 60)))
        else:
            opacities = (texels("sh0")[:, 3] / 255).clip(_MARGIN, 1 - _MARGIN)
        sh = colours[:, None, :3]
        if meta.get("shN"):
            sh = np.concatenate([sh, _harmonics(meta["shN"], old, texels("shN", 1), path, load)], 1)
        means = np.sign(logs) * np.expm1(np.abs(logs))
        found = (means, quats, values("scales", 3), opacities, sh)
        if not all(np.isfinite(array).all() for array in found):
            raise ValueError("numbers that are not finite")
        return of_arrays(*found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a whole SOG scene ({str(error)[:120]}); export it again") from error


def _look_up(codebook: Any, pixels: np.ndarray) -> np.ndarray:
    table = np.array(codebook, np.float64)
    if table.ndim != 1 or not 0 < len(table) <= 256:
        raise ValueError("a codebook has another shape")
    values: np.ndarray = np.concatenate([table, np.full(256 - len(table), table[-1])])[pixels]
    return values


def _between(low: np.ndarray | np.float64, high: np.ndarray | np.float64, pixels: np.ndarray) -> np.ndarray:
    values: np.ndarray = low + (high - low) * pixels / 255
    return values


def _harmonics(
    part: dict[str, Any], old: bool, labels: np.ndarray, path: Path, load: Callable[[str], bytes]
) -> np.ndarray:
    """(n, K - 1, 3): rows of a palette, 64 beside each other in a picture."""
    name = str(part["files"][0])
    palette = images.read(f"{path}: {name}", "RGBA", data=load(name), upright=False)[..., :3]
    k = palette.shape[1] // 64
    if palette.shape[1] % 64 or k not in _COMPONENTS[1:]:
        raise ValueError(f"{name} is {palette.shape[1]} pixels wide")
    rows = palette.reshape(-1, k, 3)
    number = labels[:, 0] + 256 * labels[:, 1].astype(np.int64)
    if len(number) and number.max() >= len(rows):
        raise ValueError(f"{name} has {len(rows)} rows, and row {number.max()} is asked for")
    if not old:
        return _look_up(part["codebook"], rows[number])
    return _between(np.float64(part["mins"]), np.float64(part["maxs"]), rows[number])


def write(path: str | Path, gaussians: Gaussians) -> None:
    """Write a `.sog` file of version 2, atomically; extra properties are left out.

    Raises ValueError for harmonics beyond the first: a palette of them is not made here.
    """
    if gaussians.sh_degree > 0:
        raise ValueError("harmonics beyond the first are not written as .sog; write .spz or .ply")
    means, quats, log_scales, opacities, sh = to_arrays(gaussians)
    n = len(means)
    logs = np.sign(means) * np.log1p(np.abs(means))
    low, high = (logs.min(0), logs.max(0)) if n else (np.zeros(3), np.zeros(3))
    steps = np.rint((logs - low) / np.where(high == low, 1.0, high - low) * 65535).astype(np.int64)
    largest, others = smallest_three(quats)
    turn = np.rint((others * np.sqrt(2) + 1) / 2 * 255).clip(0, 255)
    scale_table, scale = _codebook(log_scales)
    colour_table, colour = _codebook(sh[:, 0])
    opaque = np.full((n, 1), 255)
    textures = {
        "means_l.webp": np.concatenate([steps & 255, opaque], 1),
        "means_u.webp": np.concatenate([steps >> 8, opaque], 1),
        "scales.webp": np.concatenate([scale, opaque], 1),
        "quats.webp": np.concatenate([turn, _TAG + largest[:, None]], 1),
        "sh0.webp": np.concatenate([colour, np.rint(opacities * 255).clip(0, 255)[:, None]], 1),
    }
    meta = {
        "version": 2,
        "asset": {"generator": "recon4d"},
        "count": n,
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": scale_table.tolist(), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": colour_table.tolist(), "files": ["sh0.webp"]},
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [("meta.json", json.dumps(meta).encode()), *((k, _webp(v)) for k, v in textures.items())]:
            archive.writestr(zipfile.ZipInfo(name), content)  # of a fixed date: the same Gaussians, the same file
    write_bytes(path, packed.getvalue())


def _webp(texels: np.ndarray) -> bytes:
    """(N, 4) values as the pixels of a lossless picture, row by row."""
    width = max(4, int(np.ceil(np.sqrt(max(len(texels), 1)) / 4)) * 4)
    height = max(4, int(np.ceil(len(texels) / width / 4)) * 4)
    pixels = np.zeros((width * height, 4), np.uint8)
    pixels[: len(texels)] = texels
    content = io.BytesIO()
    # exact: colours under transparent pixels are numbers too
    Image.fromarray(pixels.reshape(height, width, 4)).save(content, "WEBP", lossless=True, exact=True, method=4)
    return content.getvalue()


def _codebook(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """256 values that stand for all, in order, and which of them stands for each: k-means in one dimension."""
    flat = np.sort(values.reshape(-1))
    if not len(flat):
        return np.zeros(256), np.zeros(values.shape, np.uint8)
    even = np.linspace(flat[0], flat[-1], 128)  # so that what is rare is not far from every value
    table = np.sort(np.concatenate([even, np.quantile(flat, (np.arange(128) + 0.5) / 128)]))
    total = np.concatenate([[0.0], np.cumsum(flat)])
    for _ in range(20):
        cuts = np.searchsorted(flat, (table[1:] + table[:-1]) / 2)
        first, last = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(flat)]])
        table = np.where(last > first, (total[last] - total[first]) / np.maximum(last - first, 1), table)
    table = np.sort(table).astype(np.float32).astype(np.float64)
    return table, np.searchsorted((table[1:] + table[:-1]) / 2, values).astype(np.uint8)
