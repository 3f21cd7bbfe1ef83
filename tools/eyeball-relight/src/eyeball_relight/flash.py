"""The flash: how bright it is, and whether it is where it should be, at the lens."""

import numpy as np
import torch
from torch import Tensor

from eyeball_relight import brdf
from eyeball_relight.captures import Capture
from eyeball_relight.config import Config
from eyeball_relight.field import Field
from eyeball_relight.surface_phase import SurfaceView, surface_colours

LIGHT_TOLERANCE = 0.05  # of the distance to the head: how far from the lens a light is not worth a warning


def flash_intensity(settings: Config, capture: Capture) -> Tensor:
    """The flash's intensity (3,): given, or such that the median pixel of the face has an albedo of 0.4."""
    colour = torch.tensor(settings.light.color)
    if settings.light.intensity is not None:
        return settings.light.intensity * colour
    face = (capture.mask > 127) & (capture.hair < 128)
    linear = brdf.to_linear(capture.image[face].float() / 255).mean(-1).median()
    square = capture.camera.center.square().sum(-1).median()
    return colour * float(linear) * float(square) * np.pi / 0.4


def light_offset(
    field: Field,
    capture: Capture,
    views: list[SurfaceView],
    active: list[int],
    intensity: Tensor,
    generator: torch.Generator,
) -> list[float]:
    """Where the light seems to be in the camera's axes, in the capture's unit: least squares on what is left over.

    Shading of a matt surface changes by its slope with the light's position; a capture whose light is at the camera
    leaves a residual that no common displacement explains.

    Args:
        generator: chooses pixels of each view.
    """
    rows, sides = [], []
    for view in views:
        pick = torch.randint(len(view.pixel), (min(2000, len(view.pixel)),), generator=generator)
        pick = pick[view.part[pick] == 0]
        truth = brdf.to_linear(capture.image.view(-1, 3)[view.pixel[pick]].float() / 255).mean(-1)
        camera = capture.view(view.view)
        turn = camera.world_to_camera[:3, :3]
        with torch.no_grad():
            colour = surface_colours(field, capture, view, pick, active, intensity).mean(-1).cpu()
        towards = camera.center - view.position[pick]
        distance = towards.norm(dim=1, keepdim=True)
        unit, normal = towards / distance, view.normal[pick]
        cosine = (unit * normal).sum(1, keepdim=True)
        # d/dl log(n.l / |l|^3): towards the normal, away from the distance
        slope = (normal / cosine.clamp(min=0.1) - 3 * unit) / distance
        fine = (cosine[:, 0] > 0.3) & (truth > 0.02) & (truth < 0.95) & (colour > 0.02)
        rows.append((slope @ turn.T)[fine] * colour[fine, None])
        sides.append((truth - colour)[fine])
    A, b = torch.cat(rows).double(), torch.cat(sides).double()
    return list(map(float, torch.linalg.lstsq(A, b[:, None]).solution[:, 0]))


def light_warning(capture: Capture, offset: list[float]) -> str | None:
    """A sentence where the light is farther from the camera than LIGHT_TOLERANCE of the distance to the head."""
    distance = float(capture.camera.center.norm(dim=1).median())
    away = float(np.linalg.norm(offset[:2]))  # along the line of sight it is the distance that is wrong
    if away <= LIGHT_TOLERANCE * distance:
        return None
    return (
        f"the pictures look as if the light were {away:.3g} away from the camera, which is {distance:.3g} from the "
        "head; normals and albedo lean to one side. Hold the light at the lens"
    )
