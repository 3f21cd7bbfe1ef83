"""Normals, tangents, spherical harmonics, shading and UV baking against explicit formulas and SciPy."""

import math

import numpy as np
import pytest
import torch
from recon4d import mesh
from scipy.special import sph_harm_y


def tetrahedron() -> tuple[torch.Tensor, torch.Tensor]:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    return vertices, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def test_normals_point_outwards():
    vertices, tri = tetrahedron()
    want = torch.tensor([[0, 0, -1], [0, -1, 0], [-1, 0, 0], [1 / math.sqrt(3)] * 3], dtype=torch.float64)
    torch.testing.assert_close(mesh.face_normals(vertices, tri), want)
    areas = mesh.face_normals(vertices, tri, unit=False).norm(dim=-1) / 2
    torch.testing.assert_close(areas, torch.tensor([0.5, 0.5, 0.5, math.sqrt(3) / 2], dtype=torch.float64))
    at_origin = mesh.vertex_normals(vertices, tri)[0]
    torch.testing.assert_close(at_origin, -torch.ones(3, dtype=torch.float64) / math.sqrt(3))


def test_vertex_normals_of_a_sphere_batches_and_gradients():
    theta, phi = torch.meshgrid(torch.linspace(0.4, 2.7, 20), torch.linspace(0, 6.2, 40), indexing="ij")
    vertices = torch.stack([theta.sin() * phi.cos(), theta.cos(), theta.sin() * phi.sin()], -1).view(-1, 3)
    i = (torch.arange(19)[:, None] * 40 + torch.arange(39)).view(-1)
    tri = torch.cat([torch.stack([i, i + 1, i + 41], -1), torch.stack([i, i + 41, i + 40], -1)])
    normals = mesh.vertex_normals(torch.stack([vertices, 3 * vertices]), tri)
    assert ((normals[0] * vertices).sum(-1).abs() > 0.99).all()
    torch.testing.assert_close(normals[1], normals[0], atol=1e-5, rtol=0)
    small, faces = tetrahedron()
    assert torch.autograd.gradcheck(lambda v: mesh.vertex_normals(v, faces), small.requires_grad_())


def test_degenerate_triangles_give_zero_and_finite_gradients():
    vertices = torch.zeros(3, 3, requires_grad=True)
    tri = torch.tensor([[0, 1, 2]])
    for function in (mesh.face_normals, mesh.vertex_normals, mesh.tangent_frames):
        out = function(vertices, tri)
        assert (out == 0).all()
        (grad,) = torch.autograd.grad(out.sum(), vertices)
        assert grad.isfinite().all()


def test_tangents_follow_texture_coordinates():
    # a plane x = 2u - v, y = u + 3v in space: dP/du = (2, 1, 0), dP/dv = (-1, 3, 0)
    uv = torch.rand(30, 2, dtype=torch.float64)
    vertices = torch.stack([2 * uv[:, 0] - uv[:, 1], uv[:, 0] + 3 * uv[:, 1], torch.zeros(30).double()], -1)
    tri = torch.arange(30).view(-1, 3)
    tangent, bitangent = mesh.tangents(vertices, tri, uv, tri)
    torch.testing.assert_close(tangent, (torch.tensor([2.0, 1, 0]) / math.sqrt(5)).double().expand(10, 3))
    torch.testing.assert_close(bitangent, (torch.tensor([-1.0, 3, 0]) / math.sqrt(10)).double().expand(10, 3))


@pytest.mark.parametrize("with_uv", [False, True])
def test_tangent_frames_are_rotations_that_turn_with_the_mesh(with_uv):
    vertices, tri = tetrahedron()
    uv = (torch.rand(4, 2, dtype=torch.float64), tri) if with_uv else ()
    frames = mesh.tangent_frames(vertices, tri, *uv)
    torch.testing.assert_close(frames.transpose(-1, -2) @ frames, torch.eye(3).double().expand(4, 3, 3))
    torch.testing.assert_close(torch.linalg.det(frames), torch.ones(4).double())
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    turn = turn * torch.linalg.det(turn)
    torch.testing.assert_close(mesh.tangent_frames(vertices @ turn.T, tri, *uv), turn @ frames)


def test_sh_basis_equals_scipy():
    directions = torch.nn.functional.normalize(torch.randn(100, 3, dtype=torch.float64), dim=-1)
    x, y, z = directions.numpy().T
    theta, phi = np.arccos(z), np.arctan2(y, x)
    want = []
    for degree in range(3):
        for order in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(order), theta, phi) * (-1) ** order  # without Condon and Shortley's sign
            want.append(value.real if order == 0 else math.sqrt(2) * (value.imag if order < 0 else value.real))
    np.testing.assert_allclose(mesh.sh_basis(directions).numpy(), np.stack(want, -1), atol=1e-12)


def test_sh_irradiance_equals_the_integral_over_the_hemisphere():
    generator = torch.Generator().manual_seed(0)
    sh = torch.randn(9, 3, dtype=torch.float64, generator=generator)
    z, weight = np.polynomial.legendre.leggauss(40)
    phi = (np.arange(80) + 0.5) * 2 * np.pi / 80
    ring = np.sqrt(1 - z**2)[:, None]
    light = np.stack([ring * np.cos(phi), ring * np.sin(phi), np.broadcast_to(z[:, None], (40, 80))], -1).reshape(-1, 3)
    weight = torch.from_numpy(np.repeat(weight * 2 * np.pi / 80, 80))
    light = torch.from_numpy(light)
    radiance = mesh.sh_basis(light) @ sh
    normals = torch.nn.functional.normalize(torch.randn(1, 5, 4, 3, dtype=torch.float64, generator=generator), dim=-1)
    cosine = (normals @ light.T).clamp(min=0)
    want = (cosine * weight) @ radiance / math.pi
    torch.testing.assert_close(mesh.sh_irradiance(normals, sh), want, atol=5e-3, rtol=0)
    batched = mesh.sh_irradiance(normals.expand(2, -1, -1, -1), torch.stack([sh, 2 * sh]))
    torch.testing.assert_close(batched[1], 2 * batched[0])
    ambient = torch.zeros(9, 1, dtype=torch.float64)
    ambient[0] = math.sqrt(4 * math.pi)
    torch.testing.assert_close(mesh.sh_irradiance(normals, ambient), torch.ones(1, 5, 4, 1, dtype=torch.float64))


def test_shade_equals_the_formula_pixel_by_pixel():
    generator = torch.Generator().manual_seed(2)
    albedo = torch.rand(2, 3, 4, 3, dtype=torch.float64, generator=generator)
    normals = torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=generator)
    lights = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    colors = torch.rand(5, 3, dtype=torch.float64, generator=generator)
    view = torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=generator)
    got = mesh.shade(
        albedo, normals, ambient=0.1, directions=lights, colors=colors, view=view, specular=0.4, shininess=7
    )
    unit = lambda vector: vector / np.linalg.norm(vector)  # noqa: E731
    for b, r, c in np.ndindex(2, 3, 4):
        n, v = unit(normals[b, r, c].numpy()), unit(view[b, r, c].numpy())
        want = albedo[b, r, c].numpy() * 0.1
        for light, color in zip(lights[b].numpy(), colors.numpy(), strict=True):
            d = unit(light)
            if n @ d > 0:
                mirrored = 2 * (n @ d) * n - d
                want = want + albedo[b, r, c].numpy() * (n @ d) * color + 0.4 * max(mirrored @ v, 0) ** 7 * color
        np.testing.assert_allclose(got[b, r, c].numpy(), want, atol=1e-10)


def test_shade_options_and_gradients():
    normals = torch.tensor([0.0, 0, -2]).expand(1, 2, 2, 3)
    facing = torch.tensor([[0.0, 0, 1]])
    assert (mesh.shade(1.0, normals, directions=facing) == 0).all()
    lit = mesh.shade(1.0, normals, directions=facing, view=torch.tensor([0.0, 0, 1]), two_sided=True)
    torch.testing.assert_close(lit, torch.ones_like(lit))
    mask = torch.tensor([[[True, False], [False, True]]])
    assert torch.equal(mesh.shade(0.5, normals, ambient=1.0, mask=mask)[..., 0], 0.5 * mask)
    with pytest.raises(ValueError, match="two_sided"):
        mesh.shade(1.0, normals, two_sided=True)
    with pytest.raises(ValueError, match="sh has shape"):
        mesh.shade(1.0, normals, sh=torch.rand(4, 3))
    inputs = [
        torch.rand(s, dtype=torch.float64, requires_grad=True) for s in ((1, 2, 2, 3), (1, 2, 2, 3), (2, 3), (9, 3))
    ]
    assert torch.autograd.gradcheck(
        lambda a, n, d, s: mesh.shade(
            a, n, directions=d, sh=s, view=torch.tensor([0.3, 0.2, 1.0]).double(), specular=0.5
        ),
        inputs,
    )
    zero = torch.zeros(1, 1, 1, 3, requires_grad=True)
    mesh.shade(1.0, zero, directions=facing, view=torch.ones(3), specular=1.0).sum().backward()
    assert zero.grad.isfinite().all()


# UV baking


def test_bake_uv_finds_the_surface_point_of_every_texel():
    vt = torch.tensor([[0.0, 0], [0.5, 0], [0.5, 1], [0, 1]])  # the left half of the texture
    ft = torch.tensor([[0, 1, 2], [0, 2, 3]])
    texels = mesh.bake_uv(vt, ft, (6, 8))
    assert texels.mask[:, :4].all() and not texels.mask[:, 4:].any()
    uv = texels.interpolate(vt, ft)
    want = torch.stack(torch.meshgrid((torch.arange(4) + 0.5) / 8, 1 - (torch.arange(6) + 0.5) / 6, indexing="xy"), -1)
    torch.testing.assert_close(uv[:, :4], want, atol=1e-6, rtol=0)
    assert (texels.bary[~texels.mask] == 0).all()


def test_baking_and_looking_up_again_gives_the_attribute_back():
    vertices = torch.randn(2, 4, 3)
    vt = torch.tensor([[0.1, 0.1], [0.9, 0.2], [0.8, 0.9], [0.2, 0.8]])
    tri = torch.tensor([[0, 1, 2], [0, 2, 3]])
    texels = mesh.bake_uv(vt, tri, (128, 128))
    tex = mesh.fill_gutter(texels.interpolate(vertices, tri), texels.mask)
    inside = torch.tensor([[0.5, 0.4], [0.4, 0.6], [0.6, 0.5]])
    got = mesh.texture(tex, inside.expand(2, 1, 3, 2))[:, 0]
    # the same points by solving for their barycentrics
    for i, point in enumerate(inside):
        for face in tri:
            system = torch.cat([vt[face].T, torch.ones(1, 3)])
            weight = torch.linalg.solve(system, torch.cat([point, torch.ones(1)]))
            if (weight >= 0).all():
                torch.testing.assert_close(got[:, i], (vertices[:, face] * weight[:, None]).sum(1), atol=2e-2, rtol=0)


def test_fill_gutter_takes_the_nearest_texel():
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[2, 1] = mask[4, 5] = True
    tex = torch.zeros(5, 6, 1)
    tex[2, 1], tex[4, 5] = 3, 7
    filled = mesh.fill_gutter(tex, mask)[..., 0]
    assert filled[0, 0] == filled[2, 2] == 3 and filled[3, 5] == filled[4, 4] == 7
    near = mesh.fill_gutter(tex, mask, distance=1)[..., 0]
    assert near[2, 2] == 3 and near[0, 0] == 0
    assert torch.equal(mesh.fill_gutter(tex, torch.zeros_like(mask)), tex)
