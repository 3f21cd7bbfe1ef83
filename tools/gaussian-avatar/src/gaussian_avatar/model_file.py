"""An avatar on disk: `model.ply` in RGBAvatar's layout."""

from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement, PlyParseError
from recon4d import InputError
from recon4d.files import atomic_path
from recon4d.head import HeadModel
from torch import Tensor, nn

from gaussian_avatar.avatar import Avatar, new_mlp

UNSEEN_OPACITY = -9999.0
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
