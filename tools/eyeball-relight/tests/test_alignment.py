"""Held-out views find their pose and exposure by the asset."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from eyeball_relight import alignment, assets, brdf, synth
from recon4d.cameras import Camera


@pytest.fixture(scope="module")
def scene(head):
    asset, _ = synth.head_asset(head, 3)
    camera = synth.orbit(6, 72, 3)
    view = Camera(camera.K, camera.world_to_camera[2], 72, 72)

    def render(view):
        intensity = torch.full((3,), synth.INTENSITY)
        return assets.picture(asset, view, lambda p: assets.lit_by_flash(p, view.center, intensity), 2)[0]

    _, cover = assets.picture(asset, view, lambda p: p.diffuse, 2)
    return render, view, cover[..., 0] > 0.5


def test_pose_and_exposure_are_found(scene):
    render, view, mask = scene
    gain = torch.tensor([0.6, 0.7, 0.8])
    wanted = alignment.gained(render(view), gain)
    wrong = alignment.moved(view, np.array([0.02, -0.03, 0.01, 0.004, -0.003, 0.01]))
    found, exposed = alignment.align(render, wrong, wanted, mask)
    torch.testing.assert_close(exposed, gain, atol=0.05, rtol=0)

    def apart(a):
        inside = torch.tensor([[0.0, 0.0, 0.08], [0.06, 0.02, 0.05], [-0.06, -0.05, 0.04]])
        return float((a.project(inside)[0] - view.project(inside)[0]).norm(dim=1).max())

    assert apart(wrong) > 1.5 and apart(found) < 0.2 * apart(wrong)
    before, after = ((alignment.gained(render(v), exposed) - wanted).square().mean() for v in (wrong, found))
    assert after < 0.1 * before


def test_a_picture_of_nothing_changes_nothing(scene):
    render, view, mask = scene
    found, gain = alignment.align(render, view, torch.zeros(72, 72, 3), torch.zeros_like(mask))
    assert torch.equal(found.world_to_camera, view.world_to_camera) and gain.tolist() == [1, 1, 1]


def test_gain_is_of_light_not_of_values(scene):
    picture = torch.full((4, 4, 3), 0.5)
    torch.testing.assert_close(alignment.gained(picture, torch.full((3,), 0.5)), brdf.to_picture(0.5 * picture**2.2))
    same = alignment.exposure(picture, picture, torch.ones(4, 4, dtype=torch.bool))
    assert same.tolist() == [1, 1, 1]  # too few pixels to say


def test_moved_turns_the_head_where_it_is(scene):
    _, view, _ = scene
    turned = alignment.moved(view, np.array([0.0, 0.3, 0.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(turned.project(torch.zeros(1, 3))[0], view.project(torch.zeros(1, 3))[0])
    assert replace(view).width == turned.width
