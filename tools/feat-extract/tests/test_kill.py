"""A process killed at a random moment leaves what the same command completes to what an undisturbed run makes."""

import shutil
import signal
import time
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from feat_extract import model_file
from feat_extract.cli import main
from feat_extract.config import load_config
from feat_extract.synth import DATASET


def kill_when(path_count, *arguments) -> None:
    process = forks.start("feat-extract", *arguments)
    while process.poll() is None and not path_count():
        time.sleep(0.001)
    time.sleep(np.random.default_rng().uniform(0, 0.02))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def run(*arguments) -> None:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(autouse=True)
def one_thread():
    """Sums of several threads differ in the last bits, and training lets them grow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_features(pictures, tmp_path):
    for name in ("whole", "killed"):
        shutil.copytree(pictures / DATASET / "lr_image", tmp_path / name / "lr_image")
        section = {"backbone": "timm:resnet10t", "weights": "none", "size": 96, "batch": 2}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"dataset": name, "feat2d": section}))
    run("feat2d", "--config", tmp_path / "whole.yaml")
    done, killed = tmp_path / "whole" / "feat2d", tmp_path / "killed" / "feat2d"
    kill_when(lambda: len(list(killed.rglob("*.npy"))) >= 3, "feat2d", "--config", tmp_path / "killed.yaml")
    names = {p.relative_to(done) for p in done.rglob("*.npy")}
    assert len(names) == 60 and len(list(killed.rglob("[!.]*.npy"))) < 60
    run("feat2d", "--config", tmp_path / "killed.yaml")
    assert {p.relative_to(killed) for p in killed.rglob("*.npy")} == names
    for name in names:  # one batch holds other neighbours after the stop, which rounding may show
        np.testing.assert_allclose(np.load(killed / name), np.load(done / name), rtol=2e-3, atol=2e-3)


def test_training(numbers, tmp_path):
    config = yaml.safe_load((tmp_path / "exp.yaml").read_text())
    config["train"]["epochs"] = 10
    for name in ("whole", "killed"):
        config["checkpoint"] = f"{name}/best.pt"
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    run("train", "--config", tmp_path / "whole.yaml")
    kill_when((tmp_path / "killed" / "last.pt").exists, "train", "--config", tmp_path / "killed.yaml")
    assert not (tmp_path / "killed" / "best.pt").exists()
    run("train", "--config", tmp_path / "killed.yaml", "--resume")
    whole, killed = (
        model_file.read(Path(load_config(tmp_path / f"{n}.yaml").checkpoint))[0] for n in ("whole", "killed")
    )
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(killed.state_dict()[key], value, rtol=1e-5, atol=1e-6)
