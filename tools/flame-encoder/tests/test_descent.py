"""The damped step with shared unknowns against numpy's dense solve of the whole matrix, and what it descends to."""

import numpy as np
import pytest
import torch
from flame_encoder.tracker import descent
from flame_encoder.tracker.descent import Asked, Equations

P, G = 4, 3


def problem(n):
    """Equations of random least squares: N frames of 12 residuals each, and the whole J and r, of q then g."""
    rng = np.random.default_rng(n)
    by_q, by_g, r = rng.standard_normal((n, 12, P)), rng.standard_normal((n, 12, G)), rng.standard_normal((n, 12))
    J = np.zeros((n, 12, n * P + G))
    for i in range(n):
        J[i, :, i * P : (i + 1) * P], J[i, :, n * P :] = by_q[i], by_g[i]
    J, flat = J.reshape(n * 12, -1), r.reshape(-1)
    blocks = [by_q.mT @ by_q, by_q.mT @ by_g, np.einsum("nri,nrj->ij", by_g, by_g), np.einsum("nri,nr->ni", by_q, r)]
    slope = np.einsum("nri,nr->i", by_g, r)
    return Equations(*(torch.from_numpy(block) for block in (*blocks, slope))), J, flat


def dense(J, r, damping, tie=None):
    """The step by numpy alone."""
    H = J.T @ J
    H = H + damping * np.diag(np.diag(H))
    if tie is not None:
        H[: len(tie), : len(tie)] += tie
    return -np.linalg.solve(H, J.T @ r)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("damping", [0.0, 1e-2, 10.0])
def test_a_step_is_the_dense_one(n, damping):
    equations, J, r = problem(n)
    dg, dq = descent.step(equations, damping)
    expected = dense(J, r, damping)
    np.testing.assert_allclose(np.r_[dq.numpy().ravel(), dg.numpy()], expected, rtol=1e-9, atol=1e-12)


def test_tied_frames_and_frames_alone():
    """Frames tied by second differences; and no shared unknowns."""
    n = 5
    equations, J, r = problem(n)
    smooth = torch.tensor([0.5, 3.0, 20.0, 1.0], dtype=torch.float64)
    second = np.zeros((n - 2, n))
    for i in range(n - 2):
        second[i, i : i + 3] = 1, -2, 1
    tie = np.kron(second.T @ second, np.diag(smooth.numpy()))
    dg, dq = descent.step(equations, 0.1, smooth)
    np.testing.assert_allclose(np.r_[dq.numpy().ravel(), dg.numpy()], dense(J, r, 0.1, tie), rtol=1e-9, atol=1e-12)
    alone = Equations(
        equations.own, equations.border[..., :0], equations.shared[:0, :0], equations.gradient, equations.slope[:0]
    )
    dg, dq = descent.step(alone, 0.1, smooth)
    assert not len(dg)
    np.testing.assert_allclose(dq.numpy().ravel(), dense(J[:, : n * P], r, 0.1, tie), rtol=1e-9, atol=1e-12)


def test_information_is_that_of_the_shared_unknowns():
    equations, J, _ = problem(3)
    covariance = np.linalg.inv(J.T @ J)[-G:, -G:]
    np.testing.assert_allclose(equations.information().numpy(), np.linalg.inv(covariance), rtol=1e-9)


def test_descends_to_the_least_squares():
    """From a start with too little damping, too, of a problem whose residuals bend; the cost never rises."""
    _, J, r = problem(2)
    costs = []

    def residuals(g, q):
        x = torch.cat([q.flatten(), g])
        off = torch.from_numpy(J) @ (x + 0.3 * x**3) + torch.from_numpy(r)
        return off, torch.from_numpy(J) * (1 + 0.9 * x**2)

    def cost(g, q, rows):
        assert rows == "chosen"
        return float(residuals(g, q)[0].square().sum())

    def equations(g, q, rows):
        off, slope = residuals(g, q)
        H, c = slope.T @ slope, slope.T @ off
        own = torch.stack([H[:P, :P], H[P : 2 * P, P : 2 * P]])
        border = torch.stack([H[:P, 2 * P :], H[P : 2 * P, 2 * P :]])
        return Equations(own, border, H[2 * P :, 2 * P :], c[: 2 * P].view(2, P), c[2 * P :])

    asked = Asked(lambda g, q: "chosen", cost, equations)
    start = torch.full((G,), 2.0, dtype=torch.float64), torch.full((2, P), -2.0, dtype=torch.float64)
    end = descent.descend(asked, *start, 1e-9, 50, arrived=lambda _, g, q: costs.append(cost(g, q, "chosen")))
    straight = np.linalg.lstsq(J, -r, rcond=None)[0]  # of x + 0.3 x^3
    found = torch.cat([end.q.flatten(), end.g]).numpy()
    np.testing.assert_allclose(found + 0.3 * found**3, straight, atol=1e-3)
    assert costs == sorted(costs, reverse=True) and end.cost == costs[-1] and end.steps == len(costs) < 50
    assert descent.descend(asked, *start, 1e-2, 0).equations is None
