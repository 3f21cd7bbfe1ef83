"""What every run of the tracker begins with and leaves: its models, its output folder."""

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import recon4d.head
from recon4d import runs
from recon4d.files import InputError, write_text
from recon4d.formats import arkit, insta, vhap
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from recon4d.runs import Claim
from recon4d.video import write_mp4

from flame_encoder import drawing
from flame_encoder.encoder import encodings, trained
from flame_encoder.encoder.trained import Encoder
from flame_encoder.tracker.overlays import overlays
from flame_encoder.tracker.problem import Identity

NAMES = (
    "track.npz",
    "track.json",
    "checkpoint",
    "overlay.png",
    "overlay.mp4",
    "arkit.csv",
    "vhap",
)  # what a run writes
SHEET = 12  # frames on overlay.png
SUREST = 0.05  # standard deviations of people: no identity is known better


def claimed(out: Path, force: bool, inputs: Iterable[str | Path | None]) -> AbstractContextManager[Claim]:
    """Claim what a run writes, for the block; see `recon4d.runs.claim`."""
    return runs.claim(out, "flame-encoder track", force=force, inputs=inputs, names=NAMES)


def models(
    head_model: str | Path | None,
    landmark_embedding: str | Path | None,
    init: str,
    encoder: str | Path | None,
    write: Sequence[str],
) -> tuple[HeadModel, Encoder | None]:
    """The head model and, where `init` is `encoder`, that; see `clip.track`."""
    if encoder is not None and init != "encoder":
        raise InputError("--encoder is for --init encoder; add it")
    head = recon4d.head.load(head_model, landmark_embedding)
    head.landmarks(head())  # says so when the model has none
    if "arkit" in write and not head.expression_names:
        raise InputError("--write arkit needs a head whose expressions have ARKit's names; the open head has")
    if "vhap" in write and head.expression_names:
        raise InputError("--write vhap needs FLAME, whose parameters the format holds; give it with --head-model")
    if init != "encoder":
        return head, None
    return head, trained.load(encoder, "cpu", head_model, landmark_embedding)


def identity(path: str | Path | None, head: HeadModel) -> Identity | None:
    """Who is tracked, from a file of `encode`: one person's shape, as sure as the file says.

    Raises InputError for several people, or another head model.
    """
    if path is None:
        return None
    known = encodings.read(Path(path))
    if known.head_model != head.name:
        raise InputError(f"{path} is of the head model {known.head_model}, the clip is tracked with {head.name}")
    if len(known.names) > 1 and not known.person:
        raise InputError(f"{path} has {len(known.names)} pictures, each with its own identity; encode --same-person")
    who = known.vectors if known.identity is None else known.identity
    mean = who[0, : known.layout.shape].astype(float)
    sigma = np.ones(len(mean)) if known.identity_sigma is None else known.identity_sigma[0, : len(mean)].astype(float)
    return Identity(mean, np.clip(sigma, SUREST, 1))


def write(
    out: Path, track: Track, figures: dict[str, Any], head: HeadModel, frames: Path, formats: Sequence[str]
) -> None:
    """Write checkpoint/*.frame, track.json, track.npz, and the formats asked for: arkit.csv, vhap/."""
    if "arkit" in formats:
        arkit.write(out / "arkit.csv", arkit.of_track(track, head))
    if "vhap" in formats:
        vhap.write(out / "vhap", track, head, frames)
    insta.write(out, track)
    write_text(out / "track.json", json.dumps(figures, indent=2) + "\n")
    track.write(out / "track.npz")


def draw(out: Path, head: HeadModel, track: Track, frames: Path, seen: np.ndarray) -> None:
    """Write overlay.png and overlay.mp4; `seen`: (N, 68, 2) detected landmarks, NaN where there are none."""
    chosen = np.unique(np.linspace(0, len(track) - 1, SHEET).round().astype(int))
    drawing.contact_sheet(out / "overlay.png", list(overlays(head, track, frames, seen, chosen)))
    whole = overlays(head, track, frames, seen, np.arange(len(track)))
    write_mp4(out / "overlay.mp4", whole, track.fps, quality=20, preset="veryfast")
