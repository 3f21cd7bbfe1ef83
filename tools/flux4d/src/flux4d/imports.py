"""Logs of other layouts brought into PandaSet's, after which nothing knows where they came from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from recon4d import InputError, runs

from flux4d import argoverse2, kitti, log_folders, many, nuscenes, waymo
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
    workers: int | None = 1,
    engine: str = "local",
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
        workers, engine: of several logs; as in `many.over`.
        force: replace what an earlier import wrote. log: told of what a user should know.

    Raises:
        InputError: an output that exists, a log that is broken or incomplete, no poses; of several, none that can be
            brought in.
    """
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; give that of one log")
    given = poses if poses not in (None, "oxts", "kiss-icp") else None
    _logs.cache_clear()  # the source may be another one now
    task = Task(layout, source, rate, poses, given, deskew, cameras, force)
    there = list(_logs(layout, source, rate, poses))
    if scenes is not None:
        missing = [name for name in scenes if name not in there or not name]
        if missing:
            has = ", ".join(name for name in there if name)[:200] or "one log without a name"
            raise InputError(f"--scenes {missing[0]}: {source} has no such log; it has {has}")
        there = list(dict.fromkeys(scenes))
    if "" in there:
        summary, sentences = bring(task, ("", Path(out)))
        for sentence in sentences:
            log(sentence)
        return summary
    if given is not None:
        raise InputError(f"--poses {given}: {source} holds several logs; import each by itself")
    runs.check_place(out, [source])
    done, failed = [], {}
    answers = many.over(partial(bring, task), [(name, Path(out) / name) for name in there], workers, engine)
    for name, answer in zip(there, answers):
        if isinstance(answer, InputError):
            failed[name] = str(answer)
            log(f"{name}: {answer}")
            continue
        summary, sentences = answer
        done.append(summary)
        for sentence in sentences:
            log(sentence)
    _logs.cache_clear()
    if not done:
        raise InputError(f"none of the {len(failed)} logs of {source} was brought in: {next(iter(failed.values()))}")
    return {"folder": str(out), "scenes": done, "failed": failed}


@dataclass(frozen=True)
class Task:
    """What is done with each of several logs; as in `import_log`, `given` the file of poses."""

    layout: str
    source: Path
    rate: float
    poses: str | None
    given: str | None
    deskew: bool
    cameras: tuple[str, ...] | None
    force: bool


def bring(task: Task, job: tuple[str, Path]) -> tuple[dict[str, Any], list[str]]:
    """Bring in a log by its name as the scene of a folder; a summary, and what a user should know."""
    name, folder = job
    said: list[str] = []
    with runs.claim(folder, "flux4d import", force=task.force, inputs=[task.source, task.given]) as claimed:
        opened = _logs(task.layout, task.source, task.rate, task.poses)[name]
        found = _seen_by(opened(), task.cameras, task.source)
        if found.poses is None and task.poses is None:
            raise InputError(f"{task.source} has no poses; give a file of them with --poses, or --poses kiss-icp")
        known = kiss_icp_poses(found, task.deskew) if found.poses is None else found.poses
        return write_scene(found, known, claimed.folder, task.deskew, said.append), said


@lru_cache(maxsize=1)  # nuScenes' tables are read once a process
def _logs(layout: str, source: Path, rate: float, poses: str | None) -> dict[str, Callable[[], Log]]:
    return LAYOUTS[layout](source, rate, poses)


def _seen_by(found: Log, cameras: tuple[str, ...] | None, source: Path) -> Log:
    """A log with only some of its cameras."""
    if cameras is None:
        return found
    missing = [name for name in cameras if name not in found.cameras]
    if missing:
        raise InputError(f"--cameras {missing[0]}: {source} has none; it has {', '.join(found.cameras)}")
    return replace(found, cameras={name: found.cameras[name] for name in cameras})
