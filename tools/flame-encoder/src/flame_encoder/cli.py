"""The flame-encoder command."""

import json
from pathlib import Path

import click
import numpy as np
from recon4d.cli import Group, claim_output, force_option, log, print_result, progress_bar
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
@click.option("--landmarks", type=click.Path(path_type=Path), required=True, help="Folder of <frame>.npy (68, 2).")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@with_head
@click.option("--focal", type=float, help="Focal length in pixels; estimated when not given.")
@click.option("--fps", type=float, help="Frames per second; from frames.jsonl when not given, else 30.")
@click.option("--iterations", type=int, default=40, show_default=True, help="Solver steps at most.")
@click.option("--photometric/--no-photometric", default=False, show_default=True, help="Refine on the images too.")
@click.option("--preview/--no-preview", default=True, show_default=True, help="Write overlay.png and overlay.mp4.")
@force_option
def track(
    frames, landmarks, out, head_model, landmark_embedding, focal, fps, iterations, photometric, preview, force
) -> None:
    """Parameters of one person in every frame of FRAMES, from 68 landmarks and, with --photometric, from the images.

    Writes track.npz, checkpoint/*.frame (the INSTA folder that gaussian-avatar reads), track.json, overlay.png and
    overlay.mp4, and prints the reprojection error as JSON.
    """
    from recon4d import head as heads
    from recon4d.formats import insta

    from flame_encoder import observations, tracker

    if focal is not None and focal <= 0:
        raise InputError(f"--focal {focal} must be positive")
    if fps is not None and fps <= 0:
        raise InputError(f"--fps {fps} must be positive")
    if iterations < 1:
        raise InputError(f"--iterations {iterations} must be at least 1")
    claim_output(out / "track.npz", force)
    model = heads.load(head_model, landmark_embedding)
    model.landmarks(model())  # says so when the model has none
    seen = observations.read(frames, landmarks, fps)
    missing = int((~seen.valid).sum())
    if missing:
        log(f"{missing} of {len(seen.valid)} frames have no landmarks; they are interpolated and marked in track.npz")
    options = tracker.Options(focal=focal, iterations=iterations)
    images = observations.frame_paths(frames) if photometric else None
    with progress_bar("track", options.steps(photometric)) as report:
        result, figures = tracker.track(model, seen, options, images, report)
    for stale in (out / "checkpoint").glob("*.frame"):
        stale.unlink()
    insta.write(out, result)
    write_text(out / "track.json", json.dumps(figures, indent=2) + "\n")
    result.write(out / "track.npz")
    if preview:
        from recon4d.video import write_mp4

        from flame_encoder.preview import contact_sheet, overlays

        chosen = np.unique(np.linspace(0, len(result) - 1, 12).round().astype(int))
        contact_sheet(out / "overlay.png", list(overlays(model, result, frames, seen.landmarks, chosen)))
        every = overlays(model, result, frames, seen.landmarks, np.arange(len(result)))
        write_mp4(out / "overlay.mp4", every, result.fps)
    print_result(figures)


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
    if found["skinning_error"] > 1e-3:
        raise InputError(f"{path}: skinning weights do not sum to one (error {found['skinning_error']:.3g})")
    if render:
        check.render(model, claim_output(render, force))
    print_result(found)
