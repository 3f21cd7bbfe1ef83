"""The commands as a user runs them, and what they say to wrong input. The demo's test runs the rest."""

import json

import cv2
import forks
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from flux4d import checkpoints, config, indices, scenes
from flux4d.cli import main
from flux4d.config import load_config
from recon4d import InputError, settings

TINY = ("lift.max_gaussians=1500", "lift.sky_points=8000", "model.channels=[8,12]", "model.hidden=16", "train.frames=2")
SMALL = [word for setting in (*TINY, "model.refinements=0") for word in ("--set", setting)]


def run(*arguments, start=forks.run):
    """A process of the installed command; its JSON result."""
    done = start("flux4d", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def call(*arguments):
    """The same without a process; its JSON result."""
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(message, *arguments):
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == 2 and len(lines) == 1 and message in lines[0], done.output
    assert done.stdout == ""


@pytest.fixture(scope="module")
def work(root, indexed, tmp_path_factory):
    """A folder with an index and a network trained by two processes, and by one with the same batches."""
    folder = tmp_path_factory.mktemp("work")
    chosen = [clip for clip in indexed["clips"] if clip["split"] == "test" or clip["frames"][0] == 0]
    indices.write(folder / "clips.json", indexed | {"clips": chosen})
    common = ["--index-path", folder / "clips.json", "--iters", 3, *SMALL, "--set", "train.batch_size=2"]
    two = run("train", *common, "--output-dir", folder / "two", "--processes", 2, "--device", "cpu")
    one = call("train", *common, "--output_dir", folder / "one", "--device", "cpu")
    assert two["steps"] == one["steps"] == 3
    return folder


def test_two_processes_do_what_one_does(work):
    one, two = (torch.load(work / n / "ckpt_last.pt", weights_only=True)["model"] for n in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-5)
    chosen = yaml.safe_load((work / "two" / "config.yaml").read_text())
    assert chosen["train"]["batch_size"] == 2 and chosen["model"]["channels"] == [8, 12]
    assert len((work / "two" / "train.log").read_text().splitlines()) == 1  # one process writes


def test_torchrun_streams_clips(work, indexed):
    """Two processes that hold one clip each, and read the next as they go, do what one does that holds all."""
    common = ["--index-path", work / "clips.json", "--iters", 3, *SMALL, "--set", "train.batch_size=2"]
    line = ["--standalone", "--nproc-per-node", 2, "--no-python", forks.programs() / "flux4d", "train", *common]
    line += ["--set", "train.cache_clips=1", "--output-dir", work / "run", "--device", "cpu"]
    done = forks.run("python", "-c", "from torch.distributed.run import main; main()", *line)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 3
    one, two = (torch.load(work / n / "ckpt_last.pt", weights_only=True)["model"] for n in ("one", "run"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-5)


def test_voxels(work):
    found = run(
        "inspect-voxels", "--index-path", work / "clips.json", "--num_sky_points", 5000, *SMALL, start=forks.anew
    )
    assert found["inside"] <= found["gaussians"] - found["sky"] and found["voxels"][0] > found["voxels"][1] > 50
    assert found["points_per_voxel_mean"] * found["voxels"][0] == pytest.approx(found["inside"])
    assert found["time_from"] + 0.1 >= 0 and 1.0 < found["time_to"] < 1.1


def test_flow_pictures(work):
    out = work / "flow"
    common = ["--index-path", work / "clips.json", "--ckpt", work / "one" / "ckpt_last.pt", "--out-dir", out]
    found = run("vis-flow", *common, "--render-frames", "0-3", "--frame-ref", 2, "--clip-index", 2)
    assert found["frames"] == 4 and found["still_px"] >= 0 and found["moving_px"] >= 0
    for mode in ("fixed", "follow"):
        assert sorted(p.name for p in (out / mode).iterdir()) == ["00.png", "01.png", "02.png", "03.png"]
        assert (out / f"{mode}.mp4").stat().st_size > 500
    # a camera that stands sees the street stand, one that moves does not
    fixed, follow = (
        [cv2.imread(str(out / mode / f"{i:02d}.png")).astype(float)[:, :96] for i in range(4)]
        for mode in ("fixed", "follow")
    )
    assert np.abs(fixed[0] - fixed[3]).mean() < 0.5 * np.abs(follow[0] - follow[3]).mean()
    np.testing.assert_array_equal(fixed[2], follow[2])


def test_edit(work):
    scene = work / "scene"
    common = ["--index-path", work / "clips.json", "--ckpt", work / "one" / "ckpt_last.pt"]
    made = call("reconstruct", *common, "--out-dir", scene, "--fps", 5, "--slow", 1, "--static", "spz")
    assert made["frames"] == 6 and (scene / "cameras.json").is_file()
    # the network has learnt nothing yet: give a hundred Gaussians a motion
    gaussians, path = scenes.read(scene)
    near = (gaussians.means - path.batch.center[0]).norm(dim=1) + 1e6 * gaussians.sky
    chosen = near.argsort()[:100]
    velocities = torch.zeros_like(gaussians.velocities)
    velocities[chosen, 0] = torch.tensor([6.0, 0, 0])
    scenes.write(scene, type(gaussians)(**(vars(gaussians) | {"velocities": velocities})), path)
    listed = run("edit", scene, "--distance", 3)
    assert listed["actors"] and listed["actors"][0]["speed"] == pytest.approx(6, abs=0.01)
    number = listed["actors"][0]["number"]
    changes = ["--add", number, 0, 4, 0, "--move", number, 0, 0, 1, "--remove", number, "--fps", 5, "--slow", 1]
    edited = call("edit", scene, "--distance", 3, *changes, "--out-dir", work / "edited")
    assert edited["gaussians"] == made["gaussians"]  # one copied, one removed
    after, _ = scenes.read(work / "edited")
    moved = (after.velocities[:, 0].norm(dim=1) > 1).sum()
    assert moved == 100 and edited["frames"] == 6
    refused("there is no such actor", "edit", scene, "--distance", 3, "--remove", 99, "--out-dir", work / "e2")
    refused("'--distance'", "edit", scene, "--distance", -1)
    refused("holds no cameras.json", "edit", work)
    (work / "edited" / "cameras.json").write_text("{}")
    refused("is not a camera path of flux4d", "edit", work / "edited")


def test_wrong_options(work, root, tmp_path):
    clips, ckpt = work / "clips.json", work / "one" / "ckpt_last.pt"
    out = tmp_path / "out"
    refused("exists; give another output or --force", "synth", root)
    refused("holds no scenes", "index", "--data-root", tmp_path, "--out-full", out)
    full = ["index", "--data-root", root, "--out-full", out]
    refused("--preset paper has its own lengths", *full, "--preset", "paper", "--clip-len-s", 1)
    refused("exists; give another output", "index", "--data-root", root, "--out-full", clips)
    refused("clip has frames 0 to 10", "vis-lift", "--index-path", clips, "--frame-index", 11, "--out-dir", out)
    refused("index has clips 0 to 2", "vis-lift", "--index-path", clips, "--clip-index", 9, "--out-dir", out)
    refused("--camera side is not in the index", "vis-lift", "--index-path", clips, "--camera", "side")
    refused("is not there any more", "vis-lift", "--index-path", clips, "--data-root", tmp_path / "gone")
    overfit = ["overfit", "--index-path", clips, "--output-dir", out]
    refused("the clip has frames 0 to 10", *overfit, "--fixed-target-frame", 11)
    refused("is Python; give a YAML file", *overfit, "--config", "configs/flux4d.py")
    refused("lift.sky is not known", *overfit, "--set", "lift.sky=1")
    refused("must be key=value", *overfit, "--set", "lift.sky")
    refused("--resume goes on in the output", *overfit, "--resume", "--force")
    refused("exists; give another output", "overfit", "--index-path", clips, "--output-dir", work / "one")
    again = ["overfit", "--index-path", clips, "--output-dir", work / "one"]
    refused("holds the input", *again, "--resume-from", ckpt, "--force")
    refused(
        "is of another model than the settings given",
        "eval",
        "--index-path",
        clips,
        "--ckpt",
        ckpt,
        "--config",
        "paper",
    )
    refused("has no test clips", "eval", "--index-path", _without_test(clips, tmp_path), "--ckpt", ckpt)
    flow = ["vis-flow", "--index-path", clips, "--ckpt", ckpt, "--out-dir", out]
    refused("is not like 0-15", *flow, "--render-frames", "all")
    refused("the clip has frames 0 to 10", *flow, "--render-frames", "3,40")
    refused("--frame-ref 40", *flow, "--frame-ref", 40)
    refused("is not a device", *flow, "--device", "tpu")
    assert not out.exists()


def _without_test(clips, folder):
    found = indices.read(clips)
    path = folder / "train.json"
    indices.write(path, found | {"clips": [clip for clip in found["clips"] if clip["split"] == "train"]})
    return path


def test_resume_and_fixed_frame(work):
    out = work / "overfit"
    common = ["overfit", "--index-path", work / "clips.json", "--output-dir", out, *SMALL, "--num-sky-points", 4000]
    line = [*common, "--iters", 2, "--fixed-target-frame", 1, "--no-projected-depth", "--grad-accum-steps", 2]
    call(*line, "--resume")  # there is nothing yet: a new run
    assert "depth" not in (out / "train.log").read_text()
    _, found = checkpoints.open_model(out / "ckpt_last.pt", torch.device("cpu"))
    assert found.lift.sky_points == 4000 and found.train.iterations == 2 and found.train.fixed_frame == 1
    assert found.losses.depth == 0 and found.model.channels == [8, 12] and found.train.accumulate == 2
    # the same command goes on, with the run's own settings where it says none; others are refused
    assert call(*common[:5], "--resume")["steps"] == call(*line, "--resume")["steps"] == 2
    refused("config.yaml has train.iterations: 2, and 4 is given", *common, "--iters", 4, "--resume")
    refused("exists; give another output", *line)
    more = ["--resume-from", out / "ckpt_last.pt", "--iters", 4, "--config", out / "config.yaml"]
    longer = work / "longer"
    assert call(*common[:3], "--output-dir", longer, *more)["steps"] == 4
    assert (longer / "ckpt_step_000004.pt").is_file() and not (longer / "ckpt_step_000002.pt").exists()
    assert "step 4" in (longer / "train.log").read_text() and "step 2" not in (longer / "train.log").read_text()


def test_shipped_settings_and_bad_ones(tmp_path):
    for name in config.PRESETS:
        assert load_config(name).model.channels
    paper = load_config("paper")
    assert (paper.train.iterations, paper.train.rate, paper.model.voxel, paper.lift.sky_points) == (
        30000,
        1e-3,
        0.3,
        10**6,
    )
    assert paper.model.channels == [32, 64, 96, 128] and paper.model.refinements == 3
    path = tmp_path / "x.yaml"
    for text, message in (
        ("model: {channels: []}", "model.channels"),
        ("model: 3", "model: "),
        ("- 1", "holds a list"),
        ("a: [", "not readable YAML"),
        ("train: {rate: fast}", "train.rate"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_config(path)
    with pytest.raises(InputError, match="neither a file nor one of"):
        load_config("fast")
    settings.write(path, load_config("paper", ["train.rate=2e-3"], {"seed": 4}))
    assert load_config(path).train.rate == 2e-3 and load_config(path).seed == 4
