"""PNG files, written atomically."""

from pathlib import Path

import cv2
import numpy as np
from recon4d.files import atomic_path


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write RGB or RGBA uint8 (H, W, 3 or 4) as PNG."""
    order = [2, 1, 0, 3][: image.shape[2]]
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), np.ascontiguousarray(image[..., order]))
