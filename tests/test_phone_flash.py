"""The demo from a phone video to a relightable face, on a synthetic video of a few small frames."""

import json

import pytest
from demos import ROOT, run_demo

DEMO = ROOT / "demo" / "phone_flash.sh"
SMALL = " --set ".join(
    (
        "",
        "model.levels=5",
        "model.finest=64",
        "model.hidden=24",
        "model.log2_entries=12",
        "train.samples=1024",
        "train.grid=40",
        "train.mesh_resolution=64",
        "train.milestones=[50]",
        "train.mesh_render_iter=60",
        "train.iterations=68",
        "train.shading=0",
        "train.refine_pose=true",
        "train.refine_after=20",
        "eyes.still=40",
    )
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "phone é"
    result = run_demo(
        DEMO,
        out,
        SYNTH_OPTIONS="--frames 12 --size 144 --seed 1",
        FRAMES_OPTIONS="",
        TRACK_OPTIONS="--focal 183",
        IMPORT_OPTIONS="--frames 10 --size 72 --poses track",
        TRAIN_OPTIONS=SMALL,
        EXPORT_OPTIONS="--uv-size 128 --faces 3000",
        RELIGHT_OPTIONS="--frames 2 --size 64",
    )
    assert result.returncode == 0, result.stderr
    return out, result


def test_summary_and_files(demo):
    out, result = demo
    summary = json.loads((out / "summary.json").read_text())
    steps = ["synth", "frames", "landmarks", "track", "matte", "import", "train", "export", "metrics", "relight"]
    assert list(summary.pop("seconds")) == steps
    keys = {"psnr", "full_psnr", "relit_psnr", "eye_centre_mm", "eye_radius_mm", "normal_deg", "albedo_error"}
    keys |= {"chamfer_mm", "pose_degrees", "pose_mm", "size_ratio", "focal_ratio"}
    assert set(summary) - {"warning"} == keys
    assert summary["psnr"] > 14 and summary["normal_deg"] < 45 and summary["pose_degrees"] < 6
    assert 0.9 < summary["focal_ratio"] < 1.1 and 0.8 < summary["size_ratio"] < 1.25
    assert "(missing)" not in result.stdout and "glTF" in result.stdout
    imported = json.loads((out / "import.json").read_text())
    assert imported["frames"] >= 6 and min(imported["left_eye_pixels"], imported["right_eye_pixels"]) > 0
    assert "exposure: true" in (out / "data" / "config.yaml").read_text()


def test_wrong_input(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    for arguments, place, message in (
        ((), full, "exists; remove it"),
        ((tmp_path,), tmp_path / "a", "is not a file"),
        ((tmp_path, tmp_path), tmp_path / "b", "give one video"),
    ):
        result = run_demo(DEMO, place, *arguments)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
