"""A head of FLAME's format, with other vertices, proportions and expressions than the open head, drawn from it.

What it does is known: each of its expressions is a mixture of the open head's, and its surface is the open head's with
every vertex slid into a triangle beside it, widened, and moved.
"""

import numpy as np
import torch
from recon4d.head import load

SCALE, SHIFT = np.array([1.05, 0.97, 1.03]), np.array([0.003, -0.006, 0.010])


def flame_like(seed=0, identities=60, expressions=60):
    """Arrays of a FLAME file with landmarks, and the mixture (46, expressions): of 44 expressions and two eyelids."""
    head, rng = load(), np.random.default_rng(seed)
    faces, n = head.faces.numpy(), len(head.v_template)
    owner = np.zeros(n, int)
    owner[faces.ravel()] = np.repeat(np.arange(len(faces)), 3)
    corners = faces[owner]
    slide = 0.35 * rng.dirichlet([1, 1, 1], n) + 0.65 * (corners == np.arange(n)[:, None])
    order = rng.permutation(n)

    def carried(values):
        values = np.asarray(values, float)
        return np.einsum("vk,vk...->v...", slide, values[corners])[order]

    mean = head.v_template + head.shapedirs @ torch.from_numpy(rng.normal(size=head.n_shape)).float()
    mixture = 0.4 * rng.normal(size=(head.n_expression + 2, expressions))
    moves = np.concatenate([head.expressiondirs.numpy(), head.eyelids.numpy()], 2) @ mixture
    widened = SCALE[:, None]
    vertices, joints = carried(mean) * SCALE + SHIFT, (head.J_regressor @ mean).numpy() * SCALE + SHIFT
    regressor = np.zeros((5, n))
    for row, joint in zip(regressor, joints):
        near = np.argsort(np.linalg.norm(vertices - joint, axis=1))[:40]
        system = np.vstack([vertices[near].T, np.ones(40)])
        row[near] = np.linalg.lstsq(system, np.append(joint, 1), rcond=None)[0]
    shapes = np.zeros((n, 3, 300))
    shapes[:, :, :identities] = carried(head.shapedirs)[:, :, :identities] * widened
    new = np.argsort(order)  # of an old vertex
    landmarks = head.landmark_faces.numpy()
    return {
        "v_template": vertices,
        "shapedirs": np.concatenate([shapes, carried(moves) * widened], 2).astype(np.float32),
        "posedirs": carried(head.posedirs) * widened,
        "J_regressor": regressor,
        "weights": carried(head.weights),
        "kintree_table": np.array([[4294967295, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
        "f": new[faces].astype(np.uint32),
        "vt": head.vt.numpy(),
        "ft": head.ft.numpy(),
        "lmk_faces_idx": landmarks,
        "lmk_bary_coords": head.landmark_bary.numpy().astype(float),
    }, mixture


def write_flame_like(path, seed=0):
    """Write it as an npz; the mixture."""
    arrays, mixture = flame_like(seed)
    np.savez(path, **arrays)
    return mixture
