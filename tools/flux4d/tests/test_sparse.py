"""Sparse convolutions are torch's dense ones where voxels are, forward and backward."""

import pytest
import torch
from flux4d import sparse
from torch.nn.functional import conv3d, conv_transpose3d

SIDE = 8


@pytest.fixture
def points():
    """Points in about a fifth of 8 x 8 x 8 voxels, several in some of them."""
    generator = torch.Generator().manual_seed(0)
    return SIDE * torch.rand(130, 3, generator=generator, dtype=torch.float64)


def grid_of(points, levels=3):
    return sparse.voxelize(points, 1.0, torch.zeros(3), torch.full((3,), float(SIDE)), levels)


def dense(features, coordinates, side):
    volume = features.new_zeros(side, side, side, features.shape[1])
    return volume.index_put(tuple(coordinates.T), features).permute(3, 0, 1, 2)


def occupied(volume, coordinates):
    return volume[(slice(None), *coordinates.T)].T


def check(level, out_level, pairs, weight, reference):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(len(level), weight.shape[1], generator=generator, dtype=torch.float64, requires_grad=True)
    arriving = torch.randn(len(out_level), weight.shape[2], generator=generator, dtype=torch.float64)
    found = sparse.convolve(features, weight, pairs, len(out_level))
    expected = reference(features)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found, (features, weight), arriving)
    theirs = torch.autograd.grad(expected, (features, weight), arriving)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)
    assert all(gradient.abs().max() > 0 for gradient in ours)


def test_keys_and_order():
    coordinates = torch.tensor([[0, 0, 0], [-5, 7, 100], [300, -400, 2], [-524288, 524287, 0]])
    assert torch.equal(sparse.from_keys(sparse.keys(coordinates)), coordinates)
    assert sparse.keys(torch.tensor([[0, 9, 9], [1, -9, -9]])).diff() > 0


def test_voxels_hold_their_points(points):
    outside = torch.tensor([[-0.1, 1, 1], [1, 8.0, 1], [1, 1, 1e6]], dtype=torch.float64)
    grid = grid_of(torch.cat([points, outside]))
    assert grid.inside.tolist() == [True] * 130 + [False] * 3
    assert torch.equal(grid.levels[0].coordinates[grid.rows], points.long())
    for fine, coarse in zip(grid.levels, grid.levels[1:]):
        assert torch.equal(coarse.coordinates, torch.unique(fine.coordinates // 2, dim=0))
    values = torch.randn(130, 4, dtype=torch.float64)
    means = sparse.mean_by_row(values, grid.rows, len(grid.levels[0]))
    for row in (0, 7, len(means) - 1):
        torch.testing.assert_close(means[row], values[grid.rows == row].mean(0))


def test_same_resolution(points):
    level = grid_of(points).levels[0]
    weight = torch.randn(27, 3, 5, dtype=torch.float64, requires_grad=True)

    def reference(features):
        kernel = weight.reshape(3, 3, 3, 3, 5).permute(4, 3, 0, 1, 2)
        return occupied(conv3d(dense(features, level.coordinates, SIDE)[None], kernel, padding=1)[0], level.coordinates)

    check(level, level, level.same, weight, reference)


def test_to_half_the_resolution_and_back(points):
    fine, coarse = grid_of(points).levels[:2]
    weight = torch.randn(8, 3, 5, dtype=torch.float64, requires_grad=True)
    kernel = lambda: weight.reshape(2, 2, 2, 3, 5)  # noqa: E731

    def down(features):
        volume = dense(features, fine.coordinates, SIDE)[None]
        return occupied(conv3d(volume, kernel().permute(4, 3, 0, 1, 2), stride=2)[0], coarse.coordinates)

    def up(features):
        volume = dense(features, coarse.coordinates, SIDE // 2)[None]
        return occupied(conv_transpose3d(volume, kernel().permute(3, 4, 0, 1, 2), stride=2)[0], fine.coordinates)

    check(fine, coarse, fine.down, weight, down)
    check(coarse, fine, [(parent, child) for child, parent in fine.down], weight, up)


def test_unet_of_any_order_of_points(points):
    torch.manual_seed(0)
    net = sparse.UNet(4, [6, 8, 10]).double()
    values = torch.randn(130, 4, dtype=torch.float64)
    shuffle = torch.randperm(130)
    out = []
    for order in (torch.arange(130), shuffle):
        grid = grid_of(points[order])
        mean = sparse.mean_by_row(values[order], grid.rows, len(grid.levels[0]))
        out.append(net(mean, grid.levels)[grid.rows])
    assert out[0].shape == (130, 6)
    torch.testing.assert_close(out[0][shuffle], out[1])


def test_no_points_at_all():
    grid = grid_of(torch.full((3, 3), -1.0, dtype=torch.float64))
    assert [len(level) for level in grid.levels] == [0, 0, 0]
    net = sparse.UNet(4, [6, 8, 10]).double()
    assert net(torch.zeros(0, 4, dtype=torch.float64), grid.levels).shape == (0, 6)
