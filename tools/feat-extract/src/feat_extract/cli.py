"""The feat-extract command: options in, one function per command, its result out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from recon4d import InputError
from recon4d.cli import (
    Command,
    Group,
    device_option,
    force_option,
    log,
    pick_device,
    print_result,
    progress,
    progress_bar,
    seed_option,
)

PathType = click.Path(path_type=Path)

config_option = click.option("--config", "path", type=PathType, required=True, help="exp.yaml, as in the README.")
coefficients_option = click.option(
    "--feat3d", "coefficients", type=PathType, help="Folder of coefficients.  [default: feat3d in the dataset]"
)


def watcher(what: str) -> Callable[[Iterator[Any], int], Iterator[Any]]:
    return lambda items, total: progress(items, what, total)


def absolute(path: Path | None) -> str | None:
    """A path of an option is relative to the working folder, those of the config to the config."""
    return None if path is None else str(path.absolute())


@click.group(cls=Group)
@click.version_option(package_name="feat-extract")
def main() -> None:
    """2-D and 3-D features of face sequences, and a model that names their emotions."""


@main.command("fetch-artifacts", cls=Command)
@click.argument("list_path", metavar="LIST", type=PathType)
@click.option(
    "--out",
    type=PathType,
    default=Path("data/inference_artifacts"),
    show_default=True,
    help="Folder to fetch into.",
)
@force_option
def fetch_artifacts(list_path: Path, out: Path, force: bool) -> None:
    """Download the files of LIST (YAML: url, sha256, to, unpack), verify them, and unpack archives."""
    from feat_extract.artifacts import fetch, read_list

    entries = read_list(list_path)
    with progress_bar("fetching", 1000) as bar:
        result = fetch(entries, out, force, lambda name, done, total: bar(1000 * done // max(total, done, 1), name))
    print_result(result)


@main.command(cls=Command)
@config_option
@click.option("--backbone", help="radio:VERSION or timm:NAME.  [default: from the config]")
@click.option("--weights", help="Of a timm model: none, default or a file.  [default: from the config]")
@click.option("--trust-code", is_flag=True, help="Let the Python code run that comes with RADIO's weights.")
@click.option("--spatial", is_flag=True, help="Write the spatial map too.")
@device_option
@force_option
def feat2d(path: Path, device: str, force: bool, trust_code: bool, spatial: bool, **texts: str | None) -> None:
    """Image features of lr_image/SEQUENCE/FRAME into feat2d/SEQUENCE/FRAME.npy."""
    from feat_extract.config import load_config
    from feat_extract.features import write_features

    given = texts | {"trust_code": trust_code or None, "spatial": spatial or None}
    config = load_config(path, {f"feat2d.{key}": value for key, value in given.items()})
    print_result(write_features(config, pick_device(device), force, watcher("features")))


@main.command(cls=Command)
@config_option
@click.option("--source", type=PathType, help="Folder to import.  [default: feat3d.input]")
@click.option("--kind", type=click.Choice(["faceverse", "track"]), help="What it holds.  [default: from the config]")
@force_option
def feat3d(path: Path, source: Path | None, kind: str | None, force: bool) -> None:
    """Expression coefficients (FaceVerse files, or a track.npz per sequence) into feat3d/SEQUENCE/expr_FRAME.npy."""
    from feat_extract.coefficients import write_coefficients
    from feat_extract.config import load_config

    print_result(write_coefficients(load_config(path, {"feat3d.kind": kind}), source, force))


@main.command(cls=Command)
@config_option
@coefficients_option
@click.option("--resume", is_flag=True, help="Go on from the last epoch of a stopped training.")
@device_option
@force_option
def train(path: Path, coefficients: Path | None, resume: bool, device: str, force: bool) -> None:
    """Train the fusion model on the labelled sequences; write the checkpoint best_scripted.pt."""
    from feat_extract import training
    from feat_extract.config import load_config

    config = load_config(path, {"feat3d.output": absolute(coefficients)})
    with progress_bar("training", config.train.epochs) as bar:
        print_result(training.train(config, pick_device(device), resume, force, bar, log))


@main.command(cls=Command)
@config_option
@coefficients_option
@click.option("--sha256", help="What the checkpoint's SHA-256 must be.  [default: from the config]")
@device_option
@force_option
def submit(path: Path, coefficients: Path | None, sha256: str | None, device: str, force: bool) -> None:
    """Predict every sequence with the checkpoint; write submission.csv.

    A TorchScript file is code: its SHA-256 is printed, and --sha256 refuses any other file.
    """
    from feat_extract import submission
    from feat_extract.config import load_config

    config = load_config(path, {"submit.sha256": sha256, "feat3d.output": absolute(coefficients)})
    result = submission.submit(config, pick_device(device), force, watcher("predicting"))
    log(f"{config.checkpoint}: sha256 {result['sha256']}")
    print_result(result)


@main.command(cls=Command)
@config_option
@click.option("--labels", type=PathType, help="CSV of labels.  [default: the config's]")
@click.option("--predictions", type=PathType, help="CSV to score.  [default: the config's submission]")
@click.option("--split", help="Which of the labels to score; all of them must be predicted.  [default: submit.split]")
def evaluate(path: Path, **given: Any) -> None:
    """Score predictions: F1 of each class, macro F1, UF1, UAR."""
    from feat_extract.config import load_config
    from feat_extract.scores import evaluate

    print_result(evaluate(load_config(path), **given))


@main.command(cls=Command)
@config_option
def check(path: Path) -> None:
    """Read an artifacts folder whole; print what each sequence has, and exit 2 where something is missing or broken."""
    from feat_extract import inventory
    from feat_extract.config import load_config

    found = inventory.take(load_config(path))
    print_result(found)
    if found["problems"]:
        raise InputError(f"{len(found['problems'])} problems, the first: {found['problems'][0]}")


@main.command(cls=Command)
@click.argument("folder", type=PathType)
@click.option("--train-people", type=click.IntRange(1, 999), default=12, show_default=True, help="To train on.")
@click.option("--test-people", type=click.IntRange(1, 999), default=5, show_default=True, help="To test on; others.")
@click.option("--clips", type=click.IntRange(1, 999), default=10, show_default=True, help="Sequences per person.")
@click.option("--frames", type=click.IntRange(4), default=12, show_default=True, help="Frames per sequence.")
@click.option("--size", type=click.IntRange(64, 4096), default=192, show_default=True, help="Pixels per side.")
@seed_option
@force_option
def synth(**options: Any) -> None:
    """Render a labelled data set of synthetic people with small expressions into FOLDER, with its exp.yaml."""
    from feat_extract.synth import synthesise

    print_result(synthesise(**options))
