"""Fetching files by a list of addresses and checksums, and unpacking archives that may be hostile."""

import filecmp
import http.client
import json
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from recon4d import InputError, settings
from recon4d.files import read_json, sha256, write_text
from recon4d.runs import check_place

CHUNK = 1 << 20
ATTEMPTS = 3  # of a download whose connection breaks
TIMEOUT = 60.0  # seconds without a byte
RECORD = "artifacts.json"  # what was fetched, in the output folder


class Artifact(BaseModel):
    """One entry of the list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]
    to: str = "."  # folder below the output
    unpack: bool = False  # a zip or tar archive, which is deleted then

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if urlsplit(url).scheme not in ("http", "https") or not file_name(url):
            raise ValueError("must be an http or https address of a file")
        return url

    @field_validator("to")
    @classmethod
    def _below(cls, to: str) -> str:
        if unsafe(to):
            raise ValueError("must be a folder below the output")
        return to


def file_name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


def unsafe(name: str) -> bool:
    """Whether a path leaves the folder it is put into, on any system."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name


def read_list(path: Path) -> list[Artifact]:
    """The entries of a YAML list. Raises InputError naming the entry and the key."""
    content = settings.read(path)
    if not isinstance(content, list) or not content:
        raise InputError(f"{path} is no list; give entries with url and sha256")
    entries = []
    for number, item in enumerate(content, 1):
        try:
            entries.append(Artifact.model_validate(item))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "entry"
            raise InputError(f"{path}, entry {number}: {key}: {first['msg']}; correct it") from error
    return entries


def fetch(
    entries: list[Artifact],
    out: Path,
    force: bool = False,
    report: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, Any]:
    """Download, verify and unpack the entries into `out`; what is there already is kept.

    A download that stops is gone on with the next time. Checksums are verified before anything is unpacked, and an
    archive is unpacked whole or not at all. `out/artifacts.json` lists what was fetched.

    Args:
        force: fetch everything again; files that an earlier fetch wrote may be replaced, others never.
        report: called with a file's name, the bytes that are there, and how many there will be, 0 if not known.

    Raises:
        InputError: an address that gives nothing, another checksum, an archive with names outside the folder, links or
            devices, and existing files with other contents.
    """
    check_place(out, [])
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _fetch_all(entries, out, force, report)
    finally:
        if new and not any(out.iterdir()):
            out.rmdir()


def _fetch_all(
    entries: list[Artifact], out: Path, force: bool, report: Callable[[str, int, int], None]
) -> dict[str, Any]:
    record = _read_record(out / RECORD)
    fetched, kept = [], []
    for entry in entries:
        name, digest = file_name(entry.url), entry.sha256.lower()
        target = out / entry.to / name
        if not force and (digest in record if entry.unpack else _is(target, digest)):
            kept.append(name)
            continue
        part = out / f".{digest[:16]}.part"
        download(entry.url, part, digest, partial(report, name))
        mine = {out / one["to"] / file for one in record.values() for file in one["files"]} if force else None
        if entry.unpack:
            files = unpack(part, name, out / entry.to, out / f".{digest[:16]}.unpacked", mine)
            part.unlink()
        else:
            files = [name]
            if target.exists() and target not in (mine or ()) and not _is(target, digest):
                raise InputError(f"{target} exists with another checksum; {_remedy(force)}")
            _check_parents(out / entry.to, Path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
        record[digest] = {"url": entry.url, "to": entry.to, "files": files}
        write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
        fetched.append(name)
    return {"fetched": fetched, "kept": kept, "out": str(out)}


def _remedy(force: bool) -> str:
    return "it was not fetched, so --force does not replace it: move it away" if force else "remove it or give --force"


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    record = read_json(path)
    try:
        fine = all(isinstance(name, str) for one in record.values() for name in [one["to"], *one["files"]])
    except (AttributeError, TypeError, KeyError):
        fine = False
    if not fine:
        raise InputError(f"{path} does not list what was fetched; remove it to fetch everything again")
    return record


def download(url: str, part: Path, digest: str, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Download to `part`, going on where an earlier try stopped, until its SHA-256 is `digest`.

    Raises InputError when the server refuses, the connection breaks three times in a row without a new byte, or the
    checksum is another (the file is removed then).
    """
    failures = 0
    while not _is(part, digest):
        start = part.stat().st_size if part.exists() else 0
        try:
            _continue(url, part, start, report)
        except urllib.error.HTTPError as error:
            if error.code == 416 and start:  # nothing after what is there: it is whole and wrong
                part.unlink()
                continue
            raise InputError(f"{url} answers {error.code} {error.reason}; correct the address") from error
        except (OSError, http.client.HTTPException) as error:
            failures = failures + 1 if not part.exists() or part.stat().st_size <= start else 1
            if failures >= ATTEMPTS:
                raise InputError(f"{url} can't be fetched ({error}); run the command again to go on") from error
            continue
        if not _is(part, digest):
            found = sha256(part)
            part.unlink()
            raise InputError(f"{url} has the SHA-256 {found}, not {digest}; correct the list or the file")


def _continue(url: str, part: Path, start: int, report: Callable[[int, int], None]) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        done = start if goes_on else 0  # a server without ranges sends everything
        length = int(answer.headers.get("Content-Length") or 0)
        total = done + length
        with open(part, "ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                report(done, total)
    if length and done < total:
        raise http.client.IncompleteRead(b"", total - done)


def unpack(archive: Path, name: str, target: Path, staging: Path, mine: Collection[Path] | None = None) -> list[str]:
    """Unpack a zip or tar archive into `target`; the names of its files. `mine`: paths that may be replaced.

    Every name is checked before the first byte is written: files and folders below `target`, nothing else. Files are
    moved to their places once all are unpacked.

    Raises InputError naming the archive and its first bad entry, or a file that exists with other contents.
    """
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as pack:
                entries = pack.infolist()
                for item in entries:
                    mode = item.external_attr >> 16
                    _check_entry(name, item.filename, item.is_dir() or stat.S_IFMT(mode) in (0, stat.S_IFREG))
                pack.extractall(staging)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as pack:
                for member in pack:
                    _check_entry(name, member.name, member.isfile() or member.isdir())
                pack.extractall(staging, filter="data")
        else:
            raise InputError(f"{name} is neither a zip nor a tar archive; set unpack to false")
        files = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
        for file in files:
            there = target / file
            same = there.is_file() and filecmp.cmp(there, staging / file, False)
            if there.exists() and not same and there not in (mine or ()):
                raise InputError(f"{there} exists and differs from the one in {name}; {_remedy(mine is not None)}")
            _check_parents(target, file)
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).replace(target / file)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, NotImplementedError, OSError) as error:
        raise InputError(
            f"{name} can't be unpacked ({' '.join(str(error).split())[:150]}); correct the archive"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [file.as_posix() for file in files]


def _check_entry(archive: str, name: str, plain: bool) -> None:
    if unsafe(name):
        raise InputError(f"{archive} holds {name!r}, a path outside its folder; nothing of it was unpacked")
    if not plain:
        raise InputError(f"{archive} holds {name!r}, which is a link or a device; nothing of it was unpacked")


def _check_parents(target: Path, file: Path) -> None:
    # A link that lies in the output already must not carry files away.
    for parent in [target / part for part in (file, *file.parents)]:
        if parent.is_symlink():
            raise InputError(f"{parent} is a link; remove it or fetch into another folder")
