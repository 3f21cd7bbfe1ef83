"""Faces: what a detector tells of one image, and how five points, 68 points and boxes go together."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of one image, best first; pixels with pixel centres at +0.5."""

    boxes: np.ndarray  # (N, 4) float32 x0 y0 x1 y1
    scores: np.ndarray  # (N,) float32; dlib: distance to its decision plane, others: probability
    points: np.ndarray  # (N, 5, 2) float32: centres of the eye at the image's left and right, nose tip, mouth corners
    landmarks: np.ndarray | None  # (N, 68, 2 or 3) float32, iBUG order, or (N, 478, 3), MediaPipe's; None from mtcnn
    # From mediapipe alone:
    blendshapes: np.ndarray | None = None  # (N, 52) float32, see landmarker.BLENDSHAPES
    to_crop: np.ndarray | None = None  # (N, 2, 3) from the picture to the square that the landmarker saw
    hidden: list[list[int]] | None = None  # dense points that face away, of each face


def unturned(faces: Faces, quarters: int, width: int, height: int) -> Faces:
    """Faces found in numpy.rot90(image, quarters), where they are in the image, which is (height, width)."""
    turn = {
        0: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        1: [[0, 1, 0], [-1, 0, width], [0, 0, 1]],
        2: [[-1, 0, width], [0, -1, height], [0, 0, 1]],
        3: [[0, -1, height], [1, 0, 0], [0, 0, 1]],
    }[quarters % 4]
    to_turned: np.ndarray = np.array(turn, np.float32)
    back: np.ndarray = np.linalg.inv(to_turned)

    def place(points: np.ndarray) -> np.ndarray:
        flat = points[..., :2] @ back[:2, :2].T + back[:2, 2]
        return np.concatenate([flat, points[..., 2:]], -1).astype(np.float32)

    corners = place(faces.boxes.reshape(-1, 2, 2))
    return replace(
        faces,
        boxes=np.concatenate([corners.min(1), corners.max(1)], 1),
        points=place(faces.points),
        landmarks=None if faces.landmarks is None else place(faces.landmarks),
        to_crop=None if faces.to_crop is None else faces.to_crop @ to_turned,
    )


def square_around(points: np.ndarray) -> np.ndarray:
    """Roughly dlib's box (4,) around five points (5, 2)."""
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    half = 1.15 * max(float(np.linalg.norm(mouth - eyes)), float(np.linalg.norm(points[1] - points[0])))
    center = eyes + 0.55 * (mouth - eyes)
    return np.concatenate([center - half, center + half])


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners (N, 5, 2) of iBUG points (N, 68, 2 or 3)."""
    points = landmarks[..., :2]
    eyes = points[:, 36:42].mean(1), points[:, 42:48].mean(1)
    return np.stack([*eyes, points[:, 30], points[:, 48], points[:, 54]], axis=1).astype(np.float32)
