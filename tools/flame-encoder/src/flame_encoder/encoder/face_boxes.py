"""Where the face is in each image that is encoded: landmarks or detections of prep-faces, a box, or the whole image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from recon4d.files import InputError, parse_json
from recon4d.formats.landmarks import in_pixels

from flame_encoder.frames import check_landmarks, landmark_sizes, number, read_ibug
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
        if box[2] <= box[0] or box[3] <= box[1] or not all(map(number, box)):
            raise InputError(f"--box {box} is empty or far away; give left,top,right,bottom in pixels")
        return np.repeat(np.array([box], np.float32), len(paths), 0)
    found: dict[str, np.ndarray] = {}
    if landmarks is not None:
        folder = Path(landmarks)
        check_landmarks(folder)
        made_on = landmark_sizes(folder)
        for path, size in zip(paths, sizes):
            people = read_ibug(folder / f"{path.stem}.npy")
            if len(people):
                people = in_pixels(people, made_on.get(path.stem, size))
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
    for row, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path}, line {row}"
        record = parse_json(line, where)
        faces = record.get("faces") if isinstance(record, dict) else None
        if not isinstance(record, dict) or not isinstance(record.get("file"), str):
            raise InputError(f"{where}, is not a record of faces; make it again with prep-faces detect")
        name = Path(record["file"]).name
        if not faces or name not in sizes:
            continue
        listed = [face.get("box") for face in faces if isinstance(face, dict)] if isinstance(faces, list) else []
        boxes = [box for box in listed if isinstance(box, list) and len(box) == 4 and all(map(number, box))]
        if not boxes or not number(record.get("width"), 1):
            raise InputError(f"{where}, is not a record of faces (width, box); make it again with prep-faces detect")
        left, top, right, bottom = max(boxes, key=lambda box: box[3] - box[1])
        down, share = DETECTORS.get(str(record.get("detector")), DETECTORS["mtcnn"])
        scale = sizes[name][0] / record["width"]
        height = max(bottom - top, 1.0)
        x, y, half = (left + right) / 2, (top + bottom) / 2 + down * height, share * height / 2
        found[name] = scale * np.array([x - half, y - half, x + half, y + half])
    return found


def _middle(width: int, height: int) -> np.ndarray:
    """A face that fills a portrait: the crop around it is the largest square of the image."""
    half = min(width, height) / 2 / 1.6
    return np.array([width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half])
