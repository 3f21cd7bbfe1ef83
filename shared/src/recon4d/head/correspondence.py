"""Which points of two head models are the same place of a head: found from their landmarks and surfaces alone.

The target's mean head is laid on the source's: landmarks first, then the nearest surface that faces the same way, with
a displacement that is smooth over the mesh and less so from step to step (Amberg et al., "Optimal step nonrigid ICP
algorithms for surface registration", 2007, with translations instead of affine maps).
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from scipy.interpolate import RBFInterpolator
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from torch import Tensor

from recon4d.files import InputError
from recon4d.head.model import HeadModel
from recon4d.mesh import vertex_normals

JAW_LINE = 17  # the first landmarks, which are where a picture's outline is and no fixed place
STIFFNESS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.5)
TURN = 0.02  # metres that a normal's change by 1 counts for in a search for the nearest point
FURTHEST, BESIDE, ALIGNED = 0.003, 0.003, 0.6  # metres, metres, cosine: what is kept
REACH = 0.03  # metres to the surface while heads are laid on each other
LANDMARKS = 0.25  # their share of all weights
STILL = 0.02  # weight of what no expression moves, of what moves most


@dataclass(frozen=True, eq=False)
class Correspondence:
    """P points on the source and on the target: faces (P,), bary (P, 3) of each, and weights (P,) that sum to 1."""

    source_faces: Tensor
    source_bary: Tensor
    target_faces: Tensor
    target_bary: Tensor
    weights: Tensor

    def on_source(self, head: HeadModel, vertices: Tensor) -> Tensor:
        """The points (B, P, 3) on the source's posed vertices (B, V, 3)."""
        return points(vertices, head.faces, self.source_faces, self.source_bary)

    def on_target(self, head: HeadModel, vertices: Tensor) -> Tensor:
        """The points (B, P, 3) on the target's posed vertices (B, V, 3)."""
        return points(vertices, head.faces, self.target_faces, self.target_bary)


def points(vertices: Tensor, faces: Tensor, chosen: Tensor, bary: Tensor) -> Tensor:
    """Points (B, P, 3) of vertices (B, V, 3) on chosen faces (P,) at bary (P, 3)."""
    return (vertices[:, faces[chosen]] * bary[:, :, None]).sum(2)


def skin(head: HeadModel) -> Tensor:
    """(V,) bool: what is seen of a head from outside, without its eyeballs and the inside of its mouth."""
    if head.regions:
        inner = [mask for name, mask in head.regions.items() if name in ("eyes", "mouth_interior")]
        outer = [mask for name, mask in head.regions.items() if name in ("face", "scalp", "ears", "neck")]
        if outer:
            return torch.stack(outer).any(0) & ~torch.stack([*inner, torch.zeros_like(outer[0])]).any(0)
    return head.weights[:, 3:].sum(1) < 0.5


@torch.no_grad()
def match(source: HeadModel, target: HeadModel, count: int = 1500, seed: int = 0) -> Correspondence:
    """The points of the target's skin that the source has too.

    Args:
        count: how many of the target's vertices are kept at most, beside the landmarks. seed: of their choice.

    Raises:
        InputError: a head model without landmarks, or heads that do not lie on each other.
    """
    for head in (source, target):
        if head.landmark_faces is None or head.landmark_bary is None:
            raise InputError(
                f"the head model {head.name} has no landmarks, which tell how two models lie on each other; "
                "put landmark_embedding.npy beside it"
            )
    surface = _Skin.of(source)
    laid = _laid(source, target, surface)
    faces, bary, apart, kept = _nearest(surface, laid, target.faces)
    area = _vertex_area(target) * _motion(target)
    found = skin(target).numpy() & (apart < FURTHEST) & kept & (area > 0)
    there = np.flatnonzero(found)
    if len(there) < 100:
        raise InputError(f"the head models {source.name} and {target.name} do not lie on each other by their landmarks")
    if len(there) > count:
        there = np.sort(np.random.default_rng(seed).choice(there, count, replace=False))
    owner = np.zeros(len(area), np.int64)
    owner[target.faces.numpy()] = np.arange(len(target.faces))[:, None]
    own = target.faces.numpy()[owner[there]] == there[:, None]
    assert source.landmark_faces is not None and source.landmark_bary is not None
    assert target.landmark_faces is not None and target.landmark_bary is not None
    inner = slice(JAW_LINE, None)
    weights = np.concatenate([(1 - LANDMARKS) * area[there] / area[there].sum(), np.full(51, LANDMARKS / 51)])
    return Correspondence(
        torch.cat([torch.from_numpy(surface.faces[faces[there]]), source.landmark_faces[inner]]),
        torch.cat([_tensor(bary[there]), source.landmark_bary[inner]]),
        torch.cat([torch.from_numpy(owner[there]), target.landmark_faces[inner]]),
        torch.cat([_tensor(own), target.landmark_bary[inner]]),
        _tensor(weights),
    )


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _laid(source: HeadModel, target: HeadModel, surface: "_Skin") -> np.ndarray:
    """The target's mean head (V, 3) laid on the source's."""
    wanted, have = (head.landmarks(head.v_template[None])[0].double().numpy() for head in (source, target))
    trust = np.where(np.arange(len(have)) < JAW_LINE, 0.1, 1.0)
    scale, R, t = similar(have, wanted, trust)
    start = scale * target.v_template.double().numpy() @ R.T + t
    have = scale * have @ R.T + t
    inner = slice(JAW_LINE, None)
    bend = RBFInterpolator(have[inner], (wanted - have)[inner], kernel="linear", smoothing=1e-3, degree=0)
    moved = bend(start)
    outside = skin(target).numpy()
    n, faces = len(start), target.faces.numpy()
    assert target.landmark_faces is not None and target.landmark_bary is not None
    rows = np.repeat(np.arange(51), 3)
    corners = faces[target.landmark_faces.numpy()[inner]].ravel()
    places = scipy.sparse.csr_matrix((target.landmark_bary.numpy()[inner].ravel(), (rows, corners)), (51, n))
    smooth = _laplacian(faces, n)
    smooth = smooth.T @ smooth
    pull = places.T @ (wanted[inner] - places @ start)
    for stiffness in STIFFNESS:
        laid = start + moved
        on, bary, apart, kept = _nearest(surface, laid, target.faces)
        nearest = (surface.corners[on] * bary[..., None]).sum(1)
        trusted = (outside & kept & (apart < REACH)).astype(float)
        system = scipy.sparse.diags(trusted + 1e-3) + stiffness * smooth + places.T @ places
        right = trusted[:, None] * (nearest - start) + 1e-3 * moved + pull
        moved = splu(system.tocsc()).solve(right)
    answer: np.ndarray = start + moved
    return answer


def similar(have: np.ndarray, wanted: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation (3, 3) and translation that bring points (P, 3) nearest to others (Umeyama 1991)."""
    share = weights / weights.sum()
    a, b = have - share @ have, wanted - share @ wanted
    u, s, vt = np.linalg.svd((b * share[:, None]).T @ a)
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    R = u @ sign @ vt
    scale = float((s * np.diag(sign)).sum() / (share @ (a * a)).sum())
    return scale, R, share @ wanted - scale * R @ (share @ have)


def _laplacian(faces: np.ndarray, n: int) -> scipy.sparse.csr_matrix:
    """(n, n): each vertex less the mean of its neighbours."""
    i, j = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).T
    beside = scipy.sparse.coo_matrix((np.ones(2 * len(i)), (np.append(i, j), np.append(j, i))), (n, n)).tocsr()
    beside.data[:] = 1
    degree = np.asarray(beside.sum(1))[:, 0]
    own = scipy.sparse.diags((degree > 0).astype(float))
    return (own - scipy.sparse.diags(1 / np.maximum(degree, 1)) @ beside).tocsr()


def _vertex_area(head: HeadModel) -> np.ndarray:
    """(V,) a third of the area of the faces about each vertex."""
    corners = head.v_template[head.faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1) / 6
    return np.bincount(head.faces.numpy().ravel(), area.repeat_interleave(3).numpy(), len(head.v_template))


def _motion(head: HeadModel) -> np.ndarray:
    """(V,) how much the face's expressions and the jaw move each vertex, from `STILL` to 1."""
    jaw = head.weights[:, 2] * (head.v_template - head.joints()[0, 2]).norm(dim=1) * 0.2
    moved = (head.expressiondirs.square().sum((1, 2)) + jaw.square()).sqrt().numpy()
    answer: np.ndarray = (moved / max(np.quantile(moved, 0.95), 1e-12)).clip(STILL, 1)
    return answer


@dataclass(frozen=True, eq=False)
class _Skin:
    """Samples of a head model's skin to search in, all over each of its triangles."""

    faces: np.ndarray  # (F,) which are skin
    corners: np.ndarray  # (F, 3, 3)
    grid: np.ndarray  # (G, 3) bary of the samples of a triangle
    facing: np.ndarray  # (F G, 3) their normals
    places: np.ndarray  # (F G, 6) their points and normals, as they are searched
    tree: cKDTree

    @staticmethod
    def of(head: HeadModel, steps: int = 4) -> "_Skin":
        tri, outside = head.faces.numpy(), skin(head).numpy()
        chosen = np.flatnonzero(outside[tri].all(1))
        corners = head.v_template.double().numpy()[tri[chosen]]
        shading = vertex_normals(head.v_template[None], head.faces)[0].double().numpy()[tri[chosen]]
        grid = np.array([[i, j, steps - i - j] for i in range(steps + 1) for j in range(steps + 1 - i)]) / steps
        samples, facing = (np.einsum("gk,fkc->fgc", grid, values).reshape(-1, 3) for values in (corners, shading))
        facing = facing / np.maximum(np.linalg.norm(facing, axis=1, keepdims=True), 1e-12)
        places = np.hstack([samples, TURN * facing])
        return _Skin(chosen, corners, grid, facing, places, cKDTree(places))


def _nearest(
    surface: _Skin, positions: np.ndarray, tri: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The nearest points of a skin to a mesh's vertices (P, 3) that face the same way.

    Returns:
        Rows (P,) of `surface.corners`, bary (P, 3), distances (P,), and (P,) bool whether the normals agree and the
        vertex is the nearest to that point too, or beside it: what lies behind the skin, such as the inside of a
        mouth, is not.
    """
    normals = vertex_normals(_tensor(positions)[None], tri)[0].double().numpy()
    here = np.hstack([positions, TURN * normals])
    _, found = surface.tree.query(here)
    _, back = cKDTree(here).query(surface.places[found])
    face, bary = found // len(surface.grid), surface.grid[found % len(surface.grid)]
    corners = surface.corners[face]
    # The foot of the perpendicular, where it falls into the same triangle.
    a, b, c = np.moveaxis(corners, 1, 0)
    u, v, w = b - a, c - a, positions - a
    uu, uv, vv, uw, vw = ((x * y).sum(1) for x, y in ((u, u), (u, v), (v, v), (u, w), (v, w)))
    size = np.maximum(uu * vv - uv * uv, 1e-30)
    s, t = (vv * uw - uv * vw) / size, (uu * vw - uv * uw) / size
    exact = np.stack([1 - s - t, s, t], 1)
    bary = np.where((exact >= 0).all(1, keepdims=True), exact, bary)
    apart = np.linalg.norm((corners * bary[..., None]).sum(1) - positions, axis=1)
    mutual = np.linalg.norm(positions[back] - positions, axis=1) < BESIDE + 0.5 * apart
    return face, bary, apart, mutual & ((surface.facing[found] * normals).sum(1) > ALIGNED)
