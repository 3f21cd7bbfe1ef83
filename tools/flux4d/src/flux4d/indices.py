"""Clips of scenes: which frames are input, which are targets, and where their files are. JSON, whatever the suffix."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from recon4d import InputError
from recon4d.files import atomic_path, read_json, write_text
from recon4d.runs import claim_file

from flux4d import many, pandaset
from flux4d.index_files import FORMAT, IndexFile
from flux4d.pandaset import Scene

TEST_SCENES = ("001", "011", "016", "065", "084", "090", "106", "115", "123", "158")  # the paper's
RATE = 10.0  # sweeps per second that the paper's slicing counts on
FEW = 12  # scenes for which starting processes costs more than it saves
JUMP_SPEED = 70.0  # m/s; a faster move from one frame to the next is a jump of the pose


@dataclass(frozen=True)
class Slicing:
    """How scenes are cut. Of a clip's first `inputs` frames every other one is input; all others are targets.

    train: frames of a clip and frames from one clip's start to the next, one pair after the other. test_frames: of a
    clip. test_starts: first frames of clips.
    """

    train: tuple[tuple[int, int], ...]
    test_frames: int
    test_starts: tuple[int, ...] | None  # None: as many as fit, one after the other
    inputs: int


PAPER = Slicing(train=((11, 6), (16, 11)), test_frames=16, test_starts=(0, 20, 40, 60), inputs=11)


def debug_slicing(clip_seconds: float, stride_seconds: float) -> Slicing:
    """Clips of one length at one stride for all scenes."""
    frames, step = round(clip_seconds * RATE) + 1, round(stride_seconds * RATE)
    if frames < 3 or step < 1:
        raise InputError(f"--clip-len-s {clip_seconds} and --stride-s {stride_seconds} are too short; give 0.2 and 0.1")
    return Slicing(train=((frames, step),), test_frames=frames, test_starts=None, inputs=min(frames, 11))


@dataclass(frozen=True, eq=False)
class Timeline:
    """A scene's frames in order of time. sweeps: (N,) numbers of LiDAR frames; images: the nearest image by camera.

    period: seconds from sweep to sweep.
    """

    sweeps: np.ndarray
    times: np.ndarray
    images: dict[str, np.ndarray]
    period: float


def timeline(scene: Scene) -> Timeline:
    """Sweeps sorted by time, each with the image nearest in time; sweeps without an image close enough are left out."""
    order = np.argsort(scene.lidar.times, kind="stable")
    times = scene.lidar.times[order]
    period = float(np.median(np.diff(times))) if len(times) > 1 else 1 / RATE
    keep = np.concatenate([[True], np.diff(times) > 1e-3 * period])  # two sweeps at one time: the first
    images = {}
    for name, camera in scene.cameras.items():
        nearest = np.abs(camera.times[:, None] - times[None]).argmin(0)
        keep &= np.abs(camera.times[nearest] - times) <= 0.6 * period
        images[name] = nearest
    return Timeline(order[keep], times[keep], {name: nearest[keep] for name, nearest in images.items()}, period)


def faults(scene: Scene, line: Timeline, frames: slice) -> str | None:
    """Why a run of frames is not a clip: a gap in time, or a pose that jumps; None when it is one."""
    times, poses = line.times[frames], scene.lidar.poses[line.sweeps[frames]]
    steps = np.diff(times)
    if (steps > 1.6 * line.period).any():
        return "sweeps, or a camera's images beside them, are missing"
    tracks = [poses, *(scene.cameras[name].poses[line.images[name][frames]] for name in scene.cameras)]
    for track in tracks:
        if (np.linalg.norm(np.diff(track[:, :3, 3], axis=0), axis=1) > JUMP_SPEED * steps + 0.2).any():
            return "the pose jumps"
    return None


def clip(scene: Scene, line: Timeline, frames: slice, inputs: int, split: str) -> dict[str, Any]:
    """One clip as the index holds it. Settings: `interpolation`, or `future` when targets follow the last input."""
    positions = np.arange(frames.stop - frames.start)
    last = (min(inputs, len(positions)) - 1) // 2 * 2
    chosen = [int(i) for i in positions if i <= last and i % 2 == 0]
    sweeps, root = line.sweeps[frames], scene.folder.parent
    cameras = {}
    for name, camera in scene.cameras.items():
        images = line.images[name][frames]
        fx, fy, cx, cy = scene.K[name][[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
        cameras[name] = {
            "frames": images.tolist(),
            "images": [camera.files[i].relative_to(root).as_posix() for i in images],
            "timestamps": camera.times[images].tolist(),
            "poses": [pandaset.pose_entry(camera.poses[i]) for i in images],
            "intrinsics": {"fx": fx, "fy": fy, "cx": cx - 0.5, "cy": cy - 0.5},
            "size": list(scene.sizes[name]),
        }
    boxes = [path.relative_to(root).as_posix() for i in sweeps if (path := scene.cuboids[i]) is not None]
    return {
        "scene": scene.folder.name,
        "split": split,
        "setting": "future" if len(positions) - 1 > last + 1 else "interpolation",
        "frames": sweeps.tolist(),
        "timestamps": line.times[frames].tolist(),
        "input": chosen,
        "target": [int(i) for i in positions if int(i) not in chosen],
        "lidar": [scene.lidar.files[i].relative_to(root).as_posix() for i in sweeps],
        "lidar_poses": [pandaset.pose_entry(scene.lidar.poses[i]) for i in sweeps],
        "cuboids": boxes if len(boxes) == len(sweeps) else None,
        "cameras": cameras,
    }


def clips_of(scene: Scene, slicing: Slicing, split: str) -> tuple[list[dict[str, Any]], list[str]]:
    """All clips of a scene, and sentences about the parts that were left out."""
    line = timeline(scene)
    total, found, left_out = len(line.times), [], []
    if split == "train":
        runs = [(start, n) for n, step in slicing.train for start in range(0, max(total - n, -1) + 1, step)]
        lengths = [n for n, _ in slicing.train]
    else:
        n = slicing.test_frames
        starts = slicing.test_starts if slicing.test_starts is not None else range(0, max(total - n, -1) + 1, n)
        runs, lengths = [(start, n) for start in starts], [n]
    for n in lengths:
        if n > total:
            left_out.append(f"{scene.folder.name}: {total} frames are fewer than a clip's {n}")
    for start, n in runs:
        if start + n > total:
            if n <= total:
                left_out.append(f"{scene.folder.name}: a clip of {n} frames from {start} ends after the log's {total}")
            continue
        frames = slice(start, start + n)
        fault = faults(scene, line, frames)
        if fault:
            left_out.append(f"{scene.folder.name}: frames {start} to {start + n - 1}: {fault}")
        else:
            found.append(clip(scene, line, frames, slicing.inputs, split))
    without = sum(path is None for path in scene.cuboids)
    if 0 < without < len(scene.cuboids):
        unlabelled = sum(one["cuboids"] is None for one in found)
        left_out.append(
            f"{scene.folder.name}: {without} of {len(scene.cuboids)} frames have no cuboids; "
            f"{unlabelled} of {len(found)} clips are without labels"
        )
    return found, left_out


def build(
    root: Path,
    slicing: Slicing,
    val_scenes: tuple[str, ...] | None,
    cameras: tuple[str, ...],
    log: Callable[[str], None],
    workers: int | None = 1,
    engine: str = "local",
) -> dict[str, Any]:
    """The index of all scenes under `root`.

    Args:
        val_scenes: the scenes to test on; None takes the paper's, but a lone scene is trained on.
        workers, engine: as in `many.over`.

    Raises:
        InputError: no scenes, an unknown scene, a broken scene, or no clip at all.
    """
    scenes = find_scenes(root)
    check_names("--val-scenes", val_scenes or (), [s.name for s in scenes])
    tested = TEST_SCENES if val_scenes is None else val_scenes
    if val_scenes is None and all(folder.name in TEST_SCENES for folder in scenes):
        if len(scenes) == 1:
            tested = ()
            log(f"{scenes[0].name} is one of the paper's test scenes, and the only one here: it is trained on")
        else:
            log("all scenes here are the paper's test scenes: there is none to train on; name those with --val-scenes")
    clips: list[dict[str, Any]] = []
    jobs = [(folder, "test" if folder.name in tested else "train") for folder in scenes]
    for answer in many.over(functools.partial(_scene_clips, cameras, slicing), jobs, workers, engine, few=FEW):
        if isinstance(answer, InputError):
            raise answer
        found, left_out = answer
        clips += found
        for sentence in left_out:
            log(sentence)
    if not clips:
        raise InputError(f"--data-root {root}: no scene is long enough for a clip; use --clip-len-s with less")
    return {"format": FORMAT, "root": str(root.resolve()), "clips": clips}


def _scene_clips(
    cameras: tuple[str, ...], slicing: Slicing, job: tuple[Path, str]
) -> tuple[list[dict[str, Any]], list[str]]:
    folder, split = job
    return clips_of(pandaset.open_scene(folder, cameras), slicing, split)


def find_scenes(root: Path) -> list[Path]:
    """The folders of scenes in a folder. Raises InputError when there are none."""
    if not root.is_dir():
        raise InputError(f"--data-root {root} is not a folder; give the one that holds PandaSet's scenes")
    scenes = sorted(path for path in root.iterdir() if path.is_dir() and pandaset.is_scene(path))
    if not scenes:
        raise InputError(f"--data-root {root} holds no scenes (folders with lidar and camera); write some with synth")
    return scenes


def check_names(option: str, names: tuple[str, ...], there: list[str]) -> None:
    """Raise InputError for a scene that is not there."""
    for name in names:
        if name not in there:
            raise InputError(f"{option} names {name}, which is not there; the scenes are {', '.join(there[:20])}")


def restrict(index: dict[str, Any], scenes: tuple[str, ...] | None, number: int) -> dict[str, Any]:
    """The index of the named scenes only, or of the first so many."""
    there = list(dict.fromkeys(c["scene"] for c in index["clips"]))
    chosen = list(scenes) if scenes else there[:number]
    check_names("--tiny-scenes", tuple(chosen), there)
    return index | {"clips": [c for c in index["clips"] if c["scene"] in chosen]}


def write(path: str | Path, index: dict[str, Any]) -> None:
    """Write an index, atomically."""
    write_text(path, json.dumps(index))


def read(path: str | Path) -> dict[str, Any]:
    """Read an index. Raises InputError when it is missing or something else; what `IndexFile` says holds for it."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--index-path {path} is not a file; write one with flux4d index")
    index = read_json(path)
    try:
        IndexFile.model_validate(index)
    except ValidationError as error:
        first = error.errors()[0]
        said = ": ".join([".".join(map(str, first["loc"])), first["msg"]]).lstrip(": ")[:200]
        raise InputError(
            f"--index-path {path} is not an index of flux4d ({said}); write it again with flux4d index"
        ) from error
    return index


def choose(index: dict[str, Any], number: int) -> dict[str, Any]:
    """A clip by its number. Raises InputError when there are fewer."""
    clips = index["clips"]
    if not 0 <= number < len(clips):
        raise InputError(f"--clip-index {number}: the index has clips 0 to {len(clips) - 1}")
    return clips[number]


def root_of(index: dict[str, Any], data_root: str | Path | None = None) -> Path:
    """Where an index's paths begin: `data_root`, else where the index was made. InputError when that is gone."""
    root = Path(data_root or index["root"])
    if not root.is_dir():
        raise InputError(f"{root} is not there any more; give the scenes' folder with --data-root")
    return root


def open_clip(index_path: str | Path, number: int, data_root: str | Path | None = None) -> tuple[dict[str, Any], Path]:
    """A clip of an index file, and where its paths begin."""
    index = read(index_path)
    return choose(index, number), root_of(index, data_root)


def write_clips(
    data_root: str | Path,
    out_full: str | Path,
    out_tiny: str | Path | None = None,
    preset: str | None = None,
    clip_seconds: float | None = None,
    stride_seconds: float | None = None,
    tiny_scenes: tuple[str, ...] | None = None,
    tiny_number: int = 2,
    val_scenes: tuple[str, ...] | None = None,
    cameras: tuple[str, ...] = ("front_camera",),
    workers: int | None = None,
    engine: str = "local",
    force: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Cut all scenes of a folder into clips and write their index, and one of a few scenes; a summary.

    Args:
        preset: `paper`, or `debug` for clips of one length; None is `debug` where seconds are given, else `paper`.
        clip_seconds, stride_seconds: length of a clip and time to the next, of `debug`; None is 1.
        tiny_scenes, tiny_number: the scenes of `out_tiny`, or how many, the first ones.
        val_scenes, cameras, workers, engine, log: as in `build`.

    Raises:
        InputError: `paper` with seconds, outputs that exist (unless `force`), or as `build`.
    """
    timed = clip_seconds is not None or stride_seconds is not None
    if preset == "paper" and timed:
        raise InputError("--preset paper has its own lengths; leave --clip-len-s and --stride-s away or use debug")
    debug = preset == "debug" or timed
    slicing = debug_slicing(clip_seconds or 1.0, stride_seconds or 1.0) if debug else PAPER
    data_root, out_full, out_tiny = Path(data_root), Path(out_full), Path(out_tiny) if out_tiny else None
    find_scenes(data_root)
    if out_tiny and out_tiny.resolve() == out_full.resolve():
        raise InputError(f"--out-tiny {out_tiny} is --out-full too; give another")
    for path in filter(None, (out_full, out_tiny)):
        claim_file(path, force=force, inputs=[data_root])
    full = build(data_root, slicing, val_scenes, cameras, log, workers, engine)
    result: dict[str, Any] = {"full": str(out_full), "clips": len(full["clips"])}
    with atomic_path(out_full) as temporary:
        temporary.write_text(json.dumps(full))
        if out_tiny:
            tiny = restrict(full, tiny_scenes, tiny_number)
            write(out_tiny, tiny)
            result |= {"tiny": str(out_tiny), "tiny_clips": len(tiny["clips"])}
    splits = {split: sum(clip["split"] == split for clip in full["clips"]) for split in ("train", "test")}
    return result | splits | {"scenes": len({clip["scene"] for clip in full["clips"]})}
