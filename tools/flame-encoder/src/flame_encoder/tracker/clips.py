"""Tracking many clips: a folder of folders of frames, on several processes or machines."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recon4d import images
from recon4d.files import InputError
from recon4d.parallel import cores, ordered_map, ray_map
from recon4d.records import Record, Watch, record, run, unwatched, up_to_date

from flame_encoder.tracker import clip


def find(frames: Path) -> list[str]:
    """The clips of a folder, in natural order: the paths below it of the folders that hold images.

    Raises InputError when there are none.
    """
    if not frames.is_dir():
        raise InputError(f"{frames} is not a folder; give one that holds a folder of frames for each clip")
    below = (Path(base).relative_to(frames) for base, _, files in os.walk(frames) if files)
    found = [path.as_posix() for path in below if path.parts and images.in_folder(frames / path)]
    if not found:
        raise InputError(f"{frames} has no folders with images; give one that holds a folder of frames for each clip")
    return sorted(found, key=images.natural_key)


def track_clips(
    frames: str | Path,
    landmarks: str | Path,
    out: str | Path,
    *,
    workers: int | None = None,
    engine: str = "local",
    force: bool = False,
    watch: Watch = unwatched,
    **options: Any,
) -> dict[str, Any]:
    """Track the person of each clip as `clip.track` does; writes `out/<clip>/track.npz` and the like.

    `out/tracks.jsonl` has a record for each clip: its figures, or the `error` that it ended with. A run that was
    killed goes on where it stopped.

    Args:
        frames: folder of clips, each a folder of images. landmarks: folder with one of the same name for each.
        workers: processes; one per core when None. engine: `local` or `ray`.
        force: replace what is there. watch: wraps the iteration over the records.
        options: of `clip.track`; `preview` is off when it is not given.

    Returns a summary. Raises InputError where no clip can be tracked, or `out` holds a run with other options.
    """
    frames, landmarks, out = Path(frames), Path(landmarks), Path(out)
    names, options = find(frames), {"preview": False} | options
    kinds = {tuple: list, type(frames): str}  # as JSON gives them back
    said = {key: kinds.get(type(value), lambda same: same)(value) for key, value in options.items()}

    again = (out / "tracks.json").is_file()  # what lies in a run that goes on is its own, also what it did not record

    def work(known: dict[str, Record]) -> Iterator[Record]:
        kept = {name for name in names if up_to_date(known.get(name), out / name / "track.npz", ())}
        todo = [name for name in names if name not in kept]
        one = partial(_track, frames, landmarks, out, {**options, "force": force or again})
        count = min(workers or cores(), max(1, len(todo)))
        if engine == "ray":
            found: Iterator[Record] = ray_map(lambda batch: [one(name) for name in batch], todo, 1, count, False)
        else:
            found = (_told(answer) for answer in ordered_map(one, todo, len(todo), count, few=1))
        for name in names:
            yield known[name] if name in kept else {"clip": name, **next(found)}

    def summary(records: list[Record]) -> dict[str, Any]:
        failed = sum("error" in item for item in records)
        return {"clips": len(records), "tracked": len(records) - failed, "failed": failed, "out": str(out)}

    with run(out, "flame-encoder track-clips", said, (), table="tracks", inputs=[frames, landmarks], force=force) as (
        claimed
    ):
        return record(
            claimed, "track-clips", said, work, summary, table="tracks", key="clip", total=len(names), watch=watch,
            items="clips",
        )  # fmt: skip


def _track(frames: Path, landmarks: Path, out: Path, options: dict[str, Any], name: str) -> Record:
    """Track one clip; its figures or its error."""
    torch.set_num_threads(1)  # the clips share the cores
    try:
        return clip.track(frames / name, landmarks / name, out / name, **options).figures
    except InputError as error:
        return {"error": str(error)}


def _told(answer: Record | InputError) -> Record:
    return {"error": str(answer)} if isinstance(answer, InputError) else answer
