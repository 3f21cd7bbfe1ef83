"""A small synthetic capture, made once."""

from pathlib import Path

import pytest
from gaussian_avatar import motions, synth


@pytest.fixture(scope="session")
def head():
    return motions.load_head(None)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A folder with the subject `one`: 24 frames of 64x64 pixels."""
    folder = tmp_path_factory.mktemp("data")
    synth.synthesise(folder / "one", 24, 64, seed=3)
    return folder
