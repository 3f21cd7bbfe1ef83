"""The settings of a training run: YAML checked by pydantic; an unknown key or a wrong type is named with its file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from recon4d import settings
from recon4d.files import InputError
from recon4d.settings import Section

from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.vector import Layout

PRESETS = ("default", "shipped", "points", "photographs", "quick")

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Length = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Network(Section):
    """The backbone of the encoder."""

    backbone: str = "resnet50"  # a torchvision or timm model
    weights: str = "imagenet"  # none, imagenet or a file
    freeze: str = Field(default="backbone", pattern=r"^(backbone|none|first-\d+)$")
    points: bool = False  # whether it is given a landmarker's points and blendshapes beside the pixels
    start: str | None = None  # an encoder's file, or `shipped`: the weights to begin with


class Data(Section):
    """What is learned from."""

    images: str | None = None  # a folder
    landmarks: str | None = None  # a folder of their landmarks; without it the landmarker looks at them at the start
    synthetic: Count = 0  # samples
    cache: str | None = None  # folder that keeps synthetic samples for the next epoch
    validation: Positive = 16  # samples held out
    measured: Count = 0  # synthetic people, two pictures each, that say at the end how sure the encoder is


class Train(Section):
    """How it is learned."""

    batch_size: Positive = 32  # of all processes together
    workers: Count = 0  # processes that prepare samples, per training process
    weight_decay: Weight = 0.0
    warmup: Count = 0  # steps over which the learning rate rises at the start
    renderer: Literal["recon4d", "pytorch3d"] = "recon4d"
    photographs: Annotated[float, Field(gt=0, lt=1)] | None = None  # their share of each batch; null mixes all samples
    pairs: bool = False  # neighbouring samples, which of synthetic people show the same person, go together
    unseen_points: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of samples whose points are kept from the network
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
    identity: Weight = 0.0
    points: Weight = 0.0
    blendshapes: Weight = 0.0


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
    view: CropView = CropView()
    encoder: Network = Network()
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
    values = settings.preset_or_file(source, "flame_encoder.encoder", PRESETS)
    if isinstance(values, list):
        values = {"stages": values}
    if isinstance(values, dict):
        if "TRAINING_STAGES" in values:
            values["stages"] = values.pop("TRAINING_STAGES")
        for section, given in (changes or {}).items():
            for key, value in given.items():
                if value is not None:
                    settings.place(values, f"{section}.{key}" if section else key, value, str(source))
    return settings.check(Config, values, source, "configs/default.yaml")


def of_run(folder: Path) -> Config:
    """The settings of the run in a folder. Raises InputError when there is none."""
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} holds no run to resume; train without --resume first")
    return load(folder / "config.yaml")


def check_same(given: Config, begun: Config, path: Path) -> None:
    """Raise InputError naming the first setting that is not that of a run whose config.yaml is `path`."""
    for (key, ours), (_, theirs) in zip(_flat(given.model_dump()), _flat(begun.model_dump())):
        if ours != theirs:
            was, now = (repr(value)[:60] for value in (theirs, ours))
            raise InputError(f"{key} is {was} in {path}, not {now}; leave it out, or train into another --out")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
