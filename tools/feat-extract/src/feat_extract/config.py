"""exp.yaml: the settings that all commands share, checked by pydantic; paths are relative to the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from recon4d import settings
from recon4d.settings import Section

KNOWN = "the README's settings"
CLASSES = ["positive", "negative", "surprise", "repression", "others"]
Stream = Literal["feat2d", "feat3d", "crops"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Feat2D(Section):
    """Image features."""

    input: str = "lr_image"  # folder in the dataset: <sequence>/<frame>
    output: str = "feat2d"
    backbone: str = "radio:c-radio_v3-b"  # or timm:<name>
    weights: str = "default"  # of a timm model: none, default or a file
    revision: str | None = None  # of RADIO's repository
    trust_code: bool = False  # RADIO's weights come with Python code; true allows it to run
    cache: str = "pretrained_models"  # RADIO's code and weights are kept in its folder radio
    size: Positive | None = None  # pixels of the input's side; null: what the model prefers
    dtype: Literal["float16", "float32"] = "float16"
    spatial: bool = False  # write the spatial map too
    batch: Positive = 16


class Feat3D(Section):
    """Expression coefficients."""

    input: str = "tracks"  # folder in the dataset, or a path
    kind: Literal["faceverse", "track"] = "faceverse"
    output: str = "feat3d"


class Sequences(Section):
    """How a sequence becomes arrays of fixed length."""

    length: Annotated[int, Field(ge=2)] = 32  # frames; longer sequences are sampled, shorter ones padded
    missing: Literal["interpolate", "refuse"] = "interpolate"  # frames that a stream does not have


class Model(Section):
    """The fusion model: what it reads, and its size."""

    streams: Annotated[list[Stream], Field(min_length=1)] = ["feat2d", "feat3d", "crops"]
    width: Positive = 64
    heads: Positive = 4
    layers: Positive = 2
    dropout: Share = 0.2
    crop_size: Annotated[int, Field(ge=16)] = 48  # pixels of a crop's side inside the model

    @model_validator(mode="after")
    def _divides(self) -> "Model":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class Train(Section):
    """How it is learned."""

    epochs: Positive = 80
    batch: Positive = 16
    rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    validation: Share = 0.2  # of the training identities, held out to choose the best epoch
    stream_dropout: Share = 0.3  # chance that a training sample lacks a stream
    frame_dropout: Share = 0.15  # chance that it lacks a frame
    move: Share = 0.04  # crops are moved by up to this share of their side
    seed: int = 0


class Submit(Section):
    """What is predicted, and where the answers go."""

    output: str = "submission.csv"
    sample: str | None = None  # sample submission: its order and columns are followed
    split: str | None = "test"  # of the labels file, where there is one and no sample
    sha256: str | None = None  # of the checkpoint


class Config(Section):
    """All of exp.yaml."""

    dataset: str = "data/inference_artifacts/dataset"
    checkpoint: str = "data/inference_artifacts/checkpoint/best_scripted.pt"
    labels: str = "labels.csv"  # in the dataset
    classes: Annotated[list[str], Field(min_length=1)] = CLASSES
    thresholds: float | dict[str, float] = 0.5  # probability from which a class is said to be there
    prep_faces: Any = None  # belongs to prep-faces
    feat2d: Feat2D = Feat2D()
    feat3d: Feat3D = Feat3D()
    sequences: Sequences = Sequences()
    model: Model = Model()
    train: Train = Train()
    submit: Submit = Submit()

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) < len(classes):
            raise ValueError("the classes must differ")
        return classes

    @model_validator(mode="after")
    def _known(self) -> "Config":
        given = self.thresholds if isinstance(self.thresholds, dict) else {"all": self.thresholds}
        for name, value in given.items():
            if name not in self.classes and name != "all":
                raise ValueError(f"thresholds: {name} is none of the classes {', '.join(self.classes)}")
            if not 0 < value < 1:
                raise ValueError(f"thresholds: {value} is not between 0 and 1")
        return self

    def threshold(self, name: str) -> float:
        return self.thresholds.get(name, 0.5) if isinstance(self.thresholds, dict) else self.thresholds


def load_config(path: str | Path, values: Mapping[str, Any] | None = None) -> Config:
    """Read exp.yaml; its paths become absolute.

    Args:
        values: by keys with dots, `feat2d.backbone`, what replaces the file's; None is left alone.

    Raises:
        InputError: a missing file, an unknown key, a wrong type; the message names the file, the key and what was
            expected.
    """
    path = Path(path)
    config = settings.check(Config, settings.read(path), path, KNOWN)
    here = path.parent.absolute()  # an absolute path stays as it is
    weights = config.feat2d.weights
    absolute = {
        "dataset": str(here / config.dataset),
        "checkpoint": str(here / config.checkpoint),
        "submit.output": str(here / config.submit.output),
        "submit.sample": config.submit.sample and str(here / config.submit.sample),
        "feat2d.cache": str(here / config.feat2d.cache),
        "feat2d.weights": weights if weights in ("none", "default") else str(here / weights),
    }
    content = config.model_dump()
    for key, value in {**absolute, **(values or {})}.items():
        if value is not None:
            settings.place(content, key, value, key)
    return settings.check(Config, content, path, KNOWN)
