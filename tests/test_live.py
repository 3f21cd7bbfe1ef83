"""The live pipe from end to end: demo/live.sh on a video that stands in for a camera."""

import json

import cv2
import numpy as np
import pytest
import torch
from demos import ROOT, run_demo
from gaussian_avatar import runs
from recon4d.video import write_mp4
from skimage.data import astronaut

DEMO = ROOT / "demo" / "live.sh"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """An astronaut who sways."""
    path = tmp_path_factory.mktemp("clip") / "astronaut é.mp4"
    moves = [np.array([[1, 0, 6 * np.sin(i / 8)], [0, 1, 3 * np.cos(i / 8)]]) for i in range(50)]
    part = np.ascontiguousarray(astronaut()[:300, 70:370])
    frames = (cv2.warpAffine(part, move, (300, 300), borderMode=cv2.BORDER_REPLICATE) for move in moves)
    write_mp4(path, frames, 25.0)
    return path


def test_the_demo_makes_an_avatar_of_a_video(clip, tmp_path):
    out = tmp_path / "out é"
    train = "--set model.tex_size=48 --set train.batch_size=2"
    done = run_demo(
        DEMO, out, clip, VIDEO_OPTIONS="--loop --seconds 4", CAMERA_OPTIONS="--size 96", TRAIN_OPTIONS=train
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((out / "live.json").read_text())
    assert result["ended"] == "4 seconds are over" and result["images"] >= 2 and result["frames"] > 60
    assert set(result["stages"]) >= {"camera", "track", "show", "learn"}
    for name in ("prep-faces camera", "flame-encoder track"):
        assert f"4 seconds are over; {name} has ended" in done.stderr
    run = runs.open_run(out / "avatar/head/live", torch.device("cpu"))
    assert len(run.avatar) == result["gaussians"] and len(run.track) > 60 and result["dropped"] == 0
    again = run_demo(DEMO, out, clip)
    assert again.returncode == 2 and "exists; remove it" in again.stderr


def test_every_stage_says_what_is_wrong_with_another(tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"no video")
    done = run_demo(DEMO, tmp_path / "a", tmp_path / "no.mp4", TRAIN_OPTIONS="")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 3 and any("not a readable video" in line for line in said), done.stderr
    assert not (tmp_path / "a/avatar/head/live/config.yaml").exists()
    for arguments, message in (((tmp_path / "none.mp4",), "is not a file"), ((DEMO, DEMO), "one video")):
        done = run_demo(DEMO, tmp_path / "b", *arguments)
        assert done.returncode == 2 and message in done.stderr
