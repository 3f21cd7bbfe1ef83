"""What photographs teach an encoder: where MediaPipe's points are, and what its blendshapes say.

Nobody knows the parameters of a face in a photograph. Where the head that an encoder answers with has MediaPipe's
points can be compared with where the landmarker finds them, and its jaw, eyelids and expression with what the
blendshapes say of them; both as the tracker does (`tracker/points.py`, `tracker/beliefs.py`).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from recon4d import landmarker, mesh
from recon4d.files import InputError
from recon4d.head import HeadModel
from recon4d.head.dense import DensePoints, upright, view_terms
from recon4d.head.model import outer_eyes
from recon4d.rotations import from_6d
from torch import Tensor

from flame_encoder.encoder import rendering
from flame_encoder.encoder.crop import FACING, CropView
from flame_encoder.encoder.vector import Layout, has_eyelids

SIGMA = 0.008  # of a point, in distances between the outer eye corners, beside the deviation of its place on the head


@dataclass(frozen=True, eq=False)
class Marked:
    """A head model of few vertices whose `landmarks` are MediaPipe's points.

    dense: of the whole model. normals: (n, 3) of the mean head at the points. eyes: metres between their outer corners.
    """

    head: HeadModel
    dense: DensePoints
    normals: Tensor
    eyes: float

    def to(self, device: torch.device) -> "Marked":
        """The same on another device; `dense` stays, as what is asked of it is."""
        return replace(self, head=self.head.to(device), normals=self.normals.to(device))


def marked(head: HeadModel) -> Marked | None:
    """Prepare a head model; None where nobody knows where MediaPipe's points are on it."""
    dense = head.dense
    if dense is None:
        return None
    corners = mesh.vertex_normals(head.v_template[None], head.faces)[0][head.faces[dense.faces]]
    normals = torch.nn.functional.normalize((corners * dense.bary[..., None]).sum(1), dim=1)
    few = rendering.thinned(replace(head, landmark_faces=dense.faces, landmark_bary=dense.bary, dense=None))
    return Marked(few, dense, normals, outer_eyes(head))


def known(head: Marked | None, name: str) -> Marked:
    """Raises InputError for a head model without MediaPipe's points."""
    if head is None:
        raise InputError(
            f"the loss {name} needs MediaPipe's points on the head model; make them with flame-encoder check-model "
            "--embed, or give the loss no weight"
        )
    return head


def points_off(head: Marked, layout: Layout, view: CropView, vectors: Tensor, points: Tensor) -> Tensor:
    """(B,) weighted mean squares, in picture sizes, of how far points are from MediaPipe's, which count by how surely
    they lie at their places and how far they face the camera.

    Args:
        vectors: (B, layout.size). points: (B, 478, 2), pixels of the view.
    """
    parts = layout.split(vectors)
    places = rendering.placed(view, head.head.landmarks(rendering.turned(head.head, parts)), parts["transl"])
    with torch.no_grad():
        R = from_6d(parts["global_rot"]) * parts["global_rot"].new_tensor(FACING)[:, None]
        centre = places.mean(1)
        towards = -(R.mT @ torch.nn.functional.normalize(centre, dim=1)[..., None])[..., 0]
        # Where the landmarker puts points beside their places, as the head is turned.
        still = [x.float().cpu() for x in (R, centre)]
        beside = torch.einsum("nk,mck->nmc", view_terms(*still), head.dense.bias.float().cpu()[:-2]) @ upright(still[0])
        unit = head.eyes * view.K[0, 0] / centre[:, 2].clamp_min(0.05)
        beside = beside.to(vectors) * unit[:, None, None]
        sigma = (head.dense.sigma.to(vectors) / head.eyes).square() + SIGMA**2
        weight = ((towards @ head.normals.T + 0.1) / 0.4).clamp(0.05, 1) / sigma
        weight = weight / weight.sum(1, keepdim=True)
    off = (rendering.projected(view, places) + beside - points[:, head.dense.indices.to(points.device)]) / view.size
    return (off.square().mean(-1) * weight).sum(1)


def blendshapes_off(head: Marked, layout: Layout, vectors: Tensor, points: Tensor) -> Tensor:
    """(B,) mean squares, in standard deviations, of jaw, eyelids and expression beside what blendshapes say of them;
    zero for a head model whose blendshapes nobody calibrated.

    Args:
        vectors: (B, layout.size). points: (B, 478, 2), pixels.
    """
    said = head.dense.activations
    if said is None:
        return vectors.sum(1) * 0
    parts, E = layout.split(vectors), head.head.n_expression
    expression = parts["expression"][:, :E]
    lids = expression.new_zeros(len(vectors), 2)
    open_lids = has_eyelids(head.head, layout.expression)
    if open_lids:
        lids = parts["expression"][:, E : E + 2]
    answer = torch.cat([parts["jaw"], lids, expression], 1)
    faces = [np.r_[1.0, landmarker.blendshapes(face)] for face in points.cpu().numpy()]
    told = torch.from_numpy(np.stack(faces)).to(vectors) @ said.weights.to(vectors)
    sigma = said.sigma.to(vectors)[: answer.shape[1]]
    sure = sigma.isfinite() & (sigma > 0)
    sure[3:5] &= open_lids
    answer, told = answer[:, : len(sigma)], told[:, : answer.shape[1]]
    return ((answer - told) / sigma)[:, sure].square().mean(1)
