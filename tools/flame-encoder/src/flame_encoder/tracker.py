"""Head-model parameters of every frame of a clip, by second-order optimisation on 68 landmarks.

Unknown are, once for the clip, the identity and the focal length, and in each frame the head's pose, expression, jaw,
eyelids and gaze. Stage 1 poses the mean head in each frame (PnP). Stage 2 solves for everything at once by the
Levenberg-Marquardt method: frames couple only to their neighbours (second differences) and to the shared unknowns, so
that the normal equations are a band of frame blocks bordered by the shared columns, and a step costs time linear in the
number of frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import roma
import scipy.linalg
import torch
from recon4d.files import InputError
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from torch import Tensor

from flame_encoder import contour
from flame_encoder.observations import Observations

FACING = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # head space (y up, z out of the face) facing an OpenCV camera
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


@dataclass(frozen=True)
class Layout:
    """Columns of a frame's parameters: rotation vector 3, place 3, expression E, jaw 3, eyelids 2, gaze 2.

    One video does not tell a small head nearby from a large one far away, so no prior may prefer either: place is
    (x / z, y / z, log z) of the translation, and expression and eyelids are in units of the head's size, without which
    a small head, which needs smaller coefficients, would win. Gaze is (yaw, pitch).
    """

    n_shape: int
    n_expression: int
    eyelids: bool

    @property
    def size(self) -> int:
        return 6 + self.n_expression + 3 + 2 * self.eyelids + 2

    def split(self, q: Tensor) -> dict[str, Tensor]:
        sizes = [3, 3, self.n_expression, 3, 2 if self.eyelids else 0, 2]
        names = ("rotation", "place", "expression", "jaw", "eyelids", "gaze")
        return dict(zip(names, q.split(sizes, -1)))


def track(
    head: HeadModel,
    seen: Observations,
    options: Options | None = None,
    n_expression: int = 100,
    n_shape: int = 100,
    report: Callable[[int, str], None] = lambda step, text: None,
) -> tuple[Track, dict]:
    """Fit the head model to the landmarks of a clip.

    Args:
        head: with 68 landmarks.
        seen: N frames of landmarks; at least one must be valid.
        report: called with the step and a text as the work goes on.

    Returns:
        The track, and a dictionary of figures: `mean_px`, `p95_px` (mean and 95th percentile over landmarks and valid
        frames of the reprojection error), `mean_iod` (the mean in % of the distance between the outer eye corners),
        `focal`, `interpolated` (frames without landmarks), `steps`.

    Raises:
        InputError: no frame with landmarks; a head model without landmarks.
    """
    options = options or Options()
    if not seen.valid.any():
        raise InputError("no frame has landmarks; check them with prep-faces landmarks")
    problem = _Problem(head, seen, options, n_shape, n_expression)
    g, q = problem.start()
    g, q, steps = problem.solve(g, q, report)
    errors = problem.errors(g, q)
    result = {
        "mean_px": float(errors.mean()),
        "p95_px": float(np.percentile(errors, 95)),
        "mean_iod": float(100 * (errors / seen.iod[seen.valid][:, None]).mean()),
        "focal": float(np.exp(g[-1])),
        "interpolated": int((~seen.valid).sum()),
        "steps": steps,
    }
    return problem.as_track(g, q), result


class _Problem:
    """The least-squares problem: data, residuals, normal equations. Unknowns: g (S + 1,) shared, q (N, P) per frame."""

    def __init__(self, head: HeadModel, seen: Observations, options: Options, n_shape: int, n_expression: int):
        self.head, self.seen, self.options = head, seen, options
        self.layout = Layout(min(n_shape, head.n_shape), min(n_expression, head.n_expression), head.eyelids is not None)
        contour_faces, contour_bary = contour.candidates(head)
        self.n_candidates = contour_faces.shape[1]
        faces = torch.cat([contour_faces.reshape(-1), head.landmark_faces[17:]])
        bary = torch.cat([contour_bary.reshape(-1, 3), head.landmark_bary[17:]])
        self.points = _Points.on(head, faces, bary, self.layout)
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
        self._priors()

    def _priors(self) -> None:
        o, layout = self.options, self.layout
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
        for kind in ("expression", "eyelids") if self.head.expression_names else ("eyelids",):
            lower[kind], upper[kind] = torch.zeros_like(kinds[kind]), torch.ones_like(kinds[kind])
        self.lower, self.upper = torch.cat(list(lower.values())), torch.cat(list(upper.values()))
        self.bound_weight = 0.05**-2
        self.n = n

    # -- stage 1 ---------------------------------------------------------------------------------------------------

    def start(self) -> tuple[Tensor, Tensor]:
        """The mean head posed in each frame by PnP; frames without landmarks between their neighbours."""
        g = self.shared_mean.clone()
        q = torch.zeros(self.n, self.layout.size, dtype=torch.float64)
        K = np.diag([self.focal_guess, self.focal_guess, 1.0])
        K[:2, 2] = self.centre
        model = self.head.landmarks(self.head.v_template[None])[0].double().numpy()
        fixed = np.r_[17:68]
        rows = np.flatnonzero(self.seen.valid)
        for i in rows:
            points = self.seen.landmarks[i].astype(np.float64)
            ok, rotation, translation = cv2.solvePnP(model[fixed], points[fixed], K, None, flags=cv2.SOLVEPNP_SQPNP)
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
        model = self.head.landmarks(self.head.v_template[None])[0].numpy()
        depth = (
            self.focal_guess * np.linalg.norm(model[36] - model[45]) / max(np.linalg.norm(points[36] - points[45]), 1)
        )
        middle = (points.mean(0) - self.centre.numpy()) / self.focal_guess * depth
        return np.array([middle[0] - model[:, 0].mean(), middle[1] + model[:, 1].mean(), depth])

    # -- residuals -------------------------------------------------------------------------------------------------

    def _project(self, g: Tensor, q: Tensor, rows: Tensor | None = None, derivatives: bool = False):
        """Points (B, n, 2) in pixels and, where asked, their derivatives (B, n, 2, G) and (B, n, 2, P).

        The points are those in `rows` (B, n - 2), or all, followed by the left and right iris. For a fixed pose the
        posed points are affine in the coefficients, so those derivatives are the basis, posed like a point; the few
        pose parameters go through forward-mode differentiation.
        """
        S, parts = self.layout.n_shape, self.layout.split(q)
        size = self._size(g)
        relative = torch.cat([parts["expression"], parts["eyelids"]], 1)
        coefficients = torch.cat([g[:S].expand(len(q), -1), size * relative], 1)
        points = self.points if rows is None else self.points.taken(rows)
        template = points.template + (points.basis @ coefficients[:, None, :, None])[..., 0]
        joints = self.points.joints + torch.einsum("jcs,bs->bjc", self.points.joint_basis, coefficients)
        pose = torch.cat([parts["rotation"], parts["place"], parts["jaw"], parts["gaze"]], 1)
        data = (template, joints, points.weights, points.posedirs)
        batched = (0, None, 0, 0, *((None, None) if rows is None else (0, 0)))

        def pixels(pose, log_focal, template, joints, weights, posedirs):
            camera = _posed(pose, template, joints, weights, posedirs)[0]
            return camera[:, :2] / camera[:, 2:].clamp_min(1e-3) * log_focal.exp() + self.centre

        found = torch.func.vmap(pixels, in_dims=batched)(pose, g[-1], *data)
        if not derivatives:
            return found
        by_pose, by_focal = torch.func.vmap(torch.func.jacfwd(pixels, (0, 1)), in_dims=batched)(pose, g[-1], *data)
        camera, turned, spread = torch.func.vmap(_posed, in_dims=(0, 0, 0, *batched[4:]))(pose, *data)
        moved = turned @ points.basis + torch.einsum("bnjcd,jds->bncs", spread, self.points.joint_basis)
        depth = camera[..., 2:].clamp_min(1e-3)
        by_coefficient = (moved[:, :, :2] - camera[..., :2, None] / depth[..., None] * moved[:, :, 2:]) / depth[
            ..., None
        ]
        by_coefficient = by_coefficient * g[-1].exp()
        by_size = (by_coefficient[..., S:] @ relative[:, None, :, None])[..., 0]
        by_shape = by_coefficient[..., :S] + by_size[..., None] * self.points.growth
        Jg = torch.cat([by_shape, by_focal[..., None]], -1)
        by_frame = size * by_coefficient[..., S:]
        E = self.layout.n_expression
        Jq = torch.cat(
            [by_pose[..., :6], by_frame[..., :E], by_pose[..., 6:9], by_frame[..., E:], by_pose[..., 9:]], -1
        )
        return found, Jg, Jq

    def _size(self, g: Tensor) -> Tensor:
        """Size of the head relative to the mean head's, linear in the identity."""
        return 1 + self.points.growth.to(g) @ g[: self.layout.n_shape]

    def choose(self, g: Tensor, q: Tensor) -> Tensor:
        """Which of all points are the 68 landmarks in each frame (N, 68): the outline of the face slides."""
        C = self.n_candidates
        chosen = []
        for part in self._chunks():
            points = self._project(g.float(), q[part].float())
            chosen.append(contour.visible(points[:, : 17 * C].reshape(-1, 17, C, 2)))
        rows = torch.arange(17) * C + torch.cat(chosen)
        fixed = torch.arange(17 * C, 17 * C + 51).expand(len(q), -1)
        return torch.cat([rows, fixed], 1)

    def _chunks(self) -> list[slice]:
        return [slice(a, min(a + CHUNK, self.n)) for a in range(0, self.n, CHUNK)]

    def cost(self, g: Tensor, q: Tensor, rows: Tensor) -> float:
        """The data terms (Geman-McClure at 3 sigma) plus the priors."""
        total = 0.0
        for part in self._chunks():
            points = self._project(g.float(), q[part].float(), rows[part])
            r = (_compared(points) - self.observed[part]) * self.weight[part][..., None]
            squared = r.double().square().sum(-1)
            total += float((9 * squared / (9 + squared)).sum())
        total += float((q.square() * self.frame_prior).sum())
        total += float(((g - self.shared_mean).square() * self.shared_prior).sum())
        total += float(self.size_weight * (self._size(g) - 1) ** 2)
        total += float(self.bound_weight * (self._excess(q)).square().sum())
        if self.n > 2:
            total += float(((q[2:] - 2 * q[1:-1] + q[:-2]).square() * self.smooth).sum())
        return total

    def _excess(self, q: Tensor) -> Tensor:
        return (q - self.upper).clamp_min(0) - (self.lower - q).clamp_min(0)

    # -- stage 2 ---------------------------------------------------------------------------------------------------

    def _normal_equations(self, g: Tensor, q: Tensor, rows: Tensor):
        """Frame blocks (N, P, P), border (N, P, G), shared block (G, G), gradients (N, P) and (G,)."""
        G, P = len(g), self.layout.size
        A, B, C = torch.zeros(self.n, P, P, dtype=torch.float64), [], torch.zeros(G, G, dtype=torch.float64)
        a, c = torch.zeros(self.n, P, dtype=torch.float64), torch.zeros(G, dtype=torch.float64)
        for part in self._chunks():
            points, Jg, Jq = self._project(g.float(), q[part].float(), rows[part], derivatives=True)
            weight = self.weight[part][..., None]
            r = (_compared(points) - self.observed[part]) * weight
            # Geman-McClure by reweighting: its gradient is that of the squares weighted by (9 / (9 + r^2))^2.
            robust = (9 / (9 + r.square().sum(-1)))[..., None]
            r = (r * robust).flatten(1)
            Jg = (_compared(Jg) * (weight * robust)[..., None]).flatten(1, 2)
            Jq = (_compared(Jq) * (weight * robust)[..., None]).flatten(1, 2)
            A[part] = (Jq.mT @ Jq).double()
            B.append((Jq.mT @ Jg).double())
            C += (Jg.mT @ Jg).double().sum(0)
            a[part] = (Jq.mT @ r[..., None])[..., 0].double()
            c += (Jg.mT @ r[..., None])[..., 0].double().sum(0)
        excess = self._excess(q)
        diagonal = self.frame_prior + self.bound_weight * (excess != 0)
        A.diagonal(dim1=1, dim2=2).add_(diagonal)
        a += q * self.frame_prior + self.bound_weight * excess
        growth = torch.cat([self.points.growth, torch.zeros(1)]).double()
        C.diagonal().add_(self.shared_prior)
        C += self.size_weight * growth[:, None] * growth
        c += (g - self.shared_mean) * self.shared_prior + self.size_weight * (self._size(g) - 1) * growth
        return A, torch.cat(B), C, a, c

    def _banded(self, A: Tensor, damping: float) -> np.ndarray:
        """Lower band storage of the frame blocks with the second-difference prior; LM damping scales the diagonal."""
        N, P = self.n, self.layout.size
        band = np.zeros((2 * P + 1, N * P)) if N > 2 else np.zeros((P, N * P))
        blocks = A.numpy()
        columns = np.arange(N)[:, None] * P
        for offset in range(P):
            index = np.arange(P - offset)
            band[offset, (columns + index).reshape(-1)] = blocks[:, index + offset, index].reshape(-1)
        band[0] *= 1 + damping
        if N > 2:
            D = np.zeros((N, 3))  # diagonals 0, 1, 2 of the second-difference operator's normal matrix
            stencil = np.array([1.0, -2.0, 1.0])
            for k in range(3):
                for j in range(3):
                    if j >= k:
                        D[k : N - 2 + k, j - k] += stencil[k] * stencil[j]
            s = self.smooth.numpy()
            for offset in range(3):
                band[offset * P] += (D[:, offset, None] * s).reshape(-1)
        return band

    def _smooth_gradient(self, q: Tensor) -> Tensor:
        gradient = torch.zeros_like(q)
        if self.n > 2:
            second = (q[2:] - 2 * q[1:-1] + q[:-2]) * self.smooth
            gradient[2:] += second
            gradient[1:-1] -= 2 * second
            gradient[:-2] += second
        return gradient

    def solve(self, g: Tensor, q: Tensor, report) -> tuple[Tensor, Tensor, int]:
        """Levenberg-Marquardt until the cost stops falling; damping halves on success and grows on failure."""
        damping = 1e-2
        rows = self.choose(g, q)
        cost = self.cost(g, q, rows)
        step = 0
        for step in range(1, self.options.iterations + 1):
            A, B, C, a, c = self._normal_equations(g, q, rows)
            a = a + self._smooth_gradient(q)
            G, P = len(g), self.layout.size
            fell = False
            for _ in range(6):
                right = np.concatenate([a.reshape(-1, 1).numpy(), B.reshape(-1, G).numpy()], 1)
                solved = scipy.linalg.solveh_banded(
                    self._banded(A, damping), right, lower=True, overwrite_ab=True, check_finite=False
                )
                border = B.reshape(-1, G).numpy()
                schur = C.numpy() * (1 + damping * np.eye(G)) - border.T @ solved[:, 1:]
                dg = np.linalg.solve(schur, border.T @ solved[:, 0] - c.numpy())
                dq = -solved[:, 0] - solved[:, 1:] @ dg
                new_g, new_q = g + torch.from_numpy(dg), q + torch.from_numpy(dq.reshape(self.n, P))
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
            report(step, f"cost {cost:.0f}")
            if abs(before - cost) < 1e-4 * cost:
                break
        return g, q.clamp(self.lower, self.upper), step

    # -- results ---------------------------------------------------------------------------------------------------

    def landmarks_of(self, g: Tensor, q: Tensor) -> Tensor:
        """The model's 68 landmarks (N, 68, 2) in pixels, contour slid."""
        return self._project(g.float(), q.float(), self.choose(g, q))[:, :68]

    def errors(self, g: Tensor, q: Tensor) -> np.ndarray:
        """Reprojection errors (valid frames, 68), pixels."""
        return (self.landmarks_of(g, q) - self.observed[:, :68]).norm(dim=-1).numpy()[self.seen.valid]

    def as_track(self, g: Tensor, q: Tensor) -> Track:
        parts = {k: v.float() for k, v in self.layout.split(q).items()}
        n, focal, size = self.n, float(g[-1].exp()), float(self._size(g))
        eye = _eye_rotation(parts["gaze"])
        x, y, log_z = parts["place"].unbind(1)
        K = np.array([[focal, 0, self.centre[0]], [0, focal, self.centre[1]], [0, 0, 1]], np.float32)
        return Track(
            head_model=self.head.name,
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
            eyelids=size * parts["eyelids"].numpy() if self.layout.eyelids else np.zeros((n, 2), np.float32),
        )


def _eye_rotation(gaze: Tensor) -> Tensor:
    """(..., 2) yaw and pitch, radians, to rotation matrices (..., 3, 3); positive looks left and up."""
    return roma.rotvec_to_rotmat(torch.stack([-gaze[..., 1], gaze[..., 0], torch.zeros_like(gaze[..., 0])], -1))


def _compared(points: Tensor) -> Tensor:
    """What is compared with the image: (B, 70, 2, ...) points to (B, 77, 2, ...) landmarks, gaps, places of the irises.

    Linear, so that it maps derivatives too. An iris is taken relative to the middle of its eye, which frees the gaze
    from errors of the pose.
    """
    gaps = points[:, GAPS[:, 0]] - points[:, GAPS[:, 1]]
    irises = points[:, 68:] - points[:, EYES].mean(2)
    return torch.cat([points[:, :68], gaps, irises], 1)


def _posed(pose: Tensor, template: Tensor, joints: Tensor, weights: Tensor, posedirs: Tensor):
    """Points of one head in camera space, and what makes them: their rotations and their shares of the joints.

    Args:
        pose: (11,) rotation vector, place, jaw rotation vector, gaze.
        template: (n, 3) unposed points. joints: (5, 3). weights: (n, 5). posedirs: (n, 3, 36).

    Returns:
        (n, 3); (n, 3, 3) and (n, 5, 3, 3), the derivatives by `template` and by `joints`.
    """
    identity = torch.eye(3)
    eye = _eye_rotation(pose[9:])
    # Global and neck rotation are identity, so every joint turns about its own place.
    R = torch.stack([identity, identity, roma.rotvec_to_rotmat(pose[6:9]), eye, eye])
    corrected = template + posedirs @ (R[1:] - identity).reshape(36)
    head = roma.rotvec_to_rotmat(pose[:3]) @ FACING
    turned = head @ torch.einsum("nj,jcd->ncd", weights, R)
    spread = weights[:, :, None, None] * (head @ (identity - R))
    place = torch.cat([pose[3:5], torch.ones(1)]) * pose[5].exp()
    camera = (turned @ corrected[..., None])[..., 0] + torch.einsum("njcd,jd->nc", spread, joints) + place
    return camera, turned, spread


@dataclass(frozen=True)
class _Points:
    """Points on a head model as vertices of their own: arrays of the model, interpolated; coefficients side by side.

    Skinning weights are interpolated too, which differs from interpolating posed vertices by a few hundredths of a
    millimetre where the weights change within a triangle.
    """

    template: Tensor  # (n, 3) or (B, n, 3); the last two are the left and right iris
    basis: Tensor  # (n, 3, S + E + 2)
    weights: Tensor  # (n, 5)
    posedirs: Tensor  # (n, 3, 36)
    joints: Tensor  # (5, 3)
    joint_basis: Tensor  # (5, 3, S + E + 2)
    growth: Tensor  # (S,) relative growth of the points per identity coefficient

    @staticmethod
    def on(head: HeadModel, faces: Tensor, bary: Tensor, layout: Layout) -> "_Points":
        template, shape_basis, expression_basis = head._joint_basis
        S, E = layout.n_shape, layout.n_expression
        basis = [head.shapedirs[:, :, :S], head.expressiondirs[:, :, :E]]
        joint_basis = [shape_basis[:, :, :S], expression_basis[:, :, :E]]
        if head.eyelids is not None:
            basis.append(head.eyelids)
            joint_basis.append(torch.zeros(5, 3, 2))  # eyelids move no joint
        corners = head.faces[faces]

        def interpolated(values: Tensor) -> Tensor:
            return torch.einsum("nk,nk...->n...", bary, values[corners])

        joint_basis = torch.cat(joint_basis, 2)
        forward = torch.tensor([0.0, 0.0, _eye_radius(head)])  # an iris lies one eyeball radius in front of its joint
        iris_weights = torch.eye(5)[3:]
        points, points_basis = interpolated(head.v_template), interpolated(torch.cat(basis, 2))
        centred = points - points.mean(0)
        growth = torch.einsum("nc,ncs->s", centred, points_basis[..., :S]) / centred.square().sum()
        return _Points(
            template=torch.cat([points, template[3:] + forward]),
            basis=torch.cat([points_basis, joint_basis[3:]]),
            weights=torch.cat([interpolated(head.weights), iris_weights]),
            posedirs=torch.cat([interpolated(head.posedirs), torch.zeros(2, 3, 36)]),
            joints=template,
            joint_basis=joint_basis,
            growth=growth,
        )

    def taken(self, rows: Tensor) -> "_Points":
        """Per frame only the points in `rows` (B, n), and the irises: arrays get a leading dimension B."""
        last = len(self.weights)
        rows = torch.cat([rows, torch.tensor([last - 2, last - 1]).expand(len(rows), 2)], 1)
        kept = {k: getattr(self, k)[rows] for k in ("template", "basis", "weights", "posedirs")}
        return replace(self, **kept)


def _eye_radius(head: HeadModel) -> float:
    """Mean distance, metres, of the left eyeball's vertices (skinned wholly to its joint) from that joint."""
    ball = head.v_template[head.weights[:, 3] > 0.99]
    if not len(ball):
        return 0.012
    return float((ball - head._joint_basis[0][3]).norm(dim=1).median())
