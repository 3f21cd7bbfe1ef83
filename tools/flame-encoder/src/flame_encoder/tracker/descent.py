"""The Levenberg-Marquardt method where some unknowns are shared by all frames or pictures, and each has its own.

The normal equations are blocks of the frames, bordered by the shared columns:

    [ C   B' ] [ dg ]     [ c ]
    [ B   A  ] [ dq ] = - [ a ],    A block diagonal, or a chain (`chain.py`)

The frames are eliminated first, which leaves the Schur complement C - B' A^-1 B for the shared ones (Triggs et al.,
"Bundle adjustment - a modern synthesis", 1999, section 6.1). Damping enlarges the diagonals of A and C by a share of
them (Marquardt 1963).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from flame_encoder.tracker import chain

TRIES = 6  # dampings of one step
LEAST = 1e-9  # damping
SETTLED = 1e-4  # of the cost: what falls less has arrived


@dataclass(frozen=True, eq=False)
class Equations:
    """own: A (N, P, P). border: B (N, P, G). shared: C (G, G). gradient: a (N, P). slope: c (G,). All float64."""

    own: Tensor
    border: Tensor
    shared: Tensor
    gradient: Tensor
    slope: Tensor

    def information(self) -> Tensor:
        """(G, G) inverse covariance of the shared unknowns whatever the others are, of frames that are not tied."""
        inner = torch.linalg.solve(self.own, self.border)
        answer: Tensor = self.shared - (self.border.mT @ inner).sum(0)
        return answer


def step(equations: Equations, damping: float, smooth: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """dg (G,) and dq (N, P) of the damped equations.

    Args:
        smooth: (P,) weights of second differences over the frames, which tie them (`chain.solve`).
    """
    e = equations
    N, P, G = e.border.shape
    right = torch.cat([e.gradient[..., None], e.border], 2)
    if smooth is None:
        solved = torch.linalg.solve(e.own + damping * torch.diag_embed(e.own.diagonal(dim1=1, dim2=2)), right)
    else:
        solved = chain.solve(e.own, smooth, right, damping)
    solved, border = solved.reshape(N * P, 1 + G), e.border.reshape(N * P, G)
    schur = e.shared + damping * torch.diag(e.shared.diagonal()) - border.T @ solved[:, 1:]
    dg = torch.linalg.solve(schur, border.T @ solved[:, 0] - e.slope)
    return dg, -(solved[:, 0] + solved[:, 1:] @ dg).view(N, P)


Rows = TypeVar("Rows")


@dataclass(frozen=True, eq=False)
class Asked(Generic[Rows]):
    """A problem with unknowns g (G,) and q (N, P).

    choose: what a step takes as it is, such as which points of the head the landmarks are. cost: a sum of squares, or
    robust. equations: J'J and J'r of it at (g, q); with G = 0 columns where g stays.
    """

    choose: Callable[[Tensor, Tensor], Rows]
    cost: Callable[[Tensor, Tensor, Rows], float]
    equations: Callable[[Tensor, Tensor, Rows], Equations]


@dataclass(frozen=True, eq=False)
class Descended:
    """Where it ended: unknowns, cost, the number of steps, and the equations of the last one; None without a step."""

    g: Tensor
    q: Tensor
    cost: float
    steps: int
    equations: Equations | None


def descend(
    asked: Asked[Rows],
    g: Tensor,
    q: Tensor,
    damping: float,
    most: int,
    smooth: Tensor | None = None,
    arrived: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Descended:
    """Steps until the cost stops falling; damping shrinks on success and grows on failure.

    Args:
        most: steps. smooth: see `step`. arrived: is told the number of each step and where it led.
    """
    rows = asked.choose(g, q)
    cost = asked.cost(g, q, rows)
    count, equations = 0, None
    for count in range(1, most + 1):
        equations = asked.equations(g, q, rows)
        fell = False
        for _ in range(TRIES):
            dg, dq = step(equations, damping, smooth)
            new_g, new_q = g + dg if len(dg) else g, q + dq
            new_cost = asked.cost(new_g, new_q, rows)
            if np.isfinite(new_cost) and new_cost < cost:
                fell = True
                break
            damping *= 10
        if not fell:
            break
        g, q, damping = new_g, new_q, max(damping / 5, LEAST)
        rows = asked.choose(g, q)
        before, cost = cost, asked.cost(g, q, rows)
        if arrived is not None:
            arrived(count, g, q)
        if abs(before - cost) < SETTLED * abs(cost):
            break
    return Descended(g, q, cost, count, equations)
