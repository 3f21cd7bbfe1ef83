"""Faces, and the one function that finds them with any of the detectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from recon4d import InputError

DETECTORS = ("mtcnn", "dlib", "face-alignment")


@dataclass(frozen=True)
class Faces:
    """The faces of one image, best first; pixels with pixel centres at +0.5."""

    boxes: np.ndarray  # (N, 4) float32 x0 y0 x1 y1
    scores: np.ndarray  # (N,) float32; dlib: distance to its decision plane, others: probability
    points: np.ndarray  # (N, 5, 2) float32: centres of the eye at the image's left and right, nose tip, mouth corners
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
    if detector == "mtcnn":
        from prep_faces import mtcnn

        return mtcnn.find_faces(images, device, threshold)
    if detector == "face-alignment":
        from prep_faces import fan_faces

        return fan_faces.find_faces(images, device, threshold)
    raise InputError(f"--detector {detector} is unknown; use one of {', '.join(DETECTORS)}")


def prepare(detector: str, device: str) -> None:
    """Load the detector's models. Raises InputError, saying what to install, when they are not there."""
    if detector == "dlib":
        from prep_faces.dlib_faces import load_predictor as load
    elif detector == "mtcnn":
        from prep_faces.mtcnn import load_networks

        load = partial(load_networks, device)
    else:
        from prep_faces.fan_faces import load_aligner

        load = partial(load_aligner, device)
    load()


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners (N, 5, 2) of iBUG points (N, 68, 2 or 3)."""
    points = landmarks[..., :2]
    eyes = points[:, 36:42].mean(1), points[:, 42:48].mean(1)
    return np.stack([*eyes, points[:, 30], points[:, 48], points[:, 54]], axis=1).astype(np.float32)
