"""Texture lookups: bilinear, and trilinear over mip maps.

Texture coordinates are those of OBJ files: u to the right, v **up**, (0, 0) the bottom left corner of the image. A
texture is an image with row 0 at its top, so texel (row r, column c) has its centre at
u = (c + 0.5) / width, v = 1 - (r + 0.5) / height.
"""

import torch
from torch import Tensor
from torch.nn import functional

WRAP = ("clamp", "wrap", "zero")


def mip_levels(tex: Tensor, levels: int | None = None) -> list[Tensor]:
    """The mip pyramid of a texture (B, H, W, C): itself, then halves (rounded down, at least 1), by area averaging.

    Args:
        levels: how many below the first; None goes down to 1 x 1.
    """
    pyramid = [tex]
    while (levels is None or len(pyramid) <= levels) and max(pyramid[-1].shape[1:3]) > 1:
        height, width = (max(1, side // 2) for side in pyramid[-1].shape[1:3])
        smaller = functional.adaptive_avg_pool2d(pyramid[-1].permute(0, 3, 1, 2), (height, width))
        pyramid.append(smaller.permute(0, 2, 3, 1))
    return pyramid


def _bilinear(tex: Tensor, uv: Tensor, wrap: str) -> Tensor:
    """tex (B, H, W, C), uv (B, h, w, 2) -> (B, h, w, C)."""
    image = tex.permute(0, 3, 1, 2)
    u, v = uv[..., 0], 1.0 - uv[..., 1]
    if wrap == "wrap":  # one texel of the other side around, and coordinates moved into the middle copy
        height, width = tex.shape[1:3]
        image = functional.pad(image, (1, 1, 1, 1), mode="circular")
        u = ((u - u.floor()) * width + 1.0) / (width + 2)
        v = ((v - v.floor()) * height + 1.0) / (height + 2)
    grid = torch.stack([u, v], -1) * 2.0 - 1.0
    padding = "zeros" if wrap == "zero" else "border"
    return functional.grid_sample(image, grid, "bilinear", padding, align_corners=False).permute(0, 2, 3, 1)


def level_of_detail(uv_da: Tensor, height: int, width: int) -> Tensor:
    """Mip level from pixel derivatives of (u, v): (..., 2, 2), last axis d/dx, d/dy -> (...).

    log2 of the longer axis, in texels, of the ellipse that a pixel covers: the larger singular value of the
    Jacobian (Heckbert 1989; as nvdiffrast's, Laine et al. 2020, section 3.3).
    """
    jacobian = uv_da * uv_da.new_tensor([width, height])[:, None]
    a = jacobian.square().sum(-1)
    cross = (jacobian[..., 0, :] * jacobian[..., 1, :]).sum(-1)
    mean, half = (a[..., 0] + a[..., 1]) / 2, (a[..., 0] - a[..., 1]) / 2
    tiny = torch.finfo(uv_da.dtype).tiny
    major = mean + (half.square() + cross.square() + tiny).sqrt()
    return 0.5 * torch.log2(major + tiny)


def texture(
    tex: Tensor,
    uv: Tensor,
    mode: str = "bilinear",
    uv_da: Tensor | None = None,
    wrap: str = "clamp",
    mips: list[Tensor] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Look up a texture: tex (B or 1, Ht, Wt, C), uv (B, H, W, 2) -> (B, H, W, C). Differentiable in both.

    Args:
        tex: row 0 is the top, which is v = 1.
        uv: texture coordinates, v up (see the module).
        mode: "bilinear", or "trilinear" (two mip levels blended by `level_of_detail`).
        uv_da: (B, H, W, 2, 2) pixel derivatives of uv for "trilinear": `screen_derivatives` gives them.
        wrap: outside 0..1 "clamp" repeats the border texel, "wrap" repeats the texture, "zero" is 0.
        mips: own mip pyramid, the list that `mip_levels` returns (build it once for many lookups).
        mask: (B, H, W) bool; where False the result is 0.
    """
    if mode not in ("bilinear", "trilinear"):
        raise ValueError(f"texture mode {mode!r} is unknown; choose 'bilinear' or 'trilinear'")
    if wrap not in WRAP:
        raise ValueError(f"texture wrap {wrap!r} is unknown; choose one of {', '.join(WRAP)}")
    if tex.ndim != 4 or uv.ndim != 4 or uv.shape[-1] != 2 or tex.shape[0] not in (1, uv.shape[0]):
        raise ValueError(
            f"texture {tuple(tex.shape)} and uv {tuple(uv.shape)} do not match; give (B or 1, Ht, Wt, C), (B, H, W, 2)"
        )
    if mode == "bilinear":
        out = _bilinear(tex.expand(uv.shape[0], -1, -1, -1), uv, wrap)
    else:
        if uv_da is None or uv_da.shape != (*uv.shape, 2):
            raise ValueError(
                "trilinear texturing needs uv_da of shape (B, H, W, 2, 2); get it from mesh.screen_derivatives"
            )
        out = _trilinear(mips or mip_levels(tex), uv, level_of_detail(uv_da, *tex.shape[1:3]), wrap)
    return out if mask is None else torch.where(mask[..., None], out, 0.0)


def _trilinear(mips: list[Tensor], uv: Tensor, level: Tensor, wrap: str) -> Tensor:
    """Blend the two nearest levels; each level is sampled only for the pixels that use it."""
    level = level.clamp(0, len(mips) - 1)
    lower = level.detach().floor().clamp(max=max(len(mips) - 2, 0))
    blend = level - lower
    batch, height, width = uv.shape[:3]
    out = uv.new_zeros(batch * height * width, mips[0].shape[-1], dtype=mips[0].dtype)
    flat_uv, flat_lower, flat_blend = uv.reshape(-1, 2), lower.flatten(), blend.flatten()
    shared = mips[0].shape[0] == 1
    for number, tex in enumerate(mips):
        weight = torch.where(flat_lower == number, 1 - flat_blend, 0.0)
        weight = torch.where(flat_lower == number - 1, flat_blend, weight)
        used = (flat_lower == number) | (flat_lower == number - 1)
        groups = (
            [slice(None)] if shared else [slice(b * height * width, (b + 1) * height * width) for b in range(batch)]
        )
        for item, group in enumerate(groups):
            pick = used[group].nonzero()[:, 0] + (group.start or 0)
            if len(pick):
                value = _bilinear(tex[item : item + 1], flat_uv[pick][None, None], wrap)[0, 0]
                out = out.index_add(0, pick, value * weight[pick][:, None])
    return out.view(batch, height, width, -1)
