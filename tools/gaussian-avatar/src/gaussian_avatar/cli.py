"""The command line: options in, one function per command, its result out."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TextIO

import click
from recon4d import InputError
from recon4d.cli import Command, Group, Real, device_option, force_option, log, print_result, seed_option, seed_type

from gaussian_avatar.config import OFFLINE, ONLINE

FILE = click.Path(path_type=Path)
FRAME = click.IntRange(-(10**9), 10**9)
Transfer = Literal["absolute", "relative"]
TRACK = "What to follow: a track.npz, ARKit's CSV, MediaPipe's JSON, .frame files, VHAP's, EMOCA's."


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that name a run."""
    for option in (
        click.option("--output-dir", default="output", show_default=True, help="Where runs are."),
        click.option("--work-name", default="default", show_default=True, help="The run's name."),
        click.option("--subject", default="bala", show_default=True, help="The person's folder name."),
    ):
        command = option(command)
    return command


def pair_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which image goes with which frame."""
    for option in (
        click.option("--frame-offset", type=FRAME, help="Image number less frame number.  [default: 0]"),
        click.option("--pairs", type=click.Choice(["all", "common"]), help="common: leave out what has no partner."),
    ):
        command = option(command)
    return command


def pair_settings(pairs: str | None, frame_offset: int | None) -> tuple[str, ...]:
    """The same as settings."""
    given = {"data.pairs": pairs, "data.frame_offset": frame_offset}
    return tuple(f"{key}={value}" for key, value in given.items() if value is not None)


def transfer_option(command: Callable[..., None]) -> Callable[..., None]:
    """The option that says how another person moves the avatar."""
    option = click.option(
        "--transfer",
        type=click.Choice(["absolute", "relative"]),
        default="absolute",
        show_default=True,
        help="relative: changes from rest only, of another person's face.",
    )
    return option(command)


def driver_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what moves the avatar, and how."""
    for option in (
        transfer_option,
        click.option(
            "--track-head-model", type=FILE, help="The FLAME file that --track is of.  [default: the avatar's]"
        ),
        click.option("--track", type=FILE, help=TRACK),
    ):
        command = option(command)
    return command


def plain_name(option: str, name: str) -> str:
    """The name, if it is one folder's and not a path. Raises InputError otherwise."""
    if not name or name in (".", "..") or Path(name).name != name:
        raise InputError(f"{option} {name!r} must be a plain folder name")
    return name


def run_folder(output_dir: str, subject: str, work_name: str) -> Path:
    """`<output_dir>/<subject>/<work_name>`. Raises InputError for names that are paths."""
    return Path(output_dir) / plain_name("--subject", subject) / plain_name("--work-name", work_name)


def data_folder(data_dir: str | None, subject: str) -> Path | None:
    """The subject's folder in `data_dir`; None where the settings say where it is."""
    return None if data_dir is None else Path(data_dir) / plain_name("--subject", subject)


def one_config(config: str | None, preset: str | None) -> str | None:
    """What --config or --preset says. Raises InputError when both do."""
    if config and preset:
        raise InputError("--config and --preset exclude each other; give one")
    return config or preset


@click.group(cls=Group)
@click.version_option(package_name="gaussian-avatar")
def main() -> None:
    """An animatable Gaussian head avatar from a tracked portrait video."""


@main.command(cls=Command)
@click.argument("folder", type=FILE)
@click.option("--subject", default="synthetic", show_default=True, help="Name of the folder in FOLDER.")
@click.option("--frames", type=click.IntRange(2, 10**6), default=144, show_default=True, help="Frames.")
@click.option("--size", type=click.IntRange(32, 4096), default=256, show_default=True, help="Pixels per side.")
@click.option("--fps", type=Real(1, 240), default=25.0, show_default=True, help="Frames per second.")
@click.option("--motion", type=click.Choice(["portrait", "frontal-then-turn"]), default="portrait", show_default=True)
@click.option("--cameras", type=click.IntRange(1, 100), default=1, show_default=True, help="Cameras around the head.")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: the open head]")
@seed_option
@force_option
def synth(
    folder: Path,
    subject: str,
    frames: int,
    size: int,
    fps: float,
    motion: str,
    cameras: int,
    head_model: str | None,
    seed: int,
    force: bool,
) -> None:
    """Render a capture with known parameters into FOLDER/SUBJECT: images, tracker frames, track.npz, capture.mp4."""
    from gaussian_avatar.synth import synthesise

    out = folder / plain_name("--subject", subject)
    print_result(synthesise(out, frames, size, fps, motion, head_model, seed, force, cameras))


@main.command("import", cls=Command)
@click.argument("folder", type=FILE)
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: the open head]")
@pair_options
def import_(folder: Path, head_model: str | None, pairs: str | None, frame_offset: int | None) -> None:
    """Check a subject's FOLDER, as INSTA or flame-encoder leaves it, and print what it holds.

    Reads every image and frame; the first thing that training would stumble over is named.
    """
    from gaussian_avatar.captures import inspect

    print_result(inspect(folder, head_model, log, frame_offset or 0, pairs == "common"))


@main.command(cls=Command)
@run_options
@click.option("--config", default=None, help="A YAML file, or: offline, cpu-quick, cpu-fine.  [default: offline]")
@click.option("--preset", type=click.Choice(OFFLINE), help="The same, by name only.")
@click.option("--data-dir", help="Where subjects are.  [default: from the config]")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: the open head]")
@click.option("--split", type=click.Choice(["train", "test", "all"]), help="Frames to train on.  [default: train]")
@pair_options
@click.option("--preload/--no-preload", default=None, help="Keep all images in memory.  [default: from the config]")
@click.option("--log", "tensorboard", is_flag=True, help="Write TensorBoard events.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting of the config.")
@device_option
@click.option("--seed", type=seed_type, help="Seed of all random numbers.  [default: from the config]")
@force_option
def train_offline(
    subject: str,
    work_name: str,
    output_dir: str,
    config: str | None,
    preset: str | None,
    data_dir: str | None,
    head_model: str | None,
    split: str | None,
    pairs: str | None,
    frame_offset: int | None,
    preload: bool | None,
    tensorboard: bool,
    resume: bool,
    overrides: tuple[str, ...],
    device: str,
    seed: int | None,
    force: bool,
) -> None:
    """Train on DATA_DIR/SUBJECT (images and track.npz or checkpoint); write OUTPUT_DIR/SUBJECT/WORK_NAME."""
    from gaussian_avatar import training

    result = training.start(
        run_folder(output_dir, subject, work_name),
        data_folder(data_dir, subject),
        one_config(config, preset),
        (
            *overrides,
            *pair_settings(pairs, frame_offset),
            *(() if preload is None else (f"data.preload={str(preload).lower()}",)),
        ),
        head_model=head_model,
        split=split,
        seed=seed,
        device=device,
        resume=resume,
        force=force,
        tensorboard=tensorboard,
        log=log,
    )
    print_result(asdict(result))


@main.command(cls=Command)
@run_options
@click.option("--config", default=None, help="A YAML file, or: online, cpu-online.  [default: online]")
@click.option("--preset", type=click.Choice(ONLINE), help="The same, by name only.")
@click.option("--data-dir", help="Where subjects are.  [default: from the config]")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: the open head]")
@click.option("--split", type=click.Choice(["train", "test", "all"]), help="Frames that arrive.  [default: train]")
@pair_options
@click.option(
    "--video-fps", type=Real(0, 1000, min_open=True), default=25.0, show_default=True, help="Pace by the clock."
)
@click.option("--images-per-frame", type=Real(0, 10000, min_open=True), help="Pace by work instead.")
@click.option("--repeat", type=click.IntRange(1, 10**6), default=1, show_default=True, help="Times the clip is shown.")
@click.option(
    "--stream", type=click.File(errors="replace"), help="Tracked frames from a pipe (-) or file instead of the folder."
)
@click.option("--images", type=click.Path(), help="The stream's pictures.  [default: the subject's images]")
@click.option("--masks", type=click.Path(), help="Greyscale masks, for pictures without alpha.")
@click.option("--post-steps", type=click.IntRange(0, 10**7), help="Steps after the stream.  [default: from the config]")
@click.option("--view", is_flag=True, help="A camera's stream: show camera and avatar in the browser.")
@click.option("--host", default="127.0.0.1", show_default=True, help="--view: address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="--view: 0 is any free one."
)
@click.option("--open/--no-open", "open_browser", default=False, show_default=True, help="--view: open the page.")
@click.option("--log", "tensorboard", is_flag=True, help="Write TensorBoard events.")
@click.option("--resume", is_flag=True, help="Go on with the run's avatar.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting of the config.")
@device_option
@click.option("--seed", type=seed_type, help="Seed of all random numbers.  [default: from the config]")
@force_option
def train_online(
    subject: str,
    work_name: str,
    output_dir: str,
    config: str | None,
    preset: str | None,
    data_dir: str | None,
    head_model: str | None,
    split: str | None,
    pairs: str | None,
    frame_offset: int | None,
    video_fps: float,
    images_per_frame: float | None,
    repeat: int,
    stream: TextIO | None,
    images: str | None,
    masks: str | None,
    post_steps: int | None,
    view: bool,
    host: str,
    port: int,
    open_browser: bool,
    tensorboard: bool,
    resume: bool,
    overrides: tuple[str, ...],
    device: str,
    seed: int | None,
    force: bool,
) -> None:
    """Train while frames arrive: DATA_DIR/SUBJECT's at --video-fps, or a tracker's or a camera's through --stream -."""
    from gaussian_avatar import online

    result = online.start(
        run_folder(output_dir, subject, work_name),
        data_folder(data_dir, subject),
        one_config(config, preset),
        (*overrides, *pair_settings(pairs, frame_offset)),
        stream=stream,
        images=images,
        masks=masks,
        video_fps=video_fps,
        images_per_frame=images_per_frame,
        repeat=repeat,
        post_steps=post_steps,
        head_model=head_model,
        split=split,
        seed=seed,
        device=device,
        resume=resume,
        force=force,
        tensorboard=tensorboard,
        view=view,
        host=host,
        port=port,
        open_browser=open_browser,
        log=log,
    )
    print_result(asdict(result))


@main.command(cls=Command)
@run_options
@click.option(
    "--split", type=FRAME, help="First frame to measure; -350 is the last 350.  [default: the run's test split]"
)
@click.option("--data-dir", help="Where subjects are.  [default: as in training]")
@click.option("--square", type=click.IntRange(32, 4096), help="Measure on squares of so many pixels around the head.")
@click.option("--refine-pose", is_flag=True, help="Also with each pose fitted to the image it is measured on.")
@click.option("--model", type=click.Path(), help="Another file of the avatar.  [default: the run's model.ply]")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: as in training]")
@device_option
@force_option
def metrics(
    subject: str,
    work_name: str,
    output_dir: str,
    split: int | None,
    data_dir: str | None,
    square: int | None,
    refine_pose: bool,
    model: str | None,
    head_model: str | None,
    device: str,
    force: bool,
) -> None:
    """Compare renders with held-out images: metrics.json, .npz, .txt and contact.png, in the run's folder."""
    from gaussian_avatar import evaluation, runs

    run = runs.open_run(run_folder(output_dir, subject, work_name), device, head_model, model)
    print_result(evaluation.evaluate(run, split, data_folder(data_dir, subject), refine_pose, force, log, square))


@main.command(cls=Command)
@run_options
@click.option("--white-bg", is_flag=True, help="White background.  [default: black]")
@click.option("--alpha", is_flag=True, help="RGBA images.")
@driver_options
@click.option("--turn", type=Real(0, 180), metavar="DEGREES", help="End the video with a turn of the head.")
@click.option("--model", type=click.Path(), help="Another file of the avatar.  [default: the run's model.ply]")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: as in training]")
@device_option
@force_option
def render(
    subject: str,
    work_name: str,
    output_dir: str,
    white_bg: bool,
    alpha: bool,
    track: Path | None,
    track_head_model: Path | None,
    transfer: Transfer,
    turn: float | None,
    model: str | None,
    head_model: str | None,
    device: str,
    force: bool,
) -> None:
    """Render the clip, or another one's motion, to render_image/*.png and render.mp4 in the run's folder."""
    from gaussian_avatar import rendering, runs

    run = runs.open_run(run_folder(output_dir, subject, work_name), device, head_model, model)
    print_result(rendering.write_render(run, track, white_bg, alpha, turn, force, transfer, log, track_head_model))


@main.command(cls=Command)
@run_options
@click.option(
    "--format",
    "kind",
    type=click.Choice(["ply", "spz", "sog", "splat", "safetensors", "html", "glb"]),
    default="ply",
    show_default=True,
)
@click.option(
    "--frames", type=click.Choice(["frontal", "all"]), default="frontal", show_default=True, help="Of static files."
)
@driver_options
@click.option("--expression", "expressions", multiple=True, metavar="NAME=VALUE", help="Instead of the frame's own.")
@click.option("--jaw", type=Real(-5, 40), metavar="DEGREES", help="Instead of the frame's own.")
@click.option("--bits", type=click.Choice(["8", "16"]), default="8", show_default=True, help="Of the basis in avatars.")
@click.option("--model", type=click.Path(), help="Another file of the avatar.  [default: the run's model.ply]")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: as in training]")
@device_option
@force_option
def export(
    subject: str,
    work_name: str,
    output_dir: str,
    kind: str,
    frames: str,
    track: Path | None,
    track_head_model: Path | None,
    transfer: Transfer,
    expressions: tuple[str, ...],
    jaw: float | None,
    bits: str,
    model: str | None,
    head_model: str | None,
    device: str,
    force: bool,
) -> None:
    """Write export/*.ply (.spz, .sog, .splat), static Gaussians; model.safetensors or avatar.html; or head.glb."""
    from gaussian_avatar import exports, gltf, pages, runs

    exports.check_options(kind, frames, track, expressions, jaw)
    run = runs.open_run(run_folder(output_dir, subject, work_name), device, head_model, model)
    if kind == "safetensors":
        print_result(exports.export_compact(run, int(bits), force))
    elif kind == "glb":
        print_result(gltf.export_head(run, force))
    elif kind == "html":
        print_result(pages.export_page(run, track, transfer, int(bits), force, log, track_head_model))
    else:
        driver = (track, expressions, jaw, force, kind, transfer, log, track_head_model)
        print_result(exports.export_frames(run, frames, *driver))


@main.command(cls=Command)
@run_options
@driver_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is the network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 is any free one.")
@click.option("--open/--no-open", "open_browser", default=False, show_default=True, help="Open the page in a browser.")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: as in training]")
@device_option
def view(
    subject: str,
    work_name: str,
    output_dir: str,
    track: Path | None,
    track_head_model: Path | None,
    transfer: Transfer,
    host: str,
    port: int,
    open_browser: bool,
    head_model: str | None,
    device: str,
) -> None:
    """Show the avatar in the browser, also while it is being trained; print the page's address, run until Ctrl-C."""
    from gaussian_avatar import runs, viewer

    run = runs.open_run(run_folder(output_dir, subject, work_name), device, head_model)

    def announce(page: str) -> None:
        print_result({"page": page})

    viewer.serve(run, track, host, port, open_browser, announce, log, transfer, track_head_model)
