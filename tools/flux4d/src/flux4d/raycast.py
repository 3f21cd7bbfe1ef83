"""Rays cast into a street: what a camera photographs and what a LiDAR hits."""

import math

import numpy as np
from numba import njit
from recon4d import threads

from flux4d.paint import GROUND, SHADOWS, SKY, paint
from flux4d.streets import BOX, Street, posed

FAR = 1e9
REACH, STEPS = 600.0, 40  # metres and steps in which uneven ground is looked for
TILE = 16


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
def _height(x, y, waves):
    total = 0.0
    for k in range(len(waves)):
        total += waves[k, 0] * math.sin(waves[k, 1] * x + waves[k, 2] * y + waves[k, 3])
    return total


@njit(cache=True, nogil=True)
def _ground_hit(origin, direction, waves):
    """Distance at which a ray meets the ground, FAR if it does not: small steps, then the secant."""
    if len(waves) == 0:
        return -origin[2] / direction[2] if direction[2] < -1e-9 else FAR
    top = 0.0
    for k in range(len(waves)):
        top += abs(waves[k, 0])
    fall = direction[2]
    if abs(fall) < 1e-9:
        fall = -1e-9
    enter, leave = (top - origin[2]) / fall, (-top - origin[2]) / fall
    start, end = max(0.0, min(enter, leave)), min(REACH, max(enter, leave))
    if end <= start:
        return FAR
    before = (
        origin[2]
        + start * direction[2]
        - _height(origin[0] + start * direction[0], origin[1] + start * direction[1], waves)
    )
    if before <= 0:
        return FAR
    left = start
    for step in range(1, STEPS + 1):
        t = start + (end - start) * step / STEPS
        above = (
            origin[2] + t * direction[2] - _height(origin[0] + t * direction[0], origin[1] + t * direction[1], waves)
        )
        if above <= 0:
            right, under = t, above
            for _ in range(6):
                t = left + (right - left) * before / (before - under)
                above = (
                    origin[2]
                    + t * direction[2]
                    - _height(origin[0] + t * direction[0], origin[1] + t * direction[1], waves)
                )
                if above > 0:
                    left, before = t, above
                else:
                    right, under = t, above
            return t
        left, before = t, above
    return FAR


@njit(cache=True, nogil=True)
def _cast_one(origin, direction, shapes, chosen, count, waves, normal, local):
    """Distance and shape that a ray hits first of those chosen; fills the world normal and the hit in its axes."""
    best, hit = _ground_hit(origin, direction, waves), SKY
    if best < FAR:
        hit = GROUND
        x, y = origin[0] + best * direction[0], origin[1] + best * direction[1]
        normal[0] = normal[1] = 0.0
        for k in range(len(waves)):
            slope = waves[k, 0] * math.cos(waves[k, 1] * x + waves[k, 2] * y + waves[k, 3])
            normal[0] -= slope * waves[k, 1]
            normal[1] -= slope * waves[k, 2]
        length = math.sqrt(normal[0] ** 2 + normal[1] ** 2 + 1)
        normal[0], normal[1], normal[2] = normal[0] / length, normal[1] / length, 1 / length
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
def _blocked(point, normal, sun, shapes):
    """Whether a shape stands between a point and the sun."""
    start = np.empty(3)
    for a in range(3):
        start[a] = point[a] + 0.01 * normal[a]
    for k in range(shapes.shape[0]):
        dx, dy, dz = shapes[k, 1] - start[0], shapes[k, 2] - start[1], shapes[k, 3] - start[2]
        along = dx * sun[0] + dy * sun[1] + dz * sun[2]
        radius2 = shapes[k, 4] ** 2 + shapes[k, 5] ** 2 + shapes[k, 6] ** 2
        if dx * dx + dy * dy + dz * dz - along * along > radius2 or along < -math.sqrt(radius2):
            continue
        c, s = shapes[k, 7], shapes[k, 8]
        hx, hy, hz = shapes[k, 4], shapes[k, 5], shapes[k, 6]
        ox, oy, oz = -(c * dx + s * dy) / hx, -(-s * dx + c * dy) / hy, -dz / hz
        rx, ry, rz = (c * sun[0] + s * sun[1]) / hx, (-s * sun[0] + c * sun[1]) / hy, sun[2] / hz
        if shapes[k, 0] == BOX:
            near, far = 1e-4, FAR
            for a in range(3):
                o = ox if a == 0 else (oy if a == 1 else oz)
                r = rx if a == 0 else (ry if a == 1 else rz)
                if abs(r) < 1e-12:
                    if abs(o) > 1:
                        far = -FAR
                    continue
                t0, t1 = (-1 - o) / r, (1 - o) / r
                near, far = max(near, min(t0, t1)), min(far, max(t0, t1))
            if near < far:
                return True
        else:
            a, b = rx * rx + ry * ry + rz * rz, ox * rx + oy * ry + oz * rz
            inner = b * b - a * (ox * ox + oy * oy + oz * oz - 1)
            if inner > 0 and (-b + math.sqrt(inner)) / a > 1e-4 and -b > 0:
                return True
    return False


@njit(cache=True, nogil=True)
def _image_tile(
    row0, row1, column0, column1, samples, rotation, origin, f, cx, cy, shapes, waves, crossing, seed, sun, look,
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
                distance, hit = _cast_one(origin, direction, shapes, chosen, count, waves, normal, local)
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
                lit = hit == SKY or look[SHADOWS] == 0 or not _blocked(point, normal, sun, shapes)
                paint(
                    shapes, hit, local, normal, point, direction, distance * length, lit, crossing, seed, sun, look,
                    colour,
                )  # fmt: skip
                for a in range(3):
                    image[row, column, a] += colour[a] / (samples * samples)


@njit(cache=True, nogil=True)
def _rays(origin, directions, shapes, waves, distance, hit_actor, cosine):
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
        d, hit = _cast_one(origin, directions[i], shapes, chosen, count, waves, normal, local)
        distance[i] = FAR if hit == SKY else d
        hit_actor[i] = -1 if hit < 0 else int(shapes[hit, 13])
        cosine[i] = abs(normal[0] * directions[i, 0] + normal[1] * directions[i, 1] + normal[2] * directions[i, 2])


def photograph(
    street: Street, time: float, camera_to_world: np.ndarray, K: np.ndarray, width: int, height: int, samples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a camera sees: colours (H, W, 3) in [0, 1], depth (H, W) in metres (0 is sky), actor (H, W), -1 for none,
    and the world point (H, W, 3) at each pixel's centre. `samples` squared rays make a pixel's colour."""
    shapes = posed(street, time)
    image, depth = np.empty((height, width, 3)), np.empty((height, width))
    actor, place = np.empty((height, width), np.int64), np.empty((height, width, 3))
    rotation, origin = np.ascontiguousarray(camera_to_world[:3, :3]), np.ascontiguousarray(camera_to_world[:3, 3])
    threads.announce_compile("the ray caster", 10, _image_tile)
    waves, sun, look = street.uneven(), np.array(street.sun), street.look.values()
    across = -(-width // TILE)

    def tile(part: int) -> None:
        row, column = part // across * TILE, part % across * TILE
        _image_tile(
            row, min(row + TILE, height), column, min(column + TILE, width), samples, rotation, origin,
            K[0, 0], K[0, 2], K[1, 2], shapes, waves, street.crossing, street.seed, sun, look,
            image, depth, actor, place,
        )  # fmt: skip

    threads.share(tile, across * -(-height // TILE))
    return image, depth, actor, place


def scan(street: Street, time: float, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Distances (N,) along unit directions (N, 3), actors (N,) and cosines of incidence (N,); no return is FAR."""
    n = len(directions)
    distance, actor, cosine = np.empty(n), np.empty(n, np.int64), np.empty(n)
    _rays(
        np.ascontiguousarray(origin, np.float64),
        np.ascontiguousarray(directions),
        posed(street, time),
        street.uneven(),
        distance,
        actor,
        cosine,
    )
    return distance, actor, cosine
