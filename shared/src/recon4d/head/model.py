"""A FLAME-format head model: blendshapes, linear blend skinning, landmarks.

Li et al., "Learning a model of facial shape and expression from 4D scans", 2017, equations 1-6; the skinning is
SMPL's (Loper et al. 2015).
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from recon4d.files import InputError
from recon4d.head.dense import DensePoints

JOINTS = ("global", "neck", "jaw", "left_eye", "right_eye")


@dataclass(frozen=True, eq=False)
class HeadModel:
    """Arrays of a head model: V vertices, F faces, 5 joints (`JOINTS`). Metres, y up, z out of the face.

    Attributes:
        name: what the model calls itself in files.
        v_template: (V, 3) mean head.
        shapedirs: (V, 3, S) identity basis, per standard deviation.
        expressiondirs: (V, 3, E) expression basis.
        posedirs: (V, 3, 36) pose correctives, multiplied by (R_j - I) of joints 1..4, row-major.
        J_regressor: (5, V) joints from shaped vertices.
        weights: (V, 5) skinning weights.
        parents: parent of each joint, -1 for the root.
        faces: (F, 3) int64.
        vt, ft: (T, 2) texture coordinates (v up) and (F, 3) int64 indices into them, or None.
        eyelids: (V, 3, 2) left and right eyelid blendshapes, closed at 1, or None.
        landmark_faces, landmark_bary: (68,) int64 and (68, 3), iBUG order, or None.
        dense: where MediaPipe's points are, or None.
        regions: named vertex masks (V,) bool.
        expression_names: names of the expressions, or ().
        albedo_mean: (T, T, 3) sRGB in [0, 1], or None.
        albedo_components: (T, T, 3, C), per standard deviation, or None.
    """

    name: str
    v_template: Tensor
    shapedirs: Tensor
    expressiondirs: Tensor
    posedirs: Tensor
    J_regressor: Tensor
    weights: Tensor
    parents: tuple[int, ...]
    faces: Tensor
    vt: Tensor | None = None
    ft: Tensor | None = None
    eyelids: Tensor | None = None
    landmark_faces: Tensor | None = None
    landmark_bary: Tensor | None = None
    dense: DensePoints | None = None
    regions: dict[str, Tensor] | None = None
    expression_names: tuple[str, ...] = ()
    albedo_mean: Tensor | None = None
    albedo_components: Tensor | None = None

    @property
    def n_shape(self) -> int:
        return self.shapedirs.shape[2]

    @property
    def n_expression(self) -> int:
        return self.expressiondirs.shape[2]

    def to(self, *args: Any, **kwargs: Any) -> "HeadModel":
        """The same model on another device or in another floating-point type (arguments as torch.Tensor.to)."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            moved = value.to(*args, **kwargs)
            return moved if value.is_floating_point() else moved.to(value.dtype)

        changed = {f.name: move(getattr(self, f.name)) for f in fields(self)}
        if self.dense is not None:
            parts = {f.name: move(getattr(self.dense, f.name)) for f in fields(self.dense)}
            changed["dense"] = replace(self.dense, **parts)
        if self.regions is not None:
            changed["regions"] = {key: move(mask) for key, mask in self.regions.items()}
        return replace(self, **changed)

    @cached_property
    def joint_basis(self) -> tuple[Tensor, Tensor, Tensor]:
        # J_regressor applied to template and bases once: joints then cost (5, 3, S) per call instead of (5, V).
        return (
            self.J_regressor @ self.v_template,
            torch.einsum("jv,vcs->jcs", self.J_regressor, self.shapedirs),
            torch.einsum("jv,vcs->jcs", self.J_regressor, self.expressiondirs),
        )

    def shaped(
        self, shape: Tensor | None = None, expression: Tensor | None = None, eyelids: Tensor | None = None
    ) -> Tensor:
        """Unposed vertices (B, V, 3) from shape (B, <=S), expression (B, <=E) and eyelid (B, 2) coefficients."""
        vertices = self.v_template[None]
        for basis, coefficients, what in (
            (self.shapedirs, shape, "shape"),
            (self.expressiondirs, expression, "expression"),
            (self.eyelids, eyelids, "eyelid"),
        ):
            if coefficients is not None:
                vertices = vertices + _blend(basis, coefficients, what, self.name)
        return vertices

    def joints(self, shape: Tensor | None = None, expression: Tensor | None = None) -> Tensor:
        """Joint positions (B, 5, 3) of the unposed head; eyelids do not move joints, as in metrical-tracker."""
        template, shape_basis, expression_basis = self.joint_basis
        joints = template[None]
        if shape is not None:
            joints = joints + _blend(shape_basis, shape, "shape", self.name)
        if expression is not None:
            joints = joints + _blend(expression_basis, expression, "expression", self.name)
        return joints

    def forward(
        self,
        shape: Tensor | None = None,
        expression: Tensor | None = None,
        global_rotation: Tensor | None = None,
        neck: Tensor | None = None,
        jaw: Tensor | None = None,
        eyes: Tensor | None = None,
        eyelids: Tensor | None = None,
        translation: Tensor | None = None,
    ) -> Tensor:
        """Posed vertices (B, V, 3) in metres.

        Args:
            shape: (B, <=S); any prefix of the coefficients, the rest are zero. Batches of 1 broadcast.
            expression: (B, <=E).
            global_rotation, neck, jaw: (B, 3, 3) rotation matrices, identity when None.
            eyes: (B, 2, 3, 3), left then right.
            eyelids: (B, 2) in [0, 1], left then right.
            translation: (B, 3) metres.

        Raises:
            InputError: more coefficients than the model has, or eyelids for a model without them.
        """
        vertices = self.shaped(shape, expression, eyelids)
        joints = self.joints(shape, expression)
        given = [r for r in (global_rotation, neck, jaw) if r is not None] + ([eyes] if eyes is not None else [])
        batch = max([vertices.shape[0], joints.shape[0]] + [r.shape[0] for r in given])
        identity = torch.eye(3, dtype=vertices.dtype, device=vertices.device)

        def filled(rotation: Tensor | None) -> Tensor:
            return (identity if rotation is None else rotation).expand(batch, 3, 3)

        left, right = (None, None) if eyes is None else (eyes[:, 0], eyes[:, 1])
        rotations = torch.stack([filled(r) for r in (global_rotation, neck, jaw, left, right)], 1)

        # Pose correctives (Li et al. 2017, equation 4).
        vertices = vertices + torch.einsum(
            "vcp,bp->bvc", self.posedirs, (rotations[:, 1:] - identity).reshape(batch, 36)
        )

        # Chain of rigid transforms from the root to each joint (Loper et al. 2015, equations 3 and 4).
        joints = joints.expand(batch, 5, 3)
        chain_R: list[Tensor] = []
        chain_t: list[Tensor] = []
        for j, parent in enumerate(self.parents):
            if parent < 0:
                chain_R.append(rotations[:, j])
                chain_t.append(joints[:, j])
            else:
                offset = (joints[:, j] - joints[:, parent])[..., None]
                chain_R.append(chain_R[parent] @ rotations[:, j])
                chain_t.append(chain_t[parent] + (chain_R[parent] @ offset)[..., 0])
        R = torch.stack(chain_R, 1)
        t = torch.stack(chain_t, 1) - (R @ joints[..., None])[..., 0]

        vertex_R = torch.einsum("vj,bjk->bvk", self.weights, R.reshape(batch, 5, 9)).reshape(batch, -1, 3, 3)
        vertex_t = torch.einsum("vj,bjk->bvk", self.weights, t)
        posed = (vertex_R @ vertices.expand(batch, -1, 3)[..., None])[..., 0] + vertex_t
        return posed if translation is None else posed + translation[:, None]

    __call__ = forward

    def landmarks(self, vertices: Tensor) -> Tensor:
        """The 68 iBUG landmarks (B, 68, 3) on posed vertices (B, V, 3). Raises InputError when the model has none."""
        if self.landmark_faces is None or self.landmark_bary is None:
            raise InputError(
                f"the head model {self.name} has no landmarks; give a landmark embedding file (--landmark-embedding)"
            )
        corners = vertices[:, self.faces[self.landmark_faces]]  # (B, 68, 3, 3)
        return (self.landmark_bary[:, :, None] * corners).sum(2)


def outer_eyes(head: HeadModel) -> float:
    """Distance, metres, between the outer eye corners of the mean head."""
    corners = head.landmarks(head.v_template[None])[0, [36, 45]]
    return float((corners[0] - corners[1]).norm())


def _blend(basis: Tensor | None, coefficients: Tensor, what: str, model: str) -> Tensor:
    n = coefficients.shape[-1]
    if basis is None:
        raise InputError(f"the head model {model} has no {what} blendshapes")
    if n > basis.shape[2]:
        raise InputError(f"the head model {model} has {basis.shape[2]} {what} coefficients, but {n} are given")
    # One (B, n) x (n, 3V) product: much faster on a CPU than an einsum over the middle axis.
    flat = basis[:, :, :n].reshape(-1, n)
    return (coefficients @ flat.T).reshape(coefficients.shape[0], basis.shape[0], 3)
