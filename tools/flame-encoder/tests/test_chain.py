"""The chain of frames against a dense solve."""

import pytest
import torch
from flame_encoder.tracker import chain


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8])
def test_solves_what_a_dense_solver_solves(n):
    g = torch.Generator().manual_seed(n)
    P = 5
    root = torch.randn(n, P, P + 2, generator=g, dtype=torch.float64)
    blocks = root @ root.mT
    smooth = torch.rand(P, generator=g, dtype=torch.float64) * 10
    right = torch.randn(n, P, 3, generator=g, dtype=torch.float64)
    S = torch.zeros(max(n - 2, 0), n, dtype=torch.float64)
    for i in range(n - 2):
        S[i, i : i + 3] = torch.tensor([1.0, -2.0, 1.0])
    given = blocks.clone()
    damped = blocks + 0.3 * torch.diag_embed(blocks.diagonal(dim1=1, dim2=2))
    dense = torch.block_diag(*damped) + torch.kron(S.T @ S, torch.diag(smooth))
    expected = torch.linalg.solve(dense, right.reshape(n * P, 3)).view(n, P, 3)
    torch.testing.assert_close(chain.solve(blocks, smooth, right, 0.3), expected)
    assert torch.equal(blocks, given)
