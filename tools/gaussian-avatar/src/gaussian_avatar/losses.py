"""What training minimises: the photometric terms of RGBAvatar and priors for what the clip shows poorly."""

import numpy as np
import torch
from recon4d import metrics, splat
from torch import Tensor

from gaussian_avatar import box_means
from gaussian_avatar.avatars import Avatar
from gaussian_avatar.config import Losses

DARK = (0.15, 0.06, 0.06)  # sRGB: the inside of a mouth, where no light gets
SSIM_PIXELS = 3 * box_means.SIDE  # side of the boxes that structural similarity is taken in


def image_terms(
    weights: Tensor, image: Tensor, alpha: Tensor, target: Tensor, mask: Tensor, losses: Losses, images: int
) -> dict[str, Tensor]:
    """Weighted loss terms of what was drawn, means over the pictures, those of weight 0 left out.

    Args:
        weights: (B, K) of the basis. image, target: (B, H, W, 3). alpha, mask: (B, H, W, 1).
        images: how many have been learned from before.
    """
    terms = {"l1": losses.l1 * (image - target).abs().mean()}
    if losses.ssim:
        terms["ssim"] = losses.ssim * (1 - ssim(image, target))
    if losses.lpips and images >= losses.lpips_start:
        terms["lpips"] = losses.lpips * metrics.lpips(image.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2)).mean()
    if losses.alpha:
        terms["alpha"] = losses.alpha * (alpha - mask).abs().mean()
    if losses.sparsity:
        terms["sparsity"] = losses.sparsity * weights.abs().mean()
    return terms


def prior_terms(
    avatar: Avatar, losses: Losses, init_log_scale: Tensor, pairs: Tensor, inside: Tensor
) -> dict[str, Tensor]:
    """Weighted loss terms of the avatar itself, those of weight 0 left out.

    Args:
        init_log_scale: (N, 1). pairs: (P, 2) neighbours.
        inside: (M,) the Gaussians inside the mouth.
    """
    terms = {}
    if losses.orthogonality:
        terms["orthogonality"] = losses.orthogonality * orthogonality(avatar)
    if losses.offset:
        terms["offset"] = losses.offset * (avatar.means / init_log_scale.exp()).square().mean()
    if losses.size:
        excess = (avatar.log_scales - init_log_scale - np.log(4)).clamp_min(0)
        terms["size"] = losses.size * excess.square().mean()
    if losses.cover:
        lacking = (init_log_scale - avatar.log_scales[:, :2]).clamp_min(0)  # the third axis is along the normal
        terms["cover"] = losses.cover * lacking.square().mean()
    if losses.smooth:
        relative = [avatar.log_scales - init_log_scale, avatar.means / init_log_scale.exp()]
        attributes = torch.cat([avatar.sh0, avatar.opacity_logits[:, None], *relative], 1)
        terms["smooth"] = losses.smooth * (attributes[pairs[:, 0]] - attributes[pairs[:, 1]]).square().mean()
    if losses.dark and len(inside):
        shade = (avatar.sh0.new_tensor(DARK) - 0.5) / splat.SH0
        terms["dark"] = losses.dark * (avatar.sh0[inside] - shade).square().mean()
    if losses.opaque:
        terms["opaque"] = losses.opaque * avatar.opacity_logits.neg().sigmoid().mean()
    if losses.basis:
        terms["basis"] = losses.basis * (
            (avatar.mean_basis / init_log_scale.exp()).square().mean()
            + avatar.quat_basis.square().mean()
            + avatar.sh0_basis.square().mean()
        )
    return terms


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al. 2004) of (B, H, W, C) images; `b` gets no gradient.

    In every fourth of the boxes of `SSIM_PIXELS` along each side, instead of a Gaussian window around every pixel:
    means of means of small boxes are many times faster on a CPU, and as a loss they serve the same;
    `recon4d.metrics.ssim` is what `metrics` reports.
    """
    means = box_means.box_means(a, b)
    means = (means[:, :-2] + means[:, 1:-1] + means[:, 2:]) / 3
    means = (means[:, :, :-2] + means[:, :, 1:-1] + means[:, :, 2:]) / 3
    mean_a, mean_b, aa, bb, ab = means.unbind(3)
    c1, c2 = 0.01**2, 0.03**2
    covariance = ab - mean_a * mean_b
    variances = aa - mean_a.square() + bb - mean_b.square()
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a.square() + mean_b.square() + c1) * (variances + c2))).mean()


def orthogonality(avatar: Avatar) -> Tensor:
    """Norm of the upper triangle of the basis vectors' cosine matrix, summed over position, rotation and colour."""
    total = avatar.means.new_zeros(())
    for basis in (avatar.mean_basis, avatar.quat_basis, avatar.sh0_basis):
        vectors = torch.nn.functional.normalize(basis.flatten(1), dim=1)
        total = total + torch.triu(vectors @ vectors.T, diagonal=1).norm()
    return total
