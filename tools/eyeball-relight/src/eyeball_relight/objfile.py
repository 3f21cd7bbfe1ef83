"""Wavefront OBJ files."""

from pathlib import Path

import numpy as np
import torch
from recon4d import InputError, mesh
from recon4d.files import write_text

from eyeball_relight.assets import Surface


def write(path: Path, surface: Surface, material: str | None = None) -> None:
    """Write a surface with texture coordinates and normals; `material` names a map of it in an .mtl file beside."""
    lines = []
    if material is not None:
        write_text(path.with_suffix(".mtl"), f"newmtl skin\nKd 1 1 1\nmap_Kd {material}\n")
        lines += [f"mtllib {path.stem}.mtl", "usemtl skin"]
    lines += [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in surface.vertices.tolist()]
    lines += [f"vt {u:.7g} {v:.7g}" for u, v in surface.vt.tolist()]
    lines += [f"vn {x:.6g} {y:.6g} {z:.6g}" for x, y, z in surface.normals.tolist()]
    for corner, texture in zip((surface.faces + 1).tolist(), (surface.ft + 1).tolist()):
        lines.append("f " + " ".join(f"{v}/{t}/{v}" for v, t in zip(corner, texture)))
    write_text(path, "\n".join(lines) + "\n")


def read(path: Path) -> dict[str, torch.Tensor]:
    """Vertices and normals (V, 3), vt (T, 2), faces (F, 3), ft (F, 3) of a triangle mesh with texture coordinates.

    Normals are those of the file where it has one per vertex, in their order, else they are computed.

    Raises InputError for a missing file, faces that are not triangles, or indices that lead nowhere.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; export an asset first")
    rows: dict[str, list[list[str]]] = {"v": [], "vt": [], "vn": [], "f": []}
    for line in path.read_text(errors="replace").splitlines():
        kind, *words = line.split() or [""]
        if kind in rows:
            rows[kind].append(words)
    try:
        vertices = np.array(rows["v"], np.float32)[:, :3]
        vt = np.array(rows["vt"], np.float32)[:, :2]
        normals = np.array(rows["vn"], np.float32)
        corners = np.array([[word.split("/")[:2] for word in words] for words in rows["f"]]).astype(np.int64) - 1
        faces, ft = corners[..., 0], corners[..., 1]
        fine = corners.shape[1:] == (3, 2) and corners.min() >= 0
        fine = fine and faces.max() < len(vertices) and ft.max() < len(vt)
        fine = fine and all(np.isfinite(values).all() for values in (vertices, vt, normals))
    except (ValueError, IndexError, OverflowError):
        fine = False
    if not fine:
        raise InputError(f"{path} is not a whole OBJ file of triangles with texture coordinates; write it again")
    arrays = {"vertices": vertices, "normals": normals, "vt": vt, "faces": faces, "ft": ft}
    out = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    if normals.shape != vertices.shape:
        out["normals"] = mesh.vertex_normals(out["vertices"], out["faces"])
    return out
