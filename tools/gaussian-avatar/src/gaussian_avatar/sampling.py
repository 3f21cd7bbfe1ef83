"""Which frames of a stream a batch is made of: a local pool of the newest, a global reservoir of the older ones.

RGBAvatar (Li et al., CVPR 2025), section 3.4, local-global sampling.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from recon4d.formats.track import Track
from torch import Tensor

from gaussian_avatar.config import Online


@dataclass
class Frame:
    """One frame that has arrived."""

    index: int  # in order of arrival
    name: str
    vertices: Tensor  # (V, 3)
    inputs: Tensor  # (D,)
    pixels: Tensor  # (H, W, 4) uint8
    used: bool = False  # whether it has been in a batch
    K: Tensor | None = None  # (3, 3) intrinsics of its picture, where they differ from picture to picture
    track: Track | None = None  # of a frame that is posed only when it is drawn
    packed: tuple[bytes, bytes] | None = None  # its picture and matte as files, where `pixels` are unpacked when drawn


@dataclass
class Pools:
    """What a stream keeps of the frames that have arrived; never more than local_pool + global_pool of them."""

    settings: Online
    rng: np.random.Generator
    local: deque[Frame] = field(default_factory=deque)  # oldest first
    reservoir: list[Frame] = field(default_factory=list)
    left: int = 0  # how many have left the local pool

    def __len__(self) -> int:
        return len(self.local) + len(self.reservoir)

    @property
    def arrived(self) -> int:
        return self.left + len(self.local)


def add(pools: Pools, frame: Frame) -> None:
    """Take the newest frame; one that leaves the local pool is offered to the reservoir.

    Reservoir sampling (Vitter 1985, algorithm R): each frame that has left is in it with the same probability.
    """
    pools.local.append(frame)
    if len(pools.local) <= pools.settings.local_pool:
        return
    old = pools.local.popleft()
    pools.left += 1
    if len(pools.reservoir) < pools.settings.global_pool:
        pools.reservoir.append(old)
        return
    place = int(pools.rng.integers(pools.left))
    if place < len(pools.reservoir):
        pools.reservoir[place] = old


def global_share(pools: Pools) -> float:
    """The share of a batch that comes from the reservoir: its share of all frames kept, `global_share` at most."""
    if not pools.reservoir or pools.settings.force_local:
        return 0.0
    if pools.settings.force_global:
        return 1.0
    return min(pools.settings.global_share, len(pools.reservoir) / len(pools))


def draw(pools: Pools, size: int) -> list[Frame]:
    """A batch of different frames; fewer than `size` where so many are not kept.

    Of the local pool, frame i of n has the weight exp(c i / n); of the reservoir, all have the same.
    """
    rng, settings = pools.rng, pools.settings
    current = [pools.local[-1]] if settings.force_opt_current else []
    n_global = min(int(rng.binomial(size - len(current), global_share(pools))), len(pools.reservoir))
    n = len(pools.local) - len(current)
    n_local = min(size - len(current) - n_global, n)
    weights = np.exp(settings.local_focus * np.arange(1, n + 1) / max(n, 1))
    chosen: Sequence[int] | np.ndarray = ()
    older: Sequence[int] | np.ndarray = ()
    if n_local:
        chosen = rng.choice(n, n_local, replace=False, p=weights / weights.sum())
    if n_global:
        older = rng.choice(len(pools.reservoir), n_global, replace=False)
    return current + [pools.local[i] for i in chosen] + [pools.reservoir[i] for i in older]
