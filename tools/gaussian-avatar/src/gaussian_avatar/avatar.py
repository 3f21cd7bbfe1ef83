"""The avatar: Gaussians bound to the texels of a head mesh, blended by a reduced basis, deformed with its triangles.

RGBAvatar (Li et al., CVPR 2025, arXiv 2503.12886), section 3.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import roma
import torch
from plyfile import PlyData, PlyElement, PlyParseError
from recon4d import InputError, mesh
from recon4d.files import atomic_path
from recon4d.head import HeadModel
from torch import Tensor, nn

from gaussian_avatar.attachment import Attach

SH0 = 0.28209479177387814  # the constant spherical harmonic
UNSEEN_OPACITY = -9999.0


@dataclass(frozen=True)
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

    def __len__(self) -> int:
        return len(self.face_id)

    @property
    def n_inputs(self) -> int:
        return self.mlp[0].in_features

    def to(self, device: torch.device | str) -> "Avatar":
        """The same avatar on another device (the MLP moves in place)."""
        return Avatar(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
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
    if head.vt is None or head.ft is None:
        raise InputError(
            f"the head model {head.name} has no texture coordinates; "
            "place flame_uv.npz or head_template_mesh.obj beside it"
        )
    texels = mesh.bake_uv(head.vt, head.ft, (tex_size, tex_size))
    if not texels.mask.any():
        raise InputError(f"model.tex_size {tex_size} covers no texel of the head model's UV layout; give more")
    return texels.tri_id[texels.mask].long(), texels.bary[texels.mask].float()


def neighbours(head: HeadModel, tex_size: int) -> Tensor:
    """Pairs (P, 2) of Gaussians, in `bind`'s order, whose texels lie side by side on the surface, not over a seam."""
    texels = mesh.bake_uv(head.vt, head.ft, (tex_size, tex_size))
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
) -> Avatar:
    """An avatar before training: Gaussians on the surface, grey, with a basis of zeros.

    `init_scale` in metres; None takes half the distance of neighbouring texels on the mean head, which for 256
    texels on FLAME is about the paper's 0.0008.
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
    )


def new_mlp(n_inputs: int, hidden: int, basis: int, generator: torch.Generator) -> nn.Sequential:
    """n_inputs -> hidden -> hidden -> basis with ReLU, initialised as torch.nn.Linear is, from the generator."""
    mlp = nn.Sequential(
        nn.Linear(n_inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, basis)
    )
    with torch.no_grad():
        for layer in mlp[::2]:
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    return mlp


def texel_spacing(head: HeadModel, tex_size: int) -> Tensor:
    """Distance of neighbouring texels on each face (F,) of the mean head, metres."""
    corners = head.v_template[head.faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1) / 2
    return (area / _uv_area(head).clamp_min(1e-12)).sqrt() / tex_size


def _uv_edges(head: HeadModel, faces: Tensor | slice = slice(None)) -> Tensor:
    """Both texture-space edges of faces and the sign of their cross product: (F, 5)."""
    uv = head.vt[head.ft[faces]]
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    return torch.cat([a, b, torch.where(_cross2(a, b) < 0, -1.0, 1.0)[:, None]], 1)


def _uv_area(head: HeadModel) -> Tensor:
    """Area of the faces in texture space (F,)."""
    edges = _uv_edges(head)
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
    frames = face_frames(corners, head.vt[head.ft])
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
        corners, uv = head.faces[avatar.face_id], _uv_edges(head, avatar.face_id)
        means, quats, facing = Attach.apply(vertices, corners, avatar.bary, uv, eye, local, quats)
    else:
        means, quats, facing = attach(avatar, head, vertices, eye, local, quats)
    opacities = avatar.opacity_logits.sigmoid().expand(batch, n)
    if one_sided:
        opacities = opacities * ((facing + 0.3) / 0.2).clamp(0, 1)
    splats = Splats(
        means=means,
        quats=quats,  # the rasterizer normalises
        scales=avatar.log_scales.exp().expand(batch, n, 3),
        opacities=opacities,
        colors=(0.5 + SH0 * sh0).clamp_min(0),
    )
    return splats, weights


# ---------------------------------------------------------------------------------------------------------- PLY

ATTRIBUTES = ("mean_basis", "quat_basis", "sh0_basis")
BASIS_NAMES = ("xyz_b", "rot_b", "f_dc_b")


def write_ply(path: str | Path, avatar: Avatar) -> None:
    """Write `model.ply`, atomically: the 3DGS properties, then the basis, the MLP and the binding (docs/formats.md).

    Positions, scales and rotations are those in the triangle's frame. Gaussians never seen get an opacity logit of
    -9999. An MLP with more parameters than there are Gaussians goes on in `weight_module_1`, `weight_module_2` ...
    """
    n = len(avatar)
    columns: dict[str, np.ndarray] = {}

    def put(names: list[str], values: Tensor) -> None:
        values = values.detach().cpu().float().reshape(n, -1)
        columns.update((name, values[:, i].numpy()) for i, name in enumerate(names))

    put(["x", "y", "z"], avatar.means)
    put(["nx", "ny", "nz"], torch.zeros(n, 3))
    put([f"f_dc_{i}" for i in range(3)], avatar.sh0)
    put([f"f_rest_{i}" for i in range(45)], torch.zeros(n, 45))
    put(["opacity"], torch.where(avatar.seen, avatar.opacity_logits.detach(), UNSEEN_OPACITY))
    put([f"scale_{i}" for i in range(3)], avatar.log_scales)
    put([f"rot_{i}" for i in range(4)], nn.functional.normalize(avatar.quats.detach(), dim=-1))
    # The basis adds to raw quaternions, so it is scaled with them.
    norms = avatar.quats.detach().norm(dim=-1)
    for name, attribute in zip(BASIS_NAMES, ATTRIBUTES):
        values = getattr(avatar, attribute).detach()
        if name == "rot_b":
            values = values / norms[:, None]
        put([f"{name}_{i}" for i in range(values.shape[0] * values.shape[2])], values.transpose(0, 1))
    flat = torch.cat([p.detach().cpu().flatten() for p in avatar.mlp.parameters()]).numpy()
    for i in range(-(-len(flat) // n)):
        column = np.zeros(n, np.float32)
        part = flat[i * n : (i + 1) * n]
        column[: len(part)] = part
        columns["weight_module" if i == 0 else f"weight_module_{i}"] = column
    columns["face_id"] = avatar.face_id.cpu().numpy().astype(np.int32)
    put([f"face_bary_{i}" for i in range(3)], avatar.bary)
    table = np.empty(n, [(name, values.dtype.str) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    with atomic_path(path) as temporary:
        PlyData([PlyElement.describe(table, "vertex")], byte_order="<").write(temporary)


def read_ply(path: str | Path, head: HeadModel, n_inputs: int) -> Avatar:
    """Read `model.ply`; the inverse of `write_ply`. RGBAvatar's own files on a FLAME head are the same.

    Raises InputError for a missing or broken file, one that is not an avatar, or one of another head model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; train the avatar first with gaussian-avatar train-offline")
    try:
        table = PlyData.read(path)["vertex"].data
    except (PlyParseError, KeyError, ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a readable PLY file ({error})") from error
    names = table.dtype.names

    def get(*wanted: str) -> Tensor:
        missing = [name for name in wanted if name not in names]
        if missing:
            raise InputError(f"{path} has no {missing[0]}; it must be an avatar of gaussian-avatar or RGBAvatar")
        return torch.from_numpy(np.stack([table[name] for name in wanted], -1).astype(np.float32))

    n = len(table)
    basis = sum(name.startswith("xyz_b_") for name in names) // 3
    bases = {}
    for name, attribute, width in zip(BASIS_NAMES, ATTRIBUTES, (3, 4, 3)):
        values = get(*(f"{name}_{i}" for i in range(basis * width)))
        bases[attribute] = values.view(n, basis, width).transpose(0, 1).contiguous()
    flat = [get("weight_module")[:, 0]]
    while f"weight_module_{len(flat)}" in names:
        flat.append(get(f"weight_module_{len(flat)}")[:, 0])
    face_id = torch.from_numpy(table["face_id"].astype(np.int64)) if "face_id" in names else get("face_id")
    if n == 0 or int(face_id.min()) < 0 or int(face_id.max()) >= len(head.faces):
        raise InputError(
            f"{path} is bound to faces that the head model {head.name} does not have; "
            "give the avatar's own with --head-model"
        )
    opacity = get("opacity")[:, 0]
    return Avatar(
        face_id=face_id,
        bary=get("face_bary_0", "face_bary_1", "face_bary_2"),
        means=get("x", "y", "z"),
        log_scales=get("scale_0", "scale_1", "scale_2"),
        opacity_logits=opacity,
        quats=get("rot_0", "rot_1", "rot_2", "rot_3"),
        sh0=get("f_dc_0", "f_dc_1", "f_dc_2"),
        mlp=_read_mlp(torch.cat(flat), n_inputs, basis, path),
        seen=opacity > UNSEEN_OPACITY / 2,
        **bases,
    )


def _read_mlp(flat: Tensor, n_inputs: int, basis: int, path: Path) -> nn.Sequential:
    # hidden solves n_inputs h + h + h h + h + h basis + basis = count, and zeros pad the count.
    for hidden in (128, 64, 32, 16, 256, 512):
        count = n_inputs * hidden + hidden + hidden * hidden + hidden + hidden * basis + basis
        if count <= len(flat) and not flat[count:].any() and flat[count - basis : count].any():
            break
    else:
        raise InputError(
            f"{path}: weight_module does not hold an MLP of {n_inputs} inputs; "
            "give the avatar's own head model with --head-model"
        )
    mlp = new_mlp(n_inputs, hidden, basis, torch.Generator())
    with torch.no_grad():
        nn.utils.vector_to_parameters(flat[:count].clone(), mlp.parameters())
    return mlp
