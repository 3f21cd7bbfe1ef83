"""Training: volume rendering until there is a surface, then its material alone on whole pictures."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from recon4d import InputError
from recon4d.cli import progress_bar
from recon4d.files import atomic_path
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize

from eyeball_relight import asset as assets
from eyeball_relight import brdf, config, marching, spheres, surface, volume
from eyeball_relight.capture import Capture
from eyeball_relight.config import Config
from eyeball_relight.field import Field
from eyeball_relight.volume import Rays, Samples

CHECKPOINT = "latest.pth"
AROUND_HEAD, AROUND_EYES = 8, 3  # pixels around the masks that rays are drawn from
SHARES = (0.82, 0.10, 0.08)  # of the rays: around the head, around the eyes, anywhere
NEIGHBOUR = 0.006  # bounds; how far the points are whose normals should be alike
LIGHT_TOLERANCE = 0.05
SURFACE_PIXELS = 16384  # of a picture in a step of the mesh phase


@dataclass(frozen=True)
class Pool:
    """The pixels that rays are drawn from: flat indices into (N, H, W) of the training views."""

    head: Tensor
    eyes: Tensor
    every: Tensor


def pool_of(capture: Capture) -> Pool:
    """The pixels of the training views around the head, around the eyes, and all."""

    def around(masks: Tensor, reach: int) -> Tensor:
        out = np.zeros(masks.shape, bool)
        for i in capture.trained:
            out[i] = cv2.dilate(masks[i].numpy(), np.ones((2 * reach + 1,) * 2)) > 127
        return torch.from_numpy(out).flatten().nonzero()[:, 0]

    every = torch.zeros(capture.mask.shape, dtype=torch.bool)
    every[capture.trained] = True
    head = around(capture.mask, AROUND_HEAD)
    if len(head) == 0:
        raise InputError(f"{capture.folder}/mask is black in all training views; white is the head")
    eyes = around(torch.maximum(capture.left, capture.right), AROUND_EYES)
    return Pool(head, eyes, every.flatten().nonzero()[:, 0])


def draw(pool: Pool, n: int, generator: torch.Generator) -> Tensor:
    """n flat pixel indices."""
    parts = []
    for pixels, share in zip((pool.head, pool.eyes, pool.every), SHARES):
        pixels = pixels if len(pixels) else pool.head
        parts.append(pixels[torch.randint(len(pixels), (max(1, round(share * n)),), generator=generator)])
    return torch.cat(parts)


@dataclass(frozen=True)
class Directions:
    """All rays of a capture, found when asked for. Positions in bounds."""

    capture: Capture
    bound: float

    def rays(self, pixels: Tensor) -> Rays:
        """Rays through the centres of flat pixel indices (R,) into (N, H, W)."""
        camera = self.capture.camera
        view = pixels // (camera.height * camera.width)
        row, column = pixels % (camera.height * camera.width) // camera.width, pixels % camera.width
        homogeneous = torch.stack([column + 0.5, row + 0.5, torch.ones_like(row)], 1).float()
        local = homogeneous @ torch.linalg.inv(camera.K).T
        rotation = camera.world_to_camera[view, :3, :3]
        direction = (local[:, None] @ rotation)[:, 0]
        return Rays(camera.center[view] / self.bound, normalize(direction, dim=-1), view)


def flash_intensity(settings: Config, capture: Capture) -> Tensor:
    """The flash's intensity (3,): given, or such that the median pixel of the face has an albedo of 0.4."""
    colour = torch.tensor(settings.light.color)
    if settings.light.intensity is not None:
        return settings.light.intensity * colour
    face = (capture.mask > 127) & (capture.hair < 128)
    linear = brdf.to_linear(capture.image[face].float() / 255).mean(-1).median()
    square = capture.camera.center.square().sum(-1).median()
    return colour * float(linear) * float(square) * np.pi / 0.4


def place_eyes(field: Field, capture: Capture, intensity: Tensor, log: Callable[[str], None]) -> None:
    """Set the eyeballs behind their landmarks, or behind the middle of their masks, in place.

    Where the masks have enough pixels, centres and radius are then those that explain the pictures best.

    Raises InputError when there is neither.
    """
    bound, radius = field.config.data.bound, field.eye_radius.detach()
    middle, fronts = capture.camera.center.mean(0) / bound, []
    for k, (points, masks, side) in enumerate(
        (
            (field.config.data.left_eye_ldm, capture.left, "left"),
            (field.config.data.right_eye_ldm, capture.right, "right"),
        )
    ):
        if points:
            front = torch.tensor(points).mean(0) / bound
        else:
            front = _mask_centre(capture, masks, side) / bound
        fronts.append(front)
        with torch.no_grad():
            field.eye_centres[k] = front - radius * normalize(middle - front, dim=0)
    masks = (capture.left, capture.right)
    if min(int((m[capture.trained] > 127).sum()) for m in masks) < spheres.FEWEST_PIXELS:
        log("the eye masks are too small to fit spheres to; the eyeballs begin behind their middles")
        return
    low, high = field.config.eyes.radius
    centres, fitted = spheres.fit(
        capture.camera,
        capture.image,
        masks,
        capture.trained,
        torch.stack(fronts) * bound,
        (low, high),
        float(intensity.mean()),
    )
    log(f"eyeballs: radius {fitted:.4g}, centres " + ", ".join(str([round(x, 4) for x in c]) for c in centres.tolist()))
    share = min(max((fitted - low) / (high - low), 0.02), 0.98)
    with torch.no_grad():
        field.eye_centres[:] = centres / bound
        field.eye_radius_logit.fill_(float(np.log(share / (1 - share))))


def _mask_centre(capture: Capture, masks: Tensor, side: str) -> Tensor:
    """The point (3,) nearest to the rays through the middles of an eye's masks, in the capture's unit."""
    directions = Directions(capture, 1.0)
    picked = []
    for i in capture.trained:
        rows, columns = (masks[i] > 127).nonzero(as_tuple=True)
        if len(rows) >= 8:
            row, column = int(rows.float().mean()), int(columns.float().mean())
            picked.append((i * capture.camera.height + row) * capture.camera.width + column)
    if len(picked) < 3:
        raise InputError(
            f"the {side} eye has no landmarks (data.{side}_eye_ldm) and masks in fewer than three views; "
            "run eyeball-landmarks and render-eye-mask, or set eyes.enabled to false"
        )
    rays = directions.rays(torch.tensor(picked))
    across = torch.eye(3) - rays.direction[:, :, None] * rays.direction[:, None]
    return torch.linalg.solve(across.sum(0), (across @ rays.origin[:, :, None]).sum(0)[:, 0])


# ------------------------------------------------------------------------------------------------------- losses


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
    losses, eyes_on = field.config.losses, field.config.eyes.enabled
    picture = brdf.to_linear(capture.image.view(-1, 3)[pixels].float() / 255)
    mask = capture.mask.view(-1)[pixels].float() / 255
    hair = capture.hair.view(-1)[pixels].float() / 255
    per_ray = samples.weights.shape[1]
    # An error in the dark is seen as well as one in the light: weigh by the slope of the picture's encoding.
    weight = 1 / (picture.mean(-1, keepdim=True) + 0.15)
    terms = {
        "pbr": losses.pbr * (weight * (samples.pbr.clamp(max=1) - picture).abs()).mean(),
        "auxiliary": losses.auxiliary * (weight * (samples.auxiliary - picture).abs()).mean(),
        "mask": losses.mask * (samples.opacity - mask).abs().mean(),
    }
    if losses.parts and eyes_on:
        eyes = torch.stack([x.view(-1)[pixels].float() / 255 for x in (capture.left, capture.right)], 1)
        wanted = torch.cat([(mask - eyes.sum(1)).clamp(min=0)[:, None], eyes], 1)
        terms["parts"] = losses.parts * (samples.part_opacity - wanted).abs().sum(1).mean()
        if losses.clear:
            terms["clear"] = losses.clear * clearance_loss(field, rays, eyes, field.active(step), generator)
    if losses.landmarks and eyes_on:
        terms["landmarks"] = losses.landmarks * landmark_loss(field)

    n = len(pixels)
    spread = torch.rand(n // 4, 3, generator=generator) * 2 - 1
    _, _, apart = field.face_gradient(spread, field.active(step))
    gradients = torch.cat([samples.gradient, apart])
    terms["eikonal"] = losses.eikonal * (gradients.norm(dim=1) - 1).square().mean()

    # One point per ray, the one it sees most of, and a neighbour.
    seen = samples.weights.detach()
    index = torch.arange(n) * per_ray + seen.argmax(1)
    face = (samples.part[index] == 0) & (seen.sum(1) > 0.5)
    index, in_hair = index[face], hair[face]
    if len(index):
        at = samples.position[index].detach()
        beside = at + NEIGHBOUR * normalize(torch.randn(at.shape, generator=generator), dim=-1)
        _, _, gradient = field.face_gradient(beside, field.active(step))
        bent = (normalize(gradient, dim=-1) - samples.normal[index]).abs().sum(1)
        terms["smooth"] = (
            torch.lerp(torch.tensor(losses.smooth), torch.tensor(losses.smooth_hair), in_hair) * bent
        ).mean()
        gloss = field.material(beside, torch.zeros(len(at), dtype=torch.long), field.active(step))
        rough = (gloss.roughness - samples.material.roughness[index]).abs()
        sheen = (gloss.specular - samples.material.specular[index]).abs()
        terms["roughness"] = losses.roughness * (rough + sheen).mean()
        specular = samples.material.specular[index, 0]
        terms["hair"] = losses.hair * (in_hair * specular).mean()
        if capture.specular is not None and losses.specular:
            fitted = capture.specular.view(-1)[pixels[face]].float() / 255
            terms["specular"] = losses.specular * ((specular - fitted).abs() * (1 - in_hair)).mean()
    return terms


CLEAR_AHEAD, CLEAR_MARGIN = 0.1, 0.003  # bounds


def clearance_loss(field: Field, rays: Rays, eyes: Tensor, active: list[int], generator: torch.Generator) -> Tensor:
    """How deep points between the cameras and an eyeball lie in the face, mean over rays whose mask (R, 2) sees one.

    The opacity of a face that hides an eyeball is saturated, and so has no gradient; its distances have one.
    """
    ray, eye = (eyes > 0.9).nonzero(as_tuple=True)
    if len(ray) == 0:
        return torch.zeros(())
    origin, direction = rays.origin[ray], rays.direction[ray]
    offset = field.eye_centres.detach()[eye] - origin
    along = (offset * direction).sum(1)
    miss = (offset**2).sum(1) - along**2
    hit = along - (field.eye_radius.detach() ** 2 - miss).clamp(min=0).sqrt()
    ahead = CLEAR_AHEAD * torch.rand(len(ray), generator=generator)
    distance, _ = field.face(origin + (hit - ahead)[:, None] * direction, active)
    return (CLEAR_MARGIN - distance).clamp(min=0).mean()


def landmark_loss(field: Field) -> Tensor:
    """Mean distance of the eyeball landmarks from their eyeballs' surfaces, in bounds; 0 without landmarks."""
    data, total = field.config.data, torch.zeros(())
    for k, points in enumerate((data.left_eye_ldm, data.right_eye_ldm)):
        if points:
            away = (torch.tensor(points) / data.bound - field.eye_centres[k]).norm(dim=1)
            total = total + (away - field.eye_radius).abs().mean()
    return total


# ----------------------------------------------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Result:
    """What a run reports."""

    steps: int
    seconds: float
    rays: int
    loss: float
    beta: float
    light_offset: list[float]  # in the camera's axes
    light_warning: str | None


def rate(settings: Config, step: int) -> float:
    """Adam's learning rate at a step: warm-up, then a factor at each milestone; the mesh phase has its own."""
    train = settings.train
    if step >= train.mesh_render_iter:
        share = (step - train.mesh_render_iter) / max(train.iterations - train.mesh_render_iter, 1)
        return train.mesh_lr * 0.1**share
    passed = sum(step >= milestone for milestone in train.milestones)
    return train.lr * min(1.0, (step + 1) / train.warm_up) * train.milestone_factor**passed


def generator_of(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step: a resumed run draws what an uninterrupted one would have."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))


def new_field(settings: Config, n_views: int) -> Field:
    """A field as training begins with it; the seed decides."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return Field(settings, n_views)


def adam(field: Field) -> torch.optim.Adam:
    """The optimizer. Rates of the eyeballs' centres and radius are scaled so that a step moves both about as far."""
    eyes = {id(field.eye_centres), id(field.eye_radius_logit)}
    groups = [
        {"params": [p for p in field.parameters() if id(p) not in eyes], "scale": 1.0, "eyes": False},
        {"params": [field.eye_centres], "scale": 0.1, "eyes": True},
        {"params": [field.eye_radius_logit], "scale": 5.0, "eyes": True},
    ]
    return torch.optim.Adam(groups, lr=0.0, eps=1e-15)


def train(settings: Config, capture: Capture, output: Path, log: Callable[[str], None], resume: bool = False) -> Result:
    """Train a field on the capture; write `latest.pth` into `output`.

    Raises InputError: unusable masks, eyes that cannot be placed, a checkpoint that does not fit.
    """
    plan = settings.train
    field, optimizer, started = new_field(settings, len(capture)), None, time.perf_counter()
    optimizer = adam(field)
    grid = torch.zeros((plan.grid + 1,) * 3)
    n_rays, first, seconds = plan.samples // plan.per_ray, 0, 0.0
    intensity = flash_intensity(settings, capture)
    if settings.eyes.enabled and not resume:
        place_eyes(field, capture, intensity, log)
    if resume:
        state = read_checkpoint(output / CHECKPOINT)
        fill(field, state, output / CHECKPOINT)
        optimizer.load_state_dict(state["optimizer"])
        grid, n_rays, first, seconds = state["grid"], state["n_rays"], state["step"], state["seconds"]
        log(f"resumed at step {first}")
    pool, directions = pool_of(capture), Directions(capture, settings.data.bound)
    loss, views, rays_seen = torch.zeros(()), None, 0

    def keep(step: int) -> None:
        state = {
            "step": step,
            "seconds": seconds + time.perf_counter() - started,
            "n_rays": n_rays,
            "grid": grid,
            "intensity": intensity,
            "field": field.state_dict(),
            "optimizer": optimizer.state_dict(),
            "config": json.dumps(settings.model_dump()),
        }
        with atomic_path(output / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    with progress_bar("training", plan.iterations) as show:
        for step in range(first, plan.iterations):
            generator = generator_of(settings.seed, step)
            for group in optimizer.param_groups:
                still = group["eyes"] and step < settings.eyes.still
                group["lr"] = 0.0 if still else rate(settings, step) * group["scale"]
            active, beta = field.active(step), field.width(step)
            if step < plan.mesh_render_iter:
                if step % plan.grid_every == 0:
                    marching.update_grid(grid, field, active, step // plan.grid_every)
                pixels = draw(pool, n_rays, generator)
                rays = directions.rays(pixels)
                wanted = capture.mask.view(-1)[pixels] > 127
                count = 2 if settings.eyes.enabled else 0
                edges, hit = marching.bins_along(
                    grid,
                    field.eye_centres[:count],
                    float(field.eye_radius.detach()),
                    float(beta.detach()),
                    rays.origin,
                    rays.direction,
                    wanted,
                    plan.per_ray,
                    torch.rand(len(pixels), plan.per_ray + 1, generator=generator),
                )
                kept = hit.nonzero()[:, 0]
                if len(kept) < 8:
                    raise InputError("almost no ray meets the head inside the bounds; check data.bound and the poses")
                where = torch.rand(len(kept), plan.per_ray, generator=generator)
                rays = Rays(rays.origin[kept], rays.direction[kept], rays.view[kept])
                samples = volume.render(field, rays, edges[kept], beta, active, intensity, where)
                terms = loss_terms(field, capture, samples, rays, pixels[kept], step, generator)
                # as many rays as fill the budget of samples
                n_rays = max(64, min(4 * plan.samples, round(plan.samples / plan.per_ray * len(pixels) / len(kept))))
                rays_seen += len(pixels)
            else:
                if views is None:
                    views = surface_views(field, active, capture)
                terms = surface_terms(field, capture, views, step, active, intensity, generator, log)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % 20 == 0:
                show(step, f"loss {float(loss.detach()):.4f}")
            if (step + 1) % plan.checkpoint_every == 0 and step + 1 < plan.iterations:
                keep(step + 1)
                log(f"step {step + 1}: " + ", ".join(f"{k} {float(v.detach()):.4f}" for k, v in terms.items()))
    keep(max(plan.iterations, first))
    if views is None:
        views = surface_views(field, field.active(plan.iterations), capture)
    offset = light_offset(field, capture, views, field.active(plan.iterations), intensity)
    return Result(
        steps=plan.iterations,
        seconds=seconds + time.perf_counter() - started,
        rays=rays_seen,
        loss=float(loss.detach()),
        beta=float(field.width(plan.mesh_render_iter).detach()) * settings.data.bound,
        light_offset=offset,
        light_warning=light_warning(capture, offset),
    )


# -------------------------------------------------------------------------------------------------- mesh phase


@dataclass(frozen=True)
class SurfaceView:
    """What one picture's pixels see of the extracted surface, away from outlines. Positions in the capture's unit.

    pixel: (N,) flat indices into (V, H, W). view: the picture. part: (N,). position, normal: (N, 3).
    """

    pixel: Tensor
    view: int
    part: Tensor
    position: Tensor
    normal: Tensor


def eyeballs(field: Field) -> assets.Asset:
    """The field's eyeballs as surfaces of grey, in the capture's unit."""
    if not field.config.eyes.enabled:
        return {}
    bound, grey = field.config.data.bound, torch.full((2, 2, 3), 0.5)
    centres, radius = field.eye_centres.detach() * bound, float(field.eye_radius.detach()) * bound
    return {part: assets.eyeball(centre, radius, grey) for part, centre in zip(("left", "right"), centres)}


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
    """Linear colours (M, 3) of chosen pixels of a view."""
    bound = field.config.data.bound
    position = view.position[pick] / bound
    material = field.material(position, view.part[pick], active)
    origin = (capture.view(view.view).center / bound).expand_as(position)
    which = torch.full((len(pick),), view.view)
    return volume.flash(field, position, origin, view.normal[pick], material, which, intensity)


def surface_terms(
    field: Field,
    capture: Capture,
    views: list[SurfaceView],
    step: int,
    active: list[int],
    intensity: Tensor,
    generator: torch.Generator,
    log: Callable[[str], None],
) -> dict[str, Tensor]:
    """Loss terms of one whole picture; only material and room light have gradients."""
    losses = field.config.losses
    view = views[int(torch.randint(len(views), (1,), generator=generator))]
    pick = torch.arange(len(view.pixel))
    if not losses.lpips and len(pick) > SURFACE_PIXELS:
        pick = torch.randperm(len(pick), generator=generator)[:SURFACE_PIXELS]
    colour = surface_colours(field, capture, view, pick, active, intensity)
    truth = capture.image.view(-1, 3)[view.pixel[pick]].float() / 255
    # In the picture's own encoding: what is seen is what is compared.
    rendered = brdf.to_picture(colour)
    terms = {"pbr": losses.pbr * (rendered - truth).abs().mean()}
    if losses.lpips:
        terms |= perceptual(capture, view, rendered, losses.lpips, log)
    face = view.part[pick] == 0
    at = view.position[pick][face] / field.config.data.bound
    if len(at):
        some = torch.randint(len(at), (min(1024, len(at)),), generator=generator)
        at, hair = at[some], capture.hair.view(-1)[view.pixel[pick][face][some]].float() / 255
        beside = at + NEIGHBOUR * normalize(torch.randn(at.shape, generator=generator), dim=-1)
        zero = torch.zeros(len(at), dtype=torch.long)
        here, there = field.material(at, zero, active), field.material(beside, zero, active)
        rough = (here.roughness - there.roughness).abs() + (here.specular - there.specular).abs()
        terms["roughness"] = losses.roughness * rough.mean()
        terms["hair"] = losses.hair * (hair * here.specular[:, 0]).mean()
    return terms


def perceptual(
    capture: Capture, view: SurfaceView, rendered: Tensor, weight: float, log: Callable[[str], None]
) -> dict[str, Tensor]:
    """The LPIPS term of a whole picture; without the network's weights nothing, which is said once."""
    from recon4d import metrics

    size = (capture.camera.height, capture.camera.width, 3)
    truth = capture.image[view.view].float() / 255
    start = view.view * size[0] * size[1]
    image = truth.reshape(-1, 3).index_put((view.pixel - start,), rendered).view(size)
    try:
        distance = metrics.lpips(image.permute(2, 0, 1)[None], truth.permute(2, 0, 1)[None])
    except InputError as error:
        if not _said:
            _said.append(True)
            log(f"training without LPIPS: {error}")
        return {}
    return {"lpips": weight * distance.mean()}


_said: list[bool] = []


def light_offset(
    field: Field, capture: Capture, views: list[SurfaceView], active: list[int], intensity: Tensor
) -> list[float]:
    """Where the light seems to be in the camera's axes, in the capture's unit: least squares on what is left over.

    Shading of a matt surface changes by its slope with the light's position; a capture whose light is at the camera
    leaves a residual that no common displacement explains.
    """
    rows, sides = [], []
    generator = generator_of(field.config.seed, field.config.train.iterations)
    for view in views:
        pick = torch.randint(len(view.pixel), (min(2000, len(view.pixel)),), generator=generator)
        pick = pick[view.part[pick] == 0]
        truth = brdf.to_linear(capture.image.view(-1, 3)[view.pixel[pick]].float() / 255).mean(-1)
        camera = capture.view(view.view)
        turn = camera.world_to_camera[:3, :3]
        with torch.no_grad():
            colour = surface_colours(field, capture, view, pick, active, intensity).mean(-1)
        towards = camera.center - view.position[pick]
        distance = towards.norm(dim=1, keepdim=True)
        unit, normal = towards / distance, view.normal[pick]
        cosine = (unit * normal).sum(1, keepdim=True)
        # d/dl log(n.l / |l|^3): towards the normal, away from the distance
        slope = (normal / cosine.clamp(min=0.1) - 3 * unit) / distance
        fine = (cosine[:, 0] > 0.3) & (truth > 0.02) & (truth < 0.95) & (colour > 0.02)
        rows.append((slope @ turn.T)[fine] * colour[fine, None])
        sides.append((truth - colour)[fine])
    A, b = torch.cat(rows).double(), torch.cat(sides).double()
    return torch.linalg.lstsq(A, b[:, None]).solution[:, 0].tolist()


def light_warning(capture: Capture, offset: list[float]) -> str | None:
    """A sentence where the light is farther from the camera than LIGHT_TOLERANCE of the distance to the head."""
    distance = float(capture.camera.center.norm(dim=1).median())
    away = float(np.linalg.norm(offset[:2]))  # along the line of sight it is the distance that is wrong
    if away <= LIGHT_TOLERANCE * distance:
        return None
    return (
        f"the pictures look as if the light were {away:.3g} away from the camera, which is {distance:.3g} from the "
        "head; normals and albedo lean to one side. Hold the light at the lens"
    )


# -------------------------------------------------------------------------------------------------- checkpoints


def read_checkpoint(path: Path) -> dict:
    """The state in a checkpoint. Raises InputError for a missing or broken file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; train first, or give another --ckpt-path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {"field", "step", "config", "intensity"} <= set(state):
            raise ValueError("it holds something else")
        return state
    except Exception as error:  # truncated archives raise many types
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is not a readable checkpoint ({reason}); train again") from error


def fill(field: Field, state: dict, path: Path) -> None:
    """Load a checkpoint's parameters. Raises InputError where they do not fit."""
    try:
        field.load_state_dict(state["field"])
    except RuntimeError as error:
        raise InputError(f"{path} does not fit these settings ({str(error).splitlines()[-1].strip()})") from error


def open_field(path: Path) -> tuple[Field, Tensor, int]:
    """A trained field, its flash intensity (3,) and step. Raises InputError as `read_checkpoint` does."""
    state = read_checkpoint(path)
    settings = config.check(json.loads(state["config"]), path)
    field = Field(settings, len(state["field"]["occlusion"]))
    fill(field, state, path)
    return field.requires_grad_(False), state["intensity"], state["step"]
