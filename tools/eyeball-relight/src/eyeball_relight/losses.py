"""What volume rendering minimises: pictures and masks explained, a smooth surface, eyes that nothing hides."""

import functools

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight.batches import Batch
from eyeball_relight.field import Field
from eyeball_relight.rays import Rays
from eyeball_relight.volume import Samples

NEIGHBOUR = 0.006  # bounds; how far the points are whose normals should be alike
CLEAR_AHEAD, CLEAR_MARGIN = 0.1, 0.003  # bounds; how far before an eyeball, and from the face, points should be clear


def loss_terms(field: Field, batch: Batch, samples: Samples, rays: Rays, active: list[int]) -> dict[str, Tensor]:
    """Weighted loss terms of a batch of R rays, those of weight 0 left out."""
    losses, eyes_on = field.config.losses, field.config.eyes.enabled
    per_ray = samples.weights.shape[1]
    # An error in the dark is seen as well as one in the light: weigh by the slope of the picture's encoding.
    weight = 1 / (batch.picture.mean(-1, keepdim=True) + 0.15)
    terms = {
        "pbr": losses.pbr * (weight * (samples.pbr.clamp(max=1) - batch.picture).abs()).mean(),
        "auxiliary": losses.auxiliary * (weight * (samples.auxiliary - batch.picture).abs()).mean(),
        "mask": losses.mask * (samples.opacity - batch.head).abs().mean(),
    }
    if losses.parts and eyes_on:
        wanted = torch.cat([(batch.head - batch.eyes.sum(1)).clamp(min=0)[:, None], batch.eyes], 1)
        terms["parts"] = losses.parts * (samples.part_opacity - wanted).abs().sum(1).mean()
        if losses.clear:
            terms["clear"] = losses.clear * clearance_loss(field, rays, batch.eyes, active, batch.ahead)
    if losses.landmarks and eyes_on:
        terms["landmarks"] = losses.landmarks * landmark_loss(field)

    if losses.occlusion:
        terms["occlusion"] = losses.occlusion * field.occlusion.square().sum(1).mean()

    # One point per ray, the one it sees most of, and a neighbour.
    seen = samples.weights.detach()
    index = torch.arange(len(seen), device=seen.device) * per_ray + seen.argmax(1)
    beside = samples.position[index].detach() + NEIGHBOUR * batch.aside
    _, _, gradient = field.face_gradient(torch.cat([batch.anywhere, beside]), active)
    apart, gradient = gradient[: len(batch.anywhere)], gradient[len(batch.anywhere) :]
    gradients = torch.cat([samples.gradient, apart])
    terms["eikonal"] = losses.eikonal * (gradients.norm(dim=1) - 1).square().mean()

    face = (samples.part[index] == 0) & (seen.sum(1) > 0.5)

    def mean(values: Tensor) -> Tensor:
        """Of rays that see the face."""
        return torch.where(face, values, 0.0).sum() / face.sum().clamp(min=1)

    bent = (normalize(gradient, dim=-1) - samples.normal[index]).abs().sum(1)
    terms["smooth"] = mean((losses.smooth + (losses.smooth_hair - losses.smooth) * batch.hair) * bent)
    gloss = field.material(beside, torch.zeros_like(index), active)
    specular, roughness = samples.material.specular[index, 0], samples.material.roughness[index, 0]
    sheen = (gloss.roughness[:, 0] - roughness).abs() + (gloss.specular[:, 0] - specular).abs()
    terms["roughness"] = losses.roughness * mean(sheen)
    terms["hair"] = losses.hair * mean(batch.hair * specular)
    if losses.specular and len(batch.specular):
        terms["specular"] = losses.specular * mean((specular - batch.specular).abs() * (1 - batch.hair))
    return terms


def clearance_loss(field: Field, rays: Rays, eyes: Tensor, active: list[int], ahead: Tensor) -> Tensor:
    """How deep points between the cameras and an eyeball lie in the face, mean over rays whose mask (R, 2) sees one.

    The opacity of a face that hides an eyeball is saturated, and so has no gradient; its distances have one.

    Args:
        ahead: (R,) in [0, 1], how far before the eyeball each ray's point is, in CLEAR_AHEAD.
    """
    sees = eyes.amax(1) > 0.9
    origin, direction = rays.origin.detach(), rays.direction.detach()
    centres = field.eye_centres.detach()
    offset = torch.where((eyes[:, 1] > eyes[:, 0])[:, None], centres[1], centres[0]) - origin
    along = (offset * direction).sum(1)
    miss = (offset**2).sum(1) - along**2
    hit = along - (field.eye_radius.detach() ** 2 - miss).clamp(min=0).sqrt()
    distance, _ = field.face(origin + (hit - CLEAR_AHEAD * ahead)[:, None] * direction, active)
    inside = (CLEAR_MARGIN - distance).clamp(min=0)
    return torch.where(sees, inside, 0.0).sum() / sees.sum().clamp(min=1)


@functools.lru_cache(maxsize=8)
def _points(points: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(points, device=device)


def landmark_loss(field: Field) -> Tensor:
    """Mean distance of the eyeball landmarks from their eyeballs' surfaces, in bounds; 0 without landmarks."""
    data, total = field.config.data, field.beta.new_zeros(())
    for k, points in enumerate((data.left_eye_ldm, data.right_eye_ldm)):
        if points:
            there = _points(tuple(map(tuple, points)), field.device) / data.bound
            away = (there - field.eye_centres[k]).norm(dim=1)
            total = total + (away - field.eye_radius).abs().mean()
    return total
