"""The settings of a training run: YAML checked by pydantic; an unknown key or a wrong type is named with its file."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from recon4d.files import InputError, write_text

PRESETS = ("default", "shipped", "quick")

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Length = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Layout(Section):
    """Numbers of the vector (vector.py). 100, 0, 106 is the first Eidolon's."""

    shape: Positive = 100
    expression: Count = 50
    detail: Count = 56


class View(Section):
    """The camera of the crop (view.py)."""

    fov: Annotated[float, Field(gt=0, lt=120)] = 30.0  # degrees
    distance: Length = 2.7
    head_size: Length = 0.24  # metres that fill the picture
    size: Annotated[int, Field(ge=32)] = 224  # pixels


class Encoder(Section):
    """The network."""

    backbone: str = "resnet50"  # a torchvision or timm model
    weights: str = "imagenet"  # none, imagenet or a file
    freeze: str = Field("backbone", pattern=r"^(backbone|none|first-\d+)$")


class Data(Section):
    """What is learned from."""

    images: str | None = None  # a folder, with landmarks in another
    landmarks: str | None = None
    synthetic: Count = 0  # samples
    cache: str | None = None  # folder that keeps synthetic samples for the next epoch
    validation: Positive = 16  # samples held out


class Train(Section):
    """How it is learned."""

    batch_size: Positive = 32  # of all processes together
    workers: Count = 0  # processes that prepare samples, per training process
    weight_decay: Weight = 0.0
    warmup: Count = 0  # steps over which the learning rate rises at the start
    renderer: Literal["recon4d", "pytorch3d"] = "recon4d"
    jitter: Weight = 0.0  # random change of colour and brightness of each image, each time it is seen
    checkpoint_every: Positive = 500  # steps
    validate_every: Positive = 500


class LossWeights(Section):
    """Weights of the loss terms (losses.py)."""

    pixel: Weight = 0.0
    landmark: Weight = 0.0
    perceptual: Weight = 0.0
    reg_shape: Weight = 0.0
    reg_expression: Weight = 0.0
    reg_transl: Weight = 0.0
    reg_global_pose: Weight = 0.0
    reg_jaw_pose: Weight = 0.0
    reg_neck_pose: Weight = 0.0
    reg_eye_pose: Weight = 0.0
    reg_detail: Weight = 0.0
    params: Weight = 0.0
    vertices: Weight = 0.0


class Stage(Section):
    """One phase of training."""

    name: str
    epochs: Positive
    learning_rate: Length = 1e-4
    final_learning_rate: Length | None = None  # cosine from learning_rate to this; null keeps it
    loss_weights: LossWeights


class Config(Section):
    """All settings of one run."""

    head_model: str | None = None  # a FLAME file; null is the open head
    landmark_embedding: str | None = None
    seed: int = 0
    layout: Layout = Layout()
    view: View = View()
    encoder: Encoder = Encoder()
    data: Data = Data()
    train: Train = Train()
    stages: Annotated[list[Stage], Field(min_length=1)]


def load(source: str | Path, changes: dict[str, dict[str, Any]] | None = None) -> Config:
    """A config from a preset's name or a YAML file: all settings, or only stages, as a list or under TRAINING_STAGES.

    Args:
        changes: settings of sections, or of the top under "", that replace the file's; None is left alone.

    Raises:
        InputError: a missing file, bad YAML, an unknown key, a wrong type; the message names file and key.
    """
    source = str(source)
    if source in PRESETS:
        text = resources.files("flame_encoder").joinpath("configs", f"{source}.yaml").read_text()
    elif Path(source).is_file():
        text = Path(source).read_text(errors="replace")
    else:
        raise InputError(f"--config {source} is neither a file nor one of {', '.join(PRESETS)}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not readable YAML ({' '.join(str(error).split())})") from error
    if isinstance(values, list):
        values = {"stages": values}
    if not isinstance(values, dict):
        raise InputError(f"{source} holds a {type(values).__name__}, not settings or a list of stages")
    if "TRAINING_STAGES" in values:
        values["stages"] = values.pop("TRAINING_STAGES")
    for section, settings in (changes or {}).items():
        given = {key: value for key, value in settings.items() if value is not None}
        if not section:
            values |= given
        elif given:
            below = values.get(section) or {}
            values[section] = {**below, **given} if isinstance(below, dict) else below
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{source}: the key {key} is not known; see configs/default.yaml") from error
        raise InputError(f"{source}: {key}: {first['msg']}, not {first['input']!r}") from error


def write(path: str | Path, config: Config) -> None:
    """Write all settings as YAML, atomically."""
    write_text(path, yaml.safe_dump(config.model_dump(), sort_keys=False))
