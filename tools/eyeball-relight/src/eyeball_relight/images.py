"""Pictures and masks in files."""

from pathlib import Path

import cv2
import numpy as np
from recon4d import InputError
from recon4d.files import atomic_path
from torch import Tensor


def read(path: str | Path, channels: int) -> np.ndarray:
    """An image as float32 (H, W, channels) in [0, 1], 8 or 16 bit; channels is 3 (RGB) or 1.

    Raises InputError for a missing or unreadable file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    flags = (cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_ANYDEPTH
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, flags) if len(data) else None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path} is not a readable 8- or 16-bit image; write it again")
    image = image[..., ::-1] if channels == 3 else image[..., None]
    return image.astype(np.float32) / (65535 if image.dtype == np.uint16 else 255)


def write(path: str | Path, image: np.ndarray | Tensor, bits: int = 8) -> None:
    """Write values in [0, 1], (H, W), (H, W, 1) or (H, W, 3) RGB, as PNG of 8 or 16 bits, atomically."""
    image = np.atleast_3d(np.asarray(image, np.float32))
    top, kind = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    values = (np.clip(image, 0, 1) * top + 0.5).astype(kind)
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), np.ascontiguousarray(values[..., ::-1]))
