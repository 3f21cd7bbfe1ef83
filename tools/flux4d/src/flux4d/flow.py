"""Known motion from cuboids, and measures of scene flow on LiDAR points."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from flux4d import pandaset
from flux4d.pandaset import Cuboids

MOVES, TURNS = 0.05, 1.0  # metres and degrees to the next frame, beyond which a cuboid moves
MARGIN = 0.05  # metres by which a box is widened: sensors are noisy
DYNAMIC = 0.5  # m/s, from which a point counts as dynamic
BUCKET = 0.4  # m/s, width of a speed bucket
VEHICLES = ("Car", "Pickup Truck")
WHEELED = ("Bicycle", "Motorcycle", "Motorized Scooter", "Personal Mobility Device")
CLASSES = ("background", "car", "other vehicle", "pedestrian", "wheeled")


@dataclass(frozen=True)
class Labels:
    """What cuboids say about N points. velocity: (N, 3) m/s. kind: (N,) number in CLASSES. moving: (N,) bool, inside a
    cuboid that moves."""

    velocity: np.ndarray
    kind: np.ndarray
    moving: np.ndarray


def steps_of(cuboids: list[Cuboids]) -> list[dict[str, tuple[np.ndarray, bool]]]:
    """Per frame, by uuid: the motion (4, 4) of a box to the next frame, in the world, and whether it moves.

    A box moves when it does in most of the frames before, at and after this one; of two, this one decides.
    The last frame takes the motion of the one before.
    """
    steps: list[dict[str, np.ndarray]] = []
    for here, there in pairwise(cuboids):
        places = {name: i for i, name in enumerate(there.uuid)}
        steps.append(
            {
                name: there.pose[places[name]] @ np.linalg.inv(here.pose[i])
                for i, name in enumerate(here.uuid)
                if name in places
            }
        )
    # A box's own centre tells how far it goes; the transform's shift alone depends on the world's origin
    moves: list[dict[str, bool]] = []
    for here, step in zip(cuboids, steps):
        found = {}
        for i, name in enumerate(here.uuid):
            if name in step:
                centre = here.pose[i, :3, 3]
                far = np.linalg.norm(step[name][:3, :3] @ centre + step[name][:3, 3] - centre)
                turn = np.degrees(Rotation.from_matrix(step[name][:3, :3]).magnitude())
                found[name] = bool(far > MOVES or turn > TURNS)
        moves.append(found)
    out = []
    for frame in range(len(cuboids)):
        at = min(frame, len(steps) - 1)
        votes: dict[str, list[bool]] = {}
        for other in moves[max(at - 1, 0) : at + 2]:
            for name, value in other.items():
                votes.setdefault(name, []).append(value)
        out.append(
            {
                name: (step, 2 * sum(votes[name]) + moves[at][name] > len(votes[name]))
                for name, step in (steps[at].items() if steps else ())
            }
        )
    return out


def _kind(label: str) -> int:
    if label in VEHICLES:
        return 1
    if label.startswith("Pedestrian"):
        return 3
    if label in WHEELED:
        return 4
    return 2


def label(
    points: np.ndarray,
    device: np.ndarray,
    cuboids: Cuboids,
    steps: dict[str, tuple[np.ndarray, bool]],
    seconds: float,
) -> Labels:
    """Velocity, class and whether they move, of world points (N, 3); background has velocity 0.

    Of nested boxes the smaller wins. A box of one LiDAR holds only its points.

    Args:
        device: (N,) which LiDAR saw a point. steps: of this frame, from `steps_of`. seconds: to the next frame.
    """
    velocity, kind = np.zeros(points.shape), np.zeros(len(points), np.int64)
    moving = np.zeros(len(points), bool)
    for i in np.argsort(-cuboids.size.prod(1)):
        own = (points - cuboids.pose[i, :3, 3]) @ cuboids.pose[i, :3, :3]
        inside = (np.abs(own) <= cuboids.size[i] / 2 + MARGIN).all(1)
        if cuboids.sensor[i] >= 0:
            inside &= device == cuboids.sensor[i]
        kind[inside] = _kind(str(cuboids.label[i]))
        velocity[inside], moving[inside] = 0, False
        step, moves = steps.get(str(cuboids.uuid[i]), (np.eye(4), False))
        if moves:
            velocity[inside] = (points[inside] @ step[:3, :3].T + step[:3, 3] - points[inside]) / seconds
            moving[inside] = True
    return Labels(velocity, kind, moving)


def read_cuboids(entry: dict[str, Any], root: Path) -> list[Cuboids] | None:
    """The cuboids of a clip's frames; None for a scene without them."""
    if entry["cuboids"] is None:
        return None
    return [pandaset.read_cuboids(root / name) for name in entry["cuboids"]]


def measures(predicted: np.ndarray, truth: np.ndarray, kind: np.ndarray, seconds: float) -> dict[str, Any]:
    """Scene-flow measures of points; velocities in m/s (N, 3), flow is velocity times `seconds`.

    epe3d: mean error of flow, metres. acc5, acc10: share with an error under 5 cm or 5 %, 10 cm or 10 %.
    angular_error_deg: median angle between velocities, over dynamic points; angular_error_mean_deg: its mean.
    epe_bs, epe_fs, epe_fd, epe_3way: background static, foreground static, foreground dynamic, their mean, with
    counts (Chodosh et al. 2024). bucket_static, bucket_dynamic: per class and speed bucket, the dynamic ones divided
    by their mean speed, averaged over the classes that occur (Khatri et al. 2024). background_speed: mean predicted
    speed off all boxes, m/s. speed_error: mean |difference of speeds| of dynamic points. velocity_rmse: of all points.
    A measure without points is None.
    """
    error = np.linalg.norm(predicted - truth, axis=1)
    speed, guessed = np.linalg.norm(truth, axis=1), np.linalg.norm(predicted, axis=1)
    dynamic = speed >= DYNAMIC

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    flow_error = error * seconds
    relative = error / np.maximum(speed, 1e-12)
    dot = (predicted * truth).sum(1)[dynamic]
    cosine = dot / np.maximum(speed[dynamic] * guessed[dynamic], 1e-12)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))  # a prediction that stands still is 90 degrees off
    parts = {"bs": (kind == 0) & ~dynamic, "fs": (kind > 0) & ~dynamic, "fd": (kind > 0) & dynamic}
    three = {name: mean(flow_error[chosen]) for name, chosen in parts.items()}
    known = [value for value in three.values() if value is not None]
    static, moving = [], []
    for number in range(len(CLASSES)):
        bucket = (speed[kind == number] / BUCKET).astype(int)
        errors, speeds = error[kind == number], speed[kind == number]
        if (bucket == 0).any():
            static.append(float(errors[bucket == 0].mean() * seconds))
        ratios = [errors[bucket == b].mean() / speeds[bucket == b].mean() for b in np.unique(bucket[bucket > 0])]
        if ratios:
            moving.append(float(np.mean(ratios)))
    return {
        "points": len(error),
        "dynamic_points": int(dynamic.sum()),
        "epe3d": mean(flow_error),
        "acc5": mean((flow_error < 0.05) | (relative < 0.05)),
        "acc10": mean((flow_error < 0.1) | (relative < 0.1)),
        "angular_error_deg": float(np.median(angle)) if len(angle) else None,
        "angular_error_mean_deg": mean(angle),
        "epe_3way": float(np.mean(known)) if known else None,
        **{f"epe_{name}": value for name, value in three.items()},
        **{f"count_{name}": int(chosen.sum()) for name, chosen in parts.items()},
        "bucket_static": float(np.mean(static)) if static else None,
        "bucket_dynamic": float(np.mean(moving)) if moving else None,
        "background_speed": mean(guessed[kind == 0]),
        "speed_error": mean(np.abs(speed - guessed)[dynamic]),
        "velocity_rmse": float(np.sqrt((error**2).mean())) if len(error) else None,
    }
