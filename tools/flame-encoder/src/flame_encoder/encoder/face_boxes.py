"""Where the face is in each image that is encoded: landmarks or detections of prep-faces, a box, or a look at it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from recon4d import landmarker
from recon4d.files import InputError, parse_json
from recon4d.formats.landmarks import in_pixels, read_landmarks, to_ibug

from flame_encoder.frames import check_landmarks, landmark_sizes, number

SAME = 0.25  # overlap from which on two boxes are of one face
AGREED, VOTES = 0.5, 2  # overlap and number of tries that make a face of which a first look saw nothing

# How a picture is shown once more to the landmarker: turned by degrees, smaller, mirrored, with another gamma. Faces
# that it overlooks are turned by 50 degrees and more, covered in part, or blurred.
TRIES = (
    (0, 0.5, False, 1.0),
    (0, 0.67, False, 2.0),
    (0, 0.8, True, 1.0),
    (20, 0.8, False, 1.0),
    (-20, 0.8, False, 1.0),
    (0, 0.67, True, 0.6),
    (20, 0.6, True, 1.5),
    (-20, 0.6, False, 1.5),
)

# From a detector's box to the box of the 68 landmarks: how far its middle is below, and its side, in box heights.
DETECTORS = {"mtcnn": (0.153, 0.78), "dlib": (0.08, 1.0), "face-alignment": (0.08, 0.9)}


@dataclass(frozen=True, eq=False)
class Where:
    """Where the face is in one image. box: (4,) left, top, right, bottom, from the brows to the chin, pixels. points:
    (n, 2) landmarks of a layout that the library knows, pixels; None where there are none. found: whether there is a
    face at all; otherwise the box is the middle of the image.
    """

    box: np.ndarray
    points: np.ndarray | None
    found: bool


def where(image: np.ndarray, box: np.ndarray | None, points: np.ndarray | None) -> Where:
    """Where the face is in RGB uint8 (H, W, 3): where it is said to be, else where the landmarker finds the largest.

    Args:
        box: (4,) of the face, where it is known. points: (n, 2) landmarks, where they are known.
    """
    if points is not None:
        return Where(box_around(points), points, True)
    faces = landmarker.find(image, every=box is not None)
    if not faces:
        again = second_look(image)
        if again is not None and (box is None or overlap(box, box_around(again)) > SAME):
            return Where(box_around(again) if box is None else box, again, True)
    if not faces:  # something in the whole picture looked like a face at first: look at its parts as well
        faces = landmarker.find(image, every=True)
    boxes = [box_around(face.points) for face in faces]
    if box is None:
        if not faces:
            return Where(_middle(image.shape[1], image.shape[0]), None, False)
        largest = int(np.argmax([b[2] - b[0] for b in boxes]))
        return Where(boxes[largest], faces[largest].points[:, :2].astype(float), True)
    shared = [overlap(box, other) for other in boxes]
    if shared and max(shared) > SAME:
        return Where(box, faces[int(np.argmax(shared))].points[:, :2].astype(float), True)
    return Where(box, None, True)


def second_look(image: np.ndarray) -> np.ndarray | None:
    """Points (478, 2) of a face that the landmarker overlooks in RGB uint8 (H, W, 3), but sees in `TRIES` of it.

    What `VOTES` of them agree on counts: the median of where the points are in the squares that they found.
    """
    squares = [square for alike in TRIES if (square := _tried(image, *alike)) is not None]
    seen = [landmarker.landmarks(image, square).points[:, :2] for square in squares]
    if not seen:
        return None
    boxes = [box_around(points) for points in seen]
    agreed = np.array([[overlap(one, other) > AGREED for other in boxes] for one in boxes])
    best = agreed[agreed.sum(1).argmax()]
    if best.sum() < VOTES:
        return None
    points: np.ndarray = np.median(np.stack(seen)[best], axis=0)
    return points.astype(float)


def _tried(image: np.ndarray, turn: float, scale: float, mirrored: bool, gamma: float) -> landmarker.Square | None:
    """Where the likeliest face is when the picture is shown otherwise, in the picture's own pixels."""
    height, width = image.shape[:2]
    middle, angle = np.array([width, height]) / 2, np.deg2rad(turn)
    A = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        A = A * [-1, 1]
    shift = middle - A @ middle
    warp = np.c_[A, shift + A.sum(1) / 2 - 0.5]  # OpenCV's pixel centres are whole numbers, ours at +0.5
    shown = cv2.warpAffine(image, warp, (width, height), flags=cv2.INTER_LINEAR)
    if gamma != 1:
        shown = cv2.LUT(shown, np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8))
    faces = landmarker.find(shown, parts=landmarker.PARTS[:1])
    if not faces:
        return None
    points = (faces[0].points[:, :2] - shift) @ np.linalg.inv(A).T
    return landmarker.square_of(points, points[list(landmarker.EYES)][:: -1 if mirrored else 1])


def box_around(points: np.ndarray) -> np.ndarray:
    """The box (4,) float32 of the 68 among landmarks (n, 2 or 3)."""
    marks = to_ibug(points)
    answer: np.ndarray = np.concatenate([marks.min(0), marks.max(0)]).astype(np.float32)
    return answer


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    areas = float(np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]))
    return shared / max(areas - shared, 1e-9)


def known_boxes(
    paths: list[Path],
    sizes: Sequence[tuple[int, ...]],
    faces: str | Path | None,
    box: tuple[float, float, float, float] | None,
) -> dict[str, np.ndarray]:
    """Boxes (4,) from the brows to the chin, pixels, by the names of the images that have one.

    Args:
        sizes: width and height of each image.
        faces: `faces.jsonl` of prep-faces detect, of which the largest face counts. box: the same for all.

    Raises:
        InputError: a file that cannot be read, or a box that is empty.
    """
    if box is not None:
        if box[2] <= box[0] or box[3] <= box[1] or not all(map(number, box)):
            raise InputError(f"--box {box} is empty or far away; give left,top,right,bottom in pixels")
        return {path.name: np.array(box, np.float32) for path in paths}
    if faces is None:
        return {}
    found = read_faces(Path(faces), {path.name: size for path, size in zip(paths, sizes)})
    return {name: box.astype(np.float32) for name, box in found.items()}


def known_points(paths: list[Path], sizes: Sequence[tuple[int, ...]], landmarks: Path) -> dict[str, np.ndarray]:
    """Landmarks (n, 2) of the largest face, pixels, by the names of the images that have some.

    Args:
        landmarks: folder of `<stem>.npy`, as prep-faces landmarks or other programs write them.

    Raises:
        InputError: no such folder, a file that cannot be read.
    """
    check_landmarks(landmarks)
    made_on = landmark_sizes(landmarks)
    found = {}
    for path, size in zip(paths, sizes):
        people = read_landmarks(landmarks / f"{path.stem}.npy")
        people = people[np.isfinite(to_ibug(people)).all((1, 2))]
        if len(people):
            people = in_pixels(people, made_on.get(path.stem, size))
            people = people * (np.array(size) / made_on.get(path.stem, size))
            across = np.ptp(to_ibug(people)[..., 0], axis=1)
            found[path.name] = people[np.argmax(across)]
    return found


def read_faces(path: Path, sizes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Largest face of each file in a `faces.jsonl`, as the box of its landmarks, in images of `sizes`."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file; make it with prep-faces detect")
    found = {}
    for row, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path}, line {row}"
        record = parse_json(line, where)
        faces = record.get("faces") if isinstance(record, dict) else None
        if not isinstance(record, dict) or not isinstance(record.get("file"), str):
            raise InputError(f"{where}, is not a record of faces; make it again with prep-faces detect")
        name = Path(record["file"]).name
        if not faces or name not in sizes:
            continue
        listed = [face.get("box") for face in faces if isinstance(face, dict)] if isinstance(faces, list) else []
        boxes = [box for box in listed if isinstance(box, list) and len(box) == 4 and all(map(number, box))]
        if not boxes or not number(record.get("width"), 1):
            raise InputError(f"{where}, is not a record of faces (width, box); make it again with prep-faces detect")
        left, top, right, bottom = max(boxes, key=lambda box: box[3] - box[1])
        down, share = DETECTORS.get(str(record.get("detector")), DETECTORS["mtcnn"])
        scale = sizes[name][0] / record["width"]
        height = max(bottom - top, 1.0)
        x, y, half = (left + right) / 2, (top + bottom) / 2 + down * height, share * height / 2
        found[name] = scale * np.array([x - half, y - half, x + half, y + half])
    return found


def _middle(width: int, height: int) -> np.ndarray:
    """A face that fills a portrait: the crop around it is the largest square of the image."""
    half = min(width, height) / 2 / 1.6
    box = [width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half]
    return np.array(box, np.float32)
