"""Sequences as the model reads them: arrays of fixed length with a mask."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import InputError, images
from torch import Tensor

from feat_extract.coefficients import expression_part
from feat_extract.config import Config
from feat_extract.dataset import PREFIX, Files, find_frames, find_images, read_manifest, read_numbers

Batch = tuple[dict[str, Tensor], Tensor]  # inputs and mask of Fusion.forward


@dataclass(frozen=True, eq=False)
class Clip:
    """One sequence for the model.

    Attributes:
        name: the sequence.
        inputs: per stream (T, D), crops (T, 3, S, S) in [0, 1]; zeros after the end.
        mask: (T,) bool, true where there is a frame.
    """

    name: str
    inputs: dict[str, np.ndarray]
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class Streams:
    """What the model reads: per stream the files of all sequences, and what the numbers are."""

    files: dict[str, Files]
    kinds: dict[str, dict[str, Any]]


def folder_of(config: Config, stream: str) -> Path:
    """Where the files of a stream are."""
    names = {"crops": config.feat2d.input, "feat2d": config.feat2d.output, "feat3d": config.feat3d.output}
    return Path(config.dataset) / names[stream]


def open_streams(config: Config) -> Streams:
    """The streams that the config names. Raises InputError when one has no files."""
    files: dict[str, Files] = {}
    kinds: dict[str, dict[str, Any]] = {}
    for stream in dict.fromkeys(config.model.streams):
        folder = folder_of(config, stream)
        if stream == "crops":
            files[stream] = find_images(folder)
            kinds[stream] = {"size": config.model.crop_size}
            continue
        files[stream] = find_frames(folder, (".npy",), PREFIX if stream == "feat3d" else "")
        if not files[stream]:
            raise InputError(f"{folder} has no features SEQUENCE/FRAME.npy; make them with feat-extract {stream}")
        # Features that came without a manifest are what the config says.
        kinds[stream] = read_manifest(folder) or ({"kind": config.feat3d.kind} if stream == "feat3d" else {})
    return Streams(files, kinds)


def load_clip(name: str, streams: Streams, config: Config) -> Clip:
    """The arrays of one sequence. Raises InputError for missing frames (as the config says) and unreadable files."""
    length = config.sequences.length
    empty = [stream for stream, files in streams.files.items() if name not in files]
    if empty:
        raise InputError(f"the sequence {name} has no {', '.join(empty)}; extract them or leave the sequence out")
    frames = sorted({frame for files in streams.files.values() for frame in files[name]}, key=images.natural_key)
    chosen = np.linspace(0, len(frames) - 1, min(length, len(frames))).round().astype(int)
    inputs = {}
    for stream, files in streams.files.items():
        read = reader(stream, streams.kinds[stream])
        values = np.stack(_values(files[name], frames, chosen, read, config.sequences.missing, f"{stream} of {name}"))
        padding = [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1)
        inputs[stream] = np.pad(values, padding)
    return Clip(name, inputs, np.arange(length) < len(chosen))


def reader(stream: str, kind: dict[str, Any]) -> Callable[[Path], np.ndarray]:
    """What reads a file of a stream as float32: a crop (3, S, S) in [0, 1], features (D,). kind: as in `Streams`."""

    def crop(path: Path) -> np.ndarray:
        size = kind["size"]
        return cv2.resize(images.read(path), (size, size), interpolation=cv2.INTER_AREA).transpose(2, 0, 1) / 255.0

    def feature(path: Path) -> np.ndarray:
        array = read_numbers(path)
        if stream == "feat3d" and kind.get("kind") == "faceverse":
            array = expression_part(array, path)
        if array.ndim != 1 or ("dim" in kind and len(array) != kind["dim"]):
            raise InputError(f"{path} has shape {array.shape}; {(kind.get('dim', 'D'),)} is needed")
        return array

    return lambda path: (crop if stream == "crops" else feature)(path).astype(np.float32)


def _values(
    files: dict[str, Path],
    frames: list[str],
    chosen: np.ndarray,
    read: Callable[[Path], np.ndarray],
    missing: str,
    what: str,
) -> list[np.ndarray]:
    """One array per chosen frame; a missing one lies on the line between its neighbours, at the ends it repeats."""
    have = [i for i, frame in enumerate(frames) if frame in files]
    if missing == "refuse" and len(have) < len(frames):
        lost = next(frame for frame in frames if frame not in files)
        raise InputError(
            f"{what} lacks the frame {lost} and {len(frames) - len(have) - 1} others; extract them or set "
            "sequences.missing to interpolate"
        )
    values: dict[int, np.ndarray] = {}

    def at(i: int) -> np.ndarray:
        if i not in values:
            values[i] = read(files[frames[i]])
            shape = next(iter(values.values())).shape
            if values[i].shape != shape:
                raise InputError(f"{files[frames[i]]} has shape {values[i].shape}, frames before it {shape}")
        return values[i]

    result = []
    for i in chosen:
        place = bisect_left(have, i)
        before = have[max(place - (place == len(have) or have[place] != i), 0)]
        after = have[min(place, len(have) - 1)]
        share = 0.0 if after == before else (i - before) / (after - before)
        result.append(at(before) if share == 0 else (1 - share) * at(before) + share * at(after))
    return result


def stack(clips: list[Clip]) -> Batch:
    """Inputs and mask of a batch of clips. Raises InputError when their features have different lengths."""
    inputs = {}
    for stream in clips[0].inputs:
        shape = clips[0].inputs[stream].shape
        for clip in clips:
            if clip.inputs[stream].shape != shape:
                raise InputError(
                    f"{stream} of {clip.name} has {clip.inputs[stream].shape[1]} numbers per frame, of "
                    f"{clips[0].name} {shape[1]}; extract all with one backbone or regressor"
                )
        inputs[stream] = torch.from_numpy(np.stack([clip.inputs[stream] for clip in clips]))
    return inputs, torch.from_numpy(np.stack([clip.mask for clip in clips]))


def take(batch: Batch, rows: Tensor, device: torch.device) -> Batch:
    """Some rows of a batch, on a device."""
    return {name: values[rows].to(device) for name, values in batch[0].items()}, batch[1][rows].to(device)
