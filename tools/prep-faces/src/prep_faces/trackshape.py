"""Head shapes from a track: the silhouette of the posed mesh in each frame."""

from pathlib import Path

import cv2
import numpy as np
import torch
from recon4d import InputError, head
from recon4d.cameras import Camera
from recon4d.formats import track as track_format
from recon4d.mesh import visibility

from prep_faces.headshape import HeadShape
from prep_faces.image_files import ImageFile

LONGEST = 512  # longer side of the picture that silhouettes are drawn into
BATCH = 32


def shapes_from_track(
    path: str | Path, files: list[ImageFile], head_model: str | Path | None
) -> list[HeadShape | InputError]:
    """The head's shape in each of `files`, matched by file name with the track's frames.

    A file that the track does not know gets an InputError; raises InputError when it knows none, or when the head
    model is not the track's or has no landmarks.
    """
    track = track_format.read(path)
    index = {name: i for i, name in enumerate(track.names)}
    rows = [index.get(file.path.name) for file in files]
    known = sorted({row for row in rows if row is not None})
    if not known:
        raise InputError(f"{path} is of other images (first {track.names[0]}); give the images that were tracked")
    model = head.load(head_model)
    if model.name != track.head_model:
        raise InputError(f"{path} was made with the head model {track.head_model}; give it with --head-model")
    shapes: dict[int, HeadShape] = {}
    for start in range(0, len(known), BATCH):
        batch = np.array(known[start : start + BATCH])
        vertices = track.vertices(model, batch)
        shapes.update(zip(batch.tolist(), mesh_shapes(model, vertices, track.K, track.image_size)))
    return [
        InputError(f"{file.file} is not in the track {path}; track it as well") if row is None else shapes[row]
        for file, row in zip(files, rows)
    ]


def mesh_shapes(
    model: head.HeadModel, vertices: torch.Tensor, intrinsics: np.ndarray, image_size: np.ndarray
) -> list[HeadShape]:
    """Shapes of posed heads: vertices (B, V, 3) in the camera (metres, OpenCV axes), K (3, 3), (width, height)."""
    width, height = (int(length) for length in image_size)
    scale = min(1.0, LONGEST / max(width, height))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    camera = Camera(torch.from_numpy(np.asarray(intrinsics, np.float32)), torch.eye(4), width, height)
    seen, _ = visibility(camera.clip(vertices), model.faces, size)
    masks = (seen >= 0).numpy().astype(np.uint8)
    points = camera.project(model.landmarks(vertices))[0].double().numpy()
    corners = camera.project(vertices)[0].double().numpy()
    steady = np.flatnonzero((model.weights[:, 0] + model.weights[:, 1] > 0.99).numpy())[::20]
    back = np.array([width / size[1], height / size[0]])
    shapes = []
    for mask, landmarks, outline in zip(masks, points, corners):
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        polygons = tuple((contour[:, 0] + 0.5) * back for contour in contours if len(contour) > 2)
        middle = landmarks[36:48].mean(0)
        up = middle - landmarks[[7, 8, 9]].mean(0)
        up = up / max(float(np.linalg.norm(up)), 1e-6)
        hull = cv2.convexHull(landmarks.astype(np.float32))[:, 0].astype(np.float64)
        unit = max(float(np.sqrt(cv2.contourArea(hull.astype(np.float32)) / 0.7)), 2.0)
        shapes.append(
            HeadShape(
                polygons=polygons or (hull,),
                face=hull,
                middle=middle,
                up=up,
                width=unit,
                chin=float((middle - landmarks[8]) @ up) / unit,
                # Where the image cuts the neck off, nothing says that it ends there.
                neck=9.0 if mask[-1].any() else neck_end(polygons or (hull,), middle, up, unit),
                margin=0.06,
                anchors=outline[steady],
                image_size=(width, height),
            )
        )
    return shapes


def neck_end(polygons: tuple[np.ndarray, ...], middle: np.ndarray, up: np.ndarray, unit: float) -> float:
    """How far below `middle` the outline reaches along the head's axis, in units of `unit`: where the neck ends."""
    offset = np.concatenate(polygons) - middle
    below = -offset @ up / unit
    beside = np.abs(offset @ np.array([-up[1], up[0]])) / unit
    return float(below[beside < 0.45].max(initial=0.6))
