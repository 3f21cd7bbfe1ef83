"""The flame-encoder command: options in, one function per command, its result out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from recon4d.cli import Group, Real, device_option, force_option, log, print_result, progress, progress_bar, seed_type
from recon4d.files import InputError
from recon4d.parallel import ENGINES

Count = click.IntRange
F = TypeVar("F", bound=Callable[..., Any])
path_type = click.Path(path_type=Path)
head_options = [
    click.option("--head-model", type=path_type, help="FLAME .pkl or .npz; the open head when not given."),
    click.option(
        "--landmark-embedding", type=path_type, help="68-landmark embedding of that model (DECA's .npy, or .npz)."
    ),
]

focal_option = click.option(
    "--focal", type=Real(0, 1e6, min_open=True), help="Focal length in pixels; estimated when not given."
)
write_option = click.option(
    "--write",
    type=click.Choice(["arkit", "vhap"]),
    multiple=True,
    help="More formats: arkit.csv (Live Link Face; of the open head), vhap/ (of FLAME).",
)


def with_head(command: F) -> F:
    """The options that choose a head model."""
    for option in reversed(head_options):
        command = option(command)
    return command


@click.group(cls=Group)
@click.version_option(package_name="flame-encoder")
def main() -> None:
    """Head-model parameters of a person from a video."""


@main.command()
@click.argument("frames", type=path_type)
@click.option("--landmarks", type=path_type, help="Folder of <frame>.npy, or one npz of all frames.")
@click.option("--out", type=path_type, help="Folder to write.")
@with_head
@click.option(
    "--person",
    type=Count(0, 1000),
    default=0,
    show_default=True,
    help="Whose face: 0 is who is in most frames.",
)
@click.option("--identity", type=path_type, help="Who it is: a file of encode, with --same-person or of one picture.")
@focal_option
@click.option(
    "--fps", type=Real(0, 1e5, min_open=True), help="Frames per second; from frames.jsonl when not given, else 30."
)
@click.option("--iterations", type=Count(1, 10_000), default=40, show_default=True, help="Solver steps at most.")
@click.option("--photometric", is_flag=True, help="Refine on the images too.")
@click.option(
    "--init",
    type=click.Choice(["pnp", "encoder"]),
    default="pnp",
    show_default=True,
    help="Where to start; encoder replaces wrong landmarks too.",
)
@click.option("--encoder", type=path_type, help="--init encoder: weights of train; the shipped ones if not given.")
@click.option(
    "--stream", "live", is_flag=True, help="Write each frame to stdout as it is tracked, a line of JSON each."
)
@click.option(
    "--calibrate",
    type=Count(1, 10_000),
    default=45,
    show_default=True,
    help="--stream: frames that fix the identity.",
)
@click.option("--follow", is_flag=True, help="--stream: wait for frames that are still being written.")
@click.option(
    "--timeout",
    type=Real(0, 1e6, min_open=True),
    default=30,
    show_default=True,
    help="--follow: seconds without a new frame.",
)
@write_option
@click.option("--preview/--no-preview", default=True, show_default=True, help="Write overlay.png and overlay.mp4.")
@force_option
def track(live: bool, photometric: bool, calibrate: int, follow: bool, timeout: float, **options: Any) -> None:
    """Parameters of one person in every frame of FRAMES, from landmarks and, with --photometric, from the images.

    Writes track.npz, checkpoint/*.frame (the INSTA folder that gaussian-avatar reads), track.json, overlay.png and
    overlay.mp4, and prints the reprojection error as JSON; with --stream the frames are printed instead. Where FRAMES
    is - the lines of prep-faces camera are read and passed on with the pose added; nothing else is written.
    """
    from recon4d.formats.track_stream import frame_lines, header_line

    from flame_encoder.tracker import clip, stream

    if live and photometric:
        raise InputError("--photometric looks at the whole clip, which --stream does not have; leave one of them out")
    if follow and not live:
        raise InputError("--follow waits for frames, which only --stream can; add --stream")
    if str(options["frames"]) == "-":
        piped_track(live, options)
        return
    for name in ("landmarks", "out"):
        if options[name] is None:
            raise InputError(f"--{name} is missing; only the lines of a camera (track --stream -) go without")
    if not live:
        print_result(clip.track(**options, photometric=photometric, log=log, progress=progress_bar).figures)
        return
    parts = stream.track(**options, calibrate=calibrate, follow=follow, timeout=timeout)
    for number, part in enumerate(parts):
        for line in [*([] if number else [header_line(part)]), *frame_lines(part)]:
            click.echo(line)


def piped_track(live: bool, options: dict[str, Any]) -> None:
    """`track --stream -`."""
    import sys

    import recon4d.head

    from flame_encoder.tracker import piped, run

    if not live:
        raise InputError("FRAMES - is the lines of prep-faces camera, which only --stream reads; add it")
    for name in ("landmarks", "out", "encoder"):
        if options[name] is not None:
            raise InputError(f"--{name} is for folders of frames; leave it away with --stream -")
    head = recon4d.head.load(options["head_model"], options["landmark_embedding"])
    known = run.identity(options["identity"], head)
    piped.follow(sys.stdin, sys.stdout, head, focal=options["focal"], identity=known, log=log)


@main.command("track-clips")
@click.argument("frames", type=path_type)
@click.option("--landmarks", type=path_type, required=True, help="Folder with a folder of landmarks for each clip.")
@click.option("--out", type=path_type, required=True, help="Folder to write; gets a folder for each clip.")
@with_head
@focal_option
@click.option("--fps", type=Real(0, 1e5, min_open=True), help="Frames per second; 30 when not given.")
@click.option("--photometric", is_flag=True, help="Refine on the images too.")
@write_option
@click.option("--preview/--no-preview", default=False, show_default=True, help="Write overlay.png and overlay.mp4.")
@click.option("--workers", type=Count(1, 1024), help="Processes.  [default: one per core]")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="local",
    show_default=True,
    help="ray: by Ray Data on this machine or the cluster in RAY_ADDRESS.",
)
@force_option
def track_clips(frames: Path, **options: Any) -> None:
    """Track each clip of FRAMES, a folder with a folder of frames for each, as track does.

    Writes OUT/CLIP/track.npz and what else track writes, and OUT/tracks.jsonl, a line for each clip. A run that was
    killed goes on where it stopped.
    """
    from flame_encoder.tracker import clips

    def watched(items: Iterator[Any], total: int | None) -> Iterator[Any]:
        return progress(items, "tracking", total)

    print_result(clips.track_clips(frames, **options, watch=watched))


@main.command("check-model")
@click.argument("path", type=path_type, required=False)
@click.option("--landmark-embedding", type=path_type, help="68-landmark embedding of the model (DECA's .npy, or .npz).")
@click.option("--render", type=path_type, help="PNG to draw the mean head and its landmarks into.")
@click.option("--embed", is_flag=True, help="Learn where MediaPipe's points are on it; keep that beside PATH.")
@force_option
def check_model(
    path: Path | None, landmark_embedding: Path | None, render: Path | None, embed: bool, force: bool
) -> None:
    """Validate the head model in PATH (FLAME .pkl or .npz; the open head when not given) and print what it holds."""
    from flame_encoder import head_check

    progress = progress_bar if embed else None
    print_result(head_check.check(path, landmark_embedding, render=render, embed=progress, force=force))


@main.command("mean-face")
@click.option("--out", type=path_type, default="mean_face.png", show_default=True, help="PNG to write.")
@click.option("--show", is_flag=True, help="Open a window with the picture as well.")
@with_head
@click.option("--backbone", default="resnet50", show_default=True, help="A torchvision or timm model.")
@click.option("--weights", default="none", show_default=True, help="none, imagenet or the file of a state dict.")
@force_option
def mean_face(out: Path, show: bool, **options: Any) -> None:
    """Render the average face, and push a random image through a new encoder.

    Prints the shapes of the encoder's input, output and parts as JSON.
    """
    from flame_encoder.encoder import mean_face

    print_result(mean_face.draw(out, **options))
    if show:
        mean_face.show(out)


@main.command()
@click.option("--config", help="default, shipped, points, photographs, quick, or a YAML file.  [default: default]")
@click.option("--out", type=path_type, default="outputs", show_default=True, help="Folder of the run.")
@click.option("--images", type=path_type, help="Folder of images.")
@click.option("--landmarks", type=path_type, help="Folder of <image>.npy, as prep-faces writes them; found without.")
@click.option("--synthetic", type=Count(0, 10**9), help="Number of synthetic people, alone or beside the images.")
@click.option("--cache", type=path_type, help="Folder that keeps the synthetic people between epochs and runs.")
@with_head
@click.option("--backbone", help="A torchvision or timm model.")
@click.option("--weights", help="Its weights: none, imagenet or the file of a state dict.")
@click.option("--freeze", help="What of it stays as it is: backbone, none or first-N blocks.")
@click.option("--renderer", type=click.Choice(["recon4d", "pytorch3d"]), help="What draws for pixel and perceptual.")
@click.option("--batch-size", type=Count(1, 10**6), help="Images per step, of all processes together.")
@click.option("--workers", type=Count(0, 1024), help="Processes that prepare samples.")
@click.option("--devices", type=Count(1, 1024), default=1, show_default=True, help="Processes or GPUs to train on.")
@click.option("--nodes", type=Count(1, 1024), default=1, show_default=True, help="Machines; start with torchrun.")
@device_option
@click.option("--seed", type=seed_type, help="Seed of all random numbers.  [default: the config's]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with its own settings.")
@force_option
def train(
    config: str | None, out: Path, devices: int, nodes: int, device: str, resume: bool, force: bool, **options: Any
) -> None:
    """Train an encoder in stages, from images with landmarks, from synthetic people, or from both.

    The config is a list of stages, or all settings; options replace what it says. OUT gets config.yaml,
    checkpoint.pth, runs/ (TensorBoard), validation_images/ and eidolon_encoder_final.pth.
    """
    from flame_encoder.encoder import training
    from flame_encoder.encoder.config import load

    sections = {
        "": ("head_model", "landmark_embedding", "seed"),
        "data": ("images", "landmarks", "cache", "synthetic"),
        "encoder": ("backbone", "weights", "freeze"),
        "train": ("renderer", "batch_size", "workers"),
    }
    given = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    changes = {section: {key: given[key] for key in keys} for section, keys in sections.items()}
    own = resume and config is None and not any(value is not None for value in given.values())
    chosen = None if own else load(config or "default", changes)
    where: dict[str, Any] = {"device": device, "devices": devices, "nodes": nodes}
    figures = training.start(chosen, out, resume=resume, force=force, **where, log=log, progress=progress_bar)
    if figures is not None:
        print_result(figures)


def box_corners(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """`left,top,right,bottom` as four numbers."""
    if value is None:
        return None
    try:
        left, top, right, bottom = (float(part) for part in value.split(","))
    except ValueError as error:
        raise InputError(f"--box {value} is not left,top,right,bottom in pixels") from error
    return left, top, right, bottom


@main.command()
@click.argument("images", type=path_type, nargs=-1, required=True)
@click.option("--out", type=path_type, required=True, help="npz to write.")
@click.option("--encoder", type=path_type, help="File of flame-encoder train.  [default: shipped]")
@with_head
@click.option("--landmarks", type=path_type, help="Folder of <image>.npy, as prep-faces landmarks writes them.")
@click.option("--faces", type=path_type, help="faces.jsonl of prep-faces detect.")
@click.option("--box", callback=box_corners, help="left,top,right,bottom of the face, brows to chin, in all images.")
@click.option("--raw", is_flag=True, help="The network alone: no solver on the landmarks.")
@click.option("--picture/--no-picture", default=True, show_default=True, help="Use its colours: light, skin, edges.")
@click.option("--same-person", is_flag=True, help="All images show one person: one identity for all.")
@click.option("--overlay", type=path_type, help="PNG to draw the heads over the images into.")
@device_option
@force_option
def encode(images: tuple[Path, ...], out: Path, **options: Any) -> None:
    """The vector of the face in each of IMAGES (files or folders), one row per image.

    The face is where --landmarks, --faces or --box say; without them, the largest that the landmarker finds. The
    network's answer is refined on the face's landmarks, then on the picture; where no face is found it stays, and the
    file says so.
    """
    from flame_encoder.people import photographs

    found = photographs.encode(images, out, **options, log=log, progress=progress_bar)
    numbers = {"images": len(found.names), "faces": int(found.found.sum()), "refined": int(found.refined.sum())}
    numbers |= {"numbers": found.layout.size}
    print_result(numbers | {"head_model": found.head_model, "out": str(out)})


@main.command()
@click.argument("a", type=path_type)
@click.argument("b", type=path_type)
@click.option("--row", type=Count(0, 10**9), help="Which image of an npz A.")
@click.option("--encoder", type=path_type, help="File of flame-encoder train.  [default: shipped]")
@with_head
@click.option("--most", type=Count(1, 10**6), default=10, show_default=True, help="How many of B to tell.")
@device_option
def compare(a: Path, b: Path, **options: Any) -> None:
    """Whether the person of A is each of those of B, and how far apart their heads are in millimetres, as JSON.

    A and B are pictures, folders of pictures, or npz of encode; an npz of encode --same-person is one person. The
    likeliest of B comes first; `same` is null where it cannot be told. To sort the pictures of a project and to judge
    fits: it identifies nobody, and is no lock.
    """
    from flame_encoder.people import comparing

    print_result(comparing.compare(a, b, **options, log=log, progress=progress_bar))


@main.command()
@click.argument("source", type=path_type)
@click.option("--out", type=path_type, required=True, help="OBJ, PLY, glTF or GLB file to write.")
@with_head
@click.option(
    "--row", "--frame", "row", type=Count(0, 10**9), default=0, show_default=True, help="Which image or frame."
)
@click.option("--neutral", is_flag=True, help="Without pose and expression: the identity alone.")
@click.option("--texture", is_flag=True, help="OBJ: skin and eyes, as .mtl and .png beside it; glTF has them anyway.")
@force_option
def mesh(source: Path, out: Path, **options: Any) -> None:
    """The head in SOURCE (npz of encode, or track.npz) as a mesh, metres, y up; glTF has its albedo."""
    from flame_encoder import meshes

    vertices, _ = meshes.write(source, out, **options)
    size = vertices.max(0).values - vertices.min(0).values
    print_result({"out": str(out), "vertices": len(vertices), "size_m": [round(float(x), 4) for x in size]})
