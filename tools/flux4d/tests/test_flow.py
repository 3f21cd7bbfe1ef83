"""The measures of scene flow, on cases counted by hand."""

import numpy as np
import pytest
from flux4d import flow


def test_measures_by_hand():
    truth = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [10, 0, 0], [0, 2, 0], [4, 0, 0.0]])
    guess = np.array([[0, 0, 0], [0.3, 0, 0.4], [1, 0, 0], [10, 0, 0], [2, 0, 0], [3, 0, 0.0]])
    kind = np.array([0, 0, 1, 1, 3, 1])
    found = flow.measures(guess, truth, kind, 0.1)
    errors = np.array([0, 0.5, 1, 0, np.sqrt(8), 1])
    expected = {
        "points": 6,
        "dynamic_points": 3,
        "epe3d": errors.mean() / 10,
        "acc5": 2 / 6,  # 0 and 0; 0.5 m/s is 5 cm
        "acc10": 3 / 6,  # and not 0.1 itself
        "angular_error_deg": 0.0,  # of 0, 90, 0
        "angular_error_mean_deg": 30.0,
        "epe_bs": 0.025,
        "epe_fs": 0.1,
        "epe_fd": (0 + np.sqrt(8) + 1) / 30,
        "count_bs": 2,
        "count_fs": 1,
        "count_fd": 3,
        "bucket_static": (0.025 + 0.1) / 2,  # background, car
        # cars: 10 m/s without error, 4 m/s with 1; pedestrians: 2 m/s
        "bucket_dynamic": ((0 + 1 / 4) / 2 + np.sqrt(8) / 2) / 2,
        "background_speed": 0.25,
        "speed_error": (0 + 0 + 1) / 3,
        "velocity_rmse": np.sqrt((errors**2).mean()),
    }
    expected["epe_3way"] = (expected["epe_bs"] + expected["epe_fs"] + expected["epe_fd"]) / 3
    assert found == pytest.approx(expected)


def test_measures_without_points():
    nothing = flow.measures(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, int), 0.1)
    assert nothing["points"] == 0 and nothing["epe3d"] is None and nothing["angular_error_deg"] is None
    still = flow.measures(np.zeros((4, 3)), np.zeros((4, 3)), np.zeros(4, int), 0.1)
    assert still["epe3d"] == 0 and still["angular_error_deg"] is None and still["epe_3way"] == 0
    # standing still where something moves is a right angle off, not right
    slow = flow.measures(np.zeros((1, 3)), np.array([[3.0, 0, 0]]), np.ones(1, int), 0.1)
    assert slow["angular_error_deg"] == 90
