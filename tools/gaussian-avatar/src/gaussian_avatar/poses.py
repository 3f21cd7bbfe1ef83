"""What the viewer shows, without its window: sliders to a posed head, a browser's camera to a picture."""

from dataclasses import dataclass, replace

import numpy as np
import roma
import torch
from recon4d.cameras import Camera
from recon4d.formats.track import PER_FRAME, Track
from recon4d.head import HeadModel
from torch import Tensor

from gaussian_avatar import motions, rendering
from gaussian_avatar.motions import Motion
from gaussian_avatar.runs import Run

OPPOSITES = ("jaw", "mouth")  # jawLeft and jawRight are two movements, not two halves of one
COMPONENT_REACH = 2.5  # standard deviations


@dataclass(frozen=True)
class Direction:
    """One slider of the face: a direction (E,) of the head model's expressions, and how far along it the clip goes."""

    name: str
    vector: np.ndarray
    reach: float


@dataclass(frozen=True)
class Pose:
    """What the sliders say; all but the first two are added to the frame. Right is the picture's right."""

    frame: int = 0
    follow: bool = True  # False: the neutral face, with the head as in the training clip's most frontal frame
    expression: tuple[float, ...] = ()  # along each direction
    jaw: tuple[float, float] = (0.0, 0.0)  # degrees: open, right
    gaze: tuple[float, float] = (0.0, 0.0)  # degrees: up, right
    neck: tuple[float, float, float] = (0.0, 0.0, 0.0)  # degrees: up, right, tilted to the right
    blink: float = 0.0  # 1 closes both eyes


def directions(track: Track, head: HeadModel, count: int = 8) -> list[Direction]:
    """The directions in which the expressions of a clip vary most, strongest first.

    Named expressions stay as they are, the left and right half of one together. Components without names, as
    FLAME's, are turned to their principal axes.
    """
    values = track.expression
    found = []
    if head.expression_names:
        columns: dict[str, list[int]] = {}
        for i, name in enumerate(head.expression_names[: values.shape[1]]):
            stem = name.removesuffix("Left").removesuffix("Right")
            columns.setdefault(name if stem in OPPOSITES else stem, []).append(i)
        for name, chosen in columns.items():
            vector = np.zeros(head.n_expression, np.float32)
            vector[chosen] = 1
            along = values[:, chosen].mean(1)
            found.append((along.std(), Direction(name, vector, float(np.abs(along).max()))))
    else:
        _, lengths, axes = np.linalg.svd(values - values.mean(0), full_matrices=False)
        for i, (length, axis) in enumerate(zip(lengths, axes)):
            vector = np.zeros(head.n_expression, np.float32)
            vector[: len(axis)] = axis * np.sign(axis[np.abs(axis).argmax()])
            deviation = float(length) / len(values) ** 0.5
            found.append((deviation, Direction(f"expression {i + 1}", vector, COMPONENT_REACH * deviation)))
    found.sort(key=lambda item: -item[0])
    return [direction for deviation, direction in found[:count] if deviation > 1e-4]


def posed(run: Run, track: Track, along: list[Direction], pose: Pose) -> Motion:
    """The head as a pose has it: one frame, on the run's identity, in the camera of its training clip.

    Args:
        track: the clip to follow, the run's own or another one.
        along: what `pose.expression` counts.
    """
    source = track if pose.follow else run.track
    frame = pose.frame if pose.follow else motions.frontal_frame(run.track)
    values = {key: getattr(source, key)[frame : frame + 1] for key in PER_FRAME}
    if not pose.follow:
        still = np.eye(3, dtype=np.float32)
        values |= {key: np.broadcast_to(still, values[key].shape) for key in ("jaw", "eyes")}
        values |= {key: np.zeros_like(values[key]) for key in ("expression", "eyelids")}
    expression = np.zeros((1, run.head.n_expression), np.float32)
    expression[:, : values["expression"].shape[1]] = values["expression"]
    for amount, direction in zip(pose.expression, along):
        expression += amount * direction.vector
    if run.head.expression_names:  # activations
        expression = expression.clip(0, 1)
    up, right, tilt = pose.neck
    values |= {
        "expression": expression,
        "eyelids": (values["eyelids"] + np.float32(pose.blink)).clip(0, 1),
        "jaw": values["jaw"] @ _rotation(-pose.jaw[0], pose.jaw[1]),
        "eyes": values["eyes"] @ _rotation(*pose.gaze),
        "neck": values["neck"] @ _rotation(up, right, tilt),
    }
    return motions.from_track(replace(source, **values), run.head, shape=run.track.shape, origin=source.t[0])


def _rotation(up: float, right: float, tilt: float = 0.0) -> np.ndarray:
    """Head axes: y up, z out of the face, x to the right for who looks at it. Degrees."""
    angles = torch.tensor([right, -up, -tilt], dtype=torch.float32)
    matrix: np.ndarray = roma.euler_to_rotmat("YXZ", angles, degrees=True).numpy()
    return matrix


def first_camera(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The camera of the training clip: its position, the point at the head's distance it looks at, up, field of view.

    The field of view is the vertical one, radians.
    """
    camera = run.motion.camera
    _, down, forward = (row.numpy() for row in camera.world_to_camera[:3, :3])
    position = camera.center.numpy()
    distance = float((run.motion.vertices[0].mean(0).numpy() - position) @ forward)
    fov = 2 * float(np.arctan(camera.height / 2 / camera.K[1, 1]))
    return position, position + distance * forward, -down, fov


def picture(run: Run, motion: Motion, camera: Camera, background: Tensor, alpha: bool = False) -> np.ndarray:
    """A posed head (one frame) as a camera sees it: uint8 (H, W, 3), or (H, W, 4) with `alpha`."""
    return next(rendering.render(run, replace(motion, camera=camera), background, alpha))


def advanced(position: float, seconds: float, fps: float, speed: float, frames: int) -> float:
    """The place in a clip, in frames, after some seconds of playing; it begins again at its end."""
    return (position + seconds * fps * speed) % frames
