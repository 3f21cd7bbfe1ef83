"""Rays cast into a street: what a camera photographs and what a LiDAR hits."""

import math

import numpy as np
from numba import njit
from recon4d import threads

from flux4d.streets import BOX, CAR, FACADE, LEAVES, NOISY, Street, posed

GROUND, SKY = -1, -2  # in place of a shape's number
FAR = 1e9
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
    street: Street, time: float, camera_to_world: np.ndarray, K: np.ndarray, width: int, height: int, samples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a camera sees: colours (H, W, 3) in [0, 1], depth (H, W) in metres (0 is sky), actor (H, W), -1 for none,
    and the world point (H, W, 3) at each pixel's centre. `samples` squared rays make a pixel's colour."""
    shapes = posed(street, time)
    image, depth = np.empty((height, width, 3)), np.empty((height, width))
    actor, place = np.empty((height, width), np.int64), np.empty((height, width, 3))
    rotation, origin = np.ascontiguousarray(camera_to_world[:3, :3]), np.ascontiguousarray(camera_to_world[:3, 3])
    threads.announce_compile("the ray caster", 10, _image_tile)
    across = -(-width // TILE)

    def tile(part: int) -> None:
        row, column = part // across * TILE, part % across * TILE
        _image_tile(
            row, min(row + TILE, height), column, min(column + TILE, width), samples, rotation, origin,
            K[0, 0], K[0, 2], K[1, 2], shapes, street.crossing, street.seed, np.array(street.sun),
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
        distance,
        actor,
        cosine,
    )
    return distance, actor, cosine
