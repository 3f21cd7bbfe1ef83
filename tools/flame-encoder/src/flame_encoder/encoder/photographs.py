"""Photographs to vectors: the face in each image through an encoder."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import recon4d.images
import torch
from recon4d.cli import pick_device
from recon4d.files import InputError, atomic_path
from recon4d.runs import claim_file

from flame_encoder.encoder import face_boxes, overlays, trained
from flame_encoder.encoder.encodings import Encoding
from flame_encoder.encoder.trained import Encoder
from flame_encoder.frames import image_paths
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
        landmarks, faces, box: where the face is; see `face_boxes.boxes`. Without them, in the middle of the image.
        overlay: PNG to draw the heads over the images into.
        device: cpu, cuda, cuda:N or auto.
        force: replace what is there.

    Raises:
        InputError: input that cannot be read; an output that exists without `force`.
    """
    read = [*images, encoder, head_model, landmark_embedding, landmarks, faces]
    claim_file(out, force=force, inputs=read)
    if overlay is not None:
        claim_file(overlay, force=force, inputs=read)
        if os.path.realpath(overlay) == os.path.realpath(out):
            raise InputError(f"--overlay {overlay} is the file of the vectors too; give another")
    model = trained.load(encoder, pick_device(device), head_model, landmark_embedding)
    paths = image_paths([Path(image) for image in images])
    sizes = [recon4d.images.read(path).shape[1::-1] for path in paths]
    boxes = face_boxes.boxes(paths, sizes, landmarks, faces, box, log)
    with ExitStack() as places:  # both files or none
        targets = [places.enter_context(atomic_path(path)) for path in (overlay, out) if path is not None]
        with progress("encode", len(paths)) as report:
            found = encode_files(model, paths, boxes, report)
        found.write(targets[-1])
        if overlay is not None:
            overlays.write(targets[0], model.head, found, paths)
    return found


def encode_files(encoder: Encoder, paths: list[Path], boxes: np.ndarray, report: Report = unreported) -> Encoding:
    """Encode the face in `boxes` (N, 4) of each image file. Raises InputError for a file that is not an image."""
    vectors, crops, sizes = [], [], []
    for i, path in enumerate(paths):
        image = recon4d.images.read(path)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        parts = encoder.encode(pixels, torch.from_numpy(boxes[[i]]))
        crops.append(parts.pop("crop"))
        vectors.append(encoder.layout.join(parts))
        sizes.append(image.shape[1::-1])
        report(i + 1, "")
    return Encoding(
        head_model=encoder.head.name,
        names=np.array([path.name for path in paths]),
        image_sizes=np.array(sizes),
        vectors=torch.cat(vectors).numpy(),
        crops=torch.cat(crops).numpy(),
        layout=encoder.layout,
        view=encoder.view,
    )
