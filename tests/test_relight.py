"""The demo of the relightable face, from a synthetic capture to glTF, at a small size."""

import json

import pytest
from demos import ROOT, run_demo

DEMO = ROOT / "demo" / "relightable_face.sh"
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
        "train.milestones=[70]",
        "train.mesh_render_iter=80",
        "train.iterations=95",
        "eyes.still=80",
    )
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "relight é"
    result = run_demo(
        DEMO,
        out,
        SYNTH_OPTIONS="--frames 8 --size 144",
        FIRST_OPTIONS=SMALL,
        TRAIN_OPTIONS=SMALL,
        EXPORT_OPTIONS="--uv-size 128 --faces 3000",
        RELIGHT_OPTIONS="--frames 2 --size 64",
    )
    assert result.returncode == 0, result.stderr
    return out, result


def test_summary_and_files(demo):
    out, result = demo
    summary = json.loads((out / "summary.json").read_text())
    steps = ["synth", "landmarks", "first", "unwrap", "eyes", "masks", "train", "export", "metrics", "relight"]
    assert list(summary.pop("seconds")) == steps
    keys = {"psnr", "full_psnr", "relit_psnr", "eye_centre_mm", "eye_radius_mm", "normal_deg", "albedo_error"}
    assert set(summary) == keys | {"chamfer_mm"}
    assert summary["psnr"] > 14 and summary["normal_deg"] < 40 and summary["eye_centre_mm"] < 25
    assert "(missing)" not in result.stdout and "glTF" in result.stdout
    assert "+ prep-faces" in result.stderr and "+ eyeball-relight" in result.stderr
    masks = json.loads((out / "masks.json").read_text())
    assert min(masks["left_pixels"], masks["right_pixels"]) > 0


def test_wrong_input(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    for arguments, place, message in (
        ((), full, "exists; remove it"),
        ((tmp_path,), tmp_path / "a", "has no transforms.json"),
        ((tmp_path, tmp_path), tmp_path / "b", "give one capture"),
    ):
        result = run_demo(DEMO, place, *arguments)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
