"""The command line: options in, one function per command, its result out."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import click
from recon4d import InputError
from recon4d.cli import (
    Command,
    Group,
    claim_output,
    device_option,
    force_option,
    log,
    pick_device,
    print_result,
    progress,
    seed_option,
)

from gaussian_avatar import config as settings


def run_options(command: Callable) -> Callable:
    """The options that name a run."""
    for option in (
        click.option("--output-dir", default="output", show_default=True, help="Where runs are."),
        click.option("--work-name", default="default", show_default=True, help="The run's name."),
        click.option("--subject", default="bala", show_default=True, help="The person's folder name."),
    ):
        command = option(command)
    return command


@click.group(cls=Group)
@click.version_option(package_name="gaussian-avatar")
def main() -> None:
    """An animatable Gaussian head avatar from a tracked portrait video."""


@main.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--subject", default="synthetic", show_default=True, help="Name of the folder in FOLDER.")
@click.option("--frames", type=click.IntRange(2), default=144, show_default=True, help="Frames.")
@click.option("--size", type=click.IntRange(32, 4096), default=256, show_default=True, help="Pixels per side.")
@click.option("--fps", type=click.FloatRange(1, 240), default=25.0, show_default=True, help="Frames per second.")
@click.option("--motion", type=click.Choice(["portrait", "frontal-then-turn"]), default="portrait", show_default=True)
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
    head_model: str | None,
    seed: int,
    force: bool,
) -> None:
    """Render a capture with known parameters into FOLDER/SUBJECT: images, tracker frames, track.npz, capture.mp4."""
    from gaussian_avatar import run
    from gaussian_avatar import synth as synthesis

    out = claim_output(folder / run.plain_name("--subject", subject), force)
    if size % 2:
        raise InputError(f"--size {size} must be even: the video's colours are stored at half the size")
    print_result(synthesis.synthesise(out, run.load_head(head_model), frames, size, fps, seed, motion))


@main.command("import", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: the open head]")
def import_(folder: Path, head_model: str | None) -> None:
    """Check a subject's FOLDER, as INSTA or flame-encoder leaves it, and print what it holds.

    Reads every image and frame; the first thing that training would stumble over is named.
    """
    from gaussian_avatar import capture as captures
    from gaussian_avatar import motion as motions
    from gaussian_avatar import run

    head = run.load_head(head_model)
    capture = captures.open_capture(folder, None, log)
    motions.check_track(capture.track, head, str(folder))
    print_result(captures.summary(capture))


@main.command(cls=Command)
@run_options
@click.option("--config", default=None, help="A YAML file, or: offline, cpu-quick.  [default: offline]")
@click.option("--preset", type=click.Choice(settings.OFFLINE), help="The same, by name only.")
@click.option("--data-dir", help="Where subjects are.  [default: from the config]")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: the open head]")
@click.option("--split", type=click.Choice(["train", "test", "all"]), help="Frames to train on.  [default: train]")
@click.option("--preload/--no-preload", default=None, help="Keep all images in memory.  [default: from the config]")
@click.option("--log", "tensorboard", is_flag=True, help="Write TensorBoard events.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting of the config.")
@device_option
@click.option("--seed", type=int, help="Seed of all random numbers.  [default: from the config]")
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
    preload: bool | None,
    tensorboard: bool,
    resume: bool,
    overrides: tuple[str, ...],
    device: str,
    seed: int | None,
    force: bool,
) -> None:
    """Train on DATA_DIR/SUBJECT (images and track.npz or checkpoint); write OUTPUT_DIR/SUBJECT/WORK_NAME."""
    from gaussian_avatar import capture as captures
    from gaussian_avatar import memory, run, training
    from gaussian_avatar import motion as motions

    if preload is not None:
        overrides = (*overrides, f"data.preload={str(preload).lower()}")
    out = run.folder_of(output_dir, subject, work_name)
    top = {"output_dir": output_dir, "head_model": head_model, "split": split, "seed": seed}
    chosen = _settings(out, config, preset, "offline", overrides, resume, force, data_dir, top)
    torch_device = pick_device(device)
    head = run.load_head(chosen.head_model)
    folder = Path(chosen.data_dir) / run.plain_name("--subject", subject)
    capture = captures.open_capture(folder, chosen.data.image_size, log)
    motions.check_track(capture.track, head, str(folder))
    frames = captures.choose_frames(capture, chosen, chosen.split, log)
    memory.check(chosen, capture, head, frames, torch_device)
    images = None
    if chosen.data.preload:
        images = captures.preload(capture, frames, pin=torch_device.type == "cuda")
    else:
        captures.check_images(capture, frames)
    if force and out.exists():
        shutil.rmtree(out)
    settings.write(out / "config.yaml", chosen)
    capture.track.write(out / "track.npz")
    motion = motions.resized(motions.from_track(capture.track, head), capture.width, capture.height)
    result = training.train(
        chosen,
        capture,
        motion,
        head,
        frames,
        images,
        out,
        torch_device,
        resume=resume,
        tensorboard=tensorboard,
        log=log,
    )
    print_result({**asdict(result), "folder": str(out)})


@main.command(cls=Command)
@run_options
@click.option("--config", default=None, help="A YAML file, or: online, cpu-online.  [default: online]")
@click.option("--preset", type=click.Choice(settings.ONLINE), help="The same, by name only.")
@click.option("--data-dir", help="Where subjects are.  [default: from the config]")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: the open head]")
@click.option("--split", type=click.Choice(["train", "test", "all"]), help="Frames that arrive.  [default: train]")
@click.option(
    "--video-fps", type=click.FloatRange(0, min_open=True), default=25.0, show_default=True, help="Pace by the clock."
)
@click.option("--images-per-frame", type=click.FloatRange(0, min_open=True), help="Pace by work instead.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Times the clip is shown.")
@click.option("--stream", type=click.File(), help="Tracked frames from a pipe (-) or file instead of the folder.")
@click.option("--images", type=click.Path(), help="The stream's pictures.  [default: the subject's images]")
@click.option("--masks", type=click.Path(), help="Greyscale masks, for pictures without alpha.")
@click.option("--post-steps", type=click.IntRange(0), help="Steps after the stream.  [default: from the config]")
@click.option("--log", "tensorboard", is_flag=True, help="Write TensorBoard events.")
@click.option("--resume", is_flag=True, help="Go on with the run's avatar.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting of the config.")
@device_option
@click.option("--seed", type=int, help="Seed of all random numbers.  [default: from the config]")
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
    video_fps: float,
    images_per_frame: float | None,
    repeat: int,
    stream: TextIO | None,
    images: str | None,
    masks: str | None,
    post_steps: int | None,
    tensorboard: bool,
    resume: bool,
    overrides: tuple[str, ...],
    device: str,
    seed: int | None,
    force: bool,
) -> None:
    """Train while frames arrive: DATA_DIR/SUBJECT's at --video-fps, or a tracker's through --stream -."""
    from gaussian_avatar import online, run
    from gaussian_avatar import stream as streams

    if stream is None and (images or masks):
        raise InputError("--images and --masks are for the frames of --stream; a subject's folder has its own")
    if stream is not None and (split or repeat > 1):
        raise InputError("--split and --repeat need a clip whose end is known; leave them away with --stream")
    replaced = {"images": images, "masks": masks, "post_steps": post_steps}
    overrides = (*overrides, *(f"online.{key}={value}" for key, value in replaced.items() if value is not None))
    out = run.folder_of(output_dir, subject, work_name)
    top = {"output_dir": output_dir, "head_model": head_model, "split": "all" if stream else split, "seed": seed}
    chosen = _settings(out, config, preset, "online", overrides, resume, force, data_dir, top)
    torch_device = pick_device(device)
    head = run.load_head(chosen.head_model)
    folder = Path(chosen.data_dir) / run.plain_name("--subject", subject)
    if stream is None:
        source = streams.from_folder(folder, head, chosen, torch_device, repeat, log)
    else:
        source = streams.from_pipe(stream, folder, head, chosen)
    if images_per_frame is not None:
        arrivals = streams.in_step(source.frames, images_per_frame / chosen.train.batch_size)
    else:
        paced = streams.paced(source.arrivals, video_fps) if stream is None else source.arrivals
        arrivals = streams.as_they_come(paced, source.pose)
    if force and out.exists():
        shutil.rmtree(out)
    settings.write(out / "config.yaml", chosen)
    result = online.train(chosen, head, arrivals, source, out, torch_device, resume, tensorboard, log)
    print_result({**asdict(result), "folder": str(out)})


def _settings(
    out: Path,
    config: str | None,
    preset: str | None,
    default: str,
    overrides: tuple[str, ...],
    resume: bool,
    force: bool,
    data_dir: str | None,
    top: dict[str, Any],
) -> settings.Config:
    """The settings of a training run: chosen ones, or those of the run to resume. Its folder `out` is claimed."""
    if config and preset:
        raise InputError("--config and --preset exclude each other; give one")
    if resume and force:
        raise InputError("--resume goes on with what --force would delete; give one")
    if not resume:
        claim_output(out, force)
        return settings.load(config or preset or default, overrides, data_dir=data_dir, **top)
    if not (out / "config.yaml").is_file():
        raise InputError(f"{out} holds no run to resume; leave --resume away")
    given = [key for key, value in top.items() if value is not None and key not in ("output_dir", "split")]
    if config or preset or overrides or given:
        raise InputError("--resume goes on with the run's own settings; give only --subject and --work-name")
    return settings.load(out / "config.yaml", data_dir=data_dir)


@main.command(cls=Command)
@run_options
@click.option(
    "--split", type=int, help="First frame to measure; -350 is the last 350.  [default: the run's test split]"
)
@click.option("--data-dir", help="Where subjects are.  [default: as in training]")
@click.option("--refine-pose", is_flag=True, help="Also with each pose fitted to the image it is measured on.")
@click.option("--model", type=click.Path(), help="Another file of the avatar.  [default: the run's model.ply]")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: as in training]")
@device_option
def metrics(
    subject: str,
    work_name: str,
    output_dir: str,
    split: int | None,
    data_dir: str | None,
    refine_pose: bool,
    model: str | None,
    head_model: str | None,
    device: str,
) -> None:
    """Compare renders with held-out images: metrics.json, .npz, .txt and contact.png, in the run's folder."""
    from gaussian_avatar import evaluation, run
    from gaussian_avatar.images import write_png

    trained = run.open_run(run.folder_of(output_dir, subject, work_name), pick_device(device), head_model, model)
    capture = run.pictures(trained, Path(data_dir or trained.config.data_dir) / subject)
    frames = run.held_out(trained, split, log)
    values = evaluation.measure(trained, frames, capture, log, refine_pose)
    means = evaluation.summary(values, trained)
    evaluation.write_metrics(trained.folder, values, means)
    write_png(trained.folder / "contact.png", evaluation.contact_sheet(trained, frames, capture))
    print_result(means)


@main.command(cls=Command)
@run_options
@click.option("--white-bg", is_flag=True, help="White background.  [default: black]")
@click.option("--alpha", is_flag=True, help="RGBA images.")
@click.option("--track", type=click.Path(path_type=Path), help="Another clip's track.npz to follow.")
@click.option("--turn", type=click.FloatRange(0, 180), metavar="DEGREES", help="End the video with a turn of the head.")
@click.option("--model", type=click.Path(), help="Another file of the avatar.  [default: the run's model.ply]")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: as in training]")
@device_option
def render(
    subject: str,
    work_name: str,
    output_dir: str,
    white_bg: bool,
    alpha: bool,
    track: Path | None,
    turn: float | None,
    model: str | None,
    head_model: str | None,
    device: str,
) -> None:
    """Render the clip, or another one's motion, to render_image/*.png and render.mp4 in the run's folder."""
    from gaussian_avatar import rendering, run

    trained = run.open_run(run.folder_of(output_dir, subject, work_name), pick_device(device), head_model, model)
    result = rendering.write_render(trained, track, white_bg, alpha, turn)
    print_result({**result, "video": str(trained.folder / "render.mp4")})


@main.command(cls=Command)
@run_options
@click.option("--format", "kind", type=click.Choice(["ply", "safetensors"]), default="ply", show_default=True)
@click.option(
    "--frames", type=click.Choice(["frontal", "all"]), default="frontal", show_default=True, help="PLY files."
)
@click.option("--track", type=click.Path(path_type=Path), help="Another clip's track.npz to take all frames of.")
@click.option("--expression", "expressions", multiple=True, metavar="NAME=VALUE", help="Instead of the frame's own.")
@click.option("--jaw", type=click.FloatRange(-5, 40), metavar="DEGREES", help="Instead of the frame's own.")
@click.option(
    "--bits", type=click.Choice(["8", "16"]), default="8", show_default=True, help="Of the compact file's basis."
)
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
    expressions: tuple[str, ...],
    jaw: float | None,
    bits: str,
    model: str | None,
    head_model: str | None,
    device: str,
    force: bool,
) -> None:
    """Write export/*.ply, static Gaussians for any 3DGS viewer, or the whole avatar as model.safetensors."""
    from gaussian_avatar import export as exports
    from gaussian_avatar import rendering, run

    folder = run.folder_of(output_dir, subject, work_name)
    trained = run.open_run(folder, pick_device(device), head_model, model)
    if kind == "safetensors":
        path = claim_output(folder / "model.safetensors", force)
        print_result(exports.write_compact(trained, path, int(bits)))
        return
    if (expressions or jaw is not None) and (track or frames == "all"):
        raise InputError("--expression and --jaw make one face; leave --frames and --track away")
    out = claim_output(folder / "export", force)
    if track or frames == "all":
        motion, _ = rendering.driving_motion(trained, track)
        chosen = range(len(motion))
    else:
        motion, chosen = exports.posed(trained, expressions, jaw), range(1)
    for stale in out.glob("*.ply"):
        stale.unlink()
    paths = list(progress(exports.write_statics(trained, motion, chosen, out), "writing", len(chosen)))
    print_result({"files": len(paths), "first": str(paths[0]), "bytes": sum(path.stat().st_size for path in paths)})


@main.command(cls=Command)
@run_options
@click.option("--track", type=click.Path(path_type=Path), help="Another clip's track.npz to follow.")
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
    host: str,
    port: int,
    open_browser: bool,
    head_model: str | None,
    device: str,
) -> None:
    """Show the avatar in the browser, also while it is being trained; print the page's address, run until Ctrl-C."""
    from gaussian_avatar import run
    from gaussian_avatar import view as viewer

    trained = run.open_run(run.folder_of(output_dir, subject, work_name), pick_device(device), head_model)
    viewer.serve(trained, track, host, port, open_browser, lambda page: print_result({"page": page}), log)
