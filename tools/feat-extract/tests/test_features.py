"""feat2d: what is written, kept and refused."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from feat_extract import backbones
from feat_extract.config import load_config
from feat_extract.features import run_batch, write_features
from feat_extract.synth import DATASET
from recon4d import InputError

CPU = torch.device("cpu")


@pytest.fixture
def small(pictures, tmp_path):
    """Two sequences of crops, and a small backbone."""
    for name in ("p00_00", "p01_02"):
        shutil.copytree(pictures / DATASET / "lr_image" / name, tmp_path / DATASET / "lr_image" / name)
    (tmp_path / "exp.yaml").write_text("feat2d: {backbone: 'timm:resnet10t', weights: none, size: 48, batch: 3}")
    return load_config(tmp_path / "exp.yaml")


def changed(config, **values):
    return config.model_copy(update={"feat2d": config.feat2d.model_copy(update=values)})


def test_features_are_the_backbone_s(small):
    result = write_features(changed(small, spatial=True), CPU)
    assert result["written"] == 8 and result["kept"] == 0 and result["dim"] == 512
    out = Path(result["out"])
    backbone = backbones.load(changed(small, spatial=True).feat2d)
    image = cv2.imread(str(out.parent / "lr_image" / "p01_02" / "00002.png"))[..., ::-1]
    summary, spatial = run_batch(backbone, [np.ascontiguousarray(image)], CPU)
    found = np.load(out / "p01_02" / "00002.npy")
    assert found.shape == (512,) and found.dtype == np.float16
    np.testing.assert_allclose(found, summary[0], atol=2e-3)
    maps = np.load(out.parent / "feat2d_spatial" / "p01_02" / "00002.npy")
    np.testing.assert_allclose(maps, spatial[0], atol=2e-3)
    manifest = json.loads((out / "feat2d.json").read_text())
    assert manifest["backbone"] == "timm:resnet10t" and manifest["size"] == 48 and len(manifest["weights_sha256"]) == 64


def test_what_is_done_is_kept(small):
    out = Path(write_features(small, CPU)["out"])
    assert write_features(small, CPU)["written"] == 0
    (out / "p00_00" / "00001.npy").unlink()
    image = out.parent / "lr_image" / "p01_02" / "00003.png"
    later = (out / "p01_02" / "00003.npy").stat().st_mtime + 10
    os.utime(image, (later, later))
    again = write_features(small, CPU)
    assert again["written"] == 2 and again["kept"] == 6


def test_two_backbones_are_not_mixed(small):
    out = Path(write_features(small, CPU)["out"])
    before = (out / "p00_00" / "00001.npy").read_bytes()
    for values, message in (
        ({"backbone": "timm:resnet14t"}, "another backbone, .*timm:resnet10t, not timm:resnet14t"),
        ({"size": 64}, "another size"),
        ({"dtype": "float32"}, "another dtype"),
    ):
        with pytest.raises(InputError, match=message):
            write_features(changed(small, **values), CPU)
    assert (out / "p00_00" / "00001.npy").read_bytes() == before
    shutil.rmtree(out.parent / "lr_image" / "p01_02")
    write_features(changed(small, dtype="float32"), CPU, force=True)
    assert {np.load(path).dtype for path in out.rglob("*.npy")} == {np.dtype("float32")}
    assert not list((out / "p01_02").glob("*"))  # nothing of the old kind is left
    (out / "feat2d.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        write_features(small, CPU)
    (out / "feat2d.json").unlink()
    with pytest.raises(InputError, match="feat2d exists; give another output or --force"):
        write_features(small, CPU)


def test_broken_images_are_named(small):
    path = Path(small.dataset) / "lr_image" / "p01_02" / "00003.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"00003.png is not a readable image"):
        write_features(small, CPU)
    for child in (Path(small.dataset) / "lr_image").iterdir():
        shutil.rmtree(child)
    with pytest.raises(InputError, match="has no images"):
        write_features(small, CPU)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_answers_as_the_cpu(small):
    backbone = backbones.load(small.feat2d)
    image = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    expected, _ = run_batch(backbone, [image], CPU)
    backbone.module.to("cuda")
    found, _ = run_batch(backbone, [image], torch.device("cuda"))
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
