"""Points on a head model as functions of its coefficients and pose: what a tracker compares with the image."""

from dataclasses import dataclass, replace

import roma
import torch
from recon4d.head import HeadModel
from torch import Tensor

from flame_encoder.tracker import contour

FACING = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # head space (y up, z out of the face) facing an OpenCV camera


def eye_rotation(gaze: Tensor) -> Tensor:
    """(..., 2) yaw and pitch, radians, to rotation matrices (..., 3, 3); positive looks left and up."""
    answer: Tensor = roma.rotvec_to_rotmat(
        torch.stack([-gaze[..., 1], gaze[..., 0], torch.zeros_like(gaze[..., 0])], -1)
    )
    return answer


def posed(
    pose: Tensor, template: Tensor, joints: Tensor, weights: Tensor, posedirs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of one head in camera space, and what makes them: their rotations and their shares of the joints.

    Args:
        pose: (11,) rotation vector, place, jaw rotation vector, gaze.
        template: (n, 3) unposed points. joints: (5, 3). weights: (n, 5). posedirs: (n, 3, 36).

    Returns:
        (n, 3); (n, 3, 3) and (n, 5, 3, 3), the derivatives by `template` and by `joints`.
    """
    identity = torch.eye(3)
    eye = eye_rotation(pose[9:])
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
class Columns:
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
        """How many columns."""
        return 6 + self.n_expression + 3 + 2 * self.eyelids + 2

    def split(self, q: Tensor) -> dict[str, Tensor]:
        """Views of the columns (..., P) of `q` by their names."""
        sizes = [3, 3, self.n_expression, 3, 2 if self.eyelids else 0, 2]
        names = ("rotation", "place", "expression", "jaw", "eyelids", "gaze")
        return dict(zip(names, q.split(sizes, -1)))


@dataclass(frozen=True, eq=False)
class Points:
    """Points on a head model as vertices of their own: arrays of the model, interpolated; coefficients side by side.

    Skinning weights are interpolated too, which differs from interpolating posed vertices by a few hundredths of a
    millimetre where the weights change within a triangle.
    """

    template: Tensor  # (n, 3) or (B, n, 3)
    basis: Tensor  # (n, 3, S + E + 2)
    weights: Tensor  # (n, 5)
    posedirs: Tensor  # (n, 3, 36)
    joints: Tensor  # (5, 3)
    joint_basis: Tensor  # (5, 3, S + E + 2)

    @staticmethod
    def on(head: HeadModel, faces: Tensor, bary: Tensor, n_shape: int, n_expression: int) -> "Points":
        """Points (n,) on faces of the model, by the first coefficients of each kind."""
        joints, shape_basis, expression_basis = head.joint_basis
        basis = [head.shapedirs[:, :, :n_shape], head.expressiondirs[:, :, :n_expression]]
        joint_basis = [shape_basis[:, :, :n_shape], expression_basis[:, :, :n_expression]]
        if head.eyelids is not None:
            basis.append(head.eyelids)
            joint_basis.append(torch.zeros(5, 3, 2))  # eyelids move no joint
        corners = head.faces[faces]

        def interpolated(values: Tensor) -> Tensor:
            return torch.einsum("nk,nk...->n...", bary, values[corners])

        return Points(
            template=interpolated(head.v_template),
            basis=interpolated(torch.cat(basis, 2)),
            weights=interpolated(head.weights),
            posedirs=interpolated(head.posedirs),
            joints=joints,
            joint_basis=torch.cat(joint_basis, 2),
        )

    def with_irises(self, head: HeadModel) -> "Points":
        """The points, and last the left and right iris: one eyeball radius in front of its joint."""
        forward = torch.tensor([0.0, 0.0, eye_radius(head)])
        return replace(
            self,
            template=torch.cat([self.template, self.joints[3:] + forward]),
            basis=torch.cat([self.basis, self.joint_basis[3:]]),
            weights=torch.cat([self.weights, torch.eye(5)[3:]]),
            posedirs=torch.cat([self.posedirs, torch.zeros(2, 3, 36)]),
        )

    def growth(self, n_shape: int) -> Tensor:
        """(S,) relative growth of the points about their middle, per identity coefficient."""
        centred = self.template - self.template.mean(0)
        return torch.einsum("nc,ncs->s", centred, self.basis[..., :n_shape]) / centred.square().sum()

    def taken(self, rows: Tensor) -> "Points":
        """Per frame only the points in `rows` (B, n): arrays get a leading dimension B."""
        return replace(self, **{k: getattr(self, k)[rows] for k in ("template", "basis", "weights", "posedirs")})


def eye_radius(head: HeadModel) -> float:
    """Mean distance, metres, of the left eyeball's vertices (skinned wholly to its joint) from that joint."""
    ball = head.v_template[head.weights[:, 3] > 0.99]
    if not len(ball):
        return 0.012
    return float((ball - head.joint_basis[0][3]).norm(dim=1).median())


class Rig:
    """A head model as a tracker moves it: its landmarks and irises, and other points, as functions of the unknowns.

    Unknowns are g (S + 1,), identity and logarithm of the focal length, and q (N, P), see `Columns`.
    """

    def __init__(self, head: HeadModel, n_shape: int = 100, n_expression: int = 100):
        self.head = head
        self.columns = Columns(
            min(n_shape, head.n_shape), min(n_expression, head.n_expression), head.eyelids is not None
        )
        contour_faces, contour_bary = contour.candidates(head)
        assert head.landmark_faces is not None and head.landmark_bary is not None
        self.n_candidates = contour_faces.shape[1]
        skin = self.points(
            torch.cat([contour_faces.reshape(-1), head.landmark_faces[17:]]),
            torch.cat([contour_bary.reshape(-1, 3), head.landmark_bary[17:]]),
        )
        self.growth = skin.growth(self.columns.n_shape)
        self.landmarks = skin.with_irises(head)  # 17 rows of contour candidates, 51 landmarks, 2 irises

    def points(self, faces: Tensor, bary: Tensor) -> Points:
        """Points (n,) on faces of the model."""
        return Points.on(self.head, faces, bary, self.columns.n_shape, self.columns.n_expression)

    def size(self, g: Tensor) -> Tensor:
        """Size of the head relative to the mean head's, linear in the identity."""
        return 1 + self.growth.to(g) @ g[: self.columns.n_shape]

    def chosen(self, rows: Tensor) -> Points:
        """The landmarks in `rows` (B, 68), and the irises."""
        last = len(self.landmarks.weights)
        return self.landmarks.taken(torch.cat([rows, torch.tensor([last - 2, last - 1]).expand(len(rows), 2)], 1))

    def outline(self, g: Tensor, q: Tensor, centre: Tensor) -> Tensor:
        """Which of the landmarks' candidates are the 68 landmarks in each frame (N, 68): the outline slides."""
        points = self.project(g, q, self.landmarks, centre)[:, : 17 * self.n_candidates]
        rows = torch.arange(17) * self.n_candidates + contour.visible(points.view(-1, 17, self.n_candidates, 2))
        return torch.cat([rows, 17 * self.n_candidates + torch.arange(51).expand(len(q), -1)], 1)

    def project(self, g: Tensor, q: Tensor, points: Points, centre: Tensor) -> Tensor:
        """Points (B, n, 2) in pixels."""
        pose, data, _ = self._unposed(g, q, points)
        return torch.func.vmap(_pixels, in_dims=_dims(points))(pose, g.float()[-1], centre, *data)

    def project_with_derivatives(
        self, g: Tensor, q: Tensor, points: Points, centre: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Points (B, n, 2) in pixels and their derivatives (B, n, 2, G) and (B, n, 2, P).

        For a fixed pose the posed points are affine in the coefficients, so those derivatives are the basis, posed like
        a point; the few pose parameters go through forward-mode differentiation.
        """
        pose, data, relative = self._unposed(g, q, points)
        g, dims = g.float(), _dims(points)
        S, E, size = self.columns.n_shape, self.columns.n_expression, self.size(g)
        found = torch.func.vmap(_pixels, in_dims=dims)(pose, g[-1], centre, *data)
        by_both = torch.func.jacfwd(_pixels, (0, 1))
        by_pose, by_focal = torch.func.vmap(by_both, in_dims=dims)(pose, g[-1], centre, *data)
        camera, turned, spread = torch.func.vmap(posed, in_dims=(0, *dims[3:]))(pose, *data)
        moved = turned @ points.basis + torch.einsum("bnjcd,jds->bncs", spread, points.joint_basis)
        depth = camera[..., 2:, None].clamp_min(1e-3)
        by_coefficient = (moved[:, :, :2] - camera[..., :2, None] / depth * moved[:, :, 2:]) / depth * g[-1].exp()
        by_size = (by_coefficient[..., S:] @ relative[:, None, :, None])[..., 0]
        by_shape = by_coefficient[..., :S] + by_size[..., None] * self.growth
        by_frame = size * by_coefficient[..., S:]
        Jg = torch.cat([by_shape, by_focal[..., None]], -1)
        columns = [by_pose[..., :6], by_frame[..., :E], by_pose[..., 6:9], by_frame[..., E:], by_pose[..., 9:]]
        return found, Jg, torch.cat(columns, -1)

    def _unposed(self, g: Tensor, q: Tensor, points: Points) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """What poses the points: (B, 11) and the other arguments of `posed`; coefficients relative to the size."""
        g, parts = g.float(), self.columns.split(q.float())
        relative = torch.cat([parts["expression"], parts["eyelids"]], 1)
        shape = g[: self.columns.n_shape].expand(len(q), -1)
        coefficients = torch.cat([shape, self.size(g) * relative], 1)
        template = points.template + (points.basis @ coefficients[:, None, :, None])[..., 0]
        joints = points.joints + torch.einsum("jcs,bs->bjc", points.joint_basis, coefficients)
        pose = torch.cat([parts["rotation"], parts["place"], parts["jaw"], parts["gaze"]], 1)
        return pose, (template, joints, points.weights, points.posedirs), relative


def _pixels(
    pose: Tensor,
    log_focal: Tensor,
    centre: Tensor,
    template: Tensor,
    joints: Tensor,
    weights: Tensor,
    posedirs: Tensor,
) -> Tensor:
    """Points (n, 2) of one head in the image, pixels."""
    camera = posed(pose, template, joints, weights, posedirs)[0]
    return camera[:, :2] / camera[:, 2:].clamp_min(1e-3) * log_focal.exp() + centre


def _dims(points: Points) -> tuple[int | None, ...]:
    """Which arguments of `_pixels` have a dimension for the frames."""
    return (0, None, None, 0, 0, *((None, None) if points.template.ndim == 2 else (0, 0)))
