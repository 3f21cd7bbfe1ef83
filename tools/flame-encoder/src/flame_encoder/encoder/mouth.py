"""The inside of the mouth as a picture shows it: teeth, which the head has not, as colours of its cavity's texture.

Only what the picture shows is coloured: from the side, and where the mouth opens further, the cavity is what it was.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from recon4d import mesh
from recon4d.color import linear_from_srgb, srgb_from_linear
from recon4d.files import InputError
from recon4d.head import HeadModel
from recon4d.rotations import from_6d
from torch import Tensor

from flame_encoder.encoder import vector
from flame_encoder.encoder.crop import cut_out
from flame_encoder.encoder.encodings import Encoding

TEXELS = 512
SIZE = 384  # pixels of the crop that is looked at
NEAR = 0.002  # metres: what is farther behind what is seen is hidden
DARK = 0.05  # light in which no colour is told


@dataclass(frozen=True, eq=False)
class Inside:
    """The M texels of the mouth's inside. mask: (TEXELS, TEXELS) bool. corners: (M, 3) vertices. bary: (M, 3)."""

    mask: Tensor
    corners: Tensor
    bary: Tensor


@functools.lru_cache(maxsize=2)
def inside(head: HeadModel) -> Inside | None:
    """None for a head model that has no mouth, or no texture."""
    if head.albedo_mean is None or head.vt is None or head.ft is None or "mouth_interior" not in (head.regions or {}):
        return None
    assert head.regions is not None
    baked = mesh.bake_uv(head.vt, head.ft, (TEXELS, TEXELS))
    of_mouth = head.regions["mouth_interior"][head.faces].any(1)
    triangles = baked.tri_id.long().clamp_min(0)
    mask = baked.mask & of_mouth[triangles]
    return Inside(mask, head.faces[triangles[mask]], baked.bary[mask]) if mask.any() else None


def seen(head: HeadModel, found: Encoding, row: int, image: np.ndarray) -> np.ndarray | None:
    """Albedo (M, 4) uint8, sRGB and whether it is seen (255 or 0), of the mouth's inside in image `row` (H, W, 3).

    None for a head model without a mouth.
    """
    mouth = inside(head)
    if mouth is None:
        return None
    parts = found.parts([row])
    unturned = head(**vector.head_arguments(head, parts))
    camera, R, t = found.crop_camera(head, row, SIZE)
    placed = unturned @ R.T + t
    rast = mesh.rasterize(camera.clip(placed), head.faces, (SIZE, SIZE))
    depth = torch.where(rast.mask, mesh.interpolate(placed[..., 2:].contiguous(), rast, head.faces)[..., 0], 0)[0]

    def at_texels(values: Tensor) -> Tensor:
        return (values[0][mouth.corners] * mouth.bary[..., None]).sum(1)

    places = at_texels(placed)
    pixels, _ = camera.project(places)
    column, line = pixels.floor().long().clamp(0, SIZE - 1).unbind(1)
    normals = torch.nn.functional.normalize(at_texels(mesh.vertex_normals(unturned, head.faces)), dim=1)
    light = mesh.shade(1.0, (normals @ from_6d(parts["global_rot"])[0].T)[None, None], sh=vector.light(parts))[0, 0]
    there = ((pixels >= 0) & (pixels < SIZE)).all(1) & (places[:, 2] < depth[line, column] + NEAR)
    there &= light.amin(1) > DARK
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    crop = cut_out(picture, torch.from_numpy(found.crops[[row]]), SIZE)[0] / 255
    colours = linear_from_srgb(crop[:, line, column].T.clamp(0, 1)) / light.clamp_min(DARK)
    told = torch.cat([srgb_from_linear(colours.clamp(0, 1)), there[:, None].float()], 1) * there[:, None]
    answer: np.ndarray = (told * 255).round().byte().numpy()
    return answer


def painted(head: HeadModel, texture: Tensor, colours: np.ndarray | None) -> Tensor:
    """An sRGB texture (T, T, 3) with colours that `seen` gave of the mouth's inside, where it was seen.

    Raises InputError for as many colours as another head model has.
    """
    mouth = None if colours is None or not len(colours) else inside(head)
    if mouth is None or colours is None:
        return texture
    if len(colours) != len(mouth.corners):
        raise InputError(f"the colours of the mouth are not of the head model {head.name}; encode the images again")
    layer = texture.new_zeros(TEXELS, TEXELS, 4)
    layer[mouth.mask] = torch.from_numpy(colours).to(texture) / 255
    if len(texture) != TEXELS:
        resized = torch.nn.functional.interpolate(
            layer.permute(2, 0, 1)[None], texture.shape[:2], mode="bilinear", antialias=True
        )
        layer = resized[0].permute(1, 2, 0)
    return texture * (1 - layer[..., 3:]) + layer[..., :3]
