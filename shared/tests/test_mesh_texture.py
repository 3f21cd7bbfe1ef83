"""Texture lookups against a float64 loop over texels, v up as in OBJ files."""

import math

import numpy as np
import pytest
import torch
from recon4d import mesh
from recon4d.mesh.texture import level_of_detail


def lookup(tex: np.ndarray, u: float, v: float, wrap: str) -> np.ndarray:
    """Bilinear lookup of one point, straight from the definition."""
    height, width, _ = tex.shape
    x, y = u * width - 0.5, (1 - v) * height - 0.5
    if wrap == "clamp":  # coordinates stop at the centre of the border texel
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    total = np.zeros(tex.shape[-1])
    for column in (math.floor(x), math.floor(x) + 1):
        for row in (math.floor(y), math.floor(y) + 1):
            weight = (1 - abs(x - column)) * (1 - abs(y - row))
            if wrap == "wrap":
                texel = tex[row % height, column % width]
            elif 0 <= row < height and 0 <= column < width:
                texel = tex[row, column]
            else:
                texel = np.zeros(tex.shape[-1])
            total += weight * texel
    return total


@pytest.mark.parametrize("wrap", ["clamp", "wrap", "zero"])
@pytest.mark.parametrize("shape", [(5, 7), (1, 4), (8, 8)])
def test_bilinear_equals_the_definition(wrap, shape):
    tex = torch.rand(2, *shape, 3, dtype=torch.float64)
    uv = torch.rand(2, 6, 5, 2, dtype=torch.float64) * 3 - 1
    got = mesh.texture(tex, uv, wrap=wrap)
    for index in np.ndindex(2, 6, 5):
        want = lookup(tex[index[0]].numpy(), *uv[index].tolist(), wrap)
        np.testing.assert_allclose(got[index].numpy(), want, atol=1e-12)


def test_v_points_up():
    tex = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])[None]  # top row 1 2, bottom row 3 4
    corners = torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0]])[None, None]
    assert mesh.texture(tex, corners)[0, 0, :, 0].tolist() == [1, 2, 3, 4]


def test_a_texture_shared_by_the_batch_and_a_mask():
    tex, uv = torch.rand(1, 4, 4, 2), torch.rand(3, 5, 6, 2)
    mask = torch.rand(3, 5, 6) < 0.5
    got = mesh.texture(tex, uv, mask=mask)
    want = mesh.texture(tex.expand(3, -1, -1, -1), uv)
    assert torch.equal(got[mask], want[mask]) and (got[~mask] == 0).all()


@pytest.mark.parametrize("mode", ["bilinear", "trilinear"])
def test_gradients(mode):
    generator = torch.Generator().manual_seed(0)
    tex = torch.rand(1, 6, 9, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    uv = (torch.rand(2, 3, 3, 2, dtype=torch.float64, generator=generator) * 0.8 + 0.1).requires_grad_()
    da = (torch.rand(2, 3, 3, 2, 2, dtype=torch.float64, generator=generator) * 0.5).requires_grad_()
    function = (
        (lambda t, c, d: mesh.texture(t, c, mode, d)) if mode == "trilinear" else (lambda t, c, d: mesh.texture(t, c))
    )
    inputs = (tex, uv, da) if mode == "trilinear" else (tex, uv, da.detach())
    assert torch.autograd.gradcheck(function, inputs, eps=1e-7, atol=1e-5)


def test_mip_levels_average_areas():
    tex = torch.rand(1, 8, 12, 3, dtype=torch.float64)
    levels = mesh.mip_levels(tex)
    assert [tuple(level.shape[1:3]) for level in levels] == [(8, 12), (4, 6), (2, 3), (1, 1)]
    want = tex.view(1, 4, 2, 6, 2, 3).mean((2, 4))
    torch.testing.assert_close(levels[1], want)
    torch.testing.assert_close(levels[2].mean((1, 2)), tex.mean((1, 2)))
    assert len(mesh.mip_levels(tex, 1)) == 2
    assert mesh.mip_levels(torch.rand(1, 5, 3, 1))[1].shape == (1, 2, 1, 1)


def test_level_of_detail_is_the_longer_axis_of_the_footprint():
    generator = torch.Generator().manual_seed(1)
    da = torch.randn(50, 2, 2, generator=generator, dtype=torch.float64) / 8
    jacobian = da * torch.tensor([32.0, 16.0])[:, None]
    want = torch.linalg.svdvals(jacobian)[:, 0].log2()
    torch.testing.assert_close(level_of_detail(da, 16, 32), want)


def test_trilinear_blends_the_two_nearest_levels():
    tex = torch.rand(1, 16, 16, 3, dtype=torch.float64)
    uv = torch.rand(2, 4, 5, 2, dtype=torch.float64)
    levels = mesh.mip_levels(tex)
    for want_level in (-2.0, 0.0, 0.3, 1.0, 2.75, 4.0, 9.0):
        da = torch.eye(2, dtype=torch.float64).expand(2, 4, 5, 2, 2) * 2**want_level / 16
        got = mesh.texture(tex, uv, "trilinear", da)
        at = min(max(want_level, 0), 4)
        low = min(int(at), 3)
        one, two = mesh.texture(levels[low], uv), mesh.texture(levels[low + 1], uv)
        torch.testing.assert_close(got, one + (at - low) * (two - one))
    torch.testing.assert_close(mesh.texture(tex, uv, "trilinear", da, mips=levels), got)


def test_trilinear_of_a_minified_checkerboard_is_grey():
    checks = ((torch.arange(256)[:, None] + torch.arange(256)) % 2).float()[None, ..., None]
    square = torch.tensor([[[-0.9, -0.9, 0, 1], [0.9, -0.9, 0, 1], [0.9, 0.9, 0, 1], [-0.9, 0.9, 0, 1]]])
    uv = torch.tensor([[[0.0, 0], [1, 0], [1, 1], [0, 1]]])
    tri = torch.tensor([[0, 1, 2], [0, 2, 3]])
    rast = mesh.rasterize(square, tri, (30, 30))
    at = mesh.interpolate(uv, rast, tri)
    smooth = mesh.texture(checks, at, "trilinear", mesh.screen_derivatives(uv, rast, square, tri), mask=rast.mask)
    rough = mesh.texture(checks, at, mask=rast.mask)
    assert (smooth[rast.mask] - 0.5).abs().max() < 0.01 < (rough[rast.mask] - 0.5).abs().max()


def test_each_image_of_a_batch_has_its_own_mips():
    tex, uv = torch.rand(2, 8, 8, 1), torch.rand(2, 3, 3, 2)
    da = torch.rand(2, 3, 3, 2, 2) * 0.4
    got = mesh.texture(tex, uv, "trilinear", da, "wrap")
    for i in range(2):
        one = slice(i, i + 1)
        torch.testing.assert_close(got[one], mesh.texture(tex[one], uv[one], "trilinear", da[one], "wrap"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "cubic"}, "'cubic'"),
        ({"wrap": "mirror"}, "'mirror'"),
        ({"mode": "trilinear"}, "needs uv_da"),
    ],
)
def test_errors(change, words):
    with pytest.raises(ValueError, match=words):
        mesh.texture(torch.rand(1, 4, 4, 1), torch.rand(1, 2, 2, 2), **change)
    with pytest.raises(ValueError, match="do not match"):
        mesh.texture(torch.rand(4, 4, 1), torch.rand(1, 2, 2, 2))
