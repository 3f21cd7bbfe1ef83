"""Configs: the presets, and what is wrong with others."""

import pytest
from gaussian_avatar.config import PRESETS, load_config
from recon4d import InputError
from recon4d.settings import write


def test_presets_load_and_repeat_from_what_is_written(tmp_path):
    for name in PRESETS:
        config = load_config(name, ["train.iterations=70", "train.rates.mlp=2e-3"], seed=5)
        assert (config.train.iterations, config.train.rates.mlp, config.seed) == (70, 0.002, 5)
        write(tmp_path / "config.yaml", config)
        assert load_config(tmp_path / "config.yaml") == config


def test_offline_is_also_what_an_empty_config_means(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == load_config("offline")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {batchsize: 3}", "the key train.batchsize is not known"),
        ("train: {batch_size: many}", "train.batch_size: .*integer.*'many'"),
        ("train: {batch_size: 0}", "train.batch_size: .*greater than 0"),
        ("model: 5", "model: .*5"),
        ("train: [", "not readable YAML"),
        ("- 1", "holds a list"),
        ("split: half", "split: "),
    ],
)
def test_wrong_files_name_the_key(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [("batch", "must be key=value"), ("seed.x=1", "seed is a value"), ("train.x=1", "train.x is not known")],
)
def test_wrong_overrides(tmp_path, override, message):
    path = tmp_path / "fine.yaml"
    path.write_text("seed: 3")
    with pytest.raises(InputError, match=message):
        load_config(path, [override])


def test_missing_file():
    with pytest.raises(InputError, match="neither a file nor one of offline, cpu-quick"):
        load_config("nothing.yaml")
