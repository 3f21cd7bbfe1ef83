"""Jaw-line landmarks that slide: candidates on the surface, and the visible one in each frame.

Detectors put the 17 contour landmarks on the visible outline of the face. When the head turns, the outline of the far
side moves from the jaw line onto the cheek. Each contour landmark therefore gets a row of candidates that runs from its
own place on the jaw line towards the nose; the one that lies furthest out in the image is the outline.
"""

import numpy as np
import torch
from recon4d.head import HeadModel
from torch import Tensor

CANDIDATES = 13
NOSE_SHARE = 0.75  # how far the row goes, as a share of the angle between the jaw-line point and the middle of the face


def candidates(head: HeadModel) -> tuple[Tensor, Tensor]:
    """Faces (17, C) int64 and barycentrics (17, C, 3) of candidates on the mean head; column 0 is the landmark.

    A candidate is where a ray from the vertical axis of the head, at the landmark's height, leaves the surface. The
    axis stands a little in front of the ears, so that the rays cross the cheeks at a good angle.
    """
    vertices = head.v_template.double()
    landmarks = head.landmarks(vertices[None].float())[0].double()
    assert head.landmark_faces is not None and head.landmark_bary is not None
    axis_z = float(landmarks[[0, 16], 2].mean())
    faces, bary = [], []
    for i in range(17):
        x, y, z = landmarks[i].tolist()
        angle = np.arctan2(x, max(z - axis_z, 1e-6))
        angles = angle * (1 - NOSE_SHARE * np.arange(1, CANDIDATES) / (CANDIDATES - 1))
        directions = torch.tensor(np.stack([np.sin(angles), np.zeros_like(angles), np.cos(angles)], 1))
        origin = torch.tensor([0.0, y, axis_z], dtype=torch.double)
        face, coords = _outermost(vertices[head.faces], origin, directions)
        own_face, own_bary = head.landmark_faces[i], head.landmark_bary[i].double()
        # A ray that leaves through no triangle (an open neck) stays at the landmark.
        coords = torch.where((face < 0)[:, None], own_bary, coords)
        face = torch.where(face < 0, own_face, face)
        faces.append(torch.cat([own_face[None], face]))
        bary.append(torch.cat([own_bary[None], coords]))
    return torch.stack(faces), torch.stack(bary).float()


def _outermost(corners: Tensor, origin: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """The last triangle each ray crosses: ids (R,), -1 where none, barycentrics (R, 3). Möller and Trumbore 1997."""
    a, b, c = corners.unbind(1)
    e1, e2, s = b - a, c - a, origin - a
    d = directions[:, None]  # (R, 1, 3)
    p = torch.linalg.cross(d, e2[None])
    det = (p * e1).sum(-1)
    det = torch.where(det.abs() < 1e-14, torch.nan, det)
    u = (p * s).sum(-1) / det
    q = torch.linalg.cross(s, e1)
    v = (d * q).sum(-1) / det
    distance = (e2 * q).sum(-1) / det
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0)
    distance = torch.where(hit, distance, -torch.inf)
    best, face = distance.max(1)
    rows = torch.arange(len(directions))
    bary = torch.stack([1 - u[rows, face] - v[rows, face], u[rows, face], v[rows, face]], 1)
    return torch.where(torch.isfinite(best), face, -1), bary


def visible(points: Tensor) -> Tensor:
    """Index (N, 17) of the outline candidate in each frame.

    Args:
        points: (N, 17, C, 2) candidates in the image, pixels.
    """
    # "Outwards" is along the line through the two ends of the jaw line, away from the middle of the face.
    across = points[:, 16, 0] - points[:, 0, 0]
    across = across / across.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    along = (points * across[:, None, None]).sum(-1)  # (N, 17, C)
    side = torch.ones(17, dtype=points.dtype)
    side[:8] = -1
    outwards = along * side[None, :, None]
    # Earlier candidates win ties by a hair, so that a frontal face keeps its own landmarks.
    outwards = outwards - 1e-4 * torch.arange(points.shape[2])
    chosen = outwards.argmax(-1)
    chosen[:, 7:10] = 0  # the chin does not slide sideways
    answer: Tensor = chosen
    return answer
