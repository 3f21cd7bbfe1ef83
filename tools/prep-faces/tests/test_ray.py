"""The engine ray gives what the local one gives, and goes on where a run stopped."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from prep_faces.cli import main
from recon4d import InputError
from recon4d.images import write_png
from recon4d.parallel import ray_map


@pytest.fixture(scope="module")
def folder(portrait, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray") / "bilder ü"
    for i in range(7):
        write_png(folder / f"{i}.png", np.ascontiguousarray(portrait[20:220, i : 220 + i]))
    write_png(folder / "wall.png", np.full((50, 50, 3), 99, np.uint8))
    (folder / "3.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module", autouse=True)
def end_ray():
    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers stand back (nice 15): beside other tests on few cores they would wait for minutes.
        patch.setenv("RAY_worker_niceness", "0")
        yield
    import ray  # not before the engine has set up its environment

    ray.shutdown()


def call(*arguments):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", [("detect", "--detector", "dlib"), ("landmarks", "--detector", "dlib")])
def test_same_output_as_the_local_engine(folder, tmp_path, command):
    common = (*command, folder, "--device", "cpu", "--workers", 2)
    call(*common, "--out", tmp_path / "a")
    result = call(*common, "--out", tmp_path / "b", "--engine", "ray", "--batch", 2)
    assert (result["images"], result["failed"], result["kept"]) == (8, 2, 0)
    expected = contents(tmp_path / "a")
    assert contents(tmp_path / "b") == expected and len(expected) >= 2
    # What a kill leaves: a manifest that ends in the middle of a line. The failures are tried again.
    (table,) = (tmp_path / "b").glob("*.jsonl")
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:5]) + lines[5][:9])
    assert call(*common, "--out", tmp_path / "b", "--engine", "ray")["kept"] == 4
    assert contents(tmp_path / "b") == expected


def test_many_shards_stay_in_order():
    items = [f"{i}" for i in range(600)]
    assert list(ray_map(lambda batch: [int(item) * 2 for item in batch], items, 7, 2, False)) == [*range(0, 1200, 2)]


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"install recon4d\[ray\]"):
        next(ray_map(str, ["a"], 1, 1, False))
