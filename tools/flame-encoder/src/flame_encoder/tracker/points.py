"""Points on a head model as functions of its coefficients and pose: what a tracker compares with the image."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import roma
import torch
from recon4d.head import HeadModel
from recon4d.head.dense import upright, view_terms
from recon4d.head.model import outer_eyes
from recon4d.mesh import vertex_normals
from torch import Tensor

from flame_encoder.tracker import contour, jacobians

FACING = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # head space (y up, z out of the face) facing an OpenCV camera


def eye_rotation(gaze: Tensor) -> Tensor:
    """(..., 2) yaw and pitch, radians, to rotation matrices (..., 3, 3); positive looks left and up."""
    answer: Tensor = roma.rotvec_to_rotmat(
        torch.stack([-gaze[..., 1], gaze[..., 0], torch.zeros_like(gaze[..., 0])], -1)
    )
    return answer


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

    template: Tensor  # (n, 3)
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

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Template, basis, weights, posedirs and the joints' basis, as `jacobians.project` takes them."""
        values = (self.template, self.basis, self.weights, self.posedirs, self.joint_basis)
        return tuple(np.ascontiguousarray(value.numpy(), np.float32) for value in values)


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
        assert head.landmark_faces is not None and head.landmark_bary is not None
        self.growth = self.points(head.landmark_faces, head.landmark_bary).growth(self.columns.n_shape)
        self.eye_distance = outer_eyes(head)
        self.dense: Points | None = None  # MediaPipe's points, 2 irises
        if head.dense is not None:
            faces, bary = head.dense.faces, head.dense.bary
            self.dense = self.points(faces, bary).with_irises(head)
            normals = vertex_normals(head.v_template[None], head.faces)[0]
            mixed = (normals[head.faces[faces]] * bary[..., None]).sum(1)
            self.dense_normals = torch.nn.functional.normalize(mixed, dim=1)

    @cached_property
    def landmarks(self) -> Points:
        """17 rows of contour candidates, 51 landmarks, 2 irises."""
        head = self.head
        assert head.landmark_faces is not None and head.landmark_bary is not None
        faces, bary = contour.candidates(head)
        return self.points(
            torch.cat([faces.reshape(-1), head.landmark_faces[17:]]),
            torch.cat([bary.reshape(-1, 3), head.landmark_bary[17:]]),
        ).with_irises(head)

    def points(self, faces: Tensor, bary: Tensor) -> Points:
        """Points (n,) on faces of the model."""
        return Points.on(self.head, faces, bary, self.columns.n_shape, self.columns.n_expression)

    def size(self, g: Tensor) -> Tensor:
        """Size of the head relative to the mean head's, linear in the identity."""
        return 1 + self.growth.to(g) @ g[: self.columns.n_shape]

    def chosen(self, rows: Tensor) -> Tensor:
        """The rows (B, 70) of the landmarks in `rows` (B, 68) and of the irises."""
        last = len(self.landmarks.weights)
        return torch.cat([rows, torch.tensor([last - 2, last - 1]).expand(len(rows), 2)], 1)

    def outline(self, g: Tensor, q: Tensor, centre: Tensor) -> Tensor:
        """Which of the landmarks' candidates are the 68 landmarks in each frame (N, 68): the outline slides."""
        candidates = torch.arange(17 * contour.CANDIDATES).expand(len(q), -1)
        points = self.project(g, q, self.landmarks, centre, candidates)
        rows = torch.arange(17) * contour.CANDIDATES + contour.visible(points.view(-1, 17, contour.CANDIDATES, 2))
        return torch.cat([rows, 17 * contour.CANDIDATES + torch.arange(51).expand(len(q), -1)], 1)

    def seen_from(self, g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """How the dense points are seen: (N, n) cosines of the angles between the mean head's normals and the way to
        the camera, and (N, n + 2, 2) how far beside their places a landmarker puts them and irises.
        """
        assert self.head.dense is not None and self.dense is not None
        parts = self.columns.split(q.float())
        R = roma.rotvec_to_rotmat(parts["rotation"]) @ FACING
        x, y, log_z = parts["place"].unbind(1)
        middle = self.dense.template[:-2].mean(0)
        centre = torch.stack([x, y, torch.ones_like(x)], 1) * log_z.exp()[:, None] + R @ middle
        unit = self.eye_distance * g[-1].exp().float() / centre[:, 2]
        beside = torch.einsum("nk,mck->nmc", view_terms(R, centre), self.head.dense.bias)
        towards = -(R.mT @ torch.nn.functional.normalize(centre, dim=1)[..., None])[..., 0]
        return towards @ self.dense_normals.T, beside @ upright(R) * unit[:, None, None]

    def project(self, g: Tensor, q: Tensor, points: Points, centre: Tensor, rows: Tensor) -> Tensor:
        """The points in `rows` (B, n), in pixels (B, n, 2)."""
        return self.derivatives(g, q, points, centre, rows, shared=False, frame=False)[0]

    def derivatives(
        self,
        g: Tensor,
        q: Tensor,
        points: Points,
        centre: Tensor,
        rows: Tensor,
        shared: bool = True,
        frame: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The points in `rows` (B, n), in pixels (B, n, 2), and their derivatives (B, n, 2, G) and (B, n, 2, P).

        Args:
            shared, frame: which derivatives are wanted; without `shared` the first of them is empty.
        """
        parts = {name: part.numpy() for name, part in self.columns.split(q.double()).items()}
        relative = np.concatenate([parts["expression"], parts["eyelids"]], 1)
        size = float(self.size(g))
        shape = np.tile(g[: self.columns.n_shape].numpy(), (len(q), 1))
        coefficients = np.concatenate([shape, size * relative], 1)
        joints = points.joints.double().numpy() + np.einsum("jcs,bs->bjc", points.joint_basis.numpy(), coefficients)
        found = jacobians.project(
            parts["rotation"],
            FACING.double().numpy(),
            parts["place"],
            parts["jaw"],
            parts["gaze"],
            float(g[-1].exp()),
            centre.double().numpy(),
            coefficients.astype(np.float32),
            relative.astype(np.float32),
            size,
            self.growth.numpy(),
            points.arrays,
            joints,
            rows.numpy(),
            2 * self.columns.eyelids,
            shared,
            frame,
        )
        return tuple(torch.from_numpy(value) for value in found)  # type: ignore[return-value]
