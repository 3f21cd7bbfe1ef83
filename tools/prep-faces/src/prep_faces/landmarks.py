"""The 68 points of one person in each image of a sequence or a heap of photos."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError
from recon4d.files import atomic_path

from prep_faces.dlib_faces import predict_points
from prep_faces.faces import Faces, detect, prepare
from prep_faces.images import ImageFile, clashes, find_images, read_image
from prep_faces.parallel import cores, ordered_map
from prep_faces.records import append_record, claim_run, finish_run, read_records, write_records

SURE = 0.0  # dlib score of a face that stands by itself
FAINT = -0.6  # dlib score that is believed where the frame before had a face
MEMORY = 15  # frames after which a lost face is looked for afresh


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return float(shared / union) if union > 0 else 0.0


def choose_face(faces: Faces, previous: np.ndarray | None, sure: float) -> int | None:
    """Which face of a frame is the person: the one nearest to the box of the frame before, else the largest.

    `previous` is that box (4,) or None; faces with a score under `sure` count only where they overlap it.
    """
    if not len(faces.boxes):
        return None
    if previous is not None:
        overlaps = [overlap(box, previous) for box in faces.boxes]
        best = int(np.argmax(overlaps))
        if overlaps[best] > 0.3:
            return best
    areas = np.prod(faces.boxes[:, 2:] - faces.boxes[:, :2], axis=1) * (faces.scores >= sure)
    return int(np.argmax(areas)) if areas.max() > 0 else None


def write_landmarks(
    paths: list[str],
    out: str | Path,
    detector: str = "dlib",
    device: str = "cpu",
    photos: bool = False,
    workers: int | None = None,
    force: bool = False,
    watch: Callable[[Iterator, int], Iterator] = lambda items, total: items,
) -> dict[str, Any]:
    """Write out/landmarks/<name>.npy (68, 2) float32 pixels for each image, and out/landmarks.jsonl.

    In a sequence (the default) the same person is followed from file to file; `photos` treats each on its own.
    Points that are up to date are kept. Returns a summary; files that fail are recorded, not raised. Raises
    InputError when there is no image, or `out` holds a run with other options.
    """
    out = Path(out)
    files = find_images(paths)
    prepare(detector, device)
    options = {"detector": detector, "photos": photos}
    table = out / "landmarks.jsonl"
    if not claim_run(out / "landmarks.json", "landmarks", options, force):
        table.unlink(missing_ok=True)
    known = {record.get("file"): record for record in read_records(table)}
    targets = [out / "landmarks" / f"{file.name}.npy" for file in files]
    fresh = [force or not _up_to_date(file, target, known.get(file.file)) for file, target in zip(files, targets)]
    clashing = clashes(files)
    find = functools.partial(_find, detector=detector, device=device, threshold=SURE if photos else FAINT)
    todo = [file for file, is_fresh, clash in zip(files, fresh, clashing) if is_fresh and clash is None]
    # PyTorch uses all cores by itself.
    workers = (workers or cores()) if detector == "dlib" else 1
    found = ordered_map(find, todo, len(todo), workers)

    records: list[dict[str, Any]] = []
    previous: np.ndarray | None = None
    lost = 0
    for file, target, is_fresh, clash in watch(zip(files, targets, fresh, clashing), len(files)):
        if clash is not None:
            record = {"file": file.file, "error": str(clash)}
        elif not is_fresh:
            record = known[file.file]
        else:
            record = {"file": file.file, **_settle(next(found), target, previous, detector)}
            append_record(table, record)
        records.append(record)
        if photos:
            continue
        lost = lost + 1 if "error" in record else 0
        if "box" in record:
            previous = np.array(record["box"], np.float32)
        elif lost >= MEMORY:
            previous = None
    write_records(table, records)
    failed = [record for record in records if "error" in record]
    result = {
        "images": len(records),
        "written": len(records) - len(failed),
        "failed": len(failed),
        "kept": len(files) - sum(fresh),
        "detector": detector,
        "out": str(out / "landmarks"),
    }
    finish_run(out / "landmarks.json", {key: value for key, value in result.items() if key not in ("out", "kept")})
    return result


def _up_to_date(file: ImageFile, target: Path, record: dict[str, Any] | None) -> bool:
    if record is None or "error" in record or not target.exists():
        return False
    return target.stat().st_mtime_ns >= file.path.stat().st_mtime_ns


def _find(file: ImageFile, detector: str, device: str, threshold: float) -> tuple[tuple[int, int], Faces]:
    image = read_image(file.path)
    faces = detect([image], detector, device, threshold if detector == "dlib" else None)[0]
    if faces.landmarks is None:
        # The predictor expects boxes as dlib's detector draws them: a square around eyes and mouth.
        boxes = np.array([square_around(points) for points in faces.points]).reshape(-1, 4)
        points = [predict_points(image, box) for box in boxes]
        faces = replace(faces, landmarks=np.array(points, np.float32).reshape(-1, 68, 2))
    return image.shape[:2], faces


def square_around(points: np.ndarray) -> np.ndarray:
    """Roughly dlib's box (4,) around five points (5, 2)."""
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    half = 1.15 * max(float(np.linalg.norm(mouth - eyes)), float(np.linalg.norm(points[1] - points[0])))
    center = eyes + 0.55 * (mouth - eyes)
    return np.concatenate([center - half, center + half])


def _settle(
    answer: tuple[tuple[int, int], Faces] | InputError,
    target: Path,
    previous: np.ndarray | None,
    detector: str,
) -> dict[str, Any]:
    if isinstance(answer, InputError):
        target.unlink(missing_ok=True)
        return {"detector": detector, "error": str(answer)}
    (height, width), faces = answer
    size = {"width": width, "height": height, "detector": detector}
    chosen = choose_face(faces, previous, SURE)
    if chosen is None or faces.landmarks is None:
        target.unlink(missing_ok=True)  # of an earlier run
        return {**size, "error": "no face found"}
    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        np.save(file, faces.landmarks[chosen].astype(np.float32))
    return {
        **size,
        "score": round(float(faces.scores[chosen]), 4),
        "box": [round(float(value), 2) for value in faces.boxes[chosen]],
        "faces": int((faces.scores >= SURE).sum()),
    }
