"""Where a held-out picture was taken from and how it was exposed, by the asset itself.

A view that training has not seen keeps the pose and the exposure it came with. Where training corrects those of the
others, they have to be found for it as well before the asset is compared with it (as Lin et al. 2021, BARF, do).
"""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import roma
import torch
from recon4d.cameras import Camera
from torch import Tensor

from eyeball_relight import brdf

STEPS = 6
SMOOTH = 1.0  # pixels
TURN, SHIFT = 8e-3, 4e-3  # radians and, times the distance, lengths, of finite differences
DAMPING = 1e-3
BRIGHT, DARK = 0.95, 0.02  # of values that tell the exposure


def moved(view: Camera, motion: np.ndarray) -> Camera:
    """A camera (4, 4) turned and shifted, (6,), about the origin, in its own axes."""
    pose = view.world_to_camera.double().clone()
    turn = roma.rotvec_to_rotmat(torch.from_numpy(motion[:3]))
    pose[:3, :3] = turn @ pose[:3, :3]  # the head turns where it is
    pose[:3, 3] = pose[:3, 3] + torch.from_numpy(motion[3:])
    return replace(view, world_to_camera=pose.float())


def exposure(rendered: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Gain (3,) by which linear light of a picture (H, W, 3) is as bright as another where mask (H, W) is set."""
    ours, theirs = brdf.to_linear(rendered), brdf.to_linear(wanted)
    fine = mask & (wanted.amax(-1) < BRIGHT) & (ours.amin(-1) > DARK**brdf.GAMMA) & (wanted.amin(-1) > DARK)
    if int(fine.sum()) < 20:
        return torch.ones(3)
    gain: Tensor = (theirs[fine] / ours[fine]).median(0).values
    return gain


def gained(picture: Tensor, gain: Tensor) -> Tensor:
    """A picture with its linear light times gain (3,)."""
    return brdf.to_picture(brdf.to_linear(picture) * gain)


def align(render: Callable[[Camera], Tensor], view: Camera, wanted: Tensor, mask: Tensor) -> tuple[Camera, Tensor]:
    """The camera near `view` in which what is rendered is most like a picture, and its gain (3,).

    Gauss and Newton's steps by finite differences, damped; a step that makes it worse is taken back.

    Args:
        render: a picture (H, W, 3). wanted: (H, W, 3). mask: (H, W) bool.
    """
    distance = float(view.center.norm())
    steps = np.array([TURN] * 3 + [SHIFT * distance] * 3)
    near = torch.nn.functional.max_pool2d(mask[None].float(), 5, 1, 2)[0] > 0

    def left_over(camera: Camera) -> tuple[np.ndarray, Tensor]:
        picture = render(camera)
        gain = exposure(picture, wanted, mask)
        # smooth enough that a step of a share of a pixel shows
        rest = cv2.GaussianBlur((gained(picture, gain) - wanted).numpy(), (0, 0), SMOOTH)
        return rest[near.numpy()].ravel().astype(np.float64), gain

    best = view
    rest, gain = left_over(view)
    damping = DAMPING
    for _ in range(STEPS):
        slopes = np.stack([(left_over(moved(best, e * steps))[0] - rest) for e in np.eye(6)], 1)
        square = slopes.T @ slopes
        step = -np.linalg.solve(square + damping * np.diag(square.diagonal() + 1e-12), slopes.T @ rest)
        tried = moved(best, step.clip(-6, 6) * steps)
        after, gain_there = left_over(tried)
        if (after**2).sum() >= (rest**2).sum():
            damping *= 30
            if damping > 10:
                break
            continue
        better = 1 - (after**2).sum() / (rest**2).sum()
        best, rest, gain = tried, after, gain_there
        if better < 1e-3:
            break
    return best, gain
