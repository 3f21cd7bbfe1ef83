"""Which triangle each pixel sees: the one discrete step of mesh rendering, and the only one a backend provides."""

import importlib.util
import os
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon4d.files import InputError
from recon4d.mesh.barycentric import barycentrics

CULL = {None: 0, "none": 0, "back": 1, "front": 2}


def backends() -> dict[str, str | None]:
    """The visibility backends: name -> None if usable here, else the reason why not."""
    return {"numba": None, "nvdiffrast": _nvdiffrast_reason(), "pytorch3d": _pytorch3d_reason()}


@lru_cache
def _nvdiffrast_reason() -> str | None:
    if importlib.util.find_spec("nvdiffrast") is None:
        return "nvdiffrast is not installed (install recon4d[cuda])"
    if not torch.cuda.is_available():
        return "nvdiffrast needs a CUDA device"
    return None


@lru_cache
def _pytorch3d_reason() -> str | None:
    if importlib.util.find_spec("pytorch3d") is None:
        return "pytorch3d is not installed (install recon4d[pytorch3d])"
    try:
        import pytorch3d._C  # noqa: F401
    except ImportError as error:
        return f"pytorch3d does not load ({error})"
    return None


def choose_backend(device: torch.device, backend: str | None = None) -> str:
    """The backend to use: the keyword, else the variable RECON4D_MESH_BACKEND, else by device.

    On CUDA nvdiffrast, else PyTorch3D, else numba (through the host); on the CPU numba.
    """
    usable = backends()
    name = backend or os.environ.get("RECON4D_MESH_BACKEND") or None
    if name is not None:
        if name not in usable:
            raise InputError(f"mesh backend {name!r} does not exist; choose one of {', '.join(usable)}")
        if usable[name] is not None:
            raise InputError(f"mesh backend {name!r} is not usable: {usable[name]}")
        if name == "nvdiffrast" and device.type != "cuda":
            raise InputError(
                "mesh backend 'nvdiffrast' renders CUDA tensors only; move them to the GPU or choose 'numba'"
            )
        return name
    if device.type == "cuda":
        for name in ("nvdiffrast", "pytorch3d"):
            if usable[name] is None:
                return name
    return "numba"


def check(pos_clip: Tensor, tri: Tensor, size: tuple[int, int], cull: str | None) -> None:
    """Raise ValueError where shapes, types or options of a rasterization are wrong."""
    if pos_clip.ndim != 3 or pos_clip.shape[-1] != 4 or not pos_clip.is_floating_point():
        raise ValueError(f"pos_clip has shape {tuple(pos_clip.shape)}; give floating-point (batch, vertices, 4)")
    if tri.ndim != 2 or tri.shape[-1] != 3 or tri.is_floating_point() or tri.dtype == torch.bool:
        raise ValueError(f"tri has shape {tuple(tri.shape)} and type {tri.dtype}; give integers (triangles, 3)")
    if len(size) != 2 or min(size) < 1 or max(size) > 16384:
        raise ValueError(f"image size {tuple(size)} is out of range; give (height, width) from 1 to 16384")
    if cull not in CULL:
        raise ValueError(f"cull={cull!r} is unknown; choose None, 'back' or 'front'")


def visibility(
    pos_clip: Tensor, tri: Tensor, size: tuple[int, int], backend: str | None = None, cull: str | None = None
) -> tuple[Tensor, Tensor]:
    """Find the nearest triangle at every pixel centre. Not differentiable; `rasterize` adds what is.

    Triangles that cross the near plane (z = -w) are clipped; fragments beyond the far plane (z = w) are dropped;
    a pixel centre on a shared edge goes to one triangle (top-left rule); of equally near triangles the first wins.
    Degenerate triangles and those with a NaN or infinite vertex cover nothing.

    Args:
        pos_clip: (B, V, 4) OpenGL clip space: x right, y up, z towards the far plane, w > 0 in front of the camera.
        tri: (F, 3) integers, vertices of each triangle; the batch shares them.
        size: (height, width) in pixels, up to 16384.
        backend: "numba", "nvdiffrast" or "pytorch3d"; None chooses by device (see `choose_backend`).
        cull: "back" drops triangles that are clockwise on the screen, "front" the others, None keeps both.

    Returns:
        tri_id: (B, H, W) int32, -1 where nothing is seen; row 0 is the top of the image.
        depth: (B, H, W) float32 NDC z in [-1, 1], 1 where nothing is seen.

    Raises:
        ValueError: wrong shapes, a triangle naming a vertex that does not exist. InputError: an unusable backend.
    """
    check(pos_clip, tri, size, cull)
    name = choose_backend(pos_clip.device, backend)
    height, width = int(size[0]), int(size[1])
    batch, vertices = pos_clip.shape[:2]
    if batch * vertices * len(tri) == 0:
        shape = (batch, height, width)
        if len(tri) and batch:
            raise ValueError(f"tri names vertices but pos_clip has none (shape {tuple(pos_clip.shape)})")
        return (
            torch.full(shape, -1, dtype=torch.int32, device=pos_clip.device),
            torch.ones(shape, dtype=torch.float32, device=pos_clip.device),
        )
    with torch.no_grad():
        pos = pos_clip.detach().to(torch.float32)
        render = {"numba": _numba, "nvdiffrast": _nvdiffrast, "pytorch3d": _pytorch3d}[name]
        return render(pos, tri, height, width, CULL[cull])


def _numba(pos: Tensor, tri: Tensor, height: int, width: int, cull: int) -> tuple[Tensor, Tensor]:
    from recon4d import threads
    from recon4d.mesh import scanline

    points = pos.cpu().contiguous().numpy()
    faces = tri.detach().to("cpu", torch.int32).contiguous().numpy()
    tri_id = np.empty((len(points), height * width), np.int32)
    depth = np.empty((len(points), height * width), np.float32)
    threads.announce_compile("the mesh rasterizer", 10, scanline._draw_bands)
    if scanline.draw(points, faces, height, width, cull, tri_id, depth):
        raise ValueError(f"tri names vertices outside 0..{pos.shape[1] - 1}; check that it belongs to these vertices")
    shape = (len(points), height, width)
    return torch.from_numpy(tri_id).view(shape).to(pos.device), torch.from_numpy(depth).view(shape).to(pos.device)


def _check_indices(tri: Tensor, vertices: int) -> None:
    if int(tri.min()) < 0 or int(tri.max()) >= vertices:
        raise ValueError(f"tri names vertices outside 0..{vertices - 1}; check that it belongs to these vertices")


@lru_cache
def _nvdiffrast_context(device: str) -> Any:
    import nvdiffrast.torch as dr

    try:
        return dr.RasterizeCudaContext(device=device)
    except ModuleNotFoundError as error:
        # nvdiffrast 0.3 looks for what PyTorch has just compiled by its name, which PyTorch 2.11 does not make known
        from torch.utils.cpp_extension import _get_build_directory

        if error.name is None or not error.name.startswith("nvdiffrast_plugin"):
            raise
        sys.path.append(_get_build_directory(error.name, verbose=False))
        return dr.RasterizeCudaContext(device=device)


def _nvdiffrast(pos: Tensor, tri: Tensor, height: int, width: int, cull: int) -> tuple[Tensor, Tensor]:
    import nvdiffrast.torch as dr

    _check_indices(tri, pos.shape[1])
    tri = tri.to(pos.device, torch.int32).contiguous()
    if cull:  # nvdiffrast draws both sides, so each item drops its own triangles, in range mode
        return _per_item(_nvdiffrast, pos, tri, height, width, cull)
    rast, _ = dr.rasterize(_nvdiffrast_context(str(pos.device)), pos.contiguous(), tri, (height, width), grad_db=False)
    rast = rast.flip(1)  # its row 0 is at the bottom
    tri_id = rast[..., 3].to(torch.int32) - 1
    return tri_id.contiguous(), torch.where(tri_id >= 0, rast[..., 2], 1.0).contiguous()


def _per_item(render: Any, pos: Tensor, tri: Tensor, height: int, width: int, cull: int) -> tuple[Tensor, Tensor]:
    """Cull per batch item for a backend that cannot, then render the rest and name the triangles as before."""
    ids, depths = [], []
    for item in pos:
        keep = (facing(item, tri) > 0) if cull == 1 else (facing(item, tri) < 0)
        kept = keep.nonzero()[:, 0]
        if len(kept) == 0:
            ids.append(torch.full((1, height, width), -1, dtype=torch.int32, device=pos.device))
            depths.append(torch.ones((1, height, width), device=pos.device))
            continue
        tri_id, depth = render(item[None], tri[kept], height, width, 0)
        ids.append(torch.where(tri_id >= 0, kept[tri_id.clamp(min=0).long()].int(), -1))
        depths.append(depth)
    return torch.cat(ids), torch.cat(depths)


def facing(pos: Tensor, tri: Tensor) -> Tensor:
    """Positive where a triangle is counterclockwise on the screen (front), whatever the signs of w.

    pos (..., V, 4) clip space, tri (F, 3) -> (..., F): the determinant of the (x, y, w) rows (Olano and Greer 1997),
    in float64.
    """
    corners = pos[..., tri.long(), :][..., [0, 1, 3]].double()
    determinant: Tensor = torch.linalg.det(corners)
    return determinant


def _pytorch3d(pos: Tensor, tri: Tensor, height: int, width: int, cull: int) -> tuple[Tensor, Tensor]:
    """PyTorch3D's rasterizer (blur 0, one face per pixel) on NDC coordinates, near plane clipped beforehand."""
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    _check_indices(tri, pos.shape[1])
    tri = tri.to(pos.device).long()
    if cull:
        return _per_item(_pytorch3d, pos, tri, height, width, cull)
    vertices, faces, owners = [], [], []
    for item in pos:
        corners, owner = _near_clipped(item, tri)
        vertices.append(corners[:, :3] / corners[:, 3:])
        faces.append(torch.arange(len(corners), device=pos.device).view(-1, 3))
        owners.append(owner)
    tri_id = torch.full((len(pos), height, width), -1, dtype=torch.int32, device=pos.device)
    depth = torch.ones((len(pos), height, width), device=pos.device)
    some = [i for i in range(len(pos)) if len(owners[i])]
    if not some:
        return tri_id, depth
    # its NDC has x left, y up, +-1 over the shorter side; z must be positive. Its barycentrics are off by 1e-8 /
    # area, and the depth with them, so z is moved no further than needed and the exact depth found afterwards
    short = min(height, width)
    scale = torch.tensor([-width / short, height / short, 1.0], device=pos.device)
    meshes = Meshes(
        [vertices[i] * scale + torch.tensor([0.0, 0.0, 1.001], device=pos.device) for i in some],
        [faces[i] for i in some],
    )
    found, _, _, _ = rasterize_meshes(meshes, (height, width), blur_radius=0.0, faces_per_pixel=1)
    owner = torch.cat([owners[i] for i in some])
    tri_id[some] = torch.where(found[..., 0] >= 0, owner[found[..., 0].clamp(min=0)].int(), -1)
    _, depth = barycentrics(pos, tri, tri_id)
    return torch.where(depth < 1, tri_id, -1), depth.clamp(-1.0, 1.0)


def _near_clipped(pos: Tensor, tri: Tensor) -> tuple[Tensor, Tensor]:
    """Corners (3 N, 4) of the triangles left of (V, 4), (F, 3) after near-plane clipping, and whose they are (N,)."""
    corners = pos[tri]  # (F, 3, 4)
    finite = corners.isfinite().all(-1).all(-1)
    inside = (corners[..., 3] > 1e-9) & (corners[..., 2] >= -corners[..., 3])
    whole = finite & inside.all(-1)
    crossing = (finite & inside.any(-1) & ~inside.all(-1)).nonzero()[:, 0].tolist()
    pieces, owner = [corners[whole]], [whole.nonzero()[:, 0]]
    if crossing:
        from recon4d.mesh.scanline import clip_polygon

        polygon, scratch = np.empty((12, 4)), np.empty((12, 4))
        for f in crossing:
            polygon[:3] = corners[f].cpu().numpy()
            count = clip_polygon(polygon, scratch, 1e6, 1e6)
            for i in range(1, count - 1):
                pieces.append(torch.from_numpy(polygon[[0, i, i + 1]]).to(corners)[None])
                owner.append(torch.tensor([f], device=tri.device))
    return torch.cat(pieces).reshape(-1, 4), torch.cat(owner)
