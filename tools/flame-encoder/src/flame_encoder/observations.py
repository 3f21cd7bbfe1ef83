"""What a tracker sees: landmarks and iris centres of the frames of a clip, with their sizes and names."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from recon4d.files import InputError

MEMORY = 15  # frames for which a person who is not seen is remembered
SMALLEST = 8  # pixels between the outer eye corners
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class View:
    """What is seen in one image, for each of P faces.

    faces: (P, 68, 2) landmarks. irises: (P, 2, 2). Pixels, NaN where unknown; P may be 0. size: (width, height).
    """

    name: str
    faces: np.ndarray
    irises: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Observations:
    """One person in N frames.

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


def read(frames: Path, landmarks: Path, fps: float | None = None, person: int = 0) -> Observations:
    """Frames of a folder with the landmarks of another (`<stem>.npy`, as prep-faces writes them).

    Landmarks made on another image size (said in `landmarks.jsonl` beside the folder) are scaled.

    Args:
        person: whose landmarks, where files hold several faces: 0 is who is in most frames, 1 the next.

    Raises:
        InputError: no images, images of different sizes, no landmarks for any of them, landmarks of a wrong shape or
            outside their images, a person who is not there.
    """
    paths = frame_paths(frames)
    check_landmarks(landmarks)
    sizes = landmark_sizes(landmarks)
    views: list[View] = []
    for path in paths:
        views.append(view(path, landmarks, sizes, views[-1] if views else None))
    if not any(len(v.faces) for v in views):
        raise InputError(f"{landmarks} has landmarks for none of the {len(paths)} frames of {frames}")
    people = follow([v.faces for v in views])
    if not 0 <= person < len(people):
        raise InputError(f"--person {person}: {landmarks} shows {len(people)} people, counted from 0")
    seen = of_one(views, people[person], fps or frame_rate(frames) or 30.0)
    check_faces(seen, landmarks)
    return seen


def check_landmarks(landmarks: Path) -> None:
    if not landmarks.is_dir():
        raise InputError(f"{landmarks} is not a folder of landmarks; make one with prep-faces landmarks")


def view(path: Path, landmarks: Path, sizes: dict[str, np.ndarray], before: View | None) -> View:
    """One image and its landmark file. Raises InputError where it differs in size from the one before."""
    image = cv2.imread(str(path))
    if image is None:
        raise InputError(f"{path} is not a readable image; make the frames again")
    size = (image.shape[1], image.shape[0])
    if before is not None and size != before.size:
        raise InputError(f"{path} is {size[0]}x{size[1]}, the frames before it {before.size[0]}x{before.size[1]}")
    faces = read_landmarks(landmarks / f"{path.stem}.npy")
    if path.stem in sizes:
        faces = faces * (np.array(size) / sizes[path.stem])
    irises = np.array([find_irises(image, points) for points in faces]).reshape(-1, 2, 2)
    return View(path.name, faces, irises, size)


def of_one(views: list[View], rows: np.ndarray, fps: float) -> Observations:
    """The face in row `rows` (N,) of each view; -1 where the person is not seen."""
    blank = np.full((70, 2), np.nan)
    both = [np.concatenate([v.faces[r], v.irises[r]]) if r >= 0 else blank for v, r in zip(views, rows)]
    points = np.stack(both).astype(np.float32)
    return Observations(
        names=np.array([v.name for v in views]),
        landmarks=points[:, :68],
        valid=np.asarray(rows) >= 0,
        irises=points[:, 68:],
        image_size=views[0].size,
        fps=fps,
    )


def follow(faces: list[np.ndarray]) -> list[np.ndarray]:
    """Who is who: for each person which row (N,) of the frames' faces (P, 68, 2) they are, -1 where they are absent.

    A face is the person whose last face is nearest, within two eye distances; a person not seen for MEMORY frames is
    forgotten. People come in the order of the number of frames that show them. Where no frame has two faces there is
    one person, however far they jump.
    """
    if all(len(found) < 2 for found in faces):
        return [np.array([len(found) - 1 for found in faces])]
    rows: list[np.ndarray] = []
    last: list[tuple[int, np.ndarray]] = []  # frame and face
    for i, found in enumerate(faces):
        pairs = [
            (distance(face, known), k, p)
            for p, face in enumerate(found)
            for k, (frame, known) in enumerate(last)
            if i - frame <= MEMORY
        ]
        free = set(range(len(found)))
        taken = set()
        for far, k, p in sorted(pairs):
            if far < 2 and p in free and k not in taken:
                rows[k][i], last[k] = p, (i, found[p])
                free.discard(p)
                taken.add(k)
        for p in sorted(free):
            rows.append(np.full(len(faces), -1))
            rows[-1][i] = p
            last.append((i, found[p]))
    return sorted(rows, key=lambda r: -int((r >= 0).sum()))


def distance(face: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of two faces' landmarks (68, 2), in distances between the outer eye corners."""
    size = max(float(np.linalg.norm(face[36] - face[45])), float(np.linalg.norm(other[36] - other[45])), 1e-6)
    return float(np.linalg.norm(face - other, axis=1).mean()) / size


def check_faces(seen: Observations, landmarks: Path) -> None:
    """Raise InputError for faces that lie outside their images or are too small to track."""
    faces = seen.landmarks[seen.valid]
    outside = ((faces < 0) | (faces > seen.image_size)).any(-1).mean(1)
    if np.median(outside) > 0.5:
        width, height = seen.image_size
        raise InputError(
            f"{landmarks} has faces outside the {width}x{height} frames; they were made on images of another size, "
            "so make them again, or put the landmarks.jsonl that says the size beside the folder"
        )
    eyes = float(np.nanmedian(seen.iod))
    if eyes < SMALLEST:
        wanted = f"{SMALLEST} are needed; give larger frames"
        raise InputError(f"{landmarks}: the eyes are {eyes:.1f} pixels apart, {wanted}")


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


def read_landmarks(path: Path) -> np.ndarray:
    """(P, 68, 2): the faces of one file, which holds one face or several; NaN faces and missing files are no faces."""
    if not path.is_file():
        return np.empty((0, 68, 2))
    try:
        points = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a readable landmark file ({error}); make it again") from error
    if points.shape[-2:] not in ((68, 2), (68, 3)) or points.ndim > 3 or points.dtype.kind not in "fiu":
        raise InputError(f"{path} has shape {points.shape}, {points.dtype}; (68, 2) or (people, 68, 2) is needed")
    points = points[..., :2].reshape(-1, 68, 2).astype(np.float64)  # a third number is a depth
    return points[np.isfinite(points).all((1, 2))]


def landmark_sizes(landmarks: Path) -> dict[str, np.ndarray]:
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
