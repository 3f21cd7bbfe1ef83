"""Rays to train on: which pixels they are drawn from, and where they go."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from recon4d import InputError
from recon4d.cameras import Camera
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight.captures import Capture

AROUND_HEAD, AROUND_EYES = 8, 3  # pixels around the masks that rays are drawn from
SHARES = (0.82, 0.10, 0.08)  # of the rays: around the head, around the eyes, anywhere


@dataclass(frozen=True, eq=False)
class Rays:
    """R rays in bounds. origin, direction: (R, 3), unit. view: (R,) which picture each belongs to."""

    origin: Tensor
    direction: Tensor
    view: Tensor


@dataclass(frozen=True, eq=False)
class Pool:
    """The pixels that rays are drawn from: flat indices into (N, H, W) of the training views."""

    head: Tensor
    eyes: Tensor
    every: Tensor


def pool_of(capture: Capture) -> Pool:
    """The pixels of the training views around the head, around the eyes, and all.

    Raises InputError where no training view shows a head.
    """

    def around(masks: Tensor, reach: int) -> Tensor:
        out = np.zeros(masks.shape, bool)
        for i in capture.trained:
            out[i] = cv2.dilate(masks[i].numpy(), np.ones((2 * reach + 1,) * 2)) > 127
        return torch.from_numpy(out).flatten().nonzero()[:, 0]

    every = torch.zeros(capture.mask.shape, dtype=torch.bool)
    every[capture.trained] = True
    head = around(capture.mask, AROUND_HEAD)
    if len(head) == 0:
        raise InputError(f"{capture.folder}/mask is black in all training views; white is the head")
    eyes = around(torch.maximum(capture.left, capture.right), AROUND_EYES)
    return Pool(head, eyes, every.flatten().nonzero()[:, 0])


def draw(pool: Pool, n: int, generator: torch.Generator) -> Tensor:
    """About n flat pixel indices, by SHARES."""
    parts = []
    for pixels, share in zip((pool.head, pool.eyes, pool.every), SHARES):
        pixels = pixels if len(pixels) else pool.head
        parts.append(pixels[torch.randint(len(pixels), (max(1, round(share * n)),), generator=generator)])
    return torch.cat(parts)


def rays_through(camera: Camera, bound: float, pixels: Tensor) -> Rays:
    """Rays through the centres of flat pixel indices (R,) into (N, H, W) of N views; positions in bounds."""
    view = pixels // (camera.height * camera.width)
    row, column = pixels % (camera.height * camera.width) // camera.width, pixels % camera.width
    K = camera.K
    y = (row + 0.5 - K[1, 2]) / K[1, 1]
    x = (column + 0.5 - K[0, 2] - K[0, 1] * y) / K[0, 0]
    local = torch.stack([x, y, torch.ones_like(y)], 1)
    rotation = camera.world_to_camera[view, :3, :3]
    direction = (local[:, None] @ rotation)[:, 0]
    return Rays(camera.center[view] / bound, normalize(direction, dim=-1), view)
