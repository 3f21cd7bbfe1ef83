"""The output of a command: who may write where, what --force may clear, what a killed run leaves to be resumed.

One rule for all commands, told to users in docs/formats.md:

- A command claims the names it is going to write before it works. They must be free, and lie neither inside nor above
  an input, nor above the working folder.
- What it wrote is listed in `OUT/.recon4d/<command>.json`. `--force` removes what is listed there, and nothing else.
- An error leaves nothing begun: what was written is removed again, what `--force` had moved aside comes back.
- Work that can go on calls `Claim.keep` once there is something to go on with. From then on an error or a kill leaves
  it, and `--resume` goes on. A run killed before that is cleared by the next, with `--resume` or without.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from recon4d.files import InputError, read_json, temporary_owner, write_text

ROOM = ".recon4d"  # in an output folder: the lists of what commands wrote


@dataclass(eq=False)
class Claim:
    """A folder that a command may write into, and what it found there.

    folder: the folder, which exists. resumed: whether there is something of an earlier run to go on with.
    """

    folder: Path
    resumed: bool
    _listing: "_Listing"

    def keep(self) -> None:
        """From now on an error or a kill leaves what has been written, for --resume."""
        if self._listing.state == "begun":
            self._listing.write("kept")
            shutil.rmtree(self._listing.aside, ignore_errors=True)


@dataclass(eq=False)
class _Listing:
    """What a command has written into a folder, as its file there says.

    Paths are relative to the folder, with slashes; those of folders end in one.

    names: files and folders that are the command's to write, or None for all.
    state: `replacing` while old files are moved aside, `begun`, `kept` once there is something to resume, `ended`.
    before: paths of others, while the run has not ended. files: paths that it wrote, once it has.
    """

    folder: Path
    command: str
    names: tuple[str, ...] | None
    state: str = "new"
    before: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()

    @property
    def path(self) -> Path:
        return self.folder / ROOM / f"{self.command.replace(' ', '.')}.json"

    @property
    def aside(self) -> Path:
        """Where what --force replaces waits until the run has something better."""
        return self.path.with_suffix(".replaced")

    def there(self) -> frozenset[str]:
        """What is at the command's names now. Links are not followed."""
        tops = self.names or tuple(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        found: set[str] = set()
        for top in tops:
            place = self.folder / top
            if place.is_symlink() or not place.is_dir():
                found |= {top} if os.path.lexists(place) else set()
                continue
            for base, folders, files in os.walk(place):
                inside = Path(base).relative_to(self.folder)
                found.add(f"{inside.as_posix()}/")
                found.update((inside / name).as_posix() for name in files)
                found.update((inside / name).as_posix() for name in folders if (Path(base) / name).is_symlink())
        return frozenset(found)

    def ours(self) -> frozenset[str]:
        """What is there and was written by this command."""
        if self.state == "ended":
            return self.there() & self.files
        return self.there() - self.before if self.state in ("begun", "kept") else frozenset()

    def write(self, state: str) -> None:
        self.state = state
        listed = {"files": sorted(self.files)} if state == "ended" else {"before": sorted(self.before)}
        write_text(self.path, json.dumps({"command": self.command, "state": state, **listed}) + "\n")

    def read(self) -> "_Listing":
        """The listing as its file says, or itself where there is none."""
        if not self.path.is_file():
            return self
        content = read_json(self.path)
        state = content.get("state") if isinstance(content, dict) else None
        listed = content.get("files" if state == "ended" else "before") if isinstance(content, dict) else None
        if state not in ("replacing", "begun", "kept", "ended") or not isinstance(listed, list):
            raise InputError(f"{self.path} is damaged; move what you need out of {self.folder} and remove the folder")
        paths = frozenset(str(name) for name in listed)
        ended = state == "ended"
        return replace(self, state=state, before=self.before if ended else paths, files=paths if ended else self.files)

    def put_aside(self, paths: frozenset[str]) -> None:
        """Move files of an earlier run out of the way."""
        self.aside.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            shutil.copyfile(self.path, self.aside / "listing.json")
        self.write("replacing")
        for name in sorted(paths):
            if not name.endswith("/"):
                target = self.aside / "files" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).rename(target)
        self.remove(paths)

    def bring_back(self) -> None:
        """Undo `put_aside`."""
        files = self.aside / "files"
        for path in [path for path in files.rglob("*") if path.is_symlink() or not path.is_dir()]:
            target = self.folder / path.relative_to(files)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        self.path.unlink(missing_ok=True)
        if (self.aside / "listing.json").is_file():
            (self.aside / "listing.json").rename(self.path)
        shutil.rmtree(self.aside, ignore_errors=True)

    def undo(self) -> None:
        """Remove what the run wrote, and bring back what it was to replace."""
        self.remove(self.ours())
        self.bring_back()

    def remove(self, paths: frozenset[str]) -> None:
        """Delete files, and folders that are empty then."""
        for name in sorted(paths, reverse=True):  # what is in a folder comes before it
            if name.endswith("/"):
                with contextlib.suppress(OSError):
                    (self.folder / name).rmdir()
            else:
                (self.folder / name).unlink(missing_ok=True)


def check_place(out: str | Path, inputs: Iterable[str | Path | None], names: tuple[str, ...] | None = None) -> None:
    """Raise InputError for an output inside or above an input, or above the working folder.

    Args:
        out: a file or folder to be written. inputs: what is read; None and `-` are passed over.
        names: what in the folder is written, if not all of it.
    """
    out = Path(out)
    if "\0" in str(out):
        raise InputError(f"{str(out)!r} is no path: it holds a null byte; give another output")
    places = [Path(os.path.realpath(out / name)) for name in names or ("",)]
    for given in inputs:
        if given is None or str(given) == "-":
            continue
        source = Path(os.path.realpath(given))
        if source in places:
            raise InputError(f"{given} is read and would be written too; give another output")
        if any(source in place.parents for place in places) and source.is_dir():
            raise InputError(f"{out} lies inside the input {given}; give another output")
        if any(place in source.parents for place in places):
            raise InputError(f"{out} holds the input {given}; give another output")
    here = Path(os.path.realpath("."))
    if any(place == here or place in here.parents for place in places):
        raise InputError(f"{out} is or holds the folder you are in; give another output")


@contextlib.contextmanager
def claim(
    out: str | Path,
    command: str,
    *,
    force: bool = False,
    resume: bool = False,
    inputs: Iterable[str | Path | None] = (),
    names: tuple[str, ...] | None = None,
) -> Iterator[Claim]:
    """Take a folder, or some names in it, for a command to write into while the block runs.

    The folder is made. When the block ends, what it wrote is listed; when it raises, that is removed again and what
    was there before `force` comes back, unless `Claim.keep` has been called.

    Args:
        out: the folder.
        command: tool and command, `gaussian-avatar render`.
        force: remove what an earlier run of this command wrote.
        resume: go on with what one left; `Claim.resumed` says whether there is something.
        inputs: files and folders that are read; None and `-` are passed over.
        names: files and folders in `out` that the command writes; None: the folder is its own.

    Raises:
        InputError: names that are taken, by another command, another run, or files that no run wrote; an output in a
            wrong place; a run of the same command that is still at work there.
    """
    out = Path(out)
    check_place(out, inputs, names)
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder; give another output")
    room = out / ROOM
    missing = [folder for folder in (room, *room.parents) if not os.path.lexists(folder)]
    room.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(out, command):
            listing, resumed = _begin(out, command, force, resume, names)
            try:
                yield Claim(out, resumed, listing)
            except BaseException:
                if listing.state == "begun":
                    listing.undo()
                raise
            listing.files = listing.ours()
            listing.write("ended")
            shutil.rmtree(listing.aside, ignore_errors=True)
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def _locked(out: Path, command: str) -> Iterator[None]:
    lock = filelock.FileLock(out / ROOM / f"{command.replace(' ', '.')}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"{command} is writing into {out} now; wait for it, or give another output") from error
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _begin(out: Path, command: str, force: bool, resume: bool, names: tuple[str, ...] | None) -> tuple[_Listing, bool]:
    """The listing of a new run, its names free, and whether it goes on with an earlier one."""
    clear_stale(out)
    listing = _Listing(out, command, names)
    earlier = listing.read()
    if earlier.state in ("replacing", "begun"):  # killed before there was anything to keep
        earlier.undo()
        earlier = listing.read()
    there, ours = listing.there(), earlier.ours()
    files = {name for name in there if not name.endswith("/")}
    listing.before = there - ours
    if resume and files:
        listing.write("kept")
        return listing, True
    if files and not force:
        what = out if names is None else out / min(name for name in names if (out / name).exists())
        again = ", --resume to go on" if earlier.state == "kept" else ""
        raise InputError(f"{what} exists; give another output{again} or --force to replace it")
    others = files - ours - (_of_others(listing) if names is None else set())
    if others:
        raise InputError(
            f"{out / min(others)} was not written by {command}, so --force does not replace it; "
            "move it away or give another output"
        )
    if ours:
        listing.put_aside(ours)
    listing.write("begun")
    return listing, False


def _of_others(listing: _Listing) -> set[str]:
    """What other commands wrote into the folder beside this one."""
    paths = [path for path in listing.path.parent.glob("*.json") if path != listing.path]
    others = [replace(listing, command=path.stem).read() for path in paths]
    return {name for other in others for name in other.files}


def claim_file(path: str | Path, *, force: bool = False, inputs: Iterable[str | Path | None] = ()) -> Path:
    """`path`, if it is free to be written as one file; with `force` it may exist, as a file.

    The file itself is written by `recon4d.files.atomic_path`: whole or not at all.

    Raises InputError for a folder, a file that exists or is an input, or a place above an input.
    """
    path = Path(path)
    check_place(path, inputs)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write")
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists; give another output or --force to replace it")
    if path.parent.is_dir():
        clear_stale(path.parent)
    return path


def clear_stale(folder: Path) -> None:
    """Remove temporaries that killed processes of this project left in a folder and below."""
    for base, _, files in os.walk(folder):
        for name in files:
            owner = temporary_owner(name)
            if owner is not None and not _alive(owner):
                Path(base, name).unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if sys.platform == "win32":  # there signal 0 would end the process
        import psutil

        return psutil.pid_exists(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def read_checkpoint(path: str | Path, device: Any = "cpu") -> dict[str, Any]:
    """What `files.write_torch` wrote, its tensors on a device. Raises InputError for a missing or damaged file."""
    import torch

    if not Path(path).is_file():
        raise InputError(f"{path} does not exist")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damaged archives and foreign classes raise many types
        reason = str(error).split("\n")[0][:150] or type(error).__name__
        raise InputError(f"{path} is not a readable checkpoint ({reason})") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} is not a readable checkpoint (it holds a {type(state).__name__})")
    return state


def batch_places(step: int, batch_size: int, n: int, seed: int) -> np.ndarray:
    """Positions (batch_size,) of one step in the endless sequence of shuffled passes over n samples.

    A function of the step alone, so that a resumed run goes on with the samples an uninterrupted one would have.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    order = {epoch: np.random.default_rng((seed, 1, epoch)).permutation(n) for epoch in np.unique(places // n)}
    return np.array([order[place // n][place % n] for place in places])
