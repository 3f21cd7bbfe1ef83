"""The room's light beside the flash's."""

import math
from dataclasses import replace

import pytest
import torch
from eyeball_relight import config
from eyeball_relight.field import new_field
from eyeball_relight.room import room_share


def test_share_of_a_room_that_is_the_same_from_all_sides(trained):
    capture, settings, _, _ = trained
    field = new_field(settings, len(capture))
    scale = settings.light.ambient_scale
    with torch.no_grad():
        field.ambient.zero_()
        field.ambient[0] = 0.5 * math.sqrt(4 * math.pi)  # harmonics of a constant 0.5
    pose = capture.camera.world_to_camera.clone()
    pose[:, :3, :3], pose[:, :3, 3] = torch.eye(3), torch.tensor([0.0, 0.0, 0.4])
    near = replace(capture, camera=replace(capture.camera, world_to_camera=pose))
    flash = torch.tensor([0.6, 0.9, 1.2])
    share = room_share(field, near.camera, flash)
    expected = scale * math.log1p(math.exp(0.5)) / (0.9 / math.pi / 0.4**2)
    assert float(share.detach()) == pytest.approx(expected, rel=1e-5)
    share.backward()
    assert field.ambient.grad is not None and bool((field.ambient.grad[0] > 0).all())
    assert all(p.grad is None for name, p in field.named_parameters() if name != "ambient")
    assert config.Losses().room == 0
