"""Antialiasing against exact and supersampled coverage, and its gradients against finite differences of coverage."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recon4d import mesh

QUAD = torch.tensor([[0, 1, 2], [0, 2, 3]])


def quad(left: float, top: float, right: float, bottom: float, size: int = 16, dtype=torch.float32) -> torch.Tensor:
    """Clip positions (1, 4, 4) of a rectangle given in pixels of a size x size image."""
    xy = torch.tensor([[left, bottom], [right, bottom], [right, top], [left, top]], dtype=dtype)
    ndc = torch.stack([xy[:, 0] * 2 / size - 1, 1 - xy[:, 1] * 2 / size], -1)
    return torch.cat([ndc, torch.zeros(4, 1, dtype=dtype), torch.ones(4, 1, dtype=dtype)], -1)[None]


def coverage(pos: torch.Tensor, tri: torch.Tensor, size: int) -> torch.Tensor:
    """The antialiased silhouette (size, size)."""
    rast = mesh.rasterize(pos, tri, (size, size))
    return mesh.antialias(rast.mask[..., None].to(pos.dtype), rast, pos, tri)[0, ..., 0]


@settings(max_examples=30, deadline=None)
@given(st.floats(1.05, 4), st.floats(1.05, 4), st.floats(11, 14.9), st.floats(11, 14.9))
def test_an_axis_aligned_rectangle_gets_its_exact_coverage(left, top, right, bottom):
    corners = quad(left, top, right, bottom)
    pos = torch.cat([corners, corners.mean(1, keepdim=True)], 1)
    fan = torch.tensor([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])  # the pixels along a side see its triangle
    got = coverage(pos, fan, 16)
    i = np.arange(16)
    across = np.clip(np.minimum(i + 1, right) - np.maximum(i, left), 0, 1)
    down = np.clip(np.minimum(i + 1, bottom) - np.maximum(i, top), 0, 1)
    want = np.outer(down, across)
    apart = lambda low, high: np.minimum(abs(i + 0.5 - low), abs(i + 0.5 - high)) > 3.5  # noqa: E731
    clear = apart(left, right)[None] | apart(top, bottom)[:, None]
    np.testing.assert_allclose(got.numpy()[clear], want[clear], atol=2e-4)


def test_slanted_edges_come_close_to_supersampling():
    pos = torch.tensor([[[-0.8, -0.7, 0, 1], [0.7, -0.5, 0, 1], [-0.1, 0.8, 0, 1]]])
    tri = torch.tensor([[0, 1, 2]])
    fine = (mesh.visibility(pos, tri, (1024, 1024))[0] >= 0).float().view(32, 32, 32, 32).mean((1, 3))
    smooth = coverage(pos, tri, 32)
    jagged = (mesh.visibility(pos, tri, (32, 32))[0] >= 0).float()[0]
    assert (smooth - fine).abs().mean() < 0.2 * (jagged - fine).abs().mean()
    assert abs(smooth.sum() - fine.sum()) < 0.01 * fine.sum()


def test_gradients_equal_the_change_of_coverage():
    tri = torch.tensor([[0, 1, 2]])
    pos = torch.tensor([[[-0.83, -0.71, 0, 1], [0.72, -0.53, 0.2, 1.1], [-0.11, 0.84, 0.1, 0.9]]])
    weight = (
        torch.linspace(0, 1, 64)[None] + torch.linspace(0, 2, 64)[:, None] ** 2
    )  # smooth, so that corners matter little

    def supersampled(p):
        fine = (mesh.visibility(p, tri, (2048, 2048))[0] >= 0).float()
        return (fine.view(64, 32, 64, 32).mean((1, 3)) * weight).sum()

    leaf = pos.clone().requires_grad_()
    (coverage(leaf, tri, 64) * weight).sum().backward()
    assert (leaf.grad[..., 2] == 0).all()
    for vertex in range(3):
        for axis in (0, 1, 3):
            step = torch.zeros_like(pos)
            step[0, vertex, axis] = 0.02
            want = (supersampled(pos + step) - supersampled(pos - step)) / 0.04
            assert abs(leaf.grad[0, vertex, axis] - want) < 0.05 * leaf.grad.abs().max()


def test_gradients_are_those_of_the_blend():
    pos = quad(3.3, 4.2, 11.7, 12.6, dtype=torch.float64)
    ids, _ = mesh.visibility(pos, QUAD, (16, 16))
    color = torch.rand(1, 16, 16, 2, dtype=torch.float64)

    def render(p, c):
        rast = mesh.rasterize(p, QUAD, (16, 16), tri_id=ids)
        return mesh.antialias(c, rast, p, QUAD)

    assert torch.autograd.gradcheck(render, (pos.requires_grad_(), color.requires_grad_()), eps=1e-7, atol=1e-5)


def test_inner_edges_are_left_alone_and_occluding_edges_are_not():
    pos = quad(2.3, 2.3, 13.6, 13.6)
    rast = mesh.rasterize(pos, QUAD, (16, 16))
    color = torch.rand(1, 16, 16, 3)
    out = mesh.antialias(color, rast, pos, QUAD)
    assert torch.equal(out[0, 4:12, 4:12], color[0, 4:12, 4:12])  # the diagonal between the triangles is no silhouette
    # a small square in front of a large one
    both = torch.cat([pos + torch.tensor([0, 0, 0.5, 0]), quad(5.25, 5.25, 10.75, 10.75)], 1)
    tri = torch.cat([QUAD, QUAD + 4])
    rast = mesh.rasterize(both, tri, (16, 16))
    front = (rast.tri_id >= 2).float()[..., None]
    got = mesh.antialias(front, rast, both, tri)[0, 8, :, 0]
    torch.testing.assert_close(got[4:12], torch.tensor([0, 0.75, 1, 1, 1, 1, 0.75, 0]), atol=1e-4, rtol=0)


def test_a_fold_is_a_silhouette():
    # two triangles that share an edge and lie on the same side of it, the second behind the first
    pos = torch.tensor([[[0.1, -0.9, 0.0, 1], [0.1, 0.9, 0, 1], [-0.9, 0, -0.2, 1], [-0.5, 0, 0.4, 1]]])
    tri = torch.tensor([[0, 1, 2], [1, 0, 3]])
    assert mesh.edge_neighbours(tri)[0].tolist() == [3, -1, -1]
    row = coverage(pos, tri, 32)[16]
    torch.testing.assert_close(row[16:19], torch.tensor([1.0, 0.6, 0.0]), atol=1e-3, rtol=0)  # edge at x = 17.6


def test_edge_neighbours_of_a_closed_mesh_and_of_a_fan():
    tri = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    neighbours = mesh.edge_neighbours(tri)
    for face, row in zip(tri.tolist(), neighbours.tolist(), strict=True):
        for e in range(3):
            (want,) = {0, 1, 2, 3} - set(face)
            assert row[e] == want
    fan = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]])  # three triangles on an edge
    assert all(row[0] >= 0 for row in mesh.edge_neighbours(fan).tolist())
    assert mesh.edge_neighbours(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 3)


def test_batches_empty_images_and_vertices_behind_the_camera():
    pos = torch.cat([quad(2.3, 3.4, 9.7, 11.2), quad(40.0, 40, 50, 50)])
    rast = mesh.rasterize(pos, QUAD, (16, 16))
    color = torch.rand(2, 16, 16, 1)
    out = mesh.antialias(color, rast, pos, QUAD)
    assert torch.equal(out[1], color[1]) and not torch.equal(out[0], color[0])
    one = mesh.rasterize(pos[:1], QUAD, (16, 16))
    assert torch.equal(mesh.antialias(color[:1], one, pos[:1], QUAD, mesh.edge_neighbours(QUAD)), out[:1])
    behind = pos[:1].clone()
    behind[0, 0] = torch.tensor([0.3, 0.2, -1.0, -0.5])
    behind.requires_grad_()
    rast = mesh.rasterize(behind, QUAD, (16, 16))
    mesh.antialias(color[:1], rast, behind, QUAD).sum().backward()
    assert behind.grad.isfinite().all()
    with pytest.raises(ValueError, match="color has shape"):
        mesh.antialias(color, one, pos[:1], QUAD)


def test_a_silhouette_can_be_fitted():
    target = coverage(quad(4.2, 5.1, 12.4, 13.3, 24), QUAD, 24)
    pos = quad(6.0, 6.0, 15.0, 15.0, 24)
    shift = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.02)
    for _ in range(60):
        moved = pos + torch.nn.functional.pad(shift, (0, 2))
        loss = (coverage(moved, QUAD, 24) - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    want = torch.tensor([(8.3 - 10.5) * 2 / 24, -(9.2 - 10.5) * 2 / 24])
    torch.testing.assert_close(shift.detach(), want, atol=0.03, rtol=0)
