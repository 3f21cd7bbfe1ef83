"""Image metrics: PSNR, SSIM and LPIPS, whole or inside a mask."""

import os
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from recon4d import perceptual
from recon4d.files import InputError

LPIPS_BACKBONES = {  # others than "alex", whose weights ship with the library
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


def psnr(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio per image, dB; peak 1.

    Args:
        prediction, target: (B, C, H, W) in [0, 1].
        mask: (B, 1, H, W) weights; None counts all pixels. An image whose mask is empty gives NaN.

    Returns:
        (B,).
    """
    squared = (prediction - target).square()
    if mask is None:
        mse = squared.mean((1, 2, 3))
    else:
        mse = (squared * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * prediction.shape[1])
    return -10 * mse.log10()


def ssim(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity per image (Wang et al. 2004), Gaussian window of sigma 1.5, averaged over the mask.

    Shapes as in `psnr`. Raises InputError for images smaller than the 11-pixel window.
    """
    if min(prediction.shape[-2:]) < 11:
        raise InputError(f"SSIM needs images of at least 11 by 11 pixels, not {tuple(prediction.shape[-2:])}")
    full = _ssim_map(prediction, target)
    if mask is None:
        return full.mean((1, 2, 3))
    return (full.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of each pixel and channel, (B, C, H, W); borders mirrored."""
    channels = a.shape[1]
    x = torch.arange(-5, 6, dtype=a.dtype, device=a.device)
    window = torch.softmax(-x.square() / (2 * 1.5**2), 0).expand(channels, 1, 1, 11)
    padded = F.pad(torch.cat([a, b, a * a, b * b, a * b]), (5, 5, 5, 5), mode="reflect")
    means = F.conv2d(F.conv2d(padded, window, groups=channels), window.mT, groups=channels)
    mean_a, mean_b, square_a, square_b, product = means.chunk(5)
    variances = (square_a - mean_a.square()).clamp_min(0) + (square_b - mean_b.square()).clamp_min(0)
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a.square() + mean_b.square() + 0.01**2)
    return luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2)


@lru_cache(maxsize=3)
def lpips_network(backbone: str = "alex", device: str = "cpu") -> torch.nn.Module:
    """The LPIPS network (Zhang et al. 2018) on AlexNet, or by the package `lpips` on VGG-16 or SqueezeNet.

    The ImageNet weights of the latter come from torchvision on first use.

    Raises:
        InputError: those are not in torch's cache and can't be fetched; the message says which file goes where.
    """
    if backbone == "alex":
        return perceptual.AlexDistance().to(device).eval().requires_grad_(False)
    import lpips

    name = LPIPS_BACKBONES[backbone]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        # torchvision prints its download to stdout, where results go.
        with open(os.devnull, "w") as silence, redirect_stdout(silence):
            network = lpips.LPIPS(net=backbone, verbose=False)
    except Exception as error:  # torch.hub raises URLError, OSError, RuntimeError (wrong hash), pickle errors
        raise InputError(
            f"LPIPS needs torchvision's weights {name}, which can't be fetched or read ({error}); "
            f"place the file in {folder}"
        ) from error
    module: torch.nn.Module = network.to(device).eval().requires_grad_(False)
    return module


def lpips(prediction: Tensor, target: Tensor, mask: Tensor | None = None, backbone: str = "alex") -> Tensor:
    """Learned perceptual distance per image (B,); outside the mask both images are set to the target.

    Shapes as in `psnr`; differentiable in `prediction`. Raises InputError for images under 31 pixels, and where the
    weights of another backbone are missing.
    """
    if min(prediction.shape[-2:]) < perceptual.SMALLEST:
        raise InputError(f"LPIPS needs images of at least 31 by 31 pixels, not {tuple(prediction.shape[-2:])}")
    network = lpips_network(backbone, str(prediction.device))
    if mask is not None:
        prediction = prediction * mask + target * (1 - mask)
    distance: Tensor = network(prediction * 2 - 1, target * 2 - 1)
    return distance[:, 0, 0, 0]
