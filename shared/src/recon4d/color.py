"""Colour: sRGB and linear light."""

import torch
from torch import Tensor


def srgb_from_linear(linear: Tensor) -> Tensor:
    """IEC 61966-2-1."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def linear_from_srgb(srgb: Tensor) -> Tensor:
    """The inverse of `srgb_from_linear`."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
