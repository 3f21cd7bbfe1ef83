"""Whether two people are one, and how far apart their heads are.

For sorting the pictures of a project by who is in them, and for judging a fit. It is no identification of people and
no lock: it was measured on drawn people, it knows the shape of a head and the tone of its skin and nothing else, and it
takes brothers for one man.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import recon4d.images
import roma
import torch
from recon4d.cli import pick_device
from recon4d.files import InputError
from recon4d.head import HeadModel

from flame_encoder.encoder import encodings, identity, trained, vector
from flame_encoder.encoder.encodings import Encoding
from flame_encoder.encoder.trained import Encoder
from flame_encoder.frames import image_paths
from flame_encoder.people import photographs, second_stage
from flame_encoder.report import Log, Progress, unsaid, unseen

SURE = 2.0  # of `identity.likeness`: odds of seven to one


Known = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Someone:
    """One side of a comparison.

    name: of the file, or the image. answers: (n, I) the network's, of each picture. known: what the second stage makes
    of them, the likeliest identity (I,) and what is told of it (K, I + 1), `identity.told`; None without it.
    """

    name: str
    answers: np.ndarray
    known: Known | None = None


def compare(
    a: str | Path,
    b: str | Path,
    *,
    row: int | None = None,
    encoder: str | Path | None = None,
    head_model: str | Path | None = None,
    landmark_embedding: str | Path | None = None,
    most: int = 10,
    device: str = "auto",
    log: Log = unsaid,
    progress: Progress = unseen,
) -> dict[str, Any]:
    """Compare the person of `a` with each of `b`, the likeliest first.

    Args:
        a, b: a picture, a folder of pictures, or an npz of `photographs.encode`. In `a` is one person: one picture, an
            npz made with `same_person`, or `row` of another. Each picture of `b` is somebody, but an npz made with
            `same_person` is one person in all.
        most: how many of `b` are told.

    Returns:
        `people`: for each its `name`, `mm` (mean distance of the two heads without pose and expression, after rigid
        alignment), `likeness` (`identity.likeness`) and `same` (True, False, or None where it cannot be told).

    Raises:
        InputError: files that cannot be read, no face, several people in `a`, encodings of another encoder or layout.
    """
    model = trained.load(encoder, pick_device(device), head_model, landmark_embedding)
    first = people(model, Path(a), log, progress)
    if row is not None:
        if not 0 <= row < len(first):
            raise InputError(f"--row {row} is not in {a}, which has rows 0 to {len(first) - 1}")
        first = [first[row]]
    if len(first) > 1:
        raise InputError(f"{a} shows {len(first)} people; say which with --row, or encode it with --same-person")
    found = [told(model, first[0], other) for other in people(model, Path(b), log, progress)]
    found.sort(key=lambda one: one["mm"] if one["likeness"] is None else -one["likeness"])
    return {"a": first[0].name, "compared": len(found), "people": found[:most]}


def people(model: Encoder, source: Path, log: Log = unsaid, progress: Progress = unseen) -> list[Someone]:
    """Who is in a picture, a folder of pictures, or an npz of `photographs.encode`; pictures without a face are out."""
    if source.suffix.lower() == ".npz":
        encoding = encodings.read(source)
        check_same(model, encoding, source)
    else:
        paths = image_paths([source])
        with progress("encode", len(paths)) as report:
            looked = photographs.look(model, paths, {}, {}, report)
        with progress("refine", len(paths)) as report:
            encoding = second_stage.refined(
                model, looked.encoding, looked.faces, lambda i: recon4d.images.read(paths[i]), report
            )
    rows = np.flatnonzero(encoding.found)
    if not len(rows):
        raise InputError(f"no face is found in {source}; encode it with --box or --landmarks, and give that file")
    if len(rows) < len(encoding.names):
        log(f"{source}: no face is found in {len(encoding.names) - len(rows)} of {len(encoding.names)} images")
    answers = vector.identity_of(encoding.layout, torch.from_numpy(encoding.raw[rows])).double().numpy()
    known: list[Known | None] = [None] * len(rows)
    if encoding.identity is not None and encoding.told is not None:
        known = [(encoding.identity[i].astype(float), encoding.told[i].astype(float)) for i in rows]
        known = [one if one is not None and one[1].any() else None for one in known]
    if encoding.person:
        return [Someone(source.name, answers, next((one for one in known if one is not None), None))]
    return [Someone(str(encoding.names[i]), one[None], k) for i, one, k in zip(rows, answers, known)]


def check_same(model: Encoder, encoding: Encoding, source: Path) -> None:
    """Raise InputError where vectors are not those of the encoder: their numbers mean something else."""
    if encoding.layout != model.layout:
        theirs, ours = (list(layout.lengths.values()) for layout in (encoding.layout, model.layout))
        raise InputError(f"{source} has the layout {theirs}, the encoder {ours}; give its own encoder with --encoder")
    if encoding.head_model != model.head.name:
        raise InputError(f"{source} belongs to the head model {encoding.head_model}, not {model.head.name}")
    if encoding.encoder != model.digest:
        raise InputError(f"{source} was made by another encoder; give that with --encoder, or encode the images again")


def told(model: Encoder, one: Someone, other: Someone) -> dict[str, Any]:
    """How two people compare."""
    likeness = None
    both = one.known is not None and other.known is not None
    if model.measured is not None:
        likeness = round(alike(model.measured, one, other), 2)
    same = None if likeness is None or abs(likeness) < SURE else likeness > 0
    shapes = [shape_of(model, someone, both) for someone in (one, other)]
    return {"name": other.name, "mm": round(1000 * apart(model.head, *shapes), 2), "likeness": likeness, "same": same}


def alike(measured: identity.Measured, one: Someone, other: Someone) -> float:
    """`identity.likeness` of two people, by what the second stage tells of at least one of them, or the network."""
    if one.known is None and other.known is None:
        return identity.likeness(measured, one.answers, other.answers)
    prior = identity.prior_of(measured, one.answers.shape[1])
    rows = []
    for someone in (one, other):
        if someone.known is not None:
            rows.append(someone.known[1])
            continue
        who = identity.combine(measured, someone.answers)
        rows.append(identity.told(prior, who.identity, who.covariance))
    return identity.told_likeness(prior, *rows)


def shape_of(model: Encoder, someone: Someone, known: bool) -> torch.Tensor:
    """The likeliest shape (1, S), of the second stage or of the network's answers."""
    if known and someone.known is not None:
        who = someone.known[0]
    elif model.measured is None:
        who = someone.answers.mean(0)
    else:
        who = identity.combine(model.measured, someone.answers).identity
    return torch.from_numpy(who[: min(model.layout.shape, model.head.n_shape)]).float()[None]


def apart(head: HeadModel, shape: torch.Tensor, other: torch.Tensor) -> float:
    """Mean distance, metres, of the vertices of two neutral heads after the best rigid motion; shapes (1, S)."""
    points, goal = head(shape)[0], head(other)[0]
    R, t = roma.rigid_points_registration(points, goal)
    return float((points @ R.T + t - goal).norm(dim=1).mean())
