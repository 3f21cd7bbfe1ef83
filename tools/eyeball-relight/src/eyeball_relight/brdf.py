"""How skin and eyes reflect light: Burley's diffuse term and a GGX highlight, in linear colour."""

import math

import torch
from recon4d import mesh
from torch import Tensor

GAMMA = 2.2  # pictures are linear ** (1 / GAMMA)
MIN_ALPHA = 0.1  # a highlight narrower than a pixel is missed by rays through pixel centres


def to_linear(picture: Tensor) -> Tensor:
    """Linear colour of a picture's values in [0, 1]."""
    return picture**GAMMA


def to_picture(linear: Tensor) -> Tensor:
    """The inverse of `to_linear`, clamped to [0, 1]; black is a little above 0, where the slope is finite."""
    return linear.clamp(1e-7, 1) ** (1 / GAMMA)


def reflect(
    normals: Tensor, to_light: Tensor, to_eye: Tensor, diffuse: Tensor, specular: Tensor, roughness: Tensor
) -> Tensor:
    """Light reflected towards the eye per unit of irradiance across the light's direction: BRDF times cosine.

    Burley 2012 ("Physically based shading at Disney"), section 5.3, plus D F G / (4 nl nv) with GGX's D, the
    height-uncorrelated Smith G of Walter et al. 2007 (equations 33 and 34) and Schlick's F with F0 = 0.08 specular;
    alpha = roughness squared, at least MIN_ALPHA. 0 where light or eye is behind the surface.

    Args:
        normals, to_light, to_eye: (..., 3) unit. diffuse: (..., 3). specular, roughness: (..., 1).

    Returns:
        (..., 3).
    """
    half = torch.nn.functional.normalize(to_light + to_eye, dim=-1)
    nl, nv = _dot(normals, to_light), _dot(normals, to_eye)
    nh, lh = _dot(normals, half), _dot(to_light, half).clamp(0, 1)
    lit = (nl > 0) & (nv > 0)
    nl, nv, nh = nl.clamp(1e-4, 1), nv.clamp(1e-4, 1), nh.clamp(0, 1)
    return torch.where(lit, lobes(nl, nv, nh, lh, diffuse, specular, roughness), 0.0)


def reflect_flash(normals: Tensor, to_eye: Tensor, diffuse: Tensor, specular: Tensor, roughness: Tensor) -> Tensor:
    """`reflect` for a light at the camera.

    Light, eye and the half vector between them are then one direction: their cosines with the normal are equal, and
    that between light and half vector is 1.
    """
    cosine = _dot(normals, to_eye)
    c = cosine.clamp(1e-4, 1)
    return torch.where(cosine > 0, lobes(c, c, c, torch.ones_like(c), diffuse, specular, roughness), 0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def lobes(
    nl: Tensor, nv: Tensor, nh: Tensor, lh: Tensor, diffuse: Tensor, specular: Tensor, roughness: Tensor
) -> Tensor:
    """`reflect` by cosines (..., 1): of the normal with light, eye and half vector, and of the light with that."""
    grazing = 0.5 + 2 * roughness * lh**2 - 1  # F_D90 - 1
    base = diffuse / math.pi * (1 + grazing * (1 - nl) ** 5) * (1 + grazing * (1 - nv) ** 5)
    alpha2 = (roughness**2).clamp(min=MIN_ALPHA) ** 2
    distribution = alpha2 / (math.pi * (nh**2 * (alpha2 - 1) + 1) ** 2)
    f0 = 0.08 * specular
    fresnel = f0 + (1 - f0) * (1 - lh) ** 5
    # G / (4 nl nv): each Smith factor is 2 c / (c + sqrt(alpha^2 + (1 - alpha^2) c^2))
    smith = 1 / (_smith(nl, alpha2) * _smith(nv, alpha2))
    return (base + distribution * fresnel * smith) * nl


def _smith(cosine: Tensor, alpha2: Tensor) -> Tensor:
    return cosine + (alpha2 + (1 - alpha2) * cosine**2).sqrt()


def ambient(normals: Tensor, light: Tensor, occlusion: Tensor, scale: float) -> Tensor:
    """Ambient irradiance over pi (..., C): distant light of 9 harmonics, dimmed by what stands in its way.

    Args:
        normals: (..., 3) unit. light: (9, C) coefficients of the logit of the light. occlusion: (9,) or (..., 9)
            coefficients of the logarithm of the share that arrives; 0 dims nothing.
        scale: multiplies the result.
    """
    basis = mesh.sh_basis(normals)
    arriving = torch.exp((basis * occlusion).sum(-1, keepdim=True).clamp(-4, 1))
    return scale * torch.nn.functional.softplus(basis @ light) * arriving
