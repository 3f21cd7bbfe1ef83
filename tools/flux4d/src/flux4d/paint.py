"""What a ray's hit looks like: procedural surfaces, light, shadow, weather. Compiled parts of the ray caster."""

import math

from numba import njit

from flux4d.streets import CAR, FACADE, LEAVES, NOISY

GROUND, SKY = -1, -2  # in place of a shape's number
# Places in the array of a Look, in the order of its fields
AMBIENT, SUNLIGHT, SHADOWS, EXPOSURE, WET, GRAIN, CLOUDS, GLOW, HAZE, HALF_ROAD, LANE, PAVEMENT = range(12)
LOW, HIGH = 12, 15


@njit(cache=True, nogil=True)
def _hash(i, j, k):
    n = (i * 374761393 + j * 668265263 + k * 1274126177) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1103515245 + 12345) & 0x7FFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@njit(cache=True, nogil=True)
def noise(x, y, seed):
    """Value noise in [0, 1], one lattice cell per unit."""
    i, j = math.floor(x), math.floor(y)
    u, v = x - i, y - j
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    i, j = int(i), int(j)
    top = _hash(i, j, seed) * (1 - u) + _hash(i + 1, j, seed) * u
    return top * (1 - v) + (_hash(i, j + 1, seed) * (1 - u) + _hash(i + 1, j + 1, seed) * u) * v


@njit(cache=True, nogil=True)
def _rough(x, y, seed):
    """Noise of four octaves in -1..1, the coarsest of one cell per unit."""
    total, share, seed = 0.0, 0.5, int(seed)
    for octave in range(4):
        total += share * (2 * noise(x, y, seed + 101 * octave) - 1)
        x, y, share = 2.17 * x, 2.17 * y, 0.62 * share
    return total


@njit(cache=True, nogil=True)
def _town_ground(x, y, crossing, seed, out):
    along, across = abs(x), abs(y - crossing)
    if along < 5.7 or across < 5.7:
        g = 0.27 + 0.12 * noise(x / 1.7, y / 1.7, seed) + 0.05 * noise(x * 1.5, y * 1.5, seed + 1)
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
        g = 0.5 + 0.1 * noise(x, y, seed + 2)
        if x % 1.5 < 0.06 or y % 1.5 < 0.06:
            g *= 0.75
        out[0], out[1], out[2] = g, 0.97 * g, 0.92 * g
    else:
        g = 0.6 + 0.6 * noise(x / 0.8, y / 0.8, seed + 3)
        out[0], out[1], out[2] = 0.3 * g, 0.38 * g, 0.2 * g


@njit(cache=True, nogil=True)
def _road_ground(x, y, crossing, seed, look, out):
    """Any road: lanes with worn marks, patches and seams, pavement or a verge."""
    half, lane, pavement = look[HALF_ROAD], look[LANE], look[PAVEMENT]
    along, across = abs(x), abs(y - crossing)
    if along < half or across < 5.7:
        g = 0.3 + 0.12 * _rough(x / 2.3, y / 3.1, seed) + 0.06 * _rough(3 * x, 3 * y, seed + 1)
        if noise(x / 2.9, y / 6.1, seed + 5) > 0.72:  # a patch of another tar
            g *= 0.72
        if abs(noise(x / 3.7, y / 5.3, seed + 6) - 0.5) < 0.012:  # a crack
            g *= 0.5
        out[0], out[1], out[2] = g, g, 1.03 * g
        marked = False
        if across > 7.5:
            place = (x + 40 * lane) % lane
            edge = half - 0.35
            marked = edge - 0.14 < along < edge
            if along < edge - 0.5 and (place < 0.07 or place > lane - 0.07):
                marked = y % 12.0 < 4.5
        elif across > 5.7:
            marked = along < half - 0.3 and x % 1.0 < 0.5 and across < 7.2
        else:
            marked = across < 0.08 and x % 9.0 < 4.0 and along > half
        if marked and noise(4 * x, 4 * y, seed + 7) > 0.18:
            out[0], out[1], out[2] = 0.78, 0.78, 0.76
    elif along < half + pavement or across < 5.7 + pavement:
        g = 0.46 + 0.1 * _rough(x, y, seed + 2)
        if x % 0.8 < 0.05 or y % 0.8 < 0.05:
            g *= 0.75
        out[0], out[1], out[2] = g, 0.96 * g, 0.9 * g
    else:
        g = 0.75 + 0.5 * _rough(x / 0.9, y / 0.9, seed + 3)
        dry = noise(x / 7, y / 7, seed + 4)
        out[0], out[1], out[2] = (0.24 + 0.22 * dry) * g, 0.36 * g, (0.14 + 0.08 * dry) * g


@njit(cache=True, nogil=True)
def _sky(direction, seed, sun, look, out):
    up = max(direction[2], 0.0)
    cloud = noise(6 * direction[0] / (up + 0.25), 6 * direction[1] / (up + 0.25), seed + 9)
    cloud = look[CLOUDS] * max(0.0, cloud - 0.45)
    glow = 0.0
    if look[GLOW] > 0:
        near = max(0.0, direction[0] * sun[0] + direction[1] * sun[1] + direction[2] * sun[2])
        glow = look[GLOW] * (0.5 * near**8 + near**120)
    for a in range(3):
        low, high = look[LOW + a], look[HIGH + a]
        blue = low + (high - low) * min(1.0, 2.2 * up)
        out[a] = min(1.0, (blue + cloud * (0.95 - blue) + glow) * look[EXPOSURE])


@njit(cache=True, nogil=True)
def _surface(shapes, hit, local, look, out):
    """The colour of a shape where it was hit, before any light."""
    for a in range(3):
        out[a] = shapes[hit, 9 + a]
    pattern = shapes[hit, 12]
    if pattern == FACADE:
        along = local[1] if abs(local[0]) >= shapes[hit, 4] - 1e-4 else local[0]
        height = local[2] + shapes[hit, 6]
        if abs(local[2]) < shapes[hit, 6] - 1e-4:
            g = 0.85 + 0.3 * noise(along * 1.2, height * 1.2, hit)
            wide, high = 2.9, 3.0
            if look[GRAIN] > 0:  # each house has windows of its own
                wide, high = 2.0 + 2.5 * _hash(hit, 1, 5), 2.6 + 1.2 * _hash(hit, 2, 5)
            pane = 0.31 * wide < (along + 200) % wide < 0.72 * wide and 0.33 * high < height % high < 0.8 * high
            for a in range(3):
                glass = (0.16, 0.2, 0.27)[a]
                out[a] = glass + 0.1 * noise(along / 3, height / 3, hit) if pane else out[a] * g
    elif pattern >= NOISY:
        step = 2.2 if pattern == LEAVES else 5.0
        g = 0.65 + 0.7 * noise(step * (local[0] + local[1]), step * (local[2] + 0.6 * local[1]), hit)
        if look[GRAIN] > 0 and pattern == LEAVES:
            x, y, z = 2.9 * local[0], 2.9 * local[1], 2.9 * local[2]
            g = 0.9 + 0.9 * (_rough(x, y, hit) + _rough(y + 5, z, hit) + _rough(z, x + 5, hit))
            g = max(0.15, g)
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
    if look[GRAIN] > 0:
        g = 1 + look[GRAIN] * _rough(1.4 * (local[0] + local[1]), 1.4 * (local[2] - 0.7 * local[1]), hit + 17)
        for a in range(3):
            out[a] *= g


@njit(cache=True, nogil=True)
def paint(shapes, hit, local, normal, point, direction, distance, lit, crossing, seed, sun, look, out):
    """Colour of what a ray sees. lit: whether the sun reaches it; the sky shines by itself."""
    if hit == SKY:
        _sky(direction, seed, sun, look, out)
        return
    if hit != GROUND:
        _surface(shapes, hit, local, look, out)
    elif look[HALF_ROAD] > 0:
        _road_ground(point[0], point[1], crossing, seed, look, out)
    else:
        _town_ground(point[0], point[1], crossing, seed, out)
    facing = max(0.0, normal[0] * sun[0] + normal[1] * sun[1] + normal[2] * sun[2])
    light = look[AMBIENT] + (look[SUNLIGHT] * facing if lit else 0.0)
    shine = 0.0
    if look[WET] > 0 and normal[2] > 0.7:
        shine = look[WET] * (0.08 + 0.5 * (1 - abs(direction[2])) ** 6)
        light *= 1 - 0.4 * look[WET]
    veil = 1 - math.exp(-look[HAZE] * distance) if look[HAZE] > 0 else 0.0
    for a in range(3):
        colour = out[a] * light * (1 - shine) + shine * look[LOW + a]
        colour += veil * (look[LOW + a] - colour)
        out[a] = min(1.0, max(0.0, colour * look[EXPOSURE]))
