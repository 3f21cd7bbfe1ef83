"""What each training step is given, as a function of the step alone: a resumed run goes on as if it had not stopped."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from recon4d.runs import batch_places
from torch import Tensor

from flame_encoder.encoder.config import Config
from flame_encoder.encoder.point_branch import DESCRIBED
from flame_encoder.encoder.samples import Batch


def batches(n: int, config: Config, first: int, last: int, rank: int, world: int) -> Iterator[list[int]]:
    """Indices of this process's part of each batch from step `first` to `last`: passes over n shuffled samples.

    A function of the step alone, so that a resumed run goes on with the samples an uninterrupted one would have, and
    several processes see what one would.
    """
    size = config.train.batch_size
    together = 2 if config.train.pairs and n > 1 and size > 1 else 1
    for step in range(first, last):
        whole = batch_places(step, size // together, n // together, config.seed)
        whole = (whole[:, None] * together + np.arange(together)).ravel()
        yield whole[rank * size // world : (rank + 1) * size // world].tolist()


def jittered(images: Tensor, amount: float, seed: int, step: int, rank: int, world: int) -> Tensor:
    """Images (B, 3, H, W) with gain and offset of each channel changed at random; numbers of the whole batch's."""
    if amount == 0:
        return images
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    whole = torch.randn(len(images) * world, 8, 1, 1, generator=generator) * amount
    change = whole[rank * len(images) : (rank + 1) * len(images)].to(images)
    gain = 1 + change[:, :3] * 0.5 + change[:, 3:4]
    return ((images - 0.5) * gain + 0.5 + change[:, 4:7] * 0.3 + change[:, 7:8] * 0.5).clamp(0, 1)


def kept_back(batch: Batch, share: float, seed: int, step: int, rank: int, world: int) -> Batch:
    """The batch with the points of a random share of its samples unknown; numbers of the whole batch's."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step + 500_000)
    B = len(batch.points)
    drawn = torch.rand(B * world, generator=generator)[rank * B : (rank + 1) * B].to(batch.points.device)
    gone = drawn < share
    seen = batch.seen.clone()
    seen[gone, -DESCRIBED:] = 0
    return replace(batch, points=batch.points.masked_fill(gone[:, None, None], torch.nan), seen=seen)
