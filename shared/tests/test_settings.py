"""Settings from YAML: what is read, changed and written, and what is said about the rest."""

import pytest
from pydantic import Field
from recon4d import InputError, settings


class Train(settings.Section):
    rate: float = 1e-3
    steps: int = Field(10, gt=0)


class Config(settings.Section):
    seed: int = 0
    train: Train = Train()


def test_read_changed_written_read_again(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {steps: 3}\n")
    values = settings.read(tmp_path / "a.yaml")
    settings.override(values, "train.rate=2e-5")
    settings.place(values, "seed", 4, "here")
    config = settings.check(Config, values, "a.yaml", "the README")
    assert config == Config(seed=4, train=Train(rate=2e-5, steps=3))
    settings.write(tmp_path / "b.yaml", config)
    assert settings.check(Config, settings.read(tmp_path / "b.yaml"), "b.yaml", "the README") == config


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "a.yaml").write_text("")
    assert settings.check(Config, settings.read(tmp_path / "a.yaml"), "a.yaml", "") == Config()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "a.yaml holds a list"),
        ({"sead": 1}, "a.yaml: the key sead is not known; see the README"),
        ({"train": {"rates": 1}}, "the key train.rates is not known"),
        ({"train": {"steps": 0}}, "train.steps: .*greater than 0, not 0"),
        ({"train": 5}, "train: .*, not 5"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(InputError, match=message):
        settings.check(Config, values, "a.yaml", "the README")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "--set seed must be key=value"),
        ("=1", "must be key=value"),
        ("seed.x=1", "--set seed.x=1: seed is a value"),
        ("train.steps=[", "is not readable YAML"),
    ],
)
def test_wrong_overrides(text, message):
    with pytest.raises(InputError, match=message):
        settings.override({"seed": 0}, text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml cannot be read \(No such file"):
        settings.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"bad\.yaml is not readable YAML"):
        settings.read(tmp_path / "bad.yaml")
    with pytest.raises(InputError, match="--config fast is neither a file nor one of slow, slower"):
        settings.preset_or_file("fast", "recon4d", ("slow", "slower"))
