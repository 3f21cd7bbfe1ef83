"""What volume rendering minimises: pictures and masks explained, a smooth surface, eyes that nothing hides."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight import brdf
from eyeball_relight.captures import Capture
from eyeball_relight.field import Field
from eyeball_relight.rays import Rays
from eyeball_relight.volume import Samples

NEIGHBOUR = 0.006  # bounds; how far the points are whose normals should be alike
CLEAR_AHEAD, CLEAR_MARGIN = 0.1, 0.003  # bounds; how far before an eyeball, and from the face, points should be clear


def loss_terms(
    field: Field,
    capture: Capture,
    samples: Samples,
    rays: Rays,
    pixels: Tensor,
    step: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Weighted loss terms of a batch of R rays, those of weight 0 left out.

    Args:
        pixels: (R,) flat indices into (N, H, W) of the rays.
    """
    losses, eyes_on, device = field.config.losses, field.config.eyes.enabled, samples.opacity.device
    picture = brdf.to_linear(capture.image.view(-1, 3)[pixels].to(device).float() / 255)
    mask, hair = (x.view(-1)[pixels].to(device).float() / 255 for x in (capture.mask, capture.hair))
    per_ray = samples.weights.shape[1]
    # An error in the dark is seen as well as one in the light: weigh by the slope of the picture's encoding.
    weight = 1 / (picture.mean(-1, keepdim=True) + 0.15)
    terms = {
        "pbr": losses.pbr * (weight * (samples.pbr.clamp(max=1) - picture).abs()).mean(),
        "auxiliary": losses.auxiliary * (weight * (samples.auxiliary - picture).abs()).mean(),
        "mask": losses.mask * (samples.opacity - mask).abs().mean(),
    }
    if losses.parts and eyes_on:
        eyes = torch.stack([x.view(-1)[pixels].to(device).float() / 255 for x in (capture.left, capture.right)], 1)
        wanted = torch.cat([(mask - eyes.sum(1)).clamp(min=0)[:, None], eyes], 1)
        terms["parts"] = losses.parts * (samples.part_opacity - wanted).abs().sum(1).mean()
        if losses.clear:
            terms["clear"] = losses.clear * clearance_loss(field, rays, eyes, field.active(step), generator)
    if losses.landmarks and eyes_on:
        terms["landmarks"] = losses.landmarks * landmark_loss(field)

    if losses.occlusion:
        terms["occlusion"] = losses.occlusion * field.occlusion.square().sum(1).mean()

    n = len(pixels)
    spread = torch.rand(n // 4, 3, generator=generator).to(device) * 2 - 1
    _, _, apart = field.face_gradient(spread, field.active(step))
    gradients = torch.cat([samples.gradient, apart])
    terms["eikonal"] = losses.eikonal * (gradients.norm(dim=1) - 1).square().mean()

    # One point per ray, the one it sees most of, and a neighbour.
    seen = samples.weights.detach()
    index = torch.arange(n, device=device) * per_ray + seen.argmax(1)
    face = (samples.part[index] == 0) & (seen.sum(1) > 0.5)
    index, in_hair = index[face], hair[face]
    if len(index):
        at = samples.position[index].detach()
        beside = at + NEIGHBOUR * normalize(torch.randn(at.shape, generator=generator).to(at), dim=-1)
        _, _, gradient = field.face_gradient(beside, field.active(step))
        bent = (normalize(gradient, dim=-1) - samples.normal[index]).abs().sum(1)
        terms["smooth"] = ((losses.smooth + (losses.smooth_hair - losses.smooth) * in_hair) * bent).mean()
        gloss = field.material(beside, torch.zeros(len(at), dtype=torch.long, device=device), field.active(step))
        rough = (gloss.roughness - samples.material.roughness[index]).abs()
        sheen = (gloss.specular - samples.material.specular[index]).abs()
        terms["roughness"] = losses.roughness * (rough + sheen).mean()
        specular = samples.material.specular[index, 0]
        terms["hair"] = losses.hair * (in_hair * specular).mean()
        if capture.specular is not None and losses.specular:
            fitted = capture.specular.view(-1)[pixels].to(device)[face].float() / 255
            terms["specular"] = losses.specular * ((specular - fitted).abs() * (1 - in_hair)).mean()
    return terms


def clearance_loss(field: Field, rays: Rays, eyes: Tensor, active: list[int], generator: torch.Generator) -> Tensor:
    """How deep points between the cameras and an eyeball lie in the face, mean over rays whose mask (R, 2) sees one.

    The opacity of a face that hides an eyeball is saturated, and so has no gradient; its distances have one.
    """
    ray, eye = (eyes > 0.9).nonzero(as_tuple=True)
    if len(ray) == 0:
        return eyes.new_zeros(())
    origin, direction = rays.origin[ray].detach(), rays.direction[ray].detach()
    offset = field.eye_centres.detach()[eye] - origin
    along = (offset * direction).sum(1)
    miss = (offset**2).sum(1) - along**2
    hit = along - (field.eye_radius.detach() ** 2 - miss).clamp(min=0).sqrt()
    ahead = CLEAR_AHEAD * torch.rand(len(ray), generator=generator).to(hit)
    distance, _ = field.face(origin + (hit - ahead)[:, None] * direction, active)
    return (CLEAR_MARGIN - distance).clamp(min=0).mean()


def landmark_loss(field: Field) -> Tensor:
    """Mean distance of the eyeball landmarks from their eyeballs' surfaces, in bounds; 0 without landmarks."""
    data, total = field.config.data, field.beta.new_zeros(())
    for k, points in enumerate((data.left_eye_ldm, data.right_eye_ldm)):
        if points:
            away = (field.eye_centres.new_tensor(points) / data.bound - field.eye_centres[k]).norm(dim=1)
            total = total + (away - field.eye_radius).abs().mean()
    return total
