"""Pictures, clips and runs of the command that the tests share."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import forks
import numpy as np
import pytest
import roma
import skimage.data
import torch
from recon4d import head, mesh
from recon4d.cameras import Camera
from recon4d.formats.track import Track


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess]:
    """Run prep-faces as a user does: `run("frames", video, "--out", folder)`."""

    def start(*arguments: object) -> subprocess.CompletedProcess:
        return forks.run("prep-faces", *arguments)

    return start


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """A face, 300x300, RGB (part of the public-domain picture of Eileen Collins)."""
    return np.ascontiguousarray(skimage.data.astronaut()[:300, 70:370])


@dataclass(frozen=True)
class Capture:
    """A short clip of the open head whose truth is known."""

    images: list[np.ndarray]  # (H, W, 3) uint8
    alphas: list[np.ndarray]  # (H, W) bool
    landmarks: np.ndarray  # (N, 68, 2)
    track: Track


@pytest.fixture(scope="session")
def capture() -> Capture:
    """Eight frames, 320x320, of the open head that turns before a photo of a cup of coffee."""
    count, size, focal = 8, 320, 700.0
    model = head.load()
    yaw = np.radians(np.linspace(-15, 15, count))
    turn = torch.tensor(np.stack([0.1 * np.sin(3 * yaw), yaw, 0 * yaw], -1), dtype=torch.float32)
    track = Track(
        head_model=model.name,
        image_size=np.array([size, size]),
        fps=30.0,
        K=np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], np.float32),
        names=np.array([f"{i:05d}.png" for i in range(count)]),
        valid=np.ones(count, bool),
        shape=np.zeros(model.n_shape, np.float32),
        expression=np.zeros((count, model.n_expression), np.float32),
        # Half a turn about x: y up, z towards the viewer becomes y down, z away.
        R=(torch.diag(torch.tensor([1.0, -1, -1])) @ roma.rotvec_to_rotmat(turn)).numpy(),
        t=np.tile(np.float32([0.01, 0.01, 0.8]), (count, 1)),
        neck=np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)),
        jaw=np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)),
        eyes=np.tile(np.eye(3, dtype=np.float32), (count, 2, 1, 1)),
        eyelids=np.zeros((count, 2), np.float32),
    )
    vertices = track.vertices(model)
    camera = Camera(torch.from_numpy(track.K), torch.eye(4), size, size)
    # Drawn at four times the size, one colour per triangle: albedo under a lamp beside the camera.
    fine, _ = mesh.visibility(camera.clip(vertices), model.faces, (4 * size, 4 * size))
    corners = vertices[:, model.faces]
    normals = torch.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0], dim=-1)
    normals = torch.nn.functional.normalize(normals, dim=-1)
    light = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, -1.0]), dim=0)
    uv = model.vt[model.ft].mean(1)
    texture = model.albedo_mean
    rows = ((1 - uv[:, 1]) * (texture.shape[0] - 1)).long()
    columns = (uv[:, 0] * (texture.shape[1] - 1)).long()
    colors = texture[rows, columns] * (0.35 + 0.65 * (normals @ light).abs())[..., None]
    background = cv2.resize(skimage.data.coffee(), (size, size), interpolation=cv2.INTER_AREA)
    images, alphas = [], []
    for ids, color in zip(fine, colors):
        drawn = torch.where(ids[..., None] >= 0, color[ids.clamp_min(0).long()], torch.zeros(3)).numpy()
        cover = cv2.resize((ids >= 0).numpy().astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        face = cv2.resize(drawn, (size, size), interpolation=cv2.INTER_AREA) * 255
        images.append(np.rint(face + background * (1 - cover[..., None])).clip(0, 255).astype(np.uint8))
        alphas.append(cover > 0.5)
    landmarks = camera.project(model.landmarks(vertices))[0].numpy()
    return Capture(images, alphas, landmarks, track)
