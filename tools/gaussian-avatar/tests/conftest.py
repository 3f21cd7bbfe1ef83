"""A small synthetic capture, made once."""

from pathlib import Path

import pytest
from gaussian_avatar import run, synth


@pytest.fixture(scope="session")
def head():
    return run.load_head(None)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, head) -> Path:
    """A folder with the subject `one`: 24 frames of 64x64 pixels."""
    folder = tmp_path_factory.mktemp("data")
    synth.synthesise(folder / "one", head, 24, 64, 25.0, seed=3)
    return folder
