"""What is believed of a frame's unknowns before its points are fitted: priors, and what MediaPipe's blendshapes say."""

import numpy as np
from recon4d import landmarker

from flame_encoder.tracker.points import Rig

Belief = tuple[np.ndarray, np.ndarray]  # means and precisions (P,) of the columns of `points.Columns`


def told(rig: Rig, face: np.ndarray) -> Belief:
    """What the blendshapes of one face's dense points (478, 2), pixels, say of jaw, eyelids and expression.

    The precision is zero where they say nothing, and everywhere if one of the points they are found from is missing.
    """
    columns, dense = rig.columns, rig.head.dense
    mean, precision = np.zeros(columns.size), np.zeros(columns.size)
    if dense is None or dense.activations is None or not np.isfinite(face[landmarker.SHAPE_POINTS]).all():
        return mean, precision
    said = np.r_[1.0, landmarker.blendshapes(face)] @ dense.activations.weights.numpy()
    sure = dense.activations.sigma.numpy() ** -2.0
    n = min(columns.n_expression, len(said) - 5)
    jaw, lids, expression = slice(0, 3), slice(3, 5 if columns.eyelids else 3), slice(5, 5 + n)
    first = 6 + columns.n_expression  # of the jaw
    for into, taken in (
        (slice(first, first + 3), jaw),
        (slice(first + 3, first + 3 + 2 * columns.eyelids), lids),
        (slice(6, 6 + n), expression),
    ):
        mean[into], precision[into] = np.where(sure[taken] > 0, said[taken], 0), sure[taken]
    return mean, precision


def joined(prior: np.ndarray, said: Belief) -> Belief:
    """What is said, and where nothing is, a prior about zero with precisions (P,)."""
    mean, precision = said
    return mean, np.where(precision > 0, precision, prior)
