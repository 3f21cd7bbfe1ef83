"""A street that can be ray cast: ground, boxes and ellipsoids with procedural colours, some of them on moving actors.

World axes: x right, y along the street, z up; metres and seconds. An actor's own axes are PandaSet's for cuboids: x to
its right, y forward, z up, yaw counterclockwise about z and 0 when it heads along world y.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from recon4d import numba_setup

BOX, ELLIPSOID = 0, 1
PLAIN, CAR, FACADE, NOISY, LEAVES = range(5)
GROUND, SKY = -1, -2
FAR = 1e9
TILE = 16


@dataclass(frozen=True)
class Shape:
    """A box or ellipsoid: centre, half sizes and yaw in its actor's axes (in the world's, when it has none)."""

    kind: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    colour: tuple[float, float, float]
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
class World:
    """A street with its actors.

    ego: the actor that carries the sensors; it has no shapes. crossing: y of the crossing street's middle.
    """

    actors: list[Actor]
    shapes: list[Shape]
    ego: Actor
    crossing: float
    sun: tuple[float, float, float]
    seed: int


def car(actor: int, size: tuple[float, float, float], colour: tuple[float, float, float]) -> list[Shape]:
    """A car from boxes and flat ellipsoids, in its own axes; z = 0 is the ground."""
    w, length, h = (s / 2 for s in size)
    dark, glass = (0.06, 0.06, 0.07), tuple(0.35 * c + 0.1 for c in colour)
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


def walker(actor: int, shirt: tuple[float, float, float], trousers: tuple[float, float, float]) -> list[Shape]:
    """A standing person, 1.75 m."""
    return [
        Shape(ELLIPSOID, (-0.1, 0, 0.42), (0.12, 0.15, 0.46), trousers, PLAIN, 0.0, actor),
        Shape(ELLIPSOID, (0.1, 0, 0.42), (0.12, 0.15, 0.46), trousers, PLAIN, 0.0, actor),
        Shape(ELLIPSOID, (0, 0, 1.1), (0.27, 0.19, 0.42), shirt, NOISY, 0.0, actor),
        Shape(ELLIPSOID, (0, 0.02, 1.6), (0.11, 0.13, 0.15), (0.75, 0.58, 0.47), PLAIN, 0.0, actor),
    ]


def cyclist(actor: int, shirt: tuple[float, float, float]) -> list[Shape]:
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


def street(seed: int, seconds: float) -> World:
    """A random street: buildings, trees, parked and moving cars, people and cyclists.

    Every other seed has crossing traffic ahead of a slow ego vehicle; the rest have a car ahead and a faster one.
    """
    rng = np.random.default_rng(seed)
    has_crossing = seed % 2 == 0
    speed = rng.uniform(1.5, 4.0) if has_crossing else rng.uniform(4.0, 8.0)
    ego = Actor("ego", (1.9, 4.6, 1.7), 1.75, 0.0, 0.0, speed, rng.uniform(-0.2, 0.3), 0.0)
    end = ego.pose(seconds)[1]
    crossing = end + rng.uniform(13, 20) if has_crossing else -60.0
    actors: list[Actor] = []
    shapes: list[Shape] = []

    def paint() -> tuple[float, float, float]:
        hue = rng.random(3)
        return tuple(0.08 + 0.85 * (0.6 * hue + 0.4 * hue.mean()) * rng.uniform(0.5, 1))  # type: ignore[return-value]

    def add_car(**motion: float) -> None:
        size = (rng.uniform(1.75, 2.0), rng.uniform(4.0, 5.2), rng.uniform(1.4, 1.75))
        shapes.extend(car(len(actors), size, paint()))
        actors.append(Actor("Car", size, **motion))

    def add_walker(**motion: float) -> None:
        shapes.extend(walker(len(actors), paint(), paint()))
        actors.append(Actor("Pedestrian", (0.6, 0.5, 1.76), **motion))

    def add_cyclist(**motion: float) -> None:
        shapes.extend(cyclist(len(actors), paint()))
        actors.append(Actor("Bicycle", (0.6, 1.75, 1.83), **motion))

    def free(y: float) -> bool:
        return abs(y - crossing) > 9.5

    if has_crossing:
        for side in (-1, 1):  # from the right in the near lane, from the left in the far one
            x = side * rng.uniform(8, 14)
            for _ in range(5):
                lane = crossing - 1.75 if side < 0 else crossing + 1.75
                add_car(x=x, y=lane, yaw=side * math.pi / 2, speed=rng.uniform(5, 9))
                x += side * rng.uniform(13, 20)
        for i in range(4):
            side = 1 if i % 2 else -1
            x, v = side * (rng.uniform(2, 5) + 4 * (i // 2)), rng.uniform(1.0, 1.8)
            add_walker(x=x, y=crossing - 7.0 - rng.uniform(0, 1.5), yaw=side * math.pi / 2, speed=v)
        add_cyclist(x=rng.uniform(-14, -9), y=crossing - 4.6, yaw=-math.pi / 2, speed=rng.uniform(3, 5))
        braking = max(crossing - 16 - end, 4.0)
        y = end + braking + 4
        add_car(x=-1.75, y=crossing + 12, yaw=math.pi, speed=0.0)
    else:
        y = rng.uniform(14, 22)
        add_car(x=1.75, y=y, yaw=0.0, speed=speed + rng.uniform(-0.2, 2.5), acceleration=rng.uniform(-0.3, 0.5))
        add_car(x=1.75, y=y + 30, yaw=0.0, speed=speed + 3, curvature=rng.uniform(-0.004, 0.004))
        for y in np.cumsum(rng.uniform(18, 32, 6)):
            add_car(x=-1.75, y=float(y) - 4, yaw=math.pi, speed=rng.uniform(5, 6))
        add_cyclist(x=3.2, y=rng.uniform(9, 14), yaw=0.0, speed=rng.uniform(4, 6))
        add_cyclist(x=-3.2, y=rng.uniform(35, 60), yaw=math.pi, speed=rng.uniform(3, 5))
    for side in (-1, 1):
        for _ in range(3):
            y = rng.uniform(6, 45)
            if free(y):
                away = bool(rng.integers(2))
                add_walker(
                    x=side * rng.uniform(6.3, 7.8), y=y, yaw=0.0 if away else math.pi, speed=rng.uniform(0.8, 1.7)
                )
        y = rng.uniform(-10, 2)
        while y < 110:
            if free(y) and rng.random() < 0.55:
                add_car(x=side * 4.7, y=y, yaw=0.0 if side > 0 else math.pi)
            y += rng.uniform(6.2, 9)
        y = -30.0
        while y < 190:
            length, depth, height = rng.uniform(9, 22), rng.uniform(8, 14), rng.uniform(5, 17)
            if abs(y + length / 2 - crossing) > length / 2 + 8:
                colour = tuple(np.array([0.55, 0.45, 0.38]) * rng.uniform(0.6, 1.3) + rng.uniform(-0.1, 0.1, 3))
                place = (side * (9.8 + depth / 2 + rng.uniform(0, 1.5)), y + length / 2, height / 2)
                shapes.append(Shape(BOX, place, (depth / 2, length / 2, height / 2), colour, FACADE))
            y += length + rng.uniform(0.2, 5)
        y = rng.uniform(-10, 0)
        while y < 120:
            if free(y):
                shapes.append(Shape(BOX, (side * 8.6, y, 1.4), (0.13, 0.13, 1.4), (0.3, 0.22, 0.15), NOISY))
                r = rng.uniform(0.9, 1.6)
                green = (0.2 * rng.uniform(0.7, 1.3), 0.38 * rng.uniform(0.7, 1.3), 0.13)
                shapes.append(Shape(ELLIPSOID, (side * 8.6, y, 2.6 + r), (r, r, 1.2 * r), green, LEAVES))
            y += rng.uniform(9, 18)
    far = crossing + 130 if has_crossing else 220.0
    shapes.append(Shape(BOX, (0, far, 7), (60, 4, 7), (0.45, 0.43, 0.42), FACADE))
    sun = np.array([rng.uniform(-0.7, 0.7), -0.6, 0.8])
    return World(actors, shapes, ego, crossing, tuple(sun / np.linalg.norm(sun)), seed)


def posed(world: World, time: float) -> np.ndarray:
    """The shapes at a time, for the ray caster: (S, 14) kind, centre, half, cos, sin, colour, pattern, actor."""
    poses = [actor.pose(time) for actor in world.actors]
    rows = np.empty((len(world.shapes), 14))
    for row, shape in zip(rows, world.shapes):
        x, y, z = shape.centre
        yaw = shape.yaw
        if shape.actor >= 0:
            ax, ay, turn = poses[shape.actor]
            c, s = math.cos(turn), math.sin(turn)
            x, y, yaw = ax + c * x - s * y, ay + s * x + c * y, yaw + turn
        row[:] = (
            shape.kind,
            x,
            y,
            z,
            *shape.half,
            math.cos(yaw),
            math.sin(yaw),
            *shape.colour,
            shape.pattern,
            shape.actor,
        )
    return rows


@njit(cache=True, nogil=True)
def _near_cone(origin, axis, half_angle, shapes, chosen):
    """Which shapes may be hit within a cone: their numbers into `chosen`, and how many. axis: a unit vector."""
    count = 0
    for k in range(shapes.shape[0]):
        dx, dy, dz = shapes[k, 1] - origin[0], shapes[k, 2] - origin[1], shapes[k, 3] - origin[2]
        distance = math.sqrt(dx * dx + dy * dy + dz * dz)
        radius = math.sqrt(shapes[k, 4] ** 2 + shapes[k, 5] ** 2 + shapes[k, 6] ** 2)
        if distance > radius:
            off = math.acos(min(1.0, max(-1.0, (dx * axis[0] + dy * axis[1] + dz * axis[2]) / distance)))
            if off > half_angle + math.asin(radius / distance):
                continue
        chosen[count] = k
        count += 1
    return count


@njit(cache=True, nogil=True)
def _cast_one(origin, direction, shapes, chosen, count, normal, local):
    """Distance and shape that a ray hits first of those chosen; fills the world normal and the hit in its axes."""
    best, hit = FAR, SKY
    if direction[2] < -1e-9:
        best, hit = -origin[2] / direction[2], GROUND
        normal[0], normal[1], normal[2] = 0.0, 0.0, 1.0
    for which in range(count):
        k = chosen[which]
        c, s = shapes[k, 7], shapes[k, 8]
        dx, dy, dz = origin[0] - shapes[k, 1], origin[1] - shapes[k, 2], origin[2] - shapes[k, 3]
        hx, hy, hz = shapes[k, 4], shapes[k, 5], shapes[k, 6]
        # the ray in the shape's axes, scaled so that the shape is a unit box or sphere
        ox, oy, oz = (c * dx + s * dy) / hx, (-s * dx + c * dy) / hy, dz / hz
        rx = (c * direction[0] + s * direction[1]) / hx
        ry = (-s * direction[0] + c * direction[1]) / hy
        rz = direction[2] / hz
        if shapes[k, 0] == BOX:
            near, far, axis = -FAR, FAR, -1
            inside = True
            for a in range(3):
                o = ox if a == 0 else (oy if a == 1 else oz)
                r = rx if a == 0 else (ry if a == 1 else rz)
                if abs(r) < 1e-12:
                    if abs(o) > 1:
                        inside = False
                        break
                    continue
                t0, t1 = (-1 - o) / r, (1 - o) / r
                if t0 > t1:
                    t0, t1 = t1, t0
                if t0 > near:
                    near, axis = t0, a
                if t1 < far:
                    far = t1
                if near > far:
                    inside = False
                    break
            if not inside or near <= 1e-6 or near >= best:
                continue
            best, hit = near, k
            nx, ny, nz = 0.0, 0.0, 0.0
            if axis == 0:
                nx = -1.0 if rx > 0 else 1.0
            elif axis == 1:
                ny = -1.0 if ry > 0 else 1.0
            else:
                nz = -1.0 if rz > 0 else 1.0
        else:
            a, b = rx * rx + ry * ry + rz * rz, ox * rx + oy * ry + oz * rz
            inner = b * b - a * (ox * ox + oy * oy + oz * oz - 1)
            if inner <= 0:
                continue
            near = (-b - math.sqrt(inner)) / a
            if near <= 1e-6 or near >= best:
                continue
            best, hit = near, k
            nx, ny, nz = (ox + near * rx) / hx, (oy + near * ry) / hy, (oz + near * rz) / hz
            length = math.sqrt(nx * nx + ny * ny + nz * nz)
            nx, ny, nz = nx / length, ny / length, nz / length
        normal[0], normal[1], normal[2] = c * nx - s * ny, s * nx + c * ny, nz
        local[0], local[1], local[2] = (ox + near * rx) * hx, (oy + near * ry) * hy, (oz + near * rz) * hz
    return best, hit


@njit(cache=True, nogil=True)
def _hash(i, j, k):
    n = (i * 374761393 + j * 668265263 + k * 1274126177) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1103515245 + 12345) & 0x7FFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@njit(cache=True, nogil=True)
def _noise(x, y, seed):
    """Value noise in [0, 1], one lattice cell per unit."""
    i, j = math.floor(x), math.floor(y)
    u, v = x - i, y - j
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    i, j = int(i), int(j)
    top = _hash(i, j, seed) * (1 - u) + _hash(i + 1, j, seed) * u
    return top * (1 - v) + (_hash(i, j + 1, seed) * (1 - u) + _hash(i + 1, j + 1, seed) * u) * v


@njit(cache=True, nogil=True)
def _ground(x, y, crossing, seed, out):
    along, across = abs(x), abs(y - crossing)
    if along < 5.7 or across < 5.7:
        g = 0.27 + 0.12 * _noise(x / 1.7, y / 1.7, seed) + 0.05 * _noise(x * 1.5, y * 1.5, seed + 1)
        out[0], out[1], out[2] = g, g, 1.04 * g
        marked = False
        if across > 7.2:
            marked = (along < 0.1 and y % 9.0 < 4.0) or (3.45 < along < 3.58)
        elif across > 5.7:  # zebra
            marked = along < 5.5 and x % 1.0 < 0.5 and across < 7.0 and y < crossing
        else:
            marked = across < 0.1 and x % 9.0 < 4.0 and along > 5.7
        if marked:
            out[0] = out[1] = out[2] = 0.85
    elif along < 9.2 or across < 9.2:
        g = 0.5 + 0.1 * _noise(x, y, seed + 2)
        if x % 1.5 < 0.06 or y % 1.5 < 0.06:
            g *= 0.75
        out[0], out[1], out[2] = g, 0.97 * g, 0.92 * g
    else:
        g = 0.6 + 0.6 * _noise(x / 0.8, y / 0.8, seed + 3)
        out[0], out[1], out[2] = 0.3 * g, 0.38 * g, 0.2 * g


@njit(cache=True, nogil=True)
def _paint(shapes, hit, local, normal, point, direction, crossing, seed, sun, out):
    """Colour of what a ray sees, before the light falls on it for surfaces; the sky shines by itself."""
    if hit == SKY:
        up = max(direction[2], 0.0)
        cloud = _noise(6 * direction[0] / (up + 0.25), 6 * direction[1] / (up + 0.25), seed + 9)
        cloud = max(0.0, cloud - 0.45)
        for a in range(3):
            low, high = (0.80, 0.86, 0.92)[a], (0.36, 0.56, 0.86)[a]
            blue = low + (high - low) * min(1.0, 2.2 * up)
            out[a] = min(1.0, blue + cloud * (0.95 - blue))
        return
    if hit == GROUND:
        _ground(point[0], point[1], crossing, seed, out)
    else:
        for a in range(3):
            out[a] = shapes[hit, 9 + a]
        pattern = shapes[hit, 12]
        if pattern == FACADE:
            along = local[1] if abs(local[0]) >= shapes[hit, 4] - 1e-4 else local[0]
            height = local[2] + shapes[hit, 6]
            if abs(local[2]) < shapes[hit, 6] - 1e-4:
                g = 0.85 + 0.3 * _noise(along * 1.2, height * 1.2, hit)
                pane = 0.9 < (along + 200) % 2.9 < 2.1 and 1.0 < height % 3.0 < 2.4
                for a in range(3):
                    out[a] = (0.16, 0.2, 0.27)[a] + 0.1 * _noise(along / 3, height / 3, hit) if pane else out[a] * g
        elif pattern >= NOISY:
            step = 2.2 if pattern == LEAVES else 5.0
            g = 0.65 + 0.7 * _noise(step * (local[0] + local[1]), step * (local[2] + 0.6 * local[1]), hit)
            for a in range(3):
                out[a] *= g
        elif pattern == CAR:
            height = local[2] / shapes[hit, 6]
            if abs(local[1]) >= shapes[hit, 5] - 1e-4 and abs(local[0]) > 0.6 * shapes[hit, 4] and height > 0.1:
                for a in range(3):  # lamps
                    out[a] = (0.95, 0.92, 0.8)[a] if local[1] > 0 else (0.75, 0.08, 0.06)[a]
            elif height < -0.6:
                for a in range(3):
                    out[a] *= 0.5
    light = 0.6 + 0.45 * max(0.0, normal[0] * sun[0] + normal[1] * sun[1] + normal[2] * sun[2])
    for a in range(3):
        out[a] = min(1.0, max(0.0, out[a] * light))


@njit(cache=True, nogil=True)
def _image_tile(
    row0, row1, column0, column1, samples, rotation, origin, f, cx, cy, shapes, crossing, seed, sun,
    image, depth, actor, place,
):  # fmt: skip
    normal, local, colour = np.zeros(3), np.zeros(3), np.zeros(3)
    direction, point = np.zeros(3), np.zeros(3)
    x, y = ((column0 + column1) / 2 - cx) / f, ((row0 + row1) / 2 - cy) / f
    length = math.sqrt(x * x + y * y + 1)
    for a in range(3):
        direction[a] = (rotation[a, 0] * x + rotation[a, 1] * y + rotation[a, 2]) / length
    chosen = np.empty(len(shapes), np.int64)
    # the tile's half diagonal, seen from 1 away, is not less than its half angle
    count = _near_cone(origin, direction, math.hypot(row1 - row0, column1 - column0) / (2 * f), shapes, chosen)
    for row in range(row0, row1):
        for column in range(column0, column1):
            image[row, column, :] = 0
            for sample in range(samples * samples + 1):
                centre = sample == samples * samples  # the last ray gives the truth at the pixel's centre
                v = 0.5 if centre else (sample // samples + 0.5) / samples
                u = 0.5 if centre else (sample % samples + 0.5) / samples
                x, y = (column + u - cx) / f, (row + v - cy) / f
                for a in range(3):
                    direction[a] = rotation[a, 0] * x + rotation[a, 1] * y + rotation[a, 2]
                distance, hit = _cast_one(origin, direction, shapes, chosen, count, normal, local)
                for a in range(3):
                    point[a] = origin[a] + distance * direction[a]
                if centre:
                    # the direction's component along the optical axis is 1, so the distance is the depth
                    depth[row, column] = 0.0 if hit == SKY else distance
                    actor[row, column] = -1 if hit < 0 else int(shapes[hit, 13])
                    place[row, column, :] = point
                    continue
                length = math.sqrt(direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2)
                for a in range(3):
                    direction[a] /= length
                _paint(shapes, hit, local, normal, point, direction, crossing, seed, sun, colour)
                for a in range(3):
                    image[row, column, a] += colour[a] / (samples * samples)


@njit(cache=True, nogil=True)
def _rays(origin, directions, shapes, distance, hit_actor, cosine):
    normal, local, axis = np.zeros(3), np.zeros(3), np.zeros(3)
    chosen = np.empty(len(shapes), np.int64)
    count = 0
    for i in range(len(directions)):
        if i % 16 == 0:  # neighbours in the list are neighbours in space
            last = min(i + 16, len(directions))
            axis[:] = 0
            for j in range(i, last):
                axis += directions[j]
            axis /= math.sqrt(axis[0] ** 2 + axis[1] ** 2 + axis[2] ** 2)
            narrow = 1.0
            for j in range(i, last):
                narrow = min(
                    narrow, axis[0] * directions[j, 0] + axis[1] * directions[j, 1] + axis[2] * directions[j, 2]
                )
            count = _near_cone(origin, axis, math.acos(max(-1.0, narrow)) + 1e-6, shapes, chosen)
        d, hit = _cast_one(origin, directions[i], shapes, chosen, count, normal, local)
        distance[i] = FAR if hit == SKY else d
        hit_actor[i] = -1 if hit < 0 else int(shapes[hit, 13])
        cosine[i] = abs(normal[0] * directions[i, 0] + normal[1] * directions[i, 1] + normal[2] * directions[i, 2])


def photograph(
    world: World, time: float, camera_to_world: np.ndarray, K: np.ndarray, width: int, height: int, samples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a camera sees: colours (H, W, 3) in [0, 1], depth (H, W) in metres (0 is sky), actor (H, W), -1 for none,
    and the world point (H, W, 3) at each pixel's centre. `samples` squared rays make a pixel's colour."""
    shapes = posed(world, time)
    image, depth = np.empty((height, width, 3)), np.empty((height, width))
    actor, place = np.empty((height, width), np.int64), np.empty((height, width, 3))
    rotation, origin = np.ascontiguousarray(camera_to_world[:3, :3]), np.ascontiguousarray(camera_to_world[:3, 3])
    numba_setup.announce_compile("the ray caster", 10, _image_tile)
    across = -(-width // TILE)

    def tile(part: int) -> None:
        row, column = part // across * TILE, part % across * TILE
        _image_tile(
            row, min(row + TILE, height), column, min(column + TILE, width), samples, rotation, origin,
            K[0, 0], K[0, 2], K[1, 2], shapes, world.crossing, world.seed, np.array(world.sun),
            image, depth, actor, place,
        )  # fmt: skip

    numba_setup.share(tile, across * -(-height // TILE))
    return image, depth, actor, place


def scan(world: World, time: float, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Distances (N,) along unit directions (N, 3), actors (N,) and cosines of incidence (N,); no return is FAR."""
    n = len(directions)
    distance, actor, cosine = np.empty(n), np.empty(n, np.int64), np.empty(n)
    _rays(
        np.ascontiguousarray(origin, np.float64),
        np.ascontiguousarray(directions),
        posed(world, time),
        distance,
        actor,
        cosine,
    )
    return distance, actor, cosine


def velocity(world: World, time: float, points: np.ndarray, actor: np.ndarray) -> np.ndarray:
    """Velocities (..., 3) in m/s of world points that ride on actors (...,); 0 for the rest."""
    out = np.zeros(points.shape)
    step = 1e-3
    for number in np.unique(actor[actor >= 0]):
        (x0, y0, a0), (x1, y1, a1) = (world.actors[number].pose(time + d) for d in (-step, step))
        x, y, a = world.actors[number].pose(time)
        on = actor == number
        c, s = math.cos(-a), math.sin(-a)
        dx, dy = points[on][..., 0] - x, points[on][..., 1] - y
        own = np.stack([c * dx - s * dy, s * dx + c * dy], -1)

        def placed(px: float, py: float, turn: float, own: np.ndarray = own) -> np.ndarray:
            c, s = math.cos(turn), math.sin(turn)
            return np.stack([px + c * own[..., 0] - s * own[..., 1], py + s * own[..., 0] + c * own[..., 1]], -1)

        out[on, :2] = (placed(x1, y1, a1) - placed(x0, y0, a0)) / (2 * step)
    return out
