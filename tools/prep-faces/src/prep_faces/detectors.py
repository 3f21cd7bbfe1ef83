"""Finding faces in pictures with any of the detectors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from recon4d import InputError

from prep_faces.faces import Faces, square_around

Detector = Literal["mtcnn", "dlib", "mediapipe", "face-alignment"]
DETECTORS: tuple[str, ...] = get_args(Detector)
POINTS = ("five", "ibug", "3d", "dense")  # five points, 68 of them, 68 with depth, or 478 with depth


def detect(
    images: Sequence[np.ndarray],
    detector: str = "mediapipe",
    device: str = "cpu",
    threshold: float | None = None,
    points: str = "five",
    every: bool = False,
) -> list[Faces]:
    """Faces in a batch of (H, W, 3) uint8 RGB images of any sizes.

    Args:
        detector: `mtcnn` (boxes and five points; 68 points come from dlib), `dlib`, `mediapipe` or `face-alignment`.
        device: where networks run: cpu, cuda, cuda:N; dlib and mediapipe always use the CPU.
        threshold: least score; None for the detector's own.
        points: what is wanted at least: `five`, `ibug` (68 points), `3d` (68 with depth, face-alignment only) or
            `dense` (478 with depth, mediapipe only).
        every: look for small faces beside large ones too, which takes mediapipe longer.

    Raises InputError for another detector, and one that is not installed or has no such points.
    """
    # Each detector is imported when it is asked for: they need packages that take seconds or are not there.
    if points == "3d" and detector != "face-alignment":
        raise InputError(f"--points 3d: {detector} has no depth; add --detector face-alignment")
    if points == "dense" and detector != "mediapipe":
        raise InputError(f"--points dense: {detector} has 68 points; add --detector mediapipe")
    if detector == "mediapipe":
        from prep_faces import mediapipe_faces

        sure = mediapipe_faces.SURE if threshold is None else threshold
        return [mediapipe_faces.find_faces(image, sure, points == "dense", every) for image in images]
    if detector == "dlib":
        from prep_faces import dlib_faces

        return [dlib_faces.find_faces(image, 0.0 if threshold is None else threshold) for image in images]
    if detector == "mtcnn":
        from prep_faces import mtcnn

        found = mtcnn.find_faces(images, device, threshold)
        return found if points == "five" else [_with_points(image, faces) for image, faces in zip(images, found)]
    if detector == "face-alignment":
        from prep_faces import fan_faces

        return fan_faces.find_faces(images, device, threshold, "3d" if points == "3d" else "ibug")
    raise InputError(f"--detector {detector} is unknown; use one of {', '.join(DETECTORS)}")


def prepare(detector: str, device: str, points: str = "five") -> None:
    """Load the detector's models. Raises InputError, saying what to install, when they are not there."""
    detect([], detector, device, points=points)
    if detector == "dlib":
        from prep_faces.dlib_faces import load_predictor

        load_predictor()
    if detector == "mediapipe":
        detect([np.zeros((8, 8, 3), np.uint8)], detector)


def _with_points(image: np.ndarray, faces: Faces) -> Faces:
    """MTCNN's faces with the 68 points that dlib finds there."""
    from prep_faces.dlib_faces import predict_points

    # The predictor expects boxes as dlib's detector draws them: a square around eyes and mouth.
    points = [predict_points(image, square_around(five)) for five in faces.points]
    return replace(faces, landmarks=np.array(points, np.float32).reshape(-1, 68, 2))
