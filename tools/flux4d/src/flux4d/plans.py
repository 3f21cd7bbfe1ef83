"""What a training is to do, from what its caller gives: settings, clips, and whether it goes on with a stopped run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon4d import InputError

from flux4d import checkpoints, indices, shipped
from flux4d.config import Config, load_config

Entry = dict[str, Any]  # a clip as an index holds it


@dataclass(frozen=True)
class Given:
    """What a run is to be, as its caller says: `values` replace settings by their keys, the rest is as in `start`."""

    index_path: str | Path
    data_root: str | Path | None
    config: str | Path | None
    overrides: tuple[str, ...]
    values: dict[str, Any]
    one_clip: bool
    init: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a run does: its settings, its clips and where their paths begin, and whether it goes on with a stopped
    one."""

    config: Config
    entries: list[Entry]
    root: Path
    resumes: bool


def make_plan(given: Given, output: Path | None) -> Plan:
    """Read settings and index; of a run in `output`, where there is one to go on with, its own settings.

    Raises InputError for what cannot be read, clips and frames that are not there, and settings that differ from those
    of the run to go on with.
    """
    kept = None if output is None or not (output / checkpoints.LAST).is_file() else output / "config.yaml"
    start = shipped.PRESET if given.init else "cpu-quick"
    config = load_config(given.config or kept or start, given.overrides, given.values)
    if given.one_clip and config.data.clip is None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"clip": 0})})
    if kept is not None:
        before, now = _flat(load_config(kept)), _flat(config)
        for name in before:
            if before[name] != now[name]:
                raise InputError(
                    f"{kept} has {name}: {before[name]}, and {now[name]} is given; leave it away to go on, or use "
                    "--resume-from"
                )
    index = indices.read(given.index_path)
    if config.data.clip is not None:
        entries = [indices.choose(index, config.data.clip)]
    else:
        entries = [entry for entry in index["clips"] if entry["split"] == "train"]
    if not entries:
        raise InputError(f"--index-path {given.index_path} has no clips to train on; see --val-scenes of flux4d index")
    fixed = config.train.fixed_frame
    if fixed is not None and not all(fixed < len(entry["frames"]) for entry in entries):
        raise InputError(f"--fixed-target-frame {fixed}: the clip has frames 0 to {len(entries[0]['frames']) - 1}")
    return Plan(config, entries, indices.root_of(index, given.data_root), kept is not None)


def _flat(config: Config) -> dict[str, Any]:
    """All settings by keys with dots."""
    dumped = config.model_dump()
    sections = {name: part for name, part in dumped.items() if isinstance(part, dict)}
    inner = {f"{name}.{key}": value for name, part in sections.items() for key, value in part.items()}
    return {"seed": dumped["seed"]} | inner
