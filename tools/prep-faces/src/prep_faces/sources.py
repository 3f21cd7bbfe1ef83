"""What every kind of camera is: pictures that come."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Shots = Iterator[tuple[float, np.ndarray]]  # time since 1970 and RGB uint8 (H, W, 3)


@dataclass(frozen=True)
class Source:
    """Where pictures come from: about how many in a second, and those; what to say when they end."""

    fps: float
    shots: Shots
    ended: str
