"""The settings of a run: YAML checked by pydantic; an unknown key or a wrong type is named with its file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from recon4d import InputError, settings
from recon4d.settings import Section

MOST_SKY = 50_000_000
LONGEST = 400  # letters of a --set option
PRESETS = ("paper", "cpu-quick", "cpu-scenes", "cpu-streets", "shipped")

Positive = Annotated[int, Field(gt=0, le=1_000_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Width = Annotated[int, Field(gt=0, le=4096)]  # of a layer; more does not fit into any memory
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[float, Field(gt=0)]
Range = Annotated[float, Field(gt=0, le=5000)]  # with the smallest voxels still numbers of 20 bits, as in sparse.keys


class Data(Section):
    """Which images, and at which size."""

    camera: str = "front_camera"
    image_size: Annotated[int, Field(gt=0, le=32768)] | None = None  # longer side, pixels; larger images are reduced
    clip: Count | None = None  # number of the only clip of the index to train on; null: all of the split train
    depth_dir: str | None = None  # SCENE/CAMERA/NN.npy (metres) or .png (16 bit, millimetres)


class Lift(Section):
    """How points become Gaussians."""

    points: Literal["lidar", "depth", "both"] = "lidar"  # depth: from depth maps
    fill: bool = False  # between the beams too: Gaussians of the input frames' pixels, at the depth of points around
    depth_stride: Positive = 2  # every so many rows and columns of a depth map
    voxel_size: Length | None = None  # metres; one point per voxel and sweep
    max_gaussians: Positive = 2_000_000  # without the sky
    scale: Length = 1.0  # of the mean distance to three neighbours
    max_scale: Length = 1.0  # metres
    opacity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    sky_points: Annotated[int, Field(ge=0, le=MOST_SKY)] = (
        1_000_000  # on the upper half sphere; those outside the images are left out
    )


class Model(Section):
    """The networks."""

    voxel: Annotated[float, Field(ge=0.01)] = 0.3  # metres
    range_xy: Range = 60.0  # metres around the first ego frame
    range_z: Range = 6.0
    channels: Annotated[list[Width], Field(min_length=1, max_length=8)] = [32, 64, 96, 128]
    hidden: Width = 64
    polynomial: Annotated[int, Field(ge=0, le=8)] = 1  # degree of the velocity in time; 0 is constant velocity
    refinements: Count = 3  # iterations of the second network; 0 leaves it out
    refine_frames: Positive = 3  # input frames whose loss is differentiated in an iteration
    refine_velocity: bool = False  # the loss is differentiated by the velocities too
    lifetime: Length | None = None  # seconds for which a Gaussian is seen at first, then as it learns; null: always
    moments: Annotated[int, Field(ge=0, le=64)] = 0  # parts of a second; a voxel sees how its points share in them
    matched: bool = False  # velocities of what can be matched from sweep to sweep, and of what stands; with lift.fill


class Losses(Section):
    """Weights of the loss terms."""

    l1: Weight = 0.8
    ssim: Weight = 0.2
    depth: Weight = 0.01  # of metres
    inverse_depth: Weight = 0.0  # of 10 / metres: what is near counts, a gap to the sky no more than the rest
    velocity: Weight = 5e-3
    final_velocity: Weight | None = None  # at the end of the run: from half way on the weight moves there; null stays
    flow: Weight = 0.0  # of velocities against the cuboids' motion, m/s; no photometric loss, for drawn streets
    reweight: bool = True  # pixels count 1 + |image-plane velocity|


class Train(Section):
    """How it is learned."""

    iterations: Positive = 30_000
    batch_size: Positive = 4  # clips per step, over all processes
    accumulate: Positive = 1  # batches per step
    fixed_frame: Count | None = None  # the only frame of a clip to compare with; null: random ones
    frames: Positive = 6  # rendered per clip and step
    rate: Length = 1e-3
    final_rate: Length = 1e-4
    warmup: Count = 1000
    still: Share = 0.0  # of the run, in which nothing moves and appearance is learned
    narrow: Share = 0.0  # of the run, in which a frame is drawn from the points seen within `window` of it
    window: Length = 0.15  # seconds; it widens to the whole clip in the half of what follows
    clip_gradient: Length = 1.0
    checkpoint_every: Positive = 1000
    log_every: Positive = 100
    cache_clips: Count = 64  # lifted clips kept in memory


class Config(Section):
    """All settings of one run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data = Data()
    lift: Lift = Lift()
    model: Model = Model()
    losses: Losses = Losses()
    train: Train = Train()


def load_config(source: str | Path, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None) -> Config:
    """A config from a preset's name or a YAML file.

    Args:
        overrides: `key=value` strings, `train.batch_size=2`; the value is YAML.
        values: by keys with dots, `lift.sky_points`, what replaces the file's; None is left alone.

    Raises:
        InputError: a missing file, bad YAML, an unknown key, a wrong type; the message names file and key.
    """
    if str(source).endswith(".py"):
        raise InputError(f"--config {source} is Python; give a YAML file or one of {', '.join(PRESETS)}")
    return change_config(settings.preset_or_file(source, "flux4d", PRESETS), str(source), overrides, values)


def _source(key: str, overrides: tuple[str, ...]) -> str:
    """Who is to blame where a key has no place: the override of a section around it, if there is one."""
    parents = [text for text in overrides if key.startswith(f"{text.partition('=')[0]}.")]
    return f"--set {parents[-1]}" if parents else key


def config_file(source: str | Path | None) -> Path | None:
    """The file that `load_config` would read; None for a preset."""
    return None if source is None or str(source) in PRESETS else Path(source)


def change_config(
    content: Any, source: str, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> Config:
    """A config from the content of a file or checkpoint, named `source` in errors; the rest is as in `load_config`."""
    overrides = tuple(overrides)
    if isinstance(content, dict):
        for text in overrides:
            if len(text) > LONGEST:
                raise InputError(f"--set {text[:40]}... is longer than any setting; give KEY=VALUE")
            settings.override(content, text)
        for key, value in (values or {}).items():
            if value is not None:
                settings.place(content, key, value, _source(key, overrides))
    return settings.check(Config, content, source, "the shipped paper.yaml", overrides)
