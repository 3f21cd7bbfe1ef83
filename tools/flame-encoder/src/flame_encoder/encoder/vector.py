"""The vector that describes a person in one image, its parts, and what they mean to a head model.

| part | numbers | meaning |
| --- | --- | --- |
| `shape` | 100 | identity coefficients |
| `expression` | 50 | expression coefficients; eyelids (left, right) follow where the model has both and there is room |
| `global_rot` | 6 | head rotation, 6D: the first two rows of the matrix |
| `jaw`, `neck` | 3, 3 | rotation vectors, radians |
| `eyes` | 6 | rotation vectors of the left and the right eye |
| `transl` | 3 | place of the head in the encoder's view (`crop.py`) |
| `detail` | 56 | 27 of light (9 harmonics x RGB, minus `NEUTRAL_LIGHT`), then albedo coefficients |

A head model with fewer coefficients uses the first of each part; the rest stay zero.
"""

import math
from typing import Annotated

import roma
import torch
from pydantic import Field
from recon4d.head import HeadModel
from recon4d.settings import Section
from torch import Tensor

FIXED = {"global_rot": 6, "jaw": 3, "eyes": 6, "neck": 3, "transl": 3}
LIGHT = 27
IDENTITY_6D = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
NEUTRAL_LIGHT = 0.8 * math.sqrt(4 * math.pi)  # L_00 of constant radiance 0.8


class Layout(Section):
    """How long the parts of the vector are. The default is 227 numbers; 100, 0, 106 are the first Eidolon's."""

    shape: Annotated[int, Field(gt=0, le=10_000)] = 100
    expression: Annotated[int, Field(ge=0, le=10_000)] = 50
    detail: Annotated[int, Field(ge=0, le=10_000)] = 56

    @property
    def lengths(self) -> dict[str, int]:
        """Length of each part, in the order of the vector."""
        return {"shape": self.shape, "expression": self.expression, **FIXED, "detail": self.detail}

    @property
    def size(self) -> int:
        return sum(self.lengths.values())

    @property
    def skin(self) -> int:
        """How many numbers of `detail` are albedo coefficients."""
        return max(self.detail - LIGHT, 0)

    def split(self, vectors: Tensor) -> dict[str, Tensor]:
        """Vectors (B, size) as a dict of parts (B, length). Raises ValueError for vectors of another length."""
        if vectors.shape[-1] != self.size:
            raise ValueError(f"the vector has {vectors.shape[-1]} numbers, but the layout has {self.size}")
        return dict(zip(self.lengths, vectors.split(list(self.lengths.values()), -1)))

    def join(self, parts: dict[str, Tensor]) -> Tensor:
        """The inverse of `split`; parts may be shorter than the layout's and are filled up with zeros."""
        columns = []
        for name, length in self.lengths.items():
            part = parts[name]
            if part.shape[-1] > length:
                raise ValueError(f"{name} has {part.shape[-1]} numbers, but the layout has room for {length}")
            columns.append(torch.nn.functional.pad(part, (0, length - part.shape[-1])))
        return torch.cat(columns, -1)


def identity_of(layout: Layout, vectors: Tensor) -> Tensor:
    """What of vectors (B, size) is the person's, not the picture's (B, S + C): shape and albedo."""
    parts = layout.split(vectors)
    return torch.cat([parts["shape"], parts["detail"][:, LIGHT:]], 1)


def head_arguments(head: HeadModel, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keyword arguments of `HeadModel.forward` for the unturned head, from parts as `Layout.split` gives them."""
    arguments = {
        "shape": parts["shape"][..., : head.n_shape],
        "expression": parts["expression"][..., : head.n_expression],
        "jaw": roma.rotvec_to_rotmat(parts["jaw"]),
        "neck": roma.rotvec_to_rotmat(parts["neck"]),
        "eyes": roma.rotvec_to_rotmat(parts["eyes"].unflatten(-1, (2, 3))),
    }
    if not parts["expression"].shape[-1]:
        del arguments["expression"]
    if has_eyelids(head, parts["expression"].shape[-1]):
        arguments["eyelids"] = parts["expression"][..., head.n_expression : head.n_expression + 2]
    return arguments


def has_eyelids(head: HeadModel, expression: int) -> bool:
    """Whether `expression` numbers hold the head model's eyelids after its expressions."""
    return head.eyelids is not None and expression >= head.n_expression + 2


def light(parts: dict[str, Tensor]) -> Tensor:
    """Radiance (B, 9, 3) for `mesh.shade`, in head-upright view axes (y up, z to the camera)."""
    detail = parts["detail"]
    neutral = detail.new_zeros(*detail.shape[:-1], 9, 3)
    neutral[..., 0, :] = NEUTRAL_LIGHT
    return neutral if detail.shape[-1] < LIGHT else neutral + detail[..., :LIGHT].unflatten(-1, (9, 3))


def albedo(head: HeadModel, parts: dict[str, Tensor]) -> Tensor:
    """sRGB textures (B, T, T, 3) in [0, 1]; grey (B, 1, 1, 3) for head models without an albedo."""
    detail = parts["detail"]
    if head.albedo_mean is None:
        return detail.new_full((len(detail), 1, 1, 3), 0.7)
    textures = head.albedo_mean[None]
    if head.albedo_components is not None:
        n = min(max(detail.shape[-1] - LIGHT, 0), head.albedo_components.shape[-1])
        textures = textures + (head.albedo_components[..., :n] @ detail[:, LIGHT : LIGHT + n].T).permute(3, 0, 1, 2)
    return textures.clamp(0, 1).expand(len(detail), -1, -1, -1)
