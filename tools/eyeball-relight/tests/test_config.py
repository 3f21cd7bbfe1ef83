"""Configs: the presets, and what is wrong with others."""

import pytest
from eyeball_relight import config
from recon4d import InputError


def test_presets_load_and_repeat_from_what_is_written(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {bound: 0.2}\neyes: {radius: [0.01, 0.02]}\n")
    for name in config.PRESETS:
        found = config.load(tmp_path / "config.yaml", name, ["train.iterations=30000", "train.lr=2e-3"])
        assert (found.train.iterations, found.train.lr, found.data.bound) == (30000, 0.002, 0.2)
        assert found.eyes.enabled == (name != "cpu-first")  # what the file leaves open is the preset's
        assert found.data.root == str(tmp_path)
        config.write(tmp_path / "again.yaml", found)
        assert config.load(tmp_path / "again.yaml") == found


def test_full_is_also_what_an_empty_config_means(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert config.load(tmp_path / "empty.yaml", "full") == config.load(tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {sampels: 3}", "the key train.sampels is not known"),
        ("train: {samples: many}", "train.samples: .*integer.*'many'"),
        ("train: {iterations: 10}", "train: .*mesh_render_iter is larger than iterations"),
        ("data: {left_eye_ldm: [[1, 2]]}", "data.left_eye_ldm.0: .*3"),
        ("model: 5", "model: .*5"),
        ("train: [", "not readable YAML"),
        ("- 1", "holds a list"),
        ("eyes: {radius: [0.02, 0.01]}", "eyes: .*the smaller radius comes first"),
        ("light: {intensity: -1}", "light.intensity: .*greater than 0"),
    ],
)
def test_wrong_files_name_the_key(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        config.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [("batch", "must be key=value"), ("seed.x=1", "seed is a value"), ("train.x=1", "train.x is not known")],
)
def test_wrong_overrides(tmp_path, override, message):
    path = tmp_path / "fine.yaml"
    path.write_text("seed: 3")
    with pytest.raises(InputError, match=message):
        config.load(path, None, [override])


def test_landmarks_are_added_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data:\n  bound: 0.5\nlight:\n  intensity: 2.0\n")
    config.add_landmarks(path, {"left_eye_ldm": [[1.0, 2.0, 3.0]], "right_eye_ldm": [[0.0, 0.0, 1.0]]})
    found = config.load(path)
    assert found.data.left_eye_ldm == [[1, 2, 3]] and found.data.bound == 0.5 and found.light.intensity == 2
    with pytest.raises(InputError, match="is not a file"):
        config.add_landmarks(tmp_path / "none.yaml", {})
