"""The reflection model against NumPy written from the papers, and against what any such model has to keep."""

import numpy as np
import pytest
import torch
from eyeball_relight import brdf
from scipy.integrate import quad


def unit(n, generator):
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=1)


@pytest.fixture
def surface():
    generator = torch.Generator().manual_seed(0)
    n, light, eye = (unit(500, generator) for _ in range(3))
    diffuse = torch.rand(500, 3, generator=generator, dtype=torch.float64)
    specular, rough = torch.rand(2, 500, 1, generator=generator, dtype=torch.float64)
    return n, light, eye, diffuse, specular, 0.35 + 0.6 * rough


def written_from_the_papers(n, light, eye, diffuse, specular, roughness):
    h = light + eye
    h /= np.linalg.norm(h)
    nl, nv, nh, lh = n @ light, n @ eye, n @ h, light @ h
    if nl <= 0 or nv <= 0:
        return np.zeros(3)
    fd90 = 0.5 + 2 * lh**2 * roughness
    fd = diffuse / np.pi * (1 + (fd90 - 1) * (1 - nl) ** 5) * (1 + (fd90 - 1) * (1 - nv) ** 5)
    a = max(roughness**2, 0.1)
    tangent = np.tan(np.arccos(nh))
    d = a**2 / (np.pi * nh**4 * (a**2 + tangent**2) ** 2)  # Walter et al. 2007, equation 33

    def g1(c):
        return 2 / (1 + np.sqrt(1 + a**2 * np.tan(np.arccos(c)) ** 2))

    f0 = 0.08 * specular
    f = f0 + (1 - f0) * (1 - lh) ** 5
    return (fd + d * f * g1(nl) * g1(nv) / (4 * nl * nv)) * nl


def test_reflect_is_what_the_papers_say(surface):
    ours = brdf.reflect(*surface).numpy()
    n, light, eye, diffuse, specular, rough = (x.numpy() for x in surface)
    for i in range(len(n)):
        theirs = written_from_the_papers(n[i], light[i], eye[i], diffuse[i], specular[i, 0], rough[i, 0])
        np.testing.assert_allclose(ours[i], theirs, rtol=2e-3, atol=1e-6)


def test_flash_is_reflect_with_light_at_the_eye(surface):
    n, _, eye, *material = surface
    torch.testing.assert_close(brdf.reflect_flash(n, eye, *material), brdf.reflect(n, eye, eye, *material))


def test_no_more_light_leaves_than_arrives():
    """Hemispherical reflectance of a white glossy surface, by quadrature, at several angles of the light."""
    generator = torch.Generator().manual_seed(1)
    eye = unit(200_000, generator)
    eye[:, 2] = eye[:, 2].abs()
    n = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand_as(eye)
    for degrees in (0, 40, 70):
        light = torch.tensor([np.sin(np.radians(degrees)), 0, np.cos(np.radians(degrees))]).expand_as(eye)
        shares = [torch.full((1, c), v, dtype=torch.float64) for c, v in ((3, 0.0), (1, 1.0), (1, 0.5))]
        # reflect holds the cosine of the light; by reciprocity the eye's is wanted
        brightness = brdf.reflect(n, light, eye, *shares)[:, 0] / light[0, 2] * eye[:, 2]
        assert 0.02 < float(brightness.mean()) * 2 * np.pi < 1.0


def test_a_turned_away_surface_is_black_and_gradients_are_finite():
    n = torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0]], requires_grad=True)
    eye = torch.tensor([[0.0, 0, 1]]).expand(3, 3)
    colour = brdf.reflect_flash(n, eye, torch.full((3, 3), 0.5), torch.full((3, 1), 0.5), torch.full((3, 1), 0.3))
    colour.sum().backward()
    assert colour[0].min() > 0 and colour[1:].abs().max() == 0 and n.grad.isfinite().all()


def test_encoding_round_trip():
    values = torch.linspace(0, 1, 100)
    torch.testing.assert_close(brdf.to_picture(brdf.to_linear(values)), values, atol=1e-3, rtol=0)


def test_ambient_of_a_constant_room():
    light = torch.zeros(9, 3)
    light[0] = 2.0
    n = unit(10, torch.Generator().manual_seed(2)).float()
    expected = 0.3 * np.log1p(np.exp(2.0 / np.sqrt(4 * np.pi)))
    room = brdf.ambient(n, light, torch.zeros(9), 0.3)
    torch.testing.assert_close(room, torch.full((10, 3), float(expected)))
    dim = torch.zeros(9)
    dim[0] = -np.sqrt(4 * np.pi)
    torch.testing.assert_close(brdf.ambient(n, light, dim, 0.3), room * np.exp(-1))


def test_slope_of_ggx_normalises():
    """The integral of D cos over the hemisphere is one; D from a highlight without Fresnel and shadowing at nl = 1."""
    a2 = 0.4**4

    def integrand(theta):
        c = np.cos(theta)
        return a2 / (np.pi * (c * c * (a2 - 1) + 1) ** 2) * c * 2 * np.pi * np.sin(theta)

    assert abs(quad(integrand, 0, np.pi / 2)[0] - 1) < 1e-6
    straight = [torch.tensor([[0.0, 0, 1]], dtype=torch.float64)] * 3
    shares = [torch.full((1, c), v, dtype=torch.float64) for c, v in ((3, 0.0), (1, 1.0), (1, 0.4))]
    # straight on: G = 1, F = 0.08, so D = 4 f / F
    assert abs(4 * float(brdf.reflect(*straight, *shares)[0, 0]) / 0.08 - 1 / (np.pi * a2)) < 1e-6
