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
    rows: dict[str, list[str]] = {"v": [], "vt": [], "vn": [], "f": []}
    for line in path.read_text(errors="replace").splitlines():
        kind = line.split(maxsplit=1)[:1]
        if kind and kind[0] in rows:
            rows[kind[0]].append(line)
    try:
        vertices = _table(rows["v"], range(1, 4), np.float32)
        vt = _table(rows["vt"], range(1, 3), np.float32)
        normals = _table(rows["vn"], range(1, 4), np.float32)
        parts = rows["f"][0].split()[1].count("/") + 1  # of a corner: vertex, texture, and a normal or none
        slashes = 3 * (parts - 1) * len(rows["f"])
        corners = _table([row.replace("/", " ") for row in rows["f"]], range(1, 3 * parts + 1), np.int64) - 1
        faces, ft = corners[:, 0::parts], corners[:, 1::parts]
        fine = parts > 1 and "".join(rows["f"]).count("/") == slashes
        fine = fine and all(len(row.split()) == 4 for row in rows["f"])
        fine = fine and corners.min() >= 0 and faces.max() < len(vertices) and ft.max() < len(vt)
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


def _table(rows: list[str], columns: range, kind: type) -> np.ndarray:
    """Columns of lines of numbers, (N, C). Raises ValueError for anything else."""
    return np.loadtxt(rows, kind, usecols=columns, ndmin=2) if rows else np.empty((0, len(columns)), kind)
