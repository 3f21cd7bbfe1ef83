"""Records: one JSON line per file, kept up to date while a command runs, so that a killed run can go on."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recon4d import runs
from recon4d.files import InputError, parse_json, read_json, write_text
from recon4d.runs import Claim

Record = dict[str, Any]
Watch = Callable[
    [Iterator[Any], int | None], Iterator[Any]
]  # wraps an iteration, whose length it is told: a progress bar


def unwatched(items: Iterator[Any], total: int | None) -> Iterator[Any]:
    """The `watch` of who wants no progress bar."""
    return items


@contextmanager
def run(
    out: Path,
    command: str,
    options: dict[str, Any],
    names: Iterable[str],
    *,
    table: str | None = None,
    inputs: Iterable[str | Path] = (),
    force: bool = False,
) -> Iterator[Claim]:
    """Claim what a run writes, for the block; one that was killed goes on where it stopped.

    Args:
        out: folder. command: tool and command, `prep-faces landmarks`.
        names: what the run writes there beside its table (.jsonl) and the .json that says its options.
        table: their name, the command's if None.
        inputs: files and folders that are read.
        force: replace what a run with other options wrote.

    Raises:
        InputError: `out` holds a run with other options and `force` is off; else as `recon4d.runs.claim`.
    """
    short = command.split()[-1]
    table = table or short
    about = out / f"{table}.json"
    same = _begun(about) == {"command": short, "options": options}
    other = InputError(f"{about} is from a run with other options; give another --out or --force to replace it")
    if about.is_file() and not (same or force):
        raise other
    names = (*names, f"{table}.jsonl", about.name)
    claiming = runs.claim(out, command, force=force, resume=same and not force, inputs=inputs, names=names)
    with claiming as claimed:
        # A kill may have left one with other options, which the claim brought back.
        if claimed.resumed and _begun(about) != {"command": short, "options": options}:
            raise other
        yield claimed


def record(
    claimed: Claim,
    command: str,
    options: dict[str, Any],
    work: Callable[[dict[Any, Record]], Iterable[Record]],
    summary: Callable[[list[Record]], dict[str, Any]],
    *,
    table: str | None = None,
    key: str = "file",
    whole: Callable[[Record], bool] = lambda record: True,
    total: int | None = None,
    watch: Watch = unwatched,
    items: str = "images",
) -> dict[str, Any]:
    """Do work that leaves one record per item in a table as it goes; the table and its .json: see `run`.

    Args:
        claimed: the folder, of `run`. command: its last word there.
        work: given the records of an earlier run by their `key`, it yields the record of each item in order: a known
            one itself where the item is done, else a new one.
        summary: of all records: what the run amounts to; it goes into the .json.
        whole: whether a record of an earlier run, which may be a stranger's, has what the work asks of it.
        total: number of items, where it is known.
        watch: wraps the iteration over the records. items: what an error calls them.

    Returns the summary and, as `kept`, how many records were known. Raises InputError when there is no result at all.
    """
    table = table or command
    lines, about = claimed.folder / f"{table}.jsonl", claimed.folder / f"{table}.json"
    earlier = read_records(lines) if claimed.resumed else []
    known = {item[key]: item for item in earlier if isinstance(item.get(key), str | int) and whole(item)}
    content = {"command": command, "options": options}
    write_text(about, json.dumps(content, indent=2) + "\n")
    records: list[Record] = []
    kept = 0
    for item in watch(iter(work(known)), total):
        records.append(item)
        if item is known.get(item.get(key)):
            kept += 1
            continue
        append_record(lines, item)
        if "error" not in item:
            claimed.keep()
    if records and all("error" in item for item in records):
        what, why = records[0].get(key), records[0]["error"]
        raise InputError(f"none of {len(records)} {items} gave a result ({what}: {why})")
    write_records(lines, records)
    result = summary(records)
    write_text(about, json.dumps({**content, "result": result}, indent=2) + "\n")
    return {**result, "kept": kept}


def counts(records: list[Record]) -> dict[str, int]:
    """How many images there were, how many gave a result, and how many failed."""
    failed = sum("error" in item for item in records)
    return {"images": len(records), "written": len(records) - failed, "failed": failed}


def numbers(value: Any, count: int) -> bool:
    """Whether a value of a record is a list of so many finite numbers."""
    return isinstance(value, list) and len(value) == count and all(number(item) for item in value)


def number(value: Any, least: float = -1e9, most: float = 1e9) -> bool:
    """Whether a value of a record is a number within bounds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def read_records(path: str | Path) -> list[Record]:
    """The records of a .jsonl file, [] when it is missing. A last line cut short by a kill is left out.

    Raises InputError for any other line that is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for row, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = parse_json(line, path)
        except InputError as error:
            if row == len(lines):  # no newline after it: written halfway
                break
            raise InputError(f"{path} line {row} is not JSON; delete the file or use --force") from error
        if not isinstance(item, dict):
            raise InputError(f"{path} line {row} is not a JSON object; delete the file or use --force")
        records.append(item)
    return records


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write all records atomically, one JSON object per line."""
    write_text(path, "".join(_line(item) for item in records))


def up_to_date(item: Record | None, target: Path, sources: Iterable[Path]) -> bool:
    """Whether a record tells of a success whose file `target` is not older than any of `sources`."""
    if item is None or "error" in item or not target.exists():
        return False
    made = target.stat().st_mtime_ns
    return all(path.exists() and path.stat().st_mtime_ns <= made for path in sources)


def append_record(path: str | Path, item: Record) -> None:
    """Add one record and flush it. Raises InputError where the disk is full, or the like."""
    path = Path(path)
    try:
        with open(path, "a+b") as file:
            if file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a line cut short by a kill: start a fresh one by cutting it off
                    file.seek(0)
                    whole = file.read()
                    file.truncate(whole.rfind(b"\n") + 1)
            file.write(_line(item).encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from error


def _begun(path: Path) -> dict[str, Any] | None:
    """Command and options of the run that a .json tells of, None where it tells of none."""
    if not path.is_file():
        return None
    with suppress(InputError):
        content = read_json(path)
        if isinstance(content, dict):
            return {key: content.get(key) for key in ("command", "options")}
    return None


def _line(item: Record) -> str:
    line = json.dumps(item, ensure_ascii=False) + "\n"
    with suppress(UnicodeEncodeError):
        line.encode()
        return line
    return json.dumps(item) + "\n"  # a name that is not UTF-8
