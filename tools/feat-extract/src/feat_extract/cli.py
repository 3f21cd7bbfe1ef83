"""The feat-extract command: options in, one function per command, its result out."""

from collections.abc import Callable, Iterator
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
    progress,
    progress_bar,
    seed_option,
)

from feat_extract import config as settings

config_option = click.option(
    "--config", "path", type=click.Path(path_type=Path), required=True, help="exp.yaml, as in the README."
)


def watcher(what: str) -> Callable[[Iterator, int], Iterator]:
    return lambda items, total: progress(items, what, total)


@click.group(cls=Group)
@click.version_option(package_name="feat-extract")
def main() -> None:
    """2-D and 3-D features of face sequences, and a model that names their emotions."""


@main.command("fetch-artifacts")
@click.argument("list", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("data/inference_artifacts"),
    show_default=True,
    help="Folder to fetch into.",
)
@force_option
def fetch_artifacts(list: Path, out: Path, force: bool) -> None:
    """Download the files of LIST (YAML: url, sha256, to, unpack), verify them, and unpack archives."""
    from feat_extract import artifacts

    entries = artifacts.read_list(list)
    with progress_bar("fetching", 1000) as bar:
        result = artifacts.fetch(
            entries, out, force, lambda name, done, total: bar(1000 * done // max(total, done, 1), name)
        )
    print_result(result)


@main.command()
@config_option
@click.option("--backbone", help="radio:VERSION or timm:NAME.  [default: from the config]")
@click.option("--weights", help="Of a timm model: none, default or a file.  [default: from the config]")
@click.option("--trust-code", is_flag=True, help="Let the Python code run that comes with RADIO's weights.")
@click.option("--spatial", is_flag=True, help="Write the spatial map too.")
@device_option
@force_option
def feat2d(
    path: Path, backbone: str | None, weights: str | None, trust_code: bool, spatial: bool, device: str, force: bool
) -> None:
    """Image features of lr_image/SEQUENCE/FRAME into feat2d/SEQUENCE/FRAME.npy."""
    from feat_extract import features

    config = settings.load(path)
    changes = {"backbone": backbone, "weights": weights, "trust_code": trust_code or None, "spatial": spatial or None}
    config = _changed(config, "feat2d", changes)
    print_result(features.write_features(config, pick_device(device), force, watcher("features")))


@main.command()
@config_option
@click.option("--source", type=click.Path(path_type=Path), help="Folder to import.  [default: feat3d.input]")
@click.option("--kind", type=click.Choice(["faceverse", "track"]), help="What it holds.  [default: from the config]")
@force_option
def feat3d(path: Path, source: Path | None, kind: str | None, force: bool) -> None:
    """Expression coefficients (FaceVerse files, or a track.npz per sequence) into feat3d/SEQUENCE/expr_FRAME.npy."""
    from feat_extract import coefficients

    config = _changed(settings.load(path), "feat3d", {"kind": kind})
    source = source or Path(config.dataset) / config.feat3d.input
    print_result(coefficients.write_coefficients(config, source, force))


@main.command()
@config_option
@click.option("--feat3d", "coefficients", help="Folder of coefficients.  [default: feat3d in the dataset]")
@click.option("--resume", is_flag=True, help="Go on from the last epoch of a stopped training.")
@device_option
@force_option
def train(path: Path, coefficients: str | None, resume: bool, device: str, force: bool) -> None:
    """Train the fusion model on the labelled sequences; write the checkpoint best_scripted.pt."""
    from feat_extract import training

    config = _elsewhere(settings.load(path), coefficients)
    if resume and force:
        raise InputError("--resume goes on with what --force would delete; give one")
    if not resume:
        claim_output(Path(config.checkpoint), force)
    with progress_bar("training", config.train.epochs) as bar:
        print_result(training.train(config, pick_device(device), resume, bar))


@main.command()
@config_option
@click.option("--feat3d", "coefficients", help="Folder of coefficients.  [default: feat3d in the dataset]")
@click.option("--sha256", help="What the checkpoint's SHA-256 must be.  [default: from the config]")
@device_option
@force_option
def submit(path: Path, coefficients: str | None, sha256: str | None, device: str, force: bool) -> None:
    """Predict every sequence with the checkpoint; write submission.csv.

    A TorchScript file is code: its SHA-256 is printed, and --sha256 refuses any other file.
    """
    from feat_extract import submission

    config = _elsewhere(_changed(settings.load(path), "submit", {"sha256": sha256}), coefficients)
    claim_output(Path(config.submit.output), force)
    result = submission.submit(config, pick_device(device), watcher("predicting"))
    log(f"{config.checkpoint}: sha256 {result['sha256']}")
    print_result(result)


@main.command()
@config_option
@click.option("--labels", type=click.Path(path_type=Path), help="CSV of labels.  [default: the config's]")
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="CSV to score.  [default: the config's submission]"
)
@click.option("--split", help="Which of the labels to score; all of them must be predicted.  [default: submit.split]")
def evaluate(path: Path, labels: Path | None, predictions: Path | None, split: str | None) -> None:
    """Score predictions: F1 of each class, macro F1, UF1, UAR."""
    from feat_extract import scores

    config = settings.load(path)
    labels = labels or Path(config.dataset) / config.labels
    predictions = predictions or Path(config.submit.output)
    print_result(scores.evaluate(labels, predictions, config.classes, split or config.submit.split))


@main.command()
@config_option
def check(path: Path) -> None:
    """Read an artifacts folder whole; print what each sequence has, and exit 2 where something is missing or broken."""
    from feat_extract import check as checking

    found, problems = checking.check(settings.load(path))
    print_result({**found, "problems": problems})
    if problems:
        raise InputError(f"{len(problems)} problems, the first: {problems[0]}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--train-people", type=click.IntRange(1, 999), default=12, show_default=True, help="To train on.")
@click.option("--test-people", type=click.IntRange(1, 999), default=5, show_default=True, help="To test on; others.")
@click.option("--clips", type=click.IntRange(1, 999), default=10, show_default=True, help="Sequences per person.")
@click.option("--frames", type=click.IntRange(4), default=12, show_default=True, help="Frames per sequence.")
@click.option("--size", type=click.IntRange(64, 4096), default=192, show_default=True, help="Pixels per side.")
@seed_option
@force_option
def synth(
    folder: Path, train_people: int, test_people: int, clips: int, frames: int, size: int, seed: int, force: bool
):
    """Render a labelled data set of synthetic people with small expressions into FOLDER, with its exp.yaml."""
    from feat_extract import synth as synthesis

    claim_output(folder, force)
    print_result(synthesis.synthesise(folder, train_people, test_people, clips, frames, size, seed))


def _changed(config: settings.Config, section: str, values: dict) -> settings.Config:
    given = {key: value for key, value in values.items() if value is not None}
    return config.model_copy(update={section: getattr(config, section).model_copy(update=given)})


def _elsewhere(config: settings.Config, coefficients: str | None) -> settings.Config:
    return _changed(config, "feat3d", {"output": coefficients and str(Path(coefficients).absolute())})
