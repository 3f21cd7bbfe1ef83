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
EYELID_PAIRS = ((37, 41), (38, 40), (43, 47), (44, 46))
LIP_PAIRS = ((61, 67), (62, 66), (63, 65))
EYE_LANDMARKS = (range(42, 48), range(36, 42))  # of the person's left and right eye
CHUNK = 32  # frames linearised at a time


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
    independent_frames: float = 20.0
    expression_sigma: float = 0.3
    jaw_sigma: tuple[float, float, float] = (0.15, 0.03, 0.02)
    eyelid_sigma: float = 0.5
    gaze_prior_sigma: float = 0.3
    focal_prior: float = 2.0  # times the longer side of the image
    focal_sigma: float = 0.5  # of the logarithm
    smooth_rotation: float = 0.01
    smooth_translation: float = 0.001
    smooth_expression: float = 0.08
    smooth_jaw: float = 0.03
    smooth_eyelids: float = 0.3
    smooth_gaze: float = 0.1


@dataclass(frozen=True)
class Layout:
    """Columns of a frame's parameters: rotation vector 3, translation 3, expression E, jaw 3, eyelids 2, gaze 2."""

    n_shape: int
    n_expression: int
    eyelids: bool

    @property
    def size(self) -> int:
        return 6 + self.n_expression + 3 + 2 * self.eyelids + 2

    def split(self, q: Tensor) -> dict[str, Tensor]:
        sizes = [3, 3, self.n_expression, 3, 2 if self.eyelids else 0, 2]
        names = ("rotation", "translation", "expression", "jaw", "eyelids", "gaze")
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
        # Fixed landmarks and contour candidates are points on few triangles: keep only their vertices.
        contour_faces, contour_bary = contour.candidates(head)
        point_faces = torch.cat([contour_faces.reshape(-1), head.landmark_faces[17:]])
        self.bary = torch.cat([contour_bary.reshape(-1, 3), head.landmark_bary[17:]])
        used, corners = head.faces[point_faces].unique(return_inverse=True)
        self.corners = corners.reshape(-1, 3)
        self.small, iris = _restricted_to(head, used)
        self.iris = iris
        self.n_candidates = contour_faces.shape[1]
        size = max(seen.image_size)
        self.centre = torch.tensor([seen.image_size[0] / 2, seen.image_size[1] / 2], dtype=torch.float32)
        self.focal_guess = options.focal or options.focal_prior * size

        iod = torch.from_numpy(np.where(seen.valid, seen.iod, 1.0)).float()
        valid = torch.from_numpy(seen.valid).float()
        sigma = torch.full((68,), options.landmark_sigma)
        sigma[:17] = options.contour_sigma
        self.landmark_weight = valid[:, None] / (sigma * iod[:, None])  # (N, 68), 1/px
        self.gap_weight = valid / (options.gap_sigma * iod)
        self.gaze_weight = torch.from_numpy(seen.iris_valid).float() * (valid / (options.gaze_sigma * iod))[:, None]
        self.landmarks = torch.from_numpy(np.nan_to_num(seen.landmarks)).float()
        self.irises = torch.from_numpy(np.nan_to_num(seen.irises)).float()
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
        prior["rotation"] += 1e-2  # keeps frames before the first landmark solvable
        prior["translation"] += 1e-2
        self.frame_prior = torch.cat(list(prior.values()))
        smooth = {
            "rotation": o.smooth_rotation,
            "translation": o.smooth_translation,
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
            q[i, 3:6] = torch.from_numpy(np.asarray(translation).reshape(3))
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

    def _project(self, g: Tensor, q: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Points (B, 17 C + 51, 2) and iris centres (B, 2, 2) in pixels; `rows` (B, 68) keeps only those points."""
        parts = self.layout.split(q)
        S = self.layout.n_shape
        gaze = torch.cat([-parts["gaze"][:, 1:], parts["gaze"][:, :1], torch.zeros_like(parts["gaze"][:, :1])], 1)
        eye = roma.rotvec_to_rotmat(gaze)
        vertices = self.small(
            shape=g[None, :S],
            expression=parts["expression"],
            jaw=roma.rotvec_to_rotmat(parts["jaw"]),
            eyes=torch.stack([eye, eye], 1),
            eyelids=parts["eyelids"] if self.layout.eyelids else None,
        )
        R = roma.rotvec_to_rotmat(parts["rotation"]) @ FACING.to(q)
        camera = vertices @ R.transpose(1, 2) + parts["translation"][:, None]
        bary = self.bary.to(q)
        if rows is None:
            points = (camera[:, self.corners] * bary[:, :, None]).sum(2)
        else:
            batch = torch.arange(len(q))[:, None, None]
            points = (camera[batch, self.corners[rows]] * bary[rows][..., None]).sum(2)
        points = torch.cat([points, camera[:, self.iris]], 1)
        pixels = points[..., :2] / points[..., 2:].clamp_min(1e-3) * g[-1].exp() + self.centre.to(q)
        return pixels[:, :-2], pixels[:, -2:]

    def choose(self, g: Tensor, q: Tensor) -> Tensor:
        """Which of all points are the 68 landmarks in each frame (N, 68): the outline of the face slides."""
        with torch.no_grad():
            points, _ = self._project(g.float(), q.float())
        C = self.n_candidates
        chosen = contour.visible(points[:, : 17 * C].reshape(-1, 17, C, 2))
        rows = torch.arange(17) * C + chosen
        fixed = torch.arange(17 * C, 17 * C + 51).expand(len(q), -1)
        return torch.cat([rows, fixed], 1)

    def _residuals(self, g, q, rows, landmarks, irises, w_landmark, w_gap, w_gaze):
        """Weighted residuals of one frame (68*2 + gaps*2 + 4,), all of unit variance."""
        points, iris = self._project(g, q[None], rows[None])
        points, iris = points[0], iris[0]
        pairs = torch.tensor(EYELID_PAIRS + LIP_PAIRS)
        gaps = points[pairs[:, 0]] - points[pairs[:, 1]] - (landmarks[pairs[:, 0]] - landmarks[pairs[:, 1]])
        # Where the iris stands within the eye: free of the pose, which the landmarks fix.
        eyes = torch.tensor([list(r) for r in EYE_LANDMARKS])
        place = (iris - points[eyes].mean(1)) - (irises - landmarks[eyes].mean(1))
        return torch.cat(
            [
                ((points - landmarks) * w_landmark[:, None]).reshape(-1),
                (gaps * w_gap).reshape(-1),
                (place * w_gaze[:, None]).reshape(-1),
            ]
        )

    def _robust(self, residuals: Tensor) -> Tensor:
        """Square roots of Geman-McClure weights (B, R) of landmark and iris residuals, falling beyond 3 sigma."""
        n = 136 + 2 * len(EYELID_PAIRS + LIP_PAIRS)
        squared = residuals[:, :136].reshape(-1, 68, 2).square().sum(-1)
        weight = (9 / (9 + squared)).repeat_interleave(2, dim=1)
        gaze = residuals[:, n:].reshape(-1, 2, 2).square().sum(-1)
        return torch.cat(
            [weight, torch.ones_like(residuals[:, 136:n]), (9 / (9 + gaze)).repeat_interleave(2, dim=1)], 1
        )

    def _chunks(self):
        return [slice(a, min(a + CHUNK, self.n)) for a in range(0, self.n, CHUNK)]

    def _frame_data(self, part: slice, rows: Tensor) -> tuple:
        data = (self.landmarks, self.irises, self.landmark_weight, self.gap_weight, self.gaze_weight)
        return (rows[part], *(d[part] for d in data))

    def cost(self, g: Tensor, q: Tensor, rows: Tensor) -> float:
        """The Geman-McClure data cost plus the priors."""
        total = 0.0
        function = torch.func.vmap(self._residuals, in_dims=(None, 0, 0, 0, 0, 0, 0, 0))
        n = 136 + 2 * len(EYELID_PAIRS + LIP_PAIRS)
        for part in self._chunks():
            with torch.no_grad():
                r = function(g.float(), q[part].float(), *self._frame_data(part, rows)).double()
            squared = torch.cat([r[:, :136].reshape(-1, 68, 2), r[:, n:].reshape(-1, 2, 2)], 1).square().sum(-1)
            total += float((9 * squared / (9 + squared)).sum()) + float(r[:, 136:n].square().sum())
        total += float((q.square() * self.frame_prior).sum())
        total += float(((g - self.shared_mean).square() * self.shared_prior).sum())
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

        def residuals(both, *data):
            r = self._residuals(both[:G], both[G:], *data)
            return r, r

        jacobian = torch.func.vmap(torch.func.jacfwd(residuals, has_aux=True))
        A, B, C = torch.zeros(self.n, P, P, dtype=torch.float64), [], torch.zeros(G, G, dtype=torch.float64)
        a, c = torch.zeros(self.n, P, dtype=torch.float64), torch.zeros(G, dtype=torch.float64)
        for part in self._chunks():
            both = torch.cat([g.float().expand(len(q[part]), -1), q[part].float()], 1)
            J, r = jacobian(both, *self._frame_data(part, rows))
            weight = self._robust(r)
            J, r = (J * weight[..., None]).double(), (r * weight).double()
            Jg, Jq = J[..., :G], J[..., G:]
            A[part] = Jq.transpose(1, 2) @ Jq
            B.append(Jq.transpose(1, 2) @ Jg)
            C += torch.einsum("brg,brh->gh", Jg, Jg)
            a[part] = torch.einsum("brp,br->bp", Jq, r)
            c += torch.einsum("brg,br->g", Jg, r)
        excess = self._excess(q)
        diagonal = self.frame_prior + self.bound_weight * (excess != 0)
        A.diagonal(dim1=1, dim2=2).add_(diagonal)
        a += q * self.frame_prior + self.bound_weight * excess
        C.diagonal().add_(self.shared_prior)
        c += (g - self.shared_mean) * self.shared_prior
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
        with torch.no_grad():
            points, _ = self._project(g.float(), q.float(), self.choose(g, q))
        return points

    def errors(self, g: Tensor, q: Tensor) -> np.ndarray:
        """Reprojection errors (valid frames, 68), pixels."""
        return (self.landmarks_of(g, q) - self.landmarks).norm(dim=-1).numpy()[self.seen.valid]

    def as_track(self, g: Tensor, q: Tensor) -> Track:
        parts = {k: v.float() for k, v in self.layout.split(q).items()}
        n, focal = self.n, float(g[-1].exp())
        gaze = torch.cat([-parts["gaze"][:, 1:], parts["gaze"][:, :1], torch.zeros(n, 1)], 1)
        eye = roma.rotvec_to_rotmat(gaze)
        K = np.array([[focal, 0, self.centre[0]], [0, focal, self.centre[1]], [0, 0, 1]], np.float32)
        return Track(
            head_model=self.head.name,
            image_size=np.asarray(self.seen.image_size),
            fps=self.seen.fps,
            K=K,
            names=self.seen.names,
            valid=self.seen.valid,
            shape=g[:-1].float().numpy(),
            expression=parts["expression"].numpy(),
            R=(roma.rotvec_to_rotmat(parts["rotation"]) @ FACING).numpy(),
            t=parts["translation"].numpy(),
            neck=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),
            jaw=roma.rotvec_to_rotmat(parts["jaw"]).numpy(),
            eyes=torch.stack([eye, eye], 1).numpy(),
            eyelids=parts["eyelids"].numpy() if self.layout.eyelids else np.zeros((n, 2), np.float32),
        )


def _restricted_to(head: HeadModel, vertex_ids: Tensor) -> tuple[HeadModel, Tensor]:
    """The model on some vertices only, and the ids of two added vertices at the iris centres (left, right).

    The joints of the full head, which the regressor makes from all vertices, are appended as vertices of their own, so
    that the small model's regressor only has to pick them.
    """
    template, shape_basis, expression_basis = head._joint_basis
    n, device = len(vertex_ids), head.v_template.device
    # Iris centres: on the eye joint's axis, one eyeball radius in front of it; they move with the joint.
    radius = _eye_radius(head)
    iris_template = template[3:5] + torch.tensor([0.0, 0.0, radius])

    def grown(values: Tensor, joints: Tensor, irises: Tensor) -> Tensor:
        return torch.cat([values[vertex_ids], joints, irises])

    def zeros(like: Tensor) -> Tensor:
        return torch.zeros(5, *like.shape[1:]), torch.zeros(2, *like.shape[1:])

    iris_weights = torch.zeros(2, 5)
    iris_weights[0, 3] = iris_weights[1, 4] = 1
    regressor = torch.zeros(5, n + 7, device=device)
    regressor[:, n : n + 5] = torch.eye(5)
    small = replace(
        head,
        v_template=grown(head.v_template, template, iris_template),
        shapedirs=grown(head.shapedirs, shape_basis, shape_basis[3:5]),
        expressiondirs=grown(head.expressiondirs, expression_basis, expression_basis[3:5]),
        posedirs=grown(head.posedirs, *zeros(head.posedirs)),
        weights=grown(head.weights, torch.zeros(5, 5), iris_weights),
        eyelids=None if head.eyelids is None else grown(head.eyelids, *zeros(head.eyelids)),
        J_regressor=regressor,
        faces=torch.zeros(0, 3, dtype=torch.long),
        vt=None,
        ft=None,
        landmark_faces=None,
        landmark_bary=None,
        regions=None,
        albedo_mean=None,
        albedo_components=None,
    )
    return small, torch.tensor([n + 5, n + 6])


def _eye_radius(head: HeadModel) -> float:
    """Mean distance, metres, of the left eyeball's vertices (skinned wholly to its joint) from that joint."""
    ball = head.v_template[head.weights[:, 3] > 0.99]
    if not len(ball):
        return 0.012
    return float((ball - head._joint_basis[0][3]).norm(dim=1).median())
