"""What a tracker sees: landmarks and iris centres of the frames of a clip, with their sizes and names."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from recon4d import images
from recon4d.files import InputError
from recon4d.formats.landmarks import N_DENSE, in_pixels, read_clip, read_landmarks, to_dense, to_ibug, to_irises

from flame_encoder.frames import check_landmarks, frame_paths, frame_rate, landmark_sizes

MEMORY = 15  # frames for which a person who is not seen is remembered
SMALLEST = 8  # pixels between the outer eye corners
TOP, CHIN = 10, 152  # dense points
EYES_OVER_HEIGHT = 0.53  # distance of the outer eye corners over that of those two


@dataclass(frozen=True, eq=False)
class FrameFaces:
    """What is seen in one image, for each of P faces.

    faces: (P, 68, 2) landmarks. irises: (P, 2, 2). Pixels, NaN where unknown; P may be 0. size: (width, height).
    dense: (P, 478, 2) MediaPipe's points, where the landmarks are those.
    """

    name: str
    faces: np.ndarray
    irises: np.ndarray
    size: tuple[int, int]
    dense: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Observations:
    """One person in N frames.

    Attributes:
        names: (N,) image file names.
        landmarks: (N, 68, 2) pixels, pixel centres at +0.5; NaN where there are none.
        valid: (N,) bool.
        irises: (N, 2, 2) iris centres of the person's left and right eye, pixels; NaN where unknown.
        image_size: width and height.
        fps: frames per second.
        dense: (N, 478, 2) MediaPipe's points, NaN where unknown; None where the landmarks are iBUG's.
    """

    names: np.ndarray
    landmarks: np.ndarray
    valid: np.ndarray
    irises: np.ndarray
    image_size: tuple[int, int]
    fps: float
    dense: np.ndarray | None = None

    @property
    def iod(self) -> np.ndarray:
        """(N,) distance between the outer eye corners, pixels; NaN where there are no landmarks."""
        answer: np.ndarray = np.linalg.norm(self.landmarks[:, 36] - self.landmarks[:, 45], axis=-1)
        return answer

    @property
    def unit(self) -> np.ndarray:
        """(N,) what errors are measured by, pixels: `iod`, or what the face's height says it is from the front."""
        if self.dense is None:
            return self.iod
        height = np.linalg.norm(self.dense[:, TOP] - self.dense[:, CHIN], axis=-1)
        answer: np.ndarray = np.fmax(self.iod, EYES_OVER_HEIGHT * height)
        return answer

    @property
    def iris_valid(self) -> np.ndarray:
        answer: np.ndarray = np.isfinite(self.irises).all(-1)
        return answer


def some(seen: Observations, rows: np.ndarray, step: float) -> Observations:
    """Only some frames, which are about `step` apart."""
    return replace(
        seen,
        names=seen.names[rows],
        landmarks=seen.landmarks[rows],
        valid=seen.valid[rows],
        irises=seen.irises[rows],
        fps=seen.fps / step,
        dense=None if seen.dense is None else seen.dense[rows],
    )


def read(frames: Path, landmarks: Path, fps: float | None = None, person: int = 0) -> Observations:
    """Frames of a folder with the landmarks of another (`<stem>.npy`, as prep-faces writes them), or of one file.

    Landmarks made on another image size (said in `landmarks.jsonl` beside the folder) are scaled.

    Args:
        person: whose landmarks, where files hold several faces: 0 is who is in most frames, 1 the next.

    Raises:
        InputError: no images, images of different sizes, no landmarks for any of them, landmarks of a wrong shape or
            outside their images, a person who is not there.
    """
    paths = frame_paths(frames)
    whole = landmarks.is_file()
    if not whole:
        check_landmarks(landmarks)
    sizes = {} if whole else landmark_sizes(landmarks)
    of_all = read_clip(landmarks, len(paths)) if whole else [None] * len(paths)
    shown: list[FrameFaces] = []
    for path, found in zip(paths, of_all):
        shown.append(read_frame(path, landmarks, sizes, shown[-1] if shown else None, found))
    if not any(len(frame.faces) for frame in shown):
        raise InputError(f"{landmarks} has landmarks for none of the {len(paths)} frames of {frames}")
    people = follow_people([frame.faces for frame in shown])
    if not 0 <= person < len(people):
        raise InputError(f"--person {person}: {landmarks} shows {len(people)} people, counted from 0")
    seen = of_one(shown, people[person], fps or frame_rate(frames) or 30.0)
    check_faces(seen, landmarks)
    return seen


def read_frame(
    path: Path,
    landmarks: Path,
    sizes: dict[str, np.ndarray],
    before: FrameFaces | None,
    found: np.ndarray | None = None,
) -> FrameFaces:
    """One image and its landmark file, or its faces (P, n, 2) where they are known.

    Raises InputError where it differs in size from the one before.
    """
    found = read_landmarks(landmarks / f"{path.stem}.npy") if found is None else found
    dense = to_dense(found) if len(found) else np.empty((0, N_DENSE, 2))
    image = None if dense is not None else images.read(path)  # looked at for irises only
    size = images.size(path) if image is None else (image.shape[1], image.shape[0])
    if before is not None and size != before.size:
        raise InputError(f"{path} is {size[0]}x{size[1]}, the frames before it {before.size[0]}x{before.size[1]}")
    found = in_pixels(found, sizes.get(path.stem, size))
    dense = None if dense is None else in_pixels(dense, sizes.get(path.stem, size))
    scale = np.array(size) / sizes.get(path.stem, size)
    faces, irises = to_ibug(found) * scale, to_irises(found) * scale
    if image is not None and not np.isfinite(irises).any():
        irises = np.array([find_irises(image, points) for points in faces]).reshape(-1, 2, 2)
    return FrameFaces(path.name, faces, irises, size, None if dense is None else dense * scale)


def of_one(shown: list[FrameFaces], rows: np.ndarray, fps: float) -> Observations:
    """The face in row `rows` (N,) of each frame; -1 where the person is not seen."""
    blank = np.full((70, 2), np.nan)
    both = [np.concatenate([f.faces[r], f.irises[r]]) if r >= 0 else blank for f, r in zip(shown, rows)]
    points = np.stack(both).astype(np.float32)
    dense = None
    if all(f.dense is not None for f, r in zip(shown, rows) if r >= 0):
        none = np.full((N_DENSE, 2), np.nan)
        seen = [none if f.dense is None or r < 0 else f.dense[r] for f, r in zip(shown, rows)]
        dense = np.stack(seen).astype(np.float32)
    return Observations(
        names=np.array([frame.name for frame in shown]),
        landmarks=points[:, :68],
        valid=np.asarray(rows) >= 0,
        irises=points[:, 68:],
        image_size=shown[0].size,
        fps=fps,
        dense=dense,
    )


def follow_people(faces: list[np.ndarray]) -> list[np.ndarray]:
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
    return float(np.nanmean(np.linalg.norm(face - other, axis=1))) / size


def nearest(faces: np.ndarray, face: np.ndarray) -> int:
    """Which of faces (P, 68, 2) is nearest to the last one seen, -1 where there is none near; one alone always is."""
    far = [distance(f, face) for f in faces]
    if not far or (len(far) > 1 and min(far) > 2):
        return -1
    return int(np.argmin(far))


def check_faces(seen: Observations, landmarks: Path) -> None:
    """Raise InputError for faces that lie outside their images, are too small to track, or are no faces."""
    faces = seen.landmarks[seen.valid]
    across = faces[:, 42:48].mean(1) - faces[:, 36:42].mean(1)  # from the person's right eye to the left
    down = faces[:, 48:60].mean(1) - (faces[:, 42:48].mean(1) + faces[:, 36:42].mean(1)) / 2
    if np.nanmedian(np.sign(across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0])) < 0:
        raise InputError(f"{landmarks} has mirrored faces: their x and y are swapped, or their left and right")
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


def find_irises(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Iris centres (2, 2) of the person's left and right eye in an RGB image: the dark mass inside the lids.

    NaN for an eye that is closed, smaller than eight pixels, or outside the image.
    """
    centres = np.full((2, 2), np.nan)
    if not np.isfinite(points).all():
        return centres
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
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
