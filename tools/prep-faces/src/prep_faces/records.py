"""Records: one JSON line per file, kept up to date while a command runs, so that a killed run can go on."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from recon4d import InputError
from recon4d.files import write_text

Record = dict[str, Any]
Watch = Callable[[Iterator, int | None], Iterator]  # wraps an iteration, whose length it is told: a progress bar


def unwatched(items: Iterator, total: int | None) -> Iterator:
    """The `watch` of who wants no progress bar."""
    return items


def resumable(
    table: Path,
    command: str,
    options: dict[str, Any],
    work: Callable[[dict[Any, Record]], Iterable[Record]],
    summary: Callable[[list[Record]], dict[str, Any]],
    *,
    key: str = "file",
    total: int | None = None,
    force: bool = False,
    replaced: Iterable[Path] = (),
    halves: Iterable[Path] = (),
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Do work that leaves one record per item in `table` (a .jsonl) as it goes, and goes on after a kill.

    The .json beside the table holds command and options from the start, and the summary at the end.

    Args:
        work: given the records of an earlier run with the same options, by their `key`, it gives the record of each
            item in order: a known one itself where the item is done, else a new one. What it does before it returns
            an iterator is done before `watch` begins.
        summary: of all records: what the run amounts to.
        total: number of items, where it is known.
        force: forget a run with other options.
        replaced: what a fresh start removes. halves: what a killed run left half-written; see `temporaries`.
        watch: wraps the iteration over the records.

    Returns the summary and, as `kept`, how many records were known. Raises InputError when the table is from a run
    with other options and `force` is off.
    """
    manifest = table.with_suffix(".json")
    going_on = claim_run(manifest, command, options, force)
    for path in chain(temporaries([table, manifest]), halves, [] if going_on else [table, *replaced]):
        path.unlink(missing_ok=True)
    known = {record.get(key): record for record in read_records(table)}
    records: list[Record] = []
    kept = 0
    for record in watch(iter(work(known)), total):
        records.append(record)
        if record is known.get(record.get(key)):
            kept += 1
        else:
            append_record(table, record)
    write_records(table, records)
    result = summary(records)
    run = json.loads(manifest.read_text())
    write_text(manifest, json.dumps({**run, "result": result}, indent=2) + "\n")
    return {**result, "kept": kept}


def counts(records: list[Record]) -> dict[str, int]:
    """How many images there were, how many gave a result, and how many failed."""
    failed = sum("error" in record for record in records)
    return {"images": len(records), "written": len(records) - failed, "failed": failed}


def temporaries(targets: Iterable[Path]) -> Iterator[Path]:
    """What runs that were killed while they wrote `targets` left beside them."""
    names: dict[Path, set[tuple[str, ...]]] = {}
    for target in targets:
        names.setdefault(target.parent, set()).add((target.stem[:40], target.suffix))
    for folder, wanted in names.items():
        for path in folder.glob(".*"):
            found = re.fullmatch(r"\.(.*)\.\w{8}(\.\w+)", path.name)  # as recon4d.files.atomic_path names them
            if found and found.groups() in wanted:
                yield path


def read_records(path: str | Path) -> list[Record]:
    """The records of a .jsonl file, [] when it is missing. A last line cut short by a kill is left out.

    Raises InputError for any other line that is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline after it: written halfway
                break
            raise InputError(f"{path} line {number} is not JSON; delete the file or use --force") from error
        if not isinstance(record, dict):
            raise InputError(f"{path} line {number} is not a JSON object; delete the file or use --force")
        records.append(record)
    return records


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write all records atomically, one JSON object per line."""
    write_text(path, "".join(_line(record) for record in records))


def up_to_date(record: Record | None, target: Path, sources: Iterable[Path]) -> bool:
    """Whether `record` tells of a success whose file `target` is not older than any of `sources`."""
    if record is None or "error" in record or not target.exists():
        return False
    made = target.stat().st_mtime_ns
    return all(path.exists() and path.stat().st_mtime_ns <= made for path in sources)


def append_record(path: str | Path, record: Record) -> None:
    """Add one record and flush it."""
    path = Path(path)
    with open(path, "a+b") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # a line cut short by a kill: start a fresh one by cutting it off
                file.seek(0)
                whole = file.read()
                file.truncate(whole.rfind(b"\n") + 1)
        file.write(_line(record).encode())


def claim_run(path: Path, command: str, options: dict[str, Any], force: bool) -> bool:
    """Say whether a run may continue what lies in its output folder; `path` is the run's .json beside the .jsonl.

    Returns True when an earlier run with the same options left something to continue, False for a fresh start.
    Raises InputError when the earlier run had other options and `force` is off.
    """
    wanted = {"command": command, "options": options}
    if path.exists() and not force:
        try:
            earlier = json.loads(path.read_text())
        except ValueError:
            earlier = {}
        if {key: earlier.get(key) for key in wanted} == wanted:
            return True
        raise InputError(f"{path} is from a run with other options; give another --out or --force to replace it")
    write_text(path, json.dumps(wanted, indent=2) + "\n")
    return False


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
