"""Data sets that the tests share: one of pictures, one of numbers."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from feat_extract import synth
from feat_extract.config import CLASSES, Config, load_config
from feat_extract.labels import write_table


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder as `synth` writes it, with lr_image cut from the middle of its frames: do not write into it."""
    folder = tmp_path_factory.mktemp("pictures")
    synth.synthesise(folder, train_people=2, test_people=1, clips=5, frames=4, size=64, seed=3)
    dataset = folder / synth.DATASET
    for path in sorted((dataset / "original_image").rglob("*.png")):
        target = dataset / "lr_image" / path.relative_to(dataset / "original_image")
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), cv2.imread(str(path))[8:56, 8:56])
    return folder


def write_config(folder: Path, **sections) -> Path:
    path = folder / "exp.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture
def numbers(numbers_once, tmp_path) -> Config:
    """A data set of features without pictures, of the test's own: it may replace files there, not write into them."""
    # Links: copies of thousands of small files take seconds.
    shutil.copytree(numbers_once, tmp_path, copy_function=os.link, dirs_exist_ok=True)
    return load_config(tmp_path / "exp.yaml")


@pytest.fixture(scope="session")
def numbers_once(tmp_path_factory) -> Path:
    """Each class raises its own numbers for a while, over a person's level.

    20 people with 5 clips each, of 9 to 14 frames; the last 6 people are the split test.
    """
    root = tmp_path_factory.mktemp("numbers")
    rng = np.random.default_rng(0)
    dataset = root / "dataset"
    rows = []
    directions = {"feat2d": rng.normal(size=(5, 12)), "feat3d": rng.normal(size=(5, 171))}
    for person in range(20):
        level = {"feat2d": 5 * rng.normal(size=12), "feat3d": 5 * rng.normal(size=171)}
        for clip in range(5):
            labels = np.eye(5, dtype=int)[clip]
            if rng.random() < 0.3:
                labels[rng.integers(5)] = 1
            name = f"p{person}/c{clip}"
            n = int(rng.integers(9, 15))
            bump = np.exp(-(((np.arange(n) - rng.uniform(0.3, 0.7) * n) / 2) ** 2))
            for stream, prefix in (("feat2d", ""), ("feat3d", "expr_")):
                folder = dataset / stream / name
                folder.mkdir(parents=True)
                raised = bump[:, None] * (labels @ directions[stream])
                values = level[stream] + raised + 0.3 * rng.normal(size=(n, len(level[stream])))
                for i, row in enumerate(values):
                    np.save(folder / f"{prefix}{i}.npy", row.astype(np.float32))
            row = {"sequence": name, "split": "train" if person < 14 else "test", "identity": f"p{person}"}
            rows.append(row | dict(zip(CLASSES, labels.tolist())))
    write_table(dataset / "labels.csv", rows)
    write_config(
        root,
        dataset="dataset",
        checkpoint="checkpoint/best_scripted.pt",
        sequences={"length": 12},
        model={"streams": ["feat2d", "feat3d"], "width": 32, "layers": 1},
        train={"epochs": 20, "rate": 0.003, "stream_dropout": 0.1, "frame_dropout": 0.05},
    )
    return root
