"""What each training step is given, as a function of the step alone: a resumed run goes on as if it had not stopped."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from recon4d.files import InputError
from recon4d.head import HeadModel
from recon4d.runs import batch_places
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from flame_encoder.encoder import samples
from flame_encoder.encoder.config import Config
from flame_encoder.encoder.point_branch import DESCRIBED
from flame_encoder.encoder.samples import Batch, Item
from flame_encoder.encoder.synthetic import scene
from flame_encoder.frames import frame_paths
from flame_encoder.report import Progress, unseen


def datasets(
    config: Config, head: HeadModel, progress: Progress = unseen
) -> tuple[ConcatDataset[Item], ConcatDataset[Item], int]:
    """Training and held-out samples, and how many of the former, the first of them, are photographs.

    Raises InputError when the settings name none, or too few.
    """
    layout, view = config.layout, config.view
    training: list[Dataset[Item]] = []
    held_out: list[Dataset[Item]] = []
    held = config.data.validation
    images, landmarks = config.data.images, config.data.landmarks
    photographs = 0
    if images is not None:
        if landmarks is None:
            with progress("find faces", len(frame_paths(Path(images)))) as report:
                folder = samples.Folder(Path(images), None, layout, view, report)
        else:
            folder = samples.Folder(Path(images), Path(landmarks), layout, view)
        # The last ones, but never more than a quarter; a single image is both.
        count = min(held, len(folder) // 4)
        photographs = len(folder) - count
        training.append(Subset(folder, range(photographs)))
        held_out.append(Subset(folder, range(len(folder) - max(count, 1), len(folder))))
    elif landmarks is not None:
        raise InputError("landmarks alone show nobody; give --images, too")
    elif config.train.photographs is not None:
        raise InputError("train.photographs is a share of photographs; give them with --images, or leave it out")
    if config.data.synthetic:
        drawn = scene(head, layout, view)
        cache = None if config.data.cache is None else Path(config.data.cache)
        training.append(samples.Synthetic(drawn, config.data.synthetic, config.seed, cache))
        held_out.append(samples.Synthetic(drawn, held, config.seed + 1_000_000))
    if not training:
        raise InputError("nothing to train on; give --images, or --synthetic N")
    return ConcatDataset(training), ConcatDataset(held_out), photographs


def photographs_of(config: Config, photographs: int, n: int, world: int = 1) -> int:
    """How many of each batch are photographs: a share of their own of n samples, whose first they are; 0 if none.

    Raises InputError for a share that leaves no room in a batch.
    """
    share, size = config.train.photographs, config.train.batch_size
    if share is None or not 0 < photographs < n:
        return 0
    step = world * (2 if config.train.pairs else 1)
    count = max(round(share * size / step), 1) * step
    if count >= size:
        raise InputError(f"train.photographs {share} leaves nothing else in batches of {size}; give a smaller share")
    return count


def batches(
    n: int, config: Config, first: int, last: int, rank: int, world: int, photographs: int = 0
) -> Iterator[list[int]]:
    """Indices of this process's part of each batch from step `first` to `last`: passes over n shuffled samples.

    A function of the step alone, so that a resumed run goes on with the samples an uninterrupted one would have, and
    several processes see what one would.

    Args:
        photographs: how many of the samples, the first of them, are photographs; they are passed over on their own
            where the config gives them a share.
    """
    seed, size = config.seed, config.train.batch_size
    own = photographs_of(config, photographs, n, world)
    rest, begin = (n - photographs, photographs) if own else (n, 0)
    size -= own
    together = 2 if config.train.pairs and rest > 1 and size > 1 else 1
    for step in range(first, last):
        whole = batch_places(step, size // together, rest // together, seed)
        whole = begin + (whole[:, None] * together + np.arange(together)).ravel()
        part = whole[rank * size // world : (rank + 1) * size // world].tolist()
        if own:
            part += batch_places(step, own, photographs, seed + 1)[
                rank * own // world : (rank + 1) * own // world
            ].tolist()
        yield part


Given = TypeVar("Given")


def said_plainly(loader: Iterable[Given]) -> Iterator[Given]:
    """The same, but what a worker process finds wrong with an input is said in the one sentence that it was."""
    try:
        yield from loader
    except InputError as error:  # a worker's has its traceback in it
        raise InputError(str(error).strip().splitlines()[-1].removeprefix("recon4d.files.InputError: ")) from error


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
