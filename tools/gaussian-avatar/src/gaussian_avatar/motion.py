"""From a track to what drives the avatar: posed meshes in a fixed camera, and the blendshape input of each frame."""

from dataclasses import dataclass

import numpy as np
import torch
from recon4d import InputError
from recon4d import rotations
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from torch import Tensor

FLAME_EXPRESSIONS = 100  # the trackers' number; a larger basis is cut to it
AXES = np.diag([1.0, -1.0, -1.0])  # OpenCV camera axes in the head's world: y and z are opposite


@dataclass(frozen=True)
class Motion:
    """N frames of one head before one fixed camera.

    Attributes:
        vertices: (N, V, 3) posed head, metres, world axes (y up, z towards the camera).
        inputs: (N, D) blendshape input: expression, neck, jaw, eyes (6D each), eyelids, translation.
        world_to_camera: (4, 4) OpenCV.
        K: (3, 3) pixels.
        width, height: of the images K is for.
    """

    vertices: Tensor
    inputs: Tensor
    world_to_camera: Tensor
    K: Tensor
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.vertices)


def n_inputs(head: HeadModel) -> int:
    """Length of the blendshape input of a head model: 129 for FLAME."""
    return min(head.n_expression, FLAME_EXPRESSIONS) + 6 + 6 + 12 + 2 + 3


def check_track(track: Track, head: HeadModel, source: str) -> None:
    """Raise InputError unless the track's coefficients fit the head model."""
    if len(track.shape) > head.n_shape or track.expression.shape[1] > head.n_expression:
        raise InputError(
            f"{source} has {len(track.shape)} identity and {track.expression.shape[1]} expression coefficients; "
            f"the head model {head.name} has {head.n_shape} and {head.n_expression}: "
            "give the tracker's with --head-model"
        )


@torch.no_grad()
def from_track(
    track: Track, head: HeadModel, shape: np.ndarray | None = None, origin: np.ndarray | None = None
) -> Motion:
    """Pose the head in every frame of a track, as RGBAvatar does.

    The camera is frame 0's, E = [diag(1, -1, -1) | t_0]; each frame's motion is M_k = inverse(E) [R_k | t_k]. Its
    rotation then moves to the neck joint J: T' = T + R J - J, neck' = R neck, global rotation identity. So the
    base of the neck stays upright when the head turns, as a person's does.

    Args:
        shape: identity to use instead of the track's.
        origin: (3,) the camera's translation instead of t_0.
    """
    parameters = track.parameters()
    if shape is not None:
        parameters["shape"] = torch.from_numpy(np.asarray(shape, np.float32))[None]
    if head.eyelids is None:
        del parameters["eyelids"]
    t0 = np.asarray(track.t[0] if origin is None else origin, np.float64)
    R = torch.from_numpy((AXES @ track.R.astype(np.float64)).astype(np.float32))
    T = torch.from_numpy(((track.t - t0) @ AXES).astype(np.float32))
    expression = parameters["expression"]
    J = head.joints(parameters["shape"], expression)[:, 1]
    T = T + (R @ J[..., None])[..., 0] - J
    neck = R @ parameters.pop("neck")
    shape = parameters.pop("shape")
    vertices = torch.empty(len(track), *head.v_template.shape)
    for chunk in torch.arange(len(track)).split(16):
        vertices[chunk] = head(
            shape=shape,
            neck=neck[chunk],
            translation=T[chunk],
            **{key: value[chunk] for key, value in parameters.items()},
        )
    n_expression = min(head.n_expression, FLAME_EXPRESSIONS)
    padded = torch.zeros(len(track), n_expression)
    common = min(n_expression, expression.shape[1])
    padded[:, :common] = expression[:, :common]
    inputs = torch.cat(
        [
            padded,
            rotations.to_6d(neck),
            rotations.to_6d(parameters["jaw"]),
            rotations.to_6d(parameters["eyes"]).flatten(1),
            torch.from_numpy(track.eyelids),
            T,
        ],
        1,
    )
    E = torch.eye(4)
    E[:3, :3] = torch.from_numpy(AXES).float()
    E[:3, 3] = torch.from_numpy(t0).float()
    width, height = (int(x) for x in track.image_size)
    return Motion(vertices, inputs, E, torch.from_numpy(track.K), width, height)


def resized(motion: Motion, width: int, height: int) -> Motion:
    """The same motion for images of another size; K is scaled (pixel centres at +0.5)."""
    scale = torch.tensor([width / motion.width, height / motion.height, 1.0])
    return Motion(motion.vertices, motion.inputs, motion.world_to_camera, motion.K * scale[:, None], width, height)


def orbit(motion: Motion, degrees: Tensor) -> Tensor:
    """World-to-camera matrices (n, 4, 4) of the camera turned by `degrees` (n,) about the head's vertical axis.

    A positive angle shows the person's left side: the camera moves to +x.
    """
    centre = motion.vertices.mean((0, 1))
    angle = torch.deg2rad(-degrees)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack(
        [
            torch.stack([angle.cos(), zero, angle.sin()], -1),
            torch.stack([zero, one, zero], -1),
            torch.stack([-angle.sin(), zero, angle.cos()], -1),
        ],
        -2,
    )
    about = torch.eye(4).repeat(len(degrees), 1, 1)
    about[:, :3, :3] = turn
    about[:, :3, 3] = centre - turn @ centre
    return motion.world_to_camera @ about
