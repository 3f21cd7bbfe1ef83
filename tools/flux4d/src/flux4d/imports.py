"""Logs of other layouts brought into PandaSet's, after which nothing knows where they came from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from recon4d import InputError, runs

from flux4d import argoverse2, kitti, log_folders, nuscenes, waymo
from flux4d.log_scenes import write_scene
from flux4d.logs import Log
from flux4d.odometry import kiss_icp_poses

LAYOUTS = {
    "kitti": kitti.find,
    "nuscenes": nuscenes.find,
    "argoverse2": argoverse2.find,
    "waymo": waymo.find,
    "folder": log_folders.find,
}


def import_log(
    layout: str,
    source: str | Path,
    out: str | Path,
    poses: str | None = None,
    rate: float = 10.0,
    deskew: bool = True,
    scenes: tuple[str, ...] | None = None,
    cameras: tuple[str, ...] | None = None,
    force: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Bring logs into PandaSet's layout: one as the scene `out`, several as scenes in it by their names; a summary.

    The world is the first sweep's place, x right, y forward, z up. Of several logs, those that cannot be brought in
    are told in the summary's `failed`, a sentence each.

    Args:
        layout: one of LAYOUTS (docs/formats.md).
        source: a log, or a folder of several; of nuScenes and Waymo always a folder of several.
        poses: a file of them, `oxts`, or `kiss-icp`; None takes what the log has.
        rate: sweeps a second where the log has no timestamps.
        deskew: where the moments of a sweep's points are known, place each by the LiDAR's pose at its own.
        scenes: names of those to take of several. cameras: names of those to take, as PandaSet calls them.
        force: replace what an earlier import wrote. log: told of what a user should know.

    Raises:
        InputError: an output that exists, a log that is broken or incomplete, no poses; of several, none that can be
            brought in.
    """
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; give that of one log")
    given = poses if poses not in (None, "oxts", "kiss-icp") else None

    def one(opened: Callable[[], Log], folder: Path) -> dict[str, Any]:
        with runs.claim(folder, "flux4d import", force=force, inputs=[source, given]) as claimed:
            found = _seen_by(opened(), cameras, source)
            if found.poses is None and poses is None:
                raise InputError(f"{source} has no poses; give a file of them with --poses, or --poses kiss-icp")
            known = kiss_icp_poses(found, deskew) if found.poses is None else found.poses
            return write_scene(found, known, claimed.folder, deskew, log)

    there = LAYOUTS[layout](source, rate, poses)
    if scenes is not None:
        missing = [name for name in scenes if name not in there or not name]
        if missing:
            has = ", ".join(name for name in there if name)[:200] or "one log without a name"
            raise InputError(f"--scenes {missing[0]}: {source} has no such log; it has {has}")
        there = {name: there[name] for name in scenes}
    if "" in there:
        return one(there[""], Path(out))
    if given is not None:
        raise InputError(f"--poses {given}: {source} holds several logs; import each by itself")
    runs.check_place(out, [source])
    done, failed = [], {}
    for name, opened in there.items():
        try:
            done.append(one(opened, Path(out) / name))
        except InputError as error:
            failed[name] = str(error)
            log(f"{name}: {error}")
    if not done:
        raise InputError(f"none of the {len(failed)} logs of {source} was brought in: {next(iter(failed.values()))}")
    return {"folder": str(out), "scenes": done, "failed": failed}


def _seen_by(found: Log, cameras: tuple[str, ...] | None, source: Path) -> Log:
    """A log with only some of its cameras."""
    if cameras is None:
        return found
    missing = [name for name in cameras if name not in found.cameras]
    if missing:
        raise InputError(f"--cameras {missing[0]}: {source} has none; it has {', '.join(found.cameras)}")
    return replace(found, cameras={name: found.cameras[name] for name in cameras})
