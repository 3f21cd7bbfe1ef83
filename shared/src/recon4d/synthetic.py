"""Synthetic people: random skin, light and background, and pictures of a posed head, for tests and training data."""

import cv2
import numpy as np
import torch
from torch import Tensor

from recon4d import cameras, mesh
from recon4d.color import srgb_from_linear
from recon4d.files import InputError
from recon4d.head import HeadModel

SUPERSAMPLING = 3


def smooth_noise(n: int, per_clip: float, rng: np.random.Generator, tracks: int = 1) -> np.ndarray:
    """Stationary smooth curves (tracks, n) with values about N(0, 1): sums of sinusoids of random phase.

    Args:
        per_clip: typical number of cycles in the clip, so that its end looks like its beginning.
    """
    time = np.arange(n) / n
    cycles = per_clip * rng.uniform(0.6, 1.5, (tracks, 5, 1))
    phase = rng.uniform(0, 2 * np.pi, (tracks, 5, 1))
    waves: np.ndarray = np.sin(2 * np.pi * cycles * time + phase).sum(1) * (2 / 5) ** 0.5
    return waves


def random_albedo(head: HeadModel, seed: int) -> Tensor:
    """A random person's sRGB texture (T, T, 3); a mottled skin tone for head models without an albedo."""
    rng = np.random.default_rng((seed, 1))
    if head.albedo_mean is None:
        tone = np.array([0.78, 0.6, 0.5]) * rng.uniform(0.6, 1.1)
        mottle = np.zeros((512, 512))
        for cells in (16, 48, 128):
            mottle += cv2.resize(rng.standard_normal((cells, cells)), (512, 512), interpolation=cv2.INTER_CUBIC)
        return torch.from_numpy(np.clip(tone + 0.05 * mottle[..., None], 0, 1).astype(np.float32))
    albedo = head.albedo_mean
    if head.albedo_components is not None:
        coefficients = 0.7 * rng.standard_normal(head.albedo_components.shape[-1])
        albedo = albedo + head.albedo_components @ torch.from_numpy(coefficients.astype(np.float32))
    return albedo.clamp(0, 1)


def random_light(seed: int) -> Tensor:
    """Radiance (9, 3) of a window on one side, a fill, a ceiling and a dim room, for `mesh.shade`."""
    rng = np.random.default_rng((seed, 2))
    side = rng.choice([-1.0, 1.0])
    lights = [
        ((side * 0.7, 0.35, 0.65), (0.62, 0.60, 0.56)),
        ((-side * 0.6, 0.5, 0.6), (0.24, 0.25, 0.28)),
        ((0.0, 1.0, 0.1), (0.18, 0.18, 0.17)),
    ]
    light = torch.zeros(9, 3)
    light[0] = 0.36 * (4 * np.pi) ** 0.5  # the room: constant radiance 0.36
    for direction, colour in lights:
        towards = torch.nn.functional.normalize(torch.tensor(direction), dim=0)
        # A distant light that gives a surface facing it `colour` has the radiance pi * colour * delta(towards).
        light += np.pi * mesh.sh_basis(towards)[:, None] * torch.tensor(colour)
    return light


def render_head(
    head: HeadModel,
    vertices: Tensor,
    world_to_camera: Tensor,
    K: Tensor,
    size: int,
    albedo: Tensor,
    light: Tensor,
) -> np.ndarray:
    """One frame as RGBA uint8 (size, size, 4), straight alpha, antialiased by supersampling.

    Args:
        vertices: (V, 3) world. albedo: (T, T, 3) linear. light: (9, 3) in world axes.

    Raises:
        InputError: a head without texture coordinates.
    """
    camera = cameras.Camera(K, world_to_camera, size, size)
    # Only the window that the head covers is worth rendering.
    pixels, _ = camera.project(vertices)
    left, top = (int(x) for x in pixels.min(0).values.floor().clamp(0, size - 1))
    right, bottom = (int(x) for x in pixels.max(0).values.ceil().clamp(1, size))
    width, height, fine = max(right - left, 1), max(bottom - top, 1), SUPERSAMPLING
    camera = camera.cropped(left, top, width, height).resized(width * fine, height * fine)
    rast = mesh.rasterize(camera.clip(vertices[None]), head.faces, (camera.height, camera.width))
    seen = rast.mask
    if head.vt is None or head.ft is None:
        raise InputError(f"{head.name} has no texture coordinates; call head.with_uv first")
    normals = mesh.interpolate(mesh.vertex_normals(vertices[None], head.faces), rast, head.faces)
    uv = mesh.interpolate(head.vt[None], rast, head.ft)
    colour = mesh.texture(albedo[None], uv[seen][None, None])
    shaded = torch.zeros(1, camera.height, camera.width, 4)
    lit = mesh.shade(colour, normals[seen][None, None], sh=light)[0, 0].clamp(0, 1)
    shaded[seen] = torch.cat([lit, torch.ones(len(lit), 1)], -1)
    averaged = shaded[0].view(height, fine, width, fine, 4).mean((1, 3))
    straight = srgb_from_linear(averaged[..., :3] / averaged[..., 3:].clamp_min(1e-6))
    image = np.zeros((size, size, 4), np.uint8)
    rgba = torch.cat([straight, averaged[..., 3:]], -1)
    image[top:bottom, left:right] = (rgba * 255 + 0.5).byte().numpy()
    return image


def wall(size: int, seed: int) -> np.ndarray:
    """A background (size, size, 3) in [0, 1]: a painted wall, unevenly lit, with a little texture."""
    rng = np.random.default_rng((seed, 3))
    y, x = np.mgrid[0:size, 0:size] / size
    paint = np.array([0.55, 0.6, 0.62]) + rng.uniform(-0.12, 0.12, 3)
    fall = 1.05 - 0.45 * ((x - rng.uniform(0.1, 0.9)) ** 2 + 0.5 * (y - 0.2) ** 2)
    grain = sum(
        amount * cv2.resize(rng.standard_normal((cells, cells)), (size, size), interpolation=cv2.INTER_CUBIC)
        for cells, amount in ((6, 0.02), (24, 0.012), (96, 0.01))
    )
    wall: np.ndarray = np.clip(paint * (fall + grain)[..., None], 0, 1)
    return wall
