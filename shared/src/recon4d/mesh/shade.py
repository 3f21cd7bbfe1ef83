"""Shading: Lambert and Phong lights, and spherical-harmonics environment light. All differentiable."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Cosine-lobe coefficients A_l / pi of degrees 0, 1, 2 (Ramamoorthi and Hanrahan 2001, equation 8), per harmonic
_LOBE = (1.0, *(2 / 3,) * 3, *(1 / 4,) * 5)


def sh_basis(directions: Tensor) -> Tensor:
    """The nine real spherical harmonics of degree 0-2 at unit directions: (..., 3) -> (..., 9).

    Order and signs of Ramamoorthi and Hanrahan 2001 (equation 3): Y00, Y1-1 (y), Y10 (z), Y11 (x), Y2-2 (xy),
    Y2-1 (yz), Y20 (3z^2-1), Y21 (xz), Y22 (x^2-y^2); orthonormal over the sphere.
    """
    x, y, z = directions.unbind(-1)
    c0 = math.sqrt(1 / (4 * math.pi))
    c1 = math.sqrt(3 / (4 * math.pi))
    c2 = math.sqrt(15 / (4 * math.pi))
    return torch.stack(
        [
            torch.full_like(x, c0),
            c1 * y,
            c1 * z,
            c1 * x,
            c2 * x * y,
            c2 * y * z,
            math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1),
            c2 * x * z,
            c2 / 2 * (x * x - y * y),
        ],
        -1,
    )


def sh_irradiance(normals: Tensor, sh: Tensor) -> Tensor:
    """Irradiance over pi under distant light: normals (B, ..., 3), sh (9, C) or (B, 9, C) -> (B, ..., C).

    `sh` are coefficients of the light's radiance; E(n) / pi = sum_lm (A_l / pi) L_lm Y_lm(n) (Ramamoorthi and
    Hanrahan 2001, equation 7). Constant radiance 1 (L_00 = sqrt(4 pi), rest 0) gives 1.
    """
    if sh.shape[-2] != 9 or sh.ndim not in (2, 3):
        raise ValueError(f"sh has shape {tuple(sh.shape)}; give (9, channels) or (batch, 9, channels)")
    weighted = sh * sh.new_tensor(_LOBE)[:, None]
    basis = sh_basis(normals)
    if sh.ndim == 2:
        return basis @ weighted
    return (basis.flatten(1, -2) @ weighted).view(*basis.shape[:-1], sh.shape[-1])


def shade(
    albedo: Tensor | float,
    normals: Tensor,
    *,
    ambient: Tensor | float = 0.0,
    directions: Tensor | None = None,
    colors: Tensor | None = None,
    sh: Tensor | None = None,
    view: Tensor | None = None,
    specular: Tensor | float = 0.0,
    shininess: Tensor | float = 32.0,
    two_sided: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Shade surface points in linear colour: Lambert, plus a Phong highlight where `view` is given.

    The result is albedo (ambient + sh_irradiance(n) + sum_l max(n.l, 0) color_l) and, added to it,
    specular sum_l [n.l > 0] max(r.v, 0)^shininess color_l (Phong 1975; r is l mirrored at n), without the 1 / pi of a
    Lambertian: a light of colour 1 facing a surface of albedo 1 gives 1.

    Args:
        albedo: (B, H, W, C) or what broadcasts to it.
        normals: (B, H, W, 3), any length (made unit here; 0 stays 0), in the frame of the lights.
        ambient: added light, broadcastable to (B, H, W, C).
        directions: (L, 3) or (B, L, 3), from the surface towards each light.
        colors: (L, C) or (B, L, C) of the lights; 1 if not given.
        sh: (9, C) or (B, 9, C) environment light, see `sh_irradiance`.
        view: (B, H, W, 3) or (3,), from the surface towards the eye.
        specular, shininess: Phong's strength (broadcastable to (B, H, W, C)) and exponent ((B, H, W, 1) or a number).
        two_sided: turn normals towards `view` first (needs `view`).
        mask: (B, H, W) bool; where False the result is 0.
    """
    normals = normalize(normals, dim=-1, eps=1e-20)
    if view is not None:
        view = normalize(view, dim=-1, eps=1e-20)
    if two_sided:
        if view is None:
            raise ValueError("two_sided shading needs view, the direction towards the eye")
        normals = torch.where((normals * view).sum(-1, keepdim=True) < 0, -normals, normals)
    diffuse: Tensor | float = ambient
    highlight: Tensor | float = 0.0
    if sh is not None:
        diffuse = diffuse + sh_irradiance(normals, sh)
    if directions is not None:
        towards = normalize(directions, dim=-1, eps=1e-20)
        lights = towards.shape[-2]
        # lights before the last axis, broadcast over the pixels of each image
        towards = towards.view(-1, *(1,) * (normals.ndim - 2), lights, 3)
        color = towards.new_ones(lights, 1) if colors is None else colors
        color = color.view(-1, *(1,) * (normals.ndim - 2), lights, color.shape[-1])
        cosine = (normals[..., None, :] * towards).sum(-1, keepdim=True)
        diffuse = diffuse + (cosine.clamp(min=0) * color).sum(-2)
        if view is not None:
            mirrored = 2 * cosine * normals[..., None, :] - towards
            along = (mirrored * view[..., None, :]).sum(-1, keepdim=True).clamp(min=1e-12)
            power = shininess[..., None, :] if isinstance(shininess, Tensor) and shininess.ndim else shininess
            highlight = specular * (torch.where(cosine > 0, along**power, 0.0) * color).sum(-2)
    out = albedo * diffuse + highlight
    if not isinstance(out, Tensor):
        out = normals.new_full((*normals.shape[:-1], 1), out)
    return out if mask is None else torch.where(mask[..., None], out, 0.0)
