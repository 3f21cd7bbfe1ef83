"""An avatar on disk: `model.ply` in RGBAvatar's layout, and a compact safetensors file."""

from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement
from recon4d import InputError
from recon4d.files import atomic_path, write_bytes
from recon4d.formats import ply
from recon4d.head import HeadModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gaussian_avatar.avatars import TRAINED, Avatar, extents, new_mlp

UNSEEN_OPACITY = -9999.0
ATTRIBUTES = ("mean_basis", "quat_basis", "sh0_basis")
BASIS_NAMES = ("xyz_b", "rot_b", "f_dc_b")


def write_ply(path: str | Path, avatar: Avatar) -> None:
    """Write `model.ply`, atomically: the 3DGS properties, then the basis, the MLP and the binding (docs/formats.md).

    Positions, scales and rotations are those in the triangle's frame. Gaussians never seen get an opacity logit of
    -9999. An MLP with more parameters than there are Gaussians goes on in `weight_module_1`, `weight_module_2` ...; a
    comment in the header, `mlp INPUTS HIDDEN BASIS`, gives its size; another, `stretch`, says that Gaussians grow and
    shrink with their triangles.
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
    hidden, inputs = next(avatar.mlp.parameters()).shape
    comments = [f"mlp {inputs} {hidden} {len(avatar.mean_basis)}", *["stretch"] * (avatar.extent is not None)]
    with atomic_path(path) as temporary:
        PlyData([PlyElement.describe(table, "vertex")], byte_order="<", comments=comments).write(temporary)


def read_ply(path: str | Path, head: HeadModel, n_inputs: int) -> Avatar:
    """Read `model.ply`; the inverse of `write_ply`. RGBAvatar's own files on a FLAME head are the same.

    Raises InputError for a missing or broken file, one that is not an avatar, or one of another head model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; train the avatar first with gaussian-avatar train-offline")
    content = ply.read(path)
    if "vertex" not in content:
        raise InputError(f"{path} has no vertex element; it must be an avatar of gaussian-avatar or RGBAvatar")
    table = content["vertex"].data
    names = table.dtype.names or ()

    def get(*wanted: str) -> Tensor:
        missing = [name for name in wanted if name not in names]
        if missing:
            raise InputError(f"{path} has no {missing[0]}; it must be an avatar of gaussian-avatar or RGBAvatar")
        return torch.from_numpy(np.stack([table[name] for name in wanted], -1).astype(np.float32))

    n = len(table)
    get("xyz_b_0")
    basis = sum(name.startswith("xyz_b_") for name in names) // 3
    bases = {}
    for name, attribute, width in zip(BASIS_NAMES, ATTRIBUTES, (3, 4, 3)):
        values = get(*(f"{name}_{i}" for i in range(basis * width)))
        bases[attribute] = values.view(n, basis, width).transpose(0, 1).contiguous()
    flat = [get("weight_module")[:, 0]]
    while f"weight_module_{len(flat)}" in names:
        flat.append(get(f"weight_module_{len(flat)}")[:, 0])
    face_id = torch.from_numpy(table["face_id"].astype(np.int64)) if "face_id" in names else get("face_id")
    _check_faces(face_id, head, path)
    opacity = get("opacity")[:, 0]
    avatar = Avatar(
        face_id=face_id,
        bary=get("face_bary_0", "face_bary_1", "face_bary_2"),
        means=get("x", "y", "z"),
        log_scales=get("scale_0", "scale_1", "scale_2"),
        opacity_logits=opacity,
        quats=get("rot_0", "rot_1", "rot_2", "rot_3"),
        sh0=get("f_dc_0", "f_dc_1", "f_dc_2"),
        mlp=_read_mlp(torch.cat(flat), n_inputs, basis, content.comments, path),
        seen=opacity > UNSEEN_OPACITY / 2,
        extent=extents(head.v_template, head.faces)[face_id] if "stretch" in content.comments else None,
        **bases,
    )
    _check_values(avatar, path)
    return avatar


def _check_values(avatar: Avatar, path: Path) -> None:
    """Raise InputError for numbers that no training leaves: Gaussians that are not finite, or as large as a house."""
    numbers = [getattr(avatar, name) for name in ("bary", *TRAINED)] + list(avatar.mlp.parameters())
    finite = all(bool(values.isfinite().all()) for values in numbers)
    if not finite or float(avatar.log_scales.max()) > 3 or float(avatar.means.abs().max()) > 1e3:
        raise InputError(f"{path} holds Gaussians that are not finite; train or export it again")


def _check_faces(face_id: Tensor, head: HeadModel, path: Path) -> None:
    if len(face_id) == 0 or int(face_id.min()) < 0 or int(face_id.max()) >= len(head.faces):
        raise InputError(
            f"{path} is bound to faces that the head model {head.name} does not have; "
            "give the avatar's own with --head-model"
        )


def _read_mlp(flat: Tensor, n_inputs: int, basis: int, comments: list[str], path: Path) -> nn.Sequential:
    """The MLP of a file's numbers, which zeros may follow."""
    sizes = [line.split()[1:] for line in comments if line.startswith("mlp ")]
    hidden = _hidden(flat, n_inputs, basis)  # RGBAvatar's files, and those of our first version, don't say it
    if sizes and len(sizes[0]) == 3 and all(word.isdecimal() for word in sizes[0]):
        inputs, said, outputs = map(int, sizes[0])
        hidden = said if (inputs, outputs) == (n_inputs, basis) and _count(n_inputs, said, basis) <= len(flat) else 0
    if not hidden:
        raise InputError(
            f"{path}: weight_module does not hold an MLP of {n_inputs} inputs; "
            "give the avatar's own head model with --head-model"
        )
    mlp = new_mlp(n_inputs, hidden, basis, torch.Generator())
    with torch.no_grad():
        nn.utils.vector_to_parameters(flat[: _count(n_inputs, hidden, basis)].clone(), mlp.parameters())
    return mlp


def _count(inputs: int, hidden: int, outputs: int) -> int:
    """Numbers of an MLP."""
    return (inputs + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * outputs


def _hidden(flat: Tensor, inputs: int, outputs: int) -> int:
    """The width of an MLP whose numbers zeros follow, by where they begin; 0 if no width fits.

    The last numbers are the biases of the outputs: a trained network has one that is not zero.
    """
    used = int(flat.nonzero()[-1]) + 1 if flat.any() else 0
    hidden = 1
    while _count(inputs, hidden, outputs) < used:
        hidden += 1
    count = _count(inputs, hidden, outputs)
    return hidden if count - outputs < used and count <= len(flat) else 0


# ------------------------------------------------------------------------------------------------------- compact

COMPACT = "recon4d-avatar-1"
HALF = ("means", "log_scales", "opacity_logits", "quats", "sh0")
STEPS = {8: (127, torch.int8), 16: (32767, torch.int16)}  # whole numbers that the largest value becomes, by bits


def write_compact(path: str | Path, avatar: Avatar, head_name: str, bits: int = 8) -> None:
    """Write a small safetensors file, atomically (docs/formats.md). Gaussians never seen are left out.

    Attributes and MLP are 16-bit floats; means are scaled to 1 first. The basis, most of an avatar, is whole numbers
    of 8 or 16 `bits`, with one scale per basis vector and component.
    """
    avatar = avatar.to("cpu")
    kept = avatar.seen
    metres = avatar.means.detach()[kept].abs().max().clamp_min(1e-9)
    tensors = {
        "face_id": avatar.face_id[kept].int(),
        # Two of three, of 65535: the third is what is missing to 1.
        "bary": (avatar.bary[kept, :2].clamp(0, 1) * 65535).round().to(torch.uint16),
        "metres": metres,
    }
    for name in HALF:
        values = getattr(avatar, name).detach()[kept]
        tensors[name] = (values / metres if name == "means" else values).half()
    steps, kind = STEPS[bits]
    for name in ATTRIBUTES:
        basis = getattr(avatar, name).detach()[:, kept]
        scale = basis.abs().amax(1, keepdim=True).clamp_min(1e-12) / steps
        tensors[name] = (basis / scale).round().to(kind)
        tensors[f"{name}_scale"] = scale
    for name, value in avatar.mlp.state_dict().items():
        tensors[f"mlp.{name}"] = value.half()
    whole = {name: value.contiguous() for name, value in tensors.items()}
    about = {"format": COMPACT, "head_model": head_name, "stretch": "yes" if avatar.extent is not None else "no"}
    write_bytes(path, save(whole, about))


def read_compact(path: str | Path, head: HeadModel, n_inputs: int) -> Avatar:
    """Read a file of `write_compact`. Raises InputError for a missing or broken file, or one of another head model."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; write it with gaussian-avatar export")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); export it again") from error
    if metadata.get("format") != COMPACT:
        raise InputError(f"{path} is not a compact avatar ({COMPACT}); write it with gaussian-avatar export")
    try:
        face_id = tensors["face_id"].long()
        _check_faces(face_id, head, path)
        two = tensors["bary"].float().view(len(face_id), 2) / 65535
        values = {name: tensors[name].float() for name in HALF}
        values["means"] = values["means"] * tensors["metres"]
        values |= {name: tensors[name].float() * tensors[f"{name}_scale"] for name in ATTRIBUTES}
        basis, hidden = len(tensors["mean_basis"]), len(tensors["mlp.0.bias"])
        if tensors["mlp.0.weight"].shape != (hidden, n_inputs):
            raise InputError(
                f"{path} is of another head model, {metadata.get('head_model')}; give it with --head-model"
            )
        mlp = new_mlp(n_inputs, hidden, basis, torch.Generator())
        mlp.load_state_dict({name: tensors[f"mlp.{name}"].float() for name in mlp.state_dict()})
    except (KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"{path} lacks a part of an avatar ({error}); export it again") from error
    n = len(face_id)
    shapes = {"means": (n, 3), "log_scales": (n, 3), "opacity_logits": (n,), "quats": (n, 4), "sh0": (n, 3)}
    shapes |= {name: (basis, n, width) for name, width in zip(ATTRIBUTES, (3, 4, 3))}
    for name, shape in shapes.items():
        if values[name].shape != shape:
            raise InputError(f"{path}: {name} has shape {tuple(values[name].shape)}, not {shape}; export it again")
    avatar = Avatar(
        face_id=face_id,
        bary=torch.cat([two, 1 - two.sum(1, keepdim=True)], 1),
        mlp=mlp,
        seen=torch.ones(n, dtype=torch.bool),
        extent=extents(head.v_template, head.faces)[face_id] if metadata.get("stretch") == "yes" else None,
        **values,
    )
    _check_values(avatar, path)
    return avatar


def read(path: str | Path, head: HeadModel, n_inputs: int) -> Avatar:
    """An avatar from a PLY or a safetensors file, by its suffix. Raises InputError as `read_ply` and `read_compact`."""
    reader = read_compact if Path(path).suffix == ".safetensors" else read_ply
    return reader(path, head, n_inputs)
