"""Photographs to vectors in two stages: the face in each image through an encoder, then the solver on its landmarks."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import recon4d.images
import torch
from recon4d.cli import pick_device
from recon4d.files import InputError, atomic_path
from recon4d.runs import claim_file
from torch import Tensor

from flame_encoder.encoder import face_boxes, identity, overlays, trained, vector
from flame_encoder.encoder.crop import focal_of
from flame_encoder.encoder.encodings import Encoding
from flame_encoder.encoder.face_boxes import Where
from flame_encoder.encoder.identity import Person
from flame_encoder.encoder.trained import Encoder
from flame_encoder.frames import image_paths
from flame_encoder.people import second_stage
from flame_encoder.report import Log, Progress, Report, unreported, unsaid, unseen


def encode(
    images: Sequence[str | Path],
    out: str | Path,
    *,
    encoder: str | Path | None = None,
    head_model: str | Path | None = None,
    landmark_embedding: str | Path | None = None,
    landmarks: str | Path | None = None,
    faces: str | Path | None = None,
    box: tuple[float, float, float, float] | None = None,
    raw: bool = False,
    picture: bool = True,
    same_person: bool = False,
    overlay: str | Path | None = None,
    device: str = "auto",
    force: bool = False,
    log: Log = unsaid,
    progress: Progress = unseen,
) -> Encoding:
    """Write the vector of the face in each image to the npz `out`, one row per image.

    Args:
        images: files or folders.
        encoder: file of `training.start`; the one that ships when None.
        head_model: the FLAME file that the encoder was trained with; the open head when None.
        landmarks, faces, box: where the face is; see `face_boxes`. Without them the largest that the landmarker finds.
        raw: the network's answer alone. picture: let the solver use the picture's colours, too: light, skin and edges.
        same_person: all images show one person: one identity for all of them.
        overlay: PNG to draw the heads over the images into.
        device: cpu, cuda, cuda:N or auto.
        force: replace what is there.

    Raises:
        InputError: input that cannot be read; an output that exists without `force`; with `same_person`, a face in
            none of the images.
    """
    read = [*images, encoder, head_model, landmark_embedding, landmarks, faces]
    claim_file(out, force=force, inputs=read)
    if overlay is not None:
        claim_file(overlay, force=force, inputs=read)
        if os.path.realpath(overlay) == os.path.realpath(out):
            raise InputError(f"--overlay {overlay} is the file of the vectors too; give another")
    model = trained.load(encoder, pick_device(device), head_model, landmark_embedding)
    paths = image_paths([Path(image) for image in images])
    told = faces is not None or landmarks is not None
    sizes = [recon4d.images.read(path).shape[1::-1] for path in paths] if told else []
    boxes = face_boxes.known_boxes(paths, sizes, faces, box)
    points = {} if landmarks is None else face_boxes.known_points(paths, sizes, Path(landmarks))
    with ExitStack() as places:  # both files or none
        targets = [places.enter_context(atomic_path(path)) for path in (overlay, out) if path is not None]
        with progress("encode", len(paths)) as report:
            looked = look(model, paths, boxes, points, report)
        found = looked.encoding
        missing = [path.name for path, one in zip(paths, looked.faces) if not one.found]
        if missing:
            log(
                f"no face is found in {len(missing)} of {len(paths)} images ({missing[0]} ...): "
                "their middle is taken, and not refined"
            )
        if same_person and len(missing) == len(paths):
            raise InputError(f"no face is found in any of the {len(paths)} images; give --box or --landmarks")
        if same_person:
            found = of_one_person(model, found)
        if not raw:
            with progress("refine", len(paths)) as report:
                pictures = (lambda i: recon4d.images.read(paths[i])) if picture else None
                found = second_stage.refined(model, found, looked.faces, pictures, report)
        found.write(targets[-1])
        if overlay is not None:
            overlays.write(targets[0], model.head, found, paths)
    return found


@dataclass(frozen=True, eq=False)
class Looked:
    """What a first look at N images gives: the network's answers, and where the faces are."""

    encoding: Encoding
    faces: list[Where]


def look(
    encoder: Encoder,
    paths: list[Path],
    boxes: dict[str, np.ndarray],
    points: dict[str, np.ndarray],
    report: Report = unreported,
) -> Looked:
    """The network's answer to each image file, in the boxes (4,) or around the landmarks (n, 2) known by its name.

    Raises InputError for a file that is not an image.
    """
    vectors, crops, sizes, faces = [], [], [], []
    for i, path in enumerate(paths):
        image = recon4d.images.read(path)
        face = face_boxes.where(image, boxes.get(path.name), points.get(path.name))
        parts = encoder.encode(
            torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255,
            torch.from_numpy(face.box)[None],
            points=_dense(face),
        )
        crops.append(parts.pop("crop"))
        vectors.append(encoder.layout.join(parts))
        sizes.append(image.shape[1::-1])
        faces.append(face)
        report(i + 1, "")
    names = [path.name for path in paths]
    return Looked(as_encoding(encoder, names, sizes, torch.cat(vectors), torch.cat(crops), faces), faces)


def as_encoding(
    encoder: Encoder,
    names: list[str],
    sizes: Sequence[tuple[int, ...]],
    answers: Tensor,
    crops: Tensor,
    faces: list[Where],
) -> Encoding:
    """The network's answers (N, layout.size) in crops (N, 3) of N images, and how sure it is."""
    n = len(names)
    sigma = None
    if encoder.measured is not None:
        sure = torch.from_numpy(encoder.measured.sigma.astype(np.float32))[None]
        sigma = vector.identity_of(encoder.layout, sure).numpy().repeat(n, 0)
    return Encoding(
        head_model=encoder.head.name,
        names=np.array(names),
        image_sizes=np.array(sizes),
        vectors=answers.numpy().copy(),
        crops=crops.numpy(),
        layout=encoder.layout,
        view=encoder.view,
        found=np.array([face.found for face in faces]),
        refined=np.zeros(n, bool),
        raw=answers.numpy().copy(),
        focals=focal_of(encoder.view, crops).numpy(),
        encoder=encoder.digest,
        identity_sigma=sigma,
    )


def _dense(face: Where) -> Tensor | None:
    if face.points is None or len(face.points) != 478:
        return None
    return torch.from_numpy(face.points.astype(np.float32))[None]


def of_one_person(encoder: Encoder, found: Encoding) -> Encoding:
    """The same with one identity, of all images in which a face was found."""
    who = person_of(encoder, found)
    shape, albedo = np.split(who.identity.astype(np.float32), [found.layout.shape])
    parts = {name: part.clone() for name, part in found.parts().items()}
    parts["shape"][:] = torch.from_numpy(shape)
    parts["detail"][:, vector.LIGHT :] = torch.from_numpy(albedo)
    sigma = None
    if encoder.measured is not None:
        sigma = np.repeat(np.sqrt(np.diag(who.covariance))[None], len(found.names), 0).astype(np.float32)
    return replace(found, vectors=found.layout.join(parts).numpy(), person=True, identity_sigma=sigma)


def person_of(encoder: Encoder, found: Encoding) -> Person:
    """The identity that the network's answers say; their mean where nobody measured the network."""
    answers = vector.identity_of(found.layout, torch.from_numpy(found.raw[found.found])).double().numpy()
    if encoder.measured is None:
        return Person(answers.mean(0), np.eye(answers.shape[1]))
    return identity.combine(encoder.measured, answers)
