"""The commands, one after the other, on a small synthetic data set; and how they refuse."""

import json

import forks
import pytest
import yaml
from click.testing import CliRunner
from feat_extract.cli import main
from feat_extract.synth import DATASET


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def answer(*arguments) -> dict:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def done(pictures, tmp_path_factory):
    """The data set of `pictures` with everything made of it, and the commands' answers."""
    config = yaml.safe_load((pictures / "exp.yaml").read_text())
    out = tmp_path_factory.mktemp("done")
    config["feat2d"] = {"backbone": "timm:resnet10t", "weights": "none", "size": 48}
    config["train"] = {"epochs": 2}
    config["model"] = {"width": 16}  # all streams
    config["feat3d"]["input"] = "tracks"  # the true ones
    config["checkpoint"] = str(out / "best_scripted.pt")
    config["submit"] |= {"output": str(out / "submission.csv")}
    path = pictures / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    commands = ("feat2d", "feat3d", "train", "submit", "evaluate")
    return path, out, {name: answer(name, "--config", path) for name in commands}


def test_answers(done):
    _, out, answers = done
    assert answers["feat2d"]["written"] == answers["feat3d"]["written"] == 60
    assert answers["train"]["sha256"] == answers["submit"]["sha256"]
    assert answers["submit"]["rows"] == 5 and (out / "submission.csv").read_text().startswith("sequence,positive,")
    assert set(answers["evaluate"]) == {"rows", "macro_f1", "uf1", "uar", "exact", "classes"}


def test_submit_says_the_checksum_and_demands_it(done):
    path, _, answers = done
    digest = answers["train"]["sha256"]
    result = invoke("submit", "--config", path, "--sha256", digest, "--force")
    assert result.exit_code == 0 and f"sha256 {digest}" in result.stderr
    result = invoke("submit", "--config", path, "--sha256", "0" * 64, "--force")
    assert result.exit_code == 2 and "was not loaded" in result.stderr


def test_nothing_is_replaced_without_force(done):
    path, _, _ = done
    for command in ("train", "submit"):
        result = invoke(command, "--config", path)
        assert result.exit_code == 2 and "exists; give another output or --force" in result.stderr
    result = invoke("train", "--config", path, "--resume", "--force")
    assert result.exit_code == 2 and "give one" in result.stderr
    assert invoke("train", "--config", path, "--resume").exit_code == 0  # of a finished run: exports it again
    result = invoke("synth", path.parent)
    assert result.exit_code == 2 and "exists" in result.stderr


def test_other_folders_of_coefficients(done, tmp_path):
    path, _, _ = done
    result = invoke("submit", "--config", path, "--feat3d", tmp_path / "none", "--force")
    assert result.exit_code == 2 and "none has no features" in result.stderr
    elsewhere = path.parent / DATASET / "feat3d"
    assert answer("submit", "--config", path, "--feat3d", elsewhere, "--force")["rows"] == 5


def test_check_names_what_is_wrong(done, tmp_path, monkeypatch):
    path, _, _ = done
    found = answer("check", "--config", path)
    assert found["problems"] == [] and found["checkpoint"] and len(found["sequences"]) == 15
    assert found["sequences"]["p00_00"] == {"original_image": 4, "lr_image": 4, "feat2d": 4, "feat3d": 4}
    # A copy with four faults, checked by the command itself.
    dataset = path.parent / DATASET
    copy = tmp_path / "dataset"
    for part in ("lr_image", "feat2d", "feat3d"):
        for file in [p for name in ("p00_00", "p00_01") for p in (dataset / part / name).iterdir()]:
            target = copy / file.relative_to(dataset)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (copy / "feat2d" / "p00_00" / "00002.npy").unlink()
    (copy / "feat2d" / "p00_01" / "00001.npy").write_bytes(b"\x93NUMPY")
    (copy / "feat3d" / "p00_01" / "expr_00001.npy").unlink()
    (copy / "lr_image" / "p00_00" / "00000.png").write_bytes(b"")
    (tmp_path / "exp.yaml").write_text("dataset: dataset\nfeat3d: {kind: track}\n")
    monkeypatch.chdir(tmp_path)
    result = forks.run("feat-extract", "check", "--config", "exp.yaml")
    assert result.returncode == 2 and "Traceback" not in result.stderr and "error: 5 problems" in result.stderr
    problems = "\n".join(json.loads(result.stdout)["problems"])
    for text in (
        "feat2d/p00_00 lacks 1 of 4 frames, first 00002",
        "00001.npy is not a readable npy",
        "00000.png is not",
    ):
        assert text in problems
    assert "feat3d/p00_01 lacks 1" in problems and "best_scripted.pt is missing" in problems


@pytest.mark.parametrize("command", ["feat2d", "feat3d", "train", "submit", "evaluate", "check"])
def test_bad_configs_and_empty_folders(command, tmp_path):
    result = invoke(command, "--config", tmp_path / "none.yaml")
    assert result.exit_code == 2 and "none.yaml cannot be read" in result.stderr
    (tmp_path / "exp.yaml").write_text("feat2d: {backbone: 'timm:resnet10t', weights: none}")
    result = invoke(command, "--config", tmp_path / "exp.yaml")
    assert result.exit_code == 2 and "error: " in result.stderr and "Traceback" not in result.stderr
    (tmp_path / "exp.yaml").write_text("trian: {}")
    result = invoke(command, "--config", tmp_path / "exp.yaml")
    assert result.exit_code == 2 and "the key trian is not known" in result.stderr


def test_options_of_feat2d_replace_the_config_s(tmp_path, pictures):
    (tmp_path / "exp.yaml").write_text(f"dataset: {pictures / DATASET}\nfeat2d: {{output: {tmp_path / 'f'}}}\n")
    result = invoke("feat2d", "--config", tmp_path / "exp.yaml")
    assert result.exit_code == 2 and "--trust-code" in result.stderr  # RADIO is the default
    found = answer("feat2d", "--config", tmp_path / "exp.yaml", "--backbone", "timm:resnet10t", "--weights", "none")
    assert found["backbone"] == "timm:resnet10t" and found["version"] == "random, seed 0"
    result = invoke("feat2d", "--config", tmp_path / "exp.yaml", "--backbone", "timm:resnet10t", "--device", "cuda:99")
    assert result.exit_code == 2 and "cuda:99" in result.stderr
