"""A training that is killed at any moment goes on with --resume to what an undisturbed one makes."""

import shutil
import signal
import time
from pathlib import Path

import forks
import pytest
import torch
from click.testing import CliRunner
from flux4d import indices
from flux4d.cli import main

STEPS = 8


@pytest.fixture(scope="module")
def line(root, indexed, tmp_path_factory):
    """A command line without its output folder, and a folder in which it has been run undisturbed."""
    folder = tmp_path_factory.mktemp("killed")
    indices.write(folder / "clips.json", indexed | {"clips": indexed["clips"][:1]})
    settings = ["lift.max_gaussians=800", "lift.sky_points=4000", "model.channels=[4,6]", "model.hidden=8"]
    settings += ["model.refinements=0", "train.frames=1", "train.warmup=1", "train.checkpoint_every=3"]
    words = ["overfit", "--index-path", folder / "clips.json", "--iters", STEPS, "--device", "cpu"]
    words += [word for setting in settings for word in ("--set", setting)]
    run(*words, "--output-dir", folder / "whole")
    return words, folder


def run(*words):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stderr


def killed(reached, *words):
    """Run a command and kill it as soon as something holds."""
    process = forks.start("flux4d", *words)
    while process.poll() is None and not reached():
        time.sleep(0.001)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


def same(one: Path, other: Path):
    found, expected = (torch.load(path / "ckpt_last.pt", weights_only=True) for path in (one, other))
    assert found["step"] == expected["step"] == STEPS
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("last", ["config.yaml", "step_000003", "step_000006"])
def test_killed_and_resumed(line, last):
    words, folder = line
    out = folder / "killed" / last.partition(".")[0]
    killed((out / last).exists, *words, "--output-dir", out)
    if last == "config.yaml":  # nothing to go on with: the folder is free
        copy = shutil.copytree(out, folder / "free")
        run(*words, "--output-dir", copy)
        same(copy, folder / "whole")
    said = run(*words, "--output-dir", out, "--resume")
    assert ("begins anew" in said) == (last == "config.yaml")
    same(out, folder / "whole")
    assert not [path for path in out.rglob("*") if ".recon4d-" in path.name]
