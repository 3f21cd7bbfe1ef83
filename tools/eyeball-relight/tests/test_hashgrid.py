"""The hash grid's kernels against plain torch in float64, and against finite differences."""

import pytest
import torch
from eyeball_relight import hashgrid
from torch.autograd import gradcheck

RESOLUTION = hashgrid.resolutions(4, 40, 5)


@pytest.fixture
def grid():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(300, 3, generator=generator, dtype=torch.float64)
    x[:4] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [-0.3, 0.5, 1.2], [0.25, 0.5, 0.75]])
    table = torch.randn(5, 512, 2, generator=generator, dtype=torch.float64)
    weight = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), table.requires_grad_(), weight.requires_grad_()


def first_and_second(encode, x, table, weight):
    """Values, and gradients of a loss on values and on the gradient by x: an eikonal term, as training has it."""
    out = torch.tanh(encode(x, table, RESOLUTION) @ weight).sum(1)
    (normal,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    loss = ((normal.square().sum(1) + 1e-6).sqrt() - 1).square().sum() + out.square().sum()
    return [out, normal, *torch.autograd.grad(loss, (x, table, weight))]


def test_levels_hash_where_corners_do_not_fit():
    assert RESOLUTION[0] == 4 and RESOLUTION[-1] == 40
    assert (RESOLUTION[0] + 1) ** 3 <= 512 < (RESOLUTION[-1] + 1) ** 3


def test_values_and_both_gradients_are_those_of_torch(grid):
    ours, theirs = (first_and_second(f, *grid) for f in (hashgrid.encode, hashgrid.encode_torch))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_second_gradient_by_finite_differences(grid):
    x, table, _ = grid
    inner = x.detach()[4:12].clone().requires_grad_()  # not on a cell's border, where the second derivative jumps
    probe = torch.randn(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def slope(points, entries):
        out = hashgrid.encode(points, entries, RESOLUTION) @ probe
        return torch.autograd.grad(out.sum(), points, create_graph=True)[0]

    small = table.detach()[:, :, :].clone().requires_grad_()
    assert gradcheck(slope, (inner, small), eps=1e-6, atol=1e-4, fast_mode=True)


def test_float32_is_close_to_float64(grid):
    x, table, weight = (t.detach().float().requires_grad_() for t in grid)
    ours = first_and_second(hashgrid.encode, x, table, weight)
    theirs = first_and_second(hashgrid.encode, *(t.detach().requires_grad_() for t in grid))
    for a, b in zip(ours[:2], theirs[:2]):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_levels_left_out_are_zero(grid):
    x, table, _ = grid
    few = hashgrid.encode(x, table, RESOLUTION[:2])
    assert few.shape == (300, 10) and few[:, 4:].abs().max() == 0
    torch.testing.assert_close(few[:, :4], hashgrid.encode(x, table, RESOLUTION)[:, :4])


def test_the_gradient_does_not_jump_between_cells():
    """Smoothstep: the slope is zero at cell borders from both sides."""
    table = torch.randn(1, 512, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    border = torch.tensor([[0.25 - 1e-9, 0.4, 0.4], [0.25 + 1e-9, 0.4, 0.4]], dtype=torch.float64, requires_grad=True)
    hashgrid.encode(border, table, [4]).sum().backward()
    assert border.grad[:, 0].abs().max() < 1e-6
