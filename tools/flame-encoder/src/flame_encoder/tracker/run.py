"""What every run of the tracker begins with and leaves: its models, its output folder."""

import json
from pathlib import Path

import numpy as np
import recon4d.head
from recon4d.cli import claim_output
from recon4d.files import InputError, write_text
from recon4d.formats import insta
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from recon4d.video import write_mp4

from flame_encoder import drawing
from flame_encoder.encoder import trained
from flame_encoder.encoder.trained import Encoder
from flame_encoder.tracker.overlays import overlays

SHEET = 12  # frames on overlay.png


def check_numbers(**options: float | None) -> None:
    """Raise InputError naming the first option that is given and not above zero; numbers of things start at 1."""
    for name, value in options.items():
        if value is not None and value <= 0:
            least = "must be at least 1" if isinstance(value, int) else "must be positive"
            raise InputError(f"--{name} {value} {least}")


def claim(out: Path, preview: bool, force: bool) -> None:
    """Raise InputError where a run would replace what is there, by this tool or by another, and `force` is off."""
    written = ("track.npz", "track.json", "checkpoint", *(("overlay.png", "overlay.mp4") if preview else ()))
    for name in written:
        claim_output(out / name, force)


def models(
    head_model: str | Path | None, landmark_embedding: str | Path | None, init: str, encoder: str | Path | None
) -> tuple[HeadModel, Encoder | None]:
    """The head model and, where `init` is `encoder`, that; see `clip.track`."""
    if encoder is not None and init != "encoder":
        raise InputError("--encoder is for --init encoder; add it")
    head = recon4d.head.load(head_model, landmark_embedding)
    head.landmarks(head())  # says so when the model has none
    if init != "encoder":
        return head, None
    return head, trained.load(encoder, "cpu", head_model, landmark_embedding)


def write(out: Path, track: Track, figures: dict) -> None:
    """Write track.npz, checkpoint/*.frame and track.json."""
    for stale in (out / "checkpoint").glob("*.frame"):
        stale.unlink()
    insta.write(out, track)
    write_text(out / "track.json", json.dumps(figures, indent=2) + "\n")
    track.write(out / "track.npz")


def draw(out: Path, head: HeadModel, track: Track, frames: Path, seen: np.ndarray) -> None:
    """Write overlay.png and overlay.mp4; `seen`: (N, 68, 2) detected landmarks, NaN where there are none."""
    chosen = np.unique(np.linspace(0, len(track) - 1, SHEET).round().astype(int))
    drawing.contact_sheet(out / "overlay.png", list(overlays(head, track, frames, seen, chosen)))
    write_mp4(out / "overlay.mp4", overlays(head, track, frames, seen, np.arange(len(track))), track.fps)
