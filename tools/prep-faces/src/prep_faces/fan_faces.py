"""The package face-alignment: S3FD boxes and FAN points (Bulat and Tzimiropoulos 2017), more accurate and slower."""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from recon4d import InputError

from prep_faces.faces import Faces, five_points

SMALLEST = 32  # pixels: the detector halves an image five times


@cache
def load_aligner(device: str, points: str = "ibug") -> Any:
    """The package's networks for `points` 2d or 3d. Raises InputError when it or its weights are not there."""
    try:
        import face_alignment
    except ImportError as error:
        raise InputError("--detector face-alignment needs its package; install prep-faces[fan]") from error
    from face_alignment.detection.sfd.sfd_detector import models_urls as detector_urls

    urls = face_alignment.api.models_urls
    wanted = [detector_urls["s3fd"], *([urls["2DFAN-4"]] if points == "ibug" else [urls["3DFAN-4"], urls["depth"]])]
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    kind = face_alignment.LandmarksType.TWO_D if points == "ibug" else face_alignment.LandmarksType.TWO_HALF_D
    try:
        # Compiling takes minutes on a CPU, and its cache is a pickle.
        aligner = face_alignment.FaceAlignment(kind, device=device, face_detector="sfd", compile=False)
        if points == "3d":
            aligner.depth_prediciton_net = _load_depth(device, urls["depth"])
            aligner.landmarks_type = face_alignment.LandmarksType.THREE_D
    except Exception as error:  # no network; torch.load raises almost anything for a damaged file
        reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
        missing = [url for url in wanted if not os.path.exists(os.path.join(folder, os.path.basename(url)))]
        if missing:
            raise InputError(
                f"--detector face-alignment could not download its weights ({reason}); place {' and '.join(missing)} "
                f"in {folder}, or choose dlib"
            ) from error
        names = ", ".join(os.path.basename(url) for url in wanted)
        raise InputError(
            f"--detector face-alignment cannot load its weights ({reason}); delete {names} in {folder} to get them anew"
        ) from error
    return aligner


def _load_depth(device: str, url: str) -> Any:
    """The network that gives points their depth; the package itself would unpickle its file without restriction."""
    from face_alignment.models import ResNetDepth
    from face_alignment.utils import load_file_from_url

    # A training checkpoint: beside the weights it may hold NumPy numbers (a best loss).
    scalar = np.float64(0).__reduce__()[0]
    numbers: list[Any] = [
        np.dtype,
        np.dtypes.Float64DType,
        np.dtypes.Float32DType,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
    ]
    with torch.serialization.safe_globals(numbers):
        state = torch.load(load_file_from_url(url), map_location=device, weights_only=True)["state_dict"]
    network = ResNetDepth()
    network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return network.to(device).eval()


def find_faces(
    images: Sequence[np.ndarray], device: str = "cpu", threshold: float | None = None, points: str = "ibug"
) -> list[Faces]:
    """Faces with 68 points in (H, W, 3) uint8 RGB images; with `points` 3d these have depth too, in pixels."""
    aligner = load_aligner(device, points)
    least = 0.5 if threshold is None else threshold
    size = 3 if points == "3d" else 2
    found = []
    for image in images:
        large = min(image.shape[:2]) >= SMALLEST
        detected = aligner.face_detector.detect_from_image(image.copy()) if large else []
        boxes = np.array([box for box in detected if box[4] > least], np.float32).reshape(-1, 5)
        boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
        # The package takes plain numbers only.
        answers = aligner.get_landmarks_from_image(image, detected_faces=boxes.tolist()) if len(boxes) else []
        landmarks = np.array(answers, np.float32).reshape(-1, 68, size)
        landmarks[..., :2] += 0.5  # FAN answers in whole pixels with centres at whole numbers
        found.append(Faces(boxes[:, :4], boxes[:, 4], five_points(landmarks), landmarks))
    return found
