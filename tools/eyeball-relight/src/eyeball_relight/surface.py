"""From a field to triangles: extraction, simplification, what the pictures saw, holes, texture coordinates."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recon4d import InputError, mesh
from scipy.ndimage import binary_dilation
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight import marching
from eyeball_relight.assets import Asset
from eyeball_relight.captures import Capture
from eyeball_relight.field import Field

COARSE = 4  # fine cells per coarse one
CHUNK = 16384


def extract(field: Field, active: list[int], resolution: int, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """A level of the face's distance, in bounds, by marching cubes: vertices (V, 3) in the capture's unit and
    faces (F, 3), outward.

    A grid of a quarter of the resolution is evaluated first, and the fine one only where the surface may be.

    Raises InputError where there is no surface.
    """
    from skimage.measure import marching_cubes

    coarse = resolution // COARSE
    points = marching.grid_points(coarse)
    rough = marching.face_distances(field, points.view(-1, 3), active).view(points.shape[:3]).numpy()
    corners = np.stack([rough[i : coarse + i, j : coarse + j, k : coarse + k] for i, j, k in np.ndindex(2, 2, 2)])
    near = (corners.min(0) <= 0) & (corners.max(0) >= 0)
    near |= np.abs(corners).min(0) < 2 / coarse  # a thin part need not change a sign at the corners
    if not (corners.min(0) <= 0).any():
        raise InputError("the field has no surface inside the bounds; raise data.bound or train longer")
    near = binary_dilation(near)
    fine = coarse * COARSE
    values = np.repeat(np.repeat(np.repeat(rough[:-1, :-1, :-1], COARSE, 0), COARSE, 1), COARSE, 2)
    values = np.pad(values, ((0, 1),) * 3, mode="edge")
    wanted = np.zeros(values.shape, bool)
    wanted[:-1, :-1, :-1] = np.repeat(np.repeat(np.repeat(near, COARSE, 0), COARSE, 1), COARSE, 2)
    wanted = binary_dilation(wanted)
    index = np.argwhere(wanted)
    at = torch.from_numpy(index * (2 / fine) - 1).float()
    values[tuple(index.T)] = marching.face_distances(field, at, active).numpy()
    cubes: Any = marching_cubes
    vertices, faces, _, _ = cubes(values, level, gradient_direction="descent")
    vertices = (vertices * (2 / fine) - 1) * field.config.data.bound
    return torch.from_numpy(vertices.astype(np.float32)), torch.from_numpy(faces.astype(np.int64))


def normals_of(field: Field, vertices: Tensor, active: list[int]) -> Tensor:
    """Unit normals (V, 3) of the face's distances at vertices (V, 3) in the capture's unit, on their device."""
    found, device = [], field.device
    with torch.no_grad():
        for part in (vertices / field.config.data.bound).split(CHUNK):
            with torch.enable_grad():
                gradient = field.face_gradient(part.to(device), active)[2].detach()
            found.append(normalize(gradient, dim=-1).to(part.device))
    return torch.cat(found)


def simplify(vertices: Tensor, faces: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """The mesh reduced to about `target` triangles (Garland and Heckbert 1997); itself if it has no more."""
    import fast_simplification

    if len(faces) <= target:
        return vertices, faces
    points, triangles = fast_simplification.simplify(
        vertices.numpy(), faces.numpy().astype(np.int32), target_count=int(target)
    )
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(triangles.astype(np.int64))


def seen(vertices: Tensor, faces: Tensor, others: Asset, capture: Capture) -> Tensor:
    """Which triangles (F,) some picture sees inside its mask, with `others` (eyeballs) in the way."""
    every = torch.cat([vertices] + [s.vertices for s in others.values()])
    triangles, offset = [faces], len(vertices)
    for surface in others.values():
        triangles.append(surface.faces + offset)
        offset += len(surface.vertices)
    found = torch.zeros(len(faces), dtype=torch.bool)
    for i in range(len(capture)):
        view = capture.view(i)
        view = view.resized(2 * view.width, 2 * view.height)  # triangles may be smaller than pixels
        ids = mesh.visibility(view.clip(every[None]), torch.cat(triangles), (view.height, view.width))[0][0]
        inside = (capture.mask[i] > 127).repeat_interleave(2, 0).repeat_interleave(2, 1)
        ids = ids[inside].unique()
        found[ids[(ids >= 0) & (ids < len(faces))].long()] = True
    return found


def grown(chosen: Tensor, faces: Tensor, rings: int) -> Tensor:
    """The chosen triangles (F,) and those within so many rings around them."""
    for _ in range(rings):
        touched = torch.zeros(int(faces.max()) + 1, dtype=torch.bool)
        touched[faces[chosen].flatten()] = True
        chosen = chosen | touched[faces].any(1)
    return chosen


def compact(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """The mesh without vertices that no triangle uses."""
    used, index = faces.unique(return_inverse=True)
    return vertices[used], index


def largest_component(faces: Tensor) -> Tensor:
    """The triangles (F', 3) of the connected part that has most of them."""
    corners = faces.numpy()
    n = int(corners.max()) + 1
    rows, columns = corners[:, [0, 1]].ravel(), corners[:, [1, 2]].ravel()
    _, label = connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, n)), directed=False)
    of_face = label[corners[:, 0]]
    return faces[torch.from_numpy(of_face == np.bincount(of_face).argmax())]


def boundary_loops(faces: Tensor) -> list[list[int]]:
    """Closed loops of vertices along edges that belong to one triangle, in the direction that would close them.

    Where several loops meet in a vertex they are taken apart, so that each passes a vertex once.
    """
    corners = faces.numpy()
    edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    known = set(map(tuple, edges.tolist()))
    follow: dict[int, list[int]] = {}
    for a, b in sorted(known):
        if (b, a) not in known:
            follow.setdefault(b, []).append(a)
    loops: list[list[int]] = []
    for start in list(follow):
        path = [start]
        while follow.get(path[-1]):
            at = follow[path[-1]].pop()
            if at in path:
                first = path.index(at)
                loops.append(path[first:])
                del path[first:]
            path.append(at)
    return loops


def fill_holes(vertices: Tensor, faces: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Close holes of up to `most` edges by a fan around their middle."""
    new_vertices, new_faces, n = [vertices], [faces], len(vertices)
    for loop in boundary_loops(faces):
        if len(loop) > most:
            continue
        ring = torch.tensor(loop)
        new_vertices.append(vertices[ring].mean(0, keepdim=True))
        new_faces.append(torch.stack([ring, ring.roll(-1), torch.full_like(ring, n)], 1))
        n += 1
    return torch.cat(new_vertices), torch.cat(new_faces)


def unwrap(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Texture coordinates (T, 2) and their triangles (F, 3), by xatlas."""
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices.numpy(), faces.numpy().astype(np.uint32))
    charts = xatlas.ChartOptions()
    charts.max_iterations = 1
    packing = xatlas.PackOptions()
    packing.padding = 2
    packing.resolution = 1024
    packing.blockAlign = True  # places for charts are sought in steps of four texels
    atlas.generate(charts, packing)
    _, triangles, uv = atlas[0]
    return torch.from_numpy(uv.astype(np.float32)), torch.from_numpy(triangles.astype(np.int64))


def build(
    field: Field,
    active: list[int],
    capture: Capture,
    eyes: Asset,
    resolution: int,
    most_faces: int,
    log: Callable[[str], None],
) -> tuple[Tensor, Tensor]:
    """The face's mesh for export: extracted, halved, without what no picture sees, in one piece, small holes closed.

    Returns:
        vertices (V, 3) in the capture's unit, faces (F, 3).
    """
    vertices, faces = extract(field, active, resolution, field.level)
    whole = len(faces)
    vertices, faces = simplify(vertices, faces, min(whole // 2, most_faces))
    kept = grown(seen(vertices, faces, eyes, capture), faces, 2)
    if not bool(kept.any()):
        raise InputError("no picture sees the extracted surface inside its mask; check poses and masks")
    faces = largest_component(faces[kept])
    vertices, faces = compact(vertices, faces)
    vertices, faces = fill_holes(vertices, faces, most=60)
    log(f"mesh: {whole} triangles extracted, {len(faces)} kept")
    return vertices, faces
