"""Small stand-ins for RADIO as it is published: a Hugging Face snapshot with its own code, and a torch.hub repository.

They have RADIO's interface (names, shapes, pixels in [0, 1]) and its loading path, not its network.
"""

import functools
import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

VIT = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)

NETWORK = f"""
from collections import namedtuple
import timm
import torch
from torch import nn

Resolution = namedtuple("Resolution", ["height", "width"])
RadioOutput = namedtuple("RadioOutput", ["summary", "features"])


class Conditioner(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("norm_mean", torch.tensor({MEAN})[:, None, None])
        self.register_buffer("norm_std", torch.tensor({STD})[:, None, None])

    def forward(self, x):
        assert 0 <= x.min() and x.max() <= 1
        return (x - self.norm_mean) / self.norm_std


class RadioNetwork(nn.Module):
    preferred_resolution = Resolution(64, 64)
    patch_size, min_resolution_step, max_resolution = 16, 16, 256

    def __init__(self):
        super().__init__()
        self.model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **{VIT})
        self.input_conditioner = Conditioner()
        self.register_buffer("summary_idxs", torch.tensor([0]))

    def forward(self, x):
        tokens = self.model.forward_features(self.input_conditioner(x))
        return RadioOutput(tokens[:, self.summary_idxs].flatten(1), tokens[:, 1:])
"""

MODELING = """
from transformers import PretrainedConfig, PreTrainedModel
from .network import RadioNetwork


class RADIOConfig(PretrainedConfig):
    def __init__(self, args=None, version=None, **kwargs):
        self.args, self.version = args, version
        super().__init__(**kwargs)


class RADIOModel(PreTrainedModel):
    config_class = RADIOConfig

    def __init__(self, config):
        super().__init__(config)
        self.radio_model = RadioNetwork()

    patch_size = property(lambda self: self.radio_model.patch_size)
    min_resolution_step = property(lambda self: self.radio_model.min_resolution_step)
    max_resolution = property(lambda self: self.radio_model.max_resolution)
    preferred_resolution = property(lambda self: self.radio_model.preferred_resolution)

    def forward(self, x):
        return self.radio_model(x)
"""

HUBCONF = """
dependencies = ["torch", "timm"]
import os
import torch
from radio_network import RadioNetwork


def radio_model(version="", progress=True, **kwargs):
    model = RadioNetwork()
    path = os.path.join(torch.hub.get_dir(), "checkpoints", f"{version}.pth.tar")
    state = torch.hub.load_state_dict_from_url(f"http://127.0.0.1:9/{version}.pth.tar", progress=progress)
    model.load_state_dict(state["state_dict"])
    return model
"""


@functools.cache
def vit() -> torch.nn.Module:
    """The network inside, made without RADIO's code."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **VIT).eval()


def weights() -> dict[str, torch.Tensor]:
    buffers = {
        "input_conditioner.norm_mean": torch.tensor(MEAN)[:, None, None],
        "input_conditioner.norm_std": torch.tensor(STD)[:, None, None],
        "summary_idxs": torch.tensor([0]),
    }
    return {f"model.{k}": v for k, v in vit().state_dict().items()} | buffers


@torch.no_grad()
def expected(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summary (B, 24) and spatial map (B, 24, h, w) of pixels in [0, 1]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    tokens = vit().forward_features((pixels - mean) / std)
    h, w = (n // 16 for n in pixels.shape[2:])
    return tokens[:, 0], tokens[:, 1:].transpose(1, 2).reshape(len(pixels), -1, h, w)


def write_snapshot(folder: Path) -> Path:
    """A folder as `huggingface-cli download nvidia/C-RADIO...` leaves it."""
    folder.mkdir(parents=True)
    (folder / "network.py").write_text(NETWORK)
    (folder / "hf_model.py").write_text(MODELING)
    config = {
        "architectures": ["RADIOModel"],
        "auto_map": {"AutoConfig": "hf_model.RADIOConfig", "AutoModel": "hf_model.RADIOModel"},
        "args": {"model": "stand-in"},
        "version": "c-radio-test",
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({f"radio_model.{k}": v for k, v in weights().items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_hub(cache: Path, version: str, revision: str = "main") -> Path:
    """A cache as torch.hub leaves it: the repository's code, and its weights in checkpoints."""
    code = cache / "radio" / f"NVlabs_RADIO_{revision}"
    code.mkdir(parents=True)
    (code / "radio_network.py").write_text(NETWORK)
    (code / "hubconf.py").write_text(HUBCONF)
    checkpoints = cache / "radio" / "checkpoints"
    checkpoints.mkdir()
    torch.save({"state_dict": weights()}, checkpoints / f"{version}.pth.tar")
    return code
