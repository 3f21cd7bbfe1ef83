"""Light on assets: shadows, the flash as a point light, environments against sums over their pixels."""

import cv2
import numpy as np
import pytest
import torch
from eyeball_relight import assets, brdf, relight
from recon4d import InputError, cameras, mesh
from recon4d.cameras import Camera


def plain(centre, radius, diffuse=0.5, specular=0.0, roughness=0.5):
    vertices, normals, faces, vt = assets.sphere(torch.tensor(centre), radius, 64)
    maps = [torch.full((2, 2, c), v) for c, v in ((3, diffuse), (1, specular), (1, roughness))]
    return assets.Surface(vertices, normals, faces, vt, faces, *maps)


def looking_at_origin(size=96):
    pose = cameras.look_at(torch.tensor([0.0, 0, 3]), torch.zeros(3), torch.tensor([0.0, 1, 0]))
    return Camera(cameras.intrinsics_from_fov(0.8, size, size), pose, size, size)


def test_flash_is_a_point_light_at_the_eye():
    asset, camera = {"face": plain([0.0, 0, 0], 0.8, specular=0.5)}, looking_at_origin()
    pixels = assets.visible(asset, camera)
    intensity, eye = torch.tensor([9.0, 8, 7]), camera.center
    flash = assets.lit_by_flash(pixels, eye, intensity)
    point = assets.lit_by_point(pixels, asset, eye, eye, intensity)
    lit = (pixels.normal * torch.nn.functional.normalize(eye - pixels.position, dim=1)).sum(1) > 0.3
    torch.testing.assert_close(flash[lit], point[lit], rtol=1e-4, atol=1e-5)  # nothing is in its own shadow
    # straight ahead Burley's terms are one, and the highlight is D F / 4 with alpha = 1 / 4
    middle = pixels.normal[:, 2].argmax()
    expected = (0.5 / np.pi + 0.04 / (np.pi / 16) / 4) * intensity / (3 - 0.8) ** 2
    torch.testing.assert_close(flash[middle], expected, rtol=5e-3, atol=0)


def test_a_ball_casts_a_shadow_where_geometry_says():
    asset = {"face": plain([0.0, 0, -2], 1.5), "left": plain([0.0, 0, 0.5], 0.2)}
    camera, light = looking_at_origin(128), torch.tensor([1.5, 0, 2.5])
    pixels = assets.visible(asset, camera)
    share = assets.unshadowed(pixels, asset, light)
    # rays from points of the big ball to the light that pass the small ball's middle within its radius
    towards = torch.nn.functional.normalize(light - pixels.position, dim=1)
    centre = torch.tensor([0.0, 0, 0.5])
    along = ((centre - pixels.position) * towards).sum(1)
    miss = (centre - pixels.position - along[:, None] * towards).norm(dim=1)
    big = (pixels.part == 0) & ((pixels.normal * towards).sum(1) > 0.2)
    dark, clear = big & (miss < 0.17), big & (miss > 0.24)
    assert dark.sum() > 20 and share[dark].max() < 0.1 and share[clear].min() > 0.9


def test_parts_keep_their_own_maps():
    asset = {"face": plain([0.0, 0, -2], 1.5, 0.2), "right": plain([0.0, 0, 0.5], 0.2, 0.9, 0.3, 0.7)}
    pixels = assets.visible(asset, looking_at_origin())
    for part, values in ((0, (0.2, 0.0, 0.5)), (2, (0.9, 0.3, 0.7))):
        some = pixels.part == part
        for got, wanted in zip((pixels.diffuse, pixels.specular, pixels.roughness), values):
            torch.testing.assert_close(got[some], torch.full_like(got[some], wanted))


def sky(height=32):
    towards = relight.directions(height, 2 * height)
    return 0.4 + 0.3 * towards[..., 1:2] + 0.2 * towards[..., :1] * torch.tensor([1.0, 0.5, 0.0])


def test_projected_environment_lights_like_the_sum_over_its_pixels():
    environment = sky()
    height, width = environment.shape[:2]
    towards = relight.directions(height, width).view(-1, 3)
    area = (1 - towards[:, 1:2] ** 2).sqrt() * (np.pi / height) * (2 * np.pi / width)
    assert abs(float(area.sum()) - 4 * np.pi) < 0.02
    normals = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    summed = ((normals @ towards.T).clamp(min=0) * area[:, 0]) @ environment.view(-1, 3) / np.pi
    ours = mesh.sh_irradiance(normals[None], relight.project(environment))[0]
    torch.testing.assert_close(ours, summed, atol=5e-3, rtol=0)


def test_glossy_share_is_the_integral_of_the_lobe():
    generator = torch.Generator().manual_seed(0)
    light = torch.nn.functional.normalize(torch.randn(400_000, 3, generator=generator), dim=1)
    light[:, 2] = light[:, 2].abs()
    normal = torch.tensor([[0.0, 0, 1]])
    for rough in (0.5, 0.8):
        for degrees in (0, 45, 65):
            eye = torch.tensor([[np.sin(np.radians(degrees)), 0, np.cos(np.radians(degrees))]], dtype=torch.float32)
            shares = [torch.full((1, c), v) for c, v in ((3, 0.0), (1, 0.5), (1, rough))]
            integral = float(brdf.reflect(normal, light, eye, *shares)[:, 0].mean()) * 2 * np.pi
            factor, offset = relight.environment_share(torch.tensor([[rough]]), eye[:, 2:])
            assert abs(0.04 * float(factor) + float(offset) - integral) < 0.02


def test_an_environment_turns_with_the_asset_in_it():
    asset, camera = {"face": plain([0.0, 0, 0], 0.8)}, looking_at_origin(48)
    pictures = list(relight.turning_environment(asset, camera, sky(), 4))
    left, right = (p[:, :24].mean() for p in (pictures[0], pictures[0].flip(1)))
    assert right > left  # the bright side is on the right, and on the left half a turn later
    assert pictures[2][:, :24].mean() > pictures[2][:, 24:].mean()
    torch.testing.assert_close(pictures[2][..., 1].flip(1), pictures[0][..., 1], atol=0.06, rtol=0)


def test_environments_from_files(tmp_path):
    values = np.random.default_rng(0).uniform(0, 5, (8, 16, 3)).astype(np.float32)
    cv2.imwrite(str(tmp_path / "a.hdr"), values[..., ::-1])
    np.testing.assert_allclose(relight.read_environment(tmp_path / "a.hdr").numpy(), values, rtol=0.02, atol=0.03)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 8, 3), 188, np.uint8))
    np.testing.assert_allclose(relight.read_environment(tmp_path / "a.png").numpy(), 0.5029, atol=1e-3)
    (tmp_path / "b.hdr").write_bytes((tmp_path / "a.hdr").read_bytes()[:60])
    for name in ("b.hdr", "none.hdr"):
        with pytest.raises(InputError, match="--environment"):
            relight.read_environment(tmp_path / name)
