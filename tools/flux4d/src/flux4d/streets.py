"""Streets that can be ray cast: ground, boxes and ellipsoids with procedural colours, some of them on moving actors.

World axes: x right, y along the street, z up; metres and seconds. An actor's own axes are PandaSet's for cuboids: x to
its right, y forward, z up, yaw counterclockwise about z and 0 when it heads along world y.
"""

import math
from dataclasses import dataclass

import numpy as np

BOX, ELLIPSOID = 0, 1
PLAIN, CAR, FACADE, NOISY, LEAVES = range(5)

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Shape:
    """A box or ellipsoid: centre, half sizes and yaw in its actor's axes (in the world's, when it has none)."""

    kind: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    colour: Colour
    pattern: int = PLAIN
    yaw: float = 0.0
    actor: int = -1


@dataclass(frozen=True)
class Actor:
    """Something with a cuboid: where it starts, and how it moves along an arc.

    label: PandaSet's class. size: width, length, height. x, y, yaw: at time 0. speed: m/s. acceleration: m/s^2, until
    it stands still. curvature: 1/m.
    """

    label: str
    size: tuple[float, float, float]
    x: float
    y: float
    yaw: float
    speed: float = 0.0
    acceleration: float = 0.0
    curvature: float = 0.0

    def pose(self, time: float) -> tuple[float, float, float]:
        """x, y, yaw at a time: s = v t + a t^2 / 2 along an arc."""
        if self.acceleration < 0:  # it brakes to a stop and does not drive back
            time = min(time, -self.speed / self.acceleration)
        s = self.speed * time + self.acceleration * time * time / 2
        turn = self.curvature * s
        if abs(self.curvature) < 1e-9:
            forward, left = s, 0.0
        else:
            forward, left = math.sin(turn) / self.curvature, (1 - math.cos(turn)) / self.curvature
        c, d = math.cos(self.yaw), math.sin(self.yaw)
        return self.x - d * forward - c * left, self.y + c * forward - d * left, self.yaw + turn


@dataclass(frozen=True)
class Look:
    """Light, weather and road.

    ambient, sunlight: shares of the light. shadows: 1 casts them. exposure: of the camera. wet: ground that shines.
    grain: strength of fine noise on all surfaces; 0 is smooth. clouds, glow: in the sky, glow around the sun. haze:
    per metre. half_road, lane, pavement: metres; half_road 0 is the town street of 5.7 m. low, high: the sky's colour
    at the horizon and above.
    """

    ambient: float = 0.6
    sunlight: float = 0.45
    shadows: float = 0.0
    exposure: float = 1.0
    wet: float = 0.0
    grain: float = 0.0
    clouds: float = 1.0
    glow: float = 0.0
    haze: float = 0.0
    half_road: float = 0.0
    lane: float = 3.5
    pavement: float = 3.5
    low: Colour = (0.80, 0.86, 0.92)
    high: Colour = (0.36, 0.56, 0.86)

    def values(self) -> np.ndarray:
        """(18,) for the ray caster, in the order of the fields."""
        numbers = [value for name, value in vars(self).items() if name not in ("low", "high")]
        return np.array([*numbers, *self.low, *self.high])


@dataclass(frozen=True)
class Street:
    """A street with its actors.

    ego: the actor that carries the sensors; it has no shapes. crossing: y of the crossing street's middle. waves: of
    the ground, a sum of a sin(kx x + ky y + p): a in metres, kx and ky in 1/m, p.
    """

    actors: list[Actor]
    shapes: list[Shape]
    ego: Actor
    crossing: float
    sun: tuple[float, float, float]
    seed: int
    look: Look = Look()
    waves: tuple[tuple[float, float, float, float], ...] = ()

    def uneven(self) -> np.ndarray:
        """(W, 4) the waves, for the ray caster."""
        return np.array(self.waves, np.float64).reshape(-1, 4)

    def height(self, x: float, y: float) -> float:
        """Of the ground, metres."""
        return sum(a * math.sin(kx * x + ky * y + p) for a, kx, ky, p in self.waves)


def car(actor: int, size: tuple[float, float, float], colour: Colour) -> list[Shape]:
    """A car from boxes and flat ellipsoids, in its own axes; z = 0 is the ground."""
    w, length, h = (s / 2 for s in size)
    red, green, blue = colour
    dark, glass = (0.06, 0.06, 0.07), (0.35 * red + 0.1, 0.35 * green + 0.1, 0.35 * blue + 0.1)
    shapes = [
        Shape(BOX, (0, 0, 0.62 * h + 0.12), (w, length, 0.45 * h), colour, CAR, 0.0, actor),
        Shape(BOX, (0, -0.08 * length, 1.5 * h), (0.85 * w, 0.5 * length, 0.5 * h), glass, PLAIN, 0.0, actor),
        Shape(BOX, (0, -0.08 * length, 1.97 * h), (0.84 * w, 0.49 * length, 0.04 * h), colour, PLAIN, 0.0, actor),
    ]
    for side in (-1, 1):
        for end in (-0.62, 0.62):
            place = (side * 0.92 * w, end * length, 0.33)
            shapes.append(Shape(ELLIPSOID, place, (0.13, 0.34, 0.33), dark, PLAIN, 0.0, actor))
    return shapes


def walker(actor: int, shirt: Colour, trousers: Colour) -> list[Shape]:
    """A standing person, 1.75 m."""
    return [
        Shape(ELLIPSOID, (-0.1, 0, 0.42), (0.12, 0.15, 0.46), trousers, PLAIN, 0.0, actor),
        Shape(ELLIPSOID, (0.1, 0, 0.42), (0.12, 0.15, 0.46), trousers, PLAIN, 0.0, actor),
        Shape(ELLIPSOID, (0, 0, 1.1), (0.27, 0.19, 0.42), shirt, NOISY, 0.0, actor),
        Shape(ELLIPSOID, (0, 0.02, 1.6), (0.11, 0.13, 0.15), (0.75, 0.58, 0.47), PLAIN, 0.0, actor),
    ]


def cyclist(actor: int, shirt: Colour) -> list[Shape]:
    """A person on a bicycle."""
    dark = (0.1, 0.1, 0.12)
    return [
        Shape(ELLIPSOID, (0, -0.52, 0.34), (0.05, 0.34, 0.34), dark, PLAIN, 0.0, actor),
        Shape(ELLIPSOID, (0, 0.52, 0.34), (0.05, 0.34, 0.34), dark, PLAIN, 0.0, actor),
        Shape(BOX, (0, 0, 0.6), (0.04, 0.5, 0.1), shirt, PLAIN, 0.0, actor),
        Shape(ELLIPSOID, (0, -0.05, 0.85), (0.16, 0.25, 0.35), (0.15, 0.17, 0.3), PLAIN, 0.0, actor),
        Shape(ELLIPSOID, (0, 0.05, 1.3), (0.24, 0.22, 0.36), shirt, NOISY, 0.0, actor),
        Shape(ELLIPSOID, (0, 0.15, 1.68), (0.12, 0.15, 0.14), (0.8, 0.1, 0.1), PLAIN, 0.0, actor),
    ]


class _Builder:
    """What a random street holds so far, and the randomness that the rest is drawn from."""

    def __init__(self, rng: np.random.Generator, crossing: float):
        self.rng, self.crossing = rng, crossing
        self.actors: list[Actor] = []
        self.shapes: list[Shape] = []

    def paint(self) -> Colour:
        hue = self.rng.random(3)
        red, green, blue = 0.08 + 0.85 * (0.6 * hue + 0.4 * hue.mean()) * self.rng.uniform(0.5, 1)
        return red, green, blue

    def add_car(self, **motion: float) -> None:
        size = (self.rng.uniform(1.75, 2.0), self.rng.uniform(4.0, 5.2), self.rng.uniform(1.4, 1.75))
        self.shapes += car(len(self.actors), size, self.paint())
        self.actors.append(Actor("Car", size, **motion))

    def add_walker(self, **motion: float) -> None:
        self.shapes += walker(len(self.actors), self.paint(), self.paint())
        self.actors.append(Actor("Pedestrian", (0.6, 0.5, 1.76), **motion))

    def add_cyclist(self, **motion: float) -> None:
        self.shapes += cyclist(len(self.actors), self.paint())
        self.actors.append(Actor("Bicycle", (0.6, 1.75, 1.83), **motion))

    def is_free(self, y: float) -> bool:
        """Whether the roadside is no part of the crossing there."""
        return abs(y - self.crossing) > 9.5


def random_street(seed: int, seconds: float) -> Street:
    """Buildings, trees, parked and moving cars, people and cyclists.

    Every other seed has crossing traffic ahead of a slow ego vehicle; the rest have a car ahead and a faster one.
    """
    rng = np.random.default_rng(seed)
    has_crossing = seed % 2 == 0
    speed = rng.uniform(1.5, 4.0) if has_crossing else rng.uniform(4.0, 8.0)
    ego = Actor("ego", (1.9, 4.6, 1.7), 1.75, 0.0, 0.0, speed, rng.uniform(-0.2, 0.3), 0.0)
    crossing = ego.pose(seconds)[1] + rng.uniform(13, 20) if has_crossing else -60.0
    builder = _Builder(rng, crossing)
    if has_crossing:
        _add_crossing_traffic(builder)
    else:
        _add_traffic_ahead(builder, speed)
    for side in (-1, 1):
        _add_roadside(builder, side)
    far = crossing + 130 if has_crossing else 220.0
    builder.shapes.append(Shape(BOX, (0, far, 7), (60, 4, 7), (0.45, 0.43, 0.42), FACADE))
    sun = np.array([rng.uniform(-0.7, 0.7), -0.6, 0.8])
    return Street(builder.actors, builder.shapes, ego, crossing, tuple(sun / np.linalg.norm(sun)), seed)


def _add_crossing_traffic(builder: _Builder) -> None:
    rng, crossing = builder.rng, builder.crossing
    for side in (-1, 1):  # from the right in the near lane, from the left in the far one
        x = side * rng.uniform(8, 14)
        for _ in range(5):
            lane = crossing - 1.75 if side < 0 else crossing + 1.75
            builder.add_car(x=x, y=lane, yaw=side * math.pi / 2, speed=rng.uniform(5, 9))
            x += side * rng.uniform(13, 20)
    for i in range(4):
        side = 1 if i % 2 else -1
        x, speed = side * (rng.uniform(2, 5) + 4 * (i // 2)), rng.uniform(1.0, 1.8)
        builder.add_walker(x=x, y=crossing - 7.0 - rng.uniform(0, 1.5), yaw=side * math.pi / 2, speed=speed)
    builder.add_cyclist(x=rng.uniform(-14, -9), y=crossing - 4.6, yaw=-math.pi / 2, speed=rng.uniform(3, 5))
    builder.add_car(x=-1.75, y=crossing + 12, yaw=math.pi, speed=0.0)


def _add_traffic_ahead(builder: _Builder, speed: float) -> None:
    rng = builder.rng
    y = rng.uniform(14, 22)
    builder.add_car(x=1.75, y=y, yaw=0.0, speed=speed + rng.uniform(-0.2, 2.5), acceleration=rng.uniform(-0.3, 0.5))
    builder.add_car(x=1.75, y=y + 30, yaw=0.0, speed=speed + 3, curvature=rng.uniform(-0.004, 0.004))
    for y in np.cumsum(rng.uniform(18, 32, 6)):
        builder.add_car(x=-1.75, y=float(y) - 4, yaw=math.pi, speed=rng.uniform(5, 6))
    builder.add_cyclist(x=3.2, y=rng.uniform(9, 14), yaw=0.0, speed=rng.uniform(4, 6))
    builder.add_cyclist(x=-3.2, y=rng.uniform(35, 60), yaw=math.pi, speed=rng.uniform(3, 5))


def _add_roadside(builder: _Builder, side: int) -> None:
    """People who walk, parked cars, buildings and trees on one side: -1 left, 1 right."""
    rng, shapes = builder.rng, builder.shapes
    for _ in range(3):
        y = rng.uniform(6, 45)
        if builder.is_free(y):
            yaw = 0.0 if rng.integers(2) else math.pi
            builder.add_walker(x=side * rng.uniform(6.3, 7.8), y=y, yaw=yaw, speed=rng.uniform(0.8, 1.7))
    y = rng.uniform(-10, 2)
    while y < 110:
        if builder.is_free(y) and rng.random() < 0.55:
            builder.add_car(x=side * 4.7, y=y, yaw=0.0 if side > 0 else math.pi)
        y += rng.uniform(6.2, 9)
    y = -30.0
    while y < 190:
        length, depth, height = rng.uniform(9, 22), rng.uniform(8, 14), rng.uniform(5, 17)
        if abs(y + length / 2 - builder.crossing) > length / 2 + 8:
            red, green, blue = np.array([0.55, 0.45, 0.38]) * rng.uniform(0.6, 1.3) + rng.uniform(-0.1, 0.1, 3)
            place = (side * (9.8 + depth / 2 + rng.uniform(0, 1.5)), y + length / 2, height / 2)
            shapes.append(Shape(BOX, place, (depth / 2, length / 2, height / 2), (red, green, blue), FACADE))
        y += length + rng.uniform(0.2, 5)
    y = rng.uniform(-10, 0)
    while y < 120:
        if builder.is_free(y):
            shapes.append(Shape(BOX, (side * 8.6, y, 1.4), (0.13, 0.13, 1.4), (0.3, 0.22, 0.15), NOISY))
            r = rng.uniform(0.9, 1.6)
            leaves = (0.2 * rng.uniform(0.7, 1.3), 0.38 * rng.uniform(0.7, 1.3), 0.13)
            shapes.append(Shape(ELLIPSOID, (side * 8.6, y, 2.6 + r), (r, r, 1.2 * r), leaves, LEAVES))
        y += rng.uniform(9, 18)


def posed(street: Street, time: float) -> np.ndarray:
    """The shapes at a time, for the ray caster: (S, 14) kind, centre, half, cos, sin, colour, pattern, actor."""
    poses = [actor.pose(time) for actor in street.actors]
    lifts = [street.height(x, y) for x, y, _ in poses]
    rows = np.empty((len(street.shapes), 14))
    for row, shape in zip(rows, street.shapes):
        x, y, z = shape.centre
        yaw = shape.yaw
        if shape.actor >= 0:
            ax, ay, turn = poses[shape.actor]
            c, s = math.cos(turn), math.sin(turn)
            x, y, yaw = ax + c * x - s * y, ay + s * x + c * y, yaw + turn
            z += lifts[shape.actor]
        else:
            z += street.height(x, y)
        place, turned = (x, y, z, *shape.half), (math.cos(yaw), math.sin(yaw))
        row[:] = (shape.kind, *place, *turned, *shape.colour, shape.pattern, shape.actor)
    return rows


def velocity(street: Street, time: float, points: np.ndarray, actor: np.ndarray) -> np.ndarray:
    """Velocities (..., 3) in m/s of world points that ride on actors (...,); 0 for the rest."""
    out = np.zeros(points.shape)
    step = 1e-3
    for number in np.unique(actor[actor >= 0]):
        on = actor == number
        x, y, yaw = street.actors[number].pose(time)
        c, s = math.cos(yaw), math.sin(yaw)
        dx, dy = points[on][..., 0] - x, points[on][..., 1] - y
        right, forward = c * dx + s * dy, -s * dx + c * dy  # in the actor's own axes, where they do not move
        start, end = (street.actors[number].pose(time + shift) for shift in (-step, step))
        out[on, :2] = (_placed(right, forward, end) - _placed(right, forward, start)) / (2 * step)
        out[on, 2] = (street.height(*end[:2]) - street.height(*start[:2])) / (2 * step)
    return out


def _placed(right: np.ndarray, forward: np.ndarray, pose: tuple[float, float, float]) -> np.ndarray:
    """World x and y (..., 2) of places in the axes of an actor with this pose."""
    x, y, yaw = pose
    c, s = math.cos(yaw), math.sin(yaw)
    return np.stack([x + c * right - s * forward, y + s * right + c * forward], -1)
