"""Head-model parameters of every frame of a clip, by second-order optimisation on 68 landmarks.

Unknown are, once for the clip, the identity and the focal length, and in each frame the head's pose, expression, jaw,
eyelids and gaze. Stage 1 poses the mean head in each frame (PnP). Stage 2 solves for everything at once by the
Levenberg-Marquardt method: frames couple only to their neighbours (second differences) and to the shared unknowns, so
that the normal equations are a band of frame blocks bordered by the shared columns, and a step costs time linear in the
number of frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import roma
import torch
from recon4d.files import InputError
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from torch import Tensor

from flame_encoder import chain, gaze, photometric
from flame_encoder.observations import Observations
from flame_encoder.photometric import Matches, Surface
from flame_encoder.points import FACING, Points, Rig, eye_rotation

GAPS = torch.tensor([(37, 41), (38, 40), (43, 47), (44, 46), (61, 67), (62, 66), (63, 65)])  # lids and inner lips
EYES = torch.stack([torch.arange(42, 48), torch.arange(36, 42)])  # landmarks of the person's left and right eye
CHUNK = 64  # frames linearised at a time


@dataclass(frozen=True)
class Options:
    """Weights of the landmark stage. Standard deviations are what a residual of 1 means.

    Attributes:
        focal: focal length in pixels; None estimates it.
        iterations: Levenberg-Marquardt steps at most.
        landmark_sigma: of a landmark, share of the inter-ocular distance.
        contour_sigma: of a jaw-line landmark, likewise.
        gap_sigma: of the distance between lids or lips, likewise.
        gaze_sigma: of an iris centre, likewise.
        independent_frames: how many frames count as independent evidence for the identity; noise of neighbouring
            frames is alike, and without this a long clip would outvote the identity prior.
        expression_sigma: of an expression coefficient.
        smooth: standard deviations of second differences at 30 frames per second, per kind of parameter.
    """

    focal: float | None = None
    iterations: int = 40
    landmark_sigma: float = 0.02
    contour_sigma: float = 0.05
    gap_sigma: float = 0.01
    gaze_sigma: float = 0.02
    independent_frames: float = 5.0
    size_sigma: float = 0.01  # of the head's size relative to the mean head's; a video has no size of its own
    expression_sigma: float = 0.2
    jaw_sigma: tuple[float, float, float] = (0.15, 0.03, 0.02)
    eyelid_sigma: float = 0.5
    gaze_prior_sigma: float = 0.3
    focal_prior: float = 2.0  # times the longer side of the image
    focal_sigma: float = 0.5  # of the logarithm
    smooth_rotation: float = 0.01
    smooth_translation: float = 0.0015  # of direction (radians) and of log distance: free of the unknown scale
    smooth_expression: float = 0.08
    smooth_jaw: float = 0.03
    smooth_eyelids: float = 0.3
    smooth_gaze: float = 0.1
    photometric_levels: tuple[int, ...] = (*[2] * 8, 1, 1)  # rounds at most; pyramid levels above the first
    photometric_iterations: int = 4  # in each round
    photometric_evidence: float = 100.0  # how many matched points count as independent; neighbours err alike
    landmark_share: float = 0.1  # of the landmarks' weights in the photometric stage

    def steps(self, photometric: bool) -> int:
        """Solver steps at most."""
        return self.iterations + photometric * self.photometric_iterations * len(self.photometric_levels)


def track(
    head: HeadModel,
    seen: Observations,
    options: Options | None = None,
    frames: list[Path] | None = None,
    start: "Callable[[Problem], tuple[Tensor, Tensor]] | None" = None,
    report: Callable[[int, str], None] = lambda step, text: None,
) -> tuple[Track, dict]:
    """Fit the head model to the landmarks of a clip and, where `frames` are given, to its images.

    Args:
        head: with 68 landmarks.
        seen: N frames of landmarks; at least one must be valid.
        frames: the N image files, for the photometric stage.
        start: gives the unknowns to start from (see `initial.encoded`); PnP does when it is None.
        report: called with the step and a text as the work goes on.

    Returns:
        The track, and a dictionary of figures: `mean_px`, `p95_px` (mean and 95th percentile over landmarks and valid
        frames of the reprojection error), `mean_iod` (the mean in % of the distance between the outer eye corners),
        `focal`, `interpolated` (frames without landmarks), `jitter_mm` (mean second difference of the face's vertices),
        `steps`; with `frames` also `photometric_error` (mean absolute difference, of 1, between the drawn head and
        the frames) and `found` (share of the drawn points in sight that were found), before each round.

    Raises:
        InputError: no frame with landmarks; a head model without landmarks; an unreadable frame.
    """
    options = options or Options()
    if not seen.valid.any():
        raise InputError("no frame has landmarks; check them with prep-faces landmarks")
    problem = Problem(Rig(head), seen, options)
    g, q = problem.start() if start is None else start(problem)
    g, q, steps = problem.solve(g, q, options.iterations, report)
    figures: dict = {}
    if frames is not None:
        g, q, steps, figures = _refine(problem, g, q, frames, lambda step, text: report(steps + step, text))
    found = problem.as_track(g, q)
    errors = problem.errors(g, q)
    figures = {
        "mean_px": float(errors.mean()),
        "p95_px": float(np.percentile(errors, 95)),
        "mean_iod": float(100 * (errors / seen.iod[seen.valid][:, None]).mean()),
        "focal": float(np.exp(g[-1])),
        "interpolated": int((~seen.valid).sum()),
        "jitter_mm": _jitter(head, found),
        "steps": steps,
    } | figures
    return found, figures


def _refine(problem: "Problem", g: Tensor, q: Tensor, frames: list[Path], report) -> tuple[Tensor, Tensor, int, dict]:
    """Stage 3: draw the head as it looks, find the drawing in the frames, solve; from coarse to fine."""
    head, seen, options = problem.rig.head, problem.seen, problem.options
    surface = Surface(head)
    problem.surface = problem.rig.points(surface.faces, surface.bary)
    problem.shares = (options.landmark_share, options.photometric_evidence / photometric.POINTS)
    iod = float(np.median(seen.iod[seen.valid]))
    windows, done = None, 0

    def at(done: int) -> Callable[[int, str], None]:
        return lambda step, text: report(done + step, text)

    figures: dict = {"photometric_error": [], "found": []}
    coarsest = max(options.photometric_levels)
    for levels in options.photometric_levels:
        if levels > coarsest:
            continue
        found = problem.as_track(g, q)
        vertices = found.vertices(head)
        windows = windows or photometric.cut(frames, found, vertices)
        looks = photometric.looks(surface, windows, found, vertices)
        problem.matches = photometric.match(surface, looks, windows, found, vertices, iod, levels)
        errors = figures["photometric_error"]
        settled = len(errors) > 0 and problem.matches.error > 0.95 * errors[-1]
        errors.append(problem.matches.error)
        figures["found"].append(float(problem.matches.found.mean()))
        g, q, steps = problem.solve(g, q, options.photometric_iterations, at(done))
        done += steps
        if settled:  # coarse rounds go on only while they help
            coarsest = min(options.photometric_levels)
    if windows is not None:
        found = problem.as_track(g, q)
        measured = gaze.measure(head, windows, found, found.vertices(head), options.gaze_prior_sigma)
        problem.rig.layout.split(q)["gaze"][:] = problem.smooth_gaze(*measured)
    return g, q, done, figures


def _jitter(head: HeadModel, track: Track) -> float:
    """Mean length, mm, of the second differences over frames of a sample of the head's vertices; 0 for short clips."""
    if len(track) < 3:
        return 0.0
    total = []
    for start in range(0, len(track) - 2, CHUNK):
        v = track.vertices(head, slice(start, start + CHUNK + 2))[:, ::16]
        total.append((v[2:] - 2 * v[1:-1] + v[:-2]).norm(dim=-1))
    return 1000 * float(torch.cat(total).mean())


class Problem:
    """The least-squares problem: data, residuals, normal equations. Unknowns: g (S + 1,) shared, q (N, P) per frame."""

    def __init__(self, rig: Rig, seen: Observations, options: Options):
        self.rig, self.seen, self.options = rig, seen, options
        size = max(seen.image_size)
        self.centre = torch.tensor([seen.image_size[0] / 2, seen.image_size[1] / 2], dtype=torch.float32)
        self.focal_guess = options.focal or options.focal_prior * size

        iod = torch.from_numpy(np.where(seen.valid, seen.iod, 1.0)).float()
        valid = torch.from_numpy(seen.valid).float()
        sigma = torch.full((68,), options.landmark_sigma)
        sigma[:17] = options.contour_sigma
        weight = torch.cat(
            [
                valid[:, None] / (sigma * iod[:, None]),
                (valid / (options.gap_sigma * iod))[:, None].expand(-1, len(GAPS)),
                torch.from_numpy(seen.iris_valid).float() * (valid / (options.gaze_sigma * iod))[:, None],
            ],
            1,
        )
        self.weight = weight  # (N, 77), 1/px
        observed = np.concatenate([seen.landmarks, seen.irises], 1)
        self.observed = _compared(torch.from_numpy(np.nan_to_num(observed)).float())
        self.surface: Points | None = None
        self.matches: Matches | None = None
        self.shares = (1.0, 1.0)  # weights of the landmarks and of what the images say
        self._priors()

    def _priors(self) -> None:
        o, layout = self.options, self.rig.layout
        n = len(self.seen.valid)
        fill = dict(dtype=torch.float64)
        # Diagonal priors: 1 / sigma^2 and mean, per column.
        kinds = layout.split(torch.zeros(layout.size, **fill))
        prior = {k: torch.zeros_like(v) for k, v in kinds.items()}
        prior["expression"] += o.expression_sigma**-2
        prior["jaw"] += torch.tensor(o.jaw_sigma, **fill) ** -2
        prior["eyelids"] += o.eyelid_sigma**-2
        prior["gaze"] += o.gaze_prior_sigma**-2
        prior["rotation"] += 1e-4  # keeps clips without neighbours solvable
        prior["place"] += 1e-4
        self.frame_prior = torch.cat(list(prior.values()))
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
        self.shared_prior = torch.full((layout.n_shape + 1,), evidence, **fill)
        self.shared_mean = torch.zeros(layout.n_shape + 1, **fill)
        self.shared_mean[-1] = np.log(self.focal_guess)
        self.shared_prior[-1] = evidence * (o.focal_sigma**-2 if o.focal is None else 1e12)
        self.size_weight = evidence * o.size_sigma**-2
        # Named expressions are activations between 0 and 1; FLAME's components have no such bounds.
        lower = {k: torch.full_like(v, -torch.inf) for k, v in kinds.items()}
        upper = {k: torch.full_like(v, torch.inf) for k, v in kinds.items()}
        for kind in ("expression", "eyelids") if self.rig.head.expression_names else ("eyelids",):
            lower[kind], upper[kind] = torch.zeros_like(kinds[kind]), torch.ones_like(kinds[kind])
        self.lower, self.upper = torch.cat(list(lower.values())), torch.cat(list(upper.values()))
        self.bound_weight = 0.05**-2
        self.n = n

    # -- stage 1 ---------------------------------------------------------------------------------------------------

    def start(self, faces: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """The mean head posed in each frame by PnP; frames without landmarks between their neighbours.

        Args:
            faces: (N, 68, 3) unposed landmarks to pose instead of the mean head's.
        """
        g = self.shared_mean.clone()
        q = torch.zeros(self.n, self.rig.layout.size, dtype=torch.float64)
        K = np.diag([self.focal_guess, self.focal_guess, 1.0])
        K[:2, 2] = self.centre
        model = self.rig.head.landmarks(self.rig.head.v_template[None])[0].double().numpy()
        fixed = np.r_[17:68]
        rows = np.flatnonzero(self.seen.valid)
        for i in rows:
            points = self.seen.landmarks[i].astype(np.float64)
            face = model if faces is None else faces[i]
            ok, rotation, translation = cv2.solvePnP(face[fixed], points[fixed], K, None, flags=cv2.SOLVEPNP_SQPNP)
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
        depth = (
            self.focal_guess * np.linalg.norm(model[36] - model[45]) / max(np.linalg.norm(points[36] - points[45]), 1)
        )
        middle = (points.mean(0) - self.centre.numpy()) / self.focal_guess * depth
        return np.array([middle[0] - model[:, 0].mean(), middle[1] + model[:, 1].mean(), depth])

    # -- residuals -------------------------------------------------------------------------------------------------

    def choose(self, g: Tensor, q: Tensor) -> Tensor:
        """Which of all points are the 68 landmarks in each frame (N, 68): the outline of the face slides."""
        return torch.cat([self.rig.outline(g, q[part], self.centre) for part in self._chunks()])

    def _chunks(self) -> list[slice]:
        return [slice(a, min(a + CHUNK, self.n)) for a in range(0, self.n, CHUNK)]

    def _residuals(self, g: Tensor, q: Tensor, rows: Tensor, part: slice, derivatives: bool = False) -> list:
        """Per kind of data the residuals (B, m, 2), in standard deviations, of some frames; with their derivatives."""
        seen = self.rig.project(g, q[part], self.rig.chosen(rows[part]), self.centre, derivatives)
        points, *J = seen if derivatives else (seen,)
        weight = self.weight[part][..., None]
        found = [((_compared(points) - self.observed[part]) * weight, *(_compared(j) * weight[..., None] for j in J))]
        if self.matches is not None and self.surface is not None:
            m = self.matches
            seen = self.rig.project(g, q[part], self.surface.taken(m.rows[part]), self.centre, derivatives)
            points, *J = seen if derivatives else (seen,)
            error = (m.whiten[part] @ (points - m.pixels[part])[..., None])[..., 0]
            found.append((error, *(m.whiten[part] @ j for j in J)))
        return found

    def cost(self, g: Tensor, q: Tensor, rows: Tensor) -> float:
        """The data terms (Geman-McClure at 3 sigma) plus the priors."""
        total = 0.0
        for part in self._chunks():
            for (r,), share in zip(self._residuals(g, q, rows, part), self.shares):
                squared = r.double().square().sum(-1)
                total += share * float((9 * squared / (9 + squared)).sum())
        total += float((q.square() * self.frame_prior).sum())
        total += float(((g - self.shared_mean).square() * self.shared_prior).sum())
        total += float(self.size_weight * (self.rig.size(g) - 1) ** 2)
        total += float(self.bound_weight * (self._excess(q)).square().sum())
        if self.n > 2:
            total += float(((q[2:] - 2 * q[1:-1] + q[:-2]).square() * self.smooth).sum())
        return total

    def _excess(self, q: Tensor) -> Tensor:
        return (q - self.upper).clamp_min(0) - (self.lower - q).clamp_min(0)

    # -- stage 2 ---------------------------------------------------------------------------------------------------

    def _normal_equations(self, g: Tensor, q: Tensor, rows: Tensor):
        """Frame blocks (N, P, P), border (N, P, G), shared block (G, G), gradients (N, P) and (G,)."""
        G, P = len(g), self.rig.layout.size
        A, B = torch.zeros(self.n, P, P, dtype=torch.float64), torch.zeros(self.n, P, G, dtype=torch.float64)
        C = torch.zeros(G, G, dtype=torch.float64)
        a, c = torch.zeros(self.n, P, dtype=torch.float64), torch.zeros(G, dtype=torch.float64)
        for part in self._chunks():
            for (r, Jg, Jq), share in zip(self._residuals(g, q, rows, part, derivatives=True), self.shares):
                # Geman-McClure by reweighting: its gradient is that of the squares weighted by (9 / (9 + r^2))^2.
                robust = share**0.5 * (9 / (9 + r.square().sum(-1)))[..., None]
                r = (r * robust).flatten(1)
                Jg, Jq = (Jg * robust[..., None]).flatten(1, 2), (Jq * robust[..., None]).flatten(1, 2)
                A[part] += (Jq.mT @ Jq).double()
                B[part] += (Jq.mT @ Jg).double()
                flat = Jg.flatten(0, 1)
                C += (flat.mT @ flat).double()
                a[part] += (Jq.mT @ r[..., None])[..., 0].double()
                c += (flat.mT @ r.flatten()).double()
        excess = self._excess(q)
        diagonal = self.frame_prior + self.bound_weight * (excess != 0)
        A.diagonal(dim1=1, dim2=2).add_(diagonal)
        a += q * self.frame_prior + self.bound_weight * excess
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
        self, g: Tensor, q: Tensor, most: int, report=lambda step, text: None, hold: bool = False
    ) -> tuple[Tensor, Tensor, int]:
        """Levenberg-Marquardt until the cost stops falling; damping shrinks on success and grows on failure.

        `hold` keeps the shared unknowns as they are.
        """
        damping = 1e-2 if self.matches is None else 1e-5  # stage 3 starts near its end, in a long valley
        rows = self.choose(g, q)
        cost = self.cost(g, q, rows)
        step = 0
        for step in range(1, most + 1):
            A, B, C, a, c = self._normal_equations(g, q, rows)
            a = a + self._smooth_gradient(q)
            G, P = len(g), self.rig.layout.size
            fell = False
            for _ in range(6):
                damped = A + damping * torch.diag_embed(A.diagonal(dim1=1, dim2=2))
                if hold:
                    new_g, new_q = g, q - chain.solve(damped, self.smooth, a[..., None])[..., 0]
                else:
                    solved = chain.solve(damped, self.smooth, torch.cat([a[..., None], B], 2)).reshape(-1, 1 + G)
                    border = B.reshape(-1, G)
                    schur = C * (1 + damping * torch.eye(G)) - border.T @ solved[:, 1:]
                    dg = torch.linalg.solve(schur, border.T @ solved[:, 0] - c)
                    new_g, new_q = g + dg, q - (solved[:, 0] + solved[:, 1:] @ dg).view(self.n, P)
                new_cost = self.cost(new_g, new_q, rows)
                if np.isfinite(new_cost) and new_cost < cost:
                    fell = True
                    break
                damping *= 10
            if not fell:
                break
            g, q, damping = new_g, new_q, max(damping / 5, 1e-9)
            rows = self.choose(g, q)
            before, cost = cost, self.cost(g, q, rows)
            report(step, f"error {self.errors(g, q).mean():.2f} px")
            if abs(before - cost) < 1e-4 * cost:
                break
        return g, q.clamp(self.lower, self.upper), step

    def smooth_gaze(self, measured: Tensor, information: Tensor) -> Tensor:
        """The likeliest gaze (N, 2) for measurements (N, 2) with inverse covariances (N, 2, 2), smooth over time."""
        information = information.double()
        smooth = self.rig.layout.split(self.smooth)["gaze"]
        return chain.solve(information, smooth, information @ measured.double()[..., None])[..., 0]

    # -- results ---------------------------------------------------------------------------------------------------

    def landmarks_of(self, g: Tensor, q: Tensor) -> Tensor:
        """The model's 68 landmarks (N, 68, 2) in pixels, contour slid."""
        return self.rig.project(g, q, self.rig.chosen(self.choose(g, q)), self.centre)[:, :68]

    def errors(self, g: Tensor, q: Tensor) -> np.ndarray:
        """Reprojection errors (valid frames, 68), pixels."""
        return (self.landmarks_of(g, q) - self.observed[:, :68]).norm(dim=-1).numpy()[self.seen.valid]

    def as_track(self, g: Tensor, q: Tensor) -> Track:
        parts = {k: v.float() for k, v in self.rig.layout.split(q).items()}
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
            eyelids=size * parts["eyelids"].numpy() if self.rig.layout.eyelids else np.zeros((n, 2), np.float32),
        )


def _compared(points: Tensor) -> Tensor:
    """What is compared with the image: (B, 70, 2, ...) points to (B, 77, 2, ...) landmarks, gaps, places of the irises.

    Linear, so that it maps derivatives too. An iris is taken relative to the middle of its eye, which frees the gaze
    from errors of the pose.
    """
    gaps = points[:, GAPS[:, 0]] - points[:, GAPS[:, 1]]
    irises = points[:, 68:] - points[:, EYES].mean(2)
    return torch.cat([points[:, :68], gaps, irises], 1)
