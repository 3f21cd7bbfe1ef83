"""Eyeballs fitted to rendered ones, and masks snapped to what the pictures show."""

import numpy as np
import pytest
import torch
from eyeball_relight import assets, eyes, spheres, synth
from torch.nn.functional import normalize

CENTRES, RADIUS = torch.tensor([[0.032, 0.04, 0.07], [-0.03, 0.042, 0.068]]), 0.015


@pytest.fixture(scope="module")
def rendered():
    """Pictures of two eyeballs under the flash, and the masks of what lids would leave of each."""
    asset = {
        part: assets.eyeball(centre, RADIUS, synth.iris_texture(0)) for part, centre in zip(("left", "right"), CENTRES)
    }
    camera = synth.orbit(16, 224, 0)
    intensity, pictures, masks = torch.full((3,), synth.INTENSITY), [], []
    for i in range(16):
        view = type(camera)(camera.K, camera.world_to_camera[i], camera.width, camera.height)
        pixels = assets.visible(asset, view)
        shade = lambda p, eye=view.center: assets.lit_by_flash(p, eye, intensity) + 0.04 * p.diffuse  # noqa: E731
        picture, _ = assets.picture(asset, view, shade, 3)
        pictures.append((picture * 255 + 0.5).byte())
        both = []
        for centre in CENTRES:
            away = normalize(pixels.position - centre, dim=1)
            near = (pixels.position - centre).norm(dim=1) < 1.5 * RADIUS
            open_ = near & (away[:, 2] > 0.5) & (away[:, 1].abs() < 0.45)
            both.append((pixels.image(open_[:, None].float())[..., 0] * 255).byte())
        masks.append(torch.stack(both))
    return camera, torch.stack(pictures), torch.stack(masks, 1)


def test_fitted_eyeballs_are_the_rendered_ones(rendered):
    """From three millimetres off and another radius: centres within half a millimetre, radius within 0.3."""
    camera, pictures, masks = rendered
    assert min(int((m > 127).sum()) for m in masks) > spheres.FEWEST_PIXELS
    fronts = CENTRES + torch.tensor([0.002, -0.0015, RADIUS + 0.002])
    centres, radius = spheres.fit(
        camera, pictures, tuple(masks), list(range(16)), fronts, (0.012, 0.02), synth.INTENSITY
    )
    away = (centres - CENTRES).norm(dim=1)
    assert away.max() < 5e-4 and abs(radius - RADIUS) < 3e-4, (centres - CENTRES, radius)


def test_residuals_are_small_at_the_truth_only(rendered):
    camera, pictures, masks = rendered
    seen = spheres.look(camera, pictures, masks[0], list(range(16)), CENTRES[0].double() + 0.001)
    smooth = spheres.ripple()

    def left(radius, back):
        centre = CENTRES[0].double() - back * seen.front[2]
        return np.square(spheres.residuals(seen, centre, radius, 0.04, synth.INTENSITY, smooth)).mean()

    assert left(RADIUS, 0.0) < 0.5 * min(left(RADIUS + 0.003, 0.003), left(RADIUS - 0.002, -0.002))


def test_snapped_masks_follow_the_picture():
    """Masks that are moved by two pixels are moved back."""
    rows, columns = np.mgrid[:60, :80]
    true = np.stack([((columns - 40 - i) / 16) ** 2 + ((rows - 30) / 9) ** 2 < 1 for i in range(4)])
    noise = np.random.default_rng(0).normal(0, 6, (*true.shape, 3))
    picture = np.where(true[..., None], (60, 110, 160), (200, 150, 120)) + noise
    moved = np.roll(true, (1, 2), (1, 2))
    snapped = eyes.snap(picture.clip(0, 255).astype(np.uint8), moved)
    assert (moved ^ true).sum() > 5 * (snapped ^ true).sum()
    nothing = np.zeros_like(true)
    assert not eyes.snap(picture.clip(0, 255).astype(np.uint8), nothing).any()
