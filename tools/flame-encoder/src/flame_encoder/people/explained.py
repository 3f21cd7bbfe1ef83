"""The whole picture explained at once: shape, pose, expression, light, skin and tone, from the colours of the face.

What `colours.py` says of points of the skin is compared with the picture, and all that moves a colour is solved for
together by the Levenberg-Marquardt method, beside the landmarks and beliefs of `refine.py`: the fit of a morphable
model (Blanz and Vetter, "A morphable model for the synthesis of 3D faces", 1999, section 4). Several pictures of one
person share shape and albedo.

What no light and no skin of the model explains but changes slowly over the face (shadows, make-up) is taken for a
smooth field of colours, a normal process (Rasmussen and Williams, "Gaussian processes for machine learning", 2006,
section 2.7): fine differences tell more, coarse ones less than if all were noise.

The picture is compared blurred, from coarse to fine. What a blur, the lens's too, does to the drawn head is measured on
a drawing each time: without that, every soft edge would pull the shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from flame_encoder.encoder.vector import LIGHT
from flame_encoder.people import colours, refine
from flame_encoder.people.around import around, blurred, drawn
from flame_encoder.people.colours import DIRECTIONS, LOOKS, SHEEN, TONE, Coloured, Window, looks_of
from flame_encoder.people.refine import Belief, Picture
from flame_encoder.tracker import descent
from flame_encoder.tracker.descent import Asked, Equations

FEWEST = 150
LENSES = (0.5, 1.0, 1.8, 2.8)  # blurs of the lens that are tried, pixels of the window
OUTLIER, ROBUST = 2.0, 4.0  # standard deviations that are left out at once; square of those that lose their weight
REACH, COHERENT = 4.0, 0.75  # pixels of the window about a point, and the share of it that has to be like the drawing
PATCH, SMOOTH = 16.0, 0.04  # pixels between the patches of a smooth field of colours that nothing explains; their size
ROUNDS = 3  # of robust weights of that field
SPREAD = 1.5  # of the noise, in medians of the differences
STEPS = 6
LIPS = 1.0  # share of the weights of the lips' points that is left
USUAL = 200.0  # cost of a picture that is explained well
NEAR = 0.1  # how far, in eye distances, landmarks may move on the way: what goes further has lost the face


@dataclass(frozen=True)
class Level:
    """blur: of picture and drawing, pixels. noise: of a colour, of 1, at least. evidence: how many points count as
    independent. landmarks: share of their weights that is left. hold: light, skin and tone alone move.
    """

    blur: float
    noise: float
    evidence: float
    landmarks: float
    hold: bool = False


LEVELS = (
    Level(3.0, 0.06, 400, 0.3, hold=True),
    Level(3.0, 0.06, 400, 0.3),
    Level(1.5, 0.03, 600, 0.3),
    Level(1.5, 0.03, 600, 0.3),
    Level(0.8, 0.02, 600, 0.3),
    Level(0.8, 0.02, 600, 0.3),
)


@dataclass(frozen=True, eq=False)
class Looked:
    """A picture and what is believed of its looks beforehand.

    image: (H, W, 3) uint8. crop: (3,) left, top, side. light: (27,) what is believed. sure: (27,) standard deviations.
    """

    picture: Picture
    image: np.ndarray
    crop: Tensor
    light: Tensor
    sure: Tensor


@dataclass(frozen=True, eq=False)
class Explained:
    """shared: (S + C,) shape, albedo. own: per picture (1 + P + LOOKS,). covariance: (S + C, S + C) of `shared`.

    doubt: how many times surer of the albedo the fit is than it should be; 1 where it explains the pictures well.
    """

    shared: Tensor
    own: list[Tensor]
    covariance: Tensor
    doubt: float

    def placed(self) -> Tensor:
        """Log focal lengths and the tracker's unknowns (N, 1 + P)."""
        return torch.stack([looks_of(mine)[0] for mine in self.own])

    def lights(self) -> Tensor:
        """(N, 27)."""
        return torch.stack([looks_of(mine)[1] for mine in self.own])


def explain(
    surface: Coloured, looked: Sequence[Looked], belief: Belief, shape: Tensor, placed: Tensor
) -> Explained | None:
    """Shape, albedo, and all else of the pictures of one person; None where a face is lost on the way.

    Args:
        belief: of shape and albedo (S + C). shape: (S,) and placed: (N, 1 + P) to start from.
    """
    S = len(shape)
    shared = torch.cat([shape, belief.mean[S:]])
    rest = torch.zeros(LOOKS - LIGHT, dtype=torch.float64)
    own = [torch.cat([start, one.light.double(), rest]) for one, start in zip(looked, placed)]
    views = [
        around(surface, one.image, one.crop, one.picture.problem.as_track(*_split(S, shared, mine)))
        for one, mine in zip(looked, own)
    ]
    before = [_landmarks(one, shared, mine) for one, mine in zip(looked, own)]
    information, cost = belief.precision, 0.0
    for level in LEVELS:
        facts = [_facts(surface, *each, shared, level) for each in zip(looked, views, own)]
        shared, own, information, cost = _solve(surface, facts, belief, shared, own, level)
    if not (shared.isfinite().all() and all(mine.isfinite().all() for mine in own)):
        return None
    for one, mine, points in zip(looked, own, before):
        moved = (_landmarks(one, shared, mine) - points).norm(dim=1).mean()
        if float(moved) > NEAR * float(one.picture.problem.seen.unit[0]):
            return None
    doubt = max(1.0, cost / len(own) / USUAL) ** 2
    return Explained(shared, own, torch.linalg.inv(information), doubt)


def _landmarks(one: Looked, shared: Tensor, mine: Tensor) -> Tensor:
    problem = one.picture.problem
    g, q = _split(problem.rig.columns.n_shape, shared, mine)
    return problem.rig.project(g, q, problem.points, problem.centre, problem.choose(g, q))[0]


def _split(S: int, shared: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
    placed = looks_of(mine)[0]
    return torch.cat([shared[:S], placed[:1]]), placed[None, 1:]


# -- what a picture is asked ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Facts:
    """What a level compares with a picture: `chosen` points (n,), what to add to their colours, and their noise."""

    one: Looked
    window: Window
    chosen: Tensor
    beside: Tensor
    noise: float
    weight: float  # of a point
    field: Tensor  # (n, K), see `_field`

    def residuals(self, surface: Coloured, shared: Tensor, mine: Tensor) -> colours.Compared:
        return colours.residuals(surface, self.one.picture, shared, mine, self.window, self.chosen, self.beside)


def _field(pixels: Tensor) -> Tensor:
    """(n, K) what each of n pixels (n, 2) of the window has of K soft patches: rows have the sum one."""
    low, high = pixels.amin(0), pixels.amax(0)
    x, y = (torch.arange(float(a), float(b) + PATCH, PATCH, dtype=torch.float64) for a, b in zip(low, high))
    centres = torch.cartesian_prod(x, y)
    near = (-(pixels[:, None] - centres).square().sum(2) / (2 * (0.7 * PATCH) ** 2)).exp()
    near = near[:, near.sum(0) > 1]
    answer: Tensor = near / near.sum(1, keepdim=True).clamp_min(1e-12)
    return answer


def _freed(off: Tensor, field: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differences (n, 3), in units of their noise, without a field of colours that is smooth over the picture.

    Returns what is left (n, 3), its robust weights (n,), the field's numbers (K, 3) and their information (K, K).
    """
    robust = torch.ones(len(off), dtype=off.dtype)
    z, N = off.new_zeros(field.shape[1], 3), torch.eye(field.shape[1], dtype=off.dtype)
    rest = off
    for _ in range(ROUNDS):
        by = field * (weight * robust)[:, None]
        N = by.T @ field + torch.eye(field.shape[1], dtype=off.dtype)
        z = torch.linalg.solve(N, by.T @ off)
        rest = off - field @ z
        robust = (ROBUST / (ROBUST + rest.square().sum(1))) ** 2
    return rest, robust, z, N


def _facts(surface: Coloured, one: Looked, window: Window, mine: Tensor, shared: Tensor, level: Level) -> _Facts:
    window = blurred(window, level.blur)
    problem = one.picture.problem
    g, q = _split(problem.rig.columns.n_shape, shared, mine)
    track = problem.as_track(g, q)
    drawing = drawn(surface, track, shared[g.shape[0] - 1 :], mine, window)
    chosen = drawing.chosen
    if not len(chosen):
        none = torch.zeros(0, 3, dtype=torch.float64)
        return _Facts(one, window, chosen, none, 1.0, 0.0, none)
    pixels = problem.rig.project(g, q, surface.points, problem.centre, chosen[None])[0].double()
    grid = window.grid(pixels * window.scale + torch.from_numpy(window.offset))

    def sampled(image: Tensor) -> Tensor:
        found = torch.nn.functional.grid_sample(image[None], grid, align_corners=False, padding_mode="border")
        return found[0, :, 0].T

    colour = sampled(window.image)
    alone = torch.zeros_like(colour)
    value = colours.residuals(surface, one.picture, shared, mine, window, chosen, alone)[0] + colour
    best, least = colour, np.inf
    for lens in LENSES:
        soft = cv2.GaussianBlur(drawing.image, (0, 0), (level.blur**2 + lens**2) ** 0.5)
        tried = sampled(torch.from_numpy(soft.transpose(2, 0, 1).astype(np.float64)))
        off = float((tried - colour).square().sum(1).add(1e-5).log().mean())
        if off < least:
            best, least = tried, off
    places = pixels * window.scale + torch.from_numpy(window.offset)
    field, weight = _field(places) * (SMOOTH / level.noise), level.evidence / len(chosen)
    left = _freed((best - colour) / level.noise, field, weight)[0].square() * level.noise**2
    noise = max(level.noise, SPREAD * float(left.mean(1).sqrt().median()))
    like = left.sum(1).sqrt() < OUTLIER * noise
    like &= _share(like, places, len(window.sharp)) > COHERENT
    chosen, beside = chosen[like], (best - value)[like]
    if len(chosen) < FEWEST:
        weight = 0.0
    return _Facts(one, window, chosen, beside, noise, weight, field[like] * (level.noise / noise))


def _share(like: Tensor, pixels: Tensor, side: int) -> Tensor:
    """(n,) how many of the points around each of (n, 2) pixels are `like`: a hand or a beard is wrong as a whole, even
    where it has the skin's colour by chance.
    """
    column, row = pixels.floor().long().clamp(0, side - 1).numpy().T
    both = np.zeros((side, side, 2), np.float32)
    np.add.at(both, (row, column), np.stack([like.numpy(), np.ones(len(like))], 1).astype(np.float32))
    soft = cv2.GaussianBlur(both, (0, 0), REACH)
    return torch.from_numpy(soft[row, column, 0] / soft[row, column, 1])


# -- the solver -------------------------------------------------------------------------------------------------------


def _solve(
    surface: Coloured, facts: list[_Facts], belief: Belief, shared: Tensor, own: list[Tensor], level: Level
) -> tuple[Tensor, list[Tensor], Tensor, float]:
    """Levenberg-Marquardt at one level: shared, own, information (inverse covariance) of the shared, and the cost."""
    S = facts[0].one.picture.problem.rig.columns.n_shape
    for fact in facts:
        problem = fact.one.picture.problem
        # Teeth, lipstick and beards have colours that nobody knows: the lips' points keep what they say.
        share = torch.where(problem.mouth(), LIPS, level.landmarks)
        problem.shares = (share * problem.evidence, 1.0)
    tight = torch.tensor((SHEEN,) * len(DIRECTIONS) + TONE, dtype=torch.float64) ** -2
    firm = [torch.cat([fact.one.sure.double().clamp_min(0.05) ** -2, tight]) for fact in facts]
    calm = [torch.cat([fact.one.light.double(), torch.zeros_like(tight)]) for fact in facts]

    def rows_of(shared: Tensor, own: Tensor) -> list[Tensor]:
        return [fact.one.picture.problem.choose(*_split(S, shared, mine)) for fact, mine in zip(facts, own)]

    def cost(shared: Tensor, own: Tensor, rows: list[Tensor]) -> float:
        total = belief.cost(shared)
        for fact, mine, chosen, f, c in zip(facts, own, rows, firm, calm):
            g, q = _split(S, shared, mine)
            total += fact.one.picture.problem.cost(g, q, chosen) + fact.one.picture.belief.cost(q[0])
            total += float(f @ (mine[-LOOKS:] - c).square())
            if fact.weight:
                off = fact.residuals(surface, shared, mine)[0] / fact.noise
                rest, _, z, _ = _freed(off, fact.field, fact.weight)
                squared = rest.square().sum(1)
                total += fact.weight * float((ROBUST * squared / (ROBUST + squared)).sum()) + float(z.square().sum())
        return total

    def equations(shared: Tensor, own: Tensor, rows: list[Tensor]) -> Equations:
        each = []
        for fact, mine, chosen, f, c in zip(facts, own, rows, firm, calm):
            one = _equations(surface, fact, shared, mine, chosen, level.hold)
            one.own[0].diagonal()[-LOOKS:] += f
            one.gradient[0, -LOOKS:] += f * (mine[-LOOKS:] - c)
            each.append(one)
        return refine.added(each, belief.precision, belief.gradient(shared))

    end = descent.descend(Asked(rows_of, cost, equations), shared, torch.stack(own), 1e-4, STEPS)
    information = belief.precision if end.equations is None else end.equations.information()
    return end.g, list(end.q), information, end.cost


def _equations(surface: Coloured, fact: _Facts, shared: Tensor, mine: Tensor, rows: Tensor, hold: bool) -> Equations:
    """Of one picture: what its points and its colours say of what is shared, and of its own unknowns."""
    S = fact.one.picture.problem.rig.columns.n_shape
    points = refine.normal(fact.one.picture, shared[:S], looks_of(mine)[0], rows)
    n, m, k = len(mine), len(shared), len(mine) - LOOKS
    sizes: tuple[list[int], ...] = ([1, n, n], [1, n, m], [m, m], [1, n], [m])
    whole = Equations(*(torch.zeros(size, dtype=torch.float64) for size in sizes))
    whole.own[:, :k, :k], whole.border[:, :k, :S], whole.shared[:S, :S] = points.own, points.border, points.shared
    whole.gradient[:, :k], whole.slope[:S] = points.gradient, points.slope
    if fact.weight:
        off, slopes = fact.residuals(surface, shared, mine)
        Js, Jo = slopes()
        if hold:
            Js[..., :S] = 0
            Jo[..., :k] = 0
        rest, robust, _, N = _freed(off / fact.noise, fact.field, fact.weight)
        J = torch.cat([Js, Jo], 2) / fact.noise
        weight = fact.weight * robust
        flat = (J * weight.sqrt()[:, None, None]).flatten(0, 1)
        H, slope = flat.T @ flat, flat.T @ (rest * weight.sqrt()[:, None]).flatten()
        # The field moves along with the unknowns: what it could do as well tells nothing of them.
        by_field = ((fact.field * weight[:, None]).T @ J.flatten(1)).unflatten(1, J.shape[1:]).transpose(0, 1)
        inner = torch.linalg.solve_triangular(torch.linalg.cholesky(N), by_field, upper=False).flatten(0, 1)
        H -= inner.T @ inner
        whole.shared.add_(H[:m, :m])
        whole.border[0].add_(H[m:, :m])
        whole.own[0].add_(H[m:, m:])
        whole.slope.add_(slope[:m])
        whole.gradient[0].add_(slope[m:])
    return whole
