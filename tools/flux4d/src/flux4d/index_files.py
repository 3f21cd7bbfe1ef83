"""What the file of an index holds, and how it is checked."""

import math
from pathlib import PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

FORMAT = "flux4d-index-1"


def _below(path: str) -> str:
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or "\0" in path or not place.name:
        raise ValueError("must be a path below the scenes' folder")
    return path


def _name(name: str) -> str:
    if _below(name) != PurePosixPath(name).name:
        raise ValueError("must be the name of a folder")
    return name


Numbers = list[Annotated[int, Field(ge=0)]]
Below = Annotated[str, AfterValidator(_below)]
Name = Annotated[str, AfterValidator(_name)]


class _Part(BaseModel):
    """What an index is made of: finite numbers, and no value of another kind in their place."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Position(_Part):
    x: float
    y: float
    z: float


class _Heading(_Position):
    w: float

    @model_validator(mode="after")
    def _turns(self) -> "_Heading":
        if math.hypot(self.w, self.x, self.y, self.z) < 1e-6:
            raise ValueError("must not be zero")
        return self


class _Pose(_Part):
    position: _Position
    heading: _Heading


class _Intrinsics(_Part):
    fx: Annotated[float, Field(gt=0)]
    fy: Annotated[float, Field(gt=0)]
    cx: float
    cy: float


class _Camera(_Part):
    frames: Numbers
    images: list[Below]
    timestamps: list[float]
    poses: list[_Pose]
    intrinsics: _Intrinsics


class _Clip(_Part):
    scene: Name
    split: Literal["train", "test"]
    frames: Annotated[Numbers, Field(min_length=2)]
    timestamps: list[float]
    input: Annotated[Numbers, Field(min_length=1)]
    target: Numbers
    lidar: list[Below]
    lidar_poses: list[_Pose]
    cuboids: list[Below] | None
    cameras: Annotated[dict[Name, _Camera], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> "_Clip":
        n = len(self.frames)
        counts = {len(self.timestamps), len(self.lidar), len(self.lidar_poses)}
        counts |= set() if self.cuboids is None else {len(self.cuboids)}
        for camera in self.cameras.values():
            counts |= {len(camera.frames), len(camera.images), len(camera.timestamps), len(camera.poses)}
        if counts != {n}:
            raise ValueError(f"has {n} frames, and not as many of all else")
        if max([*self.input, *self.target]) >= n:
            raise ValueError(f"has inputs or targets beyond its {n} frames")
        if min(np.diff(self.timestamps)) <= 0:
            raise ValueError("has timestamps that do not grow")
        return self


class IndexFile(_Part):
    """What an index file holds: names that lead nowhere else, numbers that are finite, lists that fit each other."""

    format: Literal["flux4d-index-1"]
    root: str
    clips: list[_Clip]
