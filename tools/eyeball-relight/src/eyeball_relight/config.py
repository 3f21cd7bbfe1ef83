"""The settings of a training run: YAML checked by pydantic; an unknown key or a wrong type is named with its file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator
from recon4d import InputError, settings
from recon4d.files import write_text
from recon4d.settings import Section
from recon4d.settings import write as write

PRESETS = ("cpu-quick", "cpu-fine", "cpu-first", "full")

Positive = Annotated[int, Field(gt=0)]
Length = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Point = Annotated[list[float], Field(min_length=3, max_length=3)]
Ball = Annotated[list[float], Field(min_length=4, max_length=4)]
Range = Annotated[list[Length], Field(min_length=2, max_length=2)]


class Data(Section):
    """The capture. Lengths are in its unit, which synth makes metres."""

    root: str | None = None  # its folder; null is the folder of the config file
    bound: Length = 1.0  # the head lies in [-bound, bound]^3
    head: str | None = None  # a mesh in the root, that import of a tracked video writes: where the surface begins
    left_eye_ldm: list[Point] = []  # points on the left eyeball, in the model's space
    right_eye_ldm: list[Point] = []
    eyeballs: Annotated[list[Ball], Field(max_length=2)] = []  # centre and radius, left and right, where they are known

    @model_validator(mode="after")
    def _both(self) -> "Data":
        if len(self.eyeballs) == 1:
            raise ValueError("eyeballs are two, left and right, or none")
        return self


class Light(Section):
    """The flash and the room."""

    intensity: Length | None = None  # null: so that the median pixel of the face has an albedo of 0.4
    color: Annotated[list[Length], Field(min_length=3, max_length=3)] = [1.0, 1.0, 1.0]
    ambient_scale: Weight = 0.2
    exposure: bool = False  # learn a gain per picture and channel: cameras that set their exposure by themselves


class Eyes(Section):
    """The eyeballs."""

    enabled: bool = True  # false: one surface for everything, the first of the two steps
    radius: Range = [0.05, 0.1]  # limits
    still: Annotated[int, Field(ge=0)] = 3000  # steps until they begin to move: the face has to find its place first

    @model_validator(mode="after")
    def _ordered(self) -> "Eyes":
        if self.radius[0] >= self.radius[1]:
            raise ValueError("the smaller radius comes first")
        return self


class Model(Section):
    """Networks and hash grids."""

    coarsest: Annotated[int, Field(gt=0, le=2**16)] = 16
    finest: Annotated[int, Field(gt=0, le=2**20)] = 1024
    levels: Annotated[int, Field(gt=0, le=64)] = 16
    log2_entries: Annotated[int, Field(ge=8, le=24)] = 14
    features: Annotated[int, Field(gt=0, le=64)] = 2
    hidden: Annotated[int, Field(gt=0, le=4096)] = 64
    init_level: Positive = 4  # levels that are on from the start
    level_grow_iter: Positive = 500  # steps until the next one is switched on
    init_radius: Annotated[float, Field(gt=0, lt=1)] = 0.4  # of the sphere to begin with, in bounds
    beta: Length = 0.1  # width of the density's edge to begin with, in bounds
    beta_min: Length = 0.0005
    beta_max_final: Length = 0.1  # what the width is held below at the end of volume rendering
    roughness: Range = [0.2, 0.9]


class Losses(Section):
    """Weights of the loss terms."""

    pbr: Weight = 1.0
    auxiliary: Weight = 1.0
    mask: Weight = 0.5
    eikonal: Weight = 0.1
    parts: Weight = 0.5  # masks of the face and of each eye
    clear: Weight = 2.0  # face in front of an eyeball where the masks see it
    hair: Weight = 0.05  # specular in hair
    specular: Weight = 0.1  # distance from the fitted specular albedo, where there is one
    smooth: Weight = 0.005  # normals of neighbouring points
    smooth_hair: Weight = 0.02
    landmarks: Weight = 1.0
    roughness: Weight = 0.002  # roughness of neighbouring points
    occlusion: Weight = (
        0.0  # what a view's own share of the room's light is off 1: with light.exposure it would stand in
    )
    room: Weight = 0.0  # the room's light beside the flash's: what pictures leave open is taken for the flash's
    lpips: Weight = 0.0  # in the mesh phase


class Train(Section):
    """How it is learned. Lengths count steps."""

    iterations: Positive = 20000
    mesh_render_iter: Positive = 15000  # volume rendering until then, rasterization of the mesh after
    samples: Annotated[int, Field(gt=0, le=2**24)] = 65536  # points per step; the number of rays adapts
    per_ray: Annotated[int, Field(gt=0, le=4096)] = 16
    lr: Length = 1e-3
    warm_up: Positive = 100
    milestones: list[Positive] = [10000, 13000]
    milestone_factor: Length = 0.33
    mesh_lr: Length = 1e-3
    grid: Annotated[int, Field(ge=16, le=512)] = 128  # cells per side of the cached distances
    grid_every: Positive = 50
    mesh_resolution: Annotated[int, Field(ge=32, le=1024)] = 256
    shading: Annotated[int, Field(ge=0, le=8)] = 2  # rounds of bending the mesh to normals by how bright it is; 0: none
    checkpoint_every: Positive = 1000
    refine_pose: bool = False  # learn what each view's pose is off by
    refine_focal: bool = False  # with it, the focal length as well
    refine_after: Annotated[int, Field(ge=0)] = 800  # steps until that begins: there has to be a head first
    pose_rate: Length = 0.05  # of the learning rate

    @model_validator(mode="after")
    def _phases(self) -> "Train":
        if self.mesh_render_iter > self.iterations:
            raise ValueError("mesh_render_iter is larger than iterations")
        return self


class Config(Section):
    """All settings of one run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data = Data()
    light: Light = Light()
    eyes: Eyes = Eyes()
    model: Model = Model()
    train: Train = Train()
    losses: Losses = Losses()

    @property
    def folder(self) -> Path:
        """The capture's folder, which `load` has set."""
        return Path(self.data.root or ".")


def load(path: str | Path, preset: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """A config from a YAML file, whose keys replace a preset's.

    Args:
        overrides: `key=value` strings, `train.iterations=600`; the value is YAML. They replace the file's.

    Raises:
        InputError: a missing file, bad YAML, an unknown key, a wrong type; the message names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--config-path {path} is not a file; synth and import write one beside the capture")
    values = {} if preset is None else settings.preset("eyeball_relight", preset)
    given = settings.read(path)
    for key, value in given.items() if isinstance(given, dict) else ():
        both = isinstance(values.get(key), dict) and isinstance(value, dict)
        values[key] = values[key] | value if both else value
    for text in overrides:
        settings.override(values, text)
    config = check(values if isinstance(given, dict) else given, path, overrides)
    if config.data.root is None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"root": str(path.parent)})})
    return config


def check(values: Any, source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of parsed YAML. Raises InputError naming the first wrong key, and the source or the override."""
    return settings.check(Config, values, source, "the shipped full.yaml", overrides)


def first_difference(kept: Config, wanted: Config) -> str | None:
    """The first key, with its section, whose values differ; the capture may have moved."""
    theirs = wanted.model_dump()
    for key, value in kept.model_dump().items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for name, ours in pairs:
            other = theirs[key][name] if name else theirs[key]
            if ours != other and (key, name) != ("data", "root"):
                return f"{key}.{name}" if name else key
    return None


def add_landmarks(path: str | Path, found: dict[str, list[Any]]) -> None:
    """Put eyeball landmarks into a config file's data section; the rest of the file keeps its values.

    Raises InputError as `load` does.
    """
    load(path)
    values = settings.read(path)
    values["data"] = (values.get("data") or {}) | found
    check(values, path)
    write_text(path, yaml.safe_dump(values, sort_keys=False))
