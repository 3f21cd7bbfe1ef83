"""A relightable asset: surfaces with maps of their material, and pictures of them under any light."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from recon4d import cameras, mesh
from recon4d.cameras import Camera
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight import brdf

PARTS = ("face", "left", "right")  # names of an asset's surfaces; left is the person's left eye
EYE_SPECULAR, EYE_ROUGHNESS = 0.2, 0.05  # of every eyeball (Han et al. 2024, section 3.2)


@dataclass(frozen=True, eq=False)
class Surface:
    """A triangle mesh with maps. V vertices, F triangles, T texture coordinates, maps of N x N texels, row 0 on top.

    vertices, normals: (V, 3). faces: (F, 3). vt: (T, 2), v up. ft: (F, 3).
    diffuse: (N, N, 3) linear. specular, roughness: (N, N, 1).
    """

    vertices: Tensor
    normals: Tensor
    faces: Tensor
    vt: Tensor
    ft: Tensor
    diffuse: Tensor
    specular: Tensor
    roughness: Tensor


Asset = dict[str, Surface]  # keys are of PARTS


@dataclass(frozen=True, eq=False)
class Pixels:
    """What the N pixels see that see anything, of a picture of height x width.

    index: (N,) into the flattened picture. part: (N,) index into PARTS. position, normal: (N, 3).
    diffuse: (N, 3) linear. specular, roughness: (N, 1).
    """

    height: int
    width: int
    index: Tensor
    part: Tensor
    position: Tensor
    normal: Tensor
    diffuse: Tensor
    specular: Tensor
    roughness: Tensor

    def image(self, values: Tensor) -> Tensor:
        """Values (N, C) as a picture (H, W, C), 0 where nothing is seen."""
        out = values.new_zeros(self.height * self.width, values.shape[-1])
        return out.index_put((self.index,), values).view(self.height, self.width, -1)


def sphere(centre: Tensor, radius: float, segments: int = 96) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A ball's vertices, normals, faces and texture coordinates; longitude along u, poles up and down.

    The middle of the texture looks along +z. Faces index vertices and texture coordinates alike.
    """
    rings = segments // 2
    v, u = torch.meshgrid(torch.linspace(0, 1, rings + 1), torch.linspace(0, 1, segments + 1), indexing="ij")
    normals = sphere_direction(torch.stack([u, v], -1)).view(-1, 3)
    i, j = torch.meshgrid(torch.arange(rings), torch.arange(segments), indexing="ij")
    a = (i * (segments + 1) + j).flatten()
    b, c, d = a + 1, a + segments + 2, a + segments + 1
    faces = torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])
    return centre + radius * normals, normals, faces, torch.stack([u, v], -1).view(-1, 2)


def sphere_direction(uv: Tensor) -> Tensor:
    """Unit directions (..., 3) of a ball's texture coordinates (..., 2)."""
    longitude, latitude = (uv[..., 0] - 0.5) * 2 * math.pi, (uv[..., 1] - 0.5) * math.pi
    level = latitude.cos()
    return torch.stack([longitude.sin() * level, latitude.sin(), longitude.cos() * level], -1)


def eyeball(centre: Tensor, radius: float, diffuse: Tensor) -> Surface:
    """An eyeball of the material every eyeball has, with a diffuse map (N, N, 3) over `sphere_direction`."""
    vertices, normals, faces, vt = sphere(centre, radius)
    ones = torch.ones_like(diffuse[..., :1])
    return Surface(vertices, normals, faces, vt, faces, diffuse, EYE_SPECULAR * ones, EYE_ROUGHNESS * ones)


def visible(asset: Asset, camera: Camera) -> Pixels:
    """What a camera's pixels see of the asset, at their centres."""
    surfaces = [asset[name] for name in PARTS if name in asset]
    numbers = [i for i, name in enumerate(PARTS) if name in asset]
    offsets = [0]
    for surface in surfaces:
        offsets.append(offsets[-1] + len(surface.vertices))
    vertices = torch.cat([s.vertices for s in surfaces])
    faces = torch.cat([s.faces + offset for s, offset in zip(surfaces, offsets)])
    owner = torch.cat([torch.full((len(s.faces),), i) for i, s in zip(numbers, surfaces)])
    rast = mesh.rasterize(camera.clip(vertices[None]), faces, (camera.height, camera.width))
    index = rast.mask.flatten().nonzero()[:, 0]
    face, bary = rast.tri_id.flatten()[index].long(), rast.bary.view(-1, 3)[index]

    def blended(values: Tensor, triangles: Tensor) -> Tensor:
        return (values[triangles] * bary[..., None]).sum(1)

    normals = normalize(blended(torch.cat([s.normals for s in surfaces]), faces[face]), dim=-1)
    part = owner[face]
    maps = torch.zeros(len(index), 5)
    first = 0
    for i, surface in zip(numbers, surfaces):
        some = (part == i).nonzero()[:, 0]
        corners = surface.vt[surface.ft[face[some] - first]]
        uv = (corners * bary[some, :, None]).sum(1)
        stacked = torch.cat([surface.diffuse, surface.specular, surface.roughness], -1)
        maps[some] = mesh.texture(stacked[None], uv[None, None])[0, 0]
        first += len(surface.faces)
    return Pixels(
        camera.height,
        camera.width,
        index,
        part,
        blended(vertices, faces[face]),
        normals,
        *maps.split([3, 1, 1], -1),
    )


def lit_by_flash(pixels: Pixels, eye: Tensor, intensity: Tensor) -> Tensor:
    """Linear colours (N, 3) under a light at the camera `eye` (3,), whose intensity (3,) falls with the squared
    distance."""
    towards = eye - pixels.position
    square = (towards**2).sum(-1, keepdim=True)
    shares = (pixels.diffuse, pixels.specular, pixels.roughness)
    return brdf.reflect_flash(pixels.normal, towards / square.sqrt(), *shares) * intensity / square


def lit_by_point(pixels: Pixels, asset: Asset, eye: Tensor, light: Tensor, intensity: Tensor) -> Tensor:
    """Linear colours (N, 3) under a point light at `light` (3,), with the shadows that the asset casts."""
    towards = light - pixels.position
    square = (towards**2).sum(-1, keepdim=True)
    towards = towards / square.sqrt()
    shares = (pixels.diffuse, pixels.specular, pixels.roughness)
    colour = brdf.reflect(pixels.normal, towards, normalize(eye - pixels.position, dim=-1), *shares)
    return colour * intensity / square * unshadowed(pixels, asset, light)[:, None]


SHADOW_SIZE = 1024  # texels of the light's view


def unshadowed(pixels: Pixels, asset: Asset, light: Tensor) -> Tensor:
    """Share (N,) of the light that arrives: depth in the light's view compared in 3 x 3 texels (Reeves et al. 1987)."""
    vertices = torch.cat([s.vertices for s in asset.values()])
    centre = (vertices.amin(0) + vertices.amax(0)) / 2
    reach = float((vertices - centre).norm(dim=-1).max())
    distance = float((light - centre).norm())
    if distance <= reach:
        return torch.ones(len(pixels.index))  # a light inside the asset's ball has no single view of it
    fov = 2 * math.asin(reach / distance)
    up = torch.tensor([0.0, 1, 0]) if abs(float((light - centre)[1])) < 0.99 * distance else torch.tensor([0.0, 0, 1])
    camera = Camera(
        cameras.intrinsics_from_fov(fov, SHADOW_SIZE, SHADOW_SIZE),
        cameras.look_at(light, centre, up),
        SHADOW_SIZE,
        SHADOW_SIZE,
    )
    offset, faces = 0, []
    for surface in asset.values():
        faces.append(surface.faces + offset)
        offset += len(surface.vertices)
    near, far = 0.5 * (distance - reach), 1.5 * (distance + reach)
    rast = mesh.rasterize(camera.clip(vertices[None], near, far), torch.cat(faces), (SHADOW_SIZE, SHADOW_SIZE))
    # NDC z back to distance along the axis
    depth = 2 * near * far / (far + near - rast.depth[0] * (far - near))
    texel = 2 * reach / SHADOW_SIZE
    at, along = camera.project(pixels.position + 2 * texel * pixels.normal)
    column, row = at[:, 0].long(), at[:, 1].long()
    share = torch.zeros(len(at))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            r, c = (row + dy).clamp(0, SHADOW_SIZE - 1), (column + dx).clamp(0, SHADOW_SIZE - 1)
            share += (along < depth[r, c] + 3 * texel).float()
    return share / 9


def picture(
    asset: Asset, camera: Camera, shade: Callable[[Pixels], Tensor], supersampling: int = 2
) -> tuple[Tensor, Tensor]:
    """A picture (H, W, 3) on black, gamma-encoded, and its coverage (H, W, 1), antialiased by supersampling.

    Args:
        shade: linear colours (N, 3) of `Pixels`.
    """
    fine = camera.resized(camera.width * supersampling, camera.height * supersampling)
    pixels = visible(asset, fine)
    colour = pixels.image(torch.cat([shade(pixels).clamp(0, 1), torch.ones(len(pixels.index), 1)], -1))
    averaged = torch.nn.functional.avg_pool2d(colour.permute(2, 0, 1)[None], supersampling)[0].permute(1, 2, 0)
    return brdf.to_picture(averaged[..., :3]), averaged[..., 3:]
