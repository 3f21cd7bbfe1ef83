"""Motion of points from cuboids, on cases counted by hand."""

import numpy as np
from flux4d import labels
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
    steps = labels.steps_of(frames)
    assert [step.moves for step in steps[0].values()] == [True, True, False]  # c goes less than 5 cm
    points = np.array([[0.5, 1.0, 0], [9, 1.5, 0], [5, 5, 0], [50, 0, 0]])
    found = labels.of_points(points, np.zeros(4, int), frames[0], steps[0], 0.1)
    turn = np.radians(2)
    expected = [[2, 0, 0], [-1.5 * np.sin(turn) / 0.1, 1.5 * (np.cos(turn) - 1) / 0.1, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(found.velocity, expected, atol=1e-12)
    assert found.kind.tolist() == [1, 1, 1, 0] and found.moving.tolist() == [True, True, False, False]


def test_a_fast_car_leaves_its_box_within_a_sweep():
    """10 m/s, seen 20 ms after the frame; a box that is drawn around the points as they were seen serves as well."""
    here, there = (boxes(("a", "Car", 0, y, 0, CAR, -1)) for y in (0.0, 1.0))
    given = np.zeros(4, int), here, labels.steps_of([here, there])[0], 0.1
    points = np.array([[0, 2.15, 0], [0, 1.9, 0], [0, -1.9, 0], [0, 2.4, 0]])
    still = labels.of_points(points, *given)
    assert still.moving.tolist() == [False, True, True, False]
    found = labels.of_points(points, *given, np.full(4, 0.02))
    assert found.moving.tolist() == (found.kind == 1).tolist() == [True, True, True, False]
    np.testing.assert_allclose(found.velocity[:3], [[0, 10, 0]] * 3, atol=1e-12)


def test_majority_of_three_frames():
    # it stands but for one step of 10 cm
    xs = [0, 0, 0.1, 0.1, 0.1]
    frames = [boxes(("a", "Car", x, 0, 0, CAR, -1)) for x in xs]
    steps = labels.steps_of(frames)
    assert not any(step.moves for found in steps for step in found.values())
    xs = [0, 0.2, 0.2, 0.4, 0.6]  # it moves but for one
    steps = labels.steps_of([boxes(("a", "Car", x, 0, 0, CAR, -1)) for x in xs])
    assert all(step.moves for found in steps for step in found.values())
    # a box that vanishes has no motion then
    steps = labels.steps_of([boxes(("a", "Car", 0, 0, 0, CAR, -1)), boxes(("b", "Car", 1, 0, 0, CAR, -1))])
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
    steps = labels.steps_of([here, there])
    points = np.array([[0.2, 0, 0], [1.5, 0, 0], [20, 0, 0], [20, 0, 0]])
    found = labels.of_points(points, np.array([0, 0, 0, 1]), here, steps[0], 1.0)
    np.testing.assert_allclose(found.velocity, [[0, 1, 0], [2, 0, 0], [0, 0, 0], [1, 0, 0]], atol=1e-12)
    assert found.kind.tolist() == [3, 2, 0, 1]
