"""The command line: options in, one function per command, its result out."""

from dataclasses import asdict
from typing import Any

import click
from recon4d.cli import Command, Group, Real, device_option, force_option, log, print_result, seed_option

from flux4d.options import (
    MOST,
    PathType,
    camera_option,
    cameras_option,
    checkpoint_option,
    clip_option,
    config_option,
    engine_option,
    fps_option,
    index_option,
    names,
    out_option,
    root_option,
    run_option,
    set_option,
    settings_option,
    sky_option,
    slow_option,
    training_options,
    workers_option,
)


@click.group(cls=Group)
@click.version_option(package_name="flux4d")
def main() -> None:
    """Driving scenes as moving 3-D Gaussians, from cameras and LiDAR in one network pass."""


@main.command(cls=Command)
@click.argument("root", type=PathType)
@click.option("--scenes", type=click.IntRange(1, 999), default=1, show_default=True, help="How many.")
@click.option("--first", type=click.IntRange(1, 999), default=1, show_default=True, help="Number of the first.")
@click.option(
    "--frames", type=click.IntRange(2, 10_000), default=80, show_default=True, help="Frames per scene, 10 Hz."
)
@click.option("--width", type=click.IntRange(32, 3840), default=480, show_default=True, help="Of the images.")
@click.option(
    "--columns", type=click.IntRange(24, 20_000), default=1800, show_default=True, help="LiDAR directions per turn."
)
@click.option("--samples", type=click.IntRange(1, 8), default=2, show_default=True, help="Rays per pixel, squared.")
@click.option(
    "--streets",
    "kind",
    type=click.Choice(["plain", "varied"]),
    default="plain",
    show_default=True,
    help="Town streets, or any road, light, weather and sensors.",
)
@click.option("--cameras", callback=names, default="front_camera", show_default=True, help="Cameras, with commas.")
@workers_option
@seed_option
@force_option
def synth(**options: Any) -> None:
    """Write driving scenes with known depth and motion into ROOT, in PandaSet's layout."""
    from flux4d.synth import write_scenes

    print_result(write_scenes(**options))


@main.command("import", cls=Command)
@click.argument("layout", type=click.Choice(["kitti", "nuscenes", "argoverse2", "waymo", "folder"]))
@click.argument("source", type=PathType)
@click.argument("out", type=PathType)
@click.option("--poses", help="A file, 12 numbers a sweep; oxts; or kiss-icp.  [default: those of the log]")
@click.option(
    "--rate", type=Real(0.1, 1000), default=10.0, show_default=True, help="Sweeps a second where no times are given."
)
@click.option(
    "--no-deskew", "deskew", flag_value=False, default=True, help="Points are where they were at the sweep's own time."
)
@click.option("--scenes", callback=names, help="Of several logs these, with commas.  [default: all]")
@click.option("--cameras", callback=names, help="These, with commas: front_camera,left_camera.  [default: all]")
@click.option(
    "--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes, of several logs."
)
@engine_option
@force_option
def import_(**options: Any) -> None:
    """Bring a log, SOURCE, into PandaSet's layout as the scene OUT; or a folder of logs as the scenes in OUT."""
    from flux4d.imports import import_log

    print_result(import_log(**options, log=log))


@main.command(cls=Command)
@click.option("--data-root", required=True, type=PathType, help="The folder of scenes.")
@click.option("--out-full", required=True, type=PathType, help="Index of all scenes (JSON).")
@click.option("--out-tiny", type=PathType, help="Index of a few scenes.")
@click.option("--preset", type=click.Choice(["paper", "debug"]), help="How to cut.  [default: paper]")
@click.option(
    "--clip-len-s", "clip_seconds", type=Real(0, 3600), help="Seconds per clip; implies debug.  [default: 1.0]"
)
@click.option(
    "--stride-s", "stride_seconds", type=Real(0, 3600), help="Seconds from clip to clip; implies debug.  [default: 1.0]"
)
@click.option("--tiny-scenes", callback=names, help="Scenes of the tiny index: 001,002.")
@click.option(
    "--tiny-num-scenes",
    "tiny_number",
    type=click.IntRange(1, MOST),
    default=2,
    show_default=True,
    help="Or the first so many.",
)
@click.option("--val-scenes", callback=names, help="Scenes to test on: 010,020.  [default: the paper's]")
@click.option("--cameras", callback=names, default="front_camera", show_default=True, help="Cameras, with commas.")
@workers_option
@engine_option
@force_option
def index(**options: Any) -> None:
    """Cut scenes into clips. The paper's preset: 11 and 16 frames to train on, 16 to test on."""
    from flux4d.indices import write_clips

    print_result(write_clips(**options, log=log))


@main.command("vis-lift", cls=Command)
@index_option
@root_option
@clip_option
@click.option(
    "--frame-index", "frame", type=click.IntRange(0, MOST), default=0, show_default=True, help="Position in the clip."
)
@camera_option
@out_option("out/lift_alignment")
@force_option
def vis_lift(**options: Any) -> None:
    """Draw the LiDAR points of a frame over its image, coloured by depth, to see whether they align."""
    from flux4d.pictures import write_alignment

    print_result(write_alignment(**options))


@main.command("inspect-voxels", cls=Command)
@config_option
@index_option
@root_option
@clip_option
@camera_option
@sky_option
@set_option
def inspect_voxels(**options: Any) -> None:
    """Lift a clip, sort its Gaussians into voxels, and print what came of it."""
    from flux4d.samples import inspect

    print_result(inspect(**options))


@main.command(cls=Command)
@click.option("--clip-index", type=click.IntRange(0, MOST), help="Number of a clip.  [default: 0]")
@training_options
@click.option(
    "--fixed-target-frame",
    "fixed_frame",
    type=click.IntRange(0, MOST),
    help="Compare with this frame only.  [default: random frames]",
)
@run_option("out/overfit")
@device_option
def overfit(**options: Any) -> None:
    """Train on one clip, to see whether every part does its work."""
    from flux4d.training import start

    print_result(asdict(start(**options, one_clip=True, log=log)))


@main.command(cls=Command)
@training_options
@run_option("out/train")
@click.option(
    "--processes", type=click.IntRange(1, 1024), default=1, show_default=True, help="On this machine; or torchrun."
)
@device_option
def train(**options: Any) -> None:
    """Train on all clips of an index's train split."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from flux4d.training import start

    result = start(**options, log=log)
    rank_zero_only(print_result)(asdict(result))  # the other processes of --processes or torchrun end here too


@main.command("eval", cls=Command)
@settings_option
@index_option
@root_option
@checkpoint_option
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Which clips.")
@click.option("--clip-index", type=click.IntRange(0, MOST), help="One clip by its number.  [default: all of the split]")
@cameras_option
@out_option("out/eval")
@click.option("--save-renders", is_flag=True, help="Write truth, render, depth and motion of each target frame.")
@set_option
@device_option
@force_option
def eval_(**options: Any) -> None:
    """Measure a network: images, depth, scene flow; whole and moving things, interpolation and future. metrics.json."""
    from flux4d.evaluation import evaluate

    print_result(evaluate(**options, log=log))


@main.command("vis-flow", cls=Command)
@settings_option
@index_option
@root_option
@clip_option
@click.option("--camera", help="Whose images.  [default: the checkpoint's]")
@checkpoint_option
@out_option("out/flow")
@click.option(
    "--mode",
    type=click.Choice(["fixed", "follow", "both"]),
    default="both",
    show_default=True,
    help="The camera stands at --frame-ref, or moves along.",
)
@click.option("--render-frames", "frames", default="0-15", show_default=True, help="Frames of the clip: 0-15 or 0,3,5.")
@click.option(
    "--frame-ref",
    "reference",
    type=click.IntRange(0, MOST),
    default=0,
    show_default=True,
    help="Where the fixed camera stands.",
)
@set_option
@device_option
@force_option
def vis_flow(**options: Any) -> None:
    """Draw the image-plane motion of a clip: hue is direction, brightness speed, up to 10 pixels per frame."""
    from flux4d.pictures import write_flow

    print_result(write_flow(**options))


@main.command(cls=Command)
@index_option
@root_option
@clip_option
@checkpoint_option
@cameras_option
@out_option("out/scene")
@click.option(
    "--static",
    type=click.Choice(["ply", "spz", "sog", "splat"]),
    multiple=True,
    help="Also the first moment as static.*, for any viewer.",
)
@fps_option
@slow_option
@set_option
@device_option
@force_option
def reconstruct(**options: Any) -> None:
    """A clip as Gaussians with velocities (scene.ply, cameras.json) and a video along its path (render.mp4)."""
    from flux4d.scenes import reconstruct

    print_result(reconstruct(**options, log=log))


@main.command(cls=Command)
@click.argument("scene_dir", type=PathType)
@click.option(
    "--remove", "removed", type=click.IntRange(0, MOST), multiple=True, metavar="ACTOR", help="Take an actor away."
)
@click.option(
    "--move", "moves", nargs=4, type=Real(), multiple=True, metavar="ACTOR DX DY DZ", help="Shift one, metres."
)
@click.option(
    "--add", "copies", nargs=4, type=Real(), multiple=True, metavar="ACTOR DX DY DZ", help="Add a shifted copy."
)
@click.option("--min-speed", type=Real(0), default=0.5, show_default=True, help="m/s; what is slower stands.")
@click.option(
    "--distance",
    type=Real(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Metres between a cluster's neighbours.",
)
@out_option("out/edited")
@fps_option
@slow_option
@force_option
def edit(**options: Any) -> None:
    """List the moving actors of SCENE_DIR (a folder of reconstruct); with an option, change them and render."""
    from flux4d.actors import edit

    print_result(edit(**options))


@main.command(cls=Command)
@click.argument("scene_dir", type=PathType)
@click.option("--host", default="localhost", show_default=True, help="Where to listen; 0.0.0.0 for other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for any free one.")
def view(**options: Any) -> None:
    """Show SCENE_DIR (a folder of reconstruct or edit) in the browser: a slider for time, a free camera."""
    from flux4d.viewer import serve

    serve(**options, announce=lambda page: print_result({"page": page}), log=log)
