"""A sparse 3-D U-Net: convolutions over occupied voxels only, by gather, matrix product and scatter.

Voxels are rows of integer coordinates; a kernel map lists, for each of the 27 offsets of a 3x3x3 kernel, which input
row meets which output row. Maps come from one sort of the voxels' keys and a binary search per offset, in torch, on
any device, and serve all layers of a level (Choy et al. 2019; Tang et al. 2022).
"""

from dataclasses import dataclass
from typing import Any

import torch
from recon4d import threads
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_BITS = 20  # of a coordinate in a key
_OFFSETS = torch.tensor([[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)])
_CORNERS = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])

KernelMap = list[tuple[Tensor, Tensor]]  # per offset: rows of the input, rows of the output


def keys(coordinates: Tensor) -> Tensor:
    """One int64 (N,) for each voxel (N, 3), ordered as x, y, z; coordinates within +-2^19 less one."""
    shifted = coordinates.long() + (1 << (_BITS - 1))
    return (shifted[:, 0] << 2 * _BITS) | (shifted[:, 1] << _BITS) | shifted[:, 2]


def from_keys(key: Tensor) -> Tensor:
    """The inverse of `keys`."""
    mask = (1 << _BITS) - 1
    return torch.stack([key >> 2 * _BITS, (key >> _BITS) & mask, key & mask], -1) - (1 << (_BITS - 1))


@dataclass(frozen=True, eq=False)
class Level:
    """The voxels of one resolution. coordinates: (V, 3), sorted by key. same: its 3x3x3 map. down: the 2x2x2 map, by
    corner, from this level's rows to the next coarser one's; none for the coarsest."""

    coordinates: Tensor
    same: KernelMap
    down: KernelMap | None

    def __len__(self) -> int:
        return len(self.coordinates)


@dataclass(frozen=True, eq=False)
class Grid:
    """Points in voxels. levels: fine to coarse. rows: (N,) voxels of the points inside. inside: (N,) bool."""

    levels: list[Level]
    rows: Tensor
    inside: Tensor


def neighbour_map(key: Tensor, coordinates: Tensor) -> KernelMap:
    """The map of a 3x3x3 convolution whose outputs are at its inputs: output row o meets input at o + offset."""
    pairs = []
    for offset in _OFFSETS.to(key.device):
        wanted = keys(coordinates + offset)
        place = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
        (out,) = (key[place] == wanted).nonzero(as_tuple=True)
        pairs.append((place[out], out))
    return pairs


def voxelize(points: Tensor, size: float, low: Tensor, high: Tensor, levels: int) -> Grid:
    """Sort points (N, 3) into voxels of `size`, with `levels` resolutions, each twice as coarse.

    Args:
        low, high: (3,) bounds; points outside belong to no voxel.
    """
    inside = ((points >= low) & (points < high)).all(1)
    key, rows = torch.unique(keys(((points[inside] - low) / size).floor()), return_inverse=True)
    found: list[Level] = []
    coordinates = from_keys(key)
    for level in range(levels):
        down = None
        if level + 1 < levels:
            parent_key, parent = torch.unique(keys(coordinates.div(2, rounding_mode="floor")), return_inverse=True)
            corner = (coordinates % 2 * torch.tensor([4, 2, 1], device=key.device)).sum(1)
            down = []
            for c in range(8):
                (child,) = (corner == c).nonzero(as_tuple=True)
                down.append((child, parent[child]))
        found.append(Level(coordinates, neighbour_map(key, coordinates), down))
        if down is not None:
            key, coordinates = parent_key, from_keys(parent_key)
    return Grid(found, rows, inside)


def mean_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Means (count, C) of values (N, C) that share a row; 0 for rows without any."""
    total = values.new_zeros(count, values.shape[1]).index_add(0, rows, values)
    number = values.new_zeros(count).index_add(0, rows, values.new_ones(len(rows)))
    return total / number.clamp_min(1)[:, None]


class _Convolve(torch.autograd.Function):
    """Keeps no gathered copies for the backward pass: it gathers again.

    On one thread: a level's operations are hundreds of small ones, and a second thread wakes later than it is done.
    """

    @staticmethod
    @threads.one_thread()
    def forward(ctx: Any, features: Tensor, weight: Tensor, pairs: KernelMap, count: int) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs
        # the middle of a 3x3x3 kernel takes every row to itself
        middle = 13 if len(pairs) == 27 else -1
        out = features @ weight[middle] if middle >= 0 else features.new_zeros(count, weight.shape[2])
        for k, (matrix, (source, target)) in enumerate(zip(weight, pairs)):
            if len(source) and k != middle:
                out.index_add_(0, target, features.index_select(0, source) @ matrix)
        return out

    @staticmethod
    @once_differentiable
    @threads.one_thread()
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        features, weight = ctx.saved_tensors
        by_weight = torch.zeros_like(weight)
        if len(ctx.pairs) == 27:
            by_features, by_weight[13] = gradient @ weight[13].T, features.T @ gradient
        else:
            by_features = torch.zeros_like(features)
        for k, (source, target) in enumerate(ctx.pairs):
            if len(source) and not (k == 13 and len(ctx.pairs) == 27):
                arrived = gradient.index_select(0, target)
                by_features.index_add_(0, source, arrived @ weight[k].T)
                by_weight[k] = features.index_select(0, source).T @ arrived
        return by_features, by_weight, None, None


def convolve(features: Tensor, weight: Tensor, pairs: KernelMap, count: int) -> Tensor:
    """sum over offsets k of features[in_k] @ weight[k], scattered to out_k: (V, C) -> (count, D); weight (K, C, D)."""
    return _Convolve.apply(features, weight, pairs, count)  # type: ignore[no-untyped-call]


class Convolution(nn.Module):
    """A bias-free sparse convolution with batch norm and leaky ReLU.

    The batch norm uses the statistics of the clip at hand, in training and after it: a batch is one clip, whose
    voxels are thousands.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel, inputs, outputs))
        # a voxel of a surface has about a third of its neighbours
        nn.init.normal_(self.weight, std=(2 / (inputs * max(kernel / 3, 1))) ** 0.5)
        self.norm = nn.BatchNorm1d(outputs, track_running_stats=False)

    def forward(self, features: Tensor, pairs: KernelMap, count: int) -> Tensor:
        out = convolve(features, self.weight, pairs, count)
        if count > 1:
            out = self.norm(out)
        return nn.functional.leaky_relu(out, 0.1)


class UNet(nn.Module):
    """A sparse U-Net: two 3x3x3 convolutions per level on the way down and up, 2x2x2 steps between, skips concatenated.

    Args:
        channels: of the levels, fine to coarse.
    """

    def __init__(self, inputs: int, channels: list[int]):
        super().__init__()
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.coarser = nn.ModuleList()
        self.finer = nn.ModuleList()
        previous = inputs
        for level, width in enumerate(channels):
            self.down.append(nn.ModuleList([Convolution(previous, width, 27), Convolution(width, width, 27)]))
            if level + 1 < len(channels):
                self.coarser.append(Convolution(width, channels[level + 1], 8))
                self.finer.append(Convolution(channels[level + 1], width, 8))
                self.up.append(nn.ModuleList([Convolution(2 * width, width, 27), Convolution(width, width, 27)]))
                previous = channels[level + 1]

    def forward(self, features: Tensor, levels: list[Level]) -> Tensor:
        """Features (V, inputs) of the finest level -> (V, channels[0])."""
        kept = []
        for number, level in enumerate(levels):
            for convolution in self.down[number]:  # type: ignore[attr-defined]
                features = convolution(features, level.same, len(level))
            if level.down is not None:
                kept.append(features)
                features = self.coarser[number](features, level.down, len(levels[number + 1]))
        for number in reversed(range(len(levels) - 1)):
            level = levels[number]
            up = [(parent, child) for child, parent in level.down or []]
            features = torch.cat([kept[number], self.finer[number](features, up, len(level))], 1)
            for convolution in self.up[number]:  # type: ignore[attr-defined]
                features = convolution(features, level.same, len(level))
        return features
