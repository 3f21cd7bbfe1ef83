"""The least-squares problem of tracking: head-model parameters of every frame of a clip from 68 landmarks.

Unknown are, once for the clip, the identity and the focal length, and in each frame the head's pose, expression, jaw,
eyelids and gaze. Stage 1 poses the mean head in each frame (PnP). Stage 2 solves for everything at once by the
Levenberg-Marquardt method: frames couple only to their neighbours (second differences) and to the shared unknowns, so
that the normal equations are a band of frame blocks bordered by the shared columns, and a step costs time linear in the
number of frames.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import roma
import torch
from recon4d import threads
from recon4d.formats.track import Track
from torch import Tensor

from flame_encoder.report import Report, unreported
from flame_encoder.tracker import beliefs, chain, descent, observations
from flame_encoder.tracker.descent import Asked, Equations
from flame_encoder.tracker.observations import Observations
from flame_encoder.tracker.photometric import Matches
from flame_encoder.tracker.points import FACING, Points, Rig, eye_rotation

CHUNK = 16  # frames linearised at a time


@dataclass(frozen=True, eq=False)
class Compared:
    """What of n points and two irises is compared with the image.

    gaps: (k, 2) pairs of points whose difference counts too: lids and inner lips. eyes: the points around the person's
    left and right eye; an iris is taken relative to their middle, which frees the gaze from errors of the pose.
    """

    gaps: Tensor
    eyes: tuple[Tensor, Tensor]

    def of(self, points: Tensor) -> Tensor:
        """(B, n + 2, 2, ...) points to (B, n + k + 2, 2, ...) points, gaps, irises: linear, so derivatives too."""
        gaps = points[:, self.gaps[:, 0]] - points[:, self.gaps[:, 1]]
        middles = torch.stack([points[:, eye].mean(1) for eye in self.eyes], 1)
        return torch.cat([points[:, :-2], gaps, points[:, -2:] - middles], 1)


SPARSE = Compared(
    torch.tensor([(37, 41), (38, 40), (43, 47), (44, 46), (61, 67), (62, 66), (63, 65)]),
    (torch.arange(42, 48), torch.arange(36, 42)),
)
DENSE_GAPS = (
    *((159, 145), (158, 153), (160, 144), (386, 374), (385, 380), (387, 373)),
    *((13, 14), (82, 87), (312, 317)),
)
DENSE_EYES = (
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
)

DENSE_LIPS = (
    *(61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409),
    *(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415),
)


def dense_of(indices: Tensor) -> Compared:
    """The same for dense points of which only some are known; gaps between others are left out."""
    row = {index: place for place, index in enumerate(indices.tolist())}
    gaps = [(row[a], row[b]) for a, b in DENSE_GAPS if a in row and b in row]
    left, right = (torch.tensor([row[i] for i in eye if i in row]) for eye in DENSE_EYES)
    return Compared(torch.tensor(gaps, dtype=torch.long).reshape(-1, 2), (left, right))


@dataclass(frozen=True, eq=False)
class Identity:
    """What is believed of a person's shape before the clip is looked at: mean and standard deviation (S,) of the first
    identity coefficients."""

    mean: np.ndarray
    sigma: np.ndarray


@dataclass(frozen=True)
class Options:
    """How the tracker weighs what it knows.

    Standard deviations (`sigma`, `smooth`) are of what a residual of 1 means. Those of landmarks are shares of the
    distance between the outer eye corners; those of `smooth` are of second differences over frames, at 30 frames per
    second.

    Attributes:
        focal: focal length in pixels; None estimates it.
        identity: of the person, where something is known; None is an average person.
        iterations: Levenberg-Marquardt steps at most.
        landmark_sigma: of a landmark. contour_sigma: of one of the jaw line, which slides.
        dense_sigma: of a dense point, beside the deviation of its place on the head.
        key_frames: how many frames, evenly spread, identity and focal length come from; the others follow.
        dense_evidence: how many dense points of a frame count as independent; neighbours err alike.
        gap_sigma: of the distance between two lids or lips.
        gaze_sigma: of an iris centre.
        independent_frames: how many frames count as independent evidence for the identity; noise of neighbouring
            frames is alike, and without this a long clip would outvote the identity prior.
        size_sigma: of the head's size relative to the mean head's; a video has no size of its own.
        expression_sigma: of an expression coefficient. jaw_sigma: of the jaw's rotation vector, radians.
        eyelid_sigma: of an eyelid, which is closed at 1. gaze_prior_sigma: of the gaze about straight ahead, radians.
        focal_prior: likeliest focal length, times the longer side of the image. focal_sigma: of its logarithm.
        smooth_rotation: radians. smooth_translation: of direction (radians) and of log distance, which are free of the
            unknown size. smooth_expression, smooth_eyelids: of coefficients. smooth_jaw, smooth_gaze: radians.
        photometric_levels: of each photometric round at most, pyramid levels above the first; coarse to fine.
        dense_levels: the same after dense landmarks, which are nearer to the end.
        photometric_iterations: steps in each round.
        photometric_evidence: how many matched points of a frame count as independent; neighbours err alike.
        landmark_share: of the landmarks' weights that is left in the photometric stage.
    """

    focal: float | None = None
    identity: Identity | None = None
    iterations: int = 40
    landmark_sigma: float = 0.02
    contour_sigma: float = 0.05
    dense_sigma: float = 0.008
    dense_evidence: float = 80.0
    key_frames: int = 64
    gap_sigma: float = 0.01
    gaze_sigma: float = 0.02
    independent_frames: float = 5.0
    size_sigma: float = 0.01
    expression_sigma: float = 0.2
    jaw_sigma: tuple[float, float, float] = (0.15, 0.03, 0.02)
    eyelid_sigma: float = 0.5
    gaze_prior_sigma: float = 0.3
    focal_prior: float = 2.0
    focal_sigma: float = 0.5
    smooth_rotation: float = 0.01
    smooth_translation: float = 0.0015
    smooth_expression: float = 0.08
    smooth_jaw: float = 0.03
    smooth_eyelids: float = 0.3
    smooth_gaze: float = 0.1
    photometric_levels: tuple[int, ...] = (*[2] * 8, 1, 1)
    dense_levels: tuple[int, ...] = (2, 1)
    photometric_iterations: int = 4
    photometric_evidence: float = 100.0
    landmark_share: float = 0.1

    def levels(self, dense: bool) -> tuple[int, ...]:
        """Those of the photometric rounds."""
        return self.dense_levels if dense else self.photometric_levels

    def steps(self, photometric: bool, dense: bool) -> int:
        """Solver steps at most."""
        each = 2 if dense else 1  # all frames after the key frames
        return each * (self.iterations + photometric * self.photometric_iterations * len(self.levels(dense)))


def share_of(cosine: np.ndarray) -> np.ndarray:
    """How much a dense point counts whose normal has this cosine with the way to the camera."""
    answer: np.ndarray = np.clip((cosine + 0.1) / 0.4, 0.05, 1)
    return answer


class Problem:
    """The least-squares problem: data, residuals, normal equations. Unknowns: g (S + 1,) shared, q (N, P) per frame."""

    def __init__(self, rig: Rig, seen: Observations, options: Options):
        self.rig, self.seen, self.options = rig, seen, options
        size = max(seen.image_size)
        self.centre = torch.tensor([seen.image_size[0] / 2, seen.image_size[1] / 2], dtype=torch.float32)
        self.focal_guess = options.focal or options.focal_prior * size

        self.dense = seen.dense is not None and rig.dense is not None
        self.points, self.compared, observed, sigma = self._dense() if self.dense else self._sparse()
        known = torch.from_numpy(np.isfinite(observed).all(-1)) & torch.from_numpy(seen.valid)[:, None]
        self.observed = self.compared.of(torch.from_numpy(np.nan_to_num(observed)).float())
        gaps, (left, right) = self.compared.gaps, self.compared.eyes
        irises = torch.stack([known[:, -2] & known[:, left].all(1), known[:, -1] & known[:, right].all(1)], 1)
        known = torch.cat([known[:, :-2], known[:, gaps].all(-1), irises], 1)
        self.evidence = options.dense_evidence / len(sigma) if self.dense else 1.0
        own = torch.tensor([options.gap_sigma] * len(gaps) + [options.gaze_sigma] * 2)
        sigma = torch.cat([sigma, own * self.evidence**0.5])  # these are few, and each counts
        unit = torch.from_numpy(np.where(seen.valid, seen.unit, 1.0)).float()
        self.sigma = sigma
        self.weight = known / (sigma * unit[:, None])  # (N, points + gaps + irises), 1/px
        self.surface: Points | None = None
        self.matches: Matches | None = None
        # Weights of the landmarks (or one for each of `compared`), and of what the images say.
        self.shares: tuple[float | Tensor, float] = (self.evidence, 1.0)
        self.towards = torch.ones_like(self.weight)  # less for what faces away
        self.target = self.observed  # where the points should be, freed of what a landmarker does to turned heads
        self._priors()

    def _sparse(self) -> tuple[Points, Compared, np.ndarray, Tensor]:
        sigma = torch.full((68,), self.options.landmark_sigma)
        sigma[:17] = self.options.contour_sigma
        return self.rig.landmarks, SPARSE, np.concatenate([self.seen.landmarks, self.seen.irises], 1), sigma

    def _dense(self) -> tuple[Points, Compared, np.ndarray, Tensor]:
        dense, points = self.rig.head.dense, self.rig.dense
        assert dense is not None and points is not None and self.seen.dense is not None
        observed = np.concatenate([self.seen.dense[:, dense.indices.numpy()], self.seen.irises], 1)
        sigma = (dense.sigma / self.rig.eye_distance).square().add(self.options.dense_sigma**2).sqrt()
        return points, dense_of(dense.indices), observed, sigma

    def _priors(self) -> None:
        o, columns = self.options, self.rig.columns
        n = len(self.seen.valid)
        fill: dict[str, Any] = {"dtype": torch.float64}
        # Diagonal priors: 1 / sigma^2 and mean, per column.
        kinds = columns.split(torch.zeros(columns.size, **fill))
        prior = {k: torch.zeros_like(v) for k, v in kinds.items()}
        prior["expression"] += o.expression_sigma**-2
        prior["jaw"] += torch.tensor(o.jaw_sigma, **fill) ** -2
        prior["eyelids"] += o.eyelid_sigma**-2
        prior["gaze"] += o.gaze_prior_sigma**-2
        prior["rotation"] += 1e-4  # keeps clips without neighbours solvable
        prior["place"] += 1e-4
        self.prior = torch.cat(list(prior.values()))
        self.frame_prior, self.prior_mean = self._believed()
        smooth = {
            "rotation": o.smooth_rotation,
            "place": o.smooth_translation,
            "expression": o.smooth_expression,
            "jaw": o.smooth_jaw,
            "eyelids": o.smooth_eyelids,
            "gaze": o.smooth_gaze,
        }
        per_frame = (30 / self.seen.fps) ** 2  # a second difference scales with the square of the frame time
        self.smooth = torch.cat([torch.full_like(kinds[k], (smooth[k] * per_frame) ** -2) for k in kinds])
        evidence = max(1.0, float(self.seen.valid.sum()) / o.independent_frames)
        self.shared_prior = torch.full((columns.n_shape + 1,), evidence, **fill)
        self.shared_mean = torch.zeros(columns.n_shape + 1, **fill)
        if o.identity is not None:
            known = min(columns.n_shape, len(o.identity.mean))
            self.shared_mean[:known] = torch.from_numpy(o.identity.mean[:known])
            self.shared_prior[:known] *= torch.from_numpy(o.identity.sigma[:known]) ** -2.0
        self.shared_mean[-1] = np.log(self.focal_guess)
        self.shared_prior[-1] = evidence * (o.focal_sigma**-2 if o.focal is None else 1e12)
        self.size_weight = evidence * (o.size_sigma**-2 if o.identity is None else 1.0)  # it says the size, too
        # Named expressions are activations between 0 and 1; FLAME's components have no such bounds.
        lower = {k: torch.full_like(v, -torch.inf) for k, v in kinds.items()}
        upper = {k: torch.full_like(v, torch.inf) for k, v in kinds.items()}
        for kind in ("expression", "eyelids") if self.rig.head.expression_names else ("eyelids",):
            lower[kind], upper[kind] = torch.zeros_like(kinds[kind]), torch.ones_like(kinds[kind])
        self.lower, self.upper = torch.cat(list(lower.values())), torch.cat(list(upper.values()))
        self.bound_weight = 0.05**-2
        self.n = n

    def _believed(self) -> tuple[Tensor, Tensor]:
        """Precisions and means (N, P) of the frames' unknowns before their points are fitted."""
        none = (np.zeros(self.rig.columns.size),) * 2
        faces = self.seen.dense if self.dense and self.seen.dense is not None else [None] * len(self.seen.valid)
        both = [
            beliefs.joined(self.prior.numpy(), none if face is None or not valid else beliefs.told(self.rig, face))
            for face, valid in zip(faces, self.seen.valid)
        ]
        mean, precision = (torch.from_numpy(np.stack(part)) for part in zip(*both))
        return precision, mean

    def part(self, rows: np.ndarray) -> "Problem":
        """The problem of some frames alone, which are spread evenly over the clip."""
        part = Problem(self.rig, observations.some(self.seen, rows, self.n / len(rows)), self.options)
        part.surface, part.shares = self.surface, self.shares
        part.matches = None if self.matches is None else self.matches.some(rows)
        return part

    def mouth(self) -> Tensor:
        """(points + gaps + irises,) bool, which of what is compared are the lips' points, and gaps between them."""
        points = torch.arange(68) if not self.dense or self.rig.head.dense is None else self.rig.head.dense.indices
        lips = torch.isin(points, torch.tensor(DENSE_LIPS if self.dense else range(48, 68)))
        return torch.cat([lips, lips[self.compared.gaps].all(1), torch.zeros(2, dtype=torch.bool)])

    # -- stage 1 ---------------------------------------------------------------------------------------------------

    def start(self, faces: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """The mean head posed in each frame by PnP; frames without landmarks between their neighbours.

        Args:
            faces: (N, 68, 3) unposed landmarks to pose instead of the mean head's.
        """
        g = self.shared_mean.clone()
        q = torch.zeros(self.n, self.rig.columns.size, dtype=torch.float64)
        K = np.diag([self.focal_guess, self.focal_guess, 1.0])
        K[:2, 2] = self.centre
        dense = self.dense and faces is None
        mean = self.points.template[:-2] if dense else self.rig.head.landmarks(self.rig.head.v_template[None])[0]
        model = mean.double().numpy()
        fixed = np.arange(len(model)) if dense else np.r_[17:68]
        rows = np.flatnonzero(self.seen.valid)
        for i in rows:
            points = (self.observed[i, : len(model)].numpy() if dense else self.seen.landmarks[i]).astype(np.float64)
            face = model if faces is None else faces[i]
            used = fixed[self.weight[i, fixed].numpy() > 0] if dense else fixed
            ok, rotation, translation = cv2.solvePnP(face[used], points[used], K, None, flags=cv2.SOLVEPNP_SQPNP)
            R = torch.from_numpy(cv2.Rodrigues(rotation)[0])
            if not ok or translation[2, 0] <= 0 or R[2, 2] > 0:  # behind the camera or facing away: a mirror solution
                R, translation = FACING.double(), self._frontal_translation(points)
            q[i, :3] = roma.rotmat_to_rotvec(R @ FACING.double().T)
            x, y, z = np.asarray(translation).reshape(3)
            q[i, 3:6] = torch.tensor([x / z, y / z, np.log(z)])
        for column in range(6):
            q[:, column] = torch.from_numpy(np.interp(np.arange(self.n), rows, q[rows, column].numpy()))
        return g, q

    def _frontal_translation(self, points: np.ndarray) -> np.ndarray:
        model = self.rig.head.landmarks(self.rig.head.v_template[None])[0].numpy()
        corners = points.max(0) - points.min(0)
        depth = self.focal_guess * float(np.ptp(model[:, 0])) / max(float(corners[0]), 1)
        middle = (points.mean(0) - self.centre.numpy()) / self.focal_guess * depth
        return np.array([middle[0] - model[:, 0].mean(), middle[1] + model[:, 1].mean(), depth])

    # -- residuals -------------------------------------------------------------------------------------------------

    def choose(self, g: Tensor, q: Tensor) -> Tensor:
        """Which of all points are the landmarks and irises in each frame (N, n + 2): the outline of the face slides.

        Dense points stay, and count the less the more they face away.
        """
        if self.dense:
            cosine, beside = self.rig.seen_from(g, q)
            self.target = self.observed - self.compared.of(beside)
            share = torch.from_numpy(share_of(cosine.numpy()))
            gaps = share[:, self.compared.gaps].amin(-1)
            irises = torch.stack([share[:, eye].mean(1) for eye in self.compared.eyes], 1)
            self.towards = torch.cat([share, gaps, irises], 1)
            return torch.arange(share.shape[1] + 2).expand(len(q), -1)
        rows = torch.cat([self.rig.outline(g, q[part], self.centre) for part in self._chunks()])
        return self.rig.chosen(rows)

    def _chunks(self) -> list[slice]:
        return [slice(a, min(a + CHUNK, self.n)) for a in range(0, self.n, CHUNK)]

    def _residuals(
        self, g: Tensor, q: Tensor, rows: Tensor, part: slice, shared: bool = False, frame: bool = False
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per kind of data the residuals (B, m, 2), in standard deviations, of some frames, and derivatives if asked.

        Derivatives that are not asked for are empty.
        """

        def projected(points: Points, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.rig.derivatives(g, q[part], points, self.centre, rows, shared, frame)

        points, *J = projected(self.points, rows[part])
        weight = (self.weight * self.towards)[part][..., None]
        by = [self.compared.of(j) * weight[..., None] if len(j) else j for j in J]
        found = [((self.compared.of(points) - self.target[part]) * weight, by[0], by[1])]
        if self.matches is not None and self.surface is not None:
            m = self.matches
            points, *J = projected(self.surface, m.rows[part])
            error = (m.whiten[part] @ (points - m.pixels[part])[..., None])[..., 0]
            by = [m.whiten[part] @ j if len(j) else j for j in J]
            found.append((error, by[0], by[1]))
        return found

    def cost(self, g: Tensor, q: Tensor, rows: Tensor) -> float:
        """The data terms (Geman-McClure at 3 sigma) plus the priors."""
        chunks = self._chunks()
        each = [0.0] * len(chunks)

        def add(k: int) -> None:
            for (r, *_), share in zip(self._residuals(g, q, rows, chunks[k]), self.shares):
                squared = r.double().square().sum(-1)
                each[k] += float((share * (9 * squared / (9 + squared))).sum())

        threads.share(add, len(chunks))
        total = sum(each)
        total += float(((q - self.prior_mean).square() * self.frame_prior).sum())
        total += float(((g - self.shared_mean).square() * self.shared_prior).sum())
        total += float(self.size_weight * (self.rig.size(g) - 1) ** 2)
        total += float(self.bound_weight * (self._excess(q)).square().sum())
        if self.n > 2:
            total += float(((q[2:] - 2 * q[1:-1] + q[:-2]).square() * self.smooth).sum())
        return total

    def _excess(self, q: Tensor) -> Tensor:
        return (q - self.upper).clamp_min(0) - (self.lower - q).clamp_min(0)

    # -- stage 2 ---------------------------------------------------------------------------------------------------

    def normal_equations(self, g: Tensor, q: Tensor, rows: Tensor, shared: bool = True) -> tuple[Tensor, ...]:
        """Frame blocks (N, P, P), border (N, P, G), shared block (G, G), gradients (N, P) and (G,).

        Args:
            shared: whether the shared unknowns move; otherwise the border is empty, and what else is theirs zero.
        """
        G, P = len(g), self.rig.columns.size
        A = torch.zeros(self.n, P, P, dtype=torch.float64)
        B = torch.zeros(self.n if shared else 0, P, G, dtype=torch.float64)
        a = torch.zeros(self.n, P, dtype=torch.float64)
        chunks = self._chunks()
        Cs, cs = torch.zeros(len(chunks), G, G, dtype=torch.float64), torch.zeros(len(chunks), G, dtype=torch.float64)

        def add(k: int) -> None:
            part = chunks[k]
            for (r, Jg, Jq), share in zip(self._residuals(g, q, rows, part, shared, frame=True), self.shares):
                # Geman-McClure by reweighting: its gradient is that of the squares weighted by (9 / (9 + r^2))^2.
                robust = (share**0.5 * (9 / (9 + r.square().sum(-1))))[..., None]
                r = (r * robust).flatten(1)
                Jq = (Jq * robust[..., None]).flatten(1, 2)
                A[part] += (Jq.mT @ Jq).double()
                a[part] += (Jq.mT @ r[..., None])[..., 0].double()
                if shared:
                    Jg = (Jg * robust[..., None]).flatten(1, 2)
                    B[part] += (Jq.mT @ Jg).double()
                    flat = Jg.flatten(0, 1)
                    Cs[k] += (flat.mT @ flat).double()
                    cs[k] += (flat.mT @ r.flatten()).double()

        threads.share(add, len(chunks))
        C, c = Cs.sum(0), cs.sum(0)
        excess = self._excess(q)
        diagonal = self.frame_prior + self.bound_weight * (excess != 0)
        A.diagonal(dim1=1, dim2=2).add_(diagonal)
        a += (q - self.prior_mean) * self.frame_prior + self.bound_weight * excess + self._smooth_gradient(q)
        growth = torch.cat([self.rig.growth, torch.zeros(1)]).double()
        C.diagonal().add_(self.shared_prior)
        C += self.size_weight * growth[:, None] * growth
        c += (g - self.shared_mean) * self.shared_prior + self.size_weight * (self.rig.size(g) - 1) * growth
        return A, B, C, a, c

    def _smooth_gradient(self, q: Tensor) -> Tensor:
        gradient = torch.zeros_like(q)
        if self.n > 2:
            second = (q[2:] - 2 * q[1:-1] + q[:-2]) * self.smooth
            gradient[2:] += second
            gradient[1:-1] -= 2 * second
            gradient[:-2] += second
        return gradient

    def solve(
        self, g: Tensor, q: Tensor, most: int, report: Report = unreported, hold: bool = False
    ) -> tuple[Tensor, Tensor, int]:
        """Levenberg-Marquardt until the cost stops falling; damping shrinks on success and grows on failure.

        `hold` keeps the shared unknowns as they are.
        """
        damping = 1e-2 if self.matches is None else 1e-5  # stage 3 starts near its end, in a long valley

        def equations(g: Tensor, q: Tensor, rows: Tensor) -> Equations:
            A, B, C, a, c = self.normal_equations(g, q, rows, shared=not hold)
            if hold:
                B, C, c = A.new_zeros(self.n, A.shape[1], 0), C[:0, :0], c[:0]
            return Equations(A, B, C, a, c)

        def said(step: int, g: Tensor, q: Tensor) -> None:
            report(step, f"error {np.nanmean(self.errors(g, q)):.2f} px")

        asked = Asked(self.choose, self.cost, equations)
        end = descent.descend(asked, g, q, damping, most, self.smooth, said)
        return end.g, end.q.clamp(self.lower, self.upper), end.steps

    def smooth_gaze(self, measured: Tensor, information: Tensor) -> Tensor:
        """The likeliest gaze (N, 2) for measurements (N, 2) with inverse covariances (N, 2, 2), smooth over time."""
        information = information.double()
        smooth = self.rig.columns.split(self.smooth)["gaze"]
        return chain.solve(information, smooth, information @ measured.double()[..., None])[..., 0]

    # -- results ---------------------------------------------------------------------------------------------------

    def errors(self, g: Tensor, q: Tensor) -> np.ndarray:
        """Reprojection errors (valid frames, n), pixels; NaN for dense points that face away."""
        rows = self.choose(g, q)
        n = rows.shape[1] - 2
        found = self.rig.project(g, q, self.points, self.centre, rows)[:, :n]
        error = (found - self.target[:, :n]).norm(dim=-1)
        hidden = (self.weight[:, :n] == 0) | (self.towards[:, :n] < 0.5)
        answer: np.ndarray = torch.where(hidden, torch.nan, error).numpy()[self.seen.valid]
        return answer

    def as_track(self, g: Tensor, q: Tensor) -> Track:
        """The unknowns as a track."""
        parts = {k: v.float() for k, v in self.rig.columns.split(q).items()}
        n, focal, size = self.n, float(g[-1].exp()), float(self.rig.size(g))
        eye = eye_rotation(parts["gaze"])
        x, y, log_z = parts["place"].unbind(1)
        K = np.array([[focal, 0, self.centre[0]], [0, focal, self.centre[1]], [0, 0, 1]], np.float32)
        return Track(
            head_model=self.rig.head.name,
            image_size=np.asarray(self.seen.image_size),
            fps=self.seen.fps,
            K=K,
            names=self.seen.names,
            valid=self.seen.valid,
            shape=g[:-1].float().numpy(),
            expression=size * parts["expression"].numpy(),
            R=(roma.rotvec_to_rotmat(parts["rotation"]) @ FACING).numpy(),
            t=(torch.stack([x, y, torch.ones(n)], 1) * log_z.exp()[:, None]).numpy(),
            neck=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),
            jaw=roma.rotvec_to_rotmat(parts["jaw"]).numpy(),
            eyes=torch.stack([eye, eye], 1).numpy(),
            eyelids=size * parts["eyelids"].numpy() if self.rig.columns.eyelids else np.zeros((n, 2), np.float32),
        )
