"""The flame-encoder command."""

import json
from pathlib import Path

import click
import numpy as np
from recon4d.cli import (
    Group,
    claim_output,
    device_option,
    force_option,
    log,
    pick_device,
    print_result,
    progress_bar,
)
from recon4d.files import InputError, write_text

head_options = [
    click.option("--head-model", type=click.Path(), help="FLAME .pkl or .npz; the open head when not given."),
    click.option(
        "--landmark-embedding", type=click.Path(), help="68-landmark embedding of that model (DECA's .npy, or .npz)."
    ),
]


def with_head(command):
    for option in reversed(head_options):
        command = option(command)
    return command


@click.group(cls=Group)
@click.version_option(package_name="flame-encoder")
def main() -> None:
    """Head-model parameters of a person from a video."""


@main.command()
@click.argument("frames", type=click.Path(path_type=Path))
@click.option(
    "--landmarks", type=click.Path(path_type=Path), required=True, help="Folder of <frame>.npy (68, 2) or (P, 68, 2)."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@with_head
@click.option("--person", type=int, default=0, show_default=True, help="Whose face: 0 is who is in most frames.")
@click.option("--focal", type=float, help="Focal length in pixels; estimated when not given.")
@click.option("--fps", type=float, help="Frames per second; from frames.jsonl when not given, else 30.")
@click.option("--iterations", type=int, default=40, show_default=True, help="Solver steps at most.")
@click.option("--photometric", is_flag=True, help="Refine on the images too.")
@click.option(
    "--init",
    type=click.Choice(["pnp", "encoder"]),
    default="pnp",
    show_default=True,
    help="Where to start; encoder replaces wrong landmarks too.",
)
@click.option("--encoder", type=click.Path(), help="--init encoder: weights of train; the shipped ones if not given.")
@click.option("--stream", is_flag=True, help="Write each frame to stdout as it is tracked, a line of JSON each.")
@click.option("--calibrate", type=int, default=45, show_default=True, help="--stream: frames that fix the identity.")
@click.option("--follow", is_flag=True, help="--stream: wait for frames that are still being written.")
@click.option("--timeout", type=float, default=30, show_default=True, help="--follow: seconds without a new frame.")
@click.option("--preview/--no-preview", default=True, show_default=True, help="Write overlay.png and overlay.mp4.")
@force_option
def track(frames, landmarks, out, head_model, landmark_embedding, preview, force, **options) -> None:
    """Parameters of one person in every frame of FRAMES, from 68 landmarks and, with --photometric, from the images.

    Writes track.npz, checkpoint/*.frame (the INSTA folder that gaussian-avatar reads), track.json, overlay.png and
    overlay.mp4, and prints the reprojection error as JSON; with --stream the frames are printed instead.
    """
    from recon4d import head as heads

    from flame_encoder import observations, tracker

    focal, fps, iterations, person = (options[key] for key in ("focal", "fps", "iterations", "person"))
    for name in ("focal", "fps", "timeout"):
        if options[name] is not None and options[name] <= 0:
            raise InputError(f"--{name} {options[name]} must be positive")
    for name in ("iterations", "calibrate"):
        if options[name] < 1:
            raise InputError(f"--{name} {options[name]} must be at least 1")
    if options["stream"] and options["photometric"]:
        raise InputError("--photometric looks at the whole clip, which --stream does not have; leave one of them out")
    if options["encoder"] and options["init"] != "encoder":
        raise InputError("--encoder is for --init encoder; add it")
    if options["follow"] and not options["stream"]:
        raise InputError("--follow waits for frames, which only --stream can; add --stream")
    claim_output(out / "track.npz", force)
    model = heads.load(head_model, landmark_embedding)
    model.landmarks(model())  # says so when the model has none
    settings = tracker.Options(focal=focal, iterations=iterations)
    network = None
    if options["init"] == "encoder":
        from flame_encoder import encoder, initial

        network = encoder.load(options["encoder"], "cpu", head_model, landmark_embedding)
    if options["stream"]:
        views = _arriving(frames, landmarks, options)
        if network is not None:
            views = (initial.confirmed_view(view, network, frames, focal) for view in views)
        rate = fps or observations.frame_rate(frames) or 30.0
        result, figures = _stream(model, views, rate, settings, options["calibrate"], person)
        points = np.full((len(result), 68, 2), np.nan)
    else:
        seen = observations.read(frames, landmarks, fps, person)
        missing = int((~seen.valid).sum())
        if missing:
            log(f"{missing} of {len(seen.valid)} frames have no landmarks; they are interpolated and marked")
        paths = observations.frame_paths(frames)
        images = paths if options["photometric"] else None
        start = None
        if network is not None:
            guess = focal or settings.focal_prior * max(seen.image_size)
            seen, wrong = initial.confirmed(seen, network, paths, guess)
            if wrong:
                log(f"the encoder contradicts the landmarks of {wrong} frames; its own take their place there")
            start = lambda problem: initial.encoded(problem, network, paths)  # noqa: E731
        with progress_bar("track", settings.steps(options["photometric"])) as report:
            result, figures = tracker.track(model, seen, settings, images, start, report)
        if network is not None:
            figures["replaced"] = wrong
        points = seen.landmarks
    _write_track(out, result, figures)
    if preview:
        _write_preview(out, model, result, frames, points)
    if not options["stream"]:
        print_result(figures)


def _write_track(out: Path, result, figures: dict) -> None:
    from recon4d.formats import insta

    for stale in (out / "checkpoint").glob("*.frame"):
        stale.unlink()
    insta.write(out, result)
    write_text(out / "track.json", json.dumps(figures, indent=2) + "\n")
    result.write(out / "track.npz")


def _write_preview(out: Path, model, result, frames: Path, points: np.ndarray) -> None:
    from recon4d.video import write_mp4

    from flame_encoder.preview import contact_sheet, overlays

    chosen = np.unique(np.linspace(0, len(result) - 1, 12).round().astype(int))
    contact_sheet(out / "overlay.png", list(overlays(model, result, frames, points, chosen)))
    write_mp4(out / "overlay.mp4", overlays(model, result, frames, points, np.arange(len(result))), result.fps)


def _arriving(frames: Path, landmarks: Path, options: dict):
    from flame_encoder import observations, stream

    if not options["follow"]:
        observations.frame_paths(frames)
        observations.check_landmarks(landmarks)
    return stream.arrivals(frames, landmarks, options["follow"], options["timeout"])


def _stream(model, views, fps: float, settings, calibrate: int, person: int):
    """Print a track's frames as they come; the whole track and its figures at the end."""
    from recon4d.formats import track_stream
    from recon4d.formats.track import join

    from flame_encoder import stream

    parts, errors = [], []
    for part, error in stream.track(model, views, fps, settings, calibrate, person):
        if not parts:
            click.echo(track_stream.header_line(part))
        for line in track_stream.frame_lines(part):
            click.echo(line)
        parts.append(part)
        errors.append(error)
    result = join(parts)
    figures = {
        "mean_px": float(np.nanmean(errors)),
        "focal": float(result.K[0, 0]),
        "extrapolated": int((~result.valid).sum()),
        "frames": len(result),
    }
    return result, figures


@main.command("check-model")
@click.argument("path", type=click.Path(), required=False)
@click.option(
    "--landmark-embedding", type=click.Path(), help="68-landmark embedding of the model (DECA's .npy, or .npz)."
)
@click.option("--render", type=click.Path(path_type=Path), help="PNG to draw the mean head and its landmarks into.")
@force_option
def check_model(path, landmark_embedding, render, force) -> None:
    """Validate the head model in PATH (FLAME .pkl or .npz; the open head when not given) and print what it holds."""
    from recon4d import head as heads

    from flame_encoder import check

    model = heads.load(path, landmark_embedding)
    found = check.summary(model)
    check.require_sound(model, path)
    if render:
        check.render(model, claim_output(render, force))
    print_result(found)


path_type = click.Path(path_type=Path)


def box_corners(context, parameter, value: str | None) -> tuple[float, ...] | None:
    """`left,top,right,bottom` as four numbers."""
    if value is None:
        return None
    try:
        left, top, right, bottom = (float(part) for part in value.split(","))
    except ValueError as error:
        raise InputError(f"--box {value} is not left,top,right,bottom in pixels") from error
    return left, top, right, bottom


@main.command("mean-face")
@click.option("--out", type=path_type, default="mean_face.png", show_default=True, help="PNG to write.")
@click.option("--show", is_flag=True, help="Open a window with the picture as well.")
@with_head
@click.option("--backbone", default="resnet50", show_default=True, help="A torchvision or timm model.")
@click.option("--weights", default="none", show_default=True, help="none, imagenet or the file of a state dict.")
@force_option
def mean_face(out, show, head_model, landmark_embedding, backbone, weights, force) -> None:
    """Render the average face, and push a random image through a new encoder.

    Prints the shapes of the encoder's input, output and parts as JSON.
    """
    import torch
    from recon4d import head as heads

    from flame_encoder import encoder, rendering, vector, view

    claim_output(out, force)
    model = heads.with_uv(heads.load(head_model, landmark_embedding))
    layout, seen = vector.Layout(), view.View()
    network = encoder.EidolonEncoder(backbone, weights, layout).eval()
    with torch.no_grad():
        picture = rendering.mean_face(model, layout, seen)
        image = torch.rand(1, 3, seen.size, seen.size)
        vectors = network(image)
    rendering.write_png(out, picture)
    shapes = {name: list(part.shape) for name, part in layout.split(vectors).items()}
    print_result({"image": list(image.shape), "vector": list(vectors.shape), "parts": shapes, "rendered": str(out)})
    if show:
        rendering.show(picture, "mean face")


@main.command()
@click.option("--config", default="default", show_default=True, help="default, shipped, quick, or a YAML file.")
@click.option("--out", type=path_type, default="outputs", show_default=True, help="Folder of the run.")
@click.option("--images", type=path_type, help="Folder of images.")
@click.option("--landmarks", type=path_type, help="Folder of <image>.npy (68, 2), as prep-faces writes them.")
@click.option("--synthetic", type=int, help="Number of synthetic people, alone or beside the images.")
@click.option("--cache", type=path_type, help="Folder that keeps the synthetic people between epochs and runs.")
@with_head
@click.option("--backbone", help="A torchvision or timm model.")
@click.option("--weights", help="Its weights: none, imagenet or the file of a state dict.")
@click.option("--freeze", help="What of it stays as it is: backbone, none or first-N blocks.")
@click.option("--renderer", type=click.Choice(["recon4d", "pytorch3d"]), help="What draws for pixel and perceptual.")
@click.option("--batch-size", type=int, help="Images per step, of all processes together.")
@click.option("--workers", type=int, help="Processes that prepare samples.")
@click.option("--devices", type=int, default=1, show_default=True, help="Processes or GPUs to train on.")
@click.option("--nodes", type=int, default=1, show_default=True, help="Machines; start with torchrun.")
@device_option
@click.option("--seed", type=int, help="Seed of all random numbers.  [default: the config's]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with its own settings.")
@force_option
def train(config, out, head_model, landmark_embedding, devices, nodes, device, seed, resume, force, **options) -> None:
    """Train an encoder in stages, from images with landmarks, from synthetic people, or from both.

    The config is a list of stages, or all settings; options replace what it says. OUT gets config.yaml,
    checkpoint.pth, runs/ (TensorBoard), validation_images/ and eidolon_encoder_final.pth.
    """
    from flame_encoder import config as settings
    from flame_encoder import training

    if resume:
        chosen = training.final_config(out)
    else:
        paths = {key: options[key] and str(options[key]) for key in ("images", "landmarks", "cache")}
        chosen = settings.load(
            config,
            {
                "": {"head_model": head_model, "landmark_embedding": landmark_embedding, "seed": seed},
                "data": paths | {"synthetic": options["synthetic"]},
                "encoder": {key: options[key] for key in ("backbone", "weights", "freeze")},
                "train": {key: options[key] for key in ("renderer", "batch_size", "workers")},
            },
        )
    fabric = training.fabric(pick_device(device), devices, nodes)
    if not resume and fabric.is_global_zero:
        claim_output(out, force)
    figures = training.train(chosen, out, fabric, resume, log if fabric.is_global_zero else lambda message: None)
    if fabric.is_global_zero:
        print_result(figures)


@main.command()
@click.argument("images", type=path_type, nargs=-1, required=True)
@click.option("--out", type=path_type, required=True, help="npz to write.")
@click.option("--encoder", "encoder_path", type=path_type, help="File of flame-encoder train.  [default: shipped]")
@with_head
@click.option("--landmarks", type=path_type, help="Folder of <image>.npy (68, 2), as prep-faces writes them.")
@click.option("--faces", "faces_path", type=path_type, help="faces.jsonl of prep-faces detect.")
@click.option("--box", callback=box_corners, help="left,top,right,bottom of the face, brows to chin, in all images.")
@click.option("--overlay", type=path_type, help="PNG to draw the heads over the images into.")
@device_option
@force_option
def encode(images, out, encoder_path, head_model, landmark_embedding, overlay, device, force, **where) -> None:
    """The vector of the face in each of IMAGES (files or folders), one row per image.

    The face is where --landmarks, --faces or --box say; without them, in the middle of the image.
    """
    from flame_encoder import encoder, faces, overlays, parameters, samples

    claim_output(out, force)
    if overlay:
        claim_output(overlay, force)
    model = encoder.load(encoder_path, pick_device(device), head_model, landmark_embedding)
    paths = samples.image_paths(images)
    sizes = [samples.read_image(path).shape[1::-1] for path in paths]
    boxes = faces.boxes(paths, sizes, where["landmarks"], where["faces_path"], where["box"], log)
    with progress_bar("encode", len(paths)) as report:
        found = parameters.encode(model, paths, boxes, report)
    found.write(out)
    if overlay:
        overlays.write(overlay, model.head, found, paths)
    print_result({"images": len(paths), "numbers": found.layout.size, "head_model": model.head.name, "out": str(out)})


@main.command()
@click.argument("source", type=path_type)
@click.option("--out", type=path_type, required=True, help="OBJ, PLY, glTF or GLB file to write.")
@with_head
@click.option("--row", "--frame", "row", type=int, default=0, show_default=True, help="Which image or frame.")
@click.option("--neutral", is_flag=True, help="Without pose and expression: the identity alone.")
@force_option
def mesh(source, out, head_model, landmark_embedding, row, neutral, force) -> None:
    """The head in SOURCE (npz of encode, or track.npz) as a mesh, metres, y up; glTF has its albedo."""
    from recon4d import head as heads

    from flame_encoder import export

    claim_output(out, force)
    model = heads.load(head_model, landmark_embedding)
    vertices, texture = export.vertices_of(source, model, row, neutral)
    export.write(out, model, vertices, texture)
    size = vertices.max(0).values - vertices.min(0).values
    print_result({"out": str(out), "vertices": len(vertices), "size_m": [round(float(x), 4) for x in size]})
