"""Training: on one process and two, killed and resumed, from files and synthetic people; and wrong input."""

import json
import signal
import time
from pathlib import Path

import cv2
import forks
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from flame_encoder.cli import main
from flame_encoder.encoder import feeding, losses, trained, training
from flame_encoder.encoder.config import Stage, load
from flame_encoder.encoder.network import EidolonEncoder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIG = {
    "view": {"fov": 14.0, "size": 64},
    "encoder": {"backbone": "mobilenet_v3_small", "weights": "none", "freeze": "backbone"},
    "data": {"synthetic": 16, "validation": 2},
    "train": {"batch_size": 4, "checkpoint_every": 3, "validate_every": 100, "jitter": 0.1},
    "stages": [
        {"name": "One", "epochs": 1, "learning_rate": 0.01, "loss_weights": {"landmark": 10.0, "params": 1.0}},
        {
            "name": "Two",
            "epochs": 1,
            "learning_rate": 0.005,
            "final_learning_rate": 0.001,
            "loss_weights": {"landmark": 10.0, "vertices": 1.0, "reg_shape": 0.1},
        },
    ],
}


def train(*arguments, code=0):
    result = CliRunner().invoke(main, ["train", *[str(a) for a in arguments]])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.stderr


def weights(out):
    return torch.load(out / "eidolon_encoder_final.pth", weights_only=True)["weights"]


def largest_difference(a, b):
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of eight steps, its config and the cache of its samples."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    figures = train("--config", folder / "c.yaml", "--out", folder / "out", "--cache", folder / "cache")
    return folder, figures


def test_what_a_run_leaves(finished):
    folder, figures = finished
    out = folder / "out"
    assert figures["steps"] == 8 and figures["validation_landmark_px"] > 0
    assert sorted(p.name for p in out.iterdir()) == [
        ".recon4d",
        "checkpoint.pth",
        "config.yaml",
        "eidolon_encoder_final.pth",
        "runs",
        "validation_images",
    ]
    saved = torch.load(out / "eidolon_encoder_final.pth", weights_only=True)
    assert saved["layout"] == {"shape": 100, "expression": 50, "detail": 56} and saved["view"]["size"] == 64
    assert cv2.imread(str(out / "validation_images/0000008.png")).shape == (3 * 64, 2 * 64, 3)
    events = EventAccumulator(str(out / "runs"))
    events.Reload()
    tags = events.Tags()
    assert {"loss/total", "loss/landmark", "loss/vertices", "learning_rate"} <= set(tags["scalars"])
    assert events.Scalars("learning_rate")[0].value == pytest.approx(0.01)
    assert tags["images"] == ["validation"]
    stages = [events.Tensors("stage/text_summary")[i].tensor_proto.string_val[0] for i in (0, 1)]
    assert stages == [b"One", b"Two"]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["data"]["cache"] == str(folder / "cache") and config["stages"][1]["name"] == "Two"


def test_the_first_eidolons_own_training(finished, tmp_path):
    """The default config, ResNet-50 frozen and both stages with all their losses, with fewer people and passes."""
    folder, _ = finished
    changes = {"data": {"synthetic": 2, "validation": 2, "cache": str(folder / "few")}, "train": {"batch_size": 2}}
    given = load("default", changes | {"encoder": {"weights": "none"}, "view": {"size": 64}})
    short = given.model_copy(update={"stages": [stage.model_copy(update={"epochs": 1}) for stage in given.stages]})
    found = training.start(short, tmp_path / "out", device="cpu")
    assert found is not None and found["steps"] == 2
    assert trained.read(tmp_path / "out/eidolon_encoder_final.pth")["backbone"] == "resnet50"
    events = EventAccumulator(str(tmp_path / "out/runs"))
    events.Reload()
    for name in ("pixel", "landmark", "params", "reg_shape", "reg_global_pose", "reg_detail", "total"):
        assert [np.isfinite(one.value) for one in events.Scalars(f"loss/{name}")] == [True, True], name
    assert [one.value for one in events.Scalars("stage_number")] == [0, 1]
    assert [one.value for one in events.Scalars("learning_rate")] == pytest.approx([1e-4, 5e-5])


def test_two_processes_train_what_one_does(finished):
    """The same batches, split over two processes that average their gradients (run as a shell runs it)."""
    folder, _ = finished
    words = ["--out", folder / "two", "--cache", folder / "cache", "--devices", "2", "--device", "cpu"]
    result = forks.run("flame-encoder", "train", "--config", folder / "c.yaml", *words)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["steps"] == 8
    start = EidolonEncoder("mobilenet_v3_small").state_dict()
    moved = (weights(folder / "two")["head.bias"] - start["head.bias"]).abs().max()
    assert moved > 0.01
    assert largest_difference(weights(folder / "two"), weights(folder / "out")) < 1e-4


def test_stopped_and_resumed(finished, tmp_path, monkeypatch):
    """A run that dies after five steps goes on from its checkpoint after the third, to the same weights."""
    folder, _ = finished
    total, steps = losses.total, []

    def dies(*arguments):
        steps.append(1)
        if len(steps) > 5:
            raise KeyboardInterrupt
        return total(*arguments)

    monkeypatch.setattr(losses, "total", dies)
    run = ["--config", folder / "c.yaml", "--out", tmp_path / "out", "--cache", folder / "cache"]
    train(*run, code=130)
    assert not (tmp_path / "out/eidolon_encoder_final.pth").exists()
    assert torch.load(tmp_path / "out/checkpoint.pth", weights_only=True)["step"] == 3
    monkeypatch.setattr(losses, "total", total)
    assert "exists" in train(*run, code=2)
    figures = train("--out", tmp_path / "out", "--resume")
    assert figures["steps"] == 8
    assert largest_difference(weights(tmp_path / "out"), weights(folder / "out")) < 1e-6


@pytest.mark.parametrize(("steps", "resume"), [(1, False), (1, True), (4, True), (7, True)])
def test_killed_and_started_again(finished, tmp_path, steps, resume):
    """Before the first checkpoint, which is after three steps, after it and near the end (-9): the same weights."""
    folder, _ = finished
    out, flag = tmp_path / "out", tmp_path / "flag"
    run = ["--config", str(folder / "c.yaml"), "--out", str(out), "--cache", str(folder / "cache")]
    code = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import stopped_run; stopped_run.main()"
    process = forks.start("python", "-c", code, steps, flag, *run)
    while not flag.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL and (out / "checkpoint.pth").exists() == (steps > 3)
    if steps > 3:
        assert "--resume" in train(*run, code=2)
    assert train(*run, *(["--resume"] if resume else []))["steps"] == 8
    assert largest_difference(weights(out), weights(folder / "out")) < 1e-6
    assert not [path for path in out.rglob("*") if ".recon4d-" in path.name]


def test_resumed_with_its_own_settings_alone(finished, tmp_path):
    folder, _ = finished
    run = ["--config", folder / "c.yaml", "--out", folder / "out", "--cache", folder / "cache", "--resume"]
    assert "train.batch_size is 4 in" in train(*run, "--batch-size", 2, code=2)
    assert "--force" in train(*run, "--force", code=2)
    assert train(*run)["steps"] == 8


def test_it_learns(tmp_path):
    """Eight people by heart: the landmarks come at least twice as near."""
    config = CONFIG | {
        "data": {"synthetic": 8, "validation": 1},
        "train": {"batch_size": 8, "warmup": 5, "validate_every": 1000},
        "view": {"fov": 14.0, "size": 32},
        "encoder": CONFIG["encoder"] | {"freeze": "none"},
        "stages": [{"name": "All", "epochs": 40, "learning_rate": 0.005, "loss_weights": {"landmark": 300.0}}],
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    train("--config", tmp_path / "c.yaml", "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    events = EventAccumulator(str(tmp_path / "out/runs"))
    events.Reload()
    values = [event.value for event in events.Scalars("loss/landmark")]
    assert values[-1] < 0.25 * values[0]


def test_images_and_synthetic_people_together(finished, tmp_path):
    """Files as prep-faces writes them, beside synthetic samples, with the losses of pictures."""
    folder, _ = finished
    images, points = tmp_path / "images", tmp_path / "landmarks"
    images.mkdir()
    points.mkdir()
    pictures, marks = (np.load(folder / f"cache/{name}.npy") for name in ("image", "landmarks"))
    for i in range(6):
        cv2.imwrite(str(images / f"{i}.png"), cv2.resize(pictures[i], (128, 128))[..., ::-1])
        np.save(points / f"{i}.npy", marks[i])
    lines = [json.dumps({"file": f"{i}.png", "width": 64, "height": 64}) for i in range(6)]
    (tmp_path / "landmarks.jsonl").write_text("\n".join(lines))
    stages = [{"name": "All", "epochs": 1, "loss_weights": {"pixel": 1.0, "landmark": 1.0, "params": 1.0}}]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG | {"TRAINING_STAGES": stages}))
    files = ["--images", images, "--landmarks", points]
    figures = train(
        "--config", tmp_path / "c.yaml", "--out", tmp_path / "o", *files, "--synthetic", 4, "--freeze", "first-1"
    )
    assert figures["steps"] == 2  # five images, one held out, and four people
    assert set(figures["losses"]) == {"total", "pixel", "landmark", "params"}
    figures = train(
        "--config", tmp_path / "c.yaml", "--out", tmp_path / "p", *files, "--synthetic", 0, "--renderer", "pytorch3d"
    )
    assert figures["steps"] == 1 and figures["losses"]["params"] == 0
    assert "validation_vertices_mm" not in figures


def test_the_first_eidolons_layout(tmp_path):
    """No expression, 106 of detail: finished, written and read again."""
    weights_of = {"landmark": 10.0, "params": 1.0, "pixel": 1.0, "reg_expression": 1.0}
    config = CONFIG | {
        "layout": {"shape": 100, "expression": 0, "detail": 106},
        "data": {"synthetic": 4, "validation": 1},
        "stages": [{"name": "One", "epochs": 1, "loss_weights": weights_of}],
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    figures = train("--config", tmp_path / "c.yaml", "--out", tmp_path / "out")
    assert set(figures["losses"]) == {"total", "landmark", "params", "pixel"}  # there is no expression to regularise
    made = trained.load(tmp_path / "out/eidolon_encoder_final.pth")
    parts = made.encode(torch.rand(1, 3, 64, 64))
    assert parts["expression"].shape == (1, 0) and parts["detail"].shape == (1, 106)


def test_batches_are_those_of_one_process():
    config = load("quick", {"train": {"batch_size": 6}})
    whole = list(feeding.batches(20, config, 0, 7, 0, 1))
    parts = [list(feeding.batches(20, config, 2, 7, rank, 3)) for rank in range(3)]
    assert [a + b + c for a, b, c in zip(*parts)] == whole[2:]
    assert len({i for batch in whole[:3] for i in batch}) == 18 and whole[:3] != whole[3:6]


def test_learning_rate_falls_and_stages_follow():
    stage = {"loss_weights": {"landmark": 1.0}}
    stages = [
        Stage(name="A", epochs=2, learning_rate=1.0, **stage),
        Stage(name="B", epochs=4, learning_rate=0.5, final_learning_rate=0.1, **stage),
    ]
    plan = training.Plan(stages, per_epoch=10, warmup=9)
    assert plan.total == 60 and plan.at(19)[0] == 0 and plan.at(20) == (1, 0.0)
    assert [plan.learning_rate(s) for s in (0, 4, 9, 19)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [plan.learning_rate(s) for s in (20, 40, 60)] == pytest.approx([0.5, 0.3, 0.1])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--synthetic", 0], "nothing to train on"),
        (["--landmarks", "x"], "give --images"),
        (["--images", "nowhere", "--landmarks", "nowhere"], "is not a folder of frames"),
        (["--config", "nowhere.yaml"], "neither a file nor one of"),
        (["--backbone", "resnet5000"], "neither a torchvision nor a timm model"),
        (["--freeze", "half"], "encoder.freeze"),
        (["--weights", "nowhere.pth"], "is not a file"),
        (["--batch-size", 0], "--batch-size"),
        (["--device", "tpu"], "is not a device"),
        (["--devices", 0], "--devices"),
        (["--head-model", "nowhere.pkl"], "does not exist"),
    ],
)
def test_wrong_input_keeps_the_old_run(finished, options, message):
    folder, _ = finished
    before = (folder / "out/eidolon_encoder_final.pth").read_bytes()
    config = [] if "--config" in options else ["--config", folder / "c.yaml"]
    error = train(*config, "--out", folder / "out", "--force", *options, code=2)
    assert message in error and error.count("\n") == 1
    assert (folder / "out/eidolon_encoder_final.pth").read_bytes() == before


def test_nothing_to_resume(finished, tmp_path):
    assert "holds no run to resume" in train("--out", tmp_path, "--resume", code=2)
    folder, _ = finished
    (tmp_path / "config.yaml").write_bytes((folder / "out/config.yaml").read_bytes())
    assert "does not exist" in train("--out", tmp_path, "--resume", code=2)
    (tmp_path / "checkpoint.pth").write_bytes((folder / "out/eidolon_encoder_final.pth").read_bytes())
    assert "holds no training to resume" in train("--out", tmp_path, "--resume", code=2)


def test_points_pairs_and_what_it_measures(finished, tmp_path):
    """A network that is given points, taught with pairs, begun with another's weights, and measured at the end."""
    folder, _ = finished
    config = {
        "view": {"fov": 14.0, "size": 64},
        "encoder": {
            "backbone": "mobilenet_v3_small",
            "freeze": "backbone",
            "points": True,
            "start": str(folder / "out/eidolon_encoder_final.pth"),
        },
        "data": {"synthetic": 8, "validation": 2, "measured": 4},
        "train": {"batch_size": 4, "pairs": True, "unseen_points": 0.3},
        "stages": [{"name": "A", "epochs": 2, "learning_rate": 0.01, "loss_weights": {"params": 1.0, "identity": 0.1}}],
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", tmp_path / "c.yaml", "--cache", tmp_path / "cache"]
    figures = train(*words, "--out", tmp_path / "out")
    assert set(figures["losses"]) == {"total", "params", "identity"} and figures["losses"]["identity"] > 0
    made = trained.load(tmp_path / "out/eidolon_encoder_final.pth")
    before, after = weights(folder / "out"), weights(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("backbone."))
    assert made.measured is not None and made.measured.sigma.shape == (227,) and len(made.measured.columns) == 108
    # Points change the answer where a face was found, and are nothing where none was.
    images, points = torch.rand(2, 3, 64, 64), torch.rand(2, 478, 2) * 40 + 10
    plain = made.network(images)
    points[1] = torch.nan
    given = made.network(images, points)
    torch.testing.assert_close(given[1], plain[1])
    assert (given[0] - plain[0]).abs().max() > 1e-3
    # Neighbours go together.
    pairs = [batch for batch in feeding.batches(8, load(tmp_path / "c.yaml"), 0, 6, 0, 1)]
    assert all(sorted(i // 2 for i in batch)[::2] == sorted({i // 2 for i in batch}) for batch in pairs)
    config["encoder"]["backbone"] = "resnet18"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert "encoder.start" in train(*words, "--out", tmp_path / "other", code=2)
    assert not (tmp_path / "other/checkpoint.pth").exists()
