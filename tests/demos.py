"""Runs the shell pipelines of demo/ as a user does, but for the seconds in which each step would import torch."""

import os
import subprocess
import sys
from pathlib import Path

import forks

ROOT = Path(__file__).parents[1]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the tools, also where the environment is not active


def run_demo(script: Path, out: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """A script with OUT set; what it said and how it ended."""
    return subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OUT": str(out), "PATH": f"{forks.programs()}:{PATH}"} | environment,
    )
