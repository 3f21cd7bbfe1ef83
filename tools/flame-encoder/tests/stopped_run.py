"""A training run that stops at a step and waits to be killed, for the tests of `train`."""

import sys
import time
from pathlib import Path

from flame_encoder import cli
from flame_encoder.encoder import losses


def main() -> None:
    """Run `flame-encoder train` with the words after the first two; after so many steps make the file `flag` and sleep.

    The number of steps and the file are the first two words.
    """
    steps, flag = int(sys.argv[1]), Path(sys.argv[2])
    total, done = losses.total, []

    def waits(*given):
        if len(done) == steps:
            flag.touch()
            time.sleep(600)
        done.append(1)
        return total(*given)

    losses.total = waits
    cli.main(["train", *sys.argv[3:]])
