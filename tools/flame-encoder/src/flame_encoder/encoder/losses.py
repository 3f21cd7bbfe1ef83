"""The terms of the training loss, by the names of the stage files."""

from dataclasses import dataclass, replace

import torch
from recon4d import metrics
from recon4d.files import InputError
from recon4d.head import HeadModel
from torch import Tensor

from flame_encoder.encoder import real_faces, rendering
from flame_encoder.encoder.config import LossWeights
from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.real_faces import Marked
from flame_encoder.encoder.samples import Batch
from flame_encoder.encoder.vector import IDENTITY_6D, Layout, identity_of

# Typical sizes of the parts of a vector: `params` compares in these units.
UNITS = {
    "shape": 1.0,
    "expression": 0.3,
    "global_rot": 0.3,
    "jaw": 0.1,
    "eyes": 0.2,
    "neck": 0.1,
    "transl": 0.3,
    "detail": 0.8,
}
REGULARISED = {
    "reg_shape": "shape",
    "reg_expression": "expression",
    "reg_transl": "transl",
    "reg_global_pose": "global_rot",
    "reg_jaw_pose": "jaw",
    "reg_neck_pose": "neck",
    "reg_eye_pose": "eyes",
    "reg_detail": "detail",
}
CENTIMETRE = 0.01
TEMPERATURE = 0.1


@dataclass(frozen=True, eq=False)
class Judge:
    """What the losses need beside prediction and truth.

    head: with texture coordinates and a small albedo. points: a head model of few vertices, for `landmark` and
    `vertices`. face: (F,) bool, triangles where pictures are compared. marked: for photographs, where a head
    model knows of MediaPipe's points.
    """

    head: HeadModel
    points: HeadModel
    face: Tensor
    layout: Layout
    view: CropView
    renderer: str
    marked: Marked | None

    def to(self, device: torch.device) -> "Judge":
        """The same on another device."""
        marked = None if self.marked is None else self.marked.to(device)
        head, points, face = self.head.to(device), self.points.to(device), self.face.to(device)
        return replace(self, head=head, points=points, face=face, marked=marked)


def judge(head: HeadModel, layout: Layout, view: CropView, renderer: str = "recon4d") -> Judge:
    """Prepare a head model with texture coordinates and landmarks."""
    regions = head.regions or {}
    face = torch.ones(len(head.faces), dtype=torch.bool)
    if "face" in regions:
        kept = regions["face"] | regions.get("eyes", regions["face"])
        face = kept[head.faces].all(1)
    few = rendering.thinned(head)
    return Judge(rendering.reduced(head), few, face, layout, view, renderer, real_faces.marked(head))


def landmark_pixels(judge: Judge, turned: Tensor, transl: Tensor) -> Tensor:
    """Landmarks (B, 68, 2) in pixels of the view, of the vertices that `rendering.turned` gives for `judge.points`."""
    return rendering.projected(judge.view, rendering.placed(judge.view, judge.points.landmarks(turned), transl))


def terms(judge: Judge, vectors: Tensor, batch: Batch, weights: LossWeights) -> dict[str, Tensor]:
    """The unweighted terms whose weight is not zero, each a scalar.

    Args:
        vectors: (B, layout.size) predictions.
    """
    parts = judge.layout.split(vectors)
    found: dict[str, Tensor] = {}
    turned = rendering.turned(judge.points, parts)
    known = batch.known.to(vectors.dtype)
    if weights.landmark:
        error = landmark_pixels(judge, turned, parts["transl"]) - batch.landmarks
        found["landmark"] = (error / judge.view.size).square().mean()
    if weights.params:
        truth = judge.layout.split(batch.vectors)
        used = {name: part for name, part in parts.items() if part.shape[1]}
        errors = [((part - truth[name]) / UNITS[name]).square().mean(1) for name, part in used.items()]
        found["params"] = (torch.stack(errors).mean(0) * known).mean()
    if weights.vertices:
        rows = batch.known.bool()  # vectors that nobody knows are zero, which is no head
        with torch.no_grad():
            goal = rendering.turned(judge.points, judge.layout.split(batch.vectors[rows]))
        distance = (turned[rows] - goal).square().sum(-1).add(1e-10).sqrt().mean(1)
        found["vertices"] = distance.sum() / len(vectors) / CENTIMETRE
    if weights.points or weights.blendshapes:
        found |= of_photographs(judge, vectors, batch, weights)
    if weights.identity:
        found["identity"] = identity(judge.layout, vectors, batch.people)
    if weights.pixel or weights.perceptual:
        draw = rendering.render_pytorch3d if judge.renderer == "pytorch3d" else rendering.render
        image, triangles = draw(judge.head, parts, judge.view)
        mask = ((triangles >= 0) & judge.face[triangles.long()])[:, None].to(image)
        if weights.pixel:
            found["pixel"] = ((image - batch.images).abs() * mask).sum() / (3 * mask.sum().clamp_min(1))
        if weights.perceptual:
            found["perceptual"] = metrics.lpips(image, batch.images, mask).mean()
    for term, name in REGULARISED.items():
        if getattr(weights, term) and parts[name].shape[1]:
            rest = vectors.new_tensor(IDENTITY_6D) if name == "global_rot" else 0.0
            found[term] = (parts[name] - rest).square().mean()
    return found


def of_photographs(judge: Judge, vectors: Tensor, batch: Batch, weights: LossWeights) -> dict[str, Tensor]:
    """`points` and `blendshapes` of the samples whose vector nobody knows, and whose points are; means of the batch."""
    rows = ~batch.known & batch.points.isfinite().all(2).all(1)
    given = judge.layout, vectors[rows], batch.points[rows]
    found = {}
    for name, weight in (("points", weights.points), ("blendshapes", weights.blendshapes)):
        if weight:
            head = real_faces.known(judge.marked, name)
            found[name] = vectors.sum() * 0
            if rows.any():
                layout, some, points = given
                if name == "points":
                    off = real_faces.points_off(head, layout, judge.view, some, points)
                else:
                    off = real_faces.blendshapes_off(head, layout, some, points)
                found[name] = off.sum() / len(vectors)
    return found


def identity(layout: Layout, vectors: Tensor, people: Tensor) -> Tensor:
    """Whether two pictures of one person agree more than pictures of two people do.

    The cross-entropy of picking, by the cosines of the identities (shape and skin), another picture of the same person
    from all others of the batch ("Supervised contrastive learning", Khosla et al. 2020, equation 2). 0 without pairs.

    Args:
        people: (B,) a number for each person, -1 where unknown.
    """
    unit = torch.nn.functional.normalize(identity_of(layout, vectors), dim=1)
    likeness = (unit @ unit.T / TEMPERATURE).fill_diagonal_(-1e9)
    same = (people[:, None] == people) & (people >= 0)[:, None]
    same.fill_diagonal_(False)
    paired = same.any(1)
    if not paired.any():
        return vectors.sum() * 0
    chosen = likeness[paired].log_softmax(1)
    return -(chosen * same[paired]).sum(1).div(same[paired].sum(1)).mean()


def total(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The weighted sum. Raises InputError when it is not finite."""
    result = sum(getattr(weights, name) * term for name, term in terms.items())
    if not isinstance(result, Tensor):
        raise InputError("all loss weights of the stage are zero; give at least one")
    if not result.isfinite():
        raise InputError("the loss is not finite; lower the stage's learning_rate")
    return result
