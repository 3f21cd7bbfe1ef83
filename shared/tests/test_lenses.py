"""Lenses against OpenCV's projections, and pictures straightened: dots end up where a pinhole sees them."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from recon4d import lenses
from recon4d.lenses import Lens, LensCamera

K = np.array([[150.0, 0, 81], [0, 153.0, 59], [0, 0, 1]])
SIZE = (160, 120)
LENSES = {
    "simple radial": Lens((-0.2,)),
    "radial": Lens((-0.2, 0.06)),
    "opencv": Lens((-0.25, 0.08, 0.02), tangential=(0.004, -0.003)),
    "full opencv": Lens((0.3, -0.1, 0.02), (0.4, 0.05, -0.01), (0.004, -0.003)),
    "thin prism": Lens((-0.1, 0.02), (), (0.002, 0.001), (0.01, -0.003, 0.004, 0.002)),
    "fisheye": Lens((0.05, -0.01, 0.004, -0.001), fisheye=True),
}


def by_opencv(lens, rays):
    """Pixels of rays (N, 3) as OpenCV projects them."""
    zero = np.zeros(3)
    if lens.fisheye:
        return cv2.fisheye.projectPoints(rays[:, None], zero, zero, K, np.array(lens.radial))[0][:, 0]
    k1, k2, k3 = (*lens.radial, 0, 0, 0)[:3]
    d1, d2, d3 = (*lens.rational, 0, 0, 0)[:3]
    return cv2.projectPoints(rays, zero, zero, K, np.array([k1, k2, *lens.tangential, k3, d1, d2, d3, *lens.prism]))[0][
        :, 0
    ]


@pytest.mark.parametrize("name", LENSES)
def test_projects_as_opencv_does(name):
    rays = np.random.default_rng(0).uniform((-0.5, -0.4, 0.9), (0.5, 0.4, 1.1), (200, 3))
    camera = LensCamera(K, *SIZE, LENSES[name])
    np.testing.assert_allclose(camera.project(rays), by_opencv(LENSES[name], rays), atol=1e-8)


@pytest.mark.parametrize("name", LENSES)
def test_dots_go_where_a_pinhole_sees_them(name):
    """Mean reprojection error of the straightened picture under 0.1 px."""
    lens = LENSES[name]
    dots = np.stack(np.meshgrid(np.arange(20.0, 150, 20), np.arange(15.0, 110, 15)), -1).reshape(-1, 2)
    rays = np.concatenate([dots, np.ones((len(dots), 1))], 1) @ np.linalg.inv(K).T
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]] + 0.5
    picture = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / 4) for u, v in by_opencv(lens, rays))
    picture = np.float32(picture)
    flat = lenses.straighten(picture, LensCamera(K, *SIZE, lens), LensCamera(K, *SIZE))
    errors = []
    for u, v in dots:
        near = ((x - u) ** 2 + (y - v) ** 2 < 36) * flat
        errors.append(np.hypot((near * x).sum() / near.sum() - u, (near * y).sum() / near.sum() - v))
    print(f"{name}: {np.mean(errors):.4f} px")
    assert np.mean(errors) < 0.1
    crooked = np.linalg.norm(by_opencv(lens, rays) - dots, axis=1).mean()
    assert crooked > 0.3  # the lens does bend


def test_a_folding_lens_shows_nothing_twice():
    """Beyond where a polynomial turns back, the straightened picture is empty, not a mirror of its middle."""
    lens = Lens((-0.3,))  # turns back at tan = 1.054, 46.5 degrees
    assert abs(np.degrees(lenses.reach(lens)) - 46.5) < 0.2
    wide = LensCamera(np.array([[40.0, 0, 80], [0, 40.0, 60], [0, 0, 1]]), *SIZE)
    camera = LensCamera(wide.K, *SIZE, lens)
    flat = lenses.straighten(np.full(SIZE[::-1], 1, np.float32), camera, wide)
    assert flat[60, 80] == 1 and flat[60, 140] == 0


def test_a_pinhole_is_left_alone():
    picture = np.zeros((*SIZE[::-1], 3), np.uint8)
    assert lenses.straighten(picture, LensCamera(K, *SIZE), LensCamera(K, *SIZE)) is picture


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_turns_are_those_of_exif(orientation):
    """A picture turned by our rotation of the camera is what Pillow makes of it."""
    stored = np.random.default_rng(1).integers(0, 255, SIZE[::-1]).astype(np.uint8)
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(image))
    camera = LensCamera(K, *SIZE)
    upright = lenses.upright(camera, orientation)
    turned = lenses.straighten(stored, camera, upright, lenses.turned(orientation))
    assert np.array_equal(turned, wanted)
