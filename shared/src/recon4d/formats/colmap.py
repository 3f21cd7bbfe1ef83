"""COLMAP models: a folder with cameras and images as text or binary, of any version, rigs included.

From version 3.12 a model also has rigs and frames; the images still hold every picture's own pose, so that nothing of
these is needed. Pixel centres are at +0.5, axes OpenCV's, as here. Formulas: COLMAP's sensor/models.h.
"""

import struct
from pathlib import Path

import numpy as np
import roma
import torch

from recon4d.files import InputError
from recon4d.formats.shot import Shot, intrinsics
from recon4d.lenses import Lens, LensCamera

# By name: number, and what each parameter is
MODELS = {
    "SIMPLE_PINHOLE": (0, "f cx cy"),
    "PINHOLE": (1, "fx fy cx cy"),
    "SIMPLE_RADIAL": (2, "f cx cy k1"),
    "RADIAL": (3, "f cx cy k1 k2"),
    "OPENCV": (4, "fx fy cx cy k1 k2 p1 p2"),
    "OPENCV_FISHEYE": (5, "fx fy cx cy k1 k2 k3 k4"),
    "FULL_OPENCV": (6, "fx fy cx cy k1 k2 p1 p2 k3 d1 d2 d3"),
    "SIMPLE_RADIAL_FISHEYE": (8, "f cx cy k1"),
    "RADIAL_FISHEYE": (9, "f cx cy k1 k2"),
    "THIN_PRISM_FISHEYE": (10, "fx fy cx cy k1 k2 p1 p2 k3 k4 s1 s3"),
}
_NUMBERS = {number: name for name, (number, _) in MODELS.items()}

Entry = tuple[list[float], list[float], int, str]  # of a picture: quaternion wxyz, translation, camera, name


def read(folder: str | Path) -> list[Shot]:
    """The pictures of a model in the order of their file. Raises InputError for broken ones and unknown lenses."""
    folder = Path(folder)
    try:
        if (folder / "images.bin").is_file():
            entries, models = _images_bin(folder / "images.bin"), _cameras_bin(folder / "cameras.bin")
        elif (folder / "images.txt").is_file():
            entries, models = _images_txt(folder / "images.txt"), _cameras_txt(folder / "cameras.txt")
        else:
            raise InputError(f"{folder} has neither images.bin nor images.txt; give the folder of a COLMAP model")
        return [Shot(name, _pose(turn, move), models[number]) for turn, move, number, name in entries]
    except KeyError as error:
        raise InputError(f"{folder} has pictures of a camera {error} that it does not hold; export it again") from error
    except (struct.error, ValueError, IndexError, OSError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} does not hold a whole COLMAP model ({error}); export it again") from error


def _pose(turn: list[float], move: list[float]) -> np.ndarray:
    pose = np.eye(4)
    x, y, z, w = np.array([*turn[1:], turn[0]]) / max(float(np.linalg.norm(turn)), 1e-300)
    pose[:3, :3] = roma.unitquat_to_rotmat(torch.tensor([x, y, z, w], dtype=torch.float64)).numpy()
    pose[:3, 3] = move
    return pose


def _camera(name: str, width: int, height: int, values: list[float]) -> LensCamera:
    keys = MODELS[name][1].split()
    if len(values) != len(keys):
        raise ValueError(f"a camera {name} has {len(values)} parameters, not {len(keys)}")
    p = dict(zip(keys, values))
    lens = Lens(
        radial=tuple(p.get(key, 0.0) for key in ("k1", "k2", "k3", "k4")),
        rational=tuple(p[key] for key in ("d1", "d2", "d3") if key in p),
        tangential=(p.get("p1", 0.0), p.get("p2", 0.0)),
        prism=(p.get("s1", 0.0), 0.0, p.get("s3", 0.0), 0.0),
        fisheye="FISHEYE" in name,
    )
    K = intrinsics(p.get("fx", p.get("f", 0.0)), p.get("fy", p.get("f", 0.0)), p["cx"], p["cy"])
    return LensCamera(K, width, height, lens)


def _unsupported(path: Path, model: str | int) -> InputError:
    known = ", ".join(MODELS)
    return InputError(f"{path}: COLMAP's camera model {model} is not supported; use one of {known}")


def _cameras_txt(path: Path) -> dict[int, LensCamera]:
    out: dict[int, LensCamera] = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            number, name, width, height, *values = line.split()
            if name not in MODELS:
                raise _unsupported(path, name)
            out[int(number)] = _camera(name, int(width), int(height), [float(v) for v in values])
    return out


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _images_txt(path: Path) -> list[Entry]:
    """Lines of pictures; between them may be lines of points (x y number, repeated), empty ones, or none at all."""
    out: list[Entry] = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        words = line.split(maxsplit=9)
        if not words or words[0].startswith("#"):
            continue
        count = len(line.split())
        if count % 3 == 0 and (count < 10 or all(map(_is_number, line.split()[9:]))):
            continue  # points
        if len(words) < 10:
            raise ValueError(f"{path.name} has a line that is neither a picture nor points: {line[:60]}")
        turn, move = [float(w) for w in words[1:5]], [float(w) for w in words[5:8]]
        out.append((turn, move, int(words[8]), words[9].strip()))
    return out


def _cameras_bin(path: Path) -> dict[int, LensCamera]:
    data, at = path.read_bytes(), 8
    out: dict[int, LensCamera] = {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        number, model, width, height = struct.unpack_from("<iiQQ", data, at)
        if model not in _NUMBERS:
            raise _unsupported(path, model)
        name = _NUMBERS[model]
        count = len(MODELS[name][1].split())
        out[number] = _camera(name, width, height, list(struct.unpack_from(f"<{count}d", data, at + 24)))
        at += 24 + 8 * count
    return out


def _images_bin(path: Path) -> list[Entry]:
    data, at = path.read_bytes(), 8
    out: list[Entry] = []
    for _ in range(struct.unpack_from("<Q", data)[0]):
        values = struct.unpack_from("<i7di", data, at)
        end = data.index(b"\0", at + 64)
        out.append((list(values[1:5]), list(values[5:8]), values[8], data[at + 64 : end].decode()))
        (points,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9 + 24 * points
    if at > len(data):
        raise ValueError(f"{path.name} is cut off")
    return out
