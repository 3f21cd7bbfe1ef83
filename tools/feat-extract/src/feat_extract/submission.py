"""Predictions of a TorchScript checkpoint for every sequence, as the challenge's CSV."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError, images
from recon4d.files import sha256
from recon4d.runs import claim_file

from feat_extract import model_file
from feat_extract.clips import Streams, load_clip, open_streams, stack
from feat_extract.config import Config
from feat_extract.labels import read_labels, read_table, write_table

BATCH = 16


def submit(
    config: Config,
    device: torch.device,
    force: bool = False,
    watch: Callable[[Iterator[Any], int], Iterator[Any]] = lambda items, total: items,
) -> dict[str, Any]:
    """Write the submission: one row per sequence, 1 for each class whose probability reaches its threshold.

    Nothing is written unless every sequence has its row. Returns a summary with the checkpoint's SHA-256. A TorchScript
    file is code: it runs.

    Args:
        force: replace a submission that exists.
        watch: wraps the batches and their number, to show progress.

    Raises:
        InputError: a checkpoint that is missing, has another SHA-256, or was made for other features; a sample whose
            columns are not the classes; a sequence without files; an output that exists.
    """
    checkpoint, sample = Path(config.checkpoint), config.submit.sample
    claim_file(config.submit.output, force=force, inputs=[checkpoint, sample, Path(config.dataset) / config.labels])
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint} is missing; fetch it with feat-extract fetch-artifacts or train it")
    digest = sha256(checkpoint)
    if config.submit.sha256 and config.submit.sha256.lower() != digest:
        raise InputError(f"{checkpoint} has the SHA-256 {digest}, not {config.submit.sha256}; it was not loaded")
    streams = open_streams(config)
    names, key, columns = _rows(config, streams)
    model, note = model_file.read(checkpoint)
    model_file.check(note, config, streams, checkpoint)
    if any(value.is_floating_point() and value.itemsize < 4 for value in model.state_dict().values()):
        model.float()  # features are in single precision, and a CPU has not all operations in half
    model.to(device)

    thresholds = np.array([config.threshold(name) for name in config.classes])
    rows = []
    groups = [names[i : i + BATCH] for i in range(0, len(names), BATCH)]
    for group in watch(iter(groups), len(groups)):
        inputs, mask = stack([load_clip(name, streams, config) for name in group])
        for stream, values in inputs.items():
            dim = note.get("streams", {}).get(stream, {}).get("dim")
            if dim is not None and values.shape[2] != dim:
                raise InputError(
                    f"{stream} of {group[0]} has {values.shape[2]} numbers per frame, {checkpoint} was trained on {dim}"
                )
        for name, said in zip(group, _predict(model, inputs, mask, len(config.classes), device, checkpoint)):
            answer = dict(zip(config.classes, (said >= thresholds).astype(int).tolist()))
            rows.append({key: name} | {column: answer[column] for column in columns})
    write_table(config.submit.output, rows)
    counts = {name: sum(row[name] for row in rows) for name in columns}
    return {"rows": len(rows), "predicted": counts, "sha256": digest, "submission": config.submit.output}


def _rows(config: Config, streams: Streams) -> tuple[list[str], str, list[str]]:
    """The sequences in order, the name of the first column, and the other columns."""
    if config.submit.sample:
        path = Path(config.submit.sample)
        table = read_table(path, config.classes)
        key, *columns = table[0]
        if set(columns) != set(config.classes):
            raise InputError(
                f"{path} has the columns {', '.join(columns)}, the config the classes {', '.join(config.classes)}; "
                "they must be the same"
            )
        names = [row[key] for row in table]
        if len(set(names)) < len(names):
            raise InputError(f"{path} names a sequence twice; keep one row")
        return names, key, columns
    path = Path(config.dataset) / config.labels
    names = sorted({name for files in streams.files.values() for name in files}, key=images.natural_key)
    split = config.submit.split
    if split is not None and path.is_file():
        labels = read_labels(path, config.classes)
        names = [name for name, (_, row) in labels.items() if row.get("split", split) == split]
        if not names:
            raise InputError(f"{path} has no sequence of the split {split}; correct submit.split")
    return names, "sequence", config.classes


@torch.inference_mode()
def _predict(
    model: torch.jit.ScriptModule,
    inputs: dict[str, torch.Tensor],
    mask: torch.Tensor,
    n_classes: int,
    device: torch.device,
    path: Path,
) -> np.ndarray:
    try:
        logits = model({name: values.to(device) for name, values in inputs.items()}, mask.to(device))
    except RuntimeError as error:
        text = " ".join(str(error).split())[-200:]
        raise InputError(
            f"{path} does not take these inputs ({text}); see docs/formats.md for what it is given"
        ) from error
    return _logits(logits, len(mask), n_classes, path).float().sigmoid().cpu().numpy()


def _logits(answer: Any, n: int, n_classes: int, path: Path) -> torch.Tensor:
    """The (n, n_classes) logits of an answer: a tensor, one of a tuple (the first that fits) or of a dictionary
    (`logits`, or the only one that fits); dimensions of 1 between do not matter.

    Raises InputError where there is none.
    """
    named = (
        answer
        if isinstance(answer, dict)
        else dict(enumerate(answer if isinstance(answer, tuple | list) else [answer]))
    )
    fitting = {name: _shaped(value, n, n_classes) for name, value in named.items()}
    fitting = {name: value for name, value in fitting.items() if value is not None}
    if isinstance(answer, dict) and len(fitting) > 1 and "logits" not in fitting:
        raise InputError(
            f"{path} answers {', '.join(map(str, fitting))}, which could all be the logits; name one of them logits"
        )
    found = fitting.get("logits", next(iter(fitting.values()), None))
    if found is None or not found.isfinite().all():
        shapes = ", ".join(
            str(tuple(v.shape)) if isinstance(v, torch.Tensor) else type(v).__name__ for v in named.values()
        )
        raise InputError(f"{path} does not answer {n} x {n_classes} finite logits but {shapes[:200]}; train it again")
    return found


def _shaped(value: Any, n: int, n_classes: int) -> torch.Tensor | None:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return None
    sizes = [size for size in value.shape if size != 1]
    if value.ndim < 2 or sizes != [size for size in (n, n_classes) if size != 1]:
        return None
    return value.reshape(n, n_classes)
