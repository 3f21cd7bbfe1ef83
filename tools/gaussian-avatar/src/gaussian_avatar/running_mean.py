"""A running mean of the avatar over its last steps (Polyak and Juditsky 1992): what a stream's training writes."""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from gaussian_avatar.avatars import TRAINED, Avatar

SOON = 0.05  # of the steps so far: the most that the mean reaches back, so that a young avatar is not held back


def share(average: float, step: int) -> float:
    """How much of the way to the avatar its mean goes in a step, where `average` of it is to be kept."""
    return max(1 - average, 1 / (1 + SOON * step))


def copy_of(avatar: Avatar) -> Avatar:
    """The same avatar, sharing no memory that training writes to."""
    tensors = {name: getattr(avatar, name).detach().clone() for name in (*TRAINED, "seen")}
    return replace(avatar, mlp=copy.deepcopy(avatar.mlp), **tensors)


def follow(mean: Avatar, avatar: Avatar, share: float) -> None:
    """Move the mean this share of the way to the avatar; what has been seen for the first time is taken over."""
    with torch.no_grad():
        torch._foreach_lerp_(_trained(mean), _trained(avatar), share)
        fresh = avatar.seen & ~mean.seen
        mean.sh0[fresh] = avatar.sh0[fresh]
        mean.seen.copy_(avatar.seen)


def _trained(avatar: Avatar) -> list[Tensor]:
    return [*(getattr(avatar, name).detach() for name in TRAINED), *(x.detach() for x in avatar.mlp.parameters())]
