"""Sequences as the model reads them: arrays of fixed length with a mask."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from recon4d import InputError

from feat_extract.coefficients import expression_part
from feat_extract.config import Config
from feat_extract.dataset import PREFIX, Files, find_frames, find_images, natural, read_image, read_manifest, read_npy


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Streams:
    """What the model reads: per stream the files of all sequences, and what the numbers are."""

    files: dict[str, Files]
    kinds: dict[str, dict]


def open_streams(config: Config) -> Streams:
    """The streams that the config names. Raises InputError when one has no files."""
    dataset = Path(config.dataset)
    files: dict[str, Files] = {}
    kinds: dict[str, dict] = {}
    for stream in dict.fromkeys(config.model.streams):
        if stream == "crops":
            files[stream] = find_images(dataset / config.feat2d.input)
            kinds[stream] = {"size": config.model.crop_size}
            continue
        folder = dataset / (config.feat2d.output if stream == "feat2d" else config.feat3d.output)
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
    frames = sorted({frame for files in streams.files.values() for frame in files[name]}, key=natural)
    chosen = np.linspace(0, len(frames) - 1, min(length, len(frames))).round().astype(int)
    inputs = {}
    for stream, files in streams.files.items():
        read = reader(stream, streams.kinds[stream])
        values = np.stack(_values(files[name], frames, chosen, read, config.sequences.missing, f"{stream} of {name}"))
        padding = [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1)
        inputs[stream] = np.pad(values, padding)
    return Clip(name, inputs, np.arange(length) < len(chosen))


def reader(stream: str, kind: dict) -> Callable[[Path], np.ndarray]:
    def crop(path: Path) -> np.ndarray:
        size = kind["size"]
        return cv2.resize(read_image(path), (size, size), interpolation=cv2.INTER_AREA).transpose(2, 0, 1) / 255.0

    def feature(path: Path) -> np.ndarray:
        array = read_npy(path)
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
