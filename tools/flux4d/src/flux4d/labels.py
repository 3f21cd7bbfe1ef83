"""What cuboids say about LiDAR points: how fast they move, what they belong to."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from flux4d import pandaset
from flux4d.clips import Clip, in_view
from flux4d.gaussians import MovingGaussians
from flux4d.pandaset import Cuboids

CLASSES = ("background", "car", "other vehicle", "pedestrian", "wheeled")
VEHICLES = ("Car", "Pickup Truck")
WHEELED = ("Bicycle", "Motorcycle", "Motorized Scooter", "Personal Mobility Device")
MOVES, TURNS = 0.05, 1.0  # metres and degrees to the next frame, beyond which a cuboid moves
MARGIN = 0.05  # metres by which a box is widened: sensors are noisy
DILATION = 5  # pixels by which projected points of moving things are widened


@dataclass(frozen=True, eq=False)
class Labels:
    """What cuboids say about N points. velocity: (N, 3) m/s. kind: (N,) number in CLASSES. moving: (N,) bool, inside a
    cuboid that moves."""

    velocity: np.ndarray
    kind: np.ndarray
    moving: np.ndarray


@dataclass(frozen=True, eq=False)
class Step:
    """The motion (4, 4) of a box to the next frame, in the world, and whether that counts as moving."""

    motion: np.ndarray
    moves: bool


def steps_of(cuboids: list[Cuboids]) -> list[dict[str, Step]]:
    """Per frame, by uuid: how a box goes on to the next frame. Boxes that are not there then have none.

    A box moves when it does in most of the steps before, at and after this one; of two, this one decides.
    The last frame takes the step of the one before.
    """
    steps: list[dict[str, Step]] = []
    for here, there in pairwise(cuboids):
        places = {name: i for i, name in enumerate(there.uuid)}
        found = {}
        for i, name in enumerate(here.uuid):
            if name in places:
                motion = there.pose[places[name]] @ np.linalg.inv(here.pose[i])
                # how far the box's centre goes: the matrix's own shift is that of the world's origin
                far = np.linalg.norm(there.pose[places[name], :3, 3] - here.pose[i, :3, 3])
                turn = np.degrees(Rotation.from_matrix(motion[:3, :3]).magnitude())
                found[name] = Step(motion, bool(far > MOVES or turn > TURNS))
        steps.append(found)
    return [_by_majority(steps, min(frame, len(steps) - 1)) for frame in range(len(cuboids))]


def _by_majority(steps: list[dict[str, Step]], at: int) -> dict[str, Step]:
    """The steps of a frame, whose boxes move when they do in most of the steps around it."""
    out = {}
    for name, step in (steps[at] if steps else {}).items():
        votes = [other[name].moves for other in steps[max(at - 1, 0) : at + 2] if name in other]
        out[name] = Step(step.motion, 2 * sum(votes) + step.moves > len(votes))
    return out


def kind_of(label: str) -> int:
    """The number in CLASSES of PandaSet's label of a cuboid."""
    if label in VEHICLES:
        return 1
    if label.startswith("Pedestrian"):
        return 3
    if label in WHEELED:
        return 4
    return 2


def of_points(
    points: np.ndarray,
    device: np.ndarray,
    cuboids: Cuboids,
    steps: dict[str, Step],
    seconds: float,
    late: np.ndarray | None = None,
) -> Labels:
    """Velocity, class and whether they move, of world points (N, 3); background has velocity 0.

    Of nested boxes the smaller wins. A box of one LiDAR holds only its points. A sweep takes its time, in which a fast
    car leaves its box: some boxes are drawn around points as they were seen, others where a thing is at the frame's
    moment, so that a point counts as inside by either.

    Args:
        device: (N,) which LiDAR saw a point. steps: of this frame, from `steps_of`. seconds: to the next frame.
        late: (N,) seconds after the frame at which a point was seen; None is 0.
    """
    velocity, kind = np.zeros(points.shape), np.zeros(len(points), np.int64)
    moving = np.zeros(len(points), bool)
    for i in np.argsort(-cuboids.size.prod(1)):
        step = steps.get(str(cuboids.uuid[i]))
        inside, speed = _in_box(points, cuboids, i), None
        if step is not None and step.moves:
            speed = (points @ step.motion[:3, :3].T + step.motion[:3, 3] - points) / seconds
            if late is not None:
                inside |= _in_box(points - late.clip(-seconds, seconds)[:, None] * speed, cuboids, i)
        if cuboids.sensor[i] >= 0:
            inside &= device == cuboids.sensor[i]
        kind[inside], moving[inside] = kind_of(str(cuboids.label[i])), speed is not None
        velocity[inside] = 0 if speed is None else speed[inside]
    return Labels(velocity, kind, moving)


def _in_box(points: np.ndarray, cuboids: Cuboids, i: int) -> np.ndarray:
    own = (points - cuboids.pose[i, :3, 3]) @ cuboids.pose[i, :3, :3]
    return (np.abs(own) <= cuboids.size[i] / 2 + MARGIN).all(1)


def of_clip(clip: Clip, root: Path) -> list[tuple[np.ndarray, Labels]] | None:
    """Per picture, the LiDAR points in its view (N, 3) and their labels, in the clip's frame; None for a scene without
    cuboids."""
    boxes = cuboids_of(clip.entry, root)
    if boxes is None:
        return None
    times = np.array(clip.entry["timestamps"])
    steps = steps_of(boxes)
    turn, shift = clip.ego_to_world[:3, :3], clip.ego_to_world[:3, 3]
    out = []
    sweeps = [pandaset.read_points(root / name) for name in clip.entry["lidar"]]
    for picture in range(len(clip.times)):
        frame = clip.frame_of(picture)
        sweep = sweeps[frame]
        points = torch.from_numpy((sweep["xyz"] - shift) @ turn).float()
        inside = in_view(points, clip.camera(picture))[2]
        own = points[inside].numpy().astype(np.float64)
        at = min(frame, len(times) - 2)
        seconds = float(times[at + 1] - times[at])
        device, late = (sweep[key][inside.numpy()] for key in ("d", "t"))
        given = boxes[frame], steps[frame], seconds, late - times[frame]
        found = of_points(own @ turn.T + shift, device, *given)
        out.append((own, Labels(found.velocity @ turn, found.kind, found.moving)))
    return out


def motion(clip: Clip, root: Path, gaussians: MovingGaussians) -> torch.Tensor | None:
    """(N, 3) m/s of Gaussians as they were lifted, by the cuboids of their frames; None for a scene without any."""
    boxes = cuboids_of(clip.entry, root)
    if boxes is None:
        return None
    steps, times = steps_of(boxes), np.array(clip.entry["timestamps"])
    turn, shift = clip.ego_to_world[:3, :3], clip.ego_to_world[:3, 3]
    means, moments = gaussians.means.cpu().double().numpy(), gaussians.times.cpu().numpy()
    frames = clip.entry["input"]
    frame_of = np.abs(moments[:, None] - clip.lidar_times[frames].numpy()).argmin(1)
    out = np.zeros(means.shape)
    for number, frame in enumerate(frames):
        own = (frame_of == number) & ~gaussians.sky.cpu().numpy()
        at = min(frame, len(times) - 2)
        seconds = float(times[at + 1] - times[at])
        placed, device = means[own] @ turn.T + shift, np.zeros(int(own.sum()), np.int64)
        late = moments[own] - float(clip.lidar_times[frame])
        out[own] = of_points(placed, device, boxes[frame], steps[frame], seconds, late).velocity @ turn
    return torch.from_numpy(out).float()


def cuboids_of(entry: dict[str, Any], root: Path) -> list[Cuboids] | None:
    """The cuboids of a clip's frames; None for a scene without them."""
    if entry["cuboids"] is None:
        return None
    return [pandaset.read_cuboids(root / name) for name in entry["cuboids"]]


def dynamic_mask(points: np.ndarray, moving: np.ndarray, clip: Clip, frame: int) -> np.ndarray:
    """(H, W) bool: pixels within DILATION of a projected point of a moving thing."""
    mask = np.zeros((clip.height, clip.width), np.uint8)
    pixels, _, inside = in_view(torch.from_numpy(points[moving]).float(), clip.camera(frame))
    column, row = pixels[inside].long().numpy().T
    mask[row, column] = 1
    size = 2 * DILATION + 1
    return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))).astype(bool)
