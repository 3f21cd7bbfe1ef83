"""Where the eyeballs are, from pictures and masks alone: the two spheres that explain what all views see.

A texture seen on a sphere from many sides tells where the sphere's front is, but hardly how far behind it the middle
lies: a smaller sphere farther ahead shows the same. How the flash shades it does, for at the light the normal points at
the camera. So the fit compares shaded pictures. For any centre and radius the albedo that explains the pixels best is
a linear least-squares problem; what it leaves over is minimised by centre and radius (variable projection, Golub and
Pereyra 1973).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from recon4d import InputError
from recon4d.cameras import Camera
from scipy.optimize import least_squares
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight import assets, brdf
from eyeball_relight.captures import Capture
from eyeball_relight.field import Field
from eyeball_relight.rays import rays_through

TEXELS = 24  # per side of the map of an eyeball's front
SAMPLES = 2  # rays per side of a pixel
MOST_PIXELS, FEWEST_PIXELS = 4000, 300
SATURATED = 0.98
RIPPLE = 1e-3  # weight of differences between neighbouring texels
STEP = 2e-3  # of finite differences, as a share of the radius
ITERATIONS = 30
REACH = 0.5  # radii along each axis that an eyeball may lie from where it is looked for
NOISE = 0.02  # of pixels; larger residuals count less (soft L1)
ODD = 0.06  # linear; pixels farther from the map than this hardly shape it


@dataclass(frozen=True, eq=False)
class Seen:
    """P pixels of an eye, S rays through each.

    origin, direction: (P S, 3), unit. grey: (P,), linear. full: (P,) where a channel is at its limit.
    front: (3, 3) rows, two axes across the eye's mean line of sight and that line, from the eye to the cameras.
    """

    origin: Tensor
    direction: Tensor
    grey: np.ndarray
    full: np.ndarray
    front: Tensor


def look(camera: Camera, image: Tensor, masks: Tensor, views: list[int], middle: Tensor) -> Seen:
    """The pixels of an eye's masks (N, H, W) in chosen views of pictures (N, H, W, 3), of uint8.

    Args:
        middle: (3,) about where the eye is.
    """
    chosen = torch.zeros_like(masks, dtype=torch.bool)
    chosen[views] = masks[views] > 127
    view, row, column = chosen.nonzero(as_tuple=True)
    if len(view) > MOST_PIXELS:
        some = torch.randperm(len(view), generator=torch.Generator().manual_seed(0))[:MOST_PIXELS]
        view, row, column = view[some], row[some], column[some]
    off = (torch.arange(SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES
    down, right = (x.flatten() for x in torch.meshgrid(off, off, indexing="ij"))
    across = torch.stack(torch.broadcast_tensors(column[:, None] + right, row[:, None] + down, torch.ones(1, 1)), -1)
    local = across @ torch.linalg.inv(camera.K.double()).T
    direction = normalize(local @ camera.world_to_camera[view, :3, :3].double(), dim=-1)
    origin = camera.center[view].double()
    back = normalize((origin - middle).mean(0), dim=0)
    side = normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), back), dim=0)
    front = torch.stack([side, torch.linalg.cross(back, side), back])
    values = image[view, row, column].double() / 255
    full = (values.amax(1) > SATURATED).numpy()
    grey = brdf.to_linear(values).mean(1).numpy()
    return Seen(origin.repeat_interleave(SAMPLES**2, 0), direction.flatten(0, 1), grey, full, front)


def ripple() -> np.ndarray:
    """The matrix (T, T) of the sum of squared differences between neighbouring texels."""
    index = np.arange(TEXELS**2).reshape(TEXELS, TEXELS)
    out = np.zeros((TEXELS**2,) * 2)
    for a, b in ((index[1:], index[:-1]), (index[:, 1:], index[:, :-1])):
        for i, j in zip(a.ravel(), b.ravel()):
            out[[i, j], [i, j]] += 1
            out[[i, j], [j, i]] -= 1
    return out


def residuals(
    seen: Seen, centre: Tensor, radius: float, room: float, intensity: float, smooth: np.ndarray
) -> np.ndarray:
    """What the best albedo leaves over (2 P,): brightness as a picture has it, and by how far rays miss the sphere.

    Args:
        room: ambient irradiance over pi. smooth: `ripple()`.
    """
    parts = SAMPLES**2
    offset = centre - seen.origin
    along = (offset * seen.direction).sum(1)
    miss = (offset**2).sum(1) - along**2 - radius**2
    time = (along - (-miss).clamp(min=0).sqrt())[:, None]
    normal = normalize(time * seen.direction - offset, dim=1)
    one = torch.ones_like(time)
    rough, arriving = assets.EYE_ROUGHNESS * one, intensity / time**2
    matt = (brdf.reflect_flash(normal, -seen.direction, one, 0 * one, rough) * arriving + room)[:, 0].numpy()
    glossy = brdf.reflect_flash(normal, -seen.direction, 0 * one, assets.EYE_SPECULAR * one, rough) * arriving
    shine = glossy.view(-1, parts).mean(1).numpy()

    at = ((normal @ seen.front[:2].T).numpy() / 2 + 0.5) * TEXELS - 0.5
    low = np.clip(np.floor(at).astype(int), 0, TEXELS - 2)
    share = np.clip(at - low, 0, 1)
    pixel = np.repeat(np.arange(len(seen.grey)), parts)
    columns, values = [], []
    for u, v in np.ndindex(2, 2):
        weight = np.where(u, share[:, 0], 1 - share[:, 0]) * np.where(v, share[:, 1], 1 - share[:, 1])
        columns.append((low[:, 0] + u) * TEXELS + low[:, 1] + v)
        values.append(weight * matt / parts)
    index = (np.tile(pixel, 4), np.concatenate(columns))
    picture = csr_array((np.concatenate(values), index), shape=(len(seen.grey), TEXELS**2))
    # Lids in the masks count little, by Cauchy's weights; a pixel at its limit says that the light is at least that.
    trust = np.where(seen.full, 0.0, 1.0)
    for _ in range(3):
        left = (picture.multiply(trust[:, None]).T @ picture).toarray() + RIPPLE * smooth + 1e-6 * np.eye(len(smooth))
        albedo = np.linalg.solve(left, picture.T @ (trust * (seen.grey - shine)))
        found = picture @ albedo + shine
        counted = ~seen.full | (found < seen.grey)
        trust = counted / (1 + ((found - seen.grey) / ODD) ** 2)
    found = np.where(counted, found, seen.grey)
    encoded = found.clip(1e-3) ** (1 / brdf.GAMMA) - seen.grey.clip(1e-3) ** (1 / brdf.GAMMA)
    passing = miss.clamp(min=0).sqrt().view(-1, parts).mean(1).numpy() / radius
    return np.concatenate([encoded, passing])


def fit(
    camera: Camera,
    image: Tensor,
    masks: tuple[Tensor, Tensor],
    views: list[int],
    fronts: Tensor,
    limits: tuple[float, float],
    intensity: float,
) -> tuple[Tensor, float]:
    """Centres (2, 3) and the shared radius of both eyeballs.

    Args:
        image: (N, H, W, 3). masks: (N, H, W) of the left and right eye; both uint8. views: which of them to use.
        fronts: (2, 3), about the middle of each eye's visible surface. limits: of the radius.
        intensity: of the flash.
    """
    eyes = [look(camera, image, m, views, front.double()) for m, front in zip(masks, fronts)]
    smooth, unit = ripple(), sum(limits) / 2

    def spheres(p: np.ndarray) -> tuple[list[Tensor], float]:
        """Centres and radius. p: (8,) the points that face the cameras, the radius, in units; and the room's light."""
        radius = float(p[6]) * unit
        points = fronts.double() + unit * torch.from_numpy(p[:6].reshape(2, 3))
        return [point - radius * seen.front[2] for point, seen in zip(points, eyes)], radius

    def left_over(p: np.ndarray, k: int) -> np.ndarray:
        centres, radius = spheres(p)
        return residuals(eyes[k], centres[k], radius, float(p[7]), intensity, smooth)

    def both(p: np.ndarray) -> np.ndarray:
        return np.concatenate([left_over(p, 0), left_over(p, 1)])

    def slopes(p: np.ndarray) -> np.ndarray:
        here = [left_over(p, 0), left_over(p, 1)]
        out = [np.zeros((len(values), 8)) for values in here]
        for i, step in enumerate(np.eye(8) * STEP):
            for k in range(2):
                if i // 3 in (k, 2):  # an eye's residuals do not depend on the other's place
                    out[k][:, i] = (left_over(p + step, k) - here[k]) / STEP
        return np.concatenate(out)

    start = np.array([*np.zeros(6), 1.0, 0.05])
    low = np.array([*np.full(6, -REACH), limits[0] / unit, 0.0])
    high = np.array([*np.full(6, REACH), limits[1] / unit, 1.0])
    found = least_squares(
        both, start, slopes, (low, high), loss="soft_l1", f_scale=NOISE, max_nfev=ITERATIONS, xtol=1e-4, ftol=1e-5
    )
    centres, radius = spheres(found.x)
    return torch.stack(centres).float(), radius


def place_eyes(field: Field, capture: Capture, intensity: Tensor, log: Callable[[str], None]) -> None:
    """Set the field's eyeballs in place: where the capture's config says, or behind their landmarks or the middle of
    their masks, from where they are fitted to the pictures if the masks have enough pixels.

    Raises InputError when there is neither.
    """
    data, radius = field.config.data, float(field.eye_radius.detach())
    low, high = field.config.eyes.radius
    if data.eyeballs:
        known = torch.tensor(data.eyeballs)
        _set(field, known[:, :3], float(known[:, 3].mean()))
        return
    middle, fronts = capture.camera.center.mean(0) / data.bound, []
    masks = (capture.left, capture.right)
    for k, (points, mask, side) in enumerate(zip((data.left_eye_ldm, data.right_eye_ldm), masks, ("left", "right"))):
        front = torch.tensor(points).mean(0) if points else mask_centre(capture, mask, side)
        fronts.append(front / data.bound)
        with torch.no_grad():
            field.eye_centres[k] = fronts[k] - radius * normalize(middle - fronts[k], dim=0)
    if min(int((m[capture.trained] > 127).sum()) for m in masks) < FEWEST_PIXELS:
        log("the eye masks are too small to fit spheres to; the eyeballs begin behind their middles")
        return
    centres, fitted = fit(
        capture.camera,
        capture.image,
        masks,
        capture.trained,
        torch.stack(fronts) * data.bound,
        (low, high),
        float(intensity.mean()),
    )
    log(f"eyeballs: radius {fitted:.4g}, centres " + ", ".join(str([round(x, 4) for x in c]) for c in centres.tolist()))
    _set(field, centres, fitted)


def _set(field: Field, centres: Tensor, radius: float) -> None:
    low, high = field.config.eyes.radius
    share = min(max((radius - low) / (high - low), 0.02), 0.98)
    with torch.no_grad():
        field.eye_centres[:] = centres / field.config.data.bound
        field.eye_radius_logit.fill_(float(np.log(share / (1 - share))))


def mask_centre(capture: Capture, masks: Tensor, side: str) -> Tensor:
    """The point (3,) nearest to the rays through the middles of an eye's masks, in the capture's unit.

    Raises InputError, naming the `side`, where fewer than three views have a mask.
    """
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
    rays = rays_through(capture.camera, 1.0, torch.tensor(picked))
    across = torch.eye(3) - rays.direction[:, :, None] * rays.direction[:, None]
    point: Tensor = torch.linalg.solve(across.sum(0), (across @ rays.origin[:, :, None]).sum(0)[:, 0])
    return point
