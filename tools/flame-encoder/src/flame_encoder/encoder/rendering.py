"""Pictures of what a vector says: the head with its albedo under its light, in the encoder's view."""

from dataclasses import replace

import torch
from recon4d import cameras, mesh
from recon4d.color import linear_from_srgb, srgb_from_linear
from recon4d.files import InputError
from recon4d.head import HeadModel
from recon4d.rotations import from_6d
from torch import Tensor

from flame_encoder.encoder import vector
from flame_encoder.encoder.crop import FACING, CropView, middle, place

TEXELS = 256


def reduced(head: HeadModel, texels: int = TEXELS) -> HeadModel:
    """The head model with a smaller albedo: fine enough for the pictures of an encoder, and faster."""
    if head.albedo_mean is None or head.albedo_mean.shape[0] <= texels:
        return head

    def smaller(image: Tensor) -> Tensor:
        flat = image.flatten(2).permute(2, 0, 1)[None]
        small = torch.nn.functional.interpolate(flat, (texels, texels), mode="area")[0]
        answer: Tensor = small.permute(1, 2, 0).unflatten(-1, image.shape[2:]).contiguous()
        return answer

    components = None if head.albedo_components is None else smaller(head.albedo_components)
    return replace(head, albedo_mean=smaller(head.albedo_mean[..., None])[..., 0], albedo_components=components)


def thinned(head: HeadModel, every: int = 10) -> HeadModel:
    """The head model with every tenth vertex, those that carry joints, and the triangles of the landmarks alone."""
    head.landmarks(head.v_template[None])  # says so when there are none
    kept = (head.J_regressor != 0).any(0)
    kept[::every] = True
    corners = head.faces[head.landmark_faces]
    kept[corners] = True
    number = torch.cumsum(kept, 0) - 1
    return replace(
        head,
        v_template=head.v_template[kept],
        shapedirs=head.shapedirs[kept],
        expressiondirs=head.expressiondirs[kept],
        posedirs=head.posedirs[kept],
        J_regressor=head.J_regressor[:, kept],
        weights=head.weights[kept],
        eyelids=None if head.eyelids is None else head.eyelids[kept],
        faces=number[corners],
        landmark_faces=torch.arange(len(corners)),
        vt=None,
        ft=None,
        regions=None,
        albedo_mean=None,
        albedo_components=None,
    )


def turned(head: HeadModel, parts: dict[str, Tensor]) -> Tensor:
    """Vertices (B, V, 3) about the middle of the face, turned as `global_rot` says, y up, z to the camera; metres."""
    rotation = from_6d(parts["global_rot"])
    vertices = head(**vector.head_arguments(head, parts)) - middle(head)
    return vertices @ rotation.transpose(1, 2)


def placed(view: CropView, vertices: Tensor, transl: Tensor) -> Tensor:
    """What `turned` gives, in the camera's OpenCV axes, metres: (B, V, 3)."""
    facing = vertices.new_tensor(FACING)
    return vertices * facing + place(view, transl)[:, None]


def projected(view: CropView, points: Tensor) -> Tensor:
    """What `placed` gives, in pixels of the view (B, n, 2)."""
    # A head behind the camera, early in training, must not give infinite gradients.
    depth = points[..., 2:].clamp_min(0.05)
    return points[..., :2] / depth * view.K[0, 0] + view.size / 2


def render(
    head: HeadModel, parts: dict[str, Tensor], view: CropView, textures: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, S, S) in [0, 1] on black, and which faces are seen: (B, S, S) int32, -1 where none.

    Args:
        textures: (B, T, T, 3) sRGB in place of what the parts say.

    Differentiable, but for which triangle a pixel sees. Raises ValueError for a head model without texture
    coordinates.
    """
    if head.vt is None or head.ft is None:
        raise ValueError(f"{head.name} has no texture coordinates; call head.with_uv first")
    upright = turned(head, parts)
    vertices = placed(view, upright, parts["transl"])
    camera = cameras.Camera(view.K.to(vertices), torch.eye(4).to(vertices), view.size, view.size)
    rast = mesh.rasterize(camera.clip(vertices), head.faces, (view.size, view.size))
    normals = mesh.interpolate(mesh.vertex_normals(upright, head.faces), rast, head.faces)
    uv = mesh.interpolate(head.vt[None], rast, head.ft)
    textures = vector.albedo(head, parts) if textures is None else textures
    if textures.shape[1] == 1:
        skin = textures.expand(*uv.shape[:3], 3)
    else:
        skin = mesh.texture(textures, uv)
    lit = mesh.shade(linear_from_srgb(skin), normals, sh=vector.light(parts), mask=rast.mask)
    return srgb_from_linear(lit).permute(0, 3, 1, 2) * rast.mask[:, None], rast.tri_id


def render_pytorch3d(head: HeadModel, parts: dict[str, Tensor], view: CropView) -> tuple[Tensor, Tensor]:
    """`render` by PyTorch3D's soft Phong shader: soft edges; one lamp at the camera and the light's mean colour.

    Raises InputError when PyTorch3D is not installed.
    """
    try:
        from pytorch3d import renderer
        from pytorch3d.structures import Meshes
    except ImportError as error:
        raise InputError("--renderer pytorch3d needs PyTorch3D; install the extra recon4d[pytorch3d]") from error
    vertices = placed(view, turned(head, parts), parts["transl"])
    batch, device = len(vertices), vertices.device
    assert head.vt is not None and head.ft is not None
    R, T, focal, principal = cameras.to_pytorch3d(
        cameras.Camera(view.K.to(vertices), torch.eye(4).to(vertices), view.size, view.size)
    )
    camera = renderer.PerspectiveCameras(
        R=R.expand(batch, 3, 3),
        T=T.expand(batch, 3),
        focal_length=focal.expand(batch, 2),
        principal_point=principal.expand(batch, 2),
        device=device,
    )
    textures = renderer.TexturesUV(
        maps=vector.albedo(head, parts),
        faces_uvs=head.ft.expand(batch, -1, -1),
        verts_uvs=head.vt.expand(batch, -1, -1),
    )
    ambient = (vector.light(parts)[:, 0] / (4 * torch.pi) ** 0.5).clamp(0, 2)
    lights = renderer.PointLights(
        location=((0.0, 0.0, 0.0),), ambient_color=0.7 * ambient, diffuse_color=((0.3,) * 3,), device=device
    )
    blend = renderer.BlendParams(sigma=1e-5, gamma=1e-4, background_color=(0.0, 0.0, 0.0))
    radius = torch.log(torch.tensor(1.0 / 1e-4 - 1.0)).item() * blend.sigma
    settings = renderer.RasterizationSettings(image_size=view.size, blur_radius=radius, faces_per_pixel=8, bin_size=0)
    fragments = renderer.MeshRasterizer(camera, settings)(
        meshes := Meshes(vertices, head.faces.expand(batch, -1, -1), textures)
    )
    material = renderer.Materials(specular_color=((0.0,) * 3,), device=device)
    shader = renderer.SoftPhongShader(device, camera, lights, material, blend)
    image = shader(fragments, meshes)
    nearest = fragments.pix_to_face[..., 0]
    offset = torch.arange(batch, device=device)[:, None, None] * len(head.faces)
    return image[..., :3].permute(0, 3, 1, 2), torch.where(nearest >= 0, nearest - offset, -1)
