"""Scores of multi-label predictions."""

from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError

from feat_extract.config import Config
from feat_extract.labels import read_labels


def scores(labels: np.ndarray, predictions: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Per-class precision, recall, F1; their means.

    F1_c = 2 TP / (2 TP + FP + FN), 0 where nothing is labelled nor predicted; macro_f1 is its mean over all classes.
    UF1 and UAR (See et al. 2019, equations 1 to 4) are the means of F1_c and recall_c over the classes that occur.

    Args:
        labels, predictions: (N, C) of 0 and 1.
    """
    labels, predictions = labels.astype(bool), predictions.astype(bool)
    hits = (labels & predictions).sum(0)
    false, lost = (~labels & predictions).sum(0), (labels & ~predictions).sum(0)

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return above / np.maximum(below, 1)

    f1, recall = ratio(2 * hits, 2 * hits + false + lost), ratio(hits, hits + lost)
    precision, occur = ratio(hits, hits + false), labels.any(0)
    return {
        "macro_f1": float(f1.mean()),
        "uf1": float(f1[occur].mean()) if occur.any() else 0.0,
        "uar": float(recall[occur].mean()) if occur.any() else 0.0,
        "exact": float((labels == predictions).all(1).mean()),
        "classes": {
            name: {
                "f1": float(f1[i]),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "labelled": int(labels[:, i].sum()),
                "predicted": int(predictions[:, i].sum()),
            }
            for i, name in enumerate(classes)
        },
    }


def evaluate(
    config: Config,
    labels: str | Path | None = None,
    predictions: str | Path | None = None,
    split: str | None = None,
) -> dict[str, Any]:
    """Scores of a submission as `score_files` has them; what is None is as in the config."""
    labels = Path(labels or Path(config.dataset) / config.labels)
    predictions = Path(predictions or config.submit.output)
    return score_files(labels, predictions, config.classes, split or config.submit.split)


def score_files(labels_path: Path, predictions_path: Path, classes: list[str], split: str | None) -> dict[str, Any]:
    """`rows`, and what `scores` says, of a CSV of predictions. Every labelled sequence of the split (of all, without
    one) must be there.

    Raises InputError for files that are not such tables, predictions without labels and labels without predictions.
    """
    labels = read_labels(labels_path, classes)
    predictions = read_labels(predictions_path, classes)
    unknown = [name for name in predictions if name not in labels]
    if unknown:
        raise InputError(f"{labels_path} has no labels for {unknown[0]} and {len(unknown) - 1} others; give its labels")
    wanted = [name for name, (_, row) in labels.items() if row.get("split", split) == split or split is None]
    lost = [name for name in wanted if name not in predictions]
    if not wanted:
        raise InputError(f"{labels_path} has no sequence of the split {split}; give another --split")
    if lost:
        raise InputError(f"{predictions_path} lacks {lost[0]} and {len(lost) - 1} others; predict all of them")
    truth = np.stack([labels[name][0] for name in wanted])
    said = np.stack([predictions[name][0] for name in wanted])
    return {"rows": len(wanted), **scores(truth, said, classes)}
