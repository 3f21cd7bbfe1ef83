"""A small synthetic scene, its index and one clip, made once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flux4d import clips, indices, samples, synth
from flux4d.config import load_config


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """Two scenes of 16 frames, 96 x 54 pixels: 001 a street, 002 a crossing."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pandaset")
    for seed in (1, 2):
        synth.write_scene(folder / f"{seed:03d}", seed, 16, 96, 240, 1)
    return folder


@pytest.fixture(scope="session")
def indexed(root) -> dict:
    """Both scenes cut as the paper does, 002 for tests."""
    return indices.build(root, indices.PAPER, ("002",), ("front_camera",), lambda text: None)


@pytest.fixture(scope="session")
def clip(root, indexed):
    return clips.load(indexed["clips"][0], root)


@pytest.fixture(scope="session")
def small():
    """Settings of a network that trains in seconds."""
    return load_config(
        "cpu-quick",
        [
            "lift.max_gaussians=3000",
            "lift.sky_points=8000",
            "model.voxel=0.4",
            "model.channels=[8,12]",
            "model.hidden=16",
            "model.refinements=1",
            "model.refine_frames=2",
            "train.iterations=6",
            "train.frames=2",
            "train.warmup=2",
            "train.log_every=2",
            "train.checkpoint_every=3",
        ],
    )


@pytest.fixture(scope="session")
def sample(root, indexed, small):
    return samples.load_sample(indexed["clips"][0], root, small, torch.device("cpu"))


@pytest.fixture
def bare(tmp_path):
    """A function that writes a scene's poses, times and empty files, all that an index looks at; its folder."""
    import cv2

    def make(name="001", n=80, rate=10.0, camera_rate=None, times=None, positions=None, cuboids=True):
        folder = tmp_path / "scenes" / name
        lidar_times = np.arange(n) / rate if times is None else np.asarray(times)
        camera_times = lidar_times if camera_rate is None else np.arange(int(n * camera_rate / rate)) / camera_rate
        for place, moments, suffix in (
            (folder / "lidar", lidar_times, "pkl.gz"),
            (folder / "camera" / "front_camera", camera_times, "jpg"),
        ):
            place.mkdir(parents=True)
            poses = []
            for i, moment in enumerate(moments):
                y = 5.0 * moment if positions is None else positions[i]
                poses.append({"position": {"x": 0, "y": y, "z": 2}, "heading": {"w": 1, "x": 0, "y": 0, "z": 0}})
                (place / f"{i:02d}.{suffix}").write_bytes(b"")
            (place / "poses.json").write_text(json.dumps(poses))
            (place / "timestamps.json").write_text(json.dumps((1.5e9 + moments).tolist()))
        camera = folder / "camera" / "front_camera"
        cv2.imwrite(str(camera / "00.jpg"), np.zeros((18, 32, 3), np.uint8))
        (camera / "intrinsics.json").write_text(json.dumps({"fx": 30, "fy": 30, "cx": 15.5, "cy": 8.5}))
        if cuboids:
            (folder / "annotations" / "cuboids").mkdir(parents=True)
            for i in range(n):
                (folder / "annotations" / "cuboids" / f"{i:02d}.pkl.gz").write_bytes(b"")
        return folder

    return make
