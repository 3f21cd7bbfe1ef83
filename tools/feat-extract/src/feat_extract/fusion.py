"""The fusion model: streams of features over time to probabilities of classes. It compiles with torch.jit.script."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class FeatureEncoder(nn.Module):
    """Features (B, T, D) to tokens (B, T, W): what differs from the clip's own mean, in units of `scale`, projected.

    A person's looks are in the mean, an expression is in the difference.
    """

    scale: Tensor

    def __init__(self, scale: Tensor, width: int, dropout: float):
        super().__init__()
        self.register_buffer("scale", scale.clone())
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(len(scale), width)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        return self.project(self.dropout(centred(values, mask) / self.scale))


class CropEncoder(nn.Module):
    """Crops (B, T, 3, S, S) in [0, 1] to tokens (B, T, W): a small convolutional network on differences from the mean.

    The last map is kept at 3x3 places, so that a brow is told from a mouth.
    """

    scale: Tensor

    def __init__(self, scale: Tensor, width: int, dropout: float):
        super().__init__()
        self.register_buffer("scale", scale.clone())
        channels = (3, 16, 32, 48)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(dropout))
        self.project = nn.Linear(9 * channels[-1], width)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        b, t = values.shape[0], values.shape[1]
        differences = centred(values.flatten(2), mask).view_as(values) / self.scale
        return self.project(self.layers(differences.flatten(0, 1))).view(b, t, -1)


class Block(nn.Module):
    """A transformer block with its norms before attention and feed-forward (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forward_layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        b, t, w = tokens.shape[0], tokens.shape[1], tokens.shape[2]
        qkv = self.qkv(self.norm_attention(tokens)).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=mask[:, None, None, :])
        tokens = tokens + self.dropout(self.out(seen.transpose(1, 2).reshape(b, t, w)))
        return tokens + self.dropout(self.forward_layers(self.norm_forward(tokens)))


class Fusion(nn.Module):
    """Per-stream projection, a transformer over time, attention pooling over the frames that are there, logits.

    Args:
        scales: per stream the typical size of a difference from the clip's mean: (D,) for features, () for `crops`.
        n_classes: logits.
    """

    positions: Tensor

    def __init__(
        self,
        scales: dict[str, Tensor],
        n_classes: int,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        length: int,
    ):
        super().__init__()
        self.streams = nn.ModuleDict(
            {
                name: (CropEncoder if name == "crops" else FeatureEncoder)(scale, width, dropout)
                for name, scale in scales.items()
            }
        )
        self.register_buffer("positions", positions(length, width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.Linear(width, n_classes)
        self.values = nn.Linear(width, n_classes)

    def forward(self, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
        """Logits (B, C).

        Args:
            inputs: per stream (B, T, D), crops (B, T, 3, S, S) in [0, 1].
            mask: (B, T) bool, true where there is a frame; at least one per clip. Other frames have no influence.
        """
        tokens = self.positions[None, : mask.shape[1]].repeat(mask.shape[0], 1, 1)
        for name, encoder in self.streams.items():
            tokens = tokens + encoder(inputs[name], mask)
        for block in self.blocks:
            tokens = block(tokens, mask)
        tokens = self.norm(tokens)
        # Every class looks at the frames that matter to it (Ilse et al. 2018, equation 8).
        weights = self.attention(tokens).masked_fill(~mask[..., None], float("-inf")).softmax(1)
        return (weights * self.values(tokens)).sum(1)


def centred(values: Tensor, mask: Tensor) -> Tensor:
    """Values (B, T, D) less their mean over the frames that are there; zero elsewhere."""
    there = mask[..., None].to(values.dtype)
    mean = (values * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)
    return (values - mean) * there


def positions(length: int, width: int) -> Tensor:
    """Sines and cosines (length, width) of the frame number (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]
