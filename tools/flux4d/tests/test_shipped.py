"""The network that ships: its file, what commands do with it, how the next one is made."""

import hashlib
import json
from importlib import resources

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from flux4d import checkpoints, indices, shipped
from flux4d.cli import main
from flux4d.config import load_config
from flux4d.model import Flux
from recon4d import InputError

SMALL = ("data.image_size=96", "lift.max_gaussians=4000", "lift.sky_points=8000", "train.frames=2")
WORDS = [word for setting in SMALL for word in ("--set", setting)]


def call(*arguments):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def test_the_file():
    place = resources.files("flux4d").joinpath("assets")
    content = place.joinpath(shipped.NAME).read_bytes()
    assert hashlib.sha256(content).hexdigest() == shipped.SHA256 and len(content) < 6e6
    said = place.joinpath("streets.md").read_text()
    assert shipped.SHA256 in said and f"{len(content):,}" in said
    assert all(value.isfinite().all() and value.abs().max() < 100 for value in shipped.weights().values())


def test_at_once_and_as_a_beginning(root, indexed, tmp_path):
    """Without a checkpoint a clip is reconstructed; a training begins where the network is, and is better for it."""
    index = tmp_path / "clips.json"
    indices.write(index, indexed)
    common = ["--index-path", index, "--clip-index", 0, "--device", "cpu", *WORDS]
    made, said = call("reconstruct", *common, "--out-dir", tmp_path / "scene", "--fps", 5, "--slow", 1)
    assert made["gaussians"] > 3000 and made["frames"] == 6 and "GB of memory" in said
    # 240 directions a turn are too few to match: the samples on a wall seem to go along with the car
    scores, _ = call("eval", *common, "--set", "model.matched=false", "--out-dir", tmp_path / "eval")
    assert scores["interpolation"]["psnr"] > 20 and scores["flow"]["background_speed"] < 0.5
    steps = [*common, "--iters", 2]
    begun, said = call("overfit", *steps, "--init", "shipped", "--output-dir", tmp_path / "a")
    assert "begins with the network that ships" in said and begun["steps"] == 2
    anew, _ = call("overfit", *steps, "--config", "shipped", "--output-dir", tmp_path / "b")
    assert begun["psnr"] > anew["psnr"] + 0.3
    again, said = call("overfit", *common, "--init", "shipped", "--resume", "--output-dir", tmp_path / "a")
    assert again["steps"] == 2 and "begins" not in said


def test_wrong_beginnings(root, indexed, tmp_path):
    index = tmp_path / "clips.json"
    indices.write(index, indexed)
    common = ["overfit", "--index-path", index, "--device", "cpu", "--output-dir", tmp_path / "a", "--init", "shipped"]
    for more, message in (
        (["--resume-from", tmp_path / "x.pt"], "leave --resume-from away"),
        (["--config", "cpu-quick", "--iters", 1], "--init shipped is of another model"),
        (["--set", "model.channels=[8]", "--iters", 1], "--init shipped is of another model"),
    ):
        done = CliRunner().invoke(main, [str(argument) for argument in [*common, *WORDS, *more]])
        assert done.exit_code == 2 and message in done.stderr and done.stdout == "", done.output
        assert not (tmp_path / "a").exists()


def test_another_file(monkeypatch):
    monkeypatch.setattr(shipped, "SHA256", "0" * 64)
    with pytest.raises(InputError, match="install again"):
        shipped.weights()


def test_pack(tmp_path):
    """The mean of checkpoints, in half precision."""
    settings = load_config("shipped", ["model.channels=[4,4]", "model.hidden=4"])
    models = [Flux(settings.model) for _ in range(2)]
    for number, model in enumerate(models):
        checkpoints.save(tmp_path / str(number), model, torch.optim.Adam(model.parameters()), 1, settings)
    files = [tmp_path / str(number) / "ckpt_last.pt" for number in range(2)]
    size = shipped.pack(files, tmp_path / "x.safetensors")
    found = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert size == (tmp_path / "x.safetensors").stat().st_size
    one, two = (model.state_dict() for model in models)
    for name, value in found.items():
        torch.testing.assert_close(value.float(), (one[name] + two[name]) / 2, rtol=2e-3, atol=1e-4)
