"""Driving scenes with known depth and motion, in PandaSet's own layout."""

import functools
import json
import math
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError, images, runs
from recon4d.cli import progress
from recon4d.files import write_npz, write_text
from recon4d.parallel import cores, ordered_map

from flux4d import raycast, rigs, roads, streets, tables
from flux4d.pandaset import pose_entry
from flux4d.rigs import Rig
from flux4d.streets import Street

STREETS = ("plain", "varied")
EPOCH = 1557539924.0  # 2019, as PandaSet's
PERIOD = 0.1  # seconds per sweep
REACH = 150.0  # metres
SECTORS = 24  # actors move on from one to the next within a sweep
# Camera axes (x right, y down, z forward) in the vehicle's (x right, y forward, z up)
CAMERA_AXES = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def ego_pose(
    street: Street, time: float, height: float, forward: float = 0.0, axes: np.ndarray | None = None
) -> np.ndarray:
    """(4, 4) sensor to world of something mounted on the ego vehicle."""
    x, y, yaw = street.ego.pose(time)
    pose = np.eye(4)
    c, s = math.cos(yaw), math.sin(yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    pose[:3, :3] = turn if axes is None else turn @ axes
    pose[:3, 3] = [x - s * forward, y + c * forward, height + street.height(x, y)]
    return pose


def camera_pose(street: Street, time: float, rig: Rig, name: str = "front_camera") -> np.ndarray:
    """(4, 4) of a camera of the rig to the world."""
    a = math.radians(rigs.CAMERAS[name])  # counterclockwise, about the rig's own upright
    turn = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1.0]])
    return ego_pose(street, time, rig.camera_height, rig.camera_forward, turn @ CAMERA_AXES)


def sweep(
    street: Street, time: float, columns: int, rng: np.random.Generator, rig: Rig = rigs.PANDASET
) -> dict[str, np.ndarray]:
    """One turn of the spinning LiDAR and one frame of the forward one: PandaSet's columns, and the actor of each point.

    The spinning LiDAR looks backward at time - PERIOD / 2 and forward at `time`; points are in the world.
    """
    azimuth = (np.arange(columns) + 0.5) / columns * 2 * np.pi - np.pi  # clockwise from behind, 0 is forward
    parts = []
    sector = np.arange(columns) * SECTORS // columns
    for number in range(SECTORS + rig.forward):
        if number < SECTORS:
            a = azimuth[sector == number]
            moment, elevation, device = time + PERIOD * a.mean() / (2 * np.pi), rig.elevations(), 0
        else:  # the forward sensor: 60 by 10 degrees, even steps
            a, elevation = np.radians(np.linspace(-30, 30, max(columns // 8, 2))), np.radians(np.linspace(-7, 3, 20))
            moment, device = time, 1
        pose = ego_pose(street, moment, rig.lidar_height)
        a, e = (grid.ravel() for grid in np.meshgrid(a, elevation))
        directions = np.stack([np.cos(e) * np.sin(a), np.cos(e) * np.cos(a), np.sin(e)], -1) @ pose[:3, :3].T
        distance, actor, cosine = raycast.scan(street, moment, pose[:3, 3], directions)
        seen = distance < REACH
        if rig.dropout:
            seen &= rng.random(len(seen)) > rig.dropout
        noisy = distance[seen] + rng.normal(0, rig.noise, seen.sum())
        points = pose[:3, 3] + directions[seen] * noisy[:, None]
        intensity = np.round(255 * np.clip(0.1 + 0.6 * cosine[seen] - noisy / 400, 0, 1))
        parts.append(
            {
                "x": points[:, 0],
                "y": points[:, 1],
                "z": points[:, 2],
                "i": intensity,
                "t": np.full(len(points), EPOCH + moment),
                "d": np.full(len(points), device, np.int64),
                "actor": actor[seen],
                "velocity": streets.velocity(street, moment, points, actor[seen]),
            }
        )
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def cuboids(street: Street, time: float, names: list[str]) -> dict[str, np.ndarray]:
    """PandaSet's cuboid table at a time."""
    rows: dict[str, list[Any]] = {}

    def put(**values: object) -> None:
        for key, value in values.items():
            rows.setdefault(key, []).append(value)

    for actor, name in zip(street.actors, names):
        x, y, yaw = actor.pose(time)
        parked = actor.speed == 0
        moving = "Parked" if parked else "Moving"
        person = actor.label == "Pedestrian"
        put(
            uuid=name,
            label=actor.label,
            yaw=math.remainder(yaw, 2 * math.pi),
            stationary=parked,
            camera_used=-1,
        )
        put(**{"position.x": x, "position.y": y, "position.z": actor.size[2] / 2 + street.height(x, y)})
        put(**{f"dimensions.{k}": size for k, size in zip("xyz", actor.size)})
        put(
            **{
                "attributes.object_motion": None if person else moving,
                "cuboids.sibling_id": "-",
                "cuboids.sensor_id": -1,
                "attributes.rider_status": "With Rider" if actor.label == "Bicycle" else None,
                "attributes.pedestrian_behavior": "Walking" if person else None,
                "attributes.pedestrian_age": "Adult" if person else None,
            }
        )
    return {
        key: np.array(values, dtype=object if key == "uuid" or isinstance(values[0], str | None) else None)
        for key, values in rows.items()
    }


def write_scenes(
    root: str | Path,
    scenes: int = 1,
    first: int = 1,
    frames: int = 80,
    width: int = 480,
    columns: int = 1800,
    samples: int = 2,
    kind: str = "plain",
    cameras: Iterable[str] = ("front_camera",),
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write scenes as folders 001, 002 and so on, in PandaSet's layout; a summary.

    Args:
        first: number of the first. frames: of each, 10 Hz. width, columns, samples, kind, cameras: as in `write_scene`.
        workers: processes; None is one per core. force: replace scenes that exist.

    Raises:
        InputError: a camera or kind that is none, scenes that exist.
    """
    cameras = tuple(dict.fromkeys(cameras))
    for name in cameras:
        if name not in rigs.CAMERAS:
            raise InputError(f"--cameras {name} is none of {', '.join(rigs.CAMERAS)}")
    if kind not in STREETS:
        raise InputError(f"--streets {kind} is none of {', '.join(STREETS)}")
    numbers = range(first, first + scenes)
    folders = [Path(root) / f"{number:03d}" for number in numbers]
    jobs = [(folder, 1000 * seed + n) for n, folder in zip(numbers, folders)]
    several = min(workers or cores(), scenes)
    work = functools.partial(
        _job, sizes=(frames, width, columns, samples), kind=kind, cameras=cameras, alone=several == 1
    )
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(runs.claim(folder, "flux4d synth", force=force))
        answers = ordered_map(work, jobs, len(jobs), several, few=1)
        written = []
        for answer in answers if several == 1 else progress(answers, "scenes", scenes):
            if isinstance(answer, InputError):
                raise answer
            written.append(answer)
    return {"folder": str(root), "scenes": written}


def _job(job: tuple[Path, int], sizes: tuple[int, int, int, int], alone: bool, **options: Any) -> dict[str, Any]:
    if not alone:
        torch.set_num_threads(1)  # each of several processes is one thread
    return write_scene(*job, *sizes, **options, show=alone)


def write_scene(
    folder: Path,
    seed: int,
    n: int,
    width: int,
    columns: int,
    samples: int,
    kind: str = "plain",
    cameras: tuple[str, ...] = ("front_camera",),
    show: bool = True,
) -> dict[str, Any]:
    """Write one scene of n frames; a summary.

    Beside PandaSet's files: `truth/camera/NN.npz` (depth (H, W) metres along the optical axis, 0 is sky; velocity
    (H, W, 3) m/s in the world; actor (H, W), -1 for none), of cameras other than the front one `truth/NAME/NN.npz`,
    and `truth/lidar/NN.npz` (velocity (N, 3), actor (N,) in the order of the points).

    Args:
        width: of the image; 16:9 on plain streets. columns: LiDAR directions per turn, 1800 for a Pandar64. samples:
            squared, rays per pixel. kind: `plain` town streets, or `varied` roads, light, weather and sensors.
        cameras: names of `rigs.CAMERAS`. show: progress.
    """
    varied = kind == "varied"
    street = (roads.varied_street if varied else streets.random_street)(seed, n * PERIOD)
    rig = rigs.random_rig(seed) if varied else rigs.PANDASET
    height = round(width * rig.aspect)
    rng = np.random.default_rng((seed, 1))
    names = [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in street.actors]
    fx = rig.focal * width
    K = np.array([[fx, 0, width / 2], [0, fx, height / 2], [0, 0, 1]])
    lidar_poses, times, gps = [], [], []
    camera_poses: dict[str, list[Any]] = {name: [] for name in cameras}
    for i in progress(range(n), f"scene {folder.name}", n) if show else range(n):
        time = i * PERIOD
        for name in cameras:
            pose = camera_pose(street, time, rig, name)
            image, depth, actor, place = raycast.photograph(street, time, pose, K, width, height, samples)
            grain = rng.normal(0, rig.image_noise, image.shape) if rig.image_noise else 0.0
            picture = np.round(255 * np.clip(image + grain, 0, 1)).astype(np.uint8)
            images.write(folder / "camera" / name / f"{i:02d}.jpg", picture, quality=97)
            write_npz(
                folder / "truth" / ("camera" if name == "front_camera" else name) / f"{i:02d}.npz",
                depth=depth.astype(np.float32),
                velocity=streets.velocity(street, time, place, actor).astype(np.float16),
                actor=actor.astype(np.int16),
            )
            camera_poses[name].append(pose_entry(pose))
        points = sweep(street, time, columns, rng, rig)
        tables.write(folder / "lidar" / f"{i:02d}.pkl.gz", {k: points[k] for k in "xyzitd"})
        write_npz(
            folder / "truth" / "lidar" / f"{i:02d}.npz",
            velocity=points["velocity"].astype(np.float32),
            actor=points["actor"].astype(np.int16),
        )
        tables.write(folder / "annotations" / "cuboids" / f"{i:02d}.pkl.gz", cuboids(street, time, names))
        lidar_poses.append(pose_entry(ego_pose(street, time, rig.lidar_height)))
        times.append(EPOCH + time)
        gps.append({"lat": 37.4, "long": -122.1, "height": 10.0, "xvel": 0.0, "yvel": street.ego.speed})

    def put(path: Path, value: object) -> None:
        write_text(path, json.dumps(value))

    put(folder / "lidar" / "poses.json", lidar_poses)
    put(folder / "lidar" / "timestamps.json", times)
    for name in cameras:
        camera = folder / "camera" / name
        put(camera / "poses.json", camera_poses[name])
        put(camera / "timestamps.json", times)
        # OpenCV's intrinsics have the first pixel's centre at 0
        put(camera / "intrinsics.json", {"fx": fx, "fy": fx, "cx": K[0, 2] - 0.5, "cy": K[1, 2] - 0.5})
    put(folder / "meta" / "timestamps.json", times)
    put(folder / "meta" / "gps.json", gps)
    moving = sum(actor.speed > 0 for actor in street.actors)
    return {"scene": folder.name, "seed": seed, "frames": n, "actors": len(street.actors), "moving": moving}
