"""One log and its poses written as a scene of PandaSet."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from recon4d import InputError, images
from recon4d.cli import progress
from recon4d.files import write_bytes, write_text
from recon4d.lenses import LensCamera, straightening

from flux4d import tables
from flux4d.logs import Boxes, Log, LogCamera, poses_at, poses_in_sweep
from flux4d.pandaset import CUBOID_COLUMNS, pose_entry

RATE = 10.0  # sweeps a second of PandaSet
STANDS = 0.5  # metres that the labels of a thing wander at most while it stands


def write_scene(
    recorded: Log, poses: np.ndarray, folder: Path, deskew: bool, log: Callable[[str], None]
) -> dict[str, Any]:
    """Write a log with its poses (N, 4, 4), LiDAR to world, as a scene; a summary.

    Of sweeps that come faster than PandaSet's every second or third is taken, so that each has pictures beside it.

    Args:
        deskew: place points and boxes whose moments are known by the LiDAR's pose at their own.
    """
    axes = np.eye(4)
    axes[:3, :3] = recorded.axes
    here = axes @ np.linalg.inv(poses[0])  # to the world of the scene, which has PandaSet's axes
    ego = here @ poses
    deskew = deskew and not recorded.compensated
    every = max(int(1 / RATE / _period(recorded.times) + 0.4), 1)
    taken = range(0, len(ego), every)
    times = recorded.times[::every]
    if every > 1:
        log(f"{folder.name}: {len(taken)} of {len(ego)} sweeps are taken, {RATE:g} a second")
    count, boxes = 0, []
    for number, i in enumerate(progress(taken, f"sweeps of {folder.name}", len(taken))):
        sweep, time = recorded.read(i), recorded.times[i]
        offsets = np.zeros(len(sweep.xyz)) if sweep.offsets is None else sweep.offsets
        at = _poses(recorded, ego, i, offsets if deskew else None, len(offsets))
        xyz = np.einsum("nij,nj->ni", at[:, :3, :3], sweep.xyz) + at[:, :3, 3]
        columns = dict(zip("xyz", xyz.T)) | {"i": np.round(sweep.intensity), "t": time + offsets}
        columns["d"] = np.zeros(len(xyz), np.int64)
        tables.write(folder / "lidar" / f"{number:02d}.pkl.gz", columns)
        count += len(xyz)
        found = None if recorded.boxes is None else recorded.boxes(i)
        if found is not None:
            at = _poses(recorded, ego, i, found.offsets if deskew else None, len(found.uuid))
            boxes.append((number, found, at @ found.pose))
        if i == 0:
            _check_view(recorded, xyz, ego, here)
    back = axes.copy()
    back[:3, :3] = recorded.axes.T
    _write_track(folder / "lidar", ego[::every] @ back, times)
    for name, camera in recorded.cameras.items():
        _write_camera(folder / "camera" / name, camera)
        _write_track(folder / "camera" / name, _track(recorded, camera, ego, here), camera.times)
        lonely = int((np.abs(camera.times[:, None] - times).min(1) > 0.6 * _period(times)).sum())
        if lonely:
            log(f"{name}: {lonely} of {len(camera.times)} pictures have no sweep beside them in time")
    write_text(folder / "meta" / "timestamps.json", json.dumps(times.tolist()))
    things = _write_cuboids(folder / "annotations" / "cuboids", boxes)
    if recorded.boxes is not None and len(boxes) < len(taken):
        log(f"{folder.name}: {len(taken) - len(boxes)} of {len(taken)} sweeps are not labelled")
    return {
        "scene": str(folder),
        "frames": len(taken),
        "seconds": round(float(times[-1] - times[0]), 3),
        "metres": round(float(np.linalg.norm(np.diff(ego[::every, :3, 3], axis=0), axis=1).sum()), 2),
        "points_per_sweep": count // len(taken),
        "cameras": {name: len(camera.files) for name, camera in recorded.cameras.items()},
        "poses": recorded.origin,
        "cuboids": things,
    }


def _poses(recorded: Log, ego: np.ndarray, i: int, offsets: np.ndarray | None, count: int) -> np.ndarray:
    """(count, 4, 4) the LiDAR's poses at moments of a sweep, or its pose at the sweep's own time."""
    if offsets is None or not count:
        return np.broadcast_to(ego[i], (count, 4, 4))
    return poses_in_sweep(recorded.times, ego, i, offsets)


def _period(times: np.ndarray) -> float:
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.1


def _track(recorded: Log, camera: LogCamera, ego: np.ndarray, here: np.ndarray) -> np.ndarray:
    """(N, 4, 4) camera to world of its pictures."""
    if camera.poses is not None:
        found: np.ndarray = here @ camera.poses
        return found
    return poses_at(recorded.times, ego, camera.times) @ np.linalg.inv(camera.lidar_to_camera)


def _check_view(recorded: Log, xyz: np.ndarray, ego: np.ndarray, here: np.ndarray) -> None:
    """Raise InputError where a camera's first picture has no point of the first sweep: its calibration is wrong."""
    for name, camera in recorded.cameras.items():
        # where it was at the time of the sweep, not of its first picture
        pose = poses_at(recorded.times, ego, recorded.times[:1])[0] @ np.linalg.inv(camera.lidar_to_camera)
        local = (xyz - pose[:3, 3]) @ pose[:3, :3]
        local = local[local[:, 2] > 0.1]
        pixels = local @ camera.K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        width, height = images.size(camera.files[0]) if camera.read is None else _picture(camera, 0)[1].shape[1::-1]
        if not ((pixels > -0.5) & (pixels < np.array([width, height]) - 0.5)).all(1).any():
            raise InputError(f"{camera.calibration}: no point of the first sweep is in {name}'s picture; correct it")


def _picture(camera: LogCamera, i: int) -> tuple[bytes, np.ndarray]:
    """A picture's bytes and its content, which has been read to see that it can be."""
    try:
        data = camera.files[i].read_bytes() if camera.read is None else camera.read(i)
    except OSError as error:
        raise InputError(f"{camera.files[i]} cannot be read ({error.strerror}); the log is not complete") from error
    return data, images.read(camera.files[i], data=data, upright=False)


def _write_camera(folder: Path, camera: LogCamera) -> None:
    """Pictures as they are, once each has been read, or straightened; and the intrinsics."""
    shape: tuple[int, ...] | None = None
    bent, K = camera.bent, camera.K / camera.K[2, 2]
    columns = rows = np.zeros((0, 0), np.float32)  # where each pixel is in the picture as it was taken
    if bent is not None:
        to = LensCamera(K + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]), bent.width, bent.height)
        columns, rows = (np.ascontiguousarray(part) for part in np.moveaxis(straightening(bent, to), 2, 0))
    for i, path in enumerate(progress(camera.files, f"pictures of {folder.name}", len(camera.files))):
        data, image = _picture(camera, i)
        found = image.shape
        if bent is not None and (bent.height, bent.width) != found[:2]:
            raise InputError(
                f"{path} is {found[1]}x{found[0]} pixels and {camera.calibration} is for {bent.width}x{bent.height}; "
                "copy it again"
            )
        if shape is not None and found != shape:
            raise InputError(
                f"{path} is {found[1]}x{found[0]} pixels and those before it {shape[1]}x{shape[0]}; remove it"
            )
        shape = found
        suffix = path.suffix.lower()
        if bent is not None:
            straight = cv2.remap(image, columns, rows, cv2.INTER_LINEAR)
            data, suffix = images.encode(".jpg", straight, quality=97), ".jpg"
        write_bytes(folder / f"{i:02d}{suffix}", data)
    fx, fy, cx, cy = K[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
    write_text(folder / "intrinsics.json", json.dumps({"fx": fx, "fy": fy, "cx": cx, "cy": cy}))


def _write_track(folder: Path, poses: np.ndarray, times: np.ndarray) -> None:
    write_text(folder / "poses.json", json.dumps([pose_entry(pose) for pose in poses]))
    write_text(folder / "timestamps.json", json.dumps(times.tolist()))


def _write_cuboids(folder: Path, frames: list[tuple[int, Boxes, np.ndarray]]) -> int:
    """PandaSet's tables of the boxes of sweeps with their poses (B, 4, 4) in the world; how many things there are.

    PandaSet's boxes stand upright: what is kept of a rotation is where the thing heads.
    """
    places: dict[str, list[np.ndarray]] = {}
    for _, boxes, pose in frames:
        for name, centre in zip(boxes.uuid, pose[:, :3, 3]):
            places.setdefault(str(name), []).append(centre)
    stands = {name: bool(np.ptp(np.array(found), axis=0).max() <= STANDS) for name, found in places.items()}
    for i, boxes, pose in frames:
        centre, heading = pose[:, :3, 3], pose[:, :3, 0]
        columns = {
            "uuid": boxes.uuid.astype(object),
            "label": boxes.label.astype(object),
            "yaw": np.arctan2(-heading[:, 0], heading[:, 1]),
            "stationary": np.array([stands[str(name)] for name in boxes.uuid], bool),
            **{f"position.{k}": centre[:, axis] for axis, k in enumerate("xyz")},
            **{f"dimensions.{k}": boxes.size[:, axis] for axis, k in enumerate("xyz")},
            "cuboids.sensor_id": np.full(len(centre), -1),
        }
        assert set(CUBOID_COLUMNS) <= columns.keys()
        tables.write(folder / f"{i:02d}.pkl.gz", columns)
    return len(places)
