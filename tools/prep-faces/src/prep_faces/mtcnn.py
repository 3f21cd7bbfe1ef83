"""The MTCNN detector (Zhang et al. 2016, Joint face detection and alignment using multitask cascaded networks).

Three small networks: P proposes boxes on an image pyramid, R and O refine them on 24x24 and 48x48 crops, O adds five
points. The weights are those of the Python package `mtcnn` (MIT licence); its own code needs TensorFlow and is not
imported. Steps and thresholds follow it, so that the answers agree.
"""

import importlib.util
import io
import pickletools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import lz4.frame
import numpy as np
import torch
from recon4d import InputError
from torch import Tensor, nn

from prep_faces.faces import Faces

SMALLEST = 20  # pixels of the smallest face, in images of up to 1000 pixels
SHRINK = 0.709  # from one level of the pyramid to the next
CELL, STRIDE = 12, 2  # receptive field and stride of P
THRESHOLDS = (0.6, 0.7, 0.8)


class ProposalNet(nn.Module):
    """P: any image (B, 3, H, W) to box offsets (B, 4, h, w) and face probability (B, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 10, 3), nn.PReLU(10), nn.MaxPool2d(2, 2, ceil_mode=True),
            nn.Conv2d(10, 16, 3), nn.PReLU(16), nn.Conv2d(16, 32, 3), nn.PReLU(32),
        )  # fmt: skip
        self.box, self.face = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.box(x), self.face(x).softmax(1)[:, 1]


class RefineNet(nn.Module):
    """R: crops (B, 3, 24, 24) to box offsets (B, 4) and face probability (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2), nn.Conv2d(48, 64, 2), nn.PReLU(64),
        )  # fmt: skip
        self.top = nn.Sequential(nn.Linear(576, 128), nn.PReLU(128))
        self.box, self.face = nn.Linear(128, 4), nn.Linear(128, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.top(_flatten(self.body(x)))
        return self.box(x), self.face(x).softmax(1)[:, 1]


class OutputNet(nn.Module):
    """O: crops (B, 3, 48, 48) to box offsets (B, 4), five points (B, 10: all x, all y) and face probability (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.PReLU(32), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 64, 3), nn.PReLU(64), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 64, 3), nn.PReLU(64), nn.MaxPool2d(2, 2, ceil_mode=True),
            nn.Conv2d(64, 128, 2), nn.PReLU(128),
        )  # fmt: skip
        self.top = nn.Sequential(nn.Linear(1152, 256), nn.PReLU(256))
        self.box, self.points, self.face = nn.Linear(256, 4), nn.Linear(256, 10), nn.Linear(256, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.top(_flatten(self.body(x)))
        return self.box(x), self.points(x), self.face(x).softmax(1)[:, 1]


def _flatten(x: Tensor) -> Tensor:
    return x.permute(0, 3, 2, 1).flatten(1)  # the weights expect columns, rows, channels


@cache
def load_networks(device: str = "cpu") -> tuple[nn.Module, nn.Module, nn.Module]:
    """P, R and O with the weights of the package `mtcnn`. Raises InputError when they are not there."""
    spec = importlib.util.find_spec("mtcnn")
    if spec is None or spec.origin is None:
        raise InputError("--detector mtcnn needs the package mtcnn, for its weights; install it or choose dlib")
    folder = Path(spec.origin).parent / "assets" / "weights"
    networks = []
    for network, name in ((ProposalNet(), "pnet"), (RefineNet(), "rnet"), (OutputNet(), "onet")):
        state = network.state_dict()
        arrays = read_weights(folder / f"{name}.lz4", [_stored_shape(value) for value in state.values()])
        for value, array in zip(state.values(), arrays):
            # Stored as height, width, in, out for convolutions and in, out for matrices.
            turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            value.copy_(torch.from_numpy(turned.copy()).reshape(value.shape))
        networks.append(network.eval().to(device))
    return networks[0], networks[1], networks[2]


def _stored_shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape[i] for i in (2, 3, 1, 0)) if value.ndim == 4 else tuple(value.shape[::-1])


def read_weights(path: Path, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The float32 arrays of a joblib file (LZ4), whose shapes are known, without unpickling anything.

    joblib writes a pickle whose opcodes are interrupted after each array's header (a BUILD after a SETITEMS) by a
    byte n, n bytes of padding and the raw values: the opcodes are walked over, not run.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; reinstall the package mtcnn")
    try:
        data = lz4.frame.decompress(path.read_bytes())
        position = 0
        arrays = []
        for shape in shapes:
            before = ""
            stream = io.BytesIO(data)
            stream.seek(position)
            for opcode, _, _ in pickletools.genops(stream):
                if before == "SETITEMS" and opcode.name == "BUILD":
                    break
                before = opcode.name
            start = stream.tell() + 1 + data[stream.tell()]
            count = int(np.prod(shape))
            arrays.append(np.frombuffer(data, "<f4", count, start).reshape(shape))
            position = start + 4 * count
        if data[position:][-1:] != b"." or len(data) - position > 64:
            raise ValueError("more arrays than the network has")
    except (ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"{path} is not the expected weights file ({error}); reinstall mtcnn 1.0.0") from error
    return arrays


def find_faces(images: Sequence[np.ndarray], device: str = "cpu", threshold: float | None = None) -> list[Faces]:
    """Faces with five points in (H, W, 3) uint8 RGB images of any sizes; `threshold` is the least probability."""
    proposal, refine, output = load_networks(device)
    if not images:
        return []
    least = THRESHOLDS[2] if threshold is None else threshold
    scaled = [(image.astype(np.float32) - 127.5) / 128 for image in images]
    # On a GPU images of one size go through P together. On a CPU that is no faster, and as sums depend on the batch
    # in their last bits, an image's record would depend on its neighbours.
    together: dict[object, list[int]] = {}
    for i, image in enumerate(scaled):
        together.setdefault(i if device == "cpu" else image.shape, []).append(i)
    with torch.inference_mode():
        boxes = [np.empty((0, 5), np.float32)] * len(images)
        for group in together.values():
            for i, found in zip(group, propose(proposal, [scaled[i] for i in group], device)):
                boxes[i] = found
        owner = np.repeat(np.arange(len(images)), [len(item) for item in boxes])
        joined = np.concatenate([*boxes, np.empty((0, 5), np.float32)])

        offsets, scores = _batched(refine, scaled, owner, joined, 24, device)
        joined = _moved(joined, offsets, scores)
        keep = _keep(joined, owner, THRESHOLDS[1], 0.7, "union")
        joined, owner = _square(joined[keep]), owner[keep]

        offsets, points, scores = _batched(output, scaled, owner, joined, 48, device)
        size = joined[:, 2:4] - joined[:, :2] + 1
        # The networks learnt points of pixels counted from 1; the half puts pixel centres where ours are.
        points = points.reshape(-1, 2, 5).transpose(0, 2, 1) * size[:, None] + joined[:, None, :2] - 1 + 0.5
        joined = _moved(joined, offsets, scores)
        keep = _keep(joined, owner, least, 0.7, "min")
        joined, owner, points = joined[keep], owner[keep], points[keep]
    faces = []
    for i, image in enumerate(images):
        mine = np.flatnonzero(owner == i)
        limit = np.array(image.shape[1::-1] * 2, np.float32)
        faces.append(
            Faces(
                np.clip(joined[mine, :4], 0, limit).astype(np.float32),
                joined[mine, 4].astype(np.float32),
                points[mine].astype(np.float32),
                None,
            )
        )
    return faces


def propose(network: nn.Module, images: list[np.ndarray], device: str) -> list[np.ndarray]:
    """Boxes with scores, (N, 5) for each of some images (H, W, 3) of one size, over all levels of their pyramids."""
    height, width = images[0].shape[:2]
    smallest = max(SMALLEST, max(height, width) / 50)
    levels = round(-(np.log(min(height, width) / CELL) / np.log(SHRINK) + 1))
    found = [[np.empty((0, 5), np.float32)] for _ in images]
    for level in range(max(levels, 0)):
        scale = CELL / smallest * SHRINK**level
        size = (int(width * scale), int(height * scale))
        if min(size) < CELL:
            break
        pictures = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images])
        answers = network(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).to(device))
        for levels_found, offsets, scores in zip(found, *(answer.cpu().numpy() for answer in answers)):
            ys, xs = np.nonzero(scores > THRESHOLDS[0])
            # From the first to the last pixel of a cell, counted from 1, as the weights were made.
            corners = np.stack([xs, ys, xs, ys], 1) * STRIDE + np.array([1, 1, CELL, CELL])
            boxes = (corners + offsets[:, ys, xs].T * (CELL - 1)) / scale
            boxes = np.column_stack([boxes, scores[ys, xs]]).astype(np.float32)
            levels_found.append(boxes[_suppress(boxes, 0.5, "union")])
    joined = [np.concatenate(levels_found) for levels_found in found]
    return [_square(boxes[_suppress(boxes, 0.7, "union")]) for boxes in joined]


def _batched(
    network: nn.Module, images: list[np.ndarray], owner: np.ndarray, boxes: np.ndarray, side: int, device: str
) -> list[np.ndarray]:
    """The network's answers for the crops of `boxes`, image by image, at most 256 at a time."""
    parts = []
    for i in np.unique(owner):
        mine = np.flatnonzero(owner == i)
        for start in range(0, len(mine), 256):
            crops = crop_and_resize(images[i], boxes[mine[start : start + 256], :4], side)
            tensor = torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2))).to(device)
            parts.append([item.cpu().numpy() for item in network(tensor)])
    if not parts:
        empty = network(torch.zeros(1, 3, side, side, device=device))
        return [item[:0].cpu().numpy() for item in empty]
    return [np.concatenate(items) for items in zip(*parts)]


def crop_and_resize(image: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """Bilinear crops (N, side, side, C) of boxes (N, 4), corner samples on the box's corners, 0 outside the image.

    As the package does, box coordinates are stretched by (length - 1) / length.
    """
    height, width = image.shape[:2]
    steps = np.linspace(0, 1, side)

    def positions(low: np.ndarray, high: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = (low[:, None] + (high - low)[:, None] * steps) * (length - 1) / length
        inside = (at >= 0) & (at <= length - 1)
        floor = np.clip(np.floor(at), 0, max(length - 2, 0)).astype(int)
        return floor, np.where(inside, at - floor, 0).astype(np.float32), inside

    x, fx, in_x = positions(boxes[:, 0], boxes[:, 2], width)
    y, fy, in_y = positions(boxes[:, 1], boxes[:, 3], height)
    x1, y1 = np.minimum(x + 1, width - 1), np.minimum(y + 1, height - 1)
    fx, fy = fx[:, None, :, None], fy[:, :, None, None]
    top = image[y[:, :, None], x[:, None]] * (1 - fx) + image[y[:, :, None], x1[:, None]] * fx
    bottom = image[y1[:, :, None], x[:, None]] * (1 - fx) + image[y1[:, :, None], x1[:, None]] * fx
    crops: np.ndarray = (top * (1 - fy) + bottom * fy) * (in_y[:, :, None] & in_x[:, None])[..., None]
    return crops


def _moved(boxes: np.ndarray, offsets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Boxes (N, 5) moved by offsets (N, 4) in units of their size, with new scores."""
    size = boxes[:, 2:4] - boxes[:, :2] + 1
    return np.column_stack([boxes[:, :4] + offsets * np.tile(size, 2), scores])


def _square(boxes: np.ndarray) -> np.ndarray:
    size = boxes[:, 2:4] - boxes[:, :2]
    side = size.max(axis=1, keepdims=True) if len(boxes) else np.empty((0, 1))
    corner = boxes[:, :2] + (size - side) / 2
    return np.column_stack([corner, corner + side, boxes[:, 4]])


def _keep(boxes: np.ndarray, owner: np.ndarray, least: float, overlap: float, method: str) -> np.ndarray:
    """Indices of boxes over the score `least` that survive suppression among those of their image, best first."""
    kept = [np.empty(0, int)]
    for i in np.unique(owner):
        mine = np.flatnonzero((owner == i) & (boxes[:, 4] > least))
        kept.append(mine[_suppress(boxes[mine], overlap, method)])
    return np.concatenate(kept)


def _suppress(boxes: np.ndarray, overlap: float, method: str) -> np.ndarray:
    """Non-maximum suppression: indices of the boxes (N, 5) that no better one covers by more than `overlap`.

    Best first. Covers: intersection over union, or over the smaller box (`min`).
    """
    order = np.argsort(-boxes[:, 4], kind="stable")
    sorted_boxes = boxes[order]
    low = np.maximum(sorted_boxes[:, None, :2], sorted_boxes[None, :, :2])
    high = np.minimum(sorted_boxes[:, None, 2:4], sorted_boxes[None, :, 2:4])
    shared = np.clip(high - low, 0, None).prod(-1)
    area = (sorted_boxes[:, 2:4] - sorted_boxes[:, :2]).prod(-1)
    whole = area[:, None] + area[None] - shared if method == "union" else np.minimum(area[:, None], area[None])
    covered = shared > overlap * np.maximum(whole, 1e-9)
    kept: np.ndarray = order[~np.triu(covered, 1).any(axis=0)]
    return kept
