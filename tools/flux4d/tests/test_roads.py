"""Varied streets: uneven ground, shadows and true motion against brute force; processes write what one writes."""

import json
import math

import numpy as np
import pytest
from flux4d import raycast, rigs, roads, streets, synth
from recon4d import InputError


@pytest.fixture(scope="module")
def street():
    """A crossing with traffic, on uneven ground."""
    found = (roads.varied_street(seed, 1.0) for seed in range(50))
    return next(road for road in found if road.crossing > 0 and road.look.shadows and len(road.actors) > 12)


def test_streets_differ():
    many = [roads.varied_street(seed, 1.0) for seed in range(60)]
    speeds = [road.ego.speed for road in many]
    assert min(speeds) < 1 and 25 < max(speeds) <= 30
    others = np.array([actor.speed for road in many for actor in road.actors])
    assert others.max() > 25 and (others == 0).mean() > 0.1 and (others > 1).mean() > 0.4
    assert any(abs(actor.curvature) > 0.05 for road in many for actor in road.actors)
    assert {bool(road.look.wet) for road in many} == {True, False} and any(road.look.glow for road in many)
    assert many[3] == roads.varied_street(3, 1.0)
    cars = [rigs.random_rig(seed) for seed in range(60)]
    assert len({len(car.beams) for car in cars}) > 1 and len({car.aspect for car in cars}) == 5
    # nobody is in our way: no actor's middle comes nearer to the car than its bumper
    for road in many:
        for time in np.linspace(0, 1, 5):
            x, y, _ = road.ego.pose(time)
            assert all(math.hypot(a.pose(time)[0] - x, a.pose(time)[1] - y) > 1.2 for a in road.actors), road.seed


def test_ground_is_where_it_should_be(street):
    bare = streets.Street([], [], street.ego, street.crossing, street.sun, 0, street.look, street.waves)
    rng = np.random.default_rng(0)
    directions = np.stack([rng.normal(0, 0.5, 300), np.ones(300), rng.uniform(-0.6, 0.02, 300)], -1)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    origin = np.array([1.0, 2.0, bare.height(1.0, 2.0) + 1.7])
    distance, _, cosine = raycast.scan(bare, 0.0, origin, directions)
    for direction, d, c in zip(directions, distance, cosine):
        t = np.linspace(0.01, 120, 12001)
        points = origin + t[:, None] * direction
        level = sum(a * np.sin(kx * points[:, 0] + ky * points[:, 1] + p) for a, kx, ky, p in bare.waves)
        under = points[:, 2] < level
        if d > 125:
            assert not under.any()
        elif d < 115:
            assert d == pytest.approx(t[under.argmax()], abs=0.02)
            x, y, _ = origin + d * direction
            slope = [(bare.height(x + h, y + k) - bare.height(x - h, y - k)) / 2e-4 for h, k in ((1e-4, 0), (0, 1e-4))]
            normal = np.array([-slope[0], -slope[1], 1])
            assert c == pytest.approx(abs(direction @ normal) / np.linalg.norm(normal), abs=1e-3)
    assert (distance < 115).sum() > 150


def test_shadows_are_where_rays_to_the_sun_end(street):
    shapes, sun = streets.posed(street, 0.3), np.array(street.sun)
    rng = np.random.default_rng(1)
    flat = streets.Street(street.actors, street.shapes, street.ego, street.crossing, street.sun, 0, street.look)
    points = np.stack([rng.uniform(-25, 25, 300), rng.uniform(0, 60, 300), rng.uniform(0.5, 6, 300)], -1)
    blocked = np.array([raycast._blocked(point, np.zeros(3), sun, shapes) for point in points])
    ends = []
    for point in points:  # those inside of a shape see its far side only
        distance, _, _ = raycast.scan(flat, 0.3, point, sun[None])
        ends.append(distance[0] < raycast.FAR)
    own = np.array([_inside(point, shapes) for point in points])
    lifted = streets.posed(flat, 0.3)
    assert np.abs(lifted[:, 3] - shapes[:, 3]).max() < 1  # the ground's waves, which the scan of the flat one lacks
    agree = (blocked == np.array(ends)) | own
    assert agree.mean() > 0.93 and 0.05 < blocked.mean() < 0.95


def _inside(point, shapes):
    for row in shapes:
        d = point - row[1:4]
        own = np.array([row[7] * d[0] + row[8] * d[1], -row[8] * d[0] + row[7] * d[1], d[2]]) / row[4:7]
        if (np.abs(own).max() if row[0] == streets.BOX else np.linalg.norm(own)) < 1:
            return True
    return False


def test_motion_is_the_difference_of_places(street):
    """Of points that ride on actors, up and down with the ground too."""
    rng = np.random.default_rng(2)
    step = 1e-3
    moving = [number for number, actor in enumerate(street.actors) if actor.speed > 1][:5]
    assert moving
    for number in moving:
        own = rng.uniform(-1, 1, (6, 3))

        def place(time, number=number, own=own):
            x, y, yaw = street.actors[number].pose(time)
            c, s = math.cos(yaw), math.sin(yaw)
            up = street.height(x, y) + own[:, 2]
            return np.stack([x + c * own[:, 0] - s * own[:, 1], y + s * own[:, 0] + c * own[:, 1], up], -1)

        found = streets.velocity(street, 0.4, place(0.4), np.full(6, number))
        np.testing.assert_allclose(found, (place(0.4 + step) - place(0.4 - step)) / (2 * step), atol=1e-4)


def test_processes_write_what_one_writes(tmp_path):
    sizes = {"frames": 2, "width": 48, "columns": 60, "samples": 1, "kind": "varied"}
    sizes["cameras"] = ("front_camera", "back_camera")
    one = synth.write_scenes(tmp_path / "one", 2, workers=1, **sizes)
    two = synth.write_scenes(tmp_path / "two", 2, workers=2, **sizes)
    assert one["scenes"] == two["scenes"] and one["scenes"][0]["actors"] > 5
    for folder in ("001", "002"):
        files = [path for path in (tmp_path / "one" / folder).rglob("*.*") if path.is_file() and path.suffix != ".json"]
        assert len(files) == 2 * (2 * 2 + 1 + 1 + 1)
        for path in files:
            other = tmp_path / "two" / path.relative_to(tmp_path / "one")
            if path.suffix == ".jpg":
                assert path.read_bytes() == other.read_bytes()
        for name in ("front_camera", "back_camera"):
            assert len(json.loads((tmp_path / "one" / folder / "camera" / name / "poses.json").read_text())) == 2
    with pytest.raises(InputError, match="--cameras roof is none of front_camera"):
        synth.write_scenes(tmp_path / "three", cameras=("roof",))
    with pytest.raises(InputError, match="--streets rural"):
        synth.write_scenes(tmp_path / "three", kind="rural")
