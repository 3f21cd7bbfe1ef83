"""The frames of a video that a capture is made of."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """A chosen frame. file: its picture, with alpha. world_to_camera: (4, 4) as in the video. turn: (3, 3) from the
    axes of the video's camera to those of the capture's, which looks at the head."""

    name: str
    file: Path
    world_to_camera: np.ndarray
    turn: np.ndarray


def looking_at(point: np.ndarray) -> np.ndarray:
    """The least rotation (3, 3) of a camera's axes by which a point (3,) before it comes onto the optical axis."""
    z = point / np.linalg.norm(point)
    x = np.cross([0.0, 1.0, 0.0], z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])
