"""The avatar: Gaussians bound to the texels of a head mesh, blended by a reduced basis, deformed with its triangles.

RGBAvatar (Li et al., CVPR 2025, arXiv 2503.12886), section 3.
"""

import copy
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import roma
import torch
from recon4d import InputError, mesh, splat
from recon4d.cameras import Camera
from recon4d.head import HeadModel
from torch import Tensor, nn

from gaussian_avatar.attachment import Attach

TRAINED = (  # attributes of an avatar that training changes, beside its MLP
    "means",
    "log_scales",
    "opacity_logits",
    "quats",
    "sh0",
    "mean_basis",
    "quat_basis",
    "sh0_basis",
)


STRETCH = (0.2, 4.0)  # how small and how large a Gaussian gets with its triangle


@dataclass(frozen=True, eq=False)
class Avatar:
    """N Gaussians, raw parameters (before activation), and the basis that moves them. K basis vectors.

    Attributes:
        face_id, bary: (N,) int64, (N, 3): the surface point each Gaussian sits on.
        means: (N, 3) metres, in the triangle's frame.
        log_scales: (N, 3). opacity_logits: (N,). quats: (N, 4) wxyz, not normalised.
        sh0: (N, 3), colour is 0.5 + SH0 * sh0.
        mean_basis: (K, N, 3). quat_basis: (K, N, 4). sh0_basis: (K, N, 3).
        mlp: blendshape input (B, D) to weights (B, K).
        seen: (N,) bool, whether training pixels have set the colour.
        extent: (N,) metres, side of a square of the triangle's area on the mean head: Gaussians grow and shrink with
            their triangle. None leaves them as they are.
    """

    face_id: Tensor
    bary: Tensor
    means: Tensor
    log_scales: Tensor
    opacity_logits: Tensor
    quats: Tensor
    sh0: Tensor
    mean_basis: Tensor
    quat_basis: Tensor
    sh0_basis: Tensor
    mlp: nn.Sequential
    seen: Tensor
    extent: Tensor | None = None

    def __len__(self) -> int:
        return len(self.face_id)

    @property
    def n_inputs(self) -> int:
        """Length of the blendshape input."""
        return next(self.mlp.parameters()).shape[1]

    def to(self, device: torch.device | str) -> "Avatar":
        """The same avatar on another device; this one stays where it is."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "mlp"}
        tensors: dict[str, Any] = {name: value if value is None else value.to(device) for name, value in values.items()}
        return Avatar(mlp=copy.deepcopy(self.mlp).to(device), **tensors)


@dataclass(frozen=True, eq=False)
class Splats:
    """B frames of N Gaussians in world space, as `recon4d.splat.rasterize` takes them."""

    means: Tensor  # (B, N, 3)
    quats: Tensor  # (B, N, 4)
    scales: Tensor  # (B, N, 3)
    opacities: Tensor  # (B, N)
    colors: Tensor  # (B, N, 3)


def texel_count(head: HeadModel, tex_size: int) -> int:
    """About how many Gaussians `bind` will make: the UV area of the faces, in texels. Overlaps count twice."""
    return int(_uv_area(head).sum() * tex_size**2)


def bind(head: HeadModel, tex_size: int) -> tuple[Tensor, Tensor]:
    """Face ids (N,) and barycentrics (N, 3) of the texels that the UV layout covers; each one is a Gaussian.

    Raises InputError for a head model without texture coordinates, or when no texel is covered.
    """
    texels = mesh.bake_uv(*texture_layout(head), (tex_size, tex_size))
    if not texels.mask.any():
        raise InputError(f"model.tex_size {tex_size} covers no texel of the head model's UV layout; give more")
    return texels.tri_id[texels.mask].long(), texels.bary[texels.mask].float()


def neighbours(head: HeadModel, tex_size: int) -> Tensor:
    """Pairs (P, 2) of Gaussians, in `bind`'s order, whose texels lie side by side on the surface, not over a seam."""
    texels = mesh.bake_uv(*texture_layout(head), (tex_size, tex_size))
    index = torch.full((tex_size, tex_size), -1)
    index[texels.mask] = torch.arange(int(texels.mask.sum()))
    pairs = torch.cat(
        [
            torch.stack([index[:, :-1], index[:, 1:]], -1).view(-1, 2),
            torch.stack([index[:-1], index[1:]], -1).view(-1, 2),
        ]
    )
    pairs = pairs[(pairs >= 0).all(1)]
    points = texels.interpolate(head.v_template, head.faces)[texels.mask]
    near = 3 * texel_spacing(head, tex_size)[texels.tri_id[texels.mask].long()]
    apart = (points[pairs[:, 0]] - points[pairs[:, 1]]).norm(dim=1)
    return pairs[apart < near[pairs].amin(1)]


def new(
    head: HeadModel,
    tex_size: int,
    n_inputs: int,
    basis: int,
    hidden: int,
    init_scale: float | None,
    init_opacity: float,
    generator: torch.Generator,
    stretch: bool = False,
) -> Avatar:
    """An avatar before training: Gaussians on the surface, grey, with a basis of zeros.

    `init_scale` in metres; None takes half the distance of neighbouring texels on the mean head, which for 256
    texels on FLAME is about the paper's 0.0008. With `stretch` they grow and shrink with their triangles.
    """
    face_id, bary = bind(head, tex_size)
    n = len(face_id)
    if init_scale is None:
        scales = 0.5 * texel_spacing(head, tex_size)[face_id].clamp(6e-4, 1e-2)
    else:
        scales = torch.full((n,), float(init_scale))
    quats = torch.zeros(n, 4)
    quats[:, 0] = 1
    return Avatar(
        face_id=face_id,
        bary=bary,
        means=torch.zeros(n, 3),
        log_scales=scales.log()[:, None].repeat(1, 3),
        opacity_logits=torch.full((n,), float(np.log(init_opacity / (1 - init_opacity)))),
        quats=quats,
        sh0=torch.zeros(n, 3),
        mean_basis=torch.zeros(basis, n, 3),
        quat_basis=torch.zeros(basis, n, 4),
        sh0_basis=torch.zeros(basis, n, 3),
        mlp=new_mlp(n_inputs, hidden, basis, generator),
        seen=torch.zeros(n, dtype=torch.bool),
        extent=extents(head.v_template, head.faces)[face_id] if stretch else None,
    )


def new_mlp(n_inputs: int, hidden: int, basis: int, generator: torch.Generator) -> nn.Sequential:
    """n_inputs -> hidden -> hidden -> basis with ReLU, initialised as torch.nn.Linear is, from the generator."""
    mlp = nn.Sequential(
        nn.Linear(n_inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, basis)
    )
    with torch.no_grad():
        for layer in mlp:
            if not isinstance(layer, nn.Linear):
                continue
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    return mlp


def texel_spacing(head: HeadModel, tex_size: int) -> Tensor:
    """Distance of neighbouring texels on each face (F,) of the mean head, metres."""
    corners = head.v_template[head.faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1) / 2
    side: Tensor = (area / _uv_area(head).clamp_min(1e-12)).sqrt()
    return side / tex_size


def extents(vertices: Tensor, faces: Tensor) -> Tensor:
    """(..., F) metres: the side of a square of each triangle's area."""
    a, b, c = (vertices[..., faces[:, i], :] for i in range(3))
    return (torch.linalg.cross(b - a, c - a).norm(dim=-1) / 2).sqrt()


def texture_layout(head: HeadModel) -> tuple[Tensor, Tensor]:
    """Texture coordinates (T, 2) and their faces (F, 3). Raises InputError for a head model without."""
    if head.vt is None or head.ft is None:
        raise InputError(
            f"the head model {head.name} has no texture coordinates; "
            "place flame_uv.npz or head_template_mesh.obj beside it"
        )
    return head.vt, head.ft


def uv_edges(head: HeadModel, faces: Tensor | slice = slice(None)) -> Tensor:
    """Both texture-space edges of faces and the sign of their cross product: (F, 5)."""
    vt, ft = texture_layout(head)
    uv = vt[ft[faces]]
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    return torch.cat([a, b, torch.where(_cross2(a, b) < 0, -1.0, 1.0)[:, None]], 1)


def _uv_area(head: HeadModel) -> Tensor:
    """Area of the faces in texture space (F,)."""
    edges = uv_edges(head)
    return _cross2(edges[:, :2], edges[:, 2:4]).abs() / 2


def _cross2(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def face_frames(corners: Tensor, uv: Tensor) -> Tensor:
    """Tangent, bitangent, normal as the columns of (..., F, 3, 3), each of unit length.

    The tangent follows u and the bitangent v, as RGBAvatar has them: where the UV layout shears they are not at
    right angles. Where it mirrors, the bitangent is turned round, so that the frame stays right-handed.

    Args:
        corners: (..., F, 3, 3) posed triangle corners.
        uv: (F, 3, 2) their texture coordinates.
    """
    e1, e2 = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    d1, d2 = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    mirrored = torch.where(_cross2(d1, d2) < 0, -1.0, 1.0)[:, None]
    # The sign of 1 / det is all that normalising leaves of it; for the bitangent the two signs cancel.
    tangent = (e1 * d2[:, 1:] - e2 * d1[:, 1:]) * mirrored
    bitangent = e2 * d1[:, :1] - e1 * d2[:, :1]
    normal = torch.linalg.cross(e1, e2)
    return nn.functional.normalize(torch.stack([tangent, bitangent, normal], -1), dim=-2, eps=1e-12)


def quat_multiply(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product of wxyz quaternions; roma's is the same in xyzw but takes more passes over the memory."""
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        [
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ],
        -1,
    )


def attach(
    avatar: Avatar, head: HeadModel, vertices: Tensor, eye: Tensor, local: Tensor, quats: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry means and rotations from the triangles' frames into the world, in plain torch.

    Args:
        vertices: (B, V, 3) posed head. eye: (B, 3) camera centre. local: (B, N, 3). quats: (B, N, 4) wxyz.

    Returns:
        Means (B, N, 3): the surface point plus the frame times local. Quaternions (B, N, 4): the frame's times quats.
        Facing (B, N): cosine between the surface's normal and the direction to the eye.
    """
    corners = vertices[:, head.faces]  # (B, F, 3, 3)
    vt, ft = texture_layout(head)
    frames = face_frames(corners, vt[ft])
    turns = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(frames))
    points = torch.einsum("nj,bnjc->bnc", avatar.bary, corners[:, avatar.face_id])
    frames = frames[:, avatar.face_id]
    means = points + (frames * local[..., None, :]).sum(-1)
    towards = nn.functional.normalize(eye[:, None] - points, dim=-1)
    return means, quat_multiply(turns[:, avatar.face_id], quats), (frames[..., 2] * towards).sum(-1)


def deform(
    avatar: Avatar,
    head: HeadModel,
    vertices: Tensor,
    inputs: Tensor,
    world_to_camera: Tensor,
    blend: bool = True,
    one_sided: bool = False,
) -> tuple[Splats, Tensor]:
    """The Gaussians of B frames in world space, and the basis weights (B, K).

    Raw attributes are base + sum_k w_k delta_k (equations 3 and 4 of the paper); means and rotations then go
    through the triangle's frame. Vertices get no gradient on the CPU.

    Args:
        vertices: (B, V, 3) posed head. inputs: (B, D) blendshape input.
        world_to_camera: (4, 4) or (B, 4, 4); matters with `one_sided` only.
        blend: whether the basis takes part.
        one_sided: hide Gaussians whose surface faces away, so that the back of the head can't shine through the face
            and learn its colours. They fade between the cosines -0.1 and -0.3: at the outline they stay.
    """
    batch, n = len(vertices), len(avatar)
    if blend:
        weights = avatar.mlp(inputs)

        def blended(base: Tensor, basis: Tensor) -> Tensor:
            return torch.addmm(base.flatten(), weights, basis.flatten(1)).view(batch, *base.shape)

        local, quats = blended(avatar.means, avatar.mean_basis), blended(avatar.quats, avatar.quat_basis)
        sh0 = blended(avatar.sh0, avatar.sh0_basis)
    else:
        weights = inputs.new_zeros(batch, avatar.mean_basis.shape[0])
        local, quats, sh0 = (x.expand(batch, *x.shape) for x in (avatar.means, avatar.quats, avatar.sh0))
    eye = -(world_to_camera[..., :3, :3].transpose(-1, -2) @ world_to_camera[..., :3, 3:])[..., 0].expand(batch, 3)
    if vertices.device.type == "cpu" and vertices.dtype == torch.float32:
        corners, uv = head.faces[avatar.face_id], uv_edges(head, avatar.face_id)
        means, quats, facing = Attach.apply(  # type: ignore[no-untyped-call]
            vertices, corners, avatar.bary, uv, eye, local, quats
        )
    else:
        means, quats, facing = attach(avatar, head, vertices, eye, local, quats)
    opacities = avatar.opacity_logits.sigmoid().expand(batch, n)
    if one_sided:
        opacities = opacities * ((facing + 0.3) / 0.2).clamp(0, 1)
    scales = avatar.log_scales.exp().expand(batch, n, 3)
    if avatar.extent is not None:
        now = extents(vertices, head.faces)[:, avatar.face_id]
        scales = scales * (now / avatar.extent.clamp_min(1e-9)).clamp(*STRETCH)[..., None]
    splats = Splats(
        means=means,
        quats=quats,  # the rasterizer normalises
        scales=scales,
        opacities=opacities,
        colors=(0.5 + splat.SH0 * sh0).clamp_min(0),
    )
    return splats, weights


def rasterize(splats: Splats, camera: Camera, background: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Render B frames, each with its own Gaussians, in one call.

    Args:
        camera: one for all frames, or B of them.
        background: (B, D), or None for black.

    Returns:
        Colours (B, H, W, D) and opacity (B, H, W, 1).
    """
    batch = len(splats.means)
    colors, alphas, _ = splat.rasterize(
        splats.means,
        splats.quats,
        splats.scales,
        splats.opacities,
        splats.colors,
        camera.world_to_camera.expand(batch, 4, 4)[:, None],
        camera.K.expand(batch, 3, 3)[:, None],
        camera.width,
        camera.height,
        backgrounds=None if background is None else background[:, None],
        packed=False,
    )
    return colors[:, 0], alphas[:, 0]
