"""Measures of scene flow on points whose motion is known."""

from typing import Any

import numpy as np

from flux4d.labels import CLASSES

DYNAMIC = 0.5  # m/s, from which a point counts as dynamic
BUCKET = 0.4  # m/s, width of a speed bucket


def measures(predicted: np.ndarray, truth: np.ndarray, kind: np.ndarray, seconds: float) -> dict[str, Any]:
    """Scene-flow measures of points; velocities in m/s (N, 3), flow is velocity times `seconds`.

    epe3d: mean error of flow, metres. acc5, acc10: share with an error under 5 cm or 5 %, 10 cm or 10 %.
    angular_error_deg: median angle between velocities, over dynamic points; angular_error_mean_deg: its mean.
    epe_bs, epe_fs, epe_fd, epe_3way: background static, foreground static, foreground dynamic, their mean, with
    counts (Chodosh et al. 2024). bucket_static, bucket_dynamic: per class and speed bucket, the dynamic ones divided
    by their mean speed, averaged over the classes that occur (Khatri et al. 2024). background_speed: mean predicted
    speed off all boxes, m/s. speed_error: mean |difference of speeds| of dynamic points. velocity_rmse: of all points.
    A measure without points is None.
    """
    error = np.linalg.norm(predicted - truth, axis=1)
    speed, guessed = np.linalg.norm(truth, axis=1), np.linalg.norm(predicted, axis=1)
    dynamic = speed >= DYNAMIC

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    flow_error = error * seconds
    relative = error / np.maximum(speed, 1e-12)
    dot = (predicted * truth).sum(1)[dynamic]
    cosine = dot / np.maximum(speed[dynamic] * guessed[dynamic], 1e-12)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))  # a prediction that stands still is 90 degrees off
    parts = {"bs": (kind == 0) & ~dynamic, "fs": (kind > 0) & ~dynamic, "fd": (kind > 0) & dynamic}
    three = {name: mean(flow_error[chosen]) for name, chosen in parts.items()}
    known = [value for value in three.values() if value is not None]
    static, moving = [], []
    for number in range(len(CLASSES)):
        bucket = (speed[kind == number] / BUCKET).astype(int)
        errors, speeds = error[kind == number], speed[kind == number]
        if (bucket == 0).any():
            static.append(float(errors[bucket == 0].mean() * seconds))
        ratios = [errors[bucket == b].mean() / speeds[bucket == b].mean() for b in np.unique(bucket[bucket > 0])]
        if ratios:
            moving.append(float(np.mean(ratios)))
    return {
        "points": len(error),
        "dynamic_points": int(dynamic.sum()),
        "epe3d": mean(flow_error),
        "acc5": mean((flow_error < 0.05) | (relative < 0.05)),
        "acc10": mean((flow_error < 0.1) | (relative < 0.1)),
        "angular_error_deg": float(np.median(angle)) if len(angle) else None,
        "angular_error_mean_deg": mean(angle),
        "epe_3way": float(np.mean(known)) if known else None,
        **{f"epe_{name}": value for name, value in three.items()},
        **{f"count_{name}": int(chosen.sum()) for name, chosen in parts.items()},
        "bucket_static": float(np.mean(static)) if static else None,
        "bucket_dynamic": float(np.mean(moving)) if moving else None,
        "background_speed": mean(guessed[kind == 0]),
        "speed_error": mean(np.abs(speed - guessed)[dynamic]),
        "velocity_rmse": float(np.sqrt((error**2).mean())) if len(error) else None,
    }
