"""What a view's pose and exposure are off by: corrections that training learns beside the scene.

They say nothing of what pictures can't tell: the head's place, turn and size as a whole, and its brightness.
"""

import functools
from dataclasses import replace

import roma
import torch
from recon4d.cameras import Camera
from torch import Tensor

from eyeball_relight.captures import Capture, held_out
from eyeball_relight.field import Field


def trained_views(n: int) -> list[int]:
    """Which of n views are learned from."""
    return sorted(set(range(n)) - set(held_out(n)))


@functools.lru_cache(maxsize=8)
def _trained(n: int, device: torch.device) -> Tensor:
    return torch.tensor(trained_views(n), device=device)


def without_gauge(motion: Tensor, centres: Tensor) -> Tensor:
    """Corrections (V, 6) of trained views without what they have in common: a turn, a shift, and moving all cameras
    towards the head, which would be another size of the head.

    Args:
        motion: turns as rotation vectors and shifts, about and of the head. centres: (V, 3) of the cameras.
    """
    motion = motion - motion.mean(0)
    away = torch.nn.functional.normalize(centres, dim=1)
    turn, shift = motion.split(3, 1)
    return torch.cat([turn, shift - (shift * away).sum(1).mean() * away], 1)


def refined(field: Field, camera: Camera) -> Camera:
    """The capture's camera (V views) as the field has corrected it, differentiable; itself without refine_pose.

    View v becomes x -> R (exp(w) x + u) + t with e^f of t's depth, and the focal length e^f of what it was. So a longer
    focal length leaves the head where and as large as it is in the pictures, and changes its perspective alone.
    Held-out views keep their pose.
    """
    if not field.config.train.refine_pose:
        return camera
    views = _trained(len(field.pose), field.device)
    centres = camera.center[views]
    motion = torch.zeros_like(field.pose)
    motion = motion.index_put((views,), without_gauge(field.pose[views], centres))
    zoom = field.focal.exp()
    rotation, shift = camera.world_to_camera[:, :3, :3], camera.world_to_camera[:, :3, 3]
    turn = roma.rotvec_to_rotmat(motion[:, :3])
    moved = (rotation @ (motion[:, 3:, None] * field.config.data.bound))[..., 0]
    moved = moved + shift * torch.stack([torch.ones_like(zoom), torch.ones_like(zoom), zoom])
    last = camera.world_to_camera[:, 3:]
    pose = torch.cat([torch.cat([rotation @ turn, moved[..., None]], 2), last], 1)
    K = torch.cat([torch.cat([camera.K[:2, :2] * zoom, camera.K[:2, 2:]], 1), camera.K[2:]], 0)
    return Camera(K, pose, camera.width, camera.height)


def gains(field: Field) -> Tensor:
    """(V, 3) what each picture's light is multiplied by; the geometric mean of the trained views is 1."""
    if not field.config.light.exposure:
        return field.occlusion.new_ones(len(field.occlusion), 3)
    views = _trained(len(field.exposure), field.device)
    gain = torch.zeros_like(field.exposure)
    own = field.exposure[views]
    return gain.index_put((views,), own - own.mean(0)).exp()


def camera_of(field: Field, capture: Capture) -> Camera:
    """The capture's camera as the field has corrected it, on the field's device; see `refined`."""
    return refined(field, capture.camera.to(field.device))


def corrected(field: Field, capture: Capture) -> Capture:
    """The capture with the field's cameras, fixed."""
    if not field.config.train.refine_pose:
        return capture
    with torch.no_grad():
        return replace(capture, camera=camera_of(field, capture).to("cpu"))
