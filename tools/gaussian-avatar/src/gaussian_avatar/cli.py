"""The command line: options in, one function per command, its result out."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
from recon4d import InputError
from recon4d.cli import (
    Group,
    claim_output,
    device_option,
    force_option,
    log,
    pick_device,
    print_result,
    seed_option,
)


class Command(click.Command):
    """A command whose options may also be written with underscores, as RGBAvatar's are: --work_name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts + parameter.secondary_opts}

        def dashed(word: str) -> str:
            name, equals, value = word.partition("=")
            other = "--" + name[2:].replace("_", "-")
            return other + equals + value if name.startswith("--") and other in known else word

        return super().parse_args(ctx, [dashed(word) for word in args])


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
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: the open head]")
@seed_option
@force_option
def synth(
    folder: Path,
    subject: str,
    frames: int,
    size: int,
    fps: float,
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
    print_result(synthesis.synthesise(out, run.load_head(head_model), frames, size, fps, seed))


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
@click.option("--preset", type=click.Choice(["offline", "cpu-quick"]), help="The same, by name only.")
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
    from gaussian_avatar import config as settings
    from gaussian_avatar import memory, run, training
    from gaussian_avatar import motion as motions

    if config and preset:
        raise InputError("--config and --preset exclude each other; give one")
    if resume and force:
        raise InputError("--resume goes on with what --force would delete; give one")
    out = run.folder_of(output_dir, subject, work_name)
    if resume:
        if not (out / "config.yaml").is_file():
            raise InputError(f"{out} holds no run to resume; leave --resume away")
        if config or preset or overrides or seed is not None or split or head_model:
            raise InputError("--resume goes on with the run's own settings; give only --subject and --work-name")
        chosen = settings.load(out / "config.yaml", data_dir=data_dir)
    else:
        if preload is not None:
            overrides = (*overrides, f"data.preload={str(preload).lower()}")
        chosen = settings.load(
            config or preset or "offline",
            overrides,
            data_dir=data_dir,
            output_dir=output_dir,
            head_model=head_model,
            split=split,
            seed=seed,
        )
        claim_output(out, force)
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
@click.option(
    "--split", type=int, help="First frame to measure; -350 is the last 350.  [default: the run's test split]"
)
@click.option("--data-dir", help="Where subjects are.  [default: as in training]")
@click.option("--head-model", type=click.Path(), help="A FLAME file.  [default: as in training]")
@device_option
def metrics(
    subject: str,
    work_name: str,
    output_dir: str,
    split: int | None,
    data_dir: str | None,
    head_model: str | None,
    device: str,
) -> None:
    """Compare renders with held-out images: metrics.json, .npz, .txt and contact.png, in the run's folder."""
    from gaussian_avatar import evaluation, run
    from gaussian_avatar.images import write_png

    trained = run.open_run(run.folder_of(output_dir, subject, work_name), pick_device(device), head_model)
    images_dir = Path(data_dir or trained.config.data_dir) / subject
    if not (images_dir / "images").is_dir():
        raise InputError(f"{images_dir / 'images'} is not a folder; name the training data's place with --data-dir")
    frames = run.held_out(trained, split, log)
    values = evaluation.measure(trained, frames, images_dir, log)
    means = evaluation.summary(values, trained)
    evaluation.write_metrics(trained.folder, values, means)
    write_png(trained.folder / "contact.png", evaluation.contact_sheet(trained, frames, images_dir))
    print_result(means)


@main.command(cls=Command)
@run_options
@click.option("--white-bg", is_flag=True, help="White background.  [default: black]")
@click.option("--alpha", is_flag=True, help="RGBA images.")
@click.option("--track", type=click.Path(path_type=Path), help="Another clip's track.npz to follow.")
@click.option("--turn", type=click.FloatRange(0, 180), metavar="DEGREES", help="End the video with a turn of the head.")
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
    head_model: str | None,
    device: str,
) -> None:
    """Render the clip, or another one's motion, to render_image/*.png and render.mp4 in the run's folder."""
    from gaussian_avatar import rendering, run

    trained = run.open_run(run.folder_of(output_dir, subject, work_name), pick_device(device), head_model)
    result = rendering.write_render(trained, track, white_bg, alpha, turn)
    print_result({**result, "video": str(trained.folder / "render.mp4")})
