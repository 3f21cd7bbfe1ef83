"""The second phase of training: the extracted surface stays, its material and the room's light fit the pictures."""

from dataclasses import dataclass

import torch
from recon4d import InputError, metrics
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize

from eyeball_relight import assets, brdf, surface, volume
from eyeball_relight.captures import Capture
from eyeball_relight.field import Field, eyeballs
from eyeball_relight.losses import NEIGHBOUR
from eyeball_relight.refinement import gains
from eyeball_relight.room import room_share

SURFACE_PIXELS = 16384  # of a picture in a step


@dataclass(frozen=True, eq=False)
class SurfaceView:
    """What one picture's pixels see of the extracted surface, away from outlines. Positions in the capture's unit.

    pixel: (N,) flat indices into (V, H, W). view: the picture. part: (N,). position, normal: (N, 3).
    """

    pixel: Tensor
    view: int
    part: Tensor
    position: Tensor
    normal: Tensor


def surface_views(field: Field, active: list[int], capture: Capture) -> list[SurfaceView]:
    """The extracted surface as each training view sees it."""
    vertices, faces = surface.extract(field, active, field.config.train.mesh_resolution, field.level)
    flat = torch.zeros(2, 2, 1)
    everything = eyeballs(field) | {
        "face": assets.Surface(
            vertices,
            surface.normals_of(field, vertices, active),
            faces,
            torch.zeros(1, 2),
            torch.zeros_like(faces),
            flat.expand(2, 2, 3),
            flat,
            flat,
        )
    }
    out = []
    for i in capture.trained:
        pixels = assets.visible(everything, capture.view(i))
        labels = pixels.image(pixels.part[:, None] + 1.0)[..., 0]
        same = max_pool2d(labels[None], 3, 1, 1)[0] == -max_pool2d(-labels[None], 3, 1, 1)[0]
        inside = (same & (capture.mask[i] == 255)).flatten()[pixels.index]
        start = i * capture.camera.height * capture.camera.width
        out.append(
            SurfaceView(
                start + pixels.index[inside], i, pixels.part[inside], pixels.position[inside], pixels.normal[inside]
            )
        )
    if not any(len(view.pixel) for view in out):
        raise InputError("no picture sees the extracted surface inside its mask; check poses and masks")
    return [view for view in out if len(view.pixel)]


def surface_colours(
    field: Field, capture: Capture, view: SurfaceView, pick: Tensor, active: list[int], intensity: Tensor
) -> Tensor:
    """Linear colours (M, 3) of chosen pixels of a view, on the field's device."""
    bound, device = field.config.data.bound, field.device
    position, part, normal = (x[pick].to(device) for x in (view.position, view.part, view.normal))
    position = position / bound
    material = field.material(position, part, active)
    origin = (capture.view(view.view).center.to(device) / bound).expand_as(position)
    occlusion = field.occlusion[view.view]
    return gains(field)[view.view] * volume.flash(field, position, origin, normal, material, occlusion, intensity)


def surface_terms(
    field: Field,
    capture: Capture,
    views: list[SurfaceView],
    active: list[int],
    intensity: Tensor,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Loss terms of one whole picture, or of SURFACE_PIXELS of it without LPIPS; of material and room light alone."""
    losses, device = field.config.losses, field.device
    view = views[int(torch.randint(len(views), (1,), generator=generator))]
    pick = torch.arange(len(view.pixel))
    if not losses.lpips and len(pick) > SURFACE_PIXELS:
        pick = torch.randperm(len(pick), generator=generator)[:SURFACE_PIXELS]
    colour = surface_colours(field, capture, view, pick, active, intensity)
    truth = capture.image.view(-1, 3)[view.pixel[pick]].to(device).float() / 255
    # In the picture's own encoding: what is seen is what is compared.
    rendered = brdf.to_picture(colour)
    terms = {"pbr": losses.pbr * (rendered - truth).abs().mean()}
    if losses.lpips:
        terms["lpips"] = losses.lpips * perceptual(capture, view, rendered)
    if losses.occlusion:
        terms["occlusion"] = losses.occlusion * field.occlusion[view.view].square().sum()
    if losses.room:
        terms["room"] = losses.room * room_share(field, capture.camera, intensity)
    face = view.part[pick] == 0
    at = view.position[pick][face] / field.config.data.bound
    if len(at):
        some = torch.randint(len(at), (min(1024, len(at)),), generator=generator)
        hair = capture.hair.view(-1)[view.pixel[pick][face][some]].to(device).float() / 255
        at = at[some].to(device)
        beside = at + NEIGHBOUR * normalize(torch.randn(at.shape, generator=generator).to(at), dim=-1)
        zero = torch.zeros(len(at), dtype=torch.long, device=device)
        here, there = field.material(at, zero, active), field.material(beside, zero, active)
        rough = (here.roughness - there.roughness).abs() + (here.specular - there.specular).abs()
        terms["roughness"] = losses.roughness * rough.mean()
        terms["hair"] = losses.hair * (hair * here.specular[:, 0]).mean()
    return terms


def perceptual(capture: Capture, view: SurfaceView, rendered: Tensor) -> Tensor:
    """LPIPS between a whole picture and the same with the view's pixels `rendered` (N, 3)."""
    size = (capture.camera.height, capture.camera.width, 3)
    truth = capture.image[view.view].to(rendered.device).float() / 255
    start = view.view * size[0] * size[1]
    image = truth.reshape(-1, 3).index_put(((view.pixel - start).to(rendered.device),), rendered).view(size)
    return metrics.lpips(image.permute(2, 0, 1)[None], truth.permute(2, 0, 1)[None]).mean()
