"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from recon4d.cli import Real, force_option, seed_type

PathType = click.Path(path_type=Path)
MOST = 1_000_000_000

index_option = click.option("--index-path", required=True, type=PathType, help="Of flux4d index.")
root_option = click.option("--data-root", help="Where the scenes are now.  [default: as in the index]")
clip_option = click.option(
    "--clip-index", type=click.IntRange(0, MOST), default=0, show_default=True, help="Number of a clip."
)
camera_option = click.option("--camera", default="front_camera", show_default=True, help="Whose images.")
cameras_option = click.option("--camera", help="Whose images, or several with commas.  [default: the checkpoint's]")
config_option = click.option(
    "--config",
    default="cpu-quick",
    show_default=True,
    help="A YAML file, or: paper, cpu-quick, cpu-scenes, cpu-streets, shipped.",
)
set_option = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting.")
checkpoint_option = click.option(
    "--ckpt", "checkpoint", type=PathType, help="Of overfit or train.  [default: the network that ships]"
)
settings_option = click.option("--config", help="Settings of data and lift.  [default: the checkpoint's]")
sky_option = click.option(
    "--num-sky-points",
    "sky_points",
    type=click.IntRange(0, 50_000_000),
    help="On the half sphere.  [default: from the config]",
)
fps_option = click.option("--fps", type=Real(1, 120), default=30.0, show_default=True, help="Of the video.")
slow_option = click.option(
    "--slow", type=Real(0.1, 20), default=4.0, show_default=True, help="Video seconds per second."
)


workers_option = click.option("--workers", type=click.IntRange(1, 1024), help="Processes.  [default: one per core]")
engine_option = click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Processes of this machine, or Ray: RAY_ADDRESS names a cluster.",
)


def out_option(default: str) -> Callable[..., Any]:
    return click.option("--out-dir", type=PathType, default=default, show_default=True, help="Output.")


def run_option(default: str) -> Callable[..., Any]:
    return click.option("--output-dir", type=PathType, default=default, show_default=True, help="The run's folder.")


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What overfit and train share."""
    for option in (
        force_option,
        click.option("--seed", type=seed_type, help="Seed of all random numbers.  [default: from the config]"),
        click.option(
            "--grad-accum-steps",
            "accumulate",
            type=click.IntRange(1, 1000),
            help="Batches per step.  [default: 1]",
        ),
        click.option(
            "--resume-no-optim",
            "with_optimizer",
            flag_value=False,
            default=True,
            help="Leave the optimizer's state; parameters may differ.",
        ),
        click.option("--resume-from", type=PathType, help="A checkpoint to go on from."),
        click.option(
            "--init", type=click.Choice(["shipped"]), help="Begin with the network that ships, and its settings."
        ),
        click.option("--resume", is_flag=True, help="Go on from the output's ckpt_last.pt."),
        click.option(
            "--no-projected-depth", "projected_depth", flag_value=False, default=True, help="No loss on LiDAR depth."
        ),
        click.option("--iters", "iterations", type=click.IntRange(1, MOST), help="Steps.  [default: from the config]"),
        click.option("--depth-dir", help="Depth maps, SCENE/CAMERA/NN.npy or .png, for lift.points."),
        click.option(
            "--max-gaussians", type=click.IntRange(1, MOST), help="Most Gaussians.  [default: from the config]"
        ),
        sky_option,
        set_option,
        click.option(
            "--config",
            help="A YAML file, or: paper, cpu-quick, cpu-scenes, cpu-streets, shipped.  [default: cpu-quick; with "
            "--init shipped; with --resume the run's own]",
        ),
        click.option("--camera", help="Whose images, or several with commas.  [default: from the config]"),
        root_option,
        index_option,
    ):
        command = option(command)
    return command


def names(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """Names with commas between them."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
