"""Visibility on the CPU: a scanline rasterizer in Numba, over bands of rows, with exact edges.

Vertices are snapped to 1/32768 pixel. On that grid the first pixel centre at or right of an edge is an integer
division per row, carried from row to row with its remainder (Bresenham's digital differential analyser), so the two
triangles of a shared edge compute the same number: a pixel on the edge goes to exactly one of them (the top-left
rule: left and top edges are in, right and bottom edges are out). A row of a triangle is then one span, and its inner
loop (depth test, two conditional stores) has no edge tests and vectorises.

Triangles are binned to bands of rows; a band is drawn by one thread, in triangle order, so nothing is atomic and the
result does not depend on the number of threads.
"""

import math

import numpy as np
from numba import njit

from recon4d import threads

FRACTION = 15  # sub-pixel bits
STEP = 1 << FRACTION  # one pixel
GUARD = 16000.0  # pixels from the image centre; what reaches further is clipped, so that products fit in 64 bits
MAX_SIZE = 16384  # largest image side
W_MIN = 1e-9

OK, CLIP, BROKEN = 0, 1, 2


@njit(cache=True, nogil=True, boundscheck=False)
def _project(pos, first, last, height, width, xs, ys, zs, state):
    """Clip space -> fixed point with pixel centre i at i * STEP, row 0 at the top; flags what cannot be divided."""
    half_w = 0.5 * width
    half_h = 0.5 * height
    off_x = half_w - 0.5
    off_y = half_h - 0.5
    for v in range(first, last):
        x = np.float64(pos[v, 0])
        y = np.float64(pos[v, 1])
        z = np.float64(pos[v, 2])
        w = np.float64(pos[v, 3])
        xs[v] = 0
        ys[v] = 0
        zs[v] = 0.0
        if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z) and math.isfinite(w)):
            state[v] = BROKEN
        elif w < W_MIN or z < -w:
            state[v] = CLIP
        else:
            sx = x / w * half_w
            sy = -y / w * half_h
            if abs(sx) > GUARD or abs(sy) > GUARD:
                state[v] = CLIP
            else:
                state[v] = OK
                xs[v] = np.int32(math.floor((sx + off_x) * STEP + 0.5))
                ys[v] = np.int32(math.floor((sy + off_y) * STEP + 0.5))
                zs[v] = z / w


@njit(cache=True, nogil=True, boundscheck=False)
def _outside(pos, a, b, c):
    """Whether a triangle lies wholly outside one plane of the view frustum (homogeneous trivial reject)."""
    for axis in range(3):
        if pos[a, axis] > pos[a, 3] and pos[b, axis] > pos[b, 3] and pos[c, axis] > pos[c, 3]:
            return True
        if pos[a, axis] < -pos[a, 3] and pos[b, axis] < -pos[b, 3] and pos[c, axis] < -pos[c, 3]:
            return True
    return False


@njit(cache=True, nogil=True, boundscheck=False)
def _bin(pos, base, tri, first, last, height, width, cull, rows, xs, ys, state, low, high, counts, bad):
    """Bands [low, high) of rows that each triangle may touch; low == high when it covers no pixel centre."""
    vertices = bad[1]
    bands = counts.shape[0]
    for f in range(first, last):
        low[f] = 0
        high[f] = 0
        i, j, k = tri[f, 0], tri[f, 1], tri[f, 2]
        if i < 0 or j < 0 or k < 0 or i >= vertices or j >= vertices or k >= vertices:
            bad[0] = 1
            continue
        a, b, c = base + i, base + j, base + k
        flag = max(state[a], state[b], state[c])
        if flag == BROKEN:
            continue
        if flag == CLIP:
            if _outside(pos, a, b, c):
                continue
            low[f] = 0
            high[f] = bands
            for band in range(bands):
                counts[band] += 1
            continue
        xa, xb, xc = np.int64(xs[a]), np.int64(xs[b]), np.int64(xs[c])
        ya, yb, yc = np.int64(ys[a]), np.int64(ys[b]), np.int64(ys[c])
        top = (min(ya, yb, yc) + STEP - 1) >> FRACTION
        bottom = (max(ya, yb, yc) + STEP - 1) >> FRACTION
        left = (min(xa, xb, xc) + STEP - 1) >> FRACTION
        right = (max(xa, xb, xc) + STEP - 1) >> FRACTION
        top = max(top, 0)
        bottom = min(bottom, height)
        if top >= bottom or max(left, 0) >= min(right, width):
            continue
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)  # y down: negative is counterclockwise, front
        if area == 0 or (cull == 1 and area > 0) or (cull == 2 and area < 0):
            continue
        low[f] = top // rows
        high[f] = (bottom - 1) // rows + 1
        for band in range(low[f], high[f]):
            counts[band] += 1


@njit(cache=True, nogil=True, boundscheck=False)
def _fill(first, last, low, high, place, order):
    for f in range(first, last):
        for band in range(low[f], high[f]):
            order[place[band]] = f
            place[band] += 1


@njit(cache=True, nogil=True, boundscheck=False)
def _edge(xa, ya, xb, yb, y):
    """First pixel column at or right of the line a-b in row y: quotient, remainder, their steps per row, divisor.

    q = ceil(x / STEP) of the crossing x = n / d, in integers: floats only guess the quotients, the remainders correct
    them. Both triangles of an edge get the same q, from whichever end they start. A horizontal edge gives anything.
    """
    dx = xb - xa
    dy = yb - ya
    if dy < 0:
        dx = -dx
        dy = -dy
    elif dy == 0:
        dy = np.int64(1)
    d = dy << FRACTION
    n = xa * dy + dx * ((y << FRACTION) - ya) + d - 1
    inverse = 1.0 / np.float64(dy)
    q = np.int64(math.floor(np.float64(n) * inverse * (1.0 / STEP)))
    r = n - q * d
    under = np.int64(r < 0)
    over = np.int64(r >= d)
    q += over - under
    r += (under - over) * d
    dq = np.int64(math.floor(np.float64(dx) * inverse))
    dr = dx - dq * dy
    under = np.int64(dr < 0)
    over = np.int64(dr >= dy)
    dq += over - under
    dr += (under - over) * dy
    return q, r, dq, dr << FRACTION, d


FAR_LEFT, FAR_RIGHT = -(1 << 62), 1 << 62


@njit(cache=True, nogil=True, boundscheck=False)
def _draw(xa, ya, za, xb, yb, zb, xc, yc, zc, f, low, high, width, ids, depth):
    """Draw one triangle (fixed point) in rows [low, high) of the flat image `ids`, `depth`; strictly nearer wins.

    A row's span runs from the largest crossing of the left edges to the smallest of the right edges: the triangle is
    the intersection of its edges' half-planes, so no sorting and no case of which edge is long.
    """
    area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
    if area == 0:
        return
    first = max((min(ya, yb, yc) + STEP - 1) >> FRACTION, low)
    last = min((max(ya, yb, yc) + STEP - 1) >> FRACTION, high)
    if first >= last:
        return
    # y down: with positive area the inside is to the left of edges that go down
    sign = np.int64(1) if area > 0 else np.int64(-1)
    sa, sb, sc = (yb - ya) * sign, (yc - yb) * sign, (ya - yc) * sign
    qa, ra, dqa, dra, da = _edge(xa, ya, xb, yb, first)
    qb, rb, dqb, drb, db = _edge(xb, yb, xc, yc, first)
    qc, rc, dqc, drc, dc = _edge(xc, yc, xa, ya, first)
    inverse = 1.0 / np.float64(area)
    zx = ((zb - za) * np.float64(yc - ya) - (zc - za) * np.float64(yb - ya)) * inverse
    zy = ((zc - za) * np.float64(xb - xa) - (zb - za) * np.float64(xc - xa)) * inverse
    slope = np.float32(zx * STEP)
    z_min = np.float32(min(za, zb, zc))
    z_max = np.float32(max(za, zb, zc))
    for y in range(first, last):
        x0 = max(qa if sa < 0 else FAR_LEFT, qb if sb < 0 else FAR_LEFT, qc if sc < 0 else FAR_LEFT, 0)
        x1 = min(qa if sa > 0 else FAR_RIGHT, qb if sb > 0 else FAR_RIGHT, qc if sc > 0 else FAR_RIGHT, width)
        if x0 < x1:
            z0 = np.float32(za + np.float64((y << FRACTION) - ya) * zy + np.float64((x0 << FRACTION) - xa) * zx)
            start = y * width + x0
            for x in range(x1 - x0):
                at = np.uint64(start + x)
                # clamped, because slivers have wild slopes
                z = min(max(z0 + np.float32(x) * slope, z_min), z_max)
                if z < depth[at]:
                    depth[at] = z
                    ids[at] = f
        ra += dra
        carry = np.int64(ra >= da)
        qa += dqa + carry
        ra -= carry * da
        rb += drb
        carry = np.int64(rb >= db)
        qb += dqb + carry
        rb -= carry * db
        rc += drc
        carry = np.int64(rc >= dc)
        qc += dqc + carry
        rc -= carry * dc


@njit(cache=True, nogil=True, boundscheck=False)
def clip_polygon(polygon, scratch, guard_x, guard_y):
    """Clip a triangle in clip space (rows x, y, z, w of `polygon`, (12, 4) float64) in place; returns the corner count.

    Sutherland and Hodgman 1974 against w >= W_MIN, the near plane z >= -w and the guard band. A crossing is always
    computed from the inside end to the outside end, so that both triangles of an edge get the same point.
    """
    count = 3
    for plane in range(6):
        kept = 0
        for i in range(count):
            j = i + 1 if i + 1 < count else 0
            if plane == 0:
                di = polygon[i, 3] - W_MIN
                dj = polygon[j, 3] - W_MIN
            elif plane == 1:
                di = polygon[i, 3] + polygon[i, 2]
                dj = polygon[j, 3] + polygon[j, 2]
            elif plane == 2:
                di = guard_x * polygon[i, 3] - polygon[i, 0]
                dj = guard_x * polygon[j, 3] - polygon[j, 0]
            elif plane == 3:
                di = guard_x * polygon[i, 3] + polygon[i, 0]
                dj = guard_x * polygon[j, 3] + polygon[j, 0]
            elif plane == 4:
                di = guard_y * polygon[i, 3] - polygon[i, 1]
                dj = guard_y * polygon[j, 3] - polygon[j, 1]
            else:
                di = guard_y * polygon[i, 3] + polygon[i, 1]
                dj = guard_y * polygon[j, 3] + polygon[j, 1]
            if di >= 0.0:
                for n in range(4):
                    scratch[kept, n] = polygon[i, n]
                kept += 1
                if dj < 0.0:
                    t = di / (di - dj)
                    for n in range(4):
                        scratch[kept, n] = polygon[i, n] + t * (polygon[j, n] - polygon[i, n])
                    kept += 1
            elif dj >= 0.0:
                t = dj / (dj - di)
                for n in range(4):
                    scratch[kept, n] = polygon[j, n] + t * (polygon[i, n] - polygon[j, n])
                kept += 1
        count = kept
        if count < 3:
            return 0
        for i in range(count):
            for n in range(4):
                polygon[i, n] = scratch[i, n]
    return count


@njit(cache=True, nogil=True, boundscheck=False)
def _draw_clipped(pos, a, b, c, f, low, high, height, width, cull, ids, depth):
    """Clip a triangle that leaves the guard band or crosses the near plane, and draw the pieces."""
    polygon = np.empty((12, 4))
    scratch = np.empty((12, 4))
    for n in range(4):
        polygon[0, n] = pos[a, n]
        polygon[1, n] = pos[b, n]
        polygon[2, n] = pos[c, n]
    half_w = 0.5 * width
    half_h = 0.5 * height
    count = clip_polygon(polygon, scratch, GUARD / half_w, GUARD / half_h)
    if count == 0:
        return
    xs = np.empty(12, np.int64)
    ys = np.empty(12, np.int64)
    zs = np.empty(12)
    for i in range(count):
        w = max(polygon[i, 3], W_MIN)
        x = min(max(polygon[i, 0] / w * half_w, -GUARD), GUARD)
        y = min(max(-polygon[i, 1] / w * half_h, -GUARD), GUARD)
        xs[i] = np.int64(math.floor((x + half_w - 0.5) * STEP + 0.5))
        ys[i] = np.int64(math.floor((y + half_h - 0.5) * STEP + 0.5))
        zs[i] = max(polygon[i, 2] / w, -1.0)
    for i in range(1, count - 1):
        area = (xs[i] - xs[0]) * (ys[i + 1] - ys[0]) - (xs[i + 1] - xs[0]) * (ys[i] - ys[0])
        if (cull == 1 and area > 0) or (cull == 2 and area < 0):
            continue
        _draw(
            xs[0], ys[0], zs[0], xs[i], ys[i], zs[i], xs[i + 1], ys[i + 1], zs[i + 1],
            f, low, high, width, ids, depth,
        )  # fmt: skip


@njit(cache=True, nogil=True, boundscheck=False)
def _draw_band(pos, base, tri, order, first, last, low, high, height, width, cull, xs, ys, zs, state, ids, depth):
    ids[low * width : high * width] = -1
    depth[low * width : high * width] = 1.0
    for n in range(first, last):
        f = order[n]
        a, b, c = base + tri[f, 0], base + tri[f, 1], base + tri[f, 2]
        if max(state[a], state[b], state[c]) == OK:
            _draw(
                np.int64(xs[a]), np.int64(ys[a]), zs[a], np.int64(xs[b]), np.int64(ys[b]), zs[b],
                np.int64(xs[c]), np.int64(ys[c]), zs[c], f, low, high, width, ids, depth,
            )  # fmt: skip
        else:
            _draw_clipped(pos, a, b, c, f, low, high, height, width, cull, ids, depth)


@njit(cache=True, nogil=True)
def _places(counts, start):
    """Where in the list each (band, chunk) begins; `counts` (chunks, bands) becomes these places."""
    total = 0
    chunks, bands = counts.shape
    for band in range(bands):
        start[band] = total
        for chunk in range(chunks):
            size = counts[chunk, band]
            counts[chunk, band] = total
            total += size
    start[bands] = total
    return total


@njit(cache=True, nogil=True, boundscheck=False)
def _draw_bands(
    pos, base, tri, order, start, begin, stride, rows, height, width, cull, xs, ys, zs, state, ids, depth
):  # fmt: skip
    """Draw every `stride`-th band from `begin`: neighbouring bands are about equally full."""
    for band in range(begin, len(start) - 1, stride):
        _draw_band(
            pos, base, tri, order, start[band], start[band + 1], band * rows, min((band + 1) * rows, height),
            height, width, cull, xs, ys, zs, state, ids, depth,
        )  # fmt: skip


SMALL = 30000  # triangles below which sorting them into bands is not worth sharing


def draw(pos, tri, height, width, cull, ids, depth, bands_per_thread=8):
    """Draw a batch into `ids` and `depth` (B, H*W), filled here.

    pos (B, V, 4) float32, tri (F, 3) int32. `cull`: 0 none, 1 back, 2 front. Returns whether a triangle names a
    vertex that does not exist (it is left out).
    """
    items, vertices = pos.shape[:2]
    faces = len(tri)
    pos = pos.reshape(-1, 4)
    count = threads.count()
    # several bands per thread, so that the load evens out, yet high enough that few triangles span two
    rows = min(max(-(-height // (bands_per_thread * count)), 8), 64)
    bands = -(-height // rows)
    chunks = count if faces > SMALL and items < count else 1
    xs, ys = np.empty(len(pos), np.int32), np.empty(len(pos), np.int32)
    zs, state = np.empty(len(pos), np.float64), np.empty(len(pos), np.uint8)
    low, high = np.empty((items, faces), np.int32), np.empty((items, faces), np.int32)
    counts = np.zeros((items, chunks, bands), np.int64)
    start = np.empty((items, bands + 1), np.int64)
    bad = np.zeros((items * chunks, 2), np.int64)
    bad[:, 1] = vertices
    order: list[np.ndarray] = [bad] * items

    def cut(task: int, total: int) -> tuple[int, int]:
        return total * task // chunks, total * (task + 1) // chunks

    def project(task: int) -> None:
        item, chunk = divmod(task, chunks)
        first, last = cut(chunk, vertices)
        base = item * vertices
        _project(pos, base + first, base + last, height, width, xs, ys, zs, state)

    def count_bands(task: int) -> None:
        item, chunk = divmod(task, chunks)
        _bin(
            pos, item * vertices, tri, *cut(chunk, faces), height, width, cull, rows, xs, ys, state,
            low[item], high[item], counts[item, chunk], bad[task],
        )  # fmt: skip

    def reserve(item: int) -> None:
        order[item] = np.empty(_places(counts[item], start[item]), np.int32)

    def fill(task: int) -> None:
        item, chunk = divmod(task, chunks)
        _fill(*cut(chunk, faces), low[item], high[item], counts[item, chunk], order[item])

    def prepare(item: int) -> None:
        project(item)
        count_bands(item)
        reserve(item)
        fill(item)

    def draw_bands(task: int) -> None:
        item, part = divmod(task, parts)
        _draw_bands(
            pos, item * vertices, tri, order[item], start[item], part, parts, rows, height, width, cull,
            xs, ys, zs, state, ids[item], depth[item],
        )  # fmt: skip

    if chunks == 1:
        threads.share(prepare, items)
    else:
        threads.share(project, items * chunks)
        threads.share(count_bands, items * chunks)
        for item in range(items):
            reserve(item)
        threads.share(fill, items * chunks)
    parts = 1 if items >= 4 * count or count == 1 else min(bands, 4 * count)
    threads.share(draw_bands, items * parts)
    return bool(bad[:, 0].any())
