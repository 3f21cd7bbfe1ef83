"""exp.yaml: what is read, and what is wrong with others."""

import pytest
from feat_extract.config import load_config
from recon4d import InputError, settings


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "exp.yaml").write_text("dataset: d\nprep_faces: {size: 128}\nsubmit: {sample: s.csv}\n")
    config = load_config(tmp_path / "exp.yaml")
    assert config.dataset == str(tmp_path / "d") and config.submit.sample == str(tmp_path / "s.csv")
    assert config.checkpoint == str(tmp_path / "data/inference_artifacts/checkpoint/best_scripted.pt")
    assert config.feat2d.weights == "default" and config.feat2d.cache == str(tmp_path / "pretrained_models")
    (tmp_path / "exp.yaml").write_text(f"dataset: {tmp_path / 'far'}\nfeat2d: {{weights: w.pt}}\n")
    config = load_config(tmp_path / "exp.yaml")
    assert config.dataset == str(tmp_path / "far") and config.feat2d.weights == str(tmp_path / "w.pt")


def test_what_is_written_is_read_again(tmp_path):
    (tmp_path / "exp.yaml").write_text("thresholds: {surprise: 0.3}\ntrain: {epochs: 7}\n")
    config = load_config(tmp_path / "exp.yaml")
    assert config.threshold("surprise") == 0.3 and config.threshold("others") == 0.5
    settings.write(tmp_path / "checkpoint" / "config.yaml", config)
    assert load_config(tmp_path / "checkpoint" / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "the key train.epoch is not known"),
        ("feat4d: {}", "the key feat4d is not known"),
        ("train: {epochs: many}", "train.epochs: .*integer"),
        ("model: {streams: [feat5d]}", "model.streams.0: .*'feat2d', 'feat3d' or 'crops'"),
        ("model: {streams: []}", "model.streams: .*at least 1"),
        ("model: {width: 10, heads: 4}", "width 10 must be a multiple of heads 4"),
        ("classes: [a, a]", "classes must differ"),
        ("thresholds: {joy: 0.5}", "joy is none of the classes"),
        ("thresholds: 1.5", "1.5 is not between 0 and 1"),
        ("dataset: [", "is not readable YAML"),
        ("- 1", "holds a list"),
    ],
)
def test_wrong_files_name_the_key(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
