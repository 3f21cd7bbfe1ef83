"""One head of a file of parameters as a mesh: OBJ, PLY or glTF, through trimesh."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import recon4d.head
import torch
import trimesh
from recon4d.files import InputError, atomic_path, read_npz
from recon4d.formats import track as track_format
from recon4d.head import HeadModel
from recon4d.images import write_png
from recon4d.runs import claim_file
from torch import Tensor

from flame_encoder.encoder import encodings, mouth, vector

SUFFIXES = (".obj", ".ply", ".gltf", ".glb")
FAR = 1e4  # metres
UPRIGHT = (1.0, -1.0, -1.0)  # OpenCV camera axes to y up, z to the viewer


class Written(NamedTuple):
    """What is in a mesh file: vertices (V, 3), metres, y up; the sRGB texture (T, T, 3), if there is one."""

    vertices: Tensor
    texture: Tensor | None


def write(
    source: str | Path,
    out: str | Path,
    *,
    head_model: str | Path | None = None,
    landmark_embedding: str | Path | None = None,
    row: int = 0,
    neutral: bool = False,
    texture: bool = False,
    force: bool = False,
) -> Written:
    """Write one head of a file of parameters as OBJ, PLY, glTF or GLB.

    Args:
        source, row, neutral: see `vertices_of`.
        head_model: the FLAME file that `source` belongs to; the open head when None.
        texture: that an OBJ has skin and eyes too, as a material and a picture beside it.
        force: replace what is there.

    Raises:
        InputError: as `vertices_of` and `save`; an output that exists without `force`; a texture where there is none.
    """
    out = Path(out)
    files = [out]
    if texture and out.suffix.lower() == ".obj":
        files += [out.with_suffix(".mtl"), out.with_suffix(".png")]
    for file in files:
        claim_file(file, force=force, inputs=[source, head_model, landmark_embedding])
    head = recon4d.head.load(head_model, landmark_embedding)
    vertices, skin = vertices_of(Path(source), head, row, neutral)
    if not (vertices.abs() < FAR).all():
        raise InputError(f"{source}: row {row} is no head, its vertices are over {FAR:g} m away; make the file again")
    if texture and out.suffix.lower() == ".ply":
        raise InputError(f"--texture: PLY has none; name {out.with_suffix('.obj')} or {out.with_suffix('.glb')}")
    if texture and skin is None:
        raise InputError(f"--texture: {source} says nothing of the skin; encode does, of a head with albedo")
    if texture and skin is not None and out.suffix.lower() == ".obj":
        save_textured(out, head, vertices, skin)
    else:
        save(out, head, vertices, skin)
    return Written(vertices, skin)


def vertices_of(source: Path, head: HeadModel, row: int, neutral: bool) -> tuple[Tensor, Tensor | None]:
    """Vertices (V, 3), metres, y up, and the sRGB texture (T, T, 3), if the file says one, of one row of `source`.

    Posed heads stand as the camera sees them, neutral ones look ahead without expression.

    Args:
        source: a file of `encode` or a `track.npz`.

    Raises:
        InputError: another file, a row that is not there, another head model.
    """
    texture = None
    if str(read_npz(source).get("format")) == track_format.FORMAT:
        track = track_format.read(source)
        _check(source, track.head_model, head, row, len(track))
        if neutral:
            return head(torch.from_numpy(track.shape[None]))[0], None
        posed = track.vertices(head, np.array([row]))[0]
    else:
        found = encodings.read(source)
        _check(source, found.head_model, head, row, len(found.names))
        parts = found.parts([row])
        if head.albedo_mean is not None:
            texture = mouth.painted(
                head, vector.albedo(head, parts)[0], None if found.mouths is None else found.mouths[row]
            )
        arguments = vector.head_arguments(head, parts)
        if neutral:
            return head(arguments["shape"])[0], texture
        R, t, _ = found.head_pose(head, row)
        posed = head(**arguments)[0] @ R.T + t
    return posed * torch.tensor(UPRIGHT), texture


def _check(source: Path, name: str, head: HeadModel, row: int, rows: int) -> None:
    if name != head.name:
        raise InputError(f"{source} belongs to the head model {name}, not {head.name}; give that with --head-model")
    if not 0 <= row < rows:
        raise InputError(f"--row {row} is not in {source}, which has rows 0 to {rows - 1}")


def save(path: Path, head: HeadModel, vertices: Tensor, texture: Tensor | None) -> None:
    """Write a mesh atomically; glTF with texture coordinates and, where given, the texture.

    OBJ and PLY keep the head model's own vertices, in order. Raises InputError for another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} has no suffix of a mesh; give one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() in (".obj", ".ply") or head.vt is None or head.ft is None:
        mesh = trimesh.Trimesh(vertices.numpy(), head.faces.numpy(), process=False)
    else:
        mesh = _unwelded(head, vertices, texture)
    with atomic_path(path) as temporary:
        # Files beside a .gltf would lose their names: its buffers are written into it.
        if path.suffix.lower() == ".gltf":
            gltf: Any = trimesh.exchange.gltf  # has no types
            files = gltf.export_gltf(trimesh.Scene(mesh), embed_buffers=True)
            temporary.write_bytes(files["model.gltf"])
        else:
            mesh.export(temporary, file_type=path.suffix[1:].lower())


def save_textured(path: Path, head: HeadModel, vertices: Tensor, texture: Tensor) -> None:
    """Write an OBJ with texture coordinates, `<stem>.mtl` and `<stem>.png`: all or none.

    Args:
        texture: (T, T, 3) sRGB in [0, 1].
    """
    assert head.vt is not None and head.ft is not None
    material, picture = path.with_suffix(".mtl"), path.with_suffix(".png")
    lines = [f"mtllib {material.name}", "usemtl skin"]
    lines += [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in vertices.tolist()]
    lines += [f"vt {u:.6g} {v:.6g}" for u, v in head.vt.tolist()]
    corners = zip((head.faces + 1).tolist(), (head.ft + 1).tolist())
    lines += ["f " + " ".join(f"{v}/{t}" for v, t in zip(*face)) for face in corners]
    with atomic_path(picture) as image, atomic_path(material) as mtl, atomic_path(path) as obj:
        write_png(image, (texture * 255).round().byte().numpy())
        mtl.write_text(f"newmtl skin\nKd 1 1 1\nmap_Kd {picture.name}\n", encoding="utf-8")
        obj.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _unwelded(head: HeadModel, vertices: Tensor, texture: Tensor | None) -> trimesh.Trimesh:
    """One vertex per texture coordinate, as glTF wants them."""
    from PIL import Image

    assert head.vt is not None and head.ft is not None
    owner = torch.zeros(len(head.vt), dtype=torch.long)
    owner[head.ft.flatten()] = head.faces.flatten()
    image = None
    if texture is not None:
        image = Image.fromarray((texture * 255).round().byte().numpy())
    looks: Any = trimesh.visual  # has no types
    visual = looks.TextureVisuals(
        uv=head.vt.numpy(),
        material=looks.material.PBRMaterial(baseColorTexture=image, metallicFactor=0.0, roughnessFactor=0.7),
    )
    return trimesh.Trimesh(vertices[owner].numpy(), head.ft.numpy(), visual=visual, process=False)
