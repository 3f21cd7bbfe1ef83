"""Logs of other layouts brought into PandaSet's, after which nothing knows where they came from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError, images, runs
from recon4d.cli import progress
from recon4d.files import write_bytes, write_text

from flux4d import kitti, log_folders, tables
from flux4d.logs import Log, LogCamera, poses_at, poses_in_sweep
from flux4d.odometry import kiss_icp_poses
from flux4d.pandaset import pose_entry

LAYOUTS = {"kitti": kitti.open_log, "folder": log_folders.open_log}


def import_log(
    layout: str,
    source: str | Path,
    out: str | Path,
    poses: str | None = None,
    rate: float = 10.0,
    deskew: bool = True,
    force: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Bring a log into PandaSet's layout, as the scene `out`; a summary.

    The world is the first sweep's place, x right, y forward, z up. There are no cuboids.

    Args:
        layout: `kitti`, a drive of KITTI raw; `folder`, plain folders (docs/formats.md).
        poses: a file of them, `oxts`, or `kiss-icp`; None takes what the log has.
        rate: sweeps a second where the log has no timestamps.
        deskew: where the moments of a sweep's points are known, place each by the LiDAR's pose at its own.
        force: replace what an earlier import wrote. log: told of what a user should know.

    Raises:
        InputError: an output that exists, a log that is broken or incomplete, no poses.
    """
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; give that of one log")
    given = poses if poses not in (None, "oxts", "kiss-icp") else None
    with runs.claim(out, "flux4d import", force=force, inputs=[source, given]) as claimed:
        found = LAYOUTS[layout](source, rate, poses)
        if (source / "tracklet_labels.xml").exists():
            log(f"{source / 'tracklet_labels.xml'}: KITTI's tracklets are not read; the scene has no cuboids")
        known = found.poses
        if known is None and poses is None:
            raise InputError(f"{source} has no poses; give a file of them with --poses, or --poses kiss-icp")
        known = kiss_icp_poses(found, deskew) if known is None else known
        return write_scene(found, known, claimed.folder, deskew, log)


def write_scene(
    recorded: Log, poses: np.ndarray, folder: Path, deskew: bool, log: Callable[[str], None]
) -> dict[str, Any]:
    """Write a log with its poses (N, 4, 4), LiDAR to world, as a scene; a summary. As `import_log`."""
    axes = np.eye(4)
    axes[:3, :3] = recorded.axes
    ego = axes @ np.linalg.inv(poses[0]) @ poses  # LiDAR to the world, which has PandaSet's axes
    count = 0
    for i in progress(range(len(ego)), f"sweeps of {folder.name}", len(ego)):
        sweep, time = recorded.read(i), recorded.times[i]
        offsets = np.zeros(len(sweep.xyz)) if sweep.offsets is None else sweep.offsets
        at = (
            poses_in_sweep(recorded.times, ego, i, offsets) if deskew else np.broadcast_to(ego[i], (len(offsets), 4, 4))
        )
        xyz = np.einsum("nij,nj->ni", at[:, :3, :3], sweep.xyz) + at[:, :3, 3]
        columns = dict(zip("xyz", xyz.T)) | {"i": np.round(sweep.intensity), "t": time + offsets}
        columns["d"] = np.zeros(len(xyz), np.int64)
        tables.write(folder / "lidar" / f"{i:02d}.pkl.gz", columns)
        count += len(xyz)
        if i == 0:
            _check_view(recorded, xyz, ego)
    back = axes.copy()
    back[:3, :3] = recorded.axes.T
    _write_track(folder / "lidar", ego @ back, recorded.times)
    for name, camera in recorded.cameras.items():
        _write_camera(folder / "camera" / name, camera)
        track = poses_at(recorded.times, ego, camera.times) @ np.linalg.inv(camera.lidar_to_camera)
        _write_track(folder / "camera" / name, track, camera.times)
        lonely = int((np.abs(camera.times[:, None] - recorded.times).min(1) > 0.6 * _period(recorded.times)).sum())
        if lonely:
            log(f"{name}: {lonely} of {len(camera.times)} pictures have no sweep beside them in time")
    write_text(folder / "meta" / "timestamps.json", json.dumps(recorded.times.tolist()))
    return {
        "scene": str(folder),
        "frames": len(ego),
        "seconds": round(float(recorded.times[-1] - recorded.times[0]), 3),
        "metres": round(float(np.linalg.norm(np.diff(ego[:, :3, 3], axis=0), axis=1).sum()), 2),
        "points_per_sweep": count // len(ego),
        "cameras": {name: len(camera.files) for name, camera in recorded.cameras.items()},
        "poses": recorded.origin,
        "cuboids": 0,
    }


def _period(times: np.ndarray) -> float:
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.1


def _check_view(recorded: Log, xyz: np.ndarray, ego: np.ndarray) -> None:
    """Raise InputError where a camera's first picture has no point of the first sweep: its calibration is wrong."""
    for name, camera in recorded.cameras.items():
        pose = poses_at(recorded.times, ego, recorded.times[:1])[0] @ np.linalg.inv(camera.lidar_to_camera)
        local = (xyz - pose[:3, 3]) @ pose[:3, :3]
        local = local[local[:, 2] > 0.1]
        pixels = local @ camera.K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        if not ((pixels > -0.5) & (pixels < np.array(images.size(camera.files[0])) - 0.5)).all(1).any():
            raise InputError(f"{camera.calibration}: no point of the first sweep is in {name}'s picture; correct it")


def _write_camera(folder: Path, camera: LogCamera) -> None:
    """Pictures as they are, once each has been read, and the intrinsics."""
    shape: tuple[int, ...] | None = None
    for i, path in enumerate(progress(camera.files, f"pictures of {folder.name}", len(camera.files))):
        data = path.read_bytes()
        found = images.read(path, data=data, upright=False).shape
        if shape is not None and found != shape:
            raise InputError(
                f"{path} is {found[1]}x{found[0]} pixels and those before it {shape[1]}x{shape[0]}; remove it"
            )
        shape = found
        write_bytes(folder / f"{i:02d}{path.suffix.lower()}", data)
    fx, fy, cx, cy = (camera.K[[0, 1, 0, 1], [0, 1, 2, 2]] / camera.K[2, 2]).tolist()
    write_text(folder / "intrinsics.json", json.dumps({"fx": fx, "fy": fy, "cx": cx, "cy": cy}))


def _write_track(folder: Path, poses: np.ndarray, times: np.ndarray) -> None:
    write_text(folder / "poses.json", json.dumps([pose_entry(pose) for pose in poses]))
    write_text(folder / "timestamps.json", json.dumps(times.tolist()))
