"""Who may write where: claims, what --force clears, what errors and kills leave."""

import json
import os
import time

import forks
import numpy as np
import pytest
import torch
from recon4d import InputError, files, runs

COMMAND = "tool train"


def tree(folder):
    """All files below a folder with their contents, and its folders."""
    paths = [path for path in folder.rglob("*")]
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def visible(folder):
    return {name for name in tree(folder) if not name.startswith(".recon4d")}


def run(out, content="one", **options):
    with runs.claim(out, COMMAND, **options) as claimed:
        files.write_text(out / "sub" / "a.txt", content)
        files.write_text(out / "b.txt", content)
    return claimed


def test_what_a_run_writes_is_listed_and_replaced_with_force_alone(tmp_path):
    out = tmp_path / "deep" / "out"
    assert not run(out).resumed
    assert visible(out) == {"sub", "sub/a.txt", "b.txt"}
    listing = json.loads((out / ".recon4d" / "tool.train.json").read_text())
    assert listing["state"] == "ended" and listing["files"] == ["b.txt", "sub/", "sub/a.txt"]
    before = tree(out)
    with pytest.raises(InputError, match=r"out exists; give another output or --force"):
        run(out, "two")
    assert tree(out) == before
    run(out, "two", force=True)
    assert (out / "b.txt").read_text() == "two" and visible(out) == {"sub", "sub/a.txt", "b.txt"}


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "out").mkdir()
    run(tmp_path / "out")


def test_force_keeps_what_no_run_wrote(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.jpg").write_text("mine")
    before = tree(tmp_path)
    for force in (False, True):
        with pytest.raises(InputError, match=r"mine\.jpg was not written by tool train" if force else "exists"):
            run(out, force=force)
        assert tree(tmp_path) == before
    (out / "mine.jpg").unlink()
    run(out)
    (out / "sub" / "note.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"note\.txt was not written by"):
        run(out, force=True)
    assert tree(tmp_path) == before


def test_names_of_several_commands_in_one_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for name in ("a", "b"):
        with runs.claim(tmp_path, f"tool {name}", names=(name, f"{name}.json")):
            files.write_text(tmp_path / name / "0.txt", name)
            files.write_text(tmp_path / f"{name}.json", name)
    with pytest.raises(InputError, match=r"/a exists"), runs.claim(tmp_path, "tool a", names=("a", "a.json")):
        pass
    with runs.claim(tmp_path, "tool a", names=("a", "a.json"), force=True):
        assert visible(tmp_path) == {"mine.txt", "b", "b/0.txt", "b.json"}
    assert visible(tmp_path) == {"mine.txt", "b", "b/0.txt", "b.json"}
    with pytest.raises(InputError, match="was not written by tool c"):  # another command's
        with runs.claim(tmp_path, "tool c", names=("b",), force=True):
            pass


def test_what_other_commands_added_to_a_run_stays(tmp_path):
    out = tmp_path / "out"
    run(out)
    with runs.claim(out, "tool metrics", names=("metrics.json",)):
        files.write_text(out / "metrics.json", "{}")
    run(out, "two", force=True)
    assert visible(out) == {"sub", "sub/a.txt", "b.txt", "metrics.json"}


@pytest.mark.parametrize("error", [InputError, ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_nothing_begun(tmp_path, error):
    with pytest.raises(error), runs.claim(tmp_path / "new" / "out", COMMAND):
        files.write_text(tmp_path / "new" / "out" / "deep" / "a.txt", "half")
        (tmp_path / "new" / "out" / "empty").mkdir()
        raise error
    assert tree(tmp_path) == {}
    out = tmp_path / "out"
    run(out)
    before = tree(tmp_path)
    with pytest.raises(error), runs.claim(out, COMMAND, force=True):
        files.write_text(out / "b.txt", "half")
        files.write_text(out / "c.txt", "half")
        raise error
    assert tree(tmp_path) == before


def test_what_is_kept_is_resumed(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), runs.claim(out, COMMAND) as claimed:
        files.write_text(out / "checkpoint", "1")
        claimed.keep()
        files.write_text(out / "later", "2")
        raise ZeroDivisionError
    assert visible(out) == {"checkpoint", "later"}
    with pytest.raises(InputError, match="--resume to go on or --force"):
        run(out)
    with runs.claim(out, COMMAND, resume=True) as claimed:
        assert claimed.resumed
        files.write_text(out / "end", "3")
    run(out, force=True)
    assert visible(out) == {"sub", "sub/a.txt", "b.txt"}
    with runs.claim(tmp_path / "none", COMMAND, resume=True) as claimed:  # nothing to go on with: a new run
        assert not claimed.resumed


KILLED = """
import sys, time
from pathlib import Path
from recon4d import files, runs
out = Path(sys.argv[1])
with runs.claim(out, "tool train", force="force" in sys.argv) as claimed:
    with files.atomic_path(out / "movie.mp4") as temporary:
        files.write_text(out / "a.txt", "begun")
        if "keep" in sys.argv:
            claimed.keep()
        Path(sys.argv[2]).touch()
        time.sleep(60)
"""


def begun(out, *words):
    """A process in the middle of its work."""
    ready = out.parent / "ready"
    ready.unlink(missing_ok=True)
    process = forks.start("python", "-c", KILLED, out, ready, *words)
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    return process


def killed(out, *words):
    process = begun(out, *words)
    process.kill()
    process.communicate()


def test_a_killed_run_is_cleared_by_the_next_or_resumed(tmp_path):
    out = tmp_path / "out"
    killed(out)
    assert len(visible(out)) == 1 and len([p for p in out.iterdir() if ".recon4d-" in p.name]) == 1
    run(out)
    assert visible(out) == {"sub", "sub/a.txt", "b.txt"}
    killed(out, "force")
    with runs.claim(out, COMMAND, resume=True) as claimed:  # what it was to replace is back
        assert claimed.resumed and visible(out) == {"sub", "sub/a.txt", "b.txt"}
    killed(out, "force", "keep")
    with runs.claim(out, COMMAND, resume=True) as claimed:
        assert claimed.resumed and visible(out) == {"a.txt"}
    killed(tmp_path / "other")
    with runs.claim(tmp_path / "other", COMMAND, resume=True) as claimed:
        assert not claimed.resumed and visible(tmp_path / "other") == set()


def test_two_runs_do_not_share_a_folder(tmp_path):
    out = tmp_path / "out"
    process = begun(out)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="tool train is writing into"):
        run(out, force=True)
    assert tree(tmp_path) == before
    process.kill()
    process.communicate()
    run(out)


def test_a_kill_while_old_files_move_aside_loses_none(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(out)
    before = tree(out)

    class Killed(BaseException):
        pass

    moved = []

    def rename(self, target):
        moved.append(self)
        if len(moved) == 2:
            raise Killed
        return os.rename(self, target)

    monkeypatch.setattr("pathlib.Path.rename", rename)
    monkeypatch.setattr(runs._Listing, "undo", lambda self: None)
    with pytest.raises(Killed):
        run(out, force=True)
    monkeypatch.undo()
    with pytest.raises(InputError, match="exists"):
        run(out)
    assert tree(out) == before


def test_places_that_are_refused(tmp_path, monkeypatch):
    pictures = tmp_path / "data" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "0.png").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    for out, inputs, said in (
        (pictures, [pictures], "is read and would be written"),
        (pictures / "out", [pictures], "lies inside the input"),
        (tmp_path / "data", [pictures], "holds the input"),
        (tmp_path / "data", [pictures / "0.png"], "holds the input"),
        (tmp_path, [], "is or holds the folder you are in"),
        (tmp_path.parent, [], "is or holds the folder you are in"),
        (pictures / ".." / "pictures", [pictures], "is read and would be written"),
        (pictures / "0.png", [], "is a file, not a folder"),
    ):
        for force in (False, True):
            with pytest.raises(InputError, match=said), runs.claim(out, COMMAND, inputs=inputs, force=force):
                pass
    (tmp_path / "link").symlink_to(pictures)
    with pytest.raises(InputError, match="is read and would be written"):
        with runs.claim("link", COMMAND, inputs=[pictures], force=True):
            pass
    (tmp_path / "link").unlink()
    assert tree(tmp_path) == before
    with runs.claim("data", COMMAND, inputs=[pictures, None, "-"], names=("landmarks",)):
        pass


def test_links_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    out = tmp_path / "out"
    with runs.claim(out, COMMAND):
        (out / "link").symlink_to(outside)
    run(out, force=True)
    assert (outside / "mine").read_text() == "mine" and not (out / "link").exists()


def test_a_listing_that_names_other_places_removes_nothing_there(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "mine.txt").write_text("mine")
    run(out)
    listing = out / ".recon4d" / "tool.train.json"
    for names in (["../mine.txt", str(tmp_path / "mine.txt"), "b.txt", "sub/", "sub/a.txt"], "x", None):
        listing.write_text(json.dumps({"state": "ended", "files": names}))
        if isinstance(names, list):
            run(out, force=True)
        else:
            with pytest.raises(InputError, match="is damaged"):
                run(out, force=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_single_files(tmp_path):
    path = tmp_path / "a.png"
    assert runs.claim_file(path) == path
    path.write_text("x")
    with pytest.raises(InputError, match="exists"):
        runs.claim_file(path)
    assert runs.claim_file(path, force=True) == path
    with pytest.raises(InputError, match="is read and would be written"):
        runs.claim_file(path, force=True, inputs=[path])
    with pytest.raises(InputError, match="is a folder"):
        runs.claim_file(tmp_path, force=True)


def test_checkpoints(tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(InputError, match="does not exist"):
        runs.read_checkpoint(path)
    files.write_torch(path, {"x": torch.arange(3)})
    assert runs.read_checkpoint(path)["x"].tolist() == [0, 1, 2]
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"no archive"):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="is not a readable checkpoint"):
            runs.read_checkpoint(path)


def test_batches_are_passes_over_all(tmp_path):
    places = np.concatenate([runs.batch_places(step, 3, 7, 0) for step in range(7)])
    for epoch in places.reshape(3, 7):
        assert sorted(epoch) == list(range(7))
    assert not np.array_equal(places[:7], places[7:14])
    np.testing.assert_array_equal(runs.batch_places(4, 3, 7, 0), places[12:15])


def test_full_disks_and_odd_paths_are_said_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.txt", tmp_path / ("n" * 300), "/proc/a.txt"):
        with pytest.raises(InputError, match="cannot be written"):
            files.write_text(path, "x")
    with pytest.raises(InputError, match=r"full\.pt cannot be written"):
        with files.atomic_path(tmp_path / "full.pt"), open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")
    assert visible(tmp_path) == {"file"}
