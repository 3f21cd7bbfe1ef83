"""Settings of training: the stage files of the first Eidolon, presets, and what is said about wrong ones."""

import pytest
import yaml
from flame_encoder.encoder import config
from recon4d import InputError, settings

STAGES = [
    {"name": "A", "epochs": 2, "loss_weights": {"pixel": 1.0, "landmark": 1.0, "reg_shape": 0.5}},
    {"name": "B", "epochs": 3, "learning_rate": 0.1, "loss_weights": {"pixel": 1.0, "landmark": 0.1}},
]


def write(tmp_path, values):
    path = tmp_path / "c.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("form", ["list", "TRAINING_STAGES", "stages"])
def test_stages_alone(tmp_path, form):
    found = config.load(write(tmp_path, STAGES if form == "list" else {form: STAGES}))
    assert [stage.name for stage in found.stages] == ["A", "B"]
    assert found.stages[0].learning_rate == 1e-4 and found.stages[1].learning_rate == 0.1
    assert found.stages[0].loss_weights.reg_shape == 0.5 and found.stages[0].loss_weights.params == 0
    assert found.encoder.backbone == "resnet50" and found.view.size == 224 and found.view.fov == 30


def test_the_first_eidolon_is_the_default():
    found = config.load("default")
    assert [(s.name, s.epochs) for s in found.stages] == [("Stage1_StabilizePose", 20), ("Stage2_FinetuneDetails", 30)]
    assert found.stages[0].loss_weights.reg_global_pose == 1.0 and found.stages[1].loss_weights.landmark == 0.1
    assert found.encoder.weights == "imagenet" and found.encoder.freeze == "backbone"


def test_written_and_read_again(tmp_path):
    for name in config.PRESETS:
        found = config.load(name, {"": {"seed": 7}, "data": {"synthetic": 9, "images": None}})
        assert found.seed == 7 and found.data.synthetic == 9
        settings.write(tmp_path / "c.yaml", found)
        assert config.load(tmp_path / "c.yaml") == found


@pytest.mark.parametrize(
    "values, message",
    [
        ("a: [", "not readable YAML"),
        ("word", "holds a str, not the keys"),
        ([], "stages: .*at least 1"),
        ({"stages": STAGES, "colour": 1}, "the key colour is not known"),
        ([STAGES[0] | {"loss_weights": {"pixels": 1.0}}], r"the key stages\.0\.loss_weights\.pixels is not known"),
        (
            [STAGES[0] | {"loss_weights": {"pixel": -1.0}}],
            r"stages\.0\.loss_weights\.pixel: .*equal to 0",
        ),
        ([STAGES[0] | {"epochs": "many"}], r"stages\.0\.epochs: .*valid integer.*'many'"),
        ([{"name": "A", "epochs": 1}], r"stages\.0\.loss_weights: Field required"),
        ({"stages": STAGES, "encoder": {"freeze": "half"}}, r"encoder\.freeze: .*pattern"),
        ({"stages": STAGES, "train": {"renderer": "blender"}}, r"train\.renderer"),
        ({"stages": STAGES, "view": 5}, "view is a value, not a section"),
    ],
)
def test_wrong_settings(tmp_path, values, message):
    with pytest.raises(InputError, match=rf"c\.yaml.*{message}"):
        config.load(write(tmp_path, values), {"view": {"size": 64}})


def test_no_such_file():
    with pytest.raises(InputError, match="neither a file nor one of default, shipped, points, photographs, quick"):
        config.load("nowhere.yaml")
