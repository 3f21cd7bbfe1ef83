"""The package face-alignment: S3FD boxes and FAN points (Bulat and Tzimiropoulos 2017), more accurate and slower."""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from recon4d import InputError

from prep_faces.faces import Faces, five_points


@cache
def load_aligner(device: str) -> Any:
    try:
        import face_alignment
    except ImportError as error:
        raise InputError("--detector face-alignment needs its package; install prep-faces[fan]") from error
    try:
        return face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, device=device, face_detector="sfd")
    except (OSError, RuntimeError, ValueError) as error:  # no network, a half download
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--detector face-alignment could not get its weights ({reason}); place the files that its documentation "
            f"names (s3fd and 2DFAN4) in {folder}, or choose dlib"
        ) from error


def find_faces(images: Sequence[np.ndarray], device: str = "cpu", threshold: float | None = None) -> list[Faces]:
    """Faces with 68 points in (H, W, 3) uint8 RGB images."""
    aligner = load_aligner(device)
    least = 0.5 if threshold is None else threshold
    found = []
    for image in images:
        detected = [box for box in aligner.face_detector.detect_from_image(image.copy()) or [] if box[4] > least]
        boxes = np.array(detected, np.float32).reshape(-1, 5)
        boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
        answers = aligner.get_landmarks_from_image(image, detected_faces=list(boxes)) if len(boxes) else None
        # FAN answers in whole cells of its heat map, with pixel centres at whole numbers.
        landmarks = np.array([] if answers is None else answers, np.float32).reshape(-1, 68, 2) + 0.5
        found.append(Faces(boxes[:, :4], boxes[:, 4], five_points(landmarks), landmarks))
    return found
