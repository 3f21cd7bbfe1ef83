"""Head mattes of a sequence or of photos, as RGBA pictures: where the heads are, by which method, what is kept."""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError
from recon4d.formats.landmarks import read_landmarks, to_ibug
from recon4d.parallel import cores
from recon4d.records import Record, Watch, counts, number, read_records, record, run, unwatched, up_to_date

from prep_faces import networks
from prep_faces.clipmatte import REACH, Frame, Way, matte_clip
from prep_faces.cuts import cut_clip
from prep_faces.following import MEMORY
from prep_faces.headshape import HeadShape, shape_from_landmarks
from prep_faces.image_files import ImageFile, clashes, find_images
from prep_faces.landmarks import record_landmarks

METHODS = ("matting", "live", "grabcut")


def write_mattes(
    paths: Sequence[str | Path],
    out: str | Path,
    landmarks: str | Path | None = None,
    track: str | Path | None = None,
    head_model: str | Path | None = None,
    method: str | None = None,
    keep: str = "head",
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
        landmarks: folder of .npy files named like the images; without it and `track`, mediapipe finds them first,
            in out/landmarks.
        track: track.npz of these images; the tracked mesh's silhouette seeds the cut.
        head_model: the head model of the track, None for the open head.
        method: "matting" (the default): two networks, colours and closed-form matting; "live": the faster network and
            a guided filter; "grabcut".
        keep: "head": above the end of the neck, without what lies beside it; "head+neck": all above that end,
            also hair on shoulders; "portrait": the whole person.
        model: TorchScript file from (1, 3, H, W) RGB in [0, 1] to alpha, used in place of a method. It is a program,
            which runs only with `trust_code`, or where its SHA-256 is `sha256`.
        photos: the images are unrelated: no voting between neighbours.

    Returns a summary; files that fail are recorded, not raised. Raises InputError when there is no image, an option
    does not fit, or `out` holds a run with other options.
    """
    if track is not None and landmarks is not None:
        raise InputError("--track and --landmarks both say where the head is; give one of them")
    if head_model is not None and track is None:
        raise InputError("--head-model is the head model of a track; add --track")
    if method is not None and model is not None:
        raise InputError("--method and --model both say how to matte; give one of them")
    method = "model" if model is not None else method or "matting"
    if keep != "head" and method in ("model", "grabcut"):
        raise InputError(f"--keep {keep} needs --method matting or live: GrabCut and --model find heads only")
    out = Path(out)
    files = find_images(paths)
    if method in ("matting", "live"):
        networks.check(method)
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

    seeded = "track" if track is not None else "landmarks" if landmarks is not None else "mediapipe"
    name = None if model is None else Path(model).name
    options = {"seeded_by": seeded, "method": method, "keep": keep, "model": name, "photos": photos}
    names = {Path(file.name).parts[0] + ("" if "/" in file.name else ".png") for file in files}
    names |= {"landmarks", "landmarks.jsonl", "landmarks.json"} if seeded == "mediapipe" else set()
    inputs = [path for path in (*paths, landmarks, track, head_model, model) if path is not None]

    def summary(records: list[Record]) -> dict[str, Any]:
        return {**counts(records), **options}

    with run(out, "prep-faces matte", options, sorted(names), inputs=inputs, force=force) as claimed:
        if shapes is None:
            record_landmarks(claimed, files, photos=photos, workers=workers, watch=watch)
            landmarks = out / "landmarks"
            shapes = shapes_from_landmarks(landmarks, files, photos)
        sources = [_sources(file, landmarks, track, model) for file in files]
        work = partial(_matte, files, shapes, targets, sources, method, keep, model, photos, workers)
        result = record(claimed, "matte", options, work, summary, total=len(files), watch=watch)
    return {**result, "out": str(out)}


def _matte(
    files: list[ImageFile],
    shapes: list[HeadShape | InputError],
    targets: list[Path],
    sources: list[list[Path]],
    method: str,
    keep: str,
    model: str | Path | None,
    photos: bool,
    workers: int | None,
    known: dict[str, Record],
) -> Iterator[Record]:
    """Matte each file that is not up to date with its `sources`; the record of each file."""
    frames = [
        Frame(file, clash or shape, target, not up_to_date(known.get(file.file), target, deciding))
        for file, clash, shape, target, deciding in zip(files, clashes(files), shapes, targets, sources)
    ]
    reach, workers = 0 if photos else REACH, workers or cores()
    if method in ("matting", "live"):
        answers = matte_clip(frames, Way(method, keep, reach), workers)
    else:
        answers = cut_clip(frames, None if model is None else str(model), reach, workers)
    for frame in frames:
        yield {"file": frame.file.file, **next(answers)} if frame.wanted else known[frame.file.file]


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
        faces = to_ibug(read_landmarks(path))
    except InputError as error:
        return error
    if len(faces) != 1 or not np.isfinite(faces).all():
        return InputError(f"{path} holds {len(faces)} faces; finite numbers of one, with its jaw line, are needed")
    points: np.ndarray = faces[0]
    return points
