"""From a track to what drives the avatar: posed meshes in a fixed camera, and the blendshape input of each frame."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError, rotations
from recon4d.cameras import Camera
from recon4d.formats.track import Track
from recon4d.head import HeadModel, load, with_uv
from torch import Tensor

FLAME_EXPRESSIONS = 100  # the trackers' number; a larger basis is cut to it
AXES = np.diag([1.0, -1.0, -1.0])  # OpenCV camera axes in the head's world: y and z are opposite


@dataclass(frozen=True, eq=False)
class Motion:
    """N frames of one head before a camera.

    Attributes:
        vertices: (N, V, 3) posed head, metres, world axes (y up, z towards the camera).
        inputs: (N, D) blendshape input: expression, neck, jaw, eyes (6D each), eyelids, translation.
        camera: that of all frames, or one for each.
    """

    vertices: Tensor
    inputs: Tensor
    camera: Camera

    def __len__(self) -> int:
        return len(self.vertices)


def load_head(path: str | Path | None) -> HeadModel:
    """The open head, or a FLAME file, with its own texture coordinates or unwrapped ones.

    Raises InputError as `recon4d.head.load` does.
    """
    return with_uv(load(path))


def n_inputs(head: HeadModel) -> int:
    """Length of the blendshape input of a head model: 129 for FLAME."""
    return min(head.n_expression, FLAME_EXPRESSIONS) + 6 + 6 + 12 + 2 + 3


def check_track(track: Track, head: HeadModel, source: str, log: Callable[[str], None] = lambda _: None) -> None:
    """Raise InputError unless the track's coefficients fit the head model; say what of them moves nothing."""
    if not len(track.shape) or not track.expression.shape[1]:
        raise InputError(f"{source} has no identity or expression coefficients; track the clip again")
    if len(track.shape) > head.n_shape or track.expression.shape[1] > head.n_expression:
        raise InputError(
            f"{source} has {len(track.shape)} identity and {track.expression.shape[1]} expression coefficients; "
            f"the head model {head.name} has {head.n_shape} and {head.n_expression}: "
            "give the tracker's with --head-model"
        )
    if head.eyelids is None and np.any(track.eyelids):
        log(
            f"{source} has eyelids, the head model {head.name} none: they move no vertex; put l_eyelid.npy and "
            "r_eyelid.npy of metrical-tracker beside it"
        )


@torch.no_grad()
def from_track(
    track: Track, head: HeadModel, shape: np.ndarray | None = None, origin: np.ndarray | None = None
) -> Motion:
    """Pose the head in every frame of a track, as RGBAvatar does.

    The camera is frame 0's, E = [diag(1, -1, -1) | t_0], or with `views` one for each frame, E behind it; each
    frame's motion is M_k = inverse(E) [R_k | t_k]. Its rotation then moves to the neck joint J: T' = T + R J - J,
    neck' = R neck, global rotation identity. So the base of the neck stays upright when the head turns, as a person's
    does.

    Args:
        shape: identity to use instead of the track's.
        origin: (3,) the camera's translation instead of t_0.
    """
    parameters = track.parameters()
    identity = parameters.pop("shape")
    if shape is not None:
        identity = torch.from_numpy(np.asarray(shape, np.float32))[None]
    if head.eyelids is None:
        del parameters["eyelids"]
    t0 = np.asarray(track.t[0] if origin is None else origin, np.float64)
    R = torch.from_numpy((AXES @ track.R.astype(np.float64)).astype(np.float32))
    T = torch.from_numpy(((track.t - t0) @ AXES).astype(np.float32))
    expression = parameters["expression"]
    J = head.joints(identity, expression)[:, 1]
    T = T + (R @ J[..., None])[..., 0] - J
    neck = R @ parameters.pop("neck")
    vertices = torch.empty(len(track), *head.v_template.shape)
    for chunk in torch.arange(len(track)).split(16):
        vertices[chunk] = head(
            shape=identity,
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
    K = torch.from_numpy(track.K)
    if track.views is not None and track.Ks is not None:
        E, K = torch.from_numpy(track.views) @ E, torch.from_numpy(track.Ks)
    width, height = (int(x) for x in track.image_size)
    return Motion(vertices, inputs, Camera(K, E, width, height))


def input_range(motion: Motion) -> tuple[Tensor, Tensor]:
    """The least and the largest of each blendshape input of a clip, (D,) each."""
    return motion.inputs.amin(0), motion.inputs.amax(0)


def within(motion: Motion, known: Motion) -> Motion:
    """A motion whose blendshape input goes no further than a clip's that the avatar has learned from.

    What the basis does to further ones nobody has shown it, and it can be anything: the mesh alone goes on.
    """
    return replace(motion, inputs=motion.inputs.clamp(*input_range(known)))


def cameras_of(motion: Motion, frames: np.ndarray) -> Camera:
    """The camera of the chosen frames: one, or one for each."""
    camera = motion.camera
    if camera.K.dim() == 2 and camera.world_to_camera.dim() == 2:
        return camera
    K, poses = camera.K.expand(len(motion), 3, 3), camera.world_to_camera.expand(len(motion), 4, 4)
    return replace(camera, K=K[frames], world_to_camera=poses[frames])


def frontal_frame(track: Track) -> int:
    """The frame in which the head looks most straight at the camera."""
    return int(np.argmax(np.einsum("nij,ij->n", track.R @ track.neck, AXES)))


def resized(motion: Motion, width: int, height: int) -> Motion:
    """The same motion for images of another size."""
    return replace(motion, camera=motion.camera.resized(width, height))


def orbit(motion: Motion, degrees: Tensor, raised: Tensor | None = None) -> Camera:
    """The motion's camera turned by `degrees` (n,) about the head's vertical axis: n cameras.

    A positive angle shows the person's left side: the camera moves to +x. `raised` (n,) degrees lift it then.
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
    if raised is not None:
        up = torch.deg2rad(raised)
        nod = torch.stack([one, zero, zero, zero, up.cos(), -up.sin(), zero, up.sin(), up.cos()], -1).view(-1, 3, 3)
        turn = nod @ turn
    about = torch.eye(4).repeat(len(degrees), 1, 1)
    about[:, :3, :3] = turn
    about[:, :3, 3] = centre - turn @ centre
    return replace(motion.camera, world_to_camera=motion.camera.world_to_camera @ about)
