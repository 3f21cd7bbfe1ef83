"""Gaussians in `.spz` files (Niantic): 64 bytes down to about 16 by quantisation, then gzip (versions 1 to 3) or zstd.

Attributes lie one after the other. Positions are fixed-point numbers of 24 bits; alphas, colours, logarithms of scales
and harmonics are bytes; rotations are the smallest three of a quaternion in 30 bits (from version 3; three bytes of
x, y, z before). Coordinates are taken and written as they are. https://github.com/nianticlabs/spz
"""

import gzip
import struct
from pathlib import Path

import numpy as np

from recon4d.files import InputError, most_bytes, read_gzip, write_bytes
from recon4d.splat.gaussians import Gaussians, from_smallest_three, of_arrays, smallest_three, to_arrays

_MAGIC = 0x5053474E  # NGSP
_COLOUR = 0.15  # a byte of colour is 255 (0.15 f_dc + 0.5)
_COMPONENTS = (0, 3, 8, 15)  # harmonics beyond the first, by degree
_MOST_BITS = 20  # behind the point of a position: a thousandth of a millimetre


def read(path: str | Path) -> Gaussians:
    """Read a file of version 1 to 4. Raises InputError for anything else, and for one that ends early."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    data = path.read_bytes()
    data = read_gzip(path) if data[:2] == b"\x1f\x8b" else data
    if len(data) < 16:
        raise InputError(f"{path} is not a .spz file; export it again")
    magic, version, n, degree, bits, _, streams = struct.unpack_from("<IIIBBBB", data)
    if magic != _MAGIC or not 1 <= version <= 4:
        raise InputError(f"{path} is not a .spz file of version 1 to 4; export it again")
    if degree > 3 or bits > 30:
        raise InputError(
            f"{path} has harmonics of degree {degree} or {bits} fractional bits; at most 3 and 30 are read"
        )
    k = _COMPONENTS[degree]
    sizes = [n * (6 if version == 1 else 9), n, 3 * n, 3 * n, n * (3 if version < 3 else 4), 3 * n * k]
    parts = _inflated(data, sizes, streams, path) if version == 4 else _cut(data[16:], sizes, path)
    position, alpha, colour, scale, turn, rest = (np.frombuffer(part, np.uint8) for part in parts)
    means: np.ndarray
    if version == 1:
        means = position.view("<f2").reshape(n, 3).astype(np.float64)
    else:
        low = position.reshape(n, 3, 3).astype(np.int32)
        means = (low[..., 0] | low[..., 1] << 8 | low[..., 2] << 16) << 8 >> 8  # the sign is carried on
        means = means / (1 << bits)
    sh = np.empty((n, k + 1, 3))
    sh[:, 0] = (colour.reshape(n, 3) / 255 - 0.5) / _COLOUR
    sh[:, 1:] = (rest.reshape(n, k, 3) - 128.0) / 128
    quats = _small_quats(turn.reshape(n, 3)) if version < 3 else _quats(turn.view("<u4"))
    return of_arrays(means, quats, scale.reshape(n, 3) / 16 - 10, alpha / 255, sh)


def _cut(data: bytes, sizes: list[int], path: Path) -> list[bytes]:
    if len(data) < sum(sizes):
        raise InputError(f"{path} ends before its Gaussians do; copy it again")
    ends = np.cumsum(sizes)
    return [data[end - size : end] for size, end in zip(sizes, ends)]


def _inflated(data: bytes, sizes: list[int], streams: int, path: Path) -> list[bytes]:
    """The streams of version 4, each by zstd, whose lengths stand in a table."""
    try:
        import zstandard
    except ImportError as error:
        raise InputError(f"{path} is a .spz file of version 4; install zstandard, or export version 3") from error
    wanted = sizes[: 5 if sizes[5] == 0 else 6]
    parts: list[bytes] = []
    try:
        (table,) = struct.unpack_from("<I", data, 16)
        at = table + 16 * len(wanted)
        if streams != len(wanted) or sum(sizes) > most_bytes(len(data)):
            raise ValueError
        for i, size in enumerate(wanted):
            packed, said = struct.unpack_from("<QQ", data, table + 16 * i)
            if said != size or at + packed > len(data):
                raise ValueError
            with zstandard.ZstdDecompressor().stream_reader(data[at : at + packed]) as stream:
                parts.append(stream.read(size + 1))
            at += packed
            if len(parts[-1]) != size:
                raise ValueError
    except (ValueError, struct.error, zstandard.ZstdError) as error:
        raise InputError(f"{path} ends before its Gaussians do, or is damaged; copy it again") from error
    return parts + [b""] * (6 - len(parts))


def _small_quats(turn: np.ndarray) -> np.ndarray:
    xyz = turn / 127.5 - 1.0
    w = np.sqrt(np.maximum(0.0, 1.0 - (xyz**2).sum(1)))
    return np.concatenate([w[:, None], xyz], 1)


def _quats(packed: np.ndarray) -> np.ndarray:
    """wxyz of 32 bits: which of x, y, z, w is largest, then the others, each a sign and 9 bits, the last one lowest."""
    fields = np.stack([packed >> 20 & 1023, packed >> 10 & 1023, packed & 1023], 1).astype(np.int64)
    others = np.where(fields & 512, -1.0, 1.0) * (fields & 511) / 511 * np.sqrt(0.5)
    return from_smallest_three((packed >> 30).astype(np.int64), others)[:, [3, 0, 1, 2]]


def write(path: str | Path, gaussians: Gaussians) -> None:
    """Write a file of version 3, atomically; extra properties are left out.

    Positions have as many bits behind the point as the largest coordinate leaves free, at most 20.
    """
    means, quats, log_scales, opacities, sh = to_arrays(gaussians)
    n, degree = len(means), gaussians.sh_degree
    furthest = max(float(np.abs(means).max(initial=0.0)), 1e-6)
    bits = int(np.clip(np.floor(np.log2((2**23 - 1) / furthest)), 0, _MOST_BITS))
    fixed = np.rint(means * (1 << bits)).clip(-(2**23), 2**23 - 1).astype(np.int64)
    largest, others = smallest_three(quats[:, [1, 2, 3, 0]])
    fields = np.rint(np.abs(others) * np.sqrt(2) * 511).clip(0, 511).astype(np.uint32) | (others < 0) * np.uint32(512)
    packed = largest.astype(np.uint32) << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]
    parts = [
        struct.pack("<IIIBBBB", _MAGIC, 3, n, degree, bits, 0, 0),
        np.stack([fixed & 255, fixed >> 8 & 255, fixed >> 16 & 255], -1).astype(np.uint8).tobytes(),
        _byte(opacities * 255).tobytes(),
        _byte((sh[:, 0] * _COLOUR + 0.5) * 255).tobytes(),
        _byte((log_scales + 10) * 16).tobytes(),
        packed.astype("<u4").tobytes(),
        _byte(sh[:, 1:] * 128 + 128).tobytes(),
    ]
    write_bytes(path, gzip.compress(b"".join(parts), 9, mtime=0))


def _byte(values: np.ndarray) -> np.ndarray:
    bytes_: np.ndarray = np.rint(values).clip(0, 255).astype(np.uint8)
    return bytes_
