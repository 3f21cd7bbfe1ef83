"""The settings of a training run: YAML checked by pydantic; an unknown key or a wrong type is named with its file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from recon4d import settings
from recon4d.settings import Section

OFFLINE = ("offline", "cpu-quick", "cpu-fine")
ONLINE = ("online", "cpu-online")
PRESETS = OFFLINE + ONLINE

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]


class Data(Section):
    """Which frames, and at which size."""

    image_size: Positive | None = None  # longer side in pixels; larger images are reduced to it
    crop: bool = False  # train on squares around the head, which follow it, not on whole pictures
    test_camera: str | None = None  # of several cameras the one that is held out; null is the most central one
    train_cameras: list[str] | None = None  # those that are trained on; null is all others
    test_frames: Annotated[int, Field(ge=0)] = 350  # the last frames are held out
    test_share: Annotated[float, Field(ge=0, le=0.5)] = 0.15  # of clips too short to spare that many
    preload: bool = True  # keep all images in memory
    pairs: Literal["all", "common"] = "all"  # every image has its frame; or what has none is left out
    frame_offset: Annotated[int, Field(ge=-(10**9), le=10**9)] = 0  # the image of frame k is numbered k + frame_offset


class Model(Section):
    """What is learned."""

    tex_size: Annotated[int, Field(gt=0, le=100_000)] = 256  # UV texels per side; each covered one is a Gaussian
    basis: Annotated[int, Field(gt=0, le=1000)] = 20  # K
    hidden: Annotated[int, Field(gt=0, le=4096)] = 128
    init_scale: Annotated[float, Field(gt=0)] | None = 0.0008  # metres; null: by the distance of the texels
    init_opacity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    fill_unseen: bool = False  # at the end, let what was never seen look like what is around it, instead of hiding it
    stretch: bool = False  # Gaussians grow and shrink with their triangles
    one_sided: bool = False  # hide Gaussians whose surface faces away from the camera


class Rates(Section):
    """Adam's learning rates. Those of the basis are multiples of the attribute's own."""

    position: Rate = 8e-4
    position_final: Rate = 8e-6
    position_images: Positive | None = 30000  # images over which the position's rate falls, log-linearly; null: all
    position_delay_images: Annotated[int, Field(ge=0)] = 0
    position_delay_factor: Rate = 0.01
    opacity: Rate = 0.25
    scale: Rate = 0.025
    rotation: Rate = 0.005
    colour: Rate = 0.0125
    basis_position: Rate = 0.05
    basis_rotation: Rate = 0.5
    basis_colour: Rate = 0.5
    mlp: Rate = 1e-3
    pose: Rate = 1e-4  # of each training frame's pose, in radians and decimetres
    exposure: Rate = 3e-2  # of each training frame's exposure, in logarithms
    epsilon: Annotated[float, Field(gt=0)] = 1e-15  # Adam's; a larger one keeps what is hardly seen from drifting
    final_factor: Annotated[float, Field(gt=0, le=1)] = 1.0  # all other rates end at this share of their start


class Losses(Section):
    """Weights of the loss terms."""

    l1: Weight = 1.0
    ssim: Weight = 0.0
    lpips: Weight = 0.0
    lpips_start: int = 20000  # images
    alpha: Weight = 0.0
    sparsity: Weight = 0.0
    orthogonality: Weight = 0.0
    offset: Weight = 0.0  # mean square distance from the surface, in units of the initial scale
    size: Weight = 0.0  # mean square of the log scale above four times the initial one
    cover: Weight = 0.0  # mean square of what the log scales along the surface lack of the initial ones: no gaps
    smooth: Weight = 0.0  # mean square difference of neighbouring texels' attributes
    dark: Weight = 0.0  # mean square distance from dark red inside the mouth: it learns the lips' colours through them
    basis: Weight = 0.0  # mean square of the basis
    opaque: Weight = 0.0  # mean transparency: what is inside the head must not shine through


class Train(Section):
    """How it is learned. Lengths count images, not batches."""

    batch_size: Positive = 10
    iterations: Positive | None = 50000  # null: 12 for each frame, at least 4000
    blend_start: int = 3000  # the basis joins in at this image
    initial_colours: bool = True  # paint a Gaussian by the pixels it covers when it is first seen
    colour_weight: Annotated[float, Field(gt=0)] = 0.1  # blending weight in a batch that initialises a colour
    refine_pose: bool = False  # correct each training frame's pose by a small rotation and translation
    exposure: bool = False  # each training frame has an exposure of its own: three factors of its colours
    checkpoint_every: Positive = 5000
    preview_seconds: Annotated[float, Field(ge=0)] = 5.0  # model.ply is rewritten this often; 0 is at the end only
    rates: Rates = Rates()
    losses: Losses = Losses()


class Online(Section):
    """How frames of a stream are sampled, and what follows its end."""

    local_pool: Positive = 150  # the newest frames
    local_focus: Annotated[float, Field(ge=0)] = 3.0  # c: frame i of n is drawn with the weight exp(c i / n)
    global_pool: Positive = 1000  # older frames, by reservoir sampling
    global_share: Annotated[float, Field(ge=0, le=1)] = 0.7  # the most that a batch takes of them
    force_opt_current: bool = False  # the newest frame is in every batch
    force_local: bool = False  # nothing but the local pool
    force_global: bool = False  # nothing but the reservoir, once there is one
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0  # what is kept of the avatar's mean over steps; see online.py
    post_steps: Annotated[int, Field(ge=0)] = 0  # after the stream, on all frames kept
    image_wait: Annotated[float, Field(ge=0)] = 10.0  # seconds that a picture may come later than its frame in a pipe
    images: str | None = None  # pictures of a pipe's frames; null is the subject's images folder
    masks: str | None = None  # greyscale masks for pictures without alpha

    @model_validator(mode="after")
    def _one_force(self) -> "Online":
        if self.force_local and self.force_global:
            raise ValueError("force_local and force_global exclude each other")
        return self


class Config(Section):
    """All settings of one run."""

    data_dir: str = "data"
    output_dir: str = "output"
    head_model: str | None = None  # a FLAME file; null is the open head
    split: str = Field("train", pattern="^(train|test|all)$")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    online: Online = Online()


def config_file(source: Config | str | Path | None) -> str | Path | None:
    """The file that settings come from; None where they are a preset's, or given as they are."""
    return source if isinstance(source, str | Path) and str(source) not in PRESETS else None


def load_config(source: "Config | str | Path", overrides: Sequence[str] = (), **top: Any) -> Config:
    """A config from a preset's name, a YAML file, or another config.

    Args:
        source: one of PRESETS, a file, or settings.
        overrides: `key=value` strings, `train.batch_size=6`; the value is YAML.
        top: top-level keys that replace the file's; None is left alone.

    Raises:
        InputError: a missing file, bad YAML, an unknown key, a wrong type; the message names file and key.
    """
    if isinstance(source, Config):
        values, source = source.model_dump(), "the settings"
    else:
        values = settings.preset_or_file(source, "gaussian_avatar", PRESETS)
    if isinstance(values, dict):
        for text in overrides:
            settings.override(values, text)
        values |= {key: value for key, value in top.items() if value is not None}
    return settings.check(Config, values, source, "the shipped offline.yaml", overrides)
