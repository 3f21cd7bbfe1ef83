"""What a tracker sees: landmarks and iris centres of the frames of a clip, with their sizes and names."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from recon4d.files import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Observations:
    """N frames.

    Attributes:
        names: (N,) image file names.
        landmarks: (N, 68, 2) pixels, pixel centres at +0.5; NaN where there are none.
        valid: (N,) bool.
        irises: (N, 2, 2) iris centres of the person's left and right eye, pixels; NaN where unknown.
        image_size: width and height.
        fps: frames per second.
    """

    names: np.ndarray
    landmarks: np.ndarray
    valid: np.ndarray
    irises: np.ndarray
    image_size: tuple[int, int]
    fps: float

    @property
    def iod(self) -> np.ndarray:
        """(N,) distance between the outer eye corners, pixels; NaN where there are no landmarks."""
        return np.linalg.norm(self.landmarks[:, 36] - self.landmarks[:, 45], axis=-1)

    @property
    def iris_valid(self) -> np.ndarray:
        return np.isfinite(self.irises).all(-1)


def frame_paths(folder: Path) -> list[Path]:
    """The images of a folder by name. Raises InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of frames; make one with prep-faces frames")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"{folder} has no images; make frames with prep-faces frames")
    return paths


def read(frames: Path, landmarks: Path, fps: float | None = None) -> Observations:
    """Frames of a folder with the landmarks of another (`<stem>.npy`, as prep-faces writes them).

    Landmarks made on another image size (said in `landmarks.jsonl` beside the folder) are scaled.

    Raises:
        InputError: no images, images of different sizes, no landmarks for any of them, landmarks of a wrong shape.
    """
    paths = frame_paths(frames)
    if not landmarks.is_dir():
        raise InputError(f"{landmarks} is not a folder of landmarks; make one with prep-faces landmarks")
    sizes = _landmark_sizes(landmarks)
    all_points, irises = [], []
    image_size: tuple[int, int] | None = None
    for path in paths:
        image = cv2.imread(str(path))
        if image is None:
            raise InputError(f"{path} is not a readable image; make the frames again")
        size = (image.shape[1], image.shape[0])
        if image_size is not None and size != image_size:
            raise InputError(f"{path} is {size[0]}x{size[1]}, the frames before it {image_size[0]}x{image_size[1]}")
        image_size = size
        points = _read_landmarks(landmarks / f"{path.stem}.npy")
        if points is not None and path.stem in sizes:
            points = points * (np.array(size) / sizes[path.stem])
        if points is None:
            points = np.full((68, 2), np.nan)
        all_points.append(points)
        irises.append(find_irises(image, points))
    stacked = np.stack(all_points).astype(np.float32)
    valid = np.isfinite(stacked).all((1, 2))
    if not valid.any():
        raise InputError(f"{landmarks} has landmarks for none of the {len(paths)} frames of {frames}")
    assert image_size is not None
    names = np.array([p.name for p in paths])
    return Observations(names, stacked, valid, np.stack(irises), image_size, fps or frame_rate(frames) or 30.0)


def frame_rate(frames: Path) -> float | None:
    """Frames per second from the `frames.jsonl` that prep-faces writes beside the folder of frames, if it is there."""
    manifest = frames.parent / "frames.jsonl"
    if not manifest.is_file():
        return None
    times = []
    for line in manifest.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line cut short
        if isinstance(record.get("time"), int | float):
            times.append(record["time"])
    steps = np.diff(times)
    return float(1 / np.median(steps)) if len(steps) and np.median(steps) > 0 else None


def _read_landmarks(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        points = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a readable landmark file ({error}); make it again") from error
    if points.shape != (68, 2):
        raise InputError(f"{path} has shape {points.shape}; (68, 2) is needed")
    return points.astype(np.float64)


def _landmark_sizes(landmarks: Path) -> dict[str, np.ndarray]:
    """Image size (width, height) that each landmark file was made on, from `landmarks.jsonl`, where it is there."""
    manifest = landmarks.parent / "landmarks.jsonl"
    sizes = {}
    if manifest.is_file():
        for line in manifest.read_text().splitlines():
            try:
                record = json.loads(line)
                sizes[Path(record["file"]).stem] = np.array([record["width"], record["height"]], float)
            except (json.JSONDecodeError, KeyError, TypeError, ValueError):
                continue  # an error record, or a line cut short
    return sizes


def find_irises(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Iris centres (2, 2) of the person's left and right eye in a BGR image: the dark mass inside the lids.

    NaN for an eye that is closed, smaller than eight pixels, or outside the image.
    """
    centres = np.full((2, 2), np.nan)
    if not np.isfinite(points).all():
        return centres
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    for side, eye in enumerate((points[42:48], points[36:42])):
        width = np.linalg.norm(eye[0] - eye[3])
        opening = (np.linalg.norm(eye[1] - eye[5]) + np.linalg.norm(eye[2] - eye[4])) / 2
        low, high = np.floor(eye.min(0)).astype(int) - 1, np.ceil(eye.max(0)).astype(int) + 2
        if width < 8 or opening < 0.18 * width or low.min() < 0 or (high > grey.shape[::-1]).any():
            continue
        patch = grey[low[1] : high[1], low[0] : high[0]]
        inside = np.zeros(patch.shape, np.uint8)
        polygon = np.round((eye - low - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(inside, [polygon], 1, shift=4)
        inside = inside.astype(bool)
        if inside.sum() < 12:
            continue
        values = patch[inside]
        # Iris and pupil are the darkest third; weights fall linearly to zero there.
        threshold = np.quantile(values, 0.4)
        weight = np.clip(threshold - patch, 0, None) * inside
        if weight.sum() <= 1e-3:
            continue
        y, x = np.mgrid[: patch.shape[0], : patch.shape[1]]
        centres[side] = low + 0.5 + np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
    return centres
