"""The colours of a head's skin, and how every unknown of a picture moves them.

A point of the skin has an albedo under nine harmonics of light, some lobes of sheen, and the camera's tone curve; it is
seen where it is projected to. Geometry moves a point over the picture and turns its normal to the light (which tells
shape from shading); light, skin and tone change the colour itself. `explained.py` solves for all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import roma
import torch
from recon4d import mesh
from recon4d.color import linear_from_srgb, srgb_from_linear
from recon4d.head import HeadModel
from recon4d.mesh import sh_basis
from torch import Tensor

from flame_encoder.encoder import skin
from flame_encoder.encoder.skin import LOBE, with_slope
from flame_encoder.encoder.vector import LIGHT, NEUTRAL_LIGHT
from flame_encoder.people.refine import Picture
from flame_encoder.tracker.points import FACING, Points, Rig, eye_rotation

TEXELS = 256
CANDIDATES = 6000  # points of the skin
EXPONENT = 20.0  # of a lobe of sheen
# Beliefs (standard deviations) of sheen, and of the camera's tone: three gains, logarithm of gamma, contrast, offset.
SHEEN, TONE = 0.03, (0.05, 0.05, 0.05, 0.15, 0.15, 0.07)


def _directions() -> Tensor:
    """(19, 3): about what reflects a lamp above the camera into it, 20 degrees apart."""
    found = []
    for tilt, count in ((0.0, 1), (20.0, 6), (40.0, 12)):
        for k in range(count):
            a, b = np.deg2rad(tilt), 2 * np.pi * k / count
            found.append([np.sin(a) * np.cos(b), np.sin(a) * np.sin(b), np.cos(a)])
    up = np.deg2rad(12)
    R = np.array([[1, 0, 0], [0, np.cos(up), np.sin(up)], [0, -np.sin(up), np.cos(up)]])
    return torch.from_numpy(np.array(found) @ R.T)


DIRECTIONS = _directions()
LOOKS = LIGHT + len(DIRECTIONS) + len(TONE)  # unknowns of a picture's looks


# Differences, and a function for their derivatives.
Compared = tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]


@dataclass(frozen=True, eq=False)
class Coloured:
    """Points of the skin (n,) on `faces`, at `bary` (n, 3), as the rig moves them.

    head: with texture coordinates and a small albedo. albedo: (n, 3, 1 + C) sRGB mean and components. turning:
    (n, 3, S + E + L) derivatives of the mean head's normals by shape, expression and lids.
    """

    head: HeadModel
    points: Points
    faces: Tensor
    bary: Tensor
    albedo: Tensor
    turning: Tensor

    @property
    def skins(self) -> int:
        """How many albedo coefficients."""
        return self.albedo.shape[2] - 1


def coloured(rig: Rig, head: HeadModel, skins: int) -> Coloured:
    """Prepare a head model with texture coordinates and a small albedo; the layout has room for `skins` of it."""
    assert head.vt is not None and head.ft is not None and head.albedo_mean is not None
    texels = mesh.bake_uv(head.vt, head.ft, (TEXELS, TEXELS))
    where = (texels.mask & skin.face(head)[texels.tri_id.long().clamp_min(0)]).nonzero()
    where = where[torch.from_numpy(np.random.default_rng(0).permutation(len(where))[:CANDIDATES]).sort().values]
    faces, bary = texels.tri_id[where[:, 0], where[:, 1]].long(), texels.bary[where[:, 0], where[:, 1]]
    textures = head.albedo_mean[..., None]
    if head.albedo_components is not None:
        textures = torch.cat([textures, head.albedo_components[..., :skins]], -1)
    uv = (head.vt[head.ft[faces]] * bary[..., None]).sum(1)
    albedo = mesh.texture(textures.flatten(2)[None], uv[None, None])[0, 0].unflatten(1, (3, -1))
    return Coloured(head, rig.points(faces, bary), faces, bary, albedo.double(), _turning(rig, faces, bary))


def _turning(rig: Rig, faces: Tensor, bary: Tensor) -> Tensor:
    head, columns, step = rig.head, rig.columns, 0.5
    basis = [head.shapedirs[..., : columns.n_shape], head.expressiondirs[..., : columns.n_expression]]
    if columns.eyelids and head.eyelids is not None:
        basis.append(head.eyelids)
    about = normals_at(head.v_template, head.faces, faces, bary)
    each = torch.cat(basis, 2).unbind(2)
    moved = [normals_at(head.v_template + step * one, head.faces, faces, bary) for one in each]
    return ((torch.stack(moved, 2) - about[..., None]) / step).double()


def normals_at(vertices: Tensor, triangles: Tensor, faces: Tensor, bary: Tensor) -> Tensor:
    """(n, 3) unit normals of a mesh's surface at points."""
    normals = mesh.vertex_normals(vertices[None], triangles)[0]
    return torch.nn.functional.normalize((normals[triangles[faces]] * bary[..., None]).sum(1), dim=-1)


@dataclass(frozen=True, eq=False)
class Window:
    """A picture around a head: `sharp` (S, S, 3) float32, and blurred.

    image, dx, dy: (3, S, S) blurred, and its slopes per window pixel. blur: pixels. scale, offset: window = scale *
    pixel + offset. turn: (3, 3) from the crop's axes to the camera's. size: (width, height) of the picture. grey: it
    has no colours.
    """

    sharp: np.ndarray
    image: Tensor
    dx: Tensor
    dy: Tensor
    blur: float
    scale: float
    offset: np.ndarray
    turn: Tensor
    size: tuple[int, int]
    grey: bool = False

    def K(self, K: np.ndarray) -> Tensor:
        """(3, 3) intrinsics of the window."""
        to_window = [[self.scale, 0, self.offset[0]], [0, self.scale, self.offset[1]], [0, 0, 1]]
        return torch.from_numpy((np.array(to_window) @ K).astype(np.float32))

    def to_light(self) -> Tensor:
        """(3, 3) from the camera's axes to the light's: the crop's, y up and z to the camera."""
        return FACING.double() @ self.turn.double().mT

    def grid(self, pixels: Tensor) -> Tensor:
        """Pixels of the window as `grid_sample` wants them."""
        return (pixels / self.image.shape[1] * 2 - 1)[None, None]


def looks_of(mine: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log focal length and the tracker's unknowns (1 + P,), light (27,), sheen (19,), tone (6,) of a picture."""
    return mine.split([len(mine) - LOOKS, LIGHT, len(DIRECTIONS), len(TONE)])


@dataclass(frozen=True, eq=False)
class Shown:
    """Colours (n, 3) and what their derivatives are made of. by_lit: of the colour by linear light, before the tone."""

    value: Tensor
    by_level: Tensor
    by_lit: Tensor
    level: Tensor
    curved: Tensor


def shown(tinted: Tensor, shine: Tensor, gloss: Tensor, tone: Tensor) -> Shown:
    """Linear albedo (n, 3) under `shine` (n, 3), with `gloss` (n,), as a camera with a tone (6,) shows it."""
    lit, by_linear = with_slope(srgb_from_linear, (tinted * shine + gloss[:, None]).clamp(1e-4, 1))
    lit = lit.clamp_min(1e-3)
    gain, gamma, contrast = 1 + tone[:3], tone[3].exp(), 1 + tone[4]
    curved = lit**gamma
    level = contrast * (curved - 0.5) + 0.5 + tone[5]
    value = gain * level
    by_level = gain * ((value > 0) & (value < 1))
    by_lit = by_level * contrast * gamma * lit ** (gamma - 1) * by_linear
    return Shown(value.clamp(0, 1), by_level, by_lit, level, curved)


def radiance(light: Tensor) -> Tensor:
    """(9, 3) of the 27 numbers of a vector."""
    neutral = light.new_zeros(9, 3)
    neutral[0] = NEUTRAL_LIGHT
    return neutral + light.view(9, 3)


def shine_of(normals: Tensor, light: Tensor) -> Tensor:
    """(n, 3) what falls on surfaces, by normals in the light's axes."""
    return ((sh_basis(normals) * normals.new_tensor(LOBE)) @ radiance(light)).clamp_min(0.01)


def sheen_basis(normals: Tensor) -> Tensor:
    """(n, 19): how much each lobe of sheen adds to surfaces with normals (n, 3)."""
    answer: Tensor = (normals @ DIRECTIONS.T).clamp_min(0) ** EXPONENT
    return answer


def residuals(
    surface: Coloured, one: Picture, shared: Tensor, mine: Tensor, window: Window, chosen: Tensor, beside: Tensor
) -> Compared:
    """Colours of points minus the picture's (n, 3), and a function for the derivatives.

    Args:
        shared: (S + C,) shape and albedo. mine: (1 + P + LOOKS,). chosen: (n,) points. beside: (n, 3) added to their
            colours.

    Returns:
        and derivatives (n, 3, S + C) and (n, 3, 1 + P + LOOKS).
    """
    rig, columns = one.problem.rig, one.problem.rig.columns
    S, P = columns.n_shape, columns.size
    shape, tints = shared[:S], shared[S:]
    placed, light, sheen, tone = looks_of(mine)
    g, q = torch.cat([shape, placed[:1]]), placed[None, 1:]
    pixels = rig.project(g, q, surface.points, one.problem.centre, chosen[None])[0].double()
    grid = window.grid(pixels * window.scale + torch.from_numpy(window.offset))
    colour = _sampled(window.image, grid)
    parts, size = columns.split(q[0]), rig.size(g).double()
    head = surface.head
    posed = _posed(head, shape, parts, size)
    own = normals_at(posed, head.faces, surface.faces[chosen], surface.bary[chosen]).double()
    turned = roma.rotvec_to_rotmat(parts["rotation"]) @ FACING.double()
    to_light = window.to_light()
    normals = own @ (to_light @ turned).T
    texel = surface.albedo[chosen]
    tinted, by_skin = with_slope(linear_from_srgb, (texel[..., 0] + texel[..., 1:] @ tints).clamp(0.02, 1))
    shine, lobes = shine_of(normals, light), sheen_basis(normals)
    seen = shown(tinted, shine, lobes @ sheen, tone)

    def slopes() -> tuple[Tensor, Tensor]:
        n, E = len(chosen), columns.n_expression
        _, Jg, Jq = rig.derivatives(g, q, surface.points, one.problem.centre, chosen[None])
        Js, Jo = seen.value.new_zeros(n, 3, len(shared)), seen.value.new_zeros(n, 3, len(mine))
        layers = torch.cat([window.dx, window.dy])
        steep = _sampled(layers, grid).unflatten(1, (2, 3)).mT
        moved = -window.scale * steep @ torch.cat([Jg[0], Jq[0]], 2).double()
        Js[..., :S], Jo[..., : 1 + P] = moved[..., :S], moved[..., S:]
        by_shine = seen.by_lit * tinted
        by_normal = by_shine[..., None] * _shine_slope(normals, light)
        by_normal = by_normal + seen.by_lit[..., None] * _sheen_slope(normals, sheen)[:, None]
        by_coefficient = (by_normal @ (to_light @ turned)) @ surface.turning[chosen]
        Js[..., :S] += by_coefficient[..., :S]
        Jo[..., 7 : 7 + E] += by_coefficient[..., S : S + E] * size
        if columns.eyelids:
            Jo[..., 10 + E : 12 + E] += by_coefficient[..., S + E :] * size
        around = (own @ turned.T)[:, None].expand(n, 3, 3)
        Jo[..., 1:4] += torch.cross(around, by_normal @ to_light, dim=-1) @ _left_jacobian(parts["rotation"])
        harmonics = sh_basis(normals) * normals.new_tensor(LOBE)
        start = 1 + P
        for channel in range(3):
            Jo[:, channel, start + channel : start + LIGHT : 3] = by_shine[:, channel, None] * harmonics
            Jo[:, channel, len(mine) - len(TONE) + channel] = seen.level[:, channel] * (seen.by_level[:, channel] > 0)
        start += LIGHT
        Jo[..., start : start + len(DIRECTIONS)] = seen.by_lit[..., None] * lobes[:, None]
        Jo[..., -3] = seen.by_level * (1 + tone[4]) * seen.curved * seen.curved.log()
        Jo[..., -2] = seen.by_level * (seen.curved - 0.5)
        Jo[..., -1] = seen.by_level
        Js[..., S:] = (seen.by_lit * shine * by_skin)[..., None] * texel[..., 1:]
        if window.grey:  # the picture's slopes are grey already
            Js, Jo = (J.mean(1, keepdim=True).expand_as(J).clone() for J in (Js, Jo))
        return Js, Jo

    value = seen.value.mean(1, keepdim=True).expand(-1, 3) if window.grey else seen.value
    return value + beside - colour, slopes


def _sampled(image: Tensor, grid: Tensor) -> Tensor:
    found = torch.nn.functional.grid_sample(image[None], grid, align_corners=False, padding_mode="border")
    return found[0, :, 0].T


def _posed(head: HeadModel, shape: Tensor, parts: dict[str, Tensor], size: Tensor) -> Tensor:
    """Vertices (V, 3) of the unturned head."""
    eyes = eye_rotation(parts["gaze"].float())
    posed: Tensor = head(
        shape[None].float(),
        (size * parts["expression"][None]).float(),
        jaw=roma.rotvec_to_rotmat(parts["jaw"].float())[None],
        eyes=torch.stack([eyes, eyes])[None],
        eyelids=(size * parts["eyelids"][None]).float() if len(parts["eyelids"]) else None,
    )
    return posed[0]


def _left_jacobian(rotation: Tensor) -> Tensor:
    """(3, 3): how exp(rotation) turns, in the world's axes, with its vector."""
    angle = rotation.norm().clamp_min(1e-8)
    x, y, z = rotation / angle
    zero = torch.zeros_like(x)
    K = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
    one = torch.eye(3, dtype=rotation.dtype)
    answer: Tensor = one + (1 - angle.cos()) / angle * K + (1 - angle.sin() / angle) * K @ K
    return answer


def _shine_slope(normals: Tensor, light: Tensor) -> Tensor:
    """(n, 3, 3): `shine_of` by the normal."""
    n = normals.detach().requires_grad_()
    with torch.enable_grad():
        shine = shine_of(n, light)
        rows = [torch.autograd.grad(shine[:, c].sum(), n, retain_graph=True)[0] for c in range(3)]
    return torch.stack(rows, 1)


def _sheen_slope(normals: Tensor, sheen: Tensor) -> Tensor:
    cosine = (normals @ DIRECTIONS.T).clamp_min(0)
    answer: Tensor = (EXPONENT * cosine ** (EXPONENT - 1) * sheen) @ DIRECTIONS
    return answer
