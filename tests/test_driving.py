"""The driving demo at a tiny size, and what it says to wrong input."""

import json

import av
import cv2
import numpy as np
import pytest
from demos import ROOT, run_demo
from recon4d.splat import read_ply

DEMO = ROOT / "demo" / "driving_scene.sh"
TINY = {
    "SYNTH_OPTIONS": "--width 96 --columns 240 --frames 11 --samples 1",
    "OVERFIT_OPTIONS": "--iters 2 --num-sky-points 8000 --max-gaussians 6000",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "driving é"
    result = run_demo(DEMO, out, **TINY)
    assert result.returncode == 0, result.stderr
    return out, result


def test_summary_and_table(demo):
    out, result = demo
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["seconds"]) == ["synth", "index", "vis-lift", "overfit", "eval", "reconstruct"]
    numbers = ["overfit_psnr", "psnr", "dynamic_psnr", "depth_rmse", "epe3d", "angular_error_deg", "background_speed"]
    assert list(summary) == ["seconds", *numbers]
    assert summary["psnr"] > 20  # a grey image scores about 12
    assert (
        0 < summary["epe3d"] < 1 and 0 <= summary["background_speed"] < 2 and 0 <= summary["angular_error_deg"] <= 180
    )
    assert "(missing)" not in result.stdout and "direction" in result.stdout


def test_pictures_scene_and_video(demo):
    out, _ = demo
    sheets = sorted((out / "eval" / "renders").rglob("*.png"))
    assert len(sheets) == 5  # the target frames
    sheet = cv2.imread(str(sheets[0])).astype(float)
    top, _ = np.array_split(sheet, 2)
    truth, render = np.array_split(top, 2, axis=1)
    assert np.abs(truth - render).mean() < 30 < truth.std() + render.std()
    scene = read_ply(out / "scene" / "scene.ply")
    assert {"vx", "vy", "vz", "time", "sky", "lifetime"} <= set(scene.extra)
    assert len(scene.means) == json.loads((out / "reconstruct.json").read_text())["gaussians"]
    with av.open(str(out / "scene" / "render.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 121 and all(frame.std() > 15 for frame in frames)  # 1 s, four times slower, 30 per second
    overlay = cv2.imread(json.loads((out / "vis-lift.json").read_text())["picture"])
    image = cv2.imread(str(out / "scenes" / "002" / "camera" / "front_camera" / "00.jpg"))
    assert overlay.shape == image.shape and (np.abs(overlay.astype(int) - image) > 30).any(-1).mean() > 0.05


def test_wrong_input(tmp_path, demo):
    out, _ = demo
    for arguments, place, message in (
        ((tmp_path / "none",), tmp_path / "a", "is not a folder"),
        ((DEMO, DEMO), tmp_path / "b", "one folder"),
        ((), out, "exists; remove it"),
        ((tmp_path,), tmp_path / "c", "holds no scenes"),
    ):
        result = run_demo(DEMO, place, *arguments)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
