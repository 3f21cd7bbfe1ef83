"""A trained encoder: its file, and images through it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import recon4d.head
import torch
from recon4d.files import InputError, write_torch
from recon4d.head import HeadModel
from recon4d.rotations import from_6d
from recon4d.runs import read_checkpoint
from recon4d.settings import Section, check
from torch import Tensor

from flame_encoder.encoder.crop import CropView, box_of, crops_of, cut_out, image_pose
from flame_encoder.encoder.identity import Measured, of_state
from flame_encoder.encoder.network import EidolonEncoder
from flame_encoder.encoder.vector import Layout

FORMAT = "eidolon-encoder-1"
SHIPPED = Path(__file__).with_name("shipped.pth")


@dataclass(frozen=True, eq=False)
class Encoder:
    """A trained encoder with all that its numbers mean.

    Attributes:
        network: in evaluation mode.
        head: the head model its coefficients belong to.
        backbone: name. note: where it comes from.
        measured: how far its answers stray; None where nobody measured.
        digest: names the weights, for files of vectors.
    """

    network: EidolonEncoder
    layout: Layout
    view: CropView
    head: HeadModel
    backbone: str
    note: str = ""
    measured: Measured | None = None
    digest: str = ""

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        boxes: Tensor | None = None,
        landmarks: Tensor | None = None,
        points: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The parts of the vector for faces in images.

        Args:
            images: (B, 3, H, W) in [0, 1], sRGB.
            boxes: (B, 4) left, top, right, bottom of the face from the brows to the chin, pixels.
            landmarks: (B, 68, 2), instead of boxes. Without either the whole image is the crop.
            points: (B, 478, 2) of MediaPipe's landmarker, pixels, NaN where unknown.

        Returns:
            `shape`, `expression`, `global_rot` (6D), `jaw`, `eyes`, `neck`, `transl`, `detail` as in `vector.py`,
            (B, n), and `crop` (B, 3): left, top, side of the square that was looked at, pixels.
        """
        if landmarks is not None:
            boxes = box_of(landmarks)
        if boxes is not None:
            crops = crops_of(boxes)
        else:
            height, width = images.shape[-2:]
            side = max(height, width)
            crops = images.new_tensor([[(width - side) // 2, (height - side) // 2, side]]).expand(len(images), 3)
        device = self.network.mean.device
        seen = cut_out(images, crops, self.view.size).to(device)
        if points is not None:
            points = ((points - crops[:, None, :2]) * (self.view.size / crops[:, None, 2:])).to(device)
        return self.layout.split(self.network(seen, points).cpu()) | {"crop": crops}

    def head_pose(self, parts: dict[str, Tensor], K: Tensor) -> tuple[Tensor, Tensor]:
        """Head-to-camera pose R (B, 3, 3), t (B, 3), metres, OpenCV axes, in images with intrinsics K (3, 3)."""
        return image_pose(self.head, self.view, from_6d(parts["global_rot"]), parts["transl"], parts["crop"], K)


def state_of(network: EidolonEncoder, layout: Layout, view: CropView, head: str, backbone: str) -> dict[str, Any]:
    """What a file of an encoder holds: plain values and tensors, for `torch.load(weights_only=True)`."""
    return {
        "format": FORMAT,
        "backbone": backbone,
        "head_model": head,
        "layout": layout.model_dump(),
        "view": view.model_dump(),
        "points": network.points is not None,
        "weights": {name: weight.detach().cpu() for name, weight in network.state_dict().items()},
    }


def halved(state: dict[str, Any]) -> dict[str, Any]:
    """The same file with weights in half precision and nothing of its training: half the size or less."""
    names = ("format", "backbone", "head_model", "layout", "view", "points")
    kept = {key: state[key] for key in names if key in state}
    for name in ("weights", "measured"):
        if name in state:
            kept[name] = {k: w.half() if w.is_floating_point() else w for k, w in state[name].items()}
    return kept


def save(path: Path, state: dict[str, Any]) -> None:
    """Write what `state_of` gives, atomically."""
    write_torch(path, state)


class _Head(Section):
    """What a file says of an encoder beside its weights."""

    backbone: str
    head_model: str
    layout: Layout
    view: CropView
    points: bool = False


def read(path: Path) -> dict[str, Any]:
    """The content of an encoder's file. Raises InputError for anything else, and unpickles nothing but tensors."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file; give an encoder made by flame-encoder train")
    state = read_checkpoint(path)
    if state.get("format") != FORMAT:
        raise InputError(f"{path} is not an encoder ({FORMAT}); make one with flame-encoder train")
    said = {key: state.get(key) for key in _Head.model_fields if key in state or key != "points"}
    check(_Head, said, path, "flame-encoder train")
    weights = state.get("weights")
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise InputError(f"{path} holds no weights; train it again")
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise InputError(f"{path} holds weights that are NaN or infinite; train it again")
    return state


def load(
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    head_model: str | Path | None = None,
    landmark_embedding: str | Path | None = None,
) -> Encoder:
    """An encoder from its file; the shipped one when `path` is None.

    Args:
        head_model: the FLAME file that the encoder was trained with; the open head when None.

    Raises:
        InputError: a missing or broken file, or another head model than the encoder's; the message names both.
    """
    source = Path(path) if path is not None else SHIPPED
    state = read(source)
    head = recon4d.head.load(head_model, landmark_embedding)
    if state["head_model"] != head.name:
        raise InputError(
            f"{source} was trained with the head model {state['head_model']}, not {head.name}; "
            "give that model with --head-model"
        )
    layout, view = Layout(**state["layout"]), CropView(**state["view"])
    try:
        network = EidolonEncoder(state["backbone"], "none", layout, state.get("points", False))
        network.load_state_dict(state["weights"])
    except (InputError, RuntimeError) as error:
        raise InputError(
            f"{source}: its weights do not fit its backbone {state['backbone']}; train it again"
        ) from error
    network = network.float().eval().requires_grad_(False).to(device)
    measured = None
    if "measured" in state:
        measured = of_state(state["measured"], layout.size, layout.shape + layout.skin, str(source))
    note = str(state.get("note", ""))
    return Encoder(network, layout, view, head, state["backbone"], note, measured, digest_of(state["weights"]))


def digest_of(weights: dict[str, Tensor]) -> str:
    """Twelve digits that name weights, whatever the precision of their file."""
    sums = hashlib.sha256()
    for name in sorted(weights):
        sums.update(name.encode() + weights[name].half().contiguous().numpy().tobytes())
    return sums.hexdigest()[:12]
