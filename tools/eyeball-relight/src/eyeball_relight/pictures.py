"""Pictures and masks as values in [0, 1]."""

from pathlib import Path

import numpy as np
from recon4d import images
from torch import Tensor


def read_picture(path: str | Path, channels: int) -> np.ndarray:
    """A picture as float32 (H, W, channels); channels is 3 (RGB) or 1. Raises InputError as `recon4d.images.read`."""
    picture = images.read(path, "RGB" if channels == 3 else "L")
    return picture.reshape(*picture.shape[:2], channels).astype(np.float32) / 255


def write_picture(path: str | Path, picture: np.ndarray | Tensor) -> None:
    """Write (H, W), (H, W, 1) or (H, W, 3) RGB as an 8-bit PNG, atomically."""
    values = np.clip(np.asarray(picture, np.float32), 0, 1) * 255 + 0.5
    images.write_png(path, (values[..., 0] if values.shape[2:] == (1,) else values).astype(np.uint8))
