"""All faces in many image files: boxes, five points, scores."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from recon4d import InputError, images
from recon4d.parallel import cores, ordered_map, ray_map
from recon4d.records import Record, Watch, counts, number, record, run, unwatched

from prep_faces.detectors import detect, prepare
from prep_faces.faces import Faces, unturned
from prep_faces.image_files import ImageFile, find_images

Found = tuple[tuple[int, int], Faces] | InputError  # (height, width) and the faces of an image, or why not


def detect_files(
    files: list[ImageFile],
    detector: str,
    device: str = "cpu",
    threshold: float | None = None,
    points: str = "five",
    batch: int = 8,
    workers: int | None = None,
    engine: str = "local",
    every: bool = False,
    turned: bool = False,
) -> Iterator[Found]:
    """The faces of each file, in order; files are read, and faces looked for, ahead of who takes the answers.

    dlib and mediapipe run in `workers` processes; other networks in this one, `batch` images at a time, while threads
    read the next ones; with engine `ray` either runs as Ray tasks. Detector, device, threshold, points and
    every: see detectors.detect. turned: see `detect_turned`.
    """
    workers = workers or cores()
    gpu = engine == "ray" and device.startswith("cuda")
    options: dict[str, Any] = {
        "detector": detector,
        "device": "cuda" if gpu else device,  # a task of Ray sees its own GPU only
        "threshold": threshold,
        "points": points,
        "every": every,
        "turned": turned,
    }
    if engine == "ray":
        yield from ray_map(functools.partial(_find_batch, **options), files, batch, workers, gpu)
    elif detector in ("dlib", "mediapipe"):
        yield from ordered_map(functools.partial(_find_one, **options), files, len(files), workers)
    else:
        with ThreadPoolExecutor(2) as pool:
            source = iter(files)
            groups = iter(lambda: list(itertools.islice(source, batch)), [])
            reading = [[pool.submit(_read, file) for file in group] for group in itertools.islice(groups, 2)]
            while reading:
                pictures = [future.result() for future in reading.pop(0)]
                following = next(groups, None)
                if following:
                    reading.append([pool.submit(_read, file) for file in following])
                yield from _find_in(pictures, **options)


def _find_one(file: ImageFile, **options: Any) -> tuple[tuple[int, int], Faces]:
    image = images.read(file.path)
    return image.shape[:2], detect_turned([image], **options)[0]


def _find_batch(files: list[ImageFile], **options: Any) -> list[Found]:
    cv2.setNumThreads(1)  # Ray counts one core per task
    return _find_in([_read(file) for file in files], **options)


def _find_in(pictures: list[np.ndarray | InputError], **options: Any) -> list[Found]:
    good = [image for image in pictures if not isinstance(image, InputError)]
    answers = iter(detect_turned(good, **options))
    return [image if isinstance(image, InputError) else (image.shape[:2], next(answers)) for image in pictures]


def detect_turned(pictures: list[np.ndarray], turned: bool = False, **options: Any) -> list[Faces]:
    """`detectors.detect`; with `turned` in each picture's four orientations, of which the surest is taken.

    The picture as it is comes first where it is nearly as sure: some networks find faces that lie on their side.
    """
    found = detect(pictures, **options)
    if not turned:
        return found
    for quarters in (1, 2, 3):
        others = detect([np.ascontiguousarray(np.rot90(image, quarters)) for image in pictures], **options)
        for index, (image, other) in enumerate(zip(pictures, others)):
            if other.scores.max(initial=0) > 1.1 * found[index].scores.max(initial=0):
                found[index] = unturned(other, quarters, image.shape[1], image.shape[0])
    return found


def _read(file: ImageFile) -> np.ndarray | InputError:
    try:
        return images.read(file.path)
    except InputError as error:
        return error


def write_faces(
    paths: Sequence[str | Path],
    out: str | Path,
    detector: str = "mediapipe",
    device: str = "cpu",
    threshold: float | None = None,
    batch: int = 8,
    workers: int | None = None,
    engine: str = "local",
    force: bool = False,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Write out/faces.jsonl: per image its size and its faces, best first, each with box, score and five points.

    Records of an earlier run with the same options are kept where the image has the same number of bytes. Returns a
    summary. Raises InputError when there is no image, or `out` holds a run with other options.
    """
    out = Path(out)
    files = find_images(paths)
    prepare(detector, device)

    def work(known: dict[str, Record]) -> Iterator[Record]:
        sizes = [file.path.stat().st_size if file.path.exists() else None for file in files]
        kept = [
            file.file in known and "error" not in known[file.file] and known[file.file].get("bytes") == size
            for file, size in zip(files, sizes)
        ]
        todo = [file for file, keep in zip(files, kept) if not keep]
        found = detect_files(todo, detector, device, threshold, "five", batch, workers, engine, every=True)
        for file, size, keep in zip(files, sizes, kept):
            if keep:
                yield known[file.file]
            else:
                yield {"file": file.file, "bytes": size, "detector": detector, **_describe(next(found))}

    def summary(records: list[Record]) -> dict[str, Any]:
        faces = sum(len(item.get("faces", ())) for item in records)
        return {**counts(records), "faces": faces, "detector": detector}

    options = {"detector": detector, "threshold": threshold}
    with run(out, "prep-faces detect", options, (), table="faces", inputs=paths, force=force) as claimed:
        result = record(
            claimed,
            "detect",
            options,
            work,
            summary,
            table="faces",
            whole=_is_whole,
            total=len(files),
            watch=watch,
        )
    return {**result, "out": str(out / "faces.jsonl")}


def _is_whole(item: Record) -> bool:
    sized = all(number(item.get(key)) for key in ("bytes", "width", "height"))
    return sized and isinstance(item.get("faces"), list)


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
    found: Record = {"width": width, "height": height, "faces": listed}
    return found if listed else {**found, "error": "no face found"}
