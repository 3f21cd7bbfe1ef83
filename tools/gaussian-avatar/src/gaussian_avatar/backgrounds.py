"""Random backgrounds: what is not head gets another colour in each picture, so that no Gaussian can stand for it."""

import numpy as np
import torch
from torch import Tensor


def random_backgrounds(images: int, count: int, seed: int) -> Tensor:
    """Random colours (count, 3) of the next `count` pictures after `images` have been learned from.

    A function of that number, so that a resumed run goes on with the colours an uninterrupted one would have.
    """
    return torch.from_numpy(np.random.default_rng((seed, 2, images)).random((count, 3), np.float32))


def composite(pictures: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """RGBA uint8 (B, H, W, 4) over backgrounds (B, 3): float (B, H, W, 3), and the mask (B, H, W, 1)."""
    pixels = pictures.float() / 255
    alpha = pixels[..., 3:]
    return torch.lerp(background[:, None, None], pixels[..., :3], alpha), alpha
