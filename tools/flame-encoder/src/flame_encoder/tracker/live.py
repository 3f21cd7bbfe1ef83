"""One frame after another from dense landmarks, in a few milliseconds each: what `stream` does once it is calibrated.

Per frame about 60 unknowns and 1,000 residuals, solved by the Gauss-Newton method from where the frames before were
going (Wood et al., "3D face reconstruction with dense landmarks", 2022, section 3.2, fit all their frames likewise).
Identity and focal length are given; they may change a little from frame to frame while another thread refines them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from recon4d.head.dense import upright_of, view_terms_of
from torch import Tensor

from flame_encoder.tracker import beliefs, jacobians
from flame_encoder.tracker.points import FACING, Rig
from flame_encoder.tracker.problem import Problem, share_of

STEPS = 3  # for a frame that follows another
FIRST_STEPS = 12  # for one that follows none
GOES_ON = 0.6  # of the motion between the last two frames
LOOSE = 0.35  # of the smoothness over time of the offline tracker, whose frames know what comes after, too
DAMPING = 1e-3


@dataclass(frozen=True, eq=False)
class Person:
    """Arrays of a rig for one identity g (S + 1,), float64: shared unknowns that the points are already moved by."""

    g: np.ndarray
    size: float
    points: tuple[np.ndarray, ...]
    joints: np.ndarray
    middle: np.ndarray


def person(rig: Rig, g: Tensor) -> Person:
    """The rig's dense points for an identity."""
    assert rig.dense is not None
    S = rig.columns.n_shape
    template, basis, weights, posedirs, joint_basis = rig.dense.arrays
    shape = g[:S].numpy().astype(np.float32)
    template = template + basis[..., :S] @ shape
    joints = rig.dense.joints.numpy() + joint_basis[..., :S] @ shape
    basis, joint_basis = np.ascontiguousarray(basis[..., S:]), np.ascontiguousarray(joint_basis[..., S:])
    own = (template, basis, weights, posedirs, joint_basis)
    return Person(g.numpy().copy(), float(rig.size(g)), own, joints.astype(np.float64), template[:-2].mean(0))


@dataclass(frozen=True, eq=False)
class Solver:
    """What does not change from frame to frame: numbers of a `Problem` with dense landmarks, as arrays."""

    rig: Rig
    centre: np.ndarray
    indices: np.ndarray
    gaps: np.ndarray
    eyes: tuple[np.ndarray, np.ndarray]
    sigma: np.ndarray  # (n + gaps + 2,) of the distance between the eyes
    evidence: float
    prior: np.ndarray  # (P,) precision about zero
    smooth: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    bound: float
    normals: np.ndarray
    bias: np.ndarray

    @staticmethod
    def of(problem: Problem) -> "Solver":
        """Those of a problem with dense landmarks."""
        dense = problem.rig.head.dense
        assert problem.dense and dense is not None
        gaps, eyes = problem.compared.gaps.numpy(), problem.compared.eyes
        return Solver(
            rig=problem.rig,
            centre=problem.centre.double().numpy(),
            indices=dense.indices.numpy(),
            gaps=gaps,
            eyes=(eyes[0].numpy(), eyes[1].numpy()),
            sigma=problem.sigma.numpy(),
            evidence=problem.evidence,
            prior=problem.prior.numpy(),
            smooth=LOOSE**2 * problem.smooth.numpy(),
            lower=problem.lower.numpy(),
            upper=problem.upper.numpy(),
            bound=problem.bound_weight,
            normals=problem.rig.dense_normals.numpy(),
            bias=dense.bias.numpy(),
        )

    def believed(self, face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and precisions (P,) of a frame's unknowns before its dense points (478, 2), pixels, are fitted."""
        return beliefs.joined(self.prior, beliefs.told(self.rig, face))

    def compared(self, points: np.ndarray) -> np.ndarray:
        """As `Compared.of`, of one frame: (n + 2, 2, ...) to (n + gaps + 2, 2, ...)."""
        gaps = points[self.gaps[:, 0]] - points[self.gaps[:, 1]]
        middles = np.stack([points[eye].mean(0) for eye in self.eyes])
        return np.concatenate([points[:-2], gaps, points[-2:] - middles])


def solve(
    solver: Solver,
    who: Person,
    seen: np.ndarray,
    unit: float,
    start: np.ndarray,
    expected: np.ndarray | None,
    believed: tuple[np.ndarray, np.ndarray],
    steps: int,
) -> tuple[np.ndarray, float]:
    """The unknowns (P,) of one frame, and the mean reprojection error in pixels of the points that face the camera.

    Args:
        seen: (n + 2, 2) dense points and irises, pixels, NaN where unknown. unit: what errors are measured by, pixels.
        start: (P,). expected: (P,) where the frames before were going; None for a frame that follows none.
        believed: mean and precision (P,) of the unknowns, whatever the points say.
    """
    known = np.isfinite(seen).all(-1)
    gaps = known[solver.gaps].all(-1)
    irises = [known[-2] and known[solver.eyes[0]].all(), known[-1] and known[solver.eyes[1]].all()]
    weight = np.concatenate([known[:-2], gaps, irises]) / (solver.sigma * unit)
    observed = solver.compared(np.nan_to_num(seen))
    q, (mean, precision) = start.copy(), believed
    n = len(solver.normals)
    for _ in range(steps):
        pixels, J = _projected(solver, who, q)
        share, beside = _seen_from(solver, who, q)
        target = observed - solver.compared(beside)
        r = (solver.compared(pixels) - target) * (weight * share)[:, None]
        robust = np.sqrt(solver.evidence) * 9 / (9 + (r**2).sum(-1))
        scale = (weight * share * robust).astype(np.float32)
        J = (solver.compared(J) * scale[:, None, None]).reshape(-1, J.shape[-1])
        over = np.clip(q - solver.upper, 0, None) - np.clip(solver.lower - q, 0, None)
        diagonal = precision + solver.bound * (over != 0)
        gradient = precision * (q - mean) + solver.bound * over
        if expected is not None:
            diagonal = diagonal + solver.smooth
            gradient = gradient + solver.smooth * (q - expected)
        q -= jacobians.solve_step(J, (r * robust[:, None]).astype(np.float32).ravel(), diagonal, gradient, DAMPING)
    q = np.clip(q, solver.lower, solver.upper)
    pixels, _ = _projected(solver, who, q, derive=False)
    share, beside = _seen_from(solver, who, q)
    error = np.linalg.norm(pixels[:n] + beside[:n] - observed[:n], axis=1)
    trusted = (share[:n] > 0.5) & known[:n]
    return q, float(error[trusted].mean()) if trusted.any() else float("nan")


def _projected(solver: Solver, who: Person, q: np.ndarray, derive: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The points (n + 2, 2) in pixels, and their derivatives (n + 2, 2, P)."""
    parts = {name: part.numpy() for name, part in solver.rig.columns.split(torch.from_numpy(q)[None]).items()}
    relative = np.concatenate([parts["expression"], parts["eyelids"]], 1)
    coefficients = who.size * relative
    pixels, _, J = jacobians.project(
        parts["rotation"],
        FACING.double().numpy(),
        parts["place"],
        parts["jaw"],
        parts["gaze"],
        float(np.exp(who.g[-1])),
        solver.centre,
        coefficients.astype(np.float32),
        relative.astype(np.float32),
        who.size,
        np.zeros(0, np.float32),
        who.points,
        (who.joints + who.points[4] @ coefficients[0])[None],
        np.arange(len(who.points[0]))[None],
        2 * solver.rig.columns.eyelids,
        shared=False,
        frame=derive,
    )
    return pixels[0], J[0] if derive else J


def _seen_from(solver: Solver, who: Person, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `Rig.seen_from`, of one frame: weights (n + gaps + 2,) and (n + 2, 2) pixels beside their places."""
    R = jacobians.rotations(q[None, :3])[0][0] @ FACING.double().numpy()
    centre = np.array([q[3], q[4], 1.0]) * np.exp(q[5]) + R @ who.middle
    towards = -R.T @ (centre / np.linalg.norm(centre))
    share = share_of(solver.normals @ towards)
    gaps = share[solver.gaps].min(-1)
    irises = [share[eye].mean() for eye in solver.eyes]
    unit = solver.rig.eye_distance * np.exp(who.g[-1]) / centre[2]
    beside = solver.bias @ view_terms_of(towards) @ upright_of(R) * unit
    return np.concatenate([share, gaps, irises]), beside
