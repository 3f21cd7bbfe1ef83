"""A small synthetic capture and a short training of it, made once."""

from pathlib import Path

import pytest
from eyeball_relight import captures, config, synth, training
from recon4d.head import load, with_uv

TINY = (
    "model.levels=5",
    "model.finest=64",
    "model.hidden=24",
    "model.log2_entries=11",
    "model.level_grow_iter=30",
    "train.iterations=90",
    "train.mesh_render_iter=70",
    "train.samples=1024",
    "train.grid=32",
    "train.mesh_resolution=64",
    "train.milestones=[60]",
    "train.warm_up=5",
    "train.checkpoint_every=40",
    "eyes.still=20",
    "train.shading=0",
)


@pytest.fixture(scope="session")
def head():
    return with_uv(load())


@pytest.fixture(scope="session")
def tiny():
    """Settings of a training of seconds."""
    return TINY


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A capture of 11 views of 64x64 pixels."""
    folder = tmp_path_factory.mktemp("data") / "face"
    synth.synthesise(folder, 11, 64, seed=3)
    return folder


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """The capture, its config, the folder of a short training, and what it reported."""
    settings = config.load(data / "config.yaml", "cpu-quick", TINY)
    out = tmp_path_factory.mktemp("run")
    loaded = captures.read(data, print)
    return loaded, settings, out, training.train(settings, loaded, out, print)
