"""Antialiasing of silhouettes, which is where gradients of visibility come from (Laine et al. 2020, section 3.4)."""

import numpy as np
import torch
from torch import Tensor

from recon4d.mesh.rasterize import Rasterization


def edge_neighbours(tri: Tensor) -> Tensor:
    """The vertex opposite each edge in the triangle on its other side: tri (F, 3) -> (F, 3) int64, -1 at borders.

    Edge e of a triangle runs from corner e to corner e + 1. Where more than two triangles share an edge, each gets
    one of the others.
    """
    faces = tri.detach().cpu().numpy().astype(np.int64)
    if len(faces) == 0:
        return torch.empty(0, 3, dtype=torch.int64, device=tri.device)
    ends = np.stack([faces, faces[:, [1, 2, 0]]], -1).reshape(-1, 2)
    opposite = faces[:, [2, 0, 1]].reshape(-1)
    ends.sort(axis=1)
    key = ends[:, 0] * (faces.max() + 1) + ends[:, 1]
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    same = ordered[1:] == ordered[:-1]
    neighbour = np.full(len(key), -1, np.int64)
    first, second = order[:-1][same], order[1:][same]
    neighbour[second] = opposite[first]
    neighbour[first] = opposite[second]
    return torch.from_numpy(neighbour.reshape(-1, 3)).to(tri.device)


def _crossings(
    screen: Tensor,
    usable: Tensor,
    tri: Tensor,
    neighbours: Tensor,
    item: Tensor,
    face: Tensor,
    start: Tensor,
    axis: int,
    sign: Tensor,
) -> tuple[Tensor, Tensor]:
    """Where a silhouette edge of `face` crosses the segment from one pixel centre to the next.

    Args:
        screen: (B, V, 2) pixels. usable: (B, V) bool. item, face: (N,) image and nearer triangle. start: (N, 2) its
            pixel centre. axis: 0 for horizontal neighbours, 1 for vertical. sign: (N,) +-1, towards the neighbour.

    Returns:
        t: (N,) in [0, 1] along the segment, and whether there is a crossing (N,).
    """
    corner = tri.long()[face]  # (N, 3)
    follow = corner[:, [1, 2, 0]]
    third = corner[:, [2, 0, 1]]
    beyond = neighbours[face]
    at = item[:, None]
    a, b, c = screen[at, corner], screen[at, follow], screen[at, third]  # (N, 3 edges, 2)
    d = screen[at, beyond.clamp(min=0)]
    edge = b - a

    def side(point: Tensor) -> Tensor:
        return edge[..., 0] * (point[..., 1] - a[..., 1]) - edge[..., 1] * (point[..., 0] - a[..., 0])

    silhouette = (beyond < 0) | ((side(c) * side(d) > 0) & usable[at, beyond.clamp(min=0)])
    other = 1 - axis
    upright = edge[..., other].abs() >= edge[..., axis].abs()
    offset = start[:, None, other] - a[..., other]
    run = edge[..., other]
    fraction = offset / torch.where(run == 0, torch.ones_like(run), run)
    t = (a[..., axis] + fraction * edge[..., axis] - start[:, None, axis]) * sign[:, None]
    valid = silhouette & upright & (run != 0) & (fraction >= 0) & (fraction <= 1) & (t >= 0) & (t <= 1)
    valid = valid & usable[at, corner] & usable[at, follow]
    # of several edges take the nearest to the neighbour: the outline of the triangle that is seen
    best = torch.where(valid, t.detach(), -1.0).argmax(-1)
    pick = best[:, None]
    return t.gather(1, pick)[:, 0], valid.gather(1, pick)[:, 0]


def antialias(
    color: Tensor, rast: Rasterization, pos_clip: Tensor, tri: Tensor, neighbours: Tensor | None = None
) -> Tensor:
    """Blend pixels across the silhouette edges that pass between their centres; differentiable in colour and position.

    For neighbouring pixels of different triangles, a silhouette edge of the nearer one that crosses the segment
    between the two centres at t (0 at the nearer's centre) covers part of one of the two pixels: for t < 1/2 the
    nearer's pixel takes 1/2 - t of the other's colour, else the other takes t - 1/2 of the nearer's. An edge is a
    silhouette where it has no second triangle, or both lie on its same side. Only the edges of the triangles that
    pixels see are looked at, as in the paper: outlines of triangles too small to be seen are missed.

    Args:
        color: (B, H, W, C). rast: of the same `pos_clip` (B, V, 4) and `tri` (F, 3).
        neighbours: what `edge_neighbours(tri)` returns, to save finding it in every call.
    """
    if color.ndim != 4 or color.shape[:3] != rast.tri_id.shape:
        raise ValueError(f"color has shape {tuple(color.shape)}; give {(*rast.tri_id.shape, 'channels')} as rasterized")
    height, width = rast.tri_id.shape[1:]
    if neighbours is None:
        neighbours = edge_neighbours(tri)
    w = pos_clip[..., 3]
    usable = (w > 1e-9) & pos_clip.isfinite().all(-1)
    safe = torch.where(usable, w, 1.0)
    xy = torch.where(usable[..., None], pos_clip[..., :2], 0.0) / safe[..., None]
    screen = torch.stack([(xy[..., 0] + 1) * (width / 2), (1 - xy[..., 1]) * (height / 2)], -1)
    tri_id, depth = rast.tri_id, rast.depth.detach()
    flat = color.reshape(-1, color.shape[-1])
    out = flat
    for axis in (0, 1):
        if axis == 0:
            one, two, near, far = tri_id[:, :, :-1], tri_id[:, :, 1:], depth[:, :, :-1], depth[:, :, 1:]
        else:
            one, two, near, far = tri_id[:, :-1], tri_id[:, 1:], depth[:, :-1], depth[:, 1:]
        item, row, column = (one != two).nonzero(as_tuple=True)
        if len(item) == 0:
            continue
        first, second = one[item, row, column], two[item, row, column]
        nearer = (second < 0) | ((first >= 0) & (near[item, row, column] <= far[item, row, column]))
        face = torch.where(nearer, first, second).long()
        here = (item * height + row) * width + column
        there = here + (1 if axis == 0 else width)
        own, opposite = torch.where(nearer, here, there), torch.where(nearer, there, here)
        start = torch.stack([column, row], -1).to(screen) + 0.5
        start[:, axis] += (~nearer).to(screen)
        sign = torch.where(nearer, 1.0, -1.0).to(screen)
        t, valid = _crossings(screen, usable, tri, neighbours, item, face, start, axis, sign)
        keep = valid.nonzero()[:, 0]
        t, own, opposite = t[keep], own[keep], opposite[keep]
        inner = t < 0.5
        target, source = torch.where(inner, own, opposite), torch.where(inner, opposite, own)
        share = torch.where(inner, 0.5 - t, t - 0.5).to(color)[:, None]  # not abs(): its slope at 0 is 0
        out = out.index_add(0, target, share * (flat[source] - flat[target]))
    return out.view(color.shape)
