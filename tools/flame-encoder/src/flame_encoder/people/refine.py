"""The second stage of encoding: a few steps of the tracker's solver on landmarks, from what the network says.

The network's answer is where the solver starts and what it believes beforehand, as surely as the network is known to
be (`identity.Measured`); a network of which nobody measured that is believed as much as an average person. The data
terms (points, lids, lips, irises) are the tracker's. Pictures of one person are solved together: each has its own pose,
expression and focal length, and all share one identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import roma
import torch
from recon4d.formats.landmarks import to_ibug, to_irises
from recon4d.head import HeadModel
from recon4d.rotations import from_6d
from torch import Tensor

from flame_encoder.encoder.crop import CropView, focal_of, image_pose, place, vector_pose
from flame_encoder.encoder.losses import UNITS
from flame_encoder.encoder.vector import Layout, has_eyelids, head_arguments
from flame_encoder.tracker import descent
from flame_encoder.tracker.descent import Asked, Equations
from flame_encoder.tracker.observations import Observations
from flame_encoder.tracker.points import FACING, Rig, eye_rotation
from flame_encoder.tracker.problem import Options, Problem

STEPS = 20  # of the solver at most
DOUBT = 1.5  # photographs are not drawn: the network strays more on them than was measured
AWAY = 1.05  # metres, from where faces are photographed, most likely
LOOSEST = {"rotation": 0.3, "place": 30.0}  # of the head's pose little is believed beforehand
LEAST = {"expression": 0.05, "eyelids": 0.1, "jaw": 0.02, "gaze": 0.05}  # nothing is surer than this


@dataclass(frozen=True, eq=False)
class Belief:
    """A normal distribution: mean (n,) and precision (n, n), float64."""

    mean: Tensor
    precision: Tensor

    def cost(self, x: Tensor) -> float:
        off = x - self.mean
        return float(off @ self.precision @ off)

    def gradient(self, x: Tensor) -> Tensor:
        return self.precision @ (x - self.mean)


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture: what the solver knows of it, where it stands, and what is believed of its own unknowns.

    start: (1 + P,) log focal length, then the tracker's unknowns of a frame, float64. belief: of the latter.
    """

    problem: Problem
    start: Tensor
    belief: Belief


def rig_of(head: HeadModel, layout: Layout) -> Rig:
    """The tracker's rig with the unknowns that a layout has room for."""
    if not has_eyelids(head, layout.expression):
        head = replace(head, eyelids=None)
    return Rig(head, layout.shape, layout.expression)


def seen(points: np.ndarray, size: tuple[int, int], name: str = "") -> Observations:
    """One picture's landmarks (n, 2) of any layout that the library knows, as the tracker sees a frame."""
    dense = points[None, :, :2] if points.shape[0] == 478 else None
    return Observations(
        names=np.array([name]),
        landmarks=to_ibug(points[None]).astype(np.float32),
        valid=np.ones(1, bool),
        irises=to_irises(points[None]).astype(np.float32),
        image_size=size,
        fps=30.0,
        dense=None if dense is None else dense.astype(np.float32),
    )


def picture(
    rig: Rig,
    layout: Layout,
    view: CropView,
    vector: Tensor,
    crop: Tensor,
    sigma: Tensor | None,
    observed: Observations,
    focal: float | None = None,
) -> Picture:
    """Prepare one picture.

    Args:
        vector: (layout.size,) the network's answer. crop: (3,) where it looked. sigma: (layout.size,) how sure it is.
        focal: pixels, where it is known.
    """
    # A crop says more of the focal length than its own size: faces are photographed from about a metre away.
    likely = (
        AWAY
        / float(place(view, torch.zeros(1, 3))[0, 2])
        * float(focal_of(view, crop[None]))
        / max(observed.image_size)
    )
    # The identity's own prior knows how heads differ in size.
    options = Options(focal=focal, focal_prior=likely, size_sigma=1.0)
    problem = Problem(rig, observed, options)
    problem.frame_prior = torch.zeros_like(problem.frame_prior)  # what is believed is said here instead
    problem.shared_prior = torch.cat([torch.zeros(rig.columns.n_shape), problem.shared_prior[-1:].float()]).double()
    parts = layout.split(vector[None])
    if sigma is None:
        sigma = layout.join({name: torch.full((1, n), UNITS[name]) for name, n in layout.lengths.items()})[0]
    sure = layout.split(DOUBT * sigma[None])
    head = rig.head
    width, height = observed.image_size
    K = torch.tensor([[problem.focal_guess, 0, width / 2], [0, problem.focal_guess, height / 2], [0, 0, 1]])
    R, t = image_pose(head, view, from_6d(parts["global_rot"]), parts["transl"], crop[None], K)
    arguments = head_arguments(head, parts)
    size = float(rig.size(torch.cat([_padded(parts["shape"][0], rig.columns.n_shape).double(), torch.zeros(1)])))
    E = rig.columns.n_expression
    q = torch.zeros(rig.columns.size, dtype=torch.float64)
    spread = torch.zeros(rig.columns.size, dtype=torch.float64)
    unknown, loose = rig.columns.split(q), rig.columns.split(spread)  # views
    unknown["rotation"][:] = roma.rotmat_to_rotvec(R[0] @ FACING.T)
    unknown["place"][:] = torch.cat([t[0, :2] / t[0, 2:], t[0, 2:].clamp_min(1e-3).log()])
    unknown["expression"][:] = parts["expression"][0, :E] / size
    loose["expression"][:] = sure["expression"][0, :E]
    unknown["jaw"][:] = parts["jaw"][0]
    loose["jaw"][:] = sure["jaw"][0]
    if rig.columns.eyelids:
        unknown["eyelids"][:] = arguments["eyelids"][0] / size
        loose["eyelids"][:] = sure["expression"][0, E : E + 2]
    eyes = parts["eyes"][0].unflatten(0, (2, 3)).mean(0)
    unknown["gaze"][:] = torch.stack([eyes[1], -eyes[0]])
    loose["gaze"][:] = sure["eyes"][0].unflatten(0, (2, 3)).mean(0)[[1, 0]]
    for name, value in LOOSEST.items():
        loose[name][:] = value
    for name, least in LEAST.items():
        loose[name].clamp_(min=least)
    belief = Belief(q.clone(), torch.diag(spread**-2))
    # Far from the landmarks the solver's robust weights would see nothing but outliers: the pose is theirs at once.
    unposed = {name: value for name, value in arguments.items() if name not in ("neck", "eyes")}
    _, posed = problem.start(head.landmarks(head(**unposed)).double().numpy())
    q[:6] = posed[0, :6]
    belief.mean[:6] = q[:6]
    q = q.clamp(problem.lower, problem.upper)
    return Picture(problem, torch.cat([problem.shared_mean[-1:], q]), belief)


def _padded(values: Tensor, n: int) -> Tensor:
    return torch.nn.functional.pad(values[:n], (0, max(n - len(values), 0)))


def solve(
    pictures: Sequence[Picture], identity: Belief, begin: Tensor | None = None, steps: int = STEPS
) -> tuple[Tensor, Tensor, Tensor]:
    """Levenberg-Marquardt over the pictures of one person.

    Args:
        identity: of the shape (S,). begin: the shape to start from; the one that is believed when None.

    Returns:
        shape (S,); per picture log focal length and unknowns (N, 1 + P); covariance of the shape (S, S), of the picture
        terms' own (linearised) errors and the belief.
    """
    S = len(identity.mean)
    shape = identity.mean.clone() if begin is None else begin
    own = torch.stack([one.start for one in pictures])

    def cost(shape: Tensor, own: Tensor, rows: list[Tensor]) -> float:
        total = identity.cost(shape)
        for one, mine, chosen in zip(pictures, own, rows):
            total += one.problem.cost(_g_of(shape, mine), mine[None, 1:], chosen) + one.belief.cost(mine[1:])
        return total

    def chosen(shape: Tensor, own: Tensor) -> list[Tensor]:
        return [one.problem.choose(_g_of(shape, mine), mine[None, 1:]) for one, mine in zip(pictures, own)]

    def equations(shape: Tensor, own: Tensor, rows: list[Tensor]) -> Equations:
        each = [normal(one, shape, mine, r) for one, mine, r in zip(pictures, own, rows)]
        return added(each, identity.precision, identity.gradient(shape))

    damping = 1e-2 if begin is None else 1e-4
    end = descent.descend(Asked(chosen, cost, equations), shape, own, damping, steps)
    information = equations(end.g, end.q, chosen(end.g, end.q)).information()
    kept = [torch.cat([m[:1], m[1:].clamp(one.problem.lower, one.problem.upper)]) for one, m in zip(pictures, end.q)]
    return end.g, torch.stack(kept), torch.linalg.inv(information)[:S, :S]


def _g_of(shape: Tensor, mine: Tensor) -> Tensor:
    return torch.cat([shape, mine[:1]])


def added(pictures: Sequence[Equations], precision: Tensor, gradient: Tensor) -> Equations:
    """The equations of one person's pictures together, with what is believed of what they share."""
    own, border, shared, gradients, slopes = (
        [getattr(one, name) for one in pictures] for name in ("own", "border", "shared", "gradient", "slope")
    )
    whole = precision + torch.stack(shared).sum(0), torch.cat(gradients), gradient + torch.stack(slopes).sum(0)
    return Equations(torch.cat(own), torch.cat(border), *whole)


def normal(one: Picture, shape: Tensor, mine: Tensor, rows: Tensor) -> Equations:
    """Of one picture: what it says of the shape (S,) and of its own log focal length and unknowns (1 + P,)."""
    A, B, C, a, c = one.problem.normal_equations(_g_of(shape, mine), mine[None, 1:], rows)
    own = torch.zeros(len(mine), len(mine), dtype=torch.float64)
    own[0, 0], own[1:, 1:] = C[-1, -1], A[0] + one.belief.precision
    own[1:, 0] = own[0, 1:] = B[0, :, -1]
    border = torch.cat([C[-1:, :-1], B[0, :, :-1]])
    gradient = torch.cat([c[-1:], a[0] + one.belief.gradient(mine[1:])])
    return Equations(own[None], border[None], C[:-1, :-1], gradient[None], c[:-1])


def vector_of(
    rig: Rig, layout: Layout, view: CropView, before: Tensor, crop: Tensor, shape: Tensor, mine: Tensor, one: Picture
) -> tuple[Tensor, float]:
    """The solved unknowns as a vector (layout.size,), with light and skin of `before`, and the focal length, pixels."""
    track = one.problem.as_track(torch.cat([shape, mine[:1]]), mine[None, 1:])
    parts = {name: part.clone() for name, part in layout.split(before[None]).items()}
    E = rig.columns.n_expression
    parts["shape"] = _padded(shape.float(), layout.shape)[None]
    parts["expression"] = torch.zeros_like(parts["expression"])
    parts["expression"][0, :E] = torch.from_numpy(track.expression[0])
    if rig.columns.eyelids:
        parts["expression"][0, E : E + 2] = torch.from_numpy(track.eyelids[0])
    parts["jaw"] = rig.columns.split(mine[None, 1:])["jaw"].float()
    gaze = roma.rotmat_to_rotvec(eye_rotation(rig.columns.split(mine[None, 1:])["gaze"].float()))
    parts["eyes"] = torch.cat([gaze, gaze], 1)
    parts["neck"] = torch.zeros_like(parts["neck"])
    R, t = torch.from_numpy(track.R), torch.from_numpy(track.t)
    rotation, transl = vector_pose(rig.head, view, R, t, crop[None], torch.from_numpy(track.K))
    parts["global_rot"], parts["transl"] = rotation[:, :2].flatten(1), transl
    return layout.join(parts)[0], float(track.K[0, 0])
