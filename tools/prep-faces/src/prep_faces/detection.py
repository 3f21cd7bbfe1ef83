"""Boxes and five points of all faces in many images."""

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from recon4d import InputError

from prep_faces.faces import Faces, detect, prepare
from prep_faces.images import ImageFile, find_images, read_image
from prep_faces.parallel import cores, ordered_map, ray_map
from prep_faces.records import append_record, claim_run, finish_run, read_records, write_records

Found = tuple[tuple[int, int], Faces] | InputError  # (height, width) and the faces of an image, or why not


def find_faces(
    files: list[ImageFile],
    detector: str,
    device: str = "cpu",
    threshold: float | None = None,
    points: str = "five",
    batch: int = 8,
    workers: int | None = None,
    engine: str = "local",
) -> Iterator[Found]:
    """The faces of each file, in order; files are read, and faces looked for, ahead of who takes the answers.

    dlib runs in `workers` processes; networks in this one, `batch` images at a time, while threads read the next
    ones; with engine `ray` either runs as Ray tasks. Detector, device, threshold and points: see faces.detect.
    """
    options = {"detector": detector, "device": device, "threshold": threshold, "points": points}
    workers = workers or cores()
    if engine == "ray":
        gpu = device.startswith("cuda")
        options["device"] = "cuda" if gpu else device  # a task sees its own GPU only
        yield from ray_map(functools.partial(_find_batch, **options), files, batch, workers, gpu)
    elif detector == "dlib":
        yield from ordered_map(functools.partial(_find_one, **options), files, len(files), workers)
    else:
        with ThreadPoolExecutor(2) as pool:
            source = iter(files)
            groups = iter(lambda: list(itertools.islice(source, batch)), [])
            reading = [[pool.submit(_read, file) for file in group] for group in itertools.islice(groups, 2)]
            while reading:
                images = [future.result() for future in reading.pop(0)]
                following = next(groups, None)
                if following:
                    reading.append([pool.submit(_read, file) for file in following])
                yield from _find_in(images, **options)


def _find_one(file: ImageFile, **options: Any) -> tuple[tuple[int, int], Faces]:
    image = read_image(file.path)
    return image.shape[:2], detect([image], **options)[0]


def _find_batch(files: list[ImageFile], **options: Any) -> list[Found]:
    cv2.setNumThreads(1)  # Ray counts one core per task
    return _find_in([_read(file) for file in files], **options)


def _find_in(images: list[np.ndarray | InputError], **options: Any) -> list[Found]:
    good = [image for image in images if not isinstance(image, InputError)]
    answers = iter(detect(good, **options))
    return [image if isinstance(image, InputError) else (image.shape[:2], next(answers)) for image in images]


def _read(file: ImageFile) -> np.ndarray | InputError:
    try:
        return read_image(file.path)
    except InputError as error:
        return error


def write_faces(
    paths: list[str],
    out: str | Path,
    detector: str = "mtcnn",
    device: str = "cpu",
    threshold: float | None = None,
    batch: int = 8,
    workers: int | None = None,
    engine: str = "local",
    force: bool = False,
    watch: Callable[[Iterator, int], Iterator] = lambda items, total: items,
) -> dict[str, Any]:
    """Write out/faces.jsonl: per image its size and its faces, best first, each with box, score and five points.

    Records of an earlier run with the same options are kept where the image has the same number of bytes. Returns a
    summary. Raises InputError when there is no image, or `out` holds a run with other options.
    """
    out = Path(out)
    files = find_images(paths)
    prepare(detector, device)
    table = out / "faces.jsonl"
    if not claim_run(out / "faces.json", "detect", {"detector": detector, "threshold": threshold}, force):
        table.unlink(missing_ok=True)
    known = {record.get("file"): record for record in read_records(table)}
    sizes = [file.path.stat().st_size if file.path.exists() else None for file in files]
    kept = [
        file.file in known and "error" not in known[file.file] and known[file.file].get("bytes") == size
        for file, size in zip(files, sizes)
    ]
    todo = [file for file, keep in zip(files, kept) if not keep]
    found = find_faces(todo, detector, device, threshold, "five", batch, workers, engine)
    records: list[dict[str, Any]] = []
    for file, size, keep in watch(zip(files, sizes, kept), len(files)):
        if keep:
            records.append(known[file.file])
            continue
        records.append({"file": file.file, "bytes": size, "detector": detector, **_describe(next(found))})
        append_record(table, records[-1])
    write_records(table, records)
    failed = sum("error" in record for record in records)
    result = {
        "images": len(records),
        "written": len(records) - failed,
        "failed": failed,
        "faces": sum(len(record.get("faces", ())) for record in records),
        "detector": detector,
    }
    finish_run(out / "faces.json", result)
    return {**result, "kept": sum(kept), "out": str(table)}


def _describe(answer: Found) -> dict[str, Any]:
    if isinstance(answer, InputError):
        return {"error": str(answer)}
    (height, width), faces = answer
    listed = [
        {
            "box": [round(float(value), 2) for value in box],
            "score": round(float(score), 5),
            "points": [[round(float(value), 2) for value in point] for point in points],
        }
        for box, score, points in zip(faces.boxes, faces.scores, faces.points)
    ]
    record: dict[str, Any] = {"width": width, "height": height, "faces": listed}
    return record if listed else {**record, "error": "no face found"}
