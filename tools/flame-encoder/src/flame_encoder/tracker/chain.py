"""Linear equations of a chain of frames: a block for each frame, tied to its neighbours by second differences."""

import torch
from torch import Tensor

STENCIL = (1.0, -2.0, 1.0)


def solve(blocks: Tensor, smooth: Tensor, right: Tensor, damping: float = 0.0) -> Tensor:
    """x (N, P, R) with (blocks + S' diag(smooth) S) x = right, S the second differences over frames.

    Pairs of frames touch only the next pair, so the matrix is block tridiagonal: block Cholesky, linear in N. One
    factor of each pair is kept, twice the memory of the blocks.

    Args:
        blocks: (N, P, P) positive definite. smooth: (P,) weights, not used for fewer than three frames.
        right: (N, P, R). All float64.
        damping: the blocks' diagonals are taken larger by this share of them.
    """
    n, P = blocks.shape[:2]
    pairs = (n + 1) // 2
    near = torch.zeros(2 * pairs, 3, dtype=blocks.dtype)  # of S'S: diagonals 0, 1, 2
    for k in range(3):
        for j in range(k, 3):
            near[k : n - 2 + k, j - k] += STENCIL[k] * STENCIL[j] if n > 2 else 0.0
    tie = torch.diag(smooth)
    none = torch.zeros_like(tie)

    def pair(aa: Tensor, ab: Tensor, ba: Tensor, bb: Tensor) -> Tensor:
        return torch.cat([torch.cat([aa, ab], 1), torch.cat([ba, bb], 1)])

    def own(i: int) -> Tensor:
        if i == n:  # an odd clip ends with a frame that is tied to none
            return torch.eye(P, dtype=blocks.dtype)
        block = blocks[i].clone()
        block.diagonal().mul_(1 + damping).add_(near[i, 0] * smooth)
        return block

    def ahead(i: int) -> Tensor:
        """What ties frames i and i + 1 to the next two."""
        return pair(near[i, 2] * tie, none, near[i + 1, 1] * tie, near[i + 1, 2] * tie)

    factors: list[Tensor] = []
    y: list[Tensor] = []
    coupling = torch.empty(0)
    for i in range(0, 2 * pairs, 2):
        block = pair(own(i), near[i, 1] * tie, near[i, 1] * tie, own(i + 1))
        value = torch.nn.functional.pad(right[i : i + 2].flatten(0, 1), (0, 0, 0, P if i + 1 == n else 0))
        if i:
            block, value = block - coupling.T @ coupling, value - coupling.T @ y[-1]
        L = torch.linalg.cholesky(block)
        factors.append(L)
        y.append(torch.linalg.solve_triangular(L, value, upper=False))
        coupling = torch.linalg.solve_triangular(L, ahead(i), upper=False)
    x = [torch.linalg.solve_triangular(factors[-1].T, y[-1], upper=True)]
    for k in range(pairs - 2, -1, -1):
        told = torch.linalg.solve_triangular(factors[k], ahead(2 * k) @ x[-1], upper=False)
        x.append(torch.linalg.solve_triangular(factors[k].T, y[k] - told, upper=True))
    return torch.stack(x[::-1]).view(2 * pairs, P, -1)[:n]
