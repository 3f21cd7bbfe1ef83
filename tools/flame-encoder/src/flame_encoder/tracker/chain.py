"""Linear equations of a chain of frames: a block for each frame, tied to its neighbours by second differences."""

import torch
from torch import Tensor

STENCIL = (1.0, -2.0, 1.0)


def solve(blocks: Tensor, smooth: Tensor, right: Tensor) -> Tensor:
    """x (N, P, R) with (blocks + S' diag(smooth) S) x = right, S the second differences over frames.

    Pairs of frames touch only the next pair, so the matrix is block tridiagonal: block Cholesky, linear in N.

    Args:
        blocks: (N, P, P) positive definite. smooth: (P,) weights, not used for fewer than three frames.
        right: (N, P, R). All float64.
    """
    n, P = blocks.shape[:2]
    pairs = (n + 1) // 2
    near = torch.zeros(2 * pairs, 3, dtype=blocks.dtype)  # of S'S: diagonals 0, 1, 2
    for k in range(3):
        for j in range(k, 3):
            near[k : n - 2 + k, j - k] += STENCIL[k] * STENCIL[j] if n > 2 else 0.0
    D = torch.zeros(2 * pairs, P, P, dtype=blocks.dtype)
    D[:n] = blocks
    D[n:] = torch.eye(P, dtype=blocks.dtype)  # an odd clip ends with a frame that is tied to none
    D.diagonal(dim1=1, dim2=2).add_(near[:, :1] * smooth)
    b = torch.zeros(2 * pairs, P, right.shape[2], dtype=blocks.dtype)
    b[:n] = right
    b = b.view(pairs, 2 * P, -1)

    def pair(aa: Tensor, ab: Tensor, ba: Tensor, bb: Tensor) -> Tensor:
        return torch.cat([torch.cat([aa, ab], 1), torch.cat([ba, bb], 1)])

    tie = torch.diag(smooth)
    none = torch.zeros_like(tie)
    factors: list[Tensor] = []
    couplings: list[Tensor] = []
    y: list[Tensor] = []
    for k in range(pairs):
        i = 2 * k
        block, value = pair(D[i], near[i, 1] * tie, near[i, 1] * tie, D[i + 1]), b[k]
        if k:
            block, value = block - couplings[-1].T @ couplings[-1], value - couplings[-1].T @ y[-1]
        L = torch.linalg.cholesky(block)
        factors.append(L)
        y.append(torch.linalg.solve_triangular(L, value, upper=False))
        ahead = pair(near[i, 2] * tie, none, near[i + 1, 1] * tie, near[i + 1, 2] * tie)
        couplings.append(torch.linalg.solve_triangular(L, ahead, upper=False))
    x = [torch.linalg.solve_triangular(factors[-1].T, y[-1], upper=True)]
    for k in range(pairs - 2, -1, -1):
        x.append(torch.linalg.solve_triangular(factors[k].T, y[k] - couplings[k] @ x[-1], upper=True))
    return torch.stack(x[::-1]).view(2 * pairs, P, -1)[:n]
