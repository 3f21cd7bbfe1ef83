"""How much of the light is the room's."""

import functools

import torch
from recon4d.cameras import Camera
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight import brdf
from eyeball_relight.field import Field

CUBE = torch.cartesian_prod(*3 * [torch.arange(-1.0, 2.0)])
AROUND = normalize(CUBE[CUBE.any(1)], dim=1)  # (26, 3) directions


@functools.cache
def _around(device: torch.device) -> Tensor:
    return AROUND.to(device)


def room_share(field: Field, camera: Camera, intensity: Tensor) -> Tensor:
    """The room's light on surfaces that face all ways, on average, beside the flash's on one that faces it at the
    cameras' median distance from the middle; a scalar.

    `losses.room` is its weight. Pictures hardly tell a bright room from skin of lower albedo with wide highlights: both
    darken less towards the outline than a matt ball. Captures are made in dim rooms, so the explanation with less of
    the room is taken.

    Args:
        intensity: (3,) of the flash.
    """
    distance = camera.center.norm(dim=-1).median().to(intensity.device)
    light = field.ambient
    room = brdf.ambient(_around(light.device), light, light.new_zeros(9), field.config.light.ambient_scale)
    share: Tensor = room.mean() * (torch.pi * distance**2) / intensity.mean()
    return share
