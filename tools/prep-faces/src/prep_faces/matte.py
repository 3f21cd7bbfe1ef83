"""Head mattes of a sequence: cut each image, steady the cuts over time, soften their edges, write RGBA."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError, images
from recon4d.files import read_npy

from prep_faces.affine import compose, head_motion, invert, warp
from prep_faces.alpha import BAND, foreground_colors, refine
from prep_faces.grabcut import Cut, cut
from prep_faces.headshape import HeadShape, shape_from_landmarks
from prep_faces.image_files import ImageFile, clashes, find_images
from prep_faces.landmarks import MEMORY, record_landmarks
from prep_faces.parallel import cores, ordered_map
from prep_faces.records import Record, Watch, counts, number, read_records, record, run, unwatched, up_to_date

FAR = 1e6  # pixels: no image is so large
REACH = 2  # frames before and after that vote on a cut


@dataclass(frozen=True, eq=False)
class Job:
    """One image to matte: its head's shape; `model` a TorchScript file, or None for GrabCut."""

    file: ImageFile
    shape: HeadShape
    model: str | None


def steady(cuts: list[Cut], motions: list[np.ndarray], current: int) -> Cut:
    """The cut at index `current` after a vote with its neighbours: the median of all, moved with the head.

    `motions[j]` is the 2x3 matrix that carries image pixels of frame j to those of the current frame. A median
    keeps an outline that moves steadily where it is, and drops what shows in a minority of frames.
    """
    here = cuts[current]
    height, width = here.matte.shape
    stack = []
    for other, motion in zip(cuts, motions):
        if other is here:
            stack.append(here.matte)
            continue
        there = compose(here.to_small, compose(motion, invert(other.to_small)))
        stack.append(warp(other.matte, there, height, width))
    return Cut(np.median(np.stack(stack), axis=0).astype(np.float32), here.to_small)


def write_mattes(
    paths: Sequence[str | Path],
    out: str | Path,
    landmarks: str | Path | None = None,
    track: str | Path | None = None,
    head_model: str | Path | None = None,
    model: str | Path | None = None,
    trust_code: bool = False,
    sha256: str | None = None,
    photos: bool = False,
    workers: int | None = None,
    force: bool = False,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Write out/<name>.png, RGBA with the head as alpha, for each image, and out/matte.jsonl.

    Args:
        landmarks: folder of (68, 2) .npy files named like the images; without it and `track`, dlib finds them first,
            in out/landmarks.
        track: track.npz of these images; the tracked mesh's silhouette seeds the cut.
        head_model: the head model of the track, None for the open head.
        model: TorchScript file from (1, 3, H, W) RGB in [0, 1] to alpha, used in place of GrabCut. It is a program,
            which runs only with `trust_code`, or where its SHA-256 is `sha256`.
        photos: the images are unrelated: no voting between neighbours.

    Returns a summary; files that fail are recorded, not raised. Raises InputError when there is no image, an option
    does not fit, or `out` holds a run with other options.
    """
    if track is not None and landmarks is not None:
        raise InputError("--track and --landmarks both say where the head is; give one of them")
    if head_model is not None and track is None:
        raise InputError("--head-model is the head model of a track; add --track")
    out = Path(out)
    files = find_images(paths)
    if model is not None:
        from prep_faces.mattemodel import check_trust, load_model

        check_trust(model, trust_code, sha256)
        load_model(str(model))
    targets = [out / f"{file.name}.png" for file in files]
    shapes: list[HeadShape | InputError] | None = None
    if track is not None:
        from prep_faces.trackshape import shapes_from_track

        shapes = shapes_from_track(track, files, head_model)
    elif landmarks is not None:
        shapes = shapes_from_landmarks(Path(landmarks), files, photos)
        if all(isinstance(shape, InputError) for shape in shapes):
            raise InputError(f"{landmarks} holds no points for these images; run prep-faces landmarks on them first")

    seeded = "track" if track is not None else "landmarks" if landmarks is not None else "dlib"
    options = {"seeded_by": seeded, "model": None if model is None else Path(model).name, "photos": photos}
    names = {Path(file.name).parts[0] + ("" if "/" in file.name else ".png") for file in files}
    names |= {"landmarks", "landmarks.jsonl", "landmarks.json"} if seeded == "dlib" else set()
    inputs = [path for path in (*paths, landmarks, track, head_model, model) if path is not None]

    def summary(records: list[Record]) -> dict[str, Any]:
        return {**counts(records), **options}

    with run(out, "matte", options, sorted(names), inputs=inputs, force=force) as claimed:
        if shapes is None:
            record_landmarks(claimed, files, photos=photos, workers=workers, watch=watch)
            landmarks = out / "landmarks"
            shapes = shapes_from_landmarks(landmarks, files, photos)
        sources = [_sources(file, landmarks, track, model) for file in files]
        work = partial(_matte, files, shapes, targets, sources, model, photos, workers)
        result = record(claimed, "matte", options, work, summary, total=len(files), watch=watch)
    return {**result, "out": str(out)}


def _matte(
    files: list[ImageFile],
    shapes: list[HeadShape | InputError],
    targets: list[Path],
    sources: list[list[Path]],
    model: str | Path | None,
    photos: bool,
    workers: int | None,
    known: dict[str, Record],
) -> Iterator[Record]:
    """Cut, steady and write each file that is not up to date with its `sources`; the record of each."""
    shapes = [clash or shape for clash, shape in zip(clashes(files), shapes)]
    fresh = [
        not up_to_date(known.get(file.file), target, deciding)
        for file, target, deciding in zip(files, targets, sources)
    ]
    reach = 0 if photos else REACH
    # Images that vote on one that is wanted are cut as well.
    jobs = [
        Job(file, shape, None if model is None else str(model))
        for i, (file, shape) in enumerate(zip(files, shapes))
        if any(fresh[max(0, i - reach) : i + reach + 1]) and not isinstance(shape, InputError)
    ]
    workers = workers or cores()
    answers = ordered_map(cut_file, iter(jobs), len(jobs), workers)
    cutting = {job.file.file for job in jobs}
    cuts = (
        shape if isinstance(shape, InputError) else next(answers) if file.file in cutting else None
        for file, shape in zip(files, shapes)
    )
    tasks = (
        (file.path, target, item)
        for file, target, is_fresh, item in zip(files, targets, fresh, steadied(cuts, reach))
        if is_fresh
    )
    finished = ordered_map(finish_file, tasks, sum(fresh), workers)
    for file, target, is_fresh, shape in zip(files, targets, fresh, shapes):
        if not is_fresh:
            yield known[file.file]
            continue
        answer = next(finished)
        if isinstance(answer, InputError):
            answer = {"error": str(answer)}
            if not isinstance(shape, InputError):
                target.unlink(missing_ok=True)  # of an earlier run
        yield {"file": file.file, **answer}


def _sources(
    file: ImageFile, landmarks: str | Path | None, track: str | Path | None, model: str | Path | None
) -> list[Path]:
    """The files that decide an image's matte."""
    points = [] if landmarks is None else [Path(landmarks) / f"{file.name}.npy"]
    others = [Path(path) for path in (track, model) if path is not None]
    return [file.path, *(path for path in points if path.exists()), *others]


def shapes_from_landmarks(folder: Path, files: list[ImageFile], photos: bool) -> list[HeadShape | InputError]:
    """Head shapes from the .npy files of `folder`, or what is wrong with them.

    In a sequence, a gap of at most MEMORY images without points is filled by interpolation.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give --landmarks the folder that prep-faces landmarks wrote")
    table = read_records(folder.parent / "landmarks.jsonl")
    records = {item["file"]: item for item in table if isinstance(item.get("file"), str)}
    points = [_read_points(folder / f"{file.name}.npy", records.get(file.file, {})) for file in files]
    if not photos:
        known = [(i, item) for i, item in enumerate(points) if not isinstance(item, InputError)]
        for (before, left), (after, right) in itertools.pairwise(known):
            if 1 < after - before <= MEMORY:
                for i in range(before + 1, after):
                    share = (i - before) / (after - before)
                    points[i] = (1 - share) * left + share * right
    shapes: list[HeadShape | InputError] = []
    for file, item in zip(files, points):
        made_on = records.get(file.file, {})
        sized = all(number(made_on.get(key), 1) for key in ("width", "height"))
        size = (made_on["width"], made_on["height"]) if sized else None
        shapes.append(item if isinstance(item, InputError) else shape_from_landmarks(item, size))
    return shapes


def _read_points(path: Path, item: Record) -> np.ndarray | InputError:
    if not path.is_file() and "error" in item:
        return InputError(str(item["error"]))
    if not path.is_file():
        return InputError(f"{path} does not exist; no face was found in that image, or landmarks has not run on it")
    try:
        points = read_npy(path)
    except InputError as error:
        return error
    numeric = points.dtype.kind in "fiu" and points.ndim == 2 and points.shape[0] == 68 and points.shape[1] in (2, 3)
    if not (numeric and np.isfinite(points).all() and np.abs(points).max() < FAR):
        return InputError(f"{path} has shape {points.shape}; finite numbers of shape (68, 2) are needed")
    return points[:, :2].astype(np.float64)


def cut_file(job: Job) -> tuple[Cut, HeadShape]:
    """Cut one image. Raises InputError when it cannot be read or does not fit the shape."""
    image = images.read(job.file.path)
    shape = job.shape.fitted(*image.shape[:2])
    if not shape.visible(*image.shape[:2]):
        raise InputError(f"{job.file.file}: the head lies outside of the image; check that the points belong to it")
    if job.model is not None:
        from prep_faces.mattemodel import cut_with_model

        return cut_with_model(image, shape, job.model), shape
    return cut(image, shape), shape


Answer = tuple[Cut, HeadShape] | InputError | None


def steadied(cuts: Iterator[Answer], reach: int) -> Iterator[Answer]:
    """Each cut after the vote with up to `reach` neighbours on each side; errors and None pass through."""
    window: deque[Answer] = deque(itertools.islice(cuts, reach + 1))
    current = 0
    while current < len(window):
        here = window[current]
        if isinstance(here, tuple) and reach:
            # As many before as after: a lopsided median lags behind a head that moves.
            each = min(current, len(window) - 1 - current)
            around = list(window)[current - each : current + each + 1]
            voters = [item for item in around if isinstance(item, tuple)]
            motions = [head_motion(shape.anchors, here[1].anchors) for _, shape in voters]
            index = next(i for i, item in enumerate(voters) if item is here)
            yield steady([cut for cut, _ in voters], motions, index), here[1]
        else:
            yield here
        following = next(cuts, ...)
        if following is not ...:
            window.append(following)
        if current < reach:
            current += 1
        else:
            window.popleft()


def finish_file(task: tuple[Path, Path, Answer]) -> Record:
    """Refine the cut of one image and write its RGBA PNG; what to record. Raises InputError for a failed cut."""
    path, target, answer = task
    if not isinstance(answer, tuple):
        raise answer or InputError(f"{path} was not cut")
    here, shape = answer
    image = images.read(path)
    alpha = refine(image, here, shape.width)
    if not alpha.any():
        raise InputError("no head found around the face")
    colors = foreground_colors(image, alpha, max(2, round(2 * BAND * shape.width)))
    images.write_png(target, np.dstack([colors, np.rint(255 * alpha).astype(np.uint8)]))
    ys, xs = np.nonzero(alpha > 0.5)
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "coverage": round(float(alpha.mean()), 5),
        "box": [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1] if len(xs) else None,
    }
