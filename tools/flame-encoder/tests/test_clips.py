"""Many clips in one run: each as `track` has it, a broken one recorded, a killed run taken up again."""

import json
import shutil
import signal
import time

import cv2
import forks
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from flame_encoder.cli import main
from flame_encoder.tracker import clips
from recon4d import head
from recon4d.formats import track


@pytest.fixture
def root(tmp_path):
    """Four clips of three frames with landmarks of a turning head, one of them below another, one without landmarks."""
    model = head.load()
    for k, name in enumerate(("a", "b é", "deep/c", "d")):
        for kind in ("frames", "landmarks"):
            (tmp_path / kind / name).mkdir(parents=True)
        for i in range(3):
            c, s = np.cos(0.1 * i * k), np.sin(0.1 * i * k)
            R = torch.tensor([[c, 0, s], [0, -1, 0], [s, 0, -c]], dtype=torch.float32)
            points = model.landmarks(model())[0] @ R.T + torch.tensor([0.0, 0.0, 0.6])
            pixels = points[:, :2] / points[:, 2:] * 240 + torch.tensor([80.0, 60.0])
            cv2.imwrite(str(tmp_path / "frames" / name / f"{i}.png"), np.full((120, 160, 3), 99, np.uint8))
            np.save(tmp_path / "landmarks" / name / f"{i}.npy", pixels.numpy())
    shutil.rmtree(tmp_path / "landmarks/d")
    return tmp_path


def words(root, *more):
    return [
        "track-clips",
        *map(str, (root / "frames", "--landmarks", root / "landmarks", "--out", root / "out", *more)),
    ]


def call(root, *more, code=0):
    done = CliRunner().invoke(main, words(root, *more))
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if code == 0 else done.stderr


def lines(root):
    return [json.loads(line) for line in (root / "out/tracks.jsonl").read_text().splitlines()]


def test_each_as_track_has_it(root):
    found = call(root, "--workers", 1, "--focal", 240, "--write", "arkit")
    assert (found["clips"], found["tracked"], found["failed"], found["kept"]) == (4, 3, 1, 0)
    assert [line["clip"] for line in lines(root)] == ["a", "b é", "d", "deep/c"]
    assert "landmarks/d is not a folder" in lines(root)[2]["error"]
    one = ["track", root / "frames/deep/c", "--landmarks", root / "landmarks/deep/c", "--out", root / "one"]
    done = CliRunner().invoke(main, [*map(str, one), "--focal", "240", "--no-preview"])
    assert done.exit_code == 0, done.output
    here, there = (track.read(path / "track.npz") for path in (root / "out/deep/c", root / "one"))
    np.testing.assert_allclose(here.R, there.R, atol=1e-5)
    assert (root / "out/a/arkit.csv").is_file() and not (root / "out/a/overlay.png").exists()
    # What was tracked is kept, what failed is tried again.
    shutil.copytree(root / "landmarks/a", root / "landmarks/d")
    again = call(root, "--workers", 1, "--focal", 240, "--write", "arkit")
    assert (again["tracked"], again["failed"], again["kept"]) == (4, 0, 3)
    assert "run with other options" in call(root, "--workers", 1, "--focal", 250, code=2)
    assert call(root, "--workers", 1, "--focal", 250, "--force")["kept"] == 0


def test_a_killed_run_goes_on(root):
    process = forks.start("flame-encoder", *words(root, "--workers", "1"))
    while process.poll() is None and not (root / "out/a/track.npz").exists():
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    found = call(root, "--workers", 1)
    assert found["tracked"] == 3, lines(root)
    assert [("error" in line) for line in lines(root)] == [False, False, True, False]
    assert not [path for path in (root / "out").rglob("*") if path.name.startswith(".recon4d-")]


def test_on_ray(root, monkeypatch):
    """Ray's own part is tested with prep-faces, whose engine it is too."""
    monkeypatch.setattr(clips, "ray_map", lambda work, items, *_: iter([row for item in items for row in work([item])]))
    assert call(root, "--engine", "ray")["tracked"] == 3


def test_bad_input(root):
    (root / "empty/frames").mkdir(parents=True)
    assert "frames has no folders with images" in call(root / "empty", code=2)
    assert "frames is not a folder" in call(root / "nowhere", code=2)
    shutil.rmtree(root / "landmarks")
    assert "none of 4 clips gave a result" in call(root, "--workers", 1, code=2)
    assert not (root / "out").exists()
