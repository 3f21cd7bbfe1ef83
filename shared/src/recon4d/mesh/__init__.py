"""Differentiable mesh rendering in the manner of nvdiffrast: verbs on tensors that compose.

    rast = mesh.rasterize(pos_clip, tri, (height, width))
    normals = mesh.interpolate(mesh.vertex_normals(vertices, tri), rast, tri)
    colors = mesh.texture(tex, mesh.interpolate(uv, rast, uv_tri), mask=rast.mask)
    image = mesh.antialias(mesh.shade(colors, normals, sh=light), rast, pos_clip, tri)

`pos_clip` is OpenGL clip space (`recon4d.cameras.Camera.clip`); images have row 0 at the top.
"""

from recon4d.mesh.antialias import antialias, edge_neighbours
from recon4d.mesh.normals import face_normals, tangent_frames, tangents, vertex_normals
from recon4d.mesh.rasterize import Rasterization, interpolate, rasterize, screen_derivatives
from recon4d.mesh.shade import sh_basis, sh_irradiance, shade
from recon4d.mesh.texture import mip_levels, texture
from recon4d.mesh.uv import Texels, bake_uv, fill_gutter
from recon4d.mesh.visibility import backends, visibility

__all__ = [
    "Rasterization",
    "Texels",
    "antialias",
    "backends",
    "bake_uv",
    "edge_neighbours",
    "face_normals",
    "fill_gutter",
    "interpolate",
    "mip_levels",
    "rasterize",
    "screen_derivatives",
    "sh_basis",
    "sh_irradiance",
    "shade",
    "tangent_frames",
    "tangents",
    "texture",
    "vertex_normals",
    "visibility",
]
