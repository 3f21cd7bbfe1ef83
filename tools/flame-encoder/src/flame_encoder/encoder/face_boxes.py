"""Where the face is in each image that is encoded: landmarks or detections of prep-faces, a box, or the whole image."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from recon4d.files import InputError

from flame_encoder.frames import check_landmarks, landmark_sizes, read_landmarks
from flame_encoder.report import Log

# From a detector's box to the box of the 68 landmarks: how far its middle is below, and its side, in box heights.
DETECTORS = {"mtcnn": (0.153, 0.78), "dlib": (0.08, 1.0), "face-alignment": (0.08, 0.9)}


def boxes(
    paths: list[Path],
    sizes: Sequence[tuple[int, ...]],
    landmarks: str | Path | None,
    faces: str | Path | None,
    box: tuple[float, float, float, float] | None,
    log: Log,
) -> np.ndarray:
    """Boxes (N, 4) left, top, right, bottom, from the brows to the chin, of the largest face in each image, pixels.

    Args:
        sizes: width and height of each image.
        landmarks: folder of `<stem>.npy`. faces: `faces.jsonl` of prep-faces detect. box: the same for all.

    Images without a face get a box of their middle, and `log` says so.

    Raises:
        InputError: files that cannot be read, or a box that is empty.
    """
    if box is not None:
        if box[2] <= box[0] or box[3] <= box[1]:
            raise InputError(f"--box {box} is empty; give left,top,right,bottom in pixels")
        return np.repeat(np.array([box], np.float32), len(paths), 0)
    found: dict[str, np.ndarray] = {}
    if landmarks is not None:
        folder = Path(landmarks)
        check_landmarks(folder)
        made_on = landmark_sizes(folder)
        for path, size in zip(paths, sizes):
            people = read_landmarks(folder / f"{path.stem}.npy")
            if len(people):
                people = people * (np.array(size) / made_on.get(path.stem, size))
                corners = np.concatenate([people.min(1), people.max(1)], 1)
                found[path.name] = corners[np.argmax(corners[:, 2] - corners[:, 0])]
    elif faces is not None:
        found = read_faces(Path(faces), {path.name: size for path, size in zip(paths, sizes)})
    missing = [path.name for path in paths if path.name not in found]
    if missing:
        why = "no landmarks, faces or box are given" if landmarks is None and faces is None else "no face is known"
        log(f"{why} for {len(missing)} of {len(paths)} images ({missing[0]} ...): the middle of the image is taken")
    return np.stack([found.get(path.name, _middle(size[0], size[1])) for path, size in zip(paths, sizes)]).astype(
        np.float32
    )


def read_faces(path: Path, sizes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Largest face of each file in a `faces.jsonl`, as the box of its landmarks, in images of `sizes`."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file; make it with prep-faces detect")
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            name = Path(record["file"]).name
            if not record.get("faces") or name not in sizes:
                continue
            left, top, right, bottom = max((f["box"] for f in record["faces"]), key=lambda b: b[3] - b[1])
            down, share = DETECTORS.get(record.get("detector"), DETECTORS["mtcnn"])
            scale = sizes[name][0] / record["width"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}, is not a record of faces ({error}); make it again") from error
        height = bottom - top
        x, y, half = (left + right) / 2, (top + bottom) / 2 + down * height, share * height / 2
        found[name] = scale * np.array([x - half, y - half, x + half, y + half])
    return found


def _middle(width: int, height: int) -> np.ndarray:
    """A face that fills a portrait: the crop around it is the largest square of the image."""
    half = min(width, height) / 2 / 1.6
    return np.array([width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half])
