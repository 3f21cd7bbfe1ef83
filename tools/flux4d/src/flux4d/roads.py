"""Roads of every kind, to learn the real world from: motorways, towns, crossings and jams in any light and weather."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flux4d.streets import (
    BOX,
    ELLIPSOID,
    FACADE,
    LEAVES,
    NOISY,
    PLAIN,
    Actor,
    Colour,
    Look,
    Shape,
    Street,
    car,
    cyclist,
    walker,
)

KINDS = ("motorway", "town", "crossing", "jam")


def lorry(actor: int, size: tuple[float, float, float], cab: Colour, load: Colour, tank: bool) -> list[Shape]:
    """A lorry or bus in its own axes: a cab, a box or a tank behind it, wheels."""
    w, length, h = size[0] / 2, size[1] / 2, size[2]
    dark = (0.07, 0.07, 0.08)
    bed = 0.72 * length
    kind = ELLIPSOID if tank else BOX
    shapes = [
        Shape(BOX, (0, length - 1.0, 0.45 * h), (w, 1.0, 0.37 * h), cab, PLAIN, 0.0, actor),
        Shape(BOX, (0, length + 0.01, 0.6 * h), (0.85 * w, 0.02, 0.14 * h), (0.12, 0.14, 0.17), PLAIN, 0.0, actor),
        Shape(kind, (0, bed - length, 0.6 * h), (w, bed, 0.4 * h), load, NOISY, 0.0, actor),
        Shape(BOX, (0, -0.1 * length, 0.85), (0.8 * w, 0.85 * length, 0.16), dark, PLAIN, 0.0, actor),
    ]
    for side in (-1, 1):
        for end in (-0.8, -0.6, 0.65):
            shapes.append(
                Shape(ELLIPSOID, (side * 0.9 * w, end * length, 0.5), (0.16, 0.5, 0.5), dark, PLAIN, 0, actor)
            )
        lamp = (side * 0.8 * w, -length + 0.02, 0.9)
        shapes.append(Shape(BOX, lamp, (0.16, 0.06, 0.09), (0.8, 0.06, 0.05), PLAIN, 0.0, actor))
    for stripe in range(3):  # what is written on it
        place = (0, (0.9 * stripe - 1.2) * bed * 0.6 - 0.3 * bed, 0.65 * h)
        mark = (1 - load[0], 0.8 - 0.6 * load[1], 1 - load[2])
        shapes.append(Shape(BOX, place, (w + 0.015, 0.14 * bed, 0.08 * h), mark, NOISY, 0.0, actor))
    return shapes


def tree(rng: np.random.Generator, x: float, y: float) -> list[Shape]:
    """A trunk and a crown of several lumps."""
    tall, r = rng.uniform(1.2, 4.0), rng.uniform(0.8, 2.2)
    green = np.array([0.24, 0.36, 0.12]) * rng.uniform(0.5, 1.3) + rng.uniform(-0.03, 0.06, 3)
    if rng.random() < 0.15:  # autumn
        green = np.array([0.5, 0.33, 0.1]) * rng.uniform(0.6, 1.2)
    shapes = [Shape(BOX, (x, y, tall / 2), (0.12, 0.12, tall / 2 + 0.5), (0.25, 0.19, 0.14), NOISY, rng.uniform(0, 3))]
    for _ in range(rng.integers(1, 5)):
        dx, dy, dz = rng.normal(0, 0.55 * r, 3)
        half = r * rng.uniform(0.6, 1.1, 3)
        place = (x + dx, y + dy, tall + r + 0.6 * dz)
        shapes.append(Shape(ELLIPSOID, place, tuple(half), tuple(green), LEAVES, rng.uniform(0, 3)))
    return shapes


@dataclass(eq=False)
class _Scene:
    """What a road holds so far, and the randomness that the rest is drawn from."""

    rng: np.random.Generator
    crossing: float
    half: float
    lane: float
    actors: list[Actor]
    shapes: list[Shape]

    def paint(self) -> Colour:
        """Cars are grey, white or black for the most part."""
        rng = self.rng
        if rng.random() < 0.65:
            g = rng.choice([0.06, 0.12, 0.3, 0.5, 0.75, 0.9]) * rng.uniform(0.85, 1.05)
            return (g, g, min(1.03 * g, 1.0))
        red, green, blue = 0.05 + 0.8 * rng.dirichlet([0.6, 0.6, 0.6]) * rng.uniform(0.3, 1)
        return red, green, blue

    def vehicle(self, **motion: float) -> float:
        """A car, van or lorry; its length."""
        rng, number = self.rng, len(self.actors)
        kind = rng.random()
        if kind < 0.75:
            size = (rng.uniform(1.65, 2.0), rng.uniform(3.6, 5.2), rng.uniform(1.35, 1.9))
            self.shapes += car(number, size, self.paint())
            label = "Car"
        elif kind < 0.85:
            size = (rng.uniform(1.9, 2.1), rng.uniform(5.0, 6.5), rng.uniform(2.1, 2.7))
            self.shapes += lorry(number, size, (color := self.paint()), color, False)
            label = "Other Vehicle"
        else:
            size = (rng.uniform(2.3, 2.55), rng.uniform(8, 15), rng.uniform(3.0, 4.0))
            self.shapes += lorry(number, size, self.paint(), self.paint(), rng.random() < 0.3)
            label = "Semi-truck"
        self.actors.append(Actor(label, size, **motion))
        return size[1]

    def person(self, **motion: float) -> None:
        if self.rng.random() < 0.25:
            self.shapes += cyclist(len(self.actors), self.paint())
            motion["speed"] = 3 * motion.get("speed", 0.0)
            self.actors.append(Actor("Bicycle", (0.6, 1.75, 1.83), **motion))
            return
        self.shapes += walker(len(self.actors), self.paint(), self.paint())
        self.actors.append(Actor("Pedestrian", (0.6, 0.5, 1.76), **motion))

    def is_free(self, y: float) -> bool:
        return abs(y - self.crossing) > 9.5


def varied_street(seed: int, seconds: float) -> Street:
    """A road of a random kind with its traffic, roadside, light and weather. Speeds go to 30 m/s; things turn, brake,
    stand and pass; the ground is uneven."""
    rng = np.random.default_rng((seed, 77))
    kind = KINDS[int(rng.choice(4, p=[0.25, 0.3, 0.25, 0.2]))]
    lanes = int(rng.integers(2, 4) if kind in ("motorway", "jam") else 1)  # to each side of the middle
    lane = rng.uniform(3.1, 3.7)
    own = int(rng.integers(0, lanes))
    speed = {
        "motorway": rng.uniform(15, 30),
        "town": rng.uniform(5, 15),
        "crossing": rng.choice([0.0, rng.uniform(1, 6)]),
        "jam": rng.uniform(0, 4),
    }[kind]
    bend = rng.normal(0, 0.02) if kind == "crossing" else rng.normal(0, 0.0006)
    ego = Actor("ego", (1.9, 4.6, 1.7), lane * (own + 0.5), 0.0, 0.0, speed, rng.uniform(-1.0, 0.8), bend)
    crossing = ego.pose(seconds)[1] + rng.uniform(11, 24) if kind == "crossing" else -200.0
    half = lanes * lane + rng.uniform(0.3, 2.5)
    scene = _Scene(rng, crossing, half, lane, [], [])
    if kind == "crossing":
        _add_crossing(scene)
    _add_lanes(scene, kind, lanes, own, ego, seconds)
    for side in (-1, 1):
        _add_side(scene, side, kind)
    if rng.random() < 0.3:  # a bridge over the road, or a gantry with signs
        y, thick = rng.uniform(25, 90) + speed, rng.uniform(0.3, 4)
        grey = rng.uniform(0.2, 0.6)
        scene.shapes.append(Shape(BOX, (0, y, 6.2), (60, thick, 0.6), (grey, grey, grey), NOISY))
        for x in (-half - 1.5, half + 1.5):
            scene.shapes.append(Shape(BOX, (x, y, 3.0), (0.4, 0.4, 3.2), (grey, grey, grey), NOISY))
    look, sun = _look(rng, kind, half, lane)
    waves = tuple(
        (rng.uniform(0, 0.5) * 25 / wide, math.cos(way) / wide, math.sin(way) / wide, rng.uniform(0, 6))
        for wide, way in zip(rng.uniform(12, 40, 2), rng.uniform(0, math.pi, 2))
    )
    waves = tuple((min(a, 0.012 * 1 / max(math.hypot(kx, ky), 1e-6)), kx, ky, p) for a, kx, ky, p in waves)
    return Street(scene.actors, scene.shapes, ego, crossing, sun, seed, look, waves)


def _look(rng: np.random.Generator, kind: str, half: float, lane: float) -> tuple[Look, tuple[float, float, float]]:
    """Light, weather and road, and where the sun is."""
    around, up = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(8, 65))
    grain = rng.uniform(0.15, 0.7)
    pavement = 0.0 if kind == "motorway" else rng.uniform(0.5, 5)
    road: dict[str, Any] = {"grain": grain, "half_road": half, "lane": lane, "pavement": pavement}
    weather = rng.choice(["sunny", "low sun", "overcast", "rain"], p=[0.4, 0.2, 0.25, 0.15])
    blue = tuple(np.array([0.36, 0.56, 0.86]) * rng.uniform(0.8, 1.1))
    if weather == "sunny":
        light: dict[str, Any] = {"ambient": rng.uniform(0.35, 0.6), "sunlight": rng.uniform(0.5, 1.0), "shadows": 1.0}
        sky: dict[str, Any] = {"clouds": rng.uniform(0, 1.2), "high": blue}
    elif weather == "low sun":
        around, up = rng.normal(math.pi / 2, 0.7), math.radians(rng.uniform(4, 15))
        light = {"ambient": rng.uniform(0.3, 0.55), "sunlight": rng.uniform(0.5, 0.9), "shadows": 1.0}
        warm = rng.uniform(0, 0.15)
        sky = {"glow": rng.uniform(0.2, 1.0), "low": (0.98, 0.95 - warm, 0.92 - 2 * warm), "high": blue}
    else:
        wet = rng.uniform(0.4, 1) if weather == "rain" else 0.0
        g = rng.uniform(0.55, 0.95) - 0.2 * (wet > 0)
        light = {"ambient": rng.uniform(0.6, 0.95), "sunlight": rng.uniform(0, 0.15), "wet": wet}
        sky = {"low": (g, g, 1.02 * g), "high": (0.85 * g, 0.87 * g, 0.92 * g), "clouds": 0.4}
        sky["haze"] = rng.uniform(0, 0.008 if wet else 0.003)
    exposure = rng.uniform(0.9, 1.7) * (0.65 if weather == "rain" else 1.0)
    sun = (math.cos(around) * math.cos(up), math.sin(around) * math.cos(up), math.sin(up))
    return Look(**road, **light, **sky, exposure=exposure), sun


def _add_crossing(scene: _Scene) -> None:
    """Cross traffic, vehicles that turn, people on the zebra."""
    rng, crossing = scene.rng, scene.crossing
    for side in (-1, 1):
        x, fast = side * rng.uniform(3, 12), rng.uniform(3, 12)
        y = crossing - 1.75 if side < 0 else crossing + 1.75
        if rng.random() < 0.2:
            fast = 0.0
        for _ in range(5):
            x += side * (scene.vehicle(x=x, y=y, yaw=side * math.pi / 2, speed=fast) / 2 + rng.uniform(5, 16))
    if rng.random() < 0.7:  # comes towards us and turns
        yaw, turn = math.pi, rng.choice([-1, 1]) * rng.uniform(0.06, 0.14)
        place = {"x": -0.5 * scene.lane, "y": crossing + rng.uniform(0, 8)}
        scene.vehicle(**place, yaw=yaw, speed=rng.uniform(3, 8), curvature=turn)
    for _ in range(rng.integers(0, 6)):
        side = rng.choice([-1, 1])
        place = {"x": side * rng.uniform(0, 7), "y": crossing - 6.5 - rng.uniform(0, 1.5)}
        scene.person(**place, yaw=side * math.pi / 2, speed=rng.uniform(0.7, 2))


def _add_lanes(scene: _Scene, kind: str, lanes: int, own: int, ego: Actor, seconds: float) -> None:
    """Traffic in all lanes, ours and the other way."""
    rng = scene.rng
    typical = {"motorway": (12, 30), "town": (4, 15), "crossing": (0, 5), "jam": (0, 6)}[kind]
    for number in range(lanes):
        x = scene.lane * (number + 0.5)
        y = rng.uniform(8, 25) if number == own else rng.uniform(-12, 15)
        reach = min(110.0, scene.crossing - 12) if kind == "crossing" else 110.0
        pace = rng.uniform(*typical)
        while y < reach:
            fast = max(pace + rng.normal(0, 0.8), 0.0) if pace > 0.5 else 0.0
            if number == own:  # nobody is run over while we look
                fast = max(fast, ego.speed - (y - 8) / max(seconds, 1.0))
            slow = rng.uniform(-2.5, 1.5) if fast > 3 else 0.0
            sway = rng.normal(0, 0.0008)
            length = scene.vehicle(
                x=x + rng.normal(0, 0.2), y=y, yaw=0.0, speed=fast, acceleration=slow, curvature=sway
            )
            y += length + (rng.uniform(2, 9) if kind == "jam" else rng.uniform(6, 35))
        pace, y = rng.uniform(*typical) * rng.uniform(0.6, 1.0), rng.uniform(5, 30)
        while y < 130 and not (kind == "crossing" and abs(y - scene.crossing) < 14):
            motion = {"x": -x + rng.normal(0, 0.2), "y": y, "yaw": math.pi}
            y += scene.vehicle(**motion, speed=pace) + rng.uniform(4, 40)
    if kind == "motorway" and rng.random() < 0.8:
        scene.shapes.append(Shape(BOX, (0, 80, 0.4), (0.15, 200, 0.45), (0.5, 0.5, 0.5), NOISY))


def _add_side(scene: _Scene, side: int, kind: str) -> None:
    """Parked cars, people, buildings, walls, trees, poles and signs on one side."""
    rng, shapes, half = scene.rng, scene.shapes, scene.half
    edge = half + rng.uniform(0.4, 1.5)
    if kind in ("town", "crossing"):
        y, share = rng.uniform(-10, 2), rng.uniform(0, 0.9)
        while y < 110:
            if scene.is_free(y) and rng.random() < share:
                scene.vehicle(x=side * (half - 0.2), y=y, yaw=0.0 if side > 0 else math.pi)
            y += rng.uniform(6.5, 10)
        for _ in range(rng.integers(0, 5)):
            y = rng.uniform(4, 45)
            if scene.is_free(y):
                yaw = 0.0 if rng.integers(2) else math.pi
                scene.person(x=side * (edge + rng.uniform(1, 3)), y=y, yaw=yaw, speed=rng.uniform(0, 2))
    elif rng.random() < 0.7:  # a rail
        shapes.append(Shape(BOX, (side * (half + 0.6), 80, 0.55), (0.05, 200, 0.2), (0.6, 0.6, 0.62), NOISY))
    back = edge + rng.uniform(2, 6) + (15 if kind == "motorway" else 0)
    y, built = -30.0, rng.choice([0.0, 0.3, 0.9], p=[0.25, 0.3, 0.45])
    while y < 190:
        length, depth, tall = rng.uniform(6, 25), rng.uniform(6, 14), rng.uniform(3, 20)
        free = abs(y + length / 2 - scene.crossing) > length / 2 + 8
        place = (side * (back + depth / 2 + rng.uniform(0, 4)), y + length / 2)
        if free and rng.random() < built:
            base = rng.choice([[0.6, 0.5, 0.42], [0.5, 0.3, 0.24], [0.65, 0.64, 0.6], [0.4, 0.42, 0.45]])
            wall = tuple(np.clip(base * rng.uniform(0.6, 1.3) + rng.uniform(-0.06, 0.06, 3), 0.03, 1))
            pattern = FACADE if rng.random() < 0.85 else NOISY
            shapes.append(Shape(BOX, (*place, tall / 2), (depth / 2, length / 2, tall / 2 + 1), wall, pattern))
        elif free and rng.random() < 0.6:  # a hedge or wood
            r = (rng.uniform(1, 3), length / 2, rng.uniform(1, 5))
            green = tuple(np.array([0.2, 0.32, 0.12]) * rng.uniform(0.5, 1.3))
            shapes.append(Shape(ELLIPSOID, (*place, 0.5), r, green, LEAVES))
        y += length + rng.uniform(0, 6)
    y, apart = rng.uniform(-10, 5), rng.uniform(6, 30)
    while y < 120:
        if scene.is_free(y) and rng.random() < 0.8:
            shapes += tree(rng, side * (edge + rng.uniform(0.5, 6) + (8 if kind == "motorway" else 0)), y)
        y += apart * rng.uniform(0.6, 1.4)
    y, apart = rng.uniform(0, 20), rng.uniform(15, 40)
    while y < 120:
        if scene.is_free(y):
            tall, grey = rng.uniform(2.2, 8), rng.uniform(0.15, 0.6)
            shapes.append(Shape(BOX, (side * edge, y, tall / 2), (0.06, 0.06, tall / 2 + 0.3), (grey, grey, grey)))
            if rng.random() < 0.6:
                sign = tuple(rng.choice([[0.8, 0.1, 0.1], [0.1, 0.25, 0.7], [0.85, 0.85, 0.82], [0.8, 0.7, 0.1]]))
                shapes.append(Shape(BOX, (side * edge, y, tall), (rng.uniform(0.2, 0.7), 0.03, 0.35), sign))
        y += apart
