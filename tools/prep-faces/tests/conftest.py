"""Pictures, clips and runs of the command that the tests share."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess]:
    """Run prep-faces as a user does: `run("frames", video, "--out", folder)`."""

    def start(*arguments: object) -> subprocess.CompletedProcess:
        command = [str(Path(sys.executable).with_name("prep-faces")), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    return start


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """A face, 300x300, RGB (part of the public-domain picture of Eileen Collins)."""
    return np.ascontiguousarray(skimage.data.astronaut()[:300, 70:370])
