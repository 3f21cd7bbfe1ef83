"""What an encoder sees in the frames: landmarks where the given ones are wrong, and where the solver starts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import recon4d.images
import roma
import torch
from torch import Tensor

from flame_encoder.encoder.crop import box_of
from flame_encoder.encoder.trained import Encoder
from flame_encoder.encoder.vector import head_arguments
from flame_encoder.tracker.observations import FrameFaces, Observations
from flame_encoder.tracker.points import FACING
from flame_encoder.tracker.problem import Options, Problem

BATCH = 16
CONTRADICTION = 0.15  # mean distance of landmarks that an encoder does not confirm, share of the inter-ocular distance


@dataclass(frozen=True, eq=False)
class Seen:
    """B encoded faces: head-to-camera poses R (B, 3, 3) and t (B, 3), the head's arguments, unposed landmarks."""

    R: Tensor
    t: Tensor
    arguments: dict[str, Tensor]
    faces: Tensor  # (B, 68, 3)

    def pixels(self, K: Tensor) -> np.ndarray:
        """(B, 68, 2) landmarks in the frames."""
        points = (self.faces @ self.R.mT + self.t[:, None]) @ K.T
        return (points[..., :2] / points[..., 2:].clamp_min(1e-3)).numpy()


def _encoded(
    encoder: Encoder, frames: list[Path], boxes: np.ndarray, rows: np.ndarray, K: Tensor
) -> Iterator[tuple[np.ndarray, Seen]]:
    """Batches of `rows`, and what the encoder sees in the boxes (N, 4) of those frames."""
    head = encoder.head
    for part in np.array_split(rows, -(-len(rows) // BATCH)):
        images = torch.from_numpy(np.stack([recon4d.images.read(frames[i]) for i in part])).permute(0, 3, 1, 2) / 255
        found = encoder.encode(images, torch.from_numpy(boxes[part]))
        R, t = encoder.head_pose(found, K)
        arguments = head_arguments(head, found)
        unposed = {name: value for name, value in arguments.items() if name not in ("neck", "eyes")}
        yield part, Seen(R, t, arguments, head.landmarks(head(**unposed)))


def _boxes(seen: Observations) -> np.ndarray:
    """(N, 4) boxes of the faces; of frames without landmarks between their neighbours'."""
    rows = np.flatnonzero(seen.valid)
    boxes = box_of(torch.from_numpy(seen.landmarks[rows]).float()).numpy()
    return np.stack([np.interp(np.arange(len(seen.valid)), rows, column) for column in boxes.T], 1).astype(np.float32)


def _intrinsics(seen: Observations, focal: float) -> Tensor:
    width, height = seen.image_size
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float32)


def confirmed(seen: Observations, encoder: Encoder, frames: list[Path], focal: float) -> tuple[Observations, int]:
    """Observations whose landmarks, where the encoder contradicts them, are the encoder's; and in how many frames.

    Detectors of landmarks that know faces from the front put them anywhere on a turned head. The encoder looks twice:
    a box around wrong landmarks is wrong too, the second one is around its own.

    Dense landmarks know turned heads, and stay as they are.

    Args:
        frames: the N image files. focal: pixels, about.
    """
    if seen.dense is not None:
        return seen, 0
    K = _intrinsics(seen, focal)
    landmarks, irises, boxes = seen.landmarks.copy(), seen.irises.copy(), _boxes(seen)
    doubted = []
    for part, faces in _encoded(encoder, frames, boxes, np.flatnonzero(seen.valid), K):
        pixels = faces.pixels(K)
        boxes[part] = box_of(torch.from_numpy(pixels)).numpy()
        doubted += part[~_agree(pixels, landmarks[part])].tolist()
    wrong = 0
    if doubted:
        for part, faces in _encoded(encoder, frames, boxes, np.array(doubted), K):
            pixels = faces.pixels(K)
            off = ~_agree(pixels, landmarks[part])
            landmarks[part[off]], irises[part[off]] = pixels[off], np.nan
            wrong += int(off.sum())
    return replace(seen, landmarks=landmarks, irises=irises), wrong


def confirmed_frame(seen: FrameFaces, encoder: Encoder, frames: Path, focal: float | None) -> FrameFaces:
    """The same for all faces of one image in the folder `frames`; `focal` is guessed where it is None."""
    n = len(seen.faces)
    if not n:
        return seen
    faces = Observations(np.repeat(seen.name, n), seen.faces, np.ones(n, bool), seen.irises, seen.size, 0.0)
    found, _ = confirmed(faces, encoder, [frames / seen.name] * n, focal or Options().focal_prior * max(seen.size))
    return replace(seen, faces=found.landmarks, irises=found.irises)


def _agree(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(B,) whether landmarks (B, 68, 2) are near others; the outline, which slides, is not asked."""
    unit = np.linalg.norm(pixels[:, 36] - pixels[:, 45], axis=-1)
    answer: np.ndarray = np.linalg.norm(pixels - landmarks, axis=-1)[:, 17:].mean(1) < CONTRADICTION * unit
    return answer


def encoded(problem: Problem, encoder: Encoder, frames: list[Path]) -> tuple[Tensor, Tensor]:
    """Shared (S + 1,) and per-frame (N, P) unknowns of a clip, from its N image files.

    The encoded faces are posed by PnP, which is surer than the encoder's pose: far from the landmarks the solver's
    robust weights would see nothing but outliers. A frame without landmarks is looked at between its neighbours' faces
    and keeps the encoder's pose. The identity is the mean over the frames.
    """
    rig, seen = problem.rig, problem.seen
    q = torch.zeros(problem.n, rig.columns.size, dtype=torch.float64)
    unknown = rig.columns.split(q)  # views of q
    shapes, faces = [], []
    K = _intrinsics(seen, problem.focal_guess)
    for part, found in _encoded(encoder, frames, _boxes(seen), np.arange(problem.n), K):
        t = found.t
        unknown["rotation"][part] = roma.rotmat_to_rotvec(found.R @ FACING.T).double()
        unknown["place"][part] = torch.cat([t[:, :2] / t[:, 2:], t[:, 2:].clamp_min(1e-3).log()], 1).double()
        unknown["jaw"][part] = roma.rotmat_to_rotvec(found.arguments["jaw"]).double()
        for name in {"expression", "eyelids"} & set(found.arguments):
            n = min(found.arguments[name].shape[1], unknown[name].shape[1])
            unknown[name][part, :n] = found.arguments[name][:, :n].double()
        shapes.append(found.arguments["shape"])
        faces.append(found.faces.double().numpy())
    g, posed = problem.start(np.concatenate(faces))
    rows = np.flatnonzero(seen.valid)
    q[rows, :6] = posed[rows, :6]
    shape = torch.cat(shapes).mean(0).double()[: rig.columns.n_shape]
    g[: len(shape)] = shape
    return g, q.clamp(problem.lower, problem.upper)
