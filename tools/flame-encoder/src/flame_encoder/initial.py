"""Where the solver starts when an encoder has looked at the frames: with its identity, expression and jaw."""

from pathlib import Path

import numpy as np
import roma
import torch
from torch import Tensor

from flame_encoder import encoder as encoders
from flame_encoder import vector, view
from flame_encoder.encoder import Encoder
from flame_encoder.points import FACING
from flame_encoder.samples import read_image
from flame_encoder.tracker import Problem

BATCH = 16


def encoded(problem: Problem, encoder: Encoder, frames: list[Path]) -> tuple[Tensor, Tensor]:
    """Shared (S + 1,) and per-frame (N, P) unknowns of a clip, from its N image files.

    The encoded faces are posed by PnP, which is surer than the encoder's pose: far from the landmarks the solver's
    robust weights would see nothing but outliers. A frame without landmarks is looked at between its neighbours' faces
    and keeps the encoder's pose. The identity is the mean over the frames.
    """
    rig, seen = problem.rig, problem.seen
    rows = np.flatnonzero(seen.valid)
    boxes = view.box_of(torch.from_numpy(seen.landmarks[rows])).numpy()
    boxes = np.stack([np.interp(np.arange(problem.n), rows, column) for column in boxes.T], 1).astype(np.float32)
    K = torch.tensor([[problem.focal_guess, 0, 0], [0, problem.focal_guess, 0], [0, 0, 1]])
    K[:2, 2] = problem.centre
    q = torch.zeros(problem.n, rig.layout.size, dtype=torch.float64)
    unknown = rig.layout.split(q)  # views of q
    shapes, faces = [], []
    for part in np.array_split(np.arange(problem.n), -(-problem.n // BATCH)):
        images = np.stack([read_image(frames[i]) for i in part])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        found = encoders.encode(encoder, pixels, torch.from_numpy(boxes[part]))
        R, t = encoders.head_pose(encoder, found, K)
        arguments = vector.head_arguments(rig.head, found)
        unknown["rotation"][part] = roma.rotmat_to_rotvec(R @ FACING.T).double()
        unknown["place"][part] = torch.cat([t[:, :2] / t[:, 2:], t[:, 2:].clamp_min(1e-3).log()], 1).double()
        unknown["jaw"][part] = roma.rotmat_to_rotvec(arguments["jaw"]).double()
        for name in {"expression", "eyelids"} & set(arguments):
            n = min(arguments[name].shape[1], unknown[name].shape[1])
            unknown[name][part, :n] = arguments[name][:, :n].double()
        shapes.append(arguments["shape"])
        unposed = {name: value for name, value in arguments.items() if name not in ("neck", "eyes")}
        faces.append(rig.head.landmarks(rig.head(**unposed)).double().numpy())
    g, posed = problem.start(np.concatenate(faces))
    q[rows, :6] = posed[rows, :6]
    shape = torch.cat(shapes).mean(0).double()[: rig.layout.n_shape]
    g[: len(shape)] = shape
    return g, q.clamp(problem.lower, problem.upper)
