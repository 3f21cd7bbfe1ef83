"""From one head model's parameters to another's that move the face alike: FLAME's to the open head's, and back.

The two surfaces are laid on each other once (`recon4d.head.correspondence`). Then the target's identity is fitted to
the source's face at rest; what it lacks of it is kept as an offset, so that only motion is left to be explained.
Expressions, eyelids and jaw of each frame follow by Gauss-Newton with exact derivatives of the skinning. The head's
pose, the neck and the gaze are turns of the same joints in both models and carried over as they are.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recon4d.formats.track import Track
from recon4d.head import HeadModel
from recon4d.head.correspondence import Correspondence, match, points

SHAPE_PRIOR = 1e-4  # metres (root of the mean square) that a standard deviation of identity costs
PRIOR = 5e-5  # the same, that an expression or an eyelid of 1, or a turn of the jaw by a radian, costs
STEPS, SWEEPS = 4, 60
CHUNK = 16  # frames
JAW = 2


@dataclass(frozen=True, eq=False)
class Retargeted:
    """A track on the target, and what is left of the points' distances, millimetres.

    at_rest: mean distance of the fitted identity from the source's, before the offset. error: (N,) mean distances in
    each frame. moved: (N,) mean distances of the source's points from where they are at rest, to compare.
    """

    track: Track
    at_rest: float
    error: np.ndarray
    moved: np.ndarray


@torch.no_grad()
def retarget(
    track: Track,
    source: HeadModel,
    target: HeadModel,
    expressions: list[int] | None = None,
    jaw: bool = True,
    eyelids: bool = True,
    both: Correspondence | None = None,
) -> Retargeted:
    """Fit the target's parameters to the source's posed mesh in every frame.

    Args:
        track: coefficients of `source`.
        expressions: which of the target's are used; None is all. Of a model whose expressions have names they are
            activations, and stay from 0 to 1.
        jaw: turn the target's jaw. Off leaves it to expressions.
        eyelids: close the target's eyelids, where it has any.
        both: `match(source, target)`, where it is there already.

    Raises:
        InputError: a head model without landmarks, or models that do not lie on each other.
    """
    both = match(source, target) if both is None else both
    there = _source_points(track, source, both)
    rest = both.on_source(source, source(shape=torch.from_numpy(track.shape[None])))[0]
    R, t, shape = _identity(target, both, rest)
    there, rest = (there - t) @ R, (rest - t) @ R  # in the target's frame
    lids = eyelids and target.eyelids is not None
    face = _Face.of(target, both, shape, rest, expressions, lids)
    n_expression = face.basis.shape[2] - 2 * lids
    first = torch.from_numpy(track.jaw) if jaw else torch.eye(3).expand(len(track), 3, 3)
    x, turned = _fit(face, there, R.T @ first @ R, both.weights, bool(target.expression_names), jaw)
    error = torch.cat(
        [
            (face.posed(x[some], turned[some])[0] - there[some]).norm(dim=2) @ both.weights
            for some in torch.arange(len(track)).split(CHUNK)
        ]
    )
    values = x.numpy()
    expression = np.zeros((len(track), target.n_expression), np.float32)
    expression[:, slice(None) if expressions is None else expressions] = values[:, :n_expression]
    held = _held(track, source, target, shape, expression, R.numpy(), t.numpy())
    made = replace(
        held,
        head_model=target.name,
        shape=shape.numpy(),
        expression=expression,
        jaw=turned.numpy(),
        eyes=R.T.numpy() @ track.eyes @ R.numpy(),
        eyelids=values[:, n_expression:] if lids else np.zeros((len(track), 2), np.float32),
    )
    own = both.on_target(target, target(shape=shape[None]))[0]
    return Retargeted(
        made,
        1e3 * float((own - rest).norm(dim=1) @ both.weights),
        1e3 * error.numpy(),
        1e3 * ((there - rest).norm(dim=2) @ both.weights).numpy(),
    )


def _source_points(track: Track, source: HeadModel, both: Correspondence) -> Tensor:
    """(N, P, 3) the points on the source as its face moves, its head held still."""
    found = []
    for some in torch.arange(len(track)).split(CHUNK):
        values = track.parameters(some.numpy())
        values = {key: values[key] for key in ("shape", "expression", "jaw", "eyelids")}
        if source.eyelids is None:
            del values["eyelids"]
        found.append(both.on_source(source, source(**values)))
    return torch.cat(found)


def _held(
    track: Track,
    source: HeadModel,
    target: HeadModel,
    shape: Tensor,
    expression: np.ndarray,
    R: np.ndarray,
    t: np.ndarray,
) -> Track:
    """The head held as the source's: its skull, which the neck's joint turns, where that of the source is.

    A point x of the target's skull is at R x + t in the source's frame, so that R_s (N_s (R x + t - J_s) + J_s) + t_s
    = R_t (N_t (x - J_t) + J_t) + t_t for all x, with R_t = R_s R and N_t = R^T N_s R.
    """
    joint_s = source.joints(torch.from_numpy(track.shape[None]), torch.from_numpy(track.expression))[:, 1].numpy()
    joint_t = target.joints(shape[None], torch.from_numpy(expression))[:, 1].numpy()
    turn, neck = track.R @ R, R.T @ track.neck @ R

    def turned(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        answer: np.ndarray = np.einsum("nij,nj->ni", rotation, vectors)
        return answer

    there = turned(track.R, turned(track.neck, t - joint_s) + joint_s) + track.t
    place = there - turned(turn, joint_t - turned(neck, joint_t))
    return replace(track, R=turn, neck=neck, t=place.astype(np.float32))


def _identity(target: HeadModel, both: Correspondence, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation (3, 3), translation (3,) and identity (S,) that bring the target's points nearest to those at rest."""
    basis = points(target.shapedirs.permute(2, 0, 1), target.faces, both.target_faces, both.target_bary)
    basis = basis.permute(1, 2, 0).double()  # (P, 3, S)
    mean = both.on_target(target, target.v_template[None])[0].double()
    weight, wanted = both.weights.double().sqrt()[:, None], wanted.double()
    n = basis.shape[2]
    shape, R, t = basis.new_zeros(n), torch.eye(3).double(), basis.new_zeros(3)
    prior = SHAPE_PRIOR * torch.cat([torch.eye(n).double(), basis.new_zeros(n, 6)], 1)
    for _ in range(STEPS):
        here = (mean + basis @ shape) @ R.T
        columns = torch.cat([R @ basis, -_cross(here), torch.eye(3).double().expand(len(here), 3, 3)], 2)
        columns = (weight[..., None] * columns).flatten(0, 1)
        lacking = (weight * (wanted - here - t)).flatten()
        left = torch.cat([columns, prior])
        step = torch.linalg.lstsq(left, torch.cat([lacking, -SHAPE_PRIOR * shape])[:, None]).solution[:, 0]
        shape, t = shape + step[:n], t + step[n + 3 :]
        R = torch.linalg.matrix_exp(_cross(step[n : n + 3])) @ R
    return R.float(), t.float(), shape.float()


@dataclass(frozen=True, eq=False)
class _Face:
    """The target at P points.

    rest: (P, 3). basis: (P, 3, D) expressions and eyelids. joint_basis: (3, D) how they move the jaw's joint.
    correctives: (P, 3, 9) of the jaw's turn. share: (P,) how much the jaw carries them. joint: (3,).
    """

    rest: Tensor
    basis: Tensor
    joint_basis: Tensor
    correctives: Tensor
    share: Tensor
    joint: Tensor

    @staticmethod
    def of(
        head: HeadModel, both: Correspondence, shape: Tensor, rest: Tensor, expressions: list[int] | None, lids: bool
    ) -> "_Face":
        def at(values: Tensor) -> Tensor:
            """(V, 3, D) to (P, 3, D)."""
            return points(values.permute(2, 0, 1), head.faces, both.target_faces, both.target_bary).permute(1, 2, 0)

        chosen = slice(None) if expressions is None else expressions
        basis, joint_basis = at(head.expressiondirs[:, :, chosen]), head.joint_basis[2][JAW][:, chosen]
        if lids and head.eyelids is not None:
            basis = torch.cat([basis, at(head.eyelids)], 2)
            joint_basis = torch.cat([joint_basis, joint_basis.new_zeros(3, 2)], 1)
        share = (head.weights[:, JAW][head.faces[both.target_faces]] * both.target_bary).sum(1)
        joint = head.joints(shape[None])[0, JAW]
        # Pose correctives are of neck, jaw and eyes; the jaw's are the second nine.
        return _Face(rest, basis, joint_basis, at(head.posedirs[:, :, 9:18]), share, joint)

    def posed(self, x: Tensor, jaw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points (n, P, 3), and what they are before the jaw turns them, and the joint, of x (n, D), jaw (n, 3, 3)."""
        change = jaw - torch.eye(3)
        before = self.rest + torch.einsum("pcd,nd->npc", self.basis, x)
        before = before + torch.einsum("pcr,nr->npc", self.correctives, change.flatten(1))
        joint = (self.joint + x @ self.joint_basis.T)[:, None]
        return before + self.share[:, None] * ((before - joint) @ change.mT), before, joint


def _fit(
    face: _Face, wanted: Tensor, jaw: Tensor, weights: Tensor, bounded: bool, turns: bool
) -> tuple[Tensor, Tensor]:
    """Expressions and eyelids (N, D) and the jaw's turns (N, 3, 3) of N frames of points (N, P, 3)."""
    size = face.basis.shape[2]
    x = wanted.new_zeros(len(wanted), size)
    for _ in range(STEPS):
        parts = [
            _normal(face, wanted[some], x[some], jaw[some], weights, turns)
            for some in torch.arange(len(wanted)).split(CHUNK)
        ]
        square, right = (torch.cat(part) for part in zip(*parts))
        square = square + PRIOR**2 * torch.eye(square.shape[1])
        now = torch.cat([x, x.new_zeros(len(x), square.shape[1] - size)], 1)
        if bounded:
            solved = _bounded(square, right, now, size)
        else:
            solved = torch.linalg.solve(square.double(), right.double()).float()
        x = solved[:, :size]
        if turns:
            jaw = torch.linalg.matrix_exp(_cross(solved[:, size:])) @ jaw
    return x, jaw


def _normal(face: _Face, wanted: Tensor, x: Tensor, jaw: Tensor, weights: Tensor, turns: bool) -> tuple[Tensor, Tensor]:
    """A (n, D, D) and b (n, D) of the equations A y = b for the next x, and behind it the jaw's further turn."""
    here, before, joint = face.posed(x, jaw)
    change = jaw - torch.eye(3)
    share, weight = face.share[:, None, None], weights.sqrt()[:, None]
    # d/dx: each point's own motion, turned by its share of the jaw, whose joint moves as well.
    along = face.basis - share * face.joint_basis
    columns = face.basis + share * torch.einsum("nij,pjd->npid", change, along)
    if turns:  # d/dw of exp(w) jaw at w = 0
        turned = torch.einsum("kij,njl->nkil", _cross(torch.eye(3)), jaw)
        swept = share * torch.einsum("nkij,npj->npik", turned, before - joint)
        raised = torch.einsum("pcr,nkr->npck", face.correctives, turned.flatten(2))
        columns = torch.cat([columns, swept + (torch.eye(3) + share * change[:, None]) @ raised], 3)
    left = (weight[..., None] * columns).flatten(1, 2)
    square = left.mT @ left
    lacking = (left.mT @ (weight * (wanted - here)).flatten(1)[..., None])[..., 0]
    now = torch.cat([x, x.new_zeros(len(x), square.shape[1] - x.shape[1])], 1)
    return square, lacking + (square @ now[..., None])[..., 0]


def _bounded(square: Tensor, right: Tensor, start: Tensor, size: int) -> Tensor:
    """Minimise x' A x / 2 - b' x with the first `size` of each x from 0 to 1, by coordinate descent; batched."""
    x = start.clone()
    for _ in range(SWEEPS):
        for i in range(x.shape[1]):
            value = x[:, i] + (right[:, i] - (square[:, i] * x).sum(1)) / square[:, i, i]
            x[:, i] = value.clamp(0, 1) if i < size else value
    return x


def _cross(vectors: Tensor) -> Tensor:
    """(..., 3, 3) matrices of the cross product with vectors (..., 3)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(*x.shape, 3, 3)
