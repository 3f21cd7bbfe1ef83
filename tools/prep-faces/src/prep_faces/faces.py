"""Faces, and the one function that finds them with any of the detectors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from recon4d import InputError

DETECTORS = ("mtcnn", "dlib", "face-alignment")
POINTS = ("five", "2d", "3d")  # five points, 68 of them, or 68 with depth


@dataclass(frozen=True)
class Faces:
    """The faces of one image, best first; pixels with pixel centres at +0.5."""

    boxes: np.ndarray  # (N, 4) float32 x0 y0 x1 y1
    scores: np.ndarray  # (N,) float32; dlib: distance to its decision plane, others: probability
    points: np.ndarray  # (N, 5, 2) float32: centres of the eye at the image's left and right, nose tip, mouth corners
    landmarks: np.ndarray | None  # (N, 68, 2 or 3) float32, iBUG order; None from mtcnn


def detect(
    images: Sequence[np.ndarray],
    detector: str = "dlib",
    device: str = "cpu",
    threshold: float | None = None,
    points: str = "five",
) -> list[Faces]:
    """Faces in a batch of (H, W, 3) uint8 RGB images of any sizes.

    Args:
        detector: `mtcnn` (boxes and five points; 68 points come from dlib), `dlib` or `face-alignment`.
        device: where networks run: cpu, cuda, cuda:N; dlib always uses the CPU.
        threshold: least score; None for the detector's own.
        points: what is wanted at least: `five`, `2d` (68 points) or `3d` (68 with depth, face-alignment only).
    """
    if points == "3d" and detector != "face-alignment":
        raise InputError(f"--points 3d: {detector} has no depth; add --detector face-alignment")
    if detector == "dlib":
        from prep_faces import dlib_faces

        return [dlib_faces.find_faces(image, 0.0 if threshold is None else threshold) for image in images]
    if detector == "mtcnn":
        from prep_faces import mtcnn

        found = mtcnn.find_faces(images, device, threshold)
        return found if points == "five" else [_with_points(image, faces) for image, faces in zip(images, found)]
    if detector == "face-alignment":
        from prep_faces import fan_faces

        return fan_faces.find_faces(images, device, threshold, "3d" if points == "3d" else "2d")
    raise InputError(f"--detector {detector} is unknown; use one of {', '.join(DETECTORS)}")


def prepare(detector: str, device: str, points: str = "five") -> None:
    """Load the detector's models. Raises InputError, saying what to install, when they are not there."""
    detect([], detector, device, points=points)
    if detector == "dlib":
        from prep_faces.dlib_faces import load_predictor

        load_predictor()


def _with_points(image: np.ndarray, faces: Faces) -> Faces:
    """MTCNN's faces with the 68 points that dlib finds there."""
    from prep_faces.dlib_faces import predict_points

    # The predictor expects boxes as dlib's detector draws them: a square around eyes and mouth.
    points = [predict_points(image, square_around(five)) for five in faces.points]
    return replace(faces, landmarks=np.array(points, np.float32).reshape(-1, 68, 2))


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
