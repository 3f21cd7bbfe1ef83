"""One picture with the camera that took it."""

from dataclasses import dataclass

import numpy as np

from recon4d.lenses import LensCamera


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture.

    file: its name as the source has it, with folders, perhaps without a suffix. world_to_camera: (4, 4) float64, OpenCV
    axes; a similarity where the source has a scale. mask: the name of its mask, where the source names one.
    """

    file: str
    world_to_camera: np.ndarray
    camera: LensCamera
    mask: str | None = None


def intrinsics(fx: float, fy: float, cx: float, cy: float, skew: float = 0.0) -> np.ndarray:
    """K (3, 3) float64."""
    return np.array([[fx, skew, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
