"""What happens in a step of a training, as functions of its number, so that a resumed run goes on in it."""

import math

import numpy as np
from recon4d import runs

from flux4d.clips import Clip
from flux4d.config import Config, Losses


def rate(step: int, config: Config) -> float:
    """The learning rate: linear warm-up, then exponential decay to the final rate."""
    run = config.train
    share = min(step / run.iterations, 1.0)
    return run.rate * (run.final_rate / run.rate) ** share * min((step + 1) / max(run.warmup, 1), 1.0)


def weights(step: int, config: Config) -> Losses:
    """The loss's weights: that of the velocity goes to its final one in the second half of the run."""
    losses, share = config.losses, max(2 * step / config.train.iterations - 1, 0.0)
    if losses.final_velocity is None:
        return losses
    return losses.model_copy(update={"velocity": losses.velocity + share * (losses.final_velocity - losses.velocity)})


def chosen_clips(step: int, config: Config, number: int) -> list[int]:
    """The clips: a place in the endless sequence of shuffled passes, so that a resumed run goes on in it."""
    size = config.train.batch_size * config.train.accumulate
    return [int(clip) for clip in runs.batch_places(step, size, number, config.seed)]


def window(step: int, config: Config) -> float:
    """Seconds around a frame within which a point has to be seen to be drawn in it.

    Points of neighbouring sweeps alone leave a hole, or a double, where something moves, at a distance that a small
    change of velocity mends. All points of a second together show a streak, which fading mends sooner.
    """
    run = config.train
    share = step / run.iterations
    if share < run.narrow:
        return run.window
    if run.narrow == 0:
        return math.inf
    # in the first half of what is left of the run it widens to a second more, then to everything
    left = (share - run.narrow) / max(1 - run.narrow, 1e-9)
    return run.window + 2 * left if left < 0.5 else math.inf


def chosen_frames(step: int, item: int, config: Config, clip: Clip) -> list[int]:
    """Frames to render of a step's clip number `item`: the fixed one, else a random choice of inputs and targets.

    A frame without an input in the window has nothing to show. With a narrow one only targets are chosen: an input's
    own points show it whatever their velocity.
    """
    if config.train.fixed_frame is not None:
        return [config.train.fixed_frame]
    narrow = step < config.train.narrow * config.train.iterations
    wanted = clip.target if narrow else sorted(clip.input + clip.target)
    gaps = (clip.times[wanted][:, None] - clip.times[clip.input]).abs().amin(1)
    shown = [frame for frame, gap in zip(wanted, gaps) if gap <= window(step, config)] or wanted
    rng = np.random.default_rng((config.seed, 4, step, item))
    return sorted(int(i) for i in rng.choice(shown, min(config.train.frames, len(shown)), replace=False))
