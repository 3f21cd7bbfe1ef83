"""Faces by MediaPipe's landmarker, as the other detectors give them."""

import numpy as np
from recon4d import landmarker
from recon4d.formats import landmarks

from prep_faces.faces import Faces, five_points

SURE = landmarker.SURE


def find_faces(image: np.ndarray, threshold: float = SURE, dense: bool = False, every: bool = False) -> Faces:
    """Faces of RGB uint8 (H, W, 3), the likeliest first.

    Args:
        every: small ones beside large ones too, see `landmarker.find`.
        dense: landmarks are all 478 points with depth instead of the 68 of iBUG.
    """
    return of_dense(landmarker.find(image, threshold, every=every), dense)


def of_dense(found: list[landmarker.DenseFace], dense: bool = False) -> Faces:
    """The landmarker's faces as `Faces`."""
    if not found:
        boxes, scores, five = (np.empty(shape, np.float32) for shape in ((0, 4), 0, (0, 5, 2)))
        none: np.ndarray = np.empty((0, landmarker.N_POINTS, 3) if dense else (0, 68, 2), np.float32)
        return Faces(boxes, scores, five, none)
    points = np.stack([face.points for face in found])
    ibug = landmarks.to_ibug(points)
    return Faces(
        boxes=np.stack([face.box for face in found]),
        scores=np.array([face.presence for face in found], np.float32),
        points=five_points(ibug),
        landmarks=points if dense else ibug,
        blendshapes=np.stack([face.blendshapes for face in found]),
        to_crop=np.stack([face.square.to_crop() for face in found]),
        hidden=[face.hidden.tolist() for face in found],
    )
