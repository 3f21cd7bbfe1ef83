"""Poses that other programs found: Metashape XML, COLMAP text and binary, nerfstudio's transforms.json."""

import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import roma
import torch
from recon4d import InputError, cameras, images
from recon4d.cameras import Camera
from recon4d.cli import progress
from recon4d.files import write_text
from recon4d.runs import claim
from torch import Tensor

from eyeball_relight import captures, transforms
from eyeball_relight.pictures import read_picture, write_picture

# COLMAP's camera models: number, parameters, and where fx, fy, cx, cy and OpenCV's k1, k2, p1, p2 are among them
COLMAP_MODELS = {
    "SIMPLE_PINHOLE": (0, 3, (0, 0, 1, 2), ()),
    "PINHOLE": (1, 4, (0, 1, 2, 3), ()),
    "SIMPLE_RADIAL": (2, 4, (0, 0, 1, 2), (3,)),
    "RADIAL": (3, 5, (0, 0, 1, 2), (3, 4)),
    "OPENCV": (4, 8, (0, 1, 2, 3), (4, 5, 6, 7)),
}


Model = tuple[str, int, int, list[float]]  # of a COLMAP camera: name, width, height, parameters
Entry = tuple[list[float], list[float], int, str]  # of a COLMAP picture: quaternion wxyz, translation, camera, name


@dataclass(frozen=True, eq=False)
class Poses:
    """N pictures of one camera. files: names. camera: OpenCV axes, world_to_camera (N, 4, 4) float64.

    distortion: (5,) OpenCV's k1, k2, p1, p2, k3.
    """

    files: list[str]
    camera: Camera
    distortion: np.ndarray


def _camera(pinhole: Sequence[float], pose: Tensor, width: int, height: int) -> Camera:
    """A camera of fx, fy, cx, cy."""
    fx, fy, cx, cy = pinhole
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, pose.double(), width, height)


def _checked_size(width: int, height: int) -> tuple[int, int]:
    """Raise ValueError for a size that no picture has."""
    if min(width, height) < 1 or width * height > images.MOST_PIXELS:
        raise ValueError(f"its pictures have {width}x{height} pixels")
    return width, height


def read_metashape(path: Path) -> Poses:
    """An XML file of Metashape's Export Cameras (chunk > sensors > sensor, cameras > camera > transform).

    A camera's transform is camera-to-chunk with OpenCV's axes. Metashape's p1 and p2 are OpenCV's p2 and p1, and its
    cx and cy count from the middle of the picture. The chunk's own transform is left out: it is a similarity, and
    `normalised` chooses another.
    """
    try:
        root = ElementTree.parse(path).getroot()
        calibrations = [c for s in root.iter("sensor") if (c := s.find("calibration")) is not None]
        if len(calibrations) != 1:
            raise InputError(f"{path} has {len(calibrations)} calibrated sensors; export the cameras of one")
        (calibration,) = calibrations
        size = {key: int(value) for node in calibration.iter("resolution") for key, value in node.items()}
        width, height = _checked_size(size["width"], size["height"])
        terms = {node.tag: float(node.text) for node in calibration if node.text and node.text.strip()}
        if terms.get("k4") or terms.get("b2"):
            raise InputError(f"{path} has k4 or b2; calibrate with f, cx, cy, k1, k2, k3, p1, p2, b1 alone")
        placed = [(c.attrib["label"], c.findtext("transform")) for c in root.iter("camera")]
        found = [(label, np.array(text.split(), float).reshape(4, 4)) for label, text in placed if text is not None]
        focal = terms["f"]
    except (ElementTree.ParseError, AttributeError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a whole XML file of Metashape's cameras ({error}); export it again") from error
    k1, k2, k3, p1, p2, b1 = (terms.get(key, 0.0) for key in ("k1", "k2", "k3", "p1", "p2", "b1"))
    middle = (width / 2 + terms.get("cx", 0.0), height / 2 + terms.get("cy", 0.0))
    pose = torch.linalg.inv(torch.from_numpy(np.stack([m for _, m in found]))) if found else torch.zeros(0, 4, 4)
    camera = _camera((focal + b1, focal, *middle), pose, width, height)
    return Poses([label for label, _ in found], camera, np.array([k1, k2, p2, p1, k3]))


def read_colmap(folder: Path) -> Poses:
    """A COLMAP model: cameras and images as .txt or .bin in `folder`. One camera of COLMAP_MODELS for all pictures."""
    try:
        if (folder / "images.bin").is_file():
            entries, models = _colmap_images_bin(folder / "images.bin"), _colmap_cameras_bin(folder / "cameras.bin")
        elif (folder / "images.txt").is_file():
            entries, models = _colmap_images_txt(folder / "images.txt"), _colmap_cameras_txt(folder / "cameras.txt")
        else:
            raise InputError(f"{folder} has neither images.bin nor images.txt; give the folder of a COLMAP model")
    except (struct.error, ValueError, IndexError, OSError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} does not hold a whole COLMAP model ({error}); export it again") from error
    used = {camera for _, _, camera, _ in entries}
    if len(used) != 1 or not used <= set(models):
        raise InputError(f"{folder}: the pictures have {len(used)} cameras; run COLMAP with a single shared camera")
    name, width, height, values = models[used.pop()]
    _, _, pinhole, lens = COLMAP_MODELS[name]
    distortion = np.zeros(5)
    distortion[: len(lens)] = [values[i] for i in lens]
    pose = torch.eye(4, dtype=torch.float64).repeat(len(entries), 1, 1)
    q = torch.tensor([entry[0] for entry in entries], dtype=torch.float64)
    pose[:, :3, :3] = roma.unitquat_to_rotmat(torch.nn.functional.normalize(q, dim=1)[:, [1, 2, 3, 0]])
    pose[:, :3, 3] = torch.tensor([entry[1] for entry in entries], dtype=torch.float64)
    camera = _camera([values[i] for i in pinhole], pose, width, height)
    return Poses([entry[3] for entry in entries], camera, distortion)


def _model(name: str, width: int, height: int, values: list[float]) -> Model:
    if name not in COLMAP_MODELS:
        raise InputError(f"COLMAP's camera model {name} is not supported; use one of {', '.join(COLMAP_MODELS)}")
    return name, *_checked_size(width, height), values


def _colmap_cameras_txt(path: Path) -> dict[int, Model]:
    out: dict[int, Model] = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            number, name, width, height, *values = line.split()
            out[int(number)] = _model(name, int(width), int(height), [float(v) for v in values])
    return out


def _colmap_images_txt(path: Path) -> list[Entry]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    out = []
    for line in lines[::2]:  # every second line lists points, and may be empty
        if line.strip():
            words = line.split(maxsplit=9)
            out.append(([float(w) for w in words[1:5]], [float(w) for w in words[5:8]], int(words[8]), words[9]))
    return out


def _colmap_cameras_bin(path: Path) -> dict[int, Model]:
    data, at = path.read_bytes(), 8
    out: dict[int, Model] = {}
    names = {number: (name, count) for name, (number, count, _, _) in COLMAP_MODELS.items()}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        number, model, width, height = struct.unpack_from("<iiQQ", data, at)
        if model not in names:
            raise InputError(f"COLMAP's camera model {model} is not supported; use one of {', '.join(COLMAP_MODELS)}")
        name, count = names[model]
        out[number] = _model(name, width, height, list(struct.unpack_from(f"<{count}d", data, at + 24)))
        at += 24 + 8 * count
    return out


def _colmap_images_bin(path: Path) -> list[Entry]:
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


def read_nerfstudio(path: Path) -> Poses:
    """nerfstudio's transforms.json: OpenGL camera-to-world, intrinsics and lens once for all frames."""
    found = transforms.read(path)
    camera = Camera(found.K, cameras.from_opengl(found.poses), found.width, found.height)
    return Poses(found.files, camera, found.distortion)


def read(source: Path) -> Poses:
    """Poses from a file or folder of any known kind. Raises InputError for others, and for fewer than two pictures."""
    if source.is_dir() and not (source / "transforms.json").is_file():
        poses = read_colmap(source)
    elif source.suffix == ".xml" and source.is_file():
        poses = read_metashape(source)
    elif source.is_dir() or (source.suffix == ".json" and source.is_file()):
        poses = read_nerfstudio(source / "transforms.json" if source.is_dir() else source)
    else:
        raise InputError(f"{source} is neither Metashape's .xml, nor a transforms.json, nor a folder of a COLMAP model")
    if len(poses.files) < 2:
        raise InputError(f"{source} has poses of {len(poses.files)} pictures; at least two are needed")
    camera = poses.camera
    numbers = torch.cat([camera.world_to_camera.flatten(), camera.K.flatten(), torch.from_numpy(poses.distortion)])
    if not bool(numbers.isfinite().all()) or min(camera.K[0, 0], camera.K[1, 1]) <= 0:
        raise InputError(f"{source} has a pose or a lens with a number that is not finite; export it again")
    return poses


def normalised(camera: Camera, size: float, source: Path) -> tuple[Camera, float]:
    """Cameras moved and scaled so that what they look at is at the origin and fits into [-1, 1]^3; and the scale.

    The middle is the point nearest to all optical axes; the cube spans `size` of the shorter side of the picture.

    Raises InputError, naming the `source`, where the axes have no such point.
    """
    pose = camera.world_to_camera
    centre, axis = camera.center, pose[:, 2, :3] / pose[:, 2, :3].norm(dim=1, keepdim=True)
    across = torch.eye(3, dtype=pose.dtype) - axis[:, :, None] * axis[:, None]
    normal = across.sum(0)
    if torch.linalg.matrix_rank(normal, rtol=1e-6) < 3:
        raise InputError(f"{source}: all cameras look in the same direction; a capture needs views from several sides")
    middle = torch.linalg.solve(normal, (across @ centre[:, :, None]).sum(0)[:, 0])
    distance = (centre - middle).norm(dim=1).median()
    half = 0.5 * size * float(distance) * min(camera.width, camera.height) / float(camera.K[0, 0])
    rotation = pose[:, :3, :3] / pose[:, 2:3, :3].norm(dim=2, keepdim=True)  # Metashape's may carry the chunk's scale
    moved = torch.eye(4, dtype=pose.dtype).repeat(len(pose), 1, 1)
    moved[:, :3, :3] = rotation
    moved[:, :3, 3] = -(rotation @ ((centre - middle) / half)[:, :, None])[:, :, 0]
    return Camera(camera.K, moved, camera.width, camera.height), 1 / half


def import_capture(
    source: str | Path,
    pictures: str | Path,
    masks: str | Path | None,
    out: str | Path,
    cube: float = 1.0,
    force: bool = False,
) -> dict[str, Any]:
    """Write a capture in our layout: undistorted pictures and masks, `transforms.json`, `config.yaml`; a summary.

    Args:
        source: Metashape's XML, a COLMAP model's folder, or nerfstudio's transforms.json or its folder.
        pictures, masks: folders whose files are named as in `source`.
        cube: side of the head's cube as a share of the picture's shorter side; see `normalised`.
        force: replace what an earlier import wrote there.

    Raises:
        InputError: unreadable poses; pictures that are missing or of another size than the poses say.
    """
    out, source, pictures = Path(out), Path(source), Path(pictures)
    source = source / "transforms.json" if (source / "transforms.json").is_file() else source
    masks = None if masks is None else Path(masks)
    poses = read(source)
    for folder in (pictures, masks):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder} is not a folder; give the folder of the pictures that {source.name} names")
    camera, scale = normalised(poses.camera, cube, source)
    stems = list(map(transforms.stem, poses.files))
    if len(set(stems)) < len(stems):
        raise InputError(f"{source} names two pictures alike; rename them")
    with claim(out, "eyeball-relight import", force=force, inputs=[source, pictures, masks]):
        for stem in progress(stems, "importing"):
            for folder, name, channels in ((pictures, "image", 3), (masks, "mask", 1)):
                if folder is not None:
                    picture = _undistorted(folder, stem, channels, camera, poses.distortion, source)
                    write_picture(out / name / f"{stem}.png", picture)
        captures.write_poses(out, [f"image/{stem}.png" for stem in stems], camera)
        write_text(out / "config.yaml", "data:\n  bound: 1.0\n")
        write_text(out / "config_wo-hybrid.yaml", "data:\n  bound: 1.0\neyes:\n  enabled: false\n")
    return {"frames": len(stems), "width": camera.width, "height": camera.height, "scale": scale, "folder": str(out)}


def _undistorted(
    folder: Path, stem: str, channels: int, camera: Camera, distortion: np.ndarray, source: Path
) -> np.ndarray:
    """A picture as a pinhole sees it. Raises InputError where it is missing or of another size than `source` says."""
    path = captures.find(folder, stem)
    if path is None:
        raise InputError(f"{folder} has no picture {stem} that {source.name} names; add it")
    if images.size(path) != (camera.width, camera.height):
        width, height = images.size(path)
        raise InputError(
            f"{path} has {width}x{height} pixels and {source.name} says {camera.width}x{camera.height}; "
            "give the pictures that were aligned"
        )
    picture = read_picture(path, channels)
    if not distortion.any():
        return picture
    # OpenCV counts pixels from their centres
    K = camera.K.numpy() - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    return np.atleast_3d(cv2.undistort(picture, K, distortion))
