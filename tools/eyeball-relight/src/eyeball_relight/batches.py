"""What a step of volume rendering is given: rays, where to sample them, what the pictures show there, random numbers.

All of it is made on the CPU. Its sizes follow from the number of rays alone, so that a GPU can replay a recorded step.
"""

from dataclasses import dataclass, fields

import torch
from recon4d import InputError
from torch import Tensor

from eyeball_relight import brdf, marching
from eyeball_relight.captures import Capture
from eyeball_relight.field import Field
from eyeball_relight.rays import rays_through
from eyeball_relight.refinement import corrected


@dataclass(frozen=True, eq=False)
class Batch:
    """R rays of K bins each, and S points anywhere.

    pixel: (R,) flat indices into (N, H, W). edges: (R, K + 1) of the bins, where: (R, K) shares of their lengths.
    picture: (R, 3) linear. head, hair: (R,), eyes: (R, 2), in [0, 1]. specular: (R,) as fitted, or none of them.
    anywhere: (S, 3) in bounds. aside: (R, 3) unit. ahead: (R,) in [0, 1]. ceiling: () the density's; see `Field.width`.
    """

    pixel: Tensor
    edges: Tensor
    where: Tensor
    picture: Tensor
    head: Tensor
    hair: Tensor
    eyes: Tensor
    specular: Tensor
    anywhere: Tensor
    aside: Tensor
    ahead: Tensor
    ceiling: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(*(getattr(self, x.name).to(device, non_blocking=True) for x in fields(self)))

    def copy_(self, other: "Batch") -> None:
        """Take another batch's values, of the same sizes."""
        for x in fields(self):
            getattr(self, x.name).copy_(getattr(other, x.name), non_blocking=True)


def gather(
    field: Field, capture: Capture, grid: Tensor, pixels: Tensor, step: int, generator: torch.Generator
) -> tuple[Batch, int]:
    """A batch of the rays through flat pixel indices (P,) that are worth sampling, and how many these are.

    The batch has `train.samples / train.per_ray` rays: each as often as the others, or one time more or less.

    Raises InputError where almost none is worth sampling.
    """
    settings = field.config
    per_ray, eyes_on = settings.train.per_ray, settings.eyes.enabled
    rays = rays_through(corrected(field, capture).camera, settings.data.bound, pixels)
    edges, hit = marching.bins_along(
        grid,
        field.eye_centres[: 2 if eyes_on else 0],
        float(field.eye_radius.detach()),
        float(field.width(step).detach()),
        rays.origin,
        rays.direction,
        capture.mask.view(-1)[pixels] > 127,
        per_ray,
        torch.rand(len(pixels), per_ray + 1, generator=generator),
    )
    kept = hit.nonzero()[:, 0]
    sampled = len(kept)
    if sampled < 8:
        raise InputError("almost no ray meets the head inside the bounds; check data.bound and the poses")
    n = settings.train.samples // per_ray
    kept = kept[torch.arange(n) * sampled // n]
    pixel = pixels[kept]

    def seen(values: Tensor) -> Tensor:
        return values.view(-1)[pixel].float() / 255

    batch = Batch(
        pixel,
        edges[kept],
        torch.rand(n, per_ray, generator=generator),
        brdf.to_linear(capture.image.view(-1, 3)[pixel].float() / 255),
        seen(capture.mask),
        seen(capture.hair),
        torch.stack([seen(capture.left), seen(capture.right)], 1),
        torch.zeros(0) if capture.specular is None else seen(capture.specular),
        torch.rand(n // 4, 3, generator=generator) * 2 - 1,
        torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1),
        torch.rand(n, generator=generator),
        torch.tensor(field.ceiling(step)),
    )
    return batch, sampled
