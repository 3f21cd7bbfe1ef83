"""Training that begins with the tracked head instead of a ball: the field learns the distance to a mesh first.

A head model fitted to the video is a few millimetres off, which is far less than a ball is, so the steps that would
carry a ball's surface there go into detail. Nothing holds the surface to the mesh afterwards.
"""

from pathlib import Path

import numpy as np
import torch
from recon4d import InputError, mesh
from recon4d.files import read_npz, write_npz
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight.field import Field

SAMPLES = 60_000  # points on the mesh
STEPS, POINTS = 200, 2048
POOL = 16_384  # points whose distances are found beforehand, of each spread
RATE = 4e-3
SPREADS = (0.01, 0.05, 0.2)  # bounds; how far from the surface points are, beside those that are anywhere
BETA = 0.03  # bounds; width of the density's edge to go on with
SLOPE, SLOPED = 0.1, 256  # weight of the distance's slope being 1, and points where it is asked for
MOST = 10**7  # vertices or triangles of a file


def write(path: Path, vertices: Tensor, faces: Tensor) -> None:
    """Keep a mesh, vertices (V, 3) in the capture's space and faces (F, 3), for training to begin with."""
    write_npz(path, vertices=vertices.float().numpy(), faces=faces.int().numpy())


def read(path: Path) -> tuple[Tensor, Tensor]:
    """The mesh of `write`. Raises InputError for another file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist, and data.head names it; import again, or set data.head to null")
    arrays = read_npz(path)
    vertices, faces = arrays.get("vertices", np.zeros(0)), arrays.get("faces", np.zeros(0))
    fine = vertices.ndim == faces.ndim == 2 and vertices.shape[1] == faces.shape[1] == 3
    fine = fine and vertices.dtype.kind == "f" and faces.dtype.kind in "iu" and 0 < len(faces) < MOST
    fine = fine and bool(np.isfinite(vertices).all()) and faces.min() >= 0 and faces.max() < len(vertices)
    if not fine:
        raise InputError(f"{path} is not a mesh of vertices (V, 3) and faces (F, 3); import again")
    return torch.from_numpy(vertices.astype(np.float32)), torch.from_numpy(faces.astype(np.int64))


def surface_points(vertices: Tensor, faces: Tensor, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n points (n, 3) spread over a mesh and its unit normals (n, 3) there."""
    generator = torch.Generator().manual_seed(seed)
    area = mesh.face_normals(vertices, faces, unit=False).norm(dim=1)
    face = faces[torch.multinomial(area, n, replacement=True, generator=generator)]
    a, b = torch.rand(2, n, 1, generator=generator)
    flip = a + b > 1
    a, b = torch.where(flip, 1 - a, a), torch.where(flip, 1 - b, b)
    shares = torch.stack([1 - a - b, a, b], 1)
    normals = mesh.vertex_normals(vertices, faces)
    points, directions = ((values[face] * shares).sum(1) for values in (vertices, normals))
    return points.numpy(), normalize(directions, dim=1).numpy()


def distances(at: np.ndarray, tree: cKDTree, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Signed distances (N,) of places (N, 3) to a surface given by points and normals: near it along the normal."""
    away, nearest = tree.query(at)
    along = ((at - points[nearest]) * normals[nearest]).sum(1)
    found: np.ndarray = np.where(away < SPREADS[0], along, np.sign(along) * away)
    return found


def learn(field: Field, vertices: Tensor, faces: Tensor, seed: int) -> float:
    """Let the field's face be a mesh in the capture's unit, in place; returns the mean error at its surface, bounds."""
    points, normals = surface_points(vertices / field.config.data.bound, faces, SAMPLES, seed)
    tree = cKDTree(points)
    rng = np.random.default_rng((seed, 21))
    generator = torch.Generator().manual_seed(seed)
    active = field.active(0)
    parameters = [field.distance_table, *field.distance_mlp.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE, eps=1e-15)
    share = POINTS // (len(SPREADS) + 1)
    near = [points[rng.integers(len(points), size=POOL)] + s * rng.normal(size=(POOL, 3)) for s in SPREADS]
    pool = np.stack([*near, rng.uniform(-1, 1, (POOL, 3))]).clip(-1, 1)
    goals = torch.from_numpy(distances(pool.reshape(-1, 3), tree, points, normals)).float().view(pool.shape[:2])
    places = torch.from_numpy(pool).float()
    error = 0.0
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.1 ** (step / STEPS)
        some = torch.randint(POOL, (share,), generator=generator)
        x, wanted = places[:, some].flatten(0, 1), goals[:, some].flatten()
        found, _ = field.face(x, active)
        off = (found - wanted).abs()
        loss = (off / (0.05 + wanted.abs())).mean()  # near the surface an error matters more
        anywhere = torch.rand(SLOPED, 3, generator=generator) * 2 - 1
        _, _, gradient = field.face_gradient(torch.cat([x[:SLOPED], anywhere]), active)
        loss = loss + SLOPE * (gradient.norm(dim=1) - 1).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        error = float(off[:share].detach().mean())
    with torch.no_grad():
        field.beta.fill_(min(float(field.beta), BETA))
    return error
