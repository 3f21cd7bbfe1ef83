"""The network: a backbone of torchvision or timm, and one layer that gives the vector of `vector.py`."""

from pathlib import Path

import torch
from recon4d.files import InputError
from recon4d.runs import read_checkpoint
from torch import Tensor, nn

from flame_encoder.encoder.point_branch import DESCRIBED, PointBranch, described
from flame_encoder.encoder.vector import IDENTITY_6D, Layout

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, what pretrained backbones expect


class EidolonEncoder(nn.Module):
    """Images (B, 3, size, size) in [0, 1] -> vectors (B, layout.size): a backbone, its mean over the picture, a layer.

    The last layer starts with a bias of zero, but for the rotation, which starts at the identity. With `points` the
    network is given what a landmarker finds, too (`point_branch.py`).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: str = "resnet50", weights: str = "none", layout: Layout | None = None, points: bool = False
    ):
        super().__init__()
        layout = layout or Layout()
        self.backbone, width = _backbone(backbone, weights)
        self.width = width
        self.head = nn.Linear(width, layout.size)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        start = layout.shape + layout.expression
        with torch.no_grad():
            self.head.bias[start : start + 6] = torch.tensor(IDENTITY_6D)
        self.points = PointBranch(width, layout.size) if points else None
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor, points: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """The vectors.

        Args:
            points: (B, 478, 2), pixels of the images, NaN where unknown; only a branch for them uses it.
            seen: what `look` gave for the images and points, where it is known.
        """
        seen = self.look(images, points) if seen is None else seen
        features, described = seen[:, : self.width], seen[:, self.width :]
        answer: Tensor = self.head(features)
        return answer if self.points is None else answer + self.points(features, described)

    def look(self, images: Tensor, points: Tensor | None = None) -> Tensor:
        """What the layers behind the backbone are given: its features and, with a branch for points, `described`."""
        features: Tensor = self.backbone((images - self.mean) / self.std)
        if self.points is None:
            return features
        if points is None:
            return torch.nn.functional.pad(features, (0, DESCRIBED))
        return torch.cat([features, described(images, points)], 1)


def _backbone(name: str, weights: str) -> tuple[nn.Module, int]:
    """A torchvision model by name, else a timm model, without its classifier; and the length of its features.

    Args:
        weights: none, imagenet (fetched by torchvision or timm), or the path of a state dict of the whole model.
    """
    import torchvision

    of_torchvision = name in torchvision.models.list_models(module=torchvision.models)
    network = torchvision.models.get_model(name, weights=None) if of_torchvision else _of_timm(name)
    if weights == "imagenet":
        network.load_state_dict(_imagenet(name) if of_torchvision else _imagenet_timm(name))
    elif weights != "none":
        network.load_state_dict(_state_file(Path(weights), network))
    for classifier in ("fc", "classifier", "head", "heads"):
        if hasattr(network, classifier):
            setattr(network, classifier, nn.Identity())
    with torch.no_grad():
        features = network.eval()(torch.zeros(1, 3, 224, 224))
    if features.ndim != 2:
        raise InputError(f"{name} gives no single row of features per image; give another backbone")
    return network, features.shape[1]


def _of_timm(name: str) -> nn.Module:
    import timm  # takes seconds

    if not timm.is_model(name):
        raise InputError(f"{name} is neither a torchvision nor a timm model; give a backbone such as resnet50")
    return timm.create_model(name)


def _imagenet(name: str) -> dict[str, Tensor]:
    import torchvision

    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, progress=False)
    except Exception as error:  # URLError, OSError, a wrong hash, a file that is no state dict
        file = url.rsplit("/", 1)[1]
        raise InputError(
            f"the ImageNet weights {file} can't be fetched ({error}); put the file into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}, name it with --weights PATH, or train with --weights none"
        ) from error


def _imagenet_timm(name: str) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        raise InputError(
            f"the pretrained weights of {name} can't be fetched ({type(error).__name__}); give a state dict of that "
            "timm model with --weights PATH, or train with --weights none"
        ) from error


def _state_file(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """A state dict (.pth or .safetensors) that fits the network, without unpickling anything but tensors."""
    if not path.is_file():
        raise InputError(f"--weights {path} is not a file; give none, imagenet or a state dict")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = read_checkpoint(path)
        network.load_state_dict(state)
    except Exception as error:  # broken files raise many types
        reason = str(error).splitlines()[0]
        raise InputError(f"--weights {path} does not hold the weights of this backbone ({reason})") from error
    return state


def freeze(network: EidolonEncoder, what: str) -> None:
    """Keep the backbone, or its first blocks, as they are.

    Args:
        what: backbone, none, or first-N: the first N children of the backbone that have weights.

    Raises:
        InputError: another word, or more blocks than there are.
    """
    network.backbone.requires_grad_(True)
    if what == "backbone":
        network.backbone.requires_grad_(False)
    elif what != "none":
        blocks = _blocks(network.backbone)
        count = what.removeprefix("first-")
        if not count.isdigit() or not what.startswith("first-"):
            raise InputError(f"--freeze {what} is not known; give backbone, none or first-N")
        if int(count) > len(blocks):
            raise InputError(f"--freeze {what}: the backbone has {len(blocks)} blocks; give backbone or a smaller N")
        for block in blocks[: int(count)]:
            block.requires_grad_(False)


def _blocks(module: nn.Module) -> list[nn.Module]:
    blocks = [child for child in module.children() if any(True for _ in child.parameters())]
    return _blocks(blocks[0]) if len(blocks) == 1 else blocks


def set_training(network: EidolonEncoder) -> None:
    """`train()`, but frozen blocks keep their batch statistics too."""
    network.train()
    for block in _blocks(network.backbone):
        if not any(p.requires_grad for p in block.parameters()):
            block.eval()
