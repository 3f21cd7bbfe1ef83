"""Training and submission on features whose classes are known; what stops them."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from feat_extract import model_file, scores, submission, training
from feat_extract.clips import load_clip, open_streams, stack
from feat_extract.config import CLASSES, load_config
from feat_extract.labels import write_table
from recon4d import InputError
from recon4d.files import sha256

CPU = torch.device("cpu")


def changed(config, section, **values):
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


@pytest.fixture(scope="module")
def trained_once(numbers_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(numbers_once, folder, copy_function=os.link, dirs_exist_ok=True)
    return folder, training.train(load_config(folder / "exp.yaml"), CPU)


@pytest.fixture
def trained(trained_once, tmp_path):
    """The data set and what was trained on it, of the test's own, and the training's figures."""
    folder, result = trained_once
    shutil.copytree(folder, tmp_path, copy_function=os.link, dirs_exist_ok=True)
    return load_config(tmp_path / "exp.yaml"), result


def test_held_out_people_are_recognised(trained):
    config, result = trained
    assert result["validation_sequences"] == 15 and result["sequences"] == 55
    found = submission.submit(config, CPU)
    assert found["rows"] == 30 and found["sha256"] == result["sha256"] == sha256(config.checkpoint)
    score = scores.evaluate(config)
    assert score["rows"] == 30 and score["macro_f1"] > 0.9
    folder = Path(config.checkpoint).parent
    history = json.loads((folder / "train.json").read_text())
    assert len(history) == 20 and history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert max(h["validation_f1"] for h in history) == result["best"]["validation_f1"]
    assert "rate: 0.003" in (folder / "config.yaml").read_text()


def test_best_epoch_is_what_is_exported(trained):
    config, _ = trained
    state = torch.load(Path(config.checkpoint).parent / "last.pt", weights_only=True)
    model, note = model_file.read(Path(config.checkpoint))
    assert note["streams"]["feat3d"] == {"kind": "faceverse", "dim": 171} and note["length"] == 12
    exported = model.state_dict()
    assert all(torch.equal(exported[key], value) for key, value in state["best_model"].items())


def test_resumed_training_is_that_without_a_stop(numbers, tmp_path):
    numbers = changed(numbers, "train", epochs=4)
    training.train(numbers, CPU)
    expected, _ = model_file.read(Path(numbers.checkpoint))
    other = numbers.model_copy(update={"checkpoint": str(tmp_path / "other" / "best_scripted.pt")})

    def stop(epoch, text):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(other, CPU, report=stop)
    assert not Path(other.checkpoint).exists()
    training.train(other, CPU, resume=True)
    resumed, _ = model_file.read(Path(other.checkpoint))
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=0, atol=0)
    with pytest.raises(InputError, match="other settings in train"):
        training.train(changed(other, "train", epochs=9), CPU, resume=True)
    (tmp_path / "other" / "last.pt").write_bytes(b"PK\x03\x04rubbish")
    with pytest.raises(InputError, match=r"last.pt is not a readable checkpoint"):
        training.train(other, CPU, resume=True)
    (tmp_path / "other" / "last.pt").unlink()
    with pytest.raises(InputError, match="no training to resume"):  # but config.yaml is there
        training.train(other, CPU, resume=True)


def test_nothing_to_resume_is_a_new_run(numbers, tmp_path):
    numbers = changed(numbers, "train", epochs=1)
    lines = []
    training.train(numbers, CPU, resume=True, log=lines.append)
    assert Path(numbers.checkpoint).is_file() and "holds no training to resume; it begins anew" in lines[0]


def test_people_are_held_out_whole():
    people = [f"p{i % 10}" for i in range(50)]
    held = training.split_people(people, 0.2, 0)
    assert len(held) == 2 and held < set(people) and held != training.split_people(people, 0.2, 3)
    assert training.split_people(people, 0.0, 0) == set()
    assert len(training.split_people(people, 0.99, 0)) == 9  # somebody is left to train on
    assert training.split_people(["one"], 0.5, 0) == set()


def test_scales_beside_numpy(numbers):
    streams = open_streams(numbers)
    clips = [load_clip(f"p{p}/c0", streams, numbers) for p in range(4)]
    found = training.scales(stack(clips))["feat2d"].numpy()
    rows = [clip.inputs["feat2d"][clip.mask] for clip in clips]
    differences = np.concatenate([row - row.mean(0) for row in rows])
    np.testing.assert_allclose(found, np.sqrt((differences**2).mean(0)), rtol=1e-4)


def test_submission_follows_the_sample(trained, tmp_path):
    config, _ = trained
    columns = ["Id", *reversed(CLASSES)]
    names = ["p19/c4", "p0/c0", "p15/c2"]
    write_table(tmp_path / "sample.csv", [dict.fromkeys(columns, 0) | {"Id": name} for name in names])
    config = changed(config, "submit", sample=str(tmp_path / "sample.csv"))
    submission.submit(config, CPU)
    rows = list(csv.reader(Path(config.submit.output).read_text().splitlines()))
    assert rows[0] == columns and [row[0] for row in rows[1:]] == names
    assert {cell for row in rows[1:] for cell in row[1:]} == {"0", "1"}


def test_thresholds_are_the_config_s(trained):
    config, _ = trained
    low, high = (
        submission.submit(config.model_copy(update={"thresholds": t}), CPU, force=True) for t in (1e-9, 1 - 1e-9)
    )
    assert set(low["predicted"].values()) == {30} and set(high["predicted"].values()) == {0}
    one = submission.submit(config.model_copy(update={"thresholds": {"surprise": 1e-9}}), CPU, force=True)
    assert one["predicted"]["surprise"] == 30 and one["predicted"]["positive"] < 30


def test_nothing_is_written_unless_every_row_is_there(trained, tmp_path):
    config, _ = trained
    shutil.rmtree(Path(config.dataset) / "feat3d" / "p19" / "c4")
    with pytest.raises(InputError, match=r"p19/c4 has no feat3d"):
        submission.submit(config, CPU)
    assert not Path(config.submit.output).exists()


def test_other_checkpoints_are_refused(trained, tmp_path):
    config, result = trained
    assert submission.submit(changed(config, "submit", sha256=result["sha256"].upper()), CPU, force=True)["rows"] == 30
    with pytest.raises(InputError, match=r"has the SHA-256 .* it was not loaded"):
        submission.submit(changed(config, "submit", sha256="0" * 64), CPU, force=True)
    for wrong, message in (
        (config.model_copy(update={"classes": CLASSES[::-1]}), "was trained with classes"),
        (changed(config, "sequences", length=9), "was trained with sequences.length 12"),
        (changed(config, "model", streams=["feat2d"]), "reads feat2d, feat3d"),
        (changed(config, "feat3d", kind="track"), "with kind faceverse, here it is track"),
        (config.model_copy(update={"checkpoint": str(tmp_path / "none.pt")}), "none.pt is missing"),
    ):
        with pytest.raises(InputError, match=message):
            submission.submit(wrong, CPU, force=True)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(Path(config.checkpoint).read_bytes()[:1000])
    with pytest.raises(InputError, match=r"broken.pt is not a readable TorchScript file"):
        submission.submit(config.model_copy(update={"checkpoint": str(broken)}), CPU, force=True)


def test_somebody_else_s_checkpoint(numbers, tmp_path):
    class Constant(torch.nn.Module):
        def __init__(self, n: int):
            super().__init__()
            self.n = n

        def forward(self, inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
            return mask[:, :1].float().expand(-1, self.n) + inputs["feat2d"].mean() * 0

    other = numbers.model_copy(update={"checkpoint": str(tmp_path / "other.pt")})
    torch.jit.script(Constant(5)).save(other.checkpoint)
    assert set(submission.submit(other, CPU, force=True)["predicted"].values()) == {30}
    torch.jit.script(Constant(4)).save(other.checkpoint)
    with pytest.raises(InputError, match="does not answer 16 x 5 finite logits"):
        submission.submit(other, CPU, force=True)
    torch.jit.script(torch.nn.Linear(2, 2)).save(other.checkpoint)
    with pytest.raises(InputError, match="does not take these inputs"):
        submission.submit(other, CPU, force=True)


def test_wrong_samples_and_features(trained, tmp_path):
    config, _ = trained
    sample = tmp_path / "sample.csv"
    for text, message in (
        ("id,happy\na,0\n", "has the columns happy"),
        ("id," + ",".join(CLASSES) + "\n", "has no rows"),
        ("id," + ",".join(CLASSES) + "\np0/c0,0,0\n", "line 2 has more or fewer cells"),
        ("id," + ",".join(CLASSES) + "\n" + 2 * "p0/c0,0,0,0,0,0\n", "twice"),
        ("id," + ",".join(CLASSES) + "\nnobody,0,0,0,0,0\n", "nobody has no feat2d, feat3d"),
    ):
        sample.write_text(text)
        with pytest.raises(InputError, match=message):
            submission.submit(changed(config, "submit", sample=str(sample)), CPU, force=True)
    for path in (Path(config.dataset) / "feat2d").rglob("*.npy"):
        values = np.load(path)[:5]
        path.unlink()
        np.save(path, values)
    with pytest.raises(InputError, match=r"has 5 numbers per frame, .* was trained on 12"):
        submission.submit(config, CPU, force=True)


def test_training_names_what_is_wrong(numbers):
    labels = Path(numbers.dataset) / "labels.csv"
    good = labels.read_text()
    labels.unlink()
    for text, message in (
        (good.replace(",1", ",2"), "labels are 0 or 1"),
        (good.replace("surprise", "wonder"), "has no column surprise"),
        (good.replace("train", "val"), "no sequence of the split train"),
        (good + good.splitlines()[-1] + "\n", "twice"),
    ):
        labels.write_text(text)
        with pytest.raises(InputError, match=message):
            training.train(numbers, CPU)
    labels.write_text(good)
    broken = Path(numbers.dataset) / "feat2d" / "p1" / "c1" / "0.npy"
    broken.unlink()
    np.save(broken, np.full(12, np.nan))
    with pytest.raises(InputError, match="NaN"):
        training.train(numbers, CPU)
    assert not Path(numbers.checkpoint).exists()


def test_augmented_leaves_something_of_every_sample(numbers):
    config = changed(numbers, "train", stream_dropout=0.9, frame_dropout=0.9, move=0.1)
    torch.manual_seed(0)
    mask = torch.arange(6)[None] < torch.tensor([1, 6] * 20)[:, None]
    crops = torch.rand(40, 6, 3, 16, 16)
    inputs, kept = training.augmented({"feat2d": torch.rand(40, 6, 4) + 1, "crops": crops}, mask, config)
    assert (kept & ~mask).sum() == 0 and kept.any(1).all() and kept.sum() < mask.sum()
    there = [values.flatten(1).abs().sum(1) > 0 for values in inputs.values()]
    assert (there[0] | there[1]).all() and not (there[0] & there[1]).all()
    # Without moving, a crop is itself or its mirror image, in all frames of a clip alike.
    config = changed(numbers, "train", stream_dropout=0.9, move=0.0)
    found = training.augmented({"crops": crops}, mask, config)[0]["crops"]
    same = (found - crops).flatten(1).abs().amax(1) < 1e-5
    mirrored = (found - crops.flip(-1)).flatten(1).abs().amax(1) < 1e-5
    assert (same ^ mirrored).all() and 5 < same.sum() < 35
