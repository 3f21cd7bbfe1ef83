"""Records: one JSON line per file, kept up to date while a command runs, so that a killed run can go on."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recon4d import InputError
from recon4d.files import write_text


def read_records(path: str | Path) -> list[dict[str, Any]]:
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


def write_records(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Write all records atomically, one JSON object per line."""
    write_text(path, "".join(_line(record) for record in records))


def up_to_date(record: dict[str, Any] | None, target: Path, sources: Iterable[Path]) -> bool:
    """Whether `record` tells of a success whose file `target` is not older than any of `sources`."""
    if record is None or "error" in record or not target.exists():
        return False
    made = target.stat().st_mtime_ns
    return all(path.exists() and path.stat().st_mtime_ns <= made for path in sources)


def append_record(path: str | Path, record: dict[str, Any]) -> None:
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


def claim_run(path: str | Path, command: str, options: dict[str, Any], force: bool, folder: Path | None = None) -> bool:
    """Say whether a run may continue what lies in its output folder; `path` is the run's .json beside the .jsonl.

    What a killed run left half-written beside `path`, or in `folder`, where the command's images go, is deleted.
    Returns True when an earlier run with the same options left something to continue, False for a fresh start.
    Raises InputError when the earlier run had other options and `force` is off.
    """
    path = Path(path)
    inside = [] if folder is None else folder.rglob(".*")
    for left in [*path.parent.glob(f".{path.stem}.*"), *inside]:
        # As recon4d.files.atomic_path names them.
        if re.fullmatch(r"\..+\.\w{8}\.(json|jsonl|npy|png)", left.name):
            left.unlink(missing_ok=True)
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


def finish_run(path: str | Path, result: dict[str, Any]) -> None:
    """Put the run's result into its .json, beside the options."""
    path = Path(path)
    run = json.loads(path.read_text())
    write_text(path, json.dumps({**run, "result": result}, indent=2) + "\n")


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
