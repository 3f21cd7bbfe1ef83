"""Volume rendering of the field: densities of distances, and what rays collect of them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight import brdf
from eyeball_relight.field import Field, Material
from eyeball_relight.rays import Rays
from eyeball_relight.refinement import gains

FAINT = 1e-4  # weights below are no colour worth its cost: most points lie behind the surface


@dataclass(frozen=True, eq=False)
class Samples:
    """R rays of K points each. Points are flattened to (R K, ...), ray by ray.

    position: (R K, 3). weights: (R, K). opacity: (R,).
    part_opacity: (R, 3) of face, left, right eyeball under the whole scene's transmittance.
    part: (R K,). gradient: (R K, 3) of the face's distance. normal: (R K, 3) of the face.
    pbr, auxiliary: colours (R, 3), linear. material: of the points, 0 where a weight is FAINT.
    """

    position: Tensor
    weights: Tensor
    opacity: Tensor
    part_opacity: Tensor
    part: Tensor
    gradient: Tensor
    normal: Tensor
    pbr: Tensor
    auxiliary: Tensor
    material: Material


def density(distance: Tensor, beta: Tensor) -> Tensor:
    """VolSDF's density (Yariv et al. 2021, equations 2 and 3): the Laplace CDF of -distance over beta."""
    return (0.5 + 0.5 * distance.sign() * torch.expm1(-distance.abs() / beta)) / beta


def composite(distances: Tensor, lengths: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (R, K) of the points and opacities (R, P) of the parts.

    A part's opacity is that of its own density under the whole scene's transmittance (ObjectSDF++, Wu et al. 2023).

    Args:
        distances: (R, K, P). lengths: (R, K) of the bins.
    """
    depths = density(distances, beta) * lengths[..., None]
    whole = density(distances.amin(-1), beta) * lengths
    through = torch.exp(-(whole.cumsum(1) - whole))
    weights = through * -torch.expm1(-whole)
    return weights, (through[..., None] * -torch.expm1(-depths)).sum(1)


def flash(
    field: Field,
    position: Tensor,
    origin: Tensor,
    normal: Tensor,
    material: Material,
    occlusion: Tensor,
    intensity: Tensor,
) -> Tensor:
    """Colours (N, 3) of points lit by the flash at `origin` and the room.

    Args:
        position, origin, normal: (N, 3), in bounds. occlusion: (N, 9) or (9,), see `brdf.ambient`.
        intensity: (3,), for distances in the capture's unit.
    """
    towards = origin - position
    square = (towards**2).sum(-1, keepdim=True)
    shares = (material.diffuse, material.specular, material.roughness)
    direct = brdf.reflect_flash(normal, towards / square.sqrt(), *shares)
    direct = direct * intensity / (square * field.config.data.bound**2)
    room = brdf.ambient(normal, field.ambient, occlusion, field.config.light.ambient_scale)
    return direct + material.diffuse * room


def render(
    field: Field, rays: Rays, edges: Tensor, beta: Tensor, active: list[int], intensity: Tensor, where: Tensor
) -> Samples:
    """Render rays through the bins `edges` (R, K + 1), one point in each, at the share `where` (R, K) of its length."""
    lengths = edges.diff(dim=1)
    times = edges[:, :-1] + lengths * where
    per_ray = times.shape[1]
    origin = rays.origin.repeat_interleave(per_ray, 0)
    direction = rays.direction.repeat_interleave(per_ray, 0)
    position = origin + times.reshape(-1, 1) * direction
    distance, feature, gradient = field.face_gradient(position, active)
    if position.requires_grad:  # of the poses: to first order, by the gradient that is there already
        distance = distance + (gradient.detach() * (position - position.detach())).sum(-1)
    distances = torch.cat([distance[:, None], field.eyes(position)], 1)
    part = distances.detach().argmin(1)
    weights, part_opacity = composite(distances.view(*times.shape, 3), lengths, beta)
    normal = normalize(gradient, dim=-1, eps=1e-6)

    # Where sizes must not follow from values, for a replay, faint points are shaded as well.
    seen = None if position.is_cuda else (weights.detach().flatten() > FAINT).nonzero()[:, 0]

    def points(values: Tensor) -> Tensor:
        return values if seen is None else values[seen]

    def of_their_rays(values: Tensor) -> Tensor:
        return values.repeat_interleave(per_ray, 0) if seen is None else values[seen // per_ray]

    at, facing, what = points(position), points(normal), points(part)
    if field.config.eyes.enabled:
        facing = torch.where((what > 0)[:, None], field.eye_normals(at, what), facing)
    material = field.material(at, what, active)
    occlusion = of_their_rays(field.occlusion[rays.view])
    pbr = flash(field, at, of_their_rays(rays.origin), facing, material, occlusion, intensity)
    auxiliary = field.radiance(at, points(feature), facing, -of_their_rays(rays.direction))
    weight, gain = points(weights.flatten())[:, None], gains(field)[rays.view]

    def collected(values: Tensor) -> Tensor:
        if seen is None:
            return gain * (weight * values).view(*times.shape, -1).sum(1)
        return gain * values.new_zeros(len(times), values.shape[1]).index_add(0, seen // per_ray, weight * values)

    def every(values: Tensor) -> Tensor:
        return values if seen is None else values.new_zeros(len(position), values.shape[1]).index_copy(0, seen, values)

    return Samples(
        position,
        weights,
        weights.sum(1),
        part_opacity,
        part,
        gradient,
        normal,
        collected(pbr),
        collected(auxiliary),
        Material(every(material.diffuse), every(material.specular), every(material.roughness)),
    )
