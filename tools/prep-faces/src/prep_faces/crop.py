"""Face crops of fixed size from sequences of frames, steady along each sequence."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError
from recon4d import InputError, images, settings
from recon4d.parallel import cores, ordered_map
from recon4d.records import Record, Watch, counts, record, run, unwatched, up_to_date
from scipy.ndimage import gaussian_filter1d

from prep_faces.affine import invert, warp
from prep_faces.detection import Found, detect_files
from prep_faces.detectors import Detector, prepare
from prep_faces.image_files import ImageFile, clashes, find_images
from prep_faces.landmarks import choose_face

EYES, MOUTH = 0.36, 0.74  # heights of eyes and mouth in an aligned crop at `margin` 0, shares of its side


class CropConfig(settings.Section):
    """The section `prep_faces` of exp.yaml."""

    input: str = "original_image"  # folder in the dataset: <sequence>/<frame>
    output: str = "lr_image"
    size: int = Field(128, ge=8, le=4096)  # pixels of a crop's side
    mode: Literal["align", "box"] = "align"  # turn the eyes level, or only cut a square
    margin: float = Field(0.15, ge=0, le=2)  # around the face, shares of its size
    smooth: float = Field(2.0, ge=0, le=10_000)  # standard deviation in frames; 0 for none
    detector: Detector = "mediapipe"


def read_config(path: str | Path) -> tuple[Path, CropConfig]:
    """The dataset folder and the section `prep_faces` of a YAML file; other sections belong to other tools.

    Raises InputError naming the file, the key and what was expected.
    """
    path = Path(path)
    content = settings.read(path)
    if not isinstance(content, dict) or not isinstance(content.get("dataset"), str):
        raise InputError(f"--config {path} has no key dataset; give the folder that holds original_image")
    section = content.get("prep_faces") or {}
    try:
        config = CropConfig.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("prep_faces", *first["loc"])))
        raise InputError(f"--config {path}: {key}: {first['msg']}; correct it") from error
    dataset = path.parent / content["dataset"]  # an absolute path stays as it is
    if not (dataset / config.input).is_dir():
        raise InputError(
            f"--config {path}: {dataset / config.input} is not a folder; correct dataset or prep_faces.input"
        )
    return dataset, config


def write_crops(
    dataset: str | Path,
    config: CropConfig,
    device: str = "cpu",
    workers: int | None = None,
    force: bool = False,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Crop every frame of dataset/input/<sequence>/ into dataset/output/<sequence>/<frame>.png.

    output/crops.jsonl holds per frame the 2x3 matrices from image to crop pixels and back (centres at +0.5). Frames
    without a face get the position between their neighbours'; a sequence without any face is recorded as failed.
    Whole sequences that an earlier run finished are kept. Returns a summary. Raises InputError when there is no image,
    or the output holds a run with other options.
    """
    source, out = Path(dataset) / config.input, Path(dataset) / config.output
    files = find_images([source])
    prepare(config.detector, device)
    sequences: dict[str, list[ImageFile]] = {}
    for file in files:
        sequences.setdefault(str(Path(file.file).parent), []).append(file)

    def work(known: dict[str, Record]) -> Iterator[Record]:
        clashing = {file.file: clash for file, clash in zip(files, clashes(files)) if clash is not None}
        # A sequence is done as a whole: where one crop lies depends on its neighbours.
        todo = {
            name: [file for file in members if file.file not in clashing]
            for name, members in sequences.items()
            if not all(up_to_date(known.get(file.file), out / f"{file.name}.png", [file.path]) for file in members)
        }
        fresh = [file for members in todo.values() for file in members]
        found = detect_files(fresh, config.detector, device, None, workers=workers)
        jobs = (job for members in todo.values() for job in place_sequence(members, found, out, config))
        crops = ordered_map(_write_crop, jobs, len(fresh), workers or cores())
        for name, members in sequences.items():
            for file in members:
                if file.file in clashing:
                    yield {"file": file.file, "error": str(clashing[file.file])}
                elif name not in todo:
                    yield known[file.file]
                else:
                    answer = next(crops)
                    yield {"file": file.file, **({"error": str(answer)} if isinstance(answer, InputError) else answer)}

    def summary(records: list[Record]) -> dict[str, Any]:
        return {**counts(records), "sequences": len(sequences)}

    options = config.model_dump()
    names = {Path(file.name).parts[0] + ("" if "/" in file.name else ".png") for file in files}
    with run(out, "prep-faces crop", options, sorted(names), table="crops", inputs=[source], force=force) as claimed:
        result = record(claimed, "crop", options, work, summary, table="crops", total=len(files), watch=watch)
    return {**result, "out": str(out)}


@dataclass(frozen=True, eq=False)
class Job:
    """One crop to write: the 2x3 matrix from image to crop, or why there is none; whether a face was found here."""

    source: Path
    target: Path
    matrix: np.ndarray | InputError
    size: int
    found: bool


def place_sequence(files: list[ImageFile], faces: Iterator[Found], out: Path, config: CropConfig) -> Iterator[Job]:
    """Where to crop each frame of a sequence; takes one item of `faces` for each file."""
    places: list[np.ndarray | InputError] = []
    previous: np.ndarray | None = None
    for answer in itertools.islice(faces, len(files)):
        if isinstance(answer, InputError):
            places.append(answer)
            continue
        chosen = choose_face(answer[1], previous, -np.inf, config.detector)
        if chosen is None:
            places.append(np.full(4, np.nan))
            continue
        previous = answer[1].boxes[chosen]
        places.append(place(answer[1].points[chosen], previous, config))
    rows = np.array([item for item in places if not isinstance(item, InputError)]).reshape(-1, 4)
    seen = np.isfinite(rows).any()
    steady = iter(steady_places(rows, config.smooth) if seen else rows)
    for file, item in zip(files, places):
        matrix: np.ndarray | InputError
        if isinstance(item, InputError):
            matrix = item
        elif seen:
            x, y, log_side, turn = next(steady)
            matrix = crop_matrix(x, y, log_side, turn, config.size)
        else:
            matrix = InputError("no face found in the whole sequence")
        face = not isinstance(item, InputError) and bool(np.isfinite(item).all())
        yield Job(file.path, out / f"{file.name}.png", matrix, config.size, face)


def _write_crop(job: Job) -> dict[str, Any]:
    """Write one crop; what to record of it. Raises InputError where there is nothing to write."""
    if isinstance(job.matrix, InputError):
        job.target.unlink(missing_ok=True)  # of an earlier run
        raise job.matrix
    images.write_png(job.target, warp(images.read(job.source), job.matrix, job.size, job.size))
    return {
        "to_crop": job.matrix.round(6).tolist(),
        "to_image": invert(job.matrix).round(6).tolist(),
        "found": job.found,
    }


def place(points: np.ndarray, box: np.ndarray, config: CropConfig) -> np.ndarray:
    """Where to crop: centre x, y, logarithm of the side (pixels), turn (radians), from five points (5, 2) and box (4,).

    `align` puts eyes and mouth of a frontal face at fixed heights; `box` takes the square around the box.
    """
    grow = 1 + 2 * config.margin
    if config.mode == "box":
        side = float(max(box[2:] - box[:2]))
        return np.array([*(box[:2] + box[2:]) / 2, np.log(max(side * grow, 1.0)), 0.0])
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    # The line from eyes to mouth and the line between the eyes shorten as the head turns, each about its own axis:
    # the sum of both is steadier than one.
    across = points[1] - points[0]
    down = mouth - eyes
    turned = across + np.array([down[1], -down[0]])
    side = float(max(np.linalg.norm(down), np.linalg.norm(across))) / (MOUTH - EYES)
    center = eyes + (0.5 - EYES) / (MOUTH - EYES) * down
    return np.array([*center, np.log(max(side * grow, 1.0)), np.arctan2(turned[1], turned[0])])


def steady_places(places: np.ndarray, smooth: float) -> np.ndarray:
    """Places (N, 4) with rows of NaN filled from their neighbours and smoothed over `smooth` frames."""
    known = np.isfinite(places[:, 0])
    index = np.arange(len(places))
    filled = places.copy()
    filled[known, 3] = np.unwrap(places[known, 3])
    filled = np.stack([np.interp(index, index[known], column[known]) for column in filled.T], axis=1)
    return gaussian_filter1d(filled, smooth, axis=0, mode="nearest") if smooth > 0 else filled


def crop_matrix(x: float, y: float, log_side: float, turn: float, size: int) -> np.ndarray:
    """The 2x3 matrix from image pixels to pixels of the crop (centres at +0.5)."""
    scale = size / np.exp(log_side)
    cosine, sine = scale * np.cos(turn), scale * np.sin(turn)
    linear = np.array([[cosine, sine], [-sine, cosine]])
    return np.hstack([linear, (size / 2 - linear @ [x, y])[:, None]])
