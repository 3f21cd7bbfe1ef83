"""Motion from cuboids and the measures of scene flow, on cases counted by hand."""

import numpy as np
import pytest
from flux4d import flow
from flux4d.pandaset import Cuboids


def boxes(*rows):
    """Rows of uuid, label, x, y, yaw, (width, length, height), sensor."""
    pose = np.tile(np.eye(4), (len(rows), 1, 1))
    for matrix, (_, _, x, y, yaw, _, _) in zip(pose, rows):
        matrix[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        matrix[:2, 3] = x, y
    return Cuboids(
        np.array([r[0] for r in rows]),
        np.array([r[1] for r in rows]),
        pose,
        np.array([r[5] for r in rows], float).reshape(-1, 3),
        np.array([r[6] for r in rows], int),
        np.zeros(len(rows), bool),
    )


CAR = (2.0, 4.0, 2.0)


def test_moving_and_turning_boxes():
    frames = [
        boxes(
            ("a", "Car", 0.2 * i, 0, 0, CAR, -1),
            ("b", "Car", 9, 0, np.radians(2 * i), CAR, -1),
            ("c", "Car", 5, 5 + 0.04 * i, 0, CAR, -1),
        )
        for i in range(4)
    ]
    steps = flow.steps_of(frames)
    assert [moves for _, moves in steps[0].values()] == [True, True, False]  # c goes less than 5 cm
    points = np.array([[0.5, 1.0, 0], [9, 1.5, 0], [5, 5, 0], [50, 0, 0]])
    found = flow.label(points, np.zeros(4, int), frames[0], steps[0], 0.1)
    turn = np.radians(2)
    expected = [[2, 0, 0], [-1.5 * np.sin(turn) / 0.1, 1.5 * (np.cos(turn) - 1) / 0.1, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(found.velocity, expected, atol=1e-12)
    assert found.kind.tolist() == [1, 1, 1, 0] and found.moving.tolist() == [True, True, False, False]


def test_majority_of_three_frames():
    # it stands but for one step of 10 cm
    xs = [0, 0, 0.1, 0.1, 0.1]
    frames = [boxes(("a", "Car", x, 0, 0, CAR, -1)) for x in xs]
    steps = flow.steps_of(frames)
    assert not any(moves for step in steps for _, moves in step.values())
    xs = [0, 0.2, 0.2, 0.4, 0.6]  # it moves but for one
    steps = flow.steps_of([boxes(("a", "Car", x, 0, 0, CAR, -1)) for x in xs])
    assert all(moves for step in steps for _, moves in step.values())
    # a box that vanishes has no motion then
    steps = flow.steps_of([boxes(("a", "Car", 0, 0, 0, CAR, -1)), boxes(("b", "Car", 1, 0, 0, CAR, -1))])
    assert steps == [{}, {}]


def test_of_nested_boxes_the_smaller_wins_and_sensors_keep_to_theirs():
    inner, outer = (1, 1, 1), (4, 8, 4)
    here = boxes(
        ("rider", "Pedestrian", 0, 0, 0, inner, -1),
        ("truck", "Bus", 0, 0, 0, outer, -1),
        ("x", "Car", 20, 0, 0, CAR, 1),
    )
    there = boxes(
        ("rider", "Pedestrian", 0, 1, 0, inner, -1),
        ("truck", "Bus", 2, 0, 0, outer, -1),
        ("x", "Car", 21, 0, 0, CAR, 1),
    )
    steps = flow.steps_of([here, there])
    points = np.array([[0.2, 0, 0], [1.5, 0, 0], [20, 0, 0], [20, 0, 0]])
    found = flow.label(points, np.array([0, 0, 0, 1]), here, steps[0], 1.0)
    np.testing.assert_allclose(found.velocity, [[0, 1, 0], [2, 0, 0], [0, 0, 0], [1, 0, 0]], atol=1e-12)
    assert found.kind.tolist() == [3, 2, 0, 1]


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
