"""Barycentrics, depth and interpolation: against PyTorch3D, finite differences in float64, and kernel against torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recon4d import mesh
from recon4d.mesh.barycentric import barycentrics
from recon4d.mesh.rasterize import interpolate_torch

SIZE = (40, 56)


def scene(seed: int = 0, count: int = 12, batch: int = 1, dtype: torch.dtype = torch.float32):
    """Triangles a few pixels to half the image wide, in perspective: (B, V, 4) clip space, (F, 3)."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(batch, count, 1, 3, generator=generator) * torch.tensor([3.0, 2.5, 3.0])
    centre = centre + torch.tensor([-1.5, -1.25, -5.0])
    points = centre + (torch.rand(batch, count, 3, 3, generator=generator) - 0.5) * 1.6
    x, y, z = points.reshape(batch, -1, 3).to(dtype).unbind(-1)
    near, far = 0.5, 20.0
    pos = torch.stack([1.6 * x, 2 * y, (far + near) / (near - far) * z + 2 * far * near / (near - far), -z], -1)
    return pos, torch.arange(3 * count).view(-1, 3)


def pytorch3d_rasterize(pos: torch.Tensor, tri: torch.Tensor):
    """PyTorch3D on the same triangles, view depth as z: face ids, perspective-correct barycentrics, view depth."""
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes  # which a machine with a GPU may lack
    from pytorch3d.structures import Meshes

    height, width = SIZE
    short = min(SIZE)
    ndc = pos[..., :2] / pos[..., 3:]
    points = torch.cat([ndc * torch.tensor([-width / short, height / short]), pos[..., 3:]], -1)
    meshes = Meshes(list(points), [tri] * len(pos))
    ids, z, bary, _ = rasterize_meshes(meshes, SIZE, 0.0, 1, perspective_correct=True)
    offset = torch.arange(len(pos))[:, None, None] * len(tri)
    return torch.where(ids[..., 0] >= 0, ids[..., 0] - offset, -1), bary[..., 0, :], z[..., 0]


def test_agrees_with_pytorch3d():
    pos, tri = scene(1, 60, batch=2)
    rast = mesh.rasterize(pos, tri, SIZE)
    ids, bary, z = pytorch3d_rasterize(pos, tri)
    differ = rast.tri_id != ids
    assert differ.float().mean() < 1e-3 and rast.mask.float().mean() > 0.5
    both = ~differ & rast.mask
    # PyTorch3D adds 1e-8 to areas, which shows in the barycentrics of small triangles
    assert (rast.bary[both] - bary[both]).abs().max() < 1e-4
    w = (rast.bary[..., None] * pos[torch.arange(2)[:, None, None, None], tri[rast.tri_id.clamp(min=0)], 3:]).sum(
        (-1, -2)
    )
    torch.testing.assert_close(w[both], z[both], atol=1e-4, rtol=1e-4)
    for index in differ.nonzero().tolist():  # on an edge
        assert bary[tuple(index)].abs().min() < 1e-3 or rast.bary[tuple(index)].abs().min() < 1e-3


def test_gradients_agree_with_pytorch3d():
    pos, tri = scene(2, 8)
    colors = torch.rand(1, pos.shape[1], 3)
    weight = torch.rand(*SIZE, 3)
    ours = pos.clone().requires_grad_()
    rast = mesh.rasterize(ours, tri, SIZE)
    theirs = pos.clone().requires_grad_()
    ids, bary, _ = pytorch3d_rasterize(theirs, tri)
    same = (ids == rast.tri_id) & rast.mask
    (mesh.interpolate(colors, rast, tri)[0] * weight)[same[0]].sum().backward()
    ((bary[..., None] * colors[0][tri[ids.clamp(min=0)]]).sum(-2)[0] * weight)[same[0]].sum().backward()
    # attributes do not depend on z, and PyTorch3D's z is w
    torch.testing.assert_close(ours.grad[..., [0, 1, 3]], theirs.grad[..., [0, 1, 3]], atol=2e-3, rtol=2e-3)
    assert ours.grad.abs().max() > 1


def test_interpolation_reproduces_what_is_linear_in_space():
    pos, tri = scene(3, 40)
    rast = mesh.rasterize(pos, tri, SIZE)
    w = mesh.interpolate(pos, rast, tri)  # clip coordinates themselves: their NDC is the pixel
    x = (torch.arange(SIZE[1]) + 0.5) * 2 / SIZE[1] - 1
    y = 1 - (torch.arange(SIZE[0]) + 0.5) * 2 / SIZE[0]
    want = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    torch.testing.assert_close((w[0, ..., :2] / w[0, ..., 3:])[rast.mask[0]], want[rast.mask[0]], atol=1e-5, rtol=0)
    torch.testing.assert_close((w[..., 2] / w[..., 3])[rast.mask], rast.depth[rast.mask], atol=1e-5, rtol=0)
    assert (w[~rast.mask] == 0).all() and (rast.bary[~rast.mask] == 0).all() and (rast.depth[~rast.mask] == 1).all()


def test_depth_agrees_with_visibility_and_barycentrics_are_inside():
    pos, tri = scene(4, 80, batch=2)
    ids, depth = mesh.visibility(pos, tri, SIZE)
    rast = mesh.rasterize(pos, tri, SIZE)
    assert torch.equal(ids, rast.tri_id)
    torch.testing.assert_close(rast.depth, depth, atol=1e-5, rtol=0)
    inside = rast.bary[rast.mask]
    assert (inside > -1e-3).all()
    torch.testing.assert_close(inside.sum(-1), torch.ones(len(inside)), atol=1e-5, rtol=0)


def test_positions_and_attributes_pass_gradcheck_in_float64():
    pos, tri = scene(5, 9, dtype=torch.float64)
    ids, _ = mesh.visibility(pos, tri, (9, 11))
    assert (ids >= 0).sum() >= 10
    pos.requires_grad_()
    attr = torch.rand(1, pos.shape[1], 2, dtype=torch.float64, requires_grad=True)

    def render(pos, attr):
        rast = mesh.rasterize(pos, tri, (9, 11), tri_id=ids)
        return rast.bary, rast.depth, mesh.interpolate(attr, rast, tri)

    assert torch.autograd.gradcheck(render, (pos, attr), atol=1e-6)


def test_kernel_gradients_match_finite_differences():
    pos, tri = scene(6, 6)
    ids, _ = mesh.visibility(pos, tri, (20, 24))
    weight = torch.rand(1, 20, 24, 3)
    leaf = pos.clone().requires_grad_()
    rast = mesh.rasterize(leaf, tri, (20, 24), tri_id=ids)
    assert rast.bary.grad_fn.name() == "BarycentricsBackward"  # the kernel, not the torch version
    ((rast.bary * weight).sum() + rast.depth.sum()).backward()

    def loss(p):
        bary, depth = barycentrics(p, tri, ids)
        return (bary * weight.double()).sum() + depth.sum()

    used = tri[ids[ids >= 0].long().unique()].flatten()
    for vertex in used.tolist():
        for axis in range(4):
            step = torch.zeros_like(pos, dtype=torch.float64)
            step[0, vertex, axis] = 1e-6
            want = (loss(pos.double() + step) - loss(pos.double() - step)) / 2e-6
            torch.testing.assert_close(leaf.grad[0, vertex, axis].double(), want, atol=1e-3, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.sampled_from(["one", "all"]),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3]),
)
def test_kernels_equal_torch(seed, batch, shared, channels, threads):
    pos, tri = scene(seed, 10, batch)
    attr = torch.rand(1 if shared == "one" else batch, pos.shape[1], channels)
    ids, _ = mesh.visibility(pos, tri, SIZE)
    weight = torch.rand(batch, *SIZE, channels)
    results = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.float64):
            p, a = pos.to(dtype).clone().requires_grad_(), attr.to(dtype).clone().requires_grad_()
            rast = mesh.rasterize(p, tri, SIZE, tri_id=ids)
            out = mesh.interpolate(a, rast, tri)
            ((out * weight).sum() + (rast.depth * weight[..., 0]).sum()).backward()
            results.append((rast.bary, rast.depth, out, a.grad, p.grad))
    finally:
        torch.set_num_threads(before)
    for kernel, plain in zip(*results, strict=True):
        scale = plain.abs().max().clamp(min=1)
        assert (kernel - plain).abs().max() < 2e-5 * scale


def test_interpolate_with_another_topology():
    pos, tri = scene(7, 10)
    uv = torch.rand(1, 50, 2)
    uv_tri = torch.randint(0, 50, (10, 3))
    rast = mesh.rasterize(pos, tri, SIZE)
    torch.testing.assert_close(mesh.interpolate(uv, rast, uv_tri), interpolate_torch(uv, rast, uv_tri))


def test_screen_derivatives_match_finite_differences():
    pos, tri = scene(8, 10, dtype=torch.float64)
    attr = torch.rand(1, pos.shape[1], 3, dtype=torch.float64)
    ids, _ = mesh.visibility(pos, tri, SIZE)
    rast = mesh.rasterize(pos, tri, SIZE, tri_id=ids)
    got = mesh.screen_derivatives(attr, rast, pos, tri)
    for axis, (name, step) in enumerate((("x", -2e-4 / SIZE[1]), ("y", 2e-4 / SIZE[0]))):
        values = []
        for sign in (1, -1):  # moving the mesh one way is moving the pixel the other way
            moved = pos.clone()
            moved[..., axis] += sign * step * pos[..., 3]
            values.append(mesh.interpolate(attr, mesh.rasterize(moved, tri, SIZE, tri_id=ids), tri))
        want = (values[0] - values[1]) / 2e-4
        torch.testing.assert_close(
            got[..., axis], want, atol=1e-6, rtol=1e-5, msg=lambda m, name=name: f"d/d{name}: {m}"
        )


def test_triangles_across_the_near_plane_have_finite_attributes_and_gradients():
    floor = torch.tensor([[-5.0, -1, 5], [5, -1, 5], [0, -1, -50]])
    x, y, z = floor.unbind(-1)
    pos = torch.stack([x, y, -1.002 * z - 0.2, -z], -1)[None].requires_grad_()
    tri = torch.tensor([[0, 1, 2]])
    rast = mesh.rasterize(pos, tri, (32, 32))
    ground = mesh.interpolate(floor[None], rast, tri)
    assert rast.mask.any()
    torch.testing.assert_close(ground[rast.mask][:, 1], -torch.ones(int(rast.mask.sum())), atol=1e-4, rtol=0)
    ground.sum().backward()
    assert pos.grad.isfinite().all()


def test_errors():
    pos, tri = scene(9, 4)
    rast = mesh.rasterize(pos, tri, (8, 8))
    with pytest.raises(ValueError, match="give \\(1 or 1, vertices, channels\\)"):
        mesh.interpolate(torch.rand(12, 3), rast, tri)
    with pytest.raises(ValueError, match="do not exist"):
        mesh.interpolate(torch.rand(1, 5, 3), rast, tri)
    with pytest.raises(ValueError, match="do not exist"):
        mesh.rasterize(pos, tri, (8, 8), tri_id=torch.full((1, 8, 8), 99, dtype=torch.int32))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_the_cpu():
    pos, tri = scene(10, 20, batch=2)
    attr = torch.rand(1, pos.shape[1], 3)
    ids, _ = mesh.visibility(pos, tri, SIZE)
    grads = []
    for device in ("cpu", "cuda"):
        p = pos.to(device, copy=True).requires_grad_()
        rast = mesh.rasterize(p, tri.to(device), SIZE, tri_id=ids.to(device))
        mesh.interpolate(attr.to(device), rast, tri.to(device)).square().sum().backward()
        grads.append(p.grad.cpu())
    torch.testing.assert_close(grads[1], grads[0], atol=1e-3, rtol=1e-3)
