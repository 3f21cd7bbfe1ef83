"""A clip of the open head whose truth is known, for the tests of the tracker."""

import numpy as np
import roma
import torch
from flame_encoder.tracker import contour, points
from flame_encoder.tracker.observations import Observations


def clip(model, n=40, yaw=25.0, noise=0.004, focal=900.0, seed=0):
    """True parameters and noisy landmarks of a head that turns and talks, seen at 512x512."""
    g = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 2 * torch.pi, n)
    shape = torch.randn(1, model.n_shape, generator=g) * 0.8
    # No video tells the size of a head; the tracker takes the mean head's, so the true head has it too.
    landmarks = points.Points.on(model, model.landmark_faces, model.landmark_bary, model.n_shape, model.n_expression)
    growth = landmarks.growth(model.n_shape)
    shape = shape - (shape @ growth)[:, None] * growth / growth.square().sum()
    phase = torch.rand(model.n_expression, generator=g) * 2 * torch.pi
    expression = (torch.sin(time[:, None] * 2 + phase) - 0.6).clamp_min(0) * 0.8
    jaw = torch.stack([0.15 * (1 + torch.sin(3 * time)) / 2, 0 * time, 0 * time], 1)
    eyelids = torch.sin(4 * time)[:, None].clamp_min(0).expand(-1, 2)
    turn = torch.stack([0.12 * torch.sin(2 * time), np.radians(yaw) * torch.sin(time), 0.08 * torch.cos(time)], 1)
    R = points.FACING @ roma.rotvec_to_rotmat(turn)
    t = torch.stack([0.02 * torch.sin(time), 0.01 * torch.cos(time), 0.7 + 0.03 * torch.sin(time)], 1)
    vertices = (
        model(shape, expression, jaw=roma.rotvec_to_rotmat(jaw), eyelids=eyelids) @ R.transpose(1, 2) + t[:, None]
    )
    faces, bary = contour.candidates(model)
    rows = (vertices[:, model.faces[faces]] * bary[..., None]).sum(3)  # (N, 17, C, 3)
    centre = 256.0
    project = lambda p: p[..., :2] / p[..., 2:] * focal + centre  # noqa: E731
    chosen = contour.visible(project(rows))
    seen_at = project(model.landmarks(vertices))
    seen_at[:, :17] = project(rows).gather(2, chosen[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    iod = (seen_at[:, 36] - seen_at[:, 45]).norm(dim=-1)
    seen_at = seen_at + noise * iod[:, None, None] * torch.randn(seen_at.shape, generator=g)
    seen = Observations(
        names=np.array([f"{i:05d}.png" for i in range(n)]),
        landmarks=seen_at.numpy(),
        valid=np.ones(n, bool),
        irises=np.full((n, 2, 2), np.nan),
        image_size=(512, 512),
        fps=30.0,
    )
    return vertices, seen, jaw


def face_error(model, truth, found):
    """Mean distance (mm) of the face region's vertices after rigid alignment in each frame."""
    keep = model.regions["face"]
    a, b = found[:, keep].double(), truth[:, keep].double()
    R, t = roma.rigid_points_registration(a, b)
    return 1000 * (a @ R.transpose(1, 2) + t[:, None] - b).norm(dim=-1).mean().item()
