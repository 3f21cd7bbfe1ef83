"""A training run that stops at a step and waits to be killed, for the tests of `train`."""

import time
from pathlib import Path

from flame_encoder.cli import main
from flame_encoder.encoder import losses


def train(arguments: list[str], steps: int, flag: Path) -> None:
    """Run `flame-encoder train`; after so many steps make the file `flag` and sleep."""
    total, done = losses.total, []

    def waits(*given):
        if len(done) == steps:
            flag.touch()
            time.sleep(600)
        done.append(1)
        return total(*given)

    losses.total = waits
    main(["train", *arguments])
