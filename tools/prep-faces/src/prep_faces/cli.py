"""The command line: options in, one function per command, its result out."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from recon4d import InputError
from recon4d.cli import Group, Real, device_option, force_option, log, pick_device, print_result, progress
from recon4d.parallel import ENGINES

from prep_faces.detectors import DETECTORS, POINTS

FINDS = "What finds faces; with mtcnn, dlib finds the points."
path_type = click.Path(path_type=Path)
paths_argument = click.argument("paths", nargs=-1, required=True, type=path_type)
out_option = click.option("--out", required=True, type=path_type, help="Folder to write into.")
strict_option = click.option("--strict", is_flag=True, help="Exit 2 when anything at all failed.")
workers_option = click.option("--workers", type=click.IntRange(1, 1024), help="Processes.  [default: one per core]")
batch_option = click.option(
    "--batch", type=click.IntRange(1, 4096), default=8, show_default=True, help="Images that a network gets at a time."
)
engine_option = click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="local",
    show_default=True,
    help="ray: in shards, by Ray Data on this machine or the cluster in RAY_ADDRESS.",
)


@click.group(cls=Group)
@click.version_option(package_name="prep-faces")
def main() -> None:
    """Photos and videos of faces into frames, landmarks and head mattes."""


@main.command()
@click.argument("video", type=path_type)
@out_option
@click.option("--fps", type=Real(0, 1000, min_open=True), help="Frames per second, at a steady rate.  [default: all]")
@click.option("--size", type=click.IntRange(1, 65535), help="Pixels of the longer side.  [default: as it is]")
@click.option(
    "--sharpest",
    type=click.IntRange(1, 100_000),
    default=1,
    show_default=True,
    help="Of every N frames keep the sharpest.",
)
@click.option("--max-frames", type=click.IntRange(1, 10**9), help="Stop after this many.")
@strict_option
@force_option
def frames(
    video: Path,
    out: Path,
    fps: float | None,
    size: int | None,
    sharpest: int,
    max_frames: int | None,
    strict: bool,
    force: bool,
) -> None:
    """Write the frames of VIDEO as OUT/frames/00000.png ... and OUT/frames.jsonl."""
    from prep_faces.video import extract_frames

    options = {"fps": fps, "size": size, "sharpest": sharpest, "max_frames": max_frames, "force": force}
    result = _run("frames", extract_frames, video, out, **options)
    for note in result["notes"]:
        log(f"note: {note}")
    for problem in result["errors"]:
        log(f"warning: {problem}")
    print_result({**result, "out": str(out / "frames")})
    if strict and result["errors"]:
        raise InputError(result["errors"][0])


@main.command()
@paths_argument
@out_option
@click.option(
    "--detector", type=click.Choice(DETECTORS), default="mediapipe", show_default=True, help="What finds faces."
)
@click.option("--threshold", type=Real(-1000, 1000), help="Least score of a face.  [default: the detector's own]")
@batch_option
@device_option
@workers_option
@engine_option
@strict_option
@force_option
def detect(
    paths: tuple[Path, ...],
    out: Path,
    detector: str,
    threshold: float | None,
    batch: int,
    device: str,
    workers: int | None,
    engine: str,
    strict: bool,
    force: bool,
) -> None:
    """Write all faces in PATHS (boxes, five points, scores) to OUT/faces.jsonl."""
    from prep_faces.detection import write_faces

    where = {"detector": detector, "device": _device(device, detector), "workers": workers, "engine": engine}
    result = _run("detect", write_faces, paths, out, **where, threshold=threshold, batch=batch, force=force)
    _finish(result, out / "faces.jsonl", strict)


@main.command()
@paths_argument
@out_option
@click.option("--detector", type=click.Choice(DETECTORS), default="mediapipe", show_default=True, help=FINDS)
@click.option(
    "--points",
    type=click.Choice(POINTS[1:]),
    help="ibug: 68; 3d: face-alignment only; dense: 478.  [default: dense with mediapipe, else ibug]",
)
@batch_option
@device_option
@click.option(
    "--faces",
    type=click.Choice(("likeliest", "largest")),
    default="likeliest",
    show_default=True,
    help="Which of several, where none is followed.",
)
@click.option("--photos", is_flag=True, help="The files are unrelated: do not follow a face from one to the next.")
@click.option("--turned", is_flag=True, help="Look in four orientations: pictures may lie on their side.")
@workers_option
@engine_option
@strict_option
@force_option
def landmarks(
    paths: tuple[Path, ...],
    out: Path,
    detector: str,
    points: str | None,
    batch: int,
    device: str,
    faces: str,
    photos: bool,
    turned: bool,
    workers: int | None,
    engine: str,
    strict: bool,
    force: bool,
) -> None:
    """Write the points of a face per image of PATHS as OUT/landmarks/NAME.npy and OUT/landmarks.jsonl."""
    from prep_faces.landmarks import write_landmarks

    where = {"detector": detector, "device": _device(device, detector), "workers": workers, "engine": engine}
    what = {"photos": photos, "points": points, "batch": batch, "force": force}
    which = {"largest": faces == "largest", "turned": turned}
    result = _run("landmarks", write_landmarks, paths, out, **where, **what, **which)
    if result["close"]:
        many = f"{result['close']} of {result['images']} images have another face as large and as sure as the one taken"
        log(f"warning: {many}; {out / 'landmarks.jsonl'} marks them with rivals")
    _finish(result, out / "landmarks.jsonl", strict)


@main.command()
@paths_argument
@out_option
@click.option("--landmarks", type=path_type, help="Folder of the points.  [default: look for faces]")
@click.option("--track", type=path_type, help="track.npz of these images: its mesh says where the head is, better.")
@click.option("--head-model", type=path_type, help="Head model of the track.  [default: the open head]")
@click.option(
    "--method",
    type=click.Choice(("matting", "live", "grabcut")),
    help="live: faster and coarser; grabcut: no network.  [default: matting]",
)
@click.option(
    "--keep",
    type=click.Choice(("head", "head+neck", "portrait")),
    default="head",
    show_default=True,
    help="head: nothing beside the neck; head+neck: all down to its end; portrait: the person.",
)
@click.option("--model", type=path_type, help="TorchScript matting network, in place of a method.")
@click.option("--trust-code", is_flag=True, help="Let the program run that a TorchScript file is.")
@click.option("--sha256", metavar="HEX", help="Let it run where this is its SHA-256.")
@click.option("--photos", is_flag=True, help="The files are unrelated: do not steady one by its neighbours.")
@workers_option
@strict_option
@force_option
def matte(
    paths: tuple[Path, ...],
    out: Path,
    landmarks: Path | None,
    track: Path | None,
    head_model: Path | None,
    method: str | None,
    keep: str,
    model: Path | None,
    trust_code: bool,
    sha256: str | None,
    photos: bool,
    workers: int | None,
    strict: bool,
    force: bool,
) -> None:
    """Write each image of PATHS as OUT/NAME.png, RGBA with the head (hair and neck) as alpha."""
    from prep_faces.matte import write_mattes

    seeds = {"landmarks": landmarks, "track": track, "head_model": head_model}
    how = {"method": method, "keep": keep, "model": model, "trust_code": trust_code, "sha256": sha256}
    result = _run("matte", write_mattes, paths, out, **seeds, **how, photos=photos, workers=workers, force=force)
    _finish(result, out / "matte.jsonl", strict)


@main.command()
@click.option("--config", required=True, type=path_type, help="exp.yaml: dataset, section prep_faces.")
@device_option
@workers_option
@strict_option
@force_option
def crop(config: Path, device: str, workers: int | None, strict: bool, force: bool) -> None:
    """Write original_image/SEQUENCE/FRAME of a dataset as face crops of fixed size in lr_image, with crops.jsonl."""
    from prep_faces.crop import read_config, write_crops

    dataset, options = read_config(config)
    where = _device(device, options.detector)
    result = _run("crop", write_crops, dataset, options, device=where, workers=workers, force=force)
    _finish(result, dataset / options.output / "crops.jsonl", strict)


@main.command()
@click.argument("source", default="nuwandaa/ffhq128")
@out_option
@click.option("--split", default="train", show_default=True, help="Of a Hugging Face dataset.")
@click.option("--limit", type=click.IntRange(1, 10**9), help="How many images at most.  [default: all]")
@click.option("--size", type=click.IntRange(1, 65535), help="Pixels of the longer side.  [default: as it is]")
@click.option("--detector", type=click.Choice(DETECTORS), default="mediapipe", show_default=True, help=FINDS)
@device_option
@workers_option
@strict_option
@force_option
def ffhq(
    source: str,
    out: Path,
    split: str,
    limit: int | None,
    size: int | None,
    detector: str,
    device: str,
    workers: int | None,
    strict: bool,
    force: bool,
) -> None:
    """Write the images of SOURCE as OUT/thumbnails/thumb_00000.png ... and their 68 points as OUT/landmarks.

    SOURCE is a folder, a parquet file or folder of them, or a Hugging Face dataset (nuwandaa/ffhq128 by default).
    """
    from prep_faces.ffhq import write_ffhq

    where = {"detector": detector, "device": _device(device, detector), "workers": workers}
    result = _run("ffhq", write_ffhq, source, out, **where, split=split, limit=limit, size=size, force=force)
    _finish(result, out / "ffhq.jsonl", strict)


@main.command()
@click.argument("source", required=False)
@click.option("--realtime", is_flag=True, help="Show a file at its own pace, as a camera would.")
@click.option("--loop", is_flag=True, help="Show a file again and again.")
@click.option("--seconds", type=Real(0, 1e7, min_open=True), help="End after so long.")
@click.option("--size", type=click.IntRange(64, 1024), default=256, show_default=True, help="Pixels of a side.")
@click.option("--fps", type=Real(1, 240), help="Frames per second to ask a camera for, or to show a file at.")
@click.option("--ring", type=path_type, help="Folder of the last frames' files.  [default: one in memory]")
@click.option("--keep", type=click.IntRange(8, 10**7), help="Frames in it.  [default: 128]")
@click.option("--leave", is_flag=True, help="Leave the ring as it is at the end.")
@click.option("--host", default="127.0.0.1", show_default=True, help="browser: address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="browser: 0 is any free.")
@click.option("--open/--no-open", "open_browser", default=False, show_default=True, help="browser: open the page.")
def camera(source: str | None, ring: Path | None, **options: Any) -> None:
    """Find the face in a camera's frames; write the last ones' files into a ring, and a line of JSON each to stdout.

    SOURCE is a camera of this machine (the first one if not given), a video file, a URL, or `browser`: a page that asks
    for the camera of whoever opens it. Frames that come too fast are dropped, the newest is served. Ends when the
    frames do, when nobody reads the lines any more, or on Ctrl-C; then the ring is gone.
    """
    from prep_faces.camera import stream

    stream(source, ring, **options, log=log)


def _device(name: str, detector: str) -> str:
    """The device as PyTorch names it; dlib and mediapipe need none, and PyTorch takes seconds to import."""
    return "cpu" if detector in ("dlib", "mediapipe") and name in ("auto", "cpu") else str(pick_device(name))


def _run(what: str, function: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> dict[str, Any]:
    """`function`'s result, with a progress bar while it works, and its speed from the first image to the last."""
    start: float | None = None

    def watch(items: Iterator[Any], total: int | None) -> Iterator[Any]:
        nonlocal start
        start = start or time.perf_counter()
        return progress(items, what, total)

    result = function(*arguments, **options, watch=watch)
    seconds = time.perf_counter() - (start or time.perf_counter())
    images = result.get("images", result.get("frames"))
    new = images - result["kept"]
    rates = {"images_per_second": round(new / seconds, 2) if new else None}
    if "faces" in result:
        rates["faces_per_second"] = round(result["faces"] * new / images / seconds, 2) if new else None
    return {**result, **rates}


def _finish(result: dict[str, Any], table: Path, strict: bool) -> None:
    """Print the result; InputError when something failed and that is not to be."""
    print_result(result)
    if result["failed"]:
        message = f"{result['failed']} of {result['images']} images failed; {table} has the reasons"
        if strict:
            raise InputError(message)
        log(f"warning: {message}")
