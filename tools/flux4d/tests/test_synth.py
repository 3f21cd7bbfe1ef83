"""Synthetic scenes: against a mesh rasterizer, against their own cuboids, and by the devkit's conventions."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from flux4d import labels, pandaset, raycast, rigs, streets, synth
from recon4d import mesh
from recon4d.cameras import Camera
from scipy.spatial.transform import Rotation

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
# two triangles per side, from its four corners
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
FACES = [corners for a, b, c, d in SIDES for corners in ((a, b, c), (a, c, d))]


def test_ray_caster_sees_what_a_rasterizer_sees():
    """Boxes and the ground by recon4d.mesh: same actor per pixel, same depth."""
    scene = streets.random_street(3, 2.0)
    boxes = [shape for shape in scene.shapes if shape.kind == streets.BOX]
    scene = streets.Street(scene.actors, boxes, scene.ego, scene.crossing, scene.sun, scene.seed)
    pose = synth.camera_pose(scene, 0.7, rigs.PANDASET)
    width, height = 160, 90
    K = np.array([[150.0, 0, 80], [0, 150, 45], [0, 0, 1]])
    _, depth, actor, _ = raycast.photograph(scene, 0.7, pose, K, width, height, 1)
    vertices, owners = [], []
    for row in streets.posed(scene, 0.7):
        corners = CUBE * row[4:7]
        turn = Rotation.from_euler("z", math.atan2(row[8], row[7])).as_matrix()
        vertices.append(corners @ turn.T + row[1:4])
        owners += [int(row[13])] * 12
    faces = np.concatenate([8 * i + np.array(FACES) for i in range(len(vertices))])
    ground = np.array([[-3000, -3000, 0], [3000, -3000, 0], [3000, 3000, 0], [-3000, 3000, 0.0]])
    base = 8 * len(vertices)
    faces = np.concatenate([faces, [[base, base + 1, base + 2], [base, base + 2, base + 3]]])
    points = torch.from_numpy(np.concatenate([*vertices, ground])).float()
    camera = Camera(torch.from_numpy(K).float(), torch.from_numpy(np.linalg.inv(pose)).float(), width, height)
    tri_id, z = mesh.visibility(camera.clip(points, 0.3, 3000.0)[None], torch.from_numpy(faces), (height, width))
    seen = np.array([*owners, -1, -1, -1])[tri_id[0].numpy()]
    agree = seen == actor
    assert agree.mean() > 0.99 and len(np.unique(actor)) > 4  # the rest is rounding at edges
    near, far = 0.3, 3000.0
    metres = 2 * near * far / (far + near - z[0].double().numpy() * (far - near))
    close = agree & (depth > 0) & (depth < 60) & (tri_id[0].numpy() >= 0)
    error = np.abs(metres - depth)[close] / depth[close]
    assert close.mean() > 0.4 and np.quantile(error, 0.98) < 0.005


def test_ellipsoid():
    shape = streets.Shape(streets.ELLIPSOID, (1.0, 8.0, 2.0), (1.0, 2.0, 0.5), (0, 0, 0), yaw=0.4)
    scene = streets.Street([], [shape], streets.Actor("ego", (1, 1, 1), 0, 0, 0), -99, (0, 0, 1), 0)
    rng = np.random.default_rng(0)
    directions = np.array([0.12, 0.98, 0.1]) + rng.normal(0, 0.05, (200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    origin = np.array([0.0, 0, 1.0])
    distance, _, _ = raycast.scan(scene, 0.0, origin, directions)
    turn = Rotation.from_euler("z", 0.4).as_matrix()
    hits = 0
    for direction, d in zip(directions, distance):
        # by brute force: the first sample inside
        t = np.linspace(0, 12, 6001)
        own = (origin + t[:, None] * direction - [1, 8, 2]) @ turn / [1, 2, 0.5]
        inside = (own**2).sum(1) < 1
        if inside.any():
            hits += 1
            assert d == pytest.approx(t[inside.argmax()], abs=0.004)
        else:
            assert d > 12 or origin[2] + d * direction[2] == pytest.approx(0, abs=1e-9)
    assert 50 < hits < 200


def test_actors_move_on_arcs():
    for motion in (
        {"speed": 7.0},
        {"speed": 6.0, "curvature": 0.05},
        {"speed": 4.0, "acceleration": -2.0, "curvature": -0.1},
    ):
        actor = streets.Actor("Car", (2, 4, 1.5), 1.0, 2.0, 0.3, **motion)
        # integrate heading and speed in small steps
        x, y, yaw, speed, dt = 1.0, 2.0, 0.3, motion["speed"], 1e-4
        for _ in range(30000):
            middle = yaw + motion.get("curvature", 0) * speed * dt / 2
            x, y = x - math.sin(middle) * speed * dt, y + math.cos(middle) * speed * dt
            yaw += motion.get("curvature", 0) * speed * dt
            speed = max(speed + motion.get("acceleration", 0) * dt, 0)
        assert actor.pose(3.0) == pytest.approx((x, y, yaw), abs=2e-3)


def test_files_by_the_devkits_conventions(root):
    """Read with pandas and SciPy as the devkit does; project points; they are where the image's depth says."""
    folder = root / "001"
    camera = folder / "camera" / "front_camera"
    poses = json.loads((camera / "poses.json").read_text())
    k = json.loads((camera / "intrinsics.json").read_text())
    for name in ("lidar", "camera/front_camera"):
        assert len(json.loads((folder / name / "timestamps.json").read_text())) == 16
    assert len(json.loads((folder / "meta" / "gps.json").read_text())) == 16
    frame = 5
    points = pd.read_pickle(folder / "lidar" / f"{frame:02d}.pkl.gz")
    assert list(points.columns) == list("xyzitd") and set(points["d"]) == {0, 1}
    assert points["i"].between(0, 255).all() and points["t"].dtype == np.float64
    h, p = poses[frame]["heading"], poses[frame]["position"]
    turn = Rotation.from_quat([h["x"], h["y"], h["z"], h["w"]]).as_matrix()
    own = (points[["x", "y", "z"]].to_numpy() - [p["x"], p["y"], p["z"]]) @ turn
    own = own[own[:, 2] > 0]
    u, v = k["fx"] * own[:, 0] / own[:, 2] + k["cx"], k["fy"] * own[:, 1] / own[:, 2] + k["cy"]
    column, row = np.round(u).astype(int), np.round(v).astype(int)  # OpenCV: the first pixel's centre is 0
    truth = np.load(folder / "truth" / "camera" / f"{frame:02d}.npz")["depth"]
    height, width = truth.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    error = np.abs(truth[row[inside], column[inside]] - own[inside, 2]) / own[inside, 2]
    assert inside.sum() > 500 and np.median(error) < 0.01 and (error < 0.1).mean() > 0.85


def test_cuboids_hold_their_points_and_motion(root):
    folder = root / "002"
    boxes = [pandaset.read_cuboids(folder / "annotations" / "cuboids" / f"{i:02d}.pkl.gz") for i in range(16)]
    names = set(pd.read_pickle(folder / "annotations" / "cuboids" / "03.pkl.gz").columns)
    assert {"camera_used", "attributes.object_motion", "cuboids.sibling_id", "attributes.rider_status"} <= names
    steps = labels.steps_of(boxes)
    checked = 0
    for frame in (3, 9):
        points = pandaset.read_points(folder / "lidar" / f"{frame:02d}.pkl.gz")
        truth = np.load(folder / "truth" / "lidar" / f"{frame:02d}.npz")
        late = points["t"] - (synth.EPOCH + 0.1 * frame)
        found = labels.of_points(points["xyz"], points["d"], boxes[frame], steps[frame], 0.1, late)
        actor, velocity = truth["actor"], truth["velocity"]
        fast = np.linalg.norm(velocity, axis=1) > 0.6
        checked += fast.sum()
        assert (found.kind[actor >= 0] > 0).mean() > 0.97
        assert (found.kind[actor < 0] == 0).mean() > 0.97
        close = np.linalg.norm(found.velocity - velocity, axis=1) < 0.1 + 0.05 * np.linalg.norm(velocity, axis=1)
        assert close[fast].mean() > 0.95 and found.moving[fast].mean() > 0.95
    assert checked > 20


def test_same_seed_same_scene():
    one, two, other = streets.random_street(5, 1.0), streets.random_street(5, 1.0), streets.random_street(7, 1.0)
    assert one == two and one != other
