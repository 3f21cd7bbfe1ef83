"""Faces, and the one function that finds them with any of the detectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from recon4d import InputError

DETECTORS = ("mtcnn", "dlib", "face-alignment")


@dataclass(frozen=True)
class Faces:
    """The faces of one image, best first; pixels with pixel centres at +0.5."""

    boxes: np.ndarray  # (N, 4) float32 x0 y0 x1 y1
    scores: np.ndarray  # (N,) float32; dlib: distance to its decision plane, others: probability
    points: (
        np.ndarray
    )  # (N, 5, 2) float32: centres of the eye at the image's left and right, nose tip, mouth corners
    landmarks: np.ndarray | None  # (N, 68, 2 or 3) float32, iBUG order; None from mtcnn


def detect(
    images: Sequence[np.ndarray], detector: str = "dlib", device: str = "cpu", threshold: float | None = None
) -> list[Faces]:
    """Faces in a batch of (H, W, 3) uint8 RGB images of any sizes.

    Args:
        detector: `mtcnn` (boxes and five points), `dlib` or `face-alignment` (68 points as well).
        device: where networks run: cpu, cuda, cuda:N; dlib always uses the CPU.
        threshold: least score; None for the detector's own.
    """
    if detector == "dlib":
        from prep_faces import dlib_faces

        return [dlib_faces.find_faces(image, 0.0 if threshold is None else threshold) for image in images]
    raise InputError(f"--detector {detector} is unknown; use one of {', '.join(DETECTORS)}")


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners (N, 5, 2) of iBUG points (N, 68, 2 or 3)."""
    points = landmarks[..., :2]
    eyes = points[:, 36:42].mean(1), points[:, 42:48].mean(1)
    return np.stack([*eyes, points[:, 30], points[:, 48], points[:, 54]], axis=1).astype(np.float32)
