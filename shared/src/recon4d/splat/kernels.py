"""The CPU rasterizer's inner loops, compiled by Numba: projection, tile lists, compositing, and their derivatives.

Every kernel runs without the interpreter lock and takes pieces of work from a shared counter, so any number of threads
may run the same call; each piece writes where no other does, so results do not depend on the number of threads.
Arrays are C-contiguous; M counts (image, Gaussian) items, I images, N Gaussians, B batch entries, C cameras.

Tiles are 16x16 pixels, stored as blocks of BLOCK_W x BLOCK_H pixels that fill one vector.
"""

import numpy as np
from numba import njit

from recon4d.splat.simd import (
    absolute,
    any_lane,
    ceil,
    exp2,
    floor,
    fma,
    load,
    log2,
    maximum,
    minimum,
    select,
    splat,
    sqrt,
    store,
    take_number,
    total,
)

TILE = 16
BLOCK_W, BLOCK_H = 8, 2
BLOCKS_X, BLOCKS_Y = TILE // BLOCK_W, TILE // BLOCK_H
TILE_PIXELS = TILE * TILE
CHUNK = 512  # Gaussians per piece of work

ALPHA_MIN = np.float32(1.0 / 255.0)
ALPHA_MAX = np.float32(0.999)
TRANSMITTANCE_MIN = np.float32(1e-4)
NEVER = np.float32(1e9)
EXTENT = np.float32(3.33)  # sigmas
LOG2_E = 1.4426950408889634
LOG2_ALPHA_MIN = np.float32(np.log2(ALPHA_MIN))
SHAPE = 8  # numbers per item in `shape`: mean x, y; quadratic xx, xy, yy; log2 opacity; half extents x, y
MOMENTS = 6

# pixel centres of a block, from its corner
_LANE_X = (np.arange(16) % BLOCK_W + 0.5).astype(np.float32)
_LANE_Y = (np.arange(16) // BLOCK_W + 0.5).astype(np.float32)


@njit(inline="always")
def _aligned(count):
    """Room for `count` floats that starts on a cache line."""
    room = np.empty(count + 16, np.float32)
    skip = (-room.ctypes.data % 64) // 4
    return room[skip : skip + count]


@njit(inline="always")
def _rotation(qw, qx, qy, qz):
    """16 rotations from quaternions of any length (zero: identity), row by row; then unit w, x, y, z and 1 / length."""
    one, two = splat(np.float32(1.0)), splat(np.float32(2.0))
    # torch's normalize divides by max(length, 1e-12)
    inverse = one / maximum(sqrt(qw * qw + qx * qx + qy * qy + qz * qz), splat(np.float32(1e-12)))
    w, x, y, z = qw * inverse, qx * inverse, qy * inverse, qz * inverse
    r00, r01, r02 = one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)
    r10, r11, r12 = two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x)
    r20, r21, r22 = two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)
    return r00, r01, r02, r10, r11, r12, r20, r21, r22, w, x, y, z, inverse


@njit(inline="always")
def _clamp_limits(K, width, height):
    """How far outside the view x / z and y / z may lie before the projection's slope is frozen (gsplat, persp_proj)."""
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = np.float32(0.15) * np.float32(width) / fx, np.float32(0.15) * np.float32(height) / fy
    return (
        splat(-cx / fx - margin_x),
        splat((np.float32(width) - cx) / fx + margin_x),
        splat(-cy / fy - margin_y),
        splat((np.float32(height) - cy) / fy + margin_y),
    )


@njit(inline="always")
def _view(V):
    """The 12 numbers of a world-to-camera matrix, each in every lane."""
    return (
        splat(V[0, 0]), splat(V[0, 1]), splat(V[0, 2]), splat(V[0, 3]),
        splat(V[1, 0]), splat(V[1, 1]), splat(V[1, 2]), splat(V[1, 3]),
        splat(V[2, 0]), splat(V[2, 1]), splat(V[2, 2]), splat(V[2, 3]),
    )  # fmt: skip


@njit(inline="always")
def _transpose_in(buffer, row, values, n, count):
    """Columns of `values` (N, k), from row n on, into the rows of `buffer`: one vector for each column."""
    for lane in range(count):
        for k in range(values.shape[1]):
            buffer[(row + k) * 16 + lane] = values[n + lane, k]


@njit(nogil=True, cache=True)
def project(
    counter,
    means,  # (B, N, 3)
    quats,  # (B, N, 4)
    scales,  # (B, N, 3)
    opacities,  # (B, N)
    viewmats,  # (B, C, 4, 4)
    Ks,  # (B, C, 3, 3)
    width,
    height,
    near,
    far,
    radius_clip,
    eps2d,
    antialiased,
    radii,  # (B * C, N, 2) int32, zero where culled; outputs from here on
    means2d,  # (B * C, N, 2)
    depths,  # (B * C, N)
    conics,  # (B * C, N, 3)
    compensations,  # (B * C, N)
    shape,  # (B * C * N, SHAPE)
    boxes,  # (B * C * N, 4) int16: the tiles [x0, x1) x [y0, y1) of each
    tile_counts,  # (B * C * N,) int32: how many those are
):
    """EWA projection (Zwicker et al. 2001, eq. 31; Kerbl et al. 2023, eq. 5), 16 Gaussians at a time.

    With M = R S, J the slope of the projection and W the camera rotation, the 2-D covariance is U U^T, U = J W M.
    A Gaussian with a number that is not finite is culled: every test is false for NaN.
    """
    B, N = means.shape[0], means.shape[1]
    C = viewmats.shape[1]
    per_image = (N + CHUNK - 1) // CHUNK
    tiles_x, tiles_y = np.float32((width + TILE - 1) // TILE), np.float32((height + TILE - 1) // TILE)
    rows = _aligned(11 * 16)
    out = _aligned(20 * 16)
    zero, one, half = splat(np.float32(0.0)), splat(np.float32(1.0)), splat(np.float32(0.5))
    infinity = splat(np.float32(np.inf))
    while True:
        piece = take_number(counter)
        if piece >= B * C * per_image:
            return
        image = piece // per_image
        start = (piece - image * per_image) * CHUNK
        b = image // C
        V, K = viewmats[b, image - b * C], Ks[b, image - b * C]
        v00, v01, v02, v03, v10, v11, v12, v13, v20, v21, v22, v23 = _view(V)
        fx, fy, cx, cy = splat(K[0, 0]), splat(K[1, 1]), splat(K[0, 2]), splat(K[1, 2])
        x_low, x_high, y_low, y_high = _clamp_limits(K, width, height)
        for n in range(start, min(start + CHUNK, N), 16):
            count = min(16, N - n)
            if count < 16:
                rows[:] = np.nan  # culled
            _transpose_in(rows, 0, means[b], n, count)
            _transpose_in(rows, 3, quats[b], n, count)
            _transpose_in(rows, 7, scales[b], n, count)
            for lane in range(count):
                rows[160 + lane] = opacities[b, n + lane]
            mx, my, mz = load(rows, 0), load(rows, 16), load(rows, 32)
            x = fma(v00, mx, fma(v01, my, fma(v02, mz, v03)))
            y = fma(v10, mx, fma(v11, my, fma(v12, mz, v13)))
            z = fma(v20, mx, fma(v21, my, fma(v22, mz, v23)))
            visible = (z >= splat(np.float32(near))) & (z <= splat(np.float32(far))) & (z > zero)
            rz = one / z
            u, v = fma(fx * x, rz, cx), fma(fy * y, rz, cy)
            r00, r01, r02, r10, r11, r12, r20, r21, r22, _, _, _, _, _ = _rotation(
                load(rows, 48), load(rows, 64), load(rows, 80), load(rows, 96)
            )
            s0, s1, s2 = load(rows, 112), load(rows, 128), load(rows, 144)
            # J W
            jx, jy = fx * rz, fy * rz
            jxz = zero - jx * minimum(maximum(x * rz, x_low), x_high)
            jyz = zero - jy * minimum(maximum(y * rz, y_low), y_high)
            t00, t01, t02 = fma(jx, v00, jxz * v20), fma(jx, v01, jxz * v21), fma(jx, v02, jxz * v22)
            t10, t11, t12 = fma(jy, v10, jyz * v20), fma(jy, v11, jyz * v21), fma(jy, v12, jyz * v22)
            u00, u10 = (
                fma(t00, r00, fma(t01, r10, t02 * r20)) * s0,
                fma(t10, r00, fma(t11, r10, t12 * r20)) * s0,
            )
            u01, u11 = (
                fma(t00, r01, fma(t01, r11, t02 * r21)) * s1,
                fma(t10, r01, fma(t11, r11, t12 * r21)) * s1,
            )
            u02, u12 = (
                fma(t00, r02, fma(t01, r12, t02 * r22)) * s2,
                fma(t10, r02, fma(t11, r12, t12 * r22)) * s2,
            )
            sxx = fma(u00, u00, fma(u01, u01, u02 * u02))
            sxy = fma(u00, u10, fma(u01, u11, u02 * u12))
            syy = fma(u10, u10, fma(u11, u11, u12 * u12))
            # the determinant as |u0 x u1|^2 (Lagrange's identity): sxx syy - sxy^2 would cancel
            k0, k1, k2 = u01 * u12 - u02 * u11, u02 * u10 - u00 * u12, u00 * u11 - u01 * u10
            det_sharp = fma(k0, k0, fma(k1, k1, k2 * k2))
            blur = splat(np.float32(eps2d))
            det = fma(blur, sxx + syy + blur, det_sharp)
            sxx = sxx + blur
            syy = syy + blur
            visible = visible & (det > zero) & (det < infinity)
            compensation = sqrt(det_sharp / det)
            opacity = load(rows, 160)
            if antialiased:
                opacity = opacity * compensation
            visible = visible & (opacity >= splat(ALPHA_MIN)) & (opacity < infinity)
            # alpha falls to 1/255 here (Radl et al. 2024, section B.2), as gsplat 1.5 bounds it
            log_opacity = log2(opacity)
            headroom = maximum(log_opacity - splat(LOG2_ALPHA_MIN), zero) * splat(np.float32(2.0 / LOG2_E))
            extent = minimum(sqrt(headroom), splat(EXTENT))
            half_x, half_y = extent * sqrt(sxx), extent * sqrt(syy)
            limit = splat(np.float32(1e9))
            radius_x, radius_y = minimum(ceil(half_x), limit), minimum(ceil(half_y), limit)
            visible = visible & (maximum(radius_x, radius_y) > splat(np.float32(radius_clip)))
            visible = visible & (u + radius_x > zero) & (u - radius_x < splat(np.float32(width)))
            visible = visible & (v + radius_y > zero) & (v - radius_y < splat(np.float32(height)))
            # a little more than the ellipse, so that rounding never cuts a pixel off
            half_x = fma(half_x, splat(np.float32(1.0001)), splat(np.float32(1e-3)))
            half_y = fma(half_y, splat(np.float32(1.0001)), splat(np.float32(1e-3)))
            # tiles with a pixel centre in reach
            per_tile = splat(np.float32(1.0 / TILE))
            box_x0 = minimum(maximum(floor((u - half_x - half) * per_tile), zero), splat(tiles_x))
            box_y0 = minimum(maximum(floor((v - half_y - half) * per_tile), zero), splat(tiles_y))
            box_x1 = maximum(minimum(floor((u + half_x - half) * per_tile) + one, splat(tiles_x)), box_x0)
            box_y1 = maximum(minimum(floor((v + half_y - half) * per_tile) + one, splat(tiles_y)), box_y0)
            inverse = one / det
            a, h, d = syy * inverse, zero - sxy * inverse, sxx * inverse
            visible = visible & (a < infinity) & (d < infinity)
            # culled lanes are zero throughout
            store(out, 0, select(visible, radius_x, zero))
            store(out, 16, select(visible, radius_y, zero))
            store(out, 32, select(visible, u, zero))
            store(out, 48, select(visible, v, zero))
            store(out, 64, select(visible, z, zero))
            store(out, 80, select(visible, a, zero))
            store(out, 96, select(visible, h, zero))
            store(out, 112, select(visible, d, zero))
            store(out, 128, select(visible, compensation, zero))
            store(out, 144, select(visible, box_x0, zero))
            store(out, 160, select(visible, box_x1, zero))
            store(out, 176, select(visible, box_y0, zero))
            store(out, 192, select(visible, box_y1, zero))
            store(out, 208, log_opacity)
            store(out, 224, half_x)
            store(out, 240, half_y)
            for lane in range(count):
                m = n + lane
                item = image * N + m
                a, h, d = out[80 + lane], out[96 + lane], out[112 + lane]
                radii[image, m, 0] = np.int32(out[lane])
                radii[image, m, 1] = np.int32(out[16 + lane])
                means2d[image, m, 0] = out[32 + lane]
                means2d[image, m, 1] = out[48 + lane]
                depths[image, m] = out[64 + lane]
                conics[image, m, 0] = a
                conics[image, m, 1] = h
                conics[image, m, 2] = d
                compensations[image, m] = out[128 + lane]
                shape[item, 0] = out[32 + lane]
                shape[item, 1] = out[48 + lane]
                shape[item, 2] = np.float32(-0.5 * LOG2_E) * a
                shape[item, 3] = np.float32(-LOG2_E) * h
                shape[item, 4] = np.float32(-0.5 * LOG2_E) * d
                shape[item, 5] = out[208 + lane]
                shape[item, 6] = out[224 + lane]
                shape[item, 7] = out[240 + lane]
                x0, x1 = np.int32(out[144 + lane]), np.int32(out[160 + lane])
                y0, y1 = np.int32(out[176 + lane]), np.int32(out[192 + lane])
                boxes[item, 0] = x0
                boxes[item, 1] = x1
                boxes[item, 2] = y0
                boxes[item, 3] = y1
                tile_counts[item] = (x1 - x0) * (y1 - y0)


@njit(nogil=True, cache=True)
def project_backward(
    counter,
    means,
    quats,
    scales,
    viewmats,
    Ks,
    width,
    height,
    eps2d,
    radii,  # (B * C, N, 2) int32
    conics,  # (B * C, N, 3)
    compensations,  # (B * C, N)
    v_means2d,  # (B * C, N, 2) gradients that come in
    v_depths,  # (B * C, N), or (0, 0) for zero
    v_conics,  # (B * C, N, 3)
    v_compensations,  # (B * C, N), or (0, 0) for zero
    v_means,  # (B, N, 3) gradients that go out
    v_quats,  # (B, N, 4)
    v_scales,  # (B, N, 3)
    v_viewmats,  # (B, pieces, C, 12): one part per piece of work
):
    """The transpose of `project`, derived by hand from the same formulas."""
    B, N = means.shape[0], means.shape[1]
    C = viewmats.shape[1]
    per_batch = (N + CHUNK - 1) // CHUNK
    rows = _aligned(21 * 16)
    out = _aligned(10 * 16)
    camera = _aligned(12 * 16)
    zero, one, two = splat(np.float32(0.0)), splat(np.float32(1.0)), splat(np.float32(2.0))
    half, blur = splat(np.float32(0.5)), splat(np.float32(eps2d))
    while True:
        piece = take_number(counter)
        if piece >= B * per_batch:
            return
        b = piece // per_batch
        part = piece - b * per_batch
        start = part * CHUNK
        stop = min(start + CHUNK, N)
        for n in range(start, stop):
            for k in range(3):
                v_means[b, n, k] = 0.0
                v_scales[b, n, k] = 0.0
            for k in range(4):
                v_quats[b, n, k] = 0.0
        for c in range(C):
            image = b * C + c
            V, K = viewmats[b, c], Ks[b, c]
            v00, v01, v02, v03, v10, v11, v12, v13, v20, v21, v22, v23 = _view(V)
            fx, fy = splat(K[0, 0]), splat(K[1, 1])
            x_low, x_high, y_low, y_high = _clamp_limits(K, width, height)
            camera[:] = 0.0
            for n in range(start, stop, 16):
                count = min(16, N - n)
                live = False
                for lane in range(count):
                    live |= radii[image, n + lane, 0] > 0
                if not live:
                    continue
                rows[:] = 0.0
                _transpose_in(rows, 0, means[b], n, count)
                _transpose_in(rows, 3, quats[b], n, count)
                _transpose_in(rows, 7, scales[b], n, count)
                _transpose_in(rows, 10, conics[image], n, count)
                _transpose_in(rows, 13, v_means2d[image], n, count)
                _transpose_in(rows, 15, v_conics[image], n, count)
                for lane in range(count):
                    if v_depths.shape[0] > 0:
                        rows[288 + lane] = v_depths[image, n + lane]
                    if v_compensations.shape[0] > 0:
                        rows[304 + lane] = v_compensations[image, n + lane]
                    rows[320 + lane] = compensations[image, n + lane]
                # a visible Gaussian has a positive conic; what a culled lane computes is dropped at the end
                visible = load(rows, 160) > zero
                mx, my, mz = load(rows, 0), load(rows, 16), load(rows, 32)
                x = fma(v00, mx, fma(v01, my, fma(v02, mz, v03)))
                y = fma(v10, mx, fma(v11, my, fma(v12, mz, v13)))
                z = fma(v20, mx, fma(v21, my, fma(v22, mz, v23)))
                rz = one / z
                r00, r01, r02, r10, r11, r12, r20, r21, r22, qw, qx, qy, qz, inverse = _rotation(
                    load(rows, 48), load(rows, 64), load(rows, 80), load(rows, 96)
                )
                s0, s1, s2 = load(rows, 112), load(rows, 128), load(rows, 144)
                jx, jy = fx * rz, fy * rz
                slope_x = minimum(maximum(x * rz, x_low), x_high)
                slope_y = minimum(maximum(y * rz, y_low), y_high)
                jxz, jyz = zero - jx * slope_x, zero - jy * slope_y
                t00, t01, t02 = fma(jx, v00, jxz * v20), fma(jx, v01, jxz * v21), fma(jx, v02, jxz * v22)
                t10, t11, t12 = fma(jy, v10, jyz * v20), fma(jy, v11, jyz * v21), fma(jy, v12, jyz * v22)
                # T R, and U = T R S
                p00, p10 = fma(t00, r00, fma(t01, r10, t02 * r20)), fma(t10, r00, fma(t11, r10, t12 * r20))
                p01, p11 = fma(t00, r01, fma(t01, r11, t02 * r21)), fma(t10, r01, fma(t11, r11, t12 * r21))
                p02, p12 = fma(t00, r02, fma(t01, r12, t02 * r22)), fma(t10, r02, fma(t11, r12, t12 * r22))
                # conic -> covariance: dS = -C dC C; the middle number stands for both off-diagonals
                a, h, d = load(rows, 160), load(rows, 176), load(rows, 192)
                ga, gh, gd = load(rows, 240), half * load(rows, 256), load(rows, 272)
                m00, m01 = fma(ga, a, gh * h), fma(ga, h, gh * d)
                m10, m11 = fma(gh, a, gd * h), fma(gh, h, gd * d)
                gxx = zero - fma(a, m00, h * m10)
                gxy = zero - fma(a, m01, h * m11)
                gyy = zero - fma(h, m01, d * m11)
                if v_compensations.shape[0] > 0:
                    # compensation^2 = det S / det (S + eps I); its derivative is (1 - comp^2) C - eps det(C) I
                    compensation = load(rows, 320)
                    g = half * load(rows, 304) / (compensation + splat(np.float32(1e-6)))
                    rest = one - compensation * compensation
                    det_conic = blur * (a * d - h * h)
                    gxx = fma(g, rest * a - det_conic, gxx)
                    gxy = fma(g, rest * h, gxy)
                    gyy = fma(g, rest * d - det_conic, gyy)
                # S = U U^T -> v_U = 2 v_S U; v_scale = sum over the column of v_U and T R
                gxx, gxy, gyy = two * gxx, two * gxy, two * gyy
                g00, g10 = fma(gxx, p00, gxy * p10) * s0, fma(gxy, p00, gyy * p10) * s0
                g01, g11 = fma(gxx, p01, gxy * p11) * s1, fma(gxy, p01, gyy * p11) * s1
                g02, g12 = fma(gxx, p02, gxy * p12) * s2, fma(gxy, p02, gyy * p12) * s2
                store(out, 112, fma(g00, p00, g10 * p10))
                store(out, 128, fma(g01, p01, g11 * p11))
                store(out, 144, fma(g02, p02, g12 * p12))
                # v_(T R) = v_U S; v_R = T^T v_(T R)
                g00, g01, g02, g10, g11, g12 = g00 * s0, g01 * s1, g02 * s2, g10 * s0, g11 * s1, g12 * s2
                e00, e01, e02 = fma(t00, g00, t10 * g10), fma(t00, g01, t10 * g11), fma(t00, g02, t10 * g12)
                e10, e11, e12 = fma(t01, g00, t11 * g10), fma(t01, g01, t11 * g11), fma(t01, g02, t11 * g12)
                e20, e21, e22 = fma(t02, g00, t12 * g10), fma(t02, g01, t12 * g11), fma(t02, g02, t12 * g12)
                # R(q) for unit q, then through the normalisation: v_q = (v - q (q . v)) / |q|
                nw = two * (qx * (e21 - e12) + qy * (e02 - e20) + qz * (e10 - e01))
                nx = two * (qy * (e01 + e10) + qz * (e02 + e20) + qw * (e21 - e12) - two * qx * (e11 + e22))
                ny = two * (qx * (e01 + e10) + qz * (e12 + e21) + qw * (e02 - e20) - two * qy * (e00 + e22))
                nz = two * (qx * (e02 + e20) + qy * (e12 + e21) + qw * (e10 - e01) - two * qz * (e00 + e11))
                along = fma(qw, nw, fma(qx, nx, fma(qy, ny, qz * nz)))
                store(out, 48, (nw - qw * along) * inverse)
                store(out, 64, (nx - qx * along) * inverse)
                store(out, 80, (ny - qy * along) * inverse)
                store(out, 96, (nz - qz * along) * inverse)
                # v_T = v_(T R) R^T
                f00, f10 = fma(g00, r00, fma(g01, r01, g02 * r02)), fma(g10, r00, fma(g11, r01, g12 * r02))
                f01, f11 = fma(g00, r10, fma(g01, r11, g02 * r12)), fma(g10, r10, fma(g11, r11, g12 * r12))
                f02, f12 = fma(g00, r20, fma(g01, r21, g02 * r22)), fma(g10, r20, fma(g11, r21, g12 * r22))
                # T = J W -> v_J = v_T W^T
                v_jx, v_jy = fma(f00, v00, fma(f01, v01, f02 * v02)), fma(f10, v10, fma(f11, v11, f12 * v12))
                v_jxz, v_jyz = (
                    fma(f00, v20, fma(f01, v21, f02 * v22)),
                    fma(f10, v20, fma(f11, v21, f12 * v22)),
                )
                # means2d = (fx x / z + cx, fy y / z + cy), J = (fx / z, -fx slope / z)
                gu, gv = load(rows, 208), load(rows, 224)
                gx, gy = jx * gu, jy * gv
                pull = gx * x + gy * y + jx * v_jx + jxz * v_jxz + jy * v_jy + jyz * v_jyz
                gz = load(rows, 288) - pull * rz
                # slope = x / z unless it is clamped
                free_x = select((x * rz >= x_low) & (x * rz <= x_high), jx * rz * v_jxz, zero)
                free_y = select((y * rz >= y_low) & (y * rz <= y_high), jy * rz * v_jyz, zero)
                gx = select(visible, gx - free_x, zero)
                gy = select(visible, gy - free_y, zero)
                gz = select(visible, gz + slope_x * free_x + slope_y * free_y, zero)
                store(out, 0, fma(v00, gx, fma(v10, gy, v20 * gz)))
                store(out, 16, fma(v01, gx, fma(v11, gy, v21 * gz)))
                store(out, 32, fma(v02, gx, fma(v12, gy, v22 * gz)))
                # v_W = J^T v_T + v_x m^T, v_t = v_x; a culled mean may be NaN
                mx, my, mz = select(visible, mx, zero), select(visible, my, zero), select(visible, mz, zero)
                jx, jy = select(visible, jx, zero), select(visible, jy, zero)
                jxz, jyz = select(visible, jxz, zero), select(visible, jyz, zero)
                f00, f01, f02 = (
                    select(visible, f00, zero),
                    select(visible, f01, zero),
                    select(visible, f02, zero),
                )
                f10, f11, f12 = (
                    select(visible, f10, zero),
                    select(visible, f11, zero),
                    select(visible, f12, zero),
                )
                store(camera, 0, load(camera, 0) + fma(jx, f00, gx * mx))
                store(camera, 16, load(camera, 16) + fma(jx, f01, gx * my))
                store(camera, 32, load(camera, 32) + fma(jx, f02, gx * mz))
                store(camera, 48, load(camera, 48) + gx)
                store(camera, 64, load(camera, 64) + fma(jy, f10, gy * mx))
                store(camera, 80, load(camera, 80) + fma(jy, f11, gy * my))
                store(camera, 96, load(camera, 96) + fma(jy, f12, gy * mz))
                store(camera, 112, load(camera, 112) + gy)
                store(camera, 128, load(camera, 128) + fma(jxz, f00, fma(jyz, f10, gz * mx)))
                store(camera, 144, load(camera, 144) + fma(jxz, f01, fma(jyz, f11, gz * my)))
                store(camera, 160, load(camera, 160) + fma(jxz, f02, fma(jyz, f12, gz * mz)))
                store(camera, 176, load(camera, 176) + gz)
                for lane in range(count):
                    if radii[image, n + lane, 0] > 0:
                        for k in range(3):
                            v_means[b, n + lane, k] += out[k * 16 + lane]
                            v_scales[b, n + lane, k] += out[(7 + k) * 16 + lane]
                        for k in range(4):
                            v_quats[b, n + lane, k] += out[(3 + k) * 16 + lane]
            for k in range(12):
                v_viewmats[b, part, c, k] = total(load(camera, k * 16))


@njit(nogil=True, cache=True)
def bin_tiles(
    counter,
    boxes,  # (M, 4) int16
    depths,  # (M,)
    tile_counts,  # (M,) int32
    slots,  # (M + 1,) int64: running sum of tile_counts
    image_starts,  # (I + 1,) int64: first item of each image
    tiles_x,
    tiles_y,
    tile_starts,  # (I * tiles_y * tiles_x + 1,) int64; outputs from here on
    entries,  # (intersections,) int32: items, by image, tile and depth
    places,  # (intersections,) int32: for each item from slots[item] on, where in `entries` it is
):
    """Each tile's list of Gaussians, front to back; equal depths keep their order. One image is one piece of work.

    Gaussians are radix-sorted by depth once per image; walking them in that order appends to every tile's list.
    """
    images = image_starts.shape[0] - 1
    tiles = tiles_x * tiles_y
    bits = depths.view(np.uint32)  # positive floats sort as their bits do
    while True:
        image = take_number(counter)
        if image >= images:
            return
        first, last = image_starts[image], image_starts[image + 1]
        keys = np.empty(last - first, np.uint64)
        count = 0
        cursor = np.zeros(tiles + 1, np.int64)
        for item in range(first, last):
            if tile_counts[item] > 0:
                keys[count] = (np.uint64(bits[item]) << np.uint64(32)) | np.uint64(item)
                count += 1
                x0, x1 = np.int64(boxes[item, 0]), np.int64(boxes[item, 1])
                for ty in range(boxes[item, 2], boxes[item, 3]):
                    for tile in range(ty * tiles_x + x0, ty * tiles_x + x1):
                        cursor[tile + 1] += 1
        keys = _sort_upper_half(keys[:count])
        cursor[0] = slots[first]
        for tile in range(tiles):
            cursor[tile + 1] += cursor[tile]
            tile_starts[image * tiles + tile] = cursor[tile]
        if image == images - 1:
            tile_starts[images * tiles] = slots[last]
        for k in range(count):
            item = np.int64(keys[k] & np.uint64(0xFFFFFFFF))
            slot = slots[item]
            x0, x1 = np.int64(boxes[item, 0]), np.int64(boxes[item, 1])
            for ty in range(boxes[item, 2], boxes[item, 3]):
                for tile in range(ty * tiles_x + x0, ty * tiles_x + x1):
                    place = cursor[tile]
                    entries[place] = item
                    places[slot] = place
                    cursor[tile] = place + 1
                    slot += 1


@njit(nogil=True)
def _sort_upper_half(keys):
    """Sort uint64 by their upper 32 bits: radix sort, stable, only over the bits that differ; `keys` is overwritten."""
    count = keys.shape[0]
    if count == 0:
        return keys
    least, most = keys[0], keys[0]
    for i in range(count):
        least, most = min(least, keys[i]), max(most, keys[i])
    base = least >> np.uint64(32)
    spread = (most >> np.uint64(32)) - base
    bits = 0
    while spread >> np.uint64(bits):
        bits += 1
    # digits of at most 11 bits keep the buckets in the first-level cache
    passes = (bits + 10) // 11
    if passes == 0:
        return keys
    digit = (bits + passes - 1) // passes
    buckets = 1 << digit
    mask = np.uint64(buckets - 1)
    positions = np.empty(buckets, np.int64)
    other = np.empty_like(keys)
    for p in range(passes):
        shift = np.uint64(p * digit)
        positions[:] = 0
        for i in range(count):
            positions[((keys[i] >> np.uint64(32)) - base) >> shift & mask] += 1
        position = 0
        for bucket in range(buckets):
            here = positions[bucket]
            positions[bucket] = position
            position += here
        for i in range(count):
            bucket = ((keys[i] >> np.uint64(32)) - base) >> shift & mask
            position = positions[bucket]
            positions[bucket] = position + 1
            other[position] = keys[i]
        keys, other = other, keys
    return keys


@njit(inline="always")
def _block_box(mean_x, mean_y, half_x, half_y):
    """The blocks [x0, x1] x [y0, y1] of a tile that the extents of a Gaussian (relative to the tile) reach."""
    x0 = np.int64(max(mean_x - half_x - np.float32(0.5), np.float32(0.0))) // BLOCK_W
    y0 = np.int64(max(mean_y - half_y - np.float32(0.5), np.float32(0.0))) // BLOCK_H
    x1 = np.int64(min(mean_x + half_x - np.float32(0.5), np.float32(TILE - 1))) // BLOCK_W
    y1 = np.int64(min(mean_y + half_y - np.float32(0.5), np.float32(TILE - 1))) // BLOCK_H
    return x0, x1, y0, y1


def _make_composite(channels: int):
    """The forward kernel for 1 to 4 channels, or for any number (0)."""

    @njit(nogil=True, cache=True)
    def composite(
        counter,
        shape,  # (M, SHAPE)
        colors,  # (M, D)
        backgrounds,  # (I, D), or (0, D) for none
        tile_starts,
        entries,
        tiles_x,
        tiles_y,
        image,  # (I, H, W, D); outputs from here on
        alpha_image,  # (I, H, W)
        state,  # (I * tiles, 2 * TILE_PIXELS): final transmittance, index of the entry that ended the pixel, or NEVER
    ):
        """Front-to-back compositing (Kerbl et al. 2023, eq. 3), a tile at a time, a block of pixels per instruction."""
        images, height, width, D = image.shape
        image_flat, alphas_flat = image.reshape(image.size), alpha_image.reshape(alpha_image.size)
        tiles = tiles_x * tiles_y
        T = _aligned(TILE_PIXELS)
        last = _aligned(TILE_PIXELS)
        sums = _aligned(D * TILE_PIXELS)
        lane_x, lane_y = load(_LANE_X, 0), load(_LANE_Y, 0)
        zero, one = splat(np.float32(0.0)), splat(np.float32(1.0))
        least, most = splat(LOG2_ALPHA_MIN), splat(ALPHA_MAX)
        stop = splat(TRANSMITTANCE_MIN)
        while True:
            tile = take_number(counter)
            if tile >= images * tiles:
                return
            i = tile // tiles
            ty = (tile - i * tiles) // tiles_x
            tx = tile - i * tiles - ty * tiles_x
            corner_x, corner_y = np.float32(tx * TILE), np.float32(ty * TILE)
            for p in range(0, TILE_PIXELS, 16):
                store(T, p, one)
                store(last, p, splat(NEVER))
            for p in range(0, D * TILE_PIXELS, 16):
                store(sums, p, zero)
            start = tile_starts[tile]
            for k in range(tile_starts[tile + 1] - start):
                if k & 31 == 31:
                    # pixels that are finished have a negative transmittance
                    live = False
                    for p in range(0, TILE_PIXELS, 16):
                        live |= any_lane(load(T, p) > zero)
                    if not live:
                        break
                item = entries[start + k]
                mean_x, mean_y = shape[item, 0] - corner_x, shape[item, 1] - corner_y
                x0, x1, y0, y1 = _block_box(mean_x, mean_y, shape[item, 6], shape[item, 7])
                xx, xy, yy = splat(shape[item, 2]), splat(shape[item, 3]), splat(shape[item, 4])
                log_opacity = splat(shape[item, 5])
                index = splat(np.float32(k))
                if channels > 0:
                    c0 = splat(colors[item, 0])
                    c1 = splat(colors[item, min(1, channels - 1)])
                    c2 = splat(colors[item, min(2, channels - 1)])
                    c3 = splat(colors[item, min(3, channels - 1)])
                for by in range(y0, y1 + 1):
                    dy = lane_y + splat(np.float32(by * BLOCK_H) - mean_y)
                    base = fma(yy * dy, dy, log_opacity)
                    cross = xy * dy
                    for bx in range(x0, x1 + 1):
                        p = (by * BLOCKS_X + bx) * 16
                        dx = lane_x + splat(np.float32(bx * BLOCK_W) - mean_x)
                        exponent = fma(fma(xx, dx, cross), dx, base)
                        # zero where it is not seen: then nothing changes, with no masked store in the chain
                        alpha = select(exponent >= least, minimum(exp2(exponent), most), zero)
                        before = load(T, p)
                        share = before * alpha
                        after = before - share
                        keep = after > stop
                        store(T, p, select(keep, after, zero - absolute(before)))
                        if any_lane((after <= stop) & (before > zero)):
                            # this Gaussian and those behind it do not count; rare, once per pixel
                            ending = (after <= stop) & (before > zero)
                            store(last, p, select(ending, index, load(last, p)))
                        weight = select(keep, share, zero)
                        if channels > 0:
                            store(sums, p, fma(weight, c0, load(sums, p)))
                        if channels > 1:
                            store(sums, p + TILE_PIXELS, fma(weight, c1, load(sums, p + TILE_PIXELS)))
                        if channels > 2:
                            store(sums, p + 2 * TILE_PIXELS, fma(weight, c2, load(sums, p + 2 * TILE_PIXELS)))
                        if channels > 3:
                            store(sums, p + 3 * TILE_PIXELS, fma(weight, c3, load(sums, p + 3 * TILE_PIXELS)))
                        if channels == 0:
                            for d in range(D):
                                q = p + d * TILE_PIXELS
                                store(sums, q, fma(weight, splat(colors[item, d]), load(sums, q)))
            for p in range(0, TILE_PIXELS, 16):
                store(T, p, absolute(load(T, p)))
            if backgrounds.shape[0] > 0:
                for d in range(D):
                    behind = splat(backgrounds[i, d])
                    for p in range(0, TILE_PIXELS, 16):
                        q = d * TILE_PIXELS + p
                        store(sums, q, fma(load(T, p), behind, load(sums, q)))
            columns = min(TILE, width - tx * TILE)
            for by in range(min(TILE, height - ty * TILE)):
                at = (i * height + ty * TILE + by) * width + tx * TILE
                for bx in range(columns):
                    alphas_flat[at + bx] = np.float32(1.0) - T[_pixel(bx, by)]
                for d in range(channels if channels > 0 else D):
                    plane = sums[d * TILE_PIXELS : (d + 1) * TILE_PIXELS]
                    for bx in range(columns):
                        image_flat[(at + bx) * (channels if channels > 0 else D) + d] = plane[_pixel(bx, by)]
            kept = state[tile]
            for p in range(0, TILE_PIXELS, 16):
                store(kept, p, load(T, p))
                store(kept, TILE_PIXELS + p, load(last, p))

    return composite


@njit(inline="always")
def _pixel(x, y):
    """Where a tile keeps the pixel at column x, row y."""
    return ((y // BLOCK_H) * BLOCKS_X + x // BLOCK_W) * 16 + (y % BLOCK_H) * BLOCK_W + x % BLOCK_W


def _make_composite_backward(channels: int, absolutes: bool):
    """The backward kernel for 1 to 4 channels, or for any number (0); `absolutes` adds AbsGS's two sums."""
    extra = 2 if absolutes else 0

    @njit(nogil=True, cache=True)
    def composite_backward(
        counter,
        shape,
        colors,
        conics,  # (M, 3)
        backgrounds,
        tile_starts,
        entries,
        tiles_x,
        tiles_y,
        state,
        v_image,  # (I, H, W, D) gradients that come in
        v_alpha_image,  # (I, H, W), or (0, 0, 0) for zero
        parts,  # (intersections + padding, MOMENTS + extra + D): as `entries`, sums over one tile's pixels
    ):
        """Walk each tile's list from its last contributor, undoing the compositing (Kerbl et al. 2023, appendix C).

        With S = sum over the channels of colour times upstream gradient, only one running number per pixel is needed
        for what lies behind, whatever the number of channels. Per Gaussian the sums over pixels of v_sigma times
        (1, dx, dy, dx^2, dx dy, dy^2) give the gradients of opacity, mean and conic.
        """
        images, height, width, D = v_image.shape
        v_image_flat, v_alphas_flat = v_image.reshape(v_image.size), v_alpha_image.reshape(v_alpha_image.size)
        tiles = tiles_x * tiles_y
        T = _aligned(TILE_PIXELS)
        behind = _aligned(TILE_PIXELS)
        end = _aligned(TILE_PIXELS + 16)
        v = _aligned(D * TILE_PIXELS)
        color_sums = _aligned(D * 16)
        lane_x, lane_y = load(_LANE_X, 0), load(_LANE_Y, 0)
        zero, one = splat(np.float32(0.0)), splat(np.float32(1.0))
        least, most = splat(LOG2_ALPHA_MIN), splat(ALPHA_MAX)
        while True:
            tile = take_number(counter)
            if tile >= images * tiles:
                return
            i = tile // tiles
            ty = (tile - i * tiles) // tiles_x
            tx = tile - i * tiles - ty * tiles_x
            corner_x, corner_y = np.float32(tx * TILE), np.float32(ty * TILE)
            kept = state[tile]
            start = tile_starts[tile]
            count = tile_starts[tile + 1] - start
            columns = min(TILE, width - tx * TILE)
            rows = min(TILE, height - ty * TILE)
            if columns < TILE or rows < TILE:  # nothing counts for pixels outside the image
                v[:] = 0.0
                behind[:] = 0.0
                end[:] = 0.0
            for by in range(rows):
                at = (i * height + ty * TILE + by) * width + tx * TILE
                for bx in range(columns):
                    p = _pixel(bx, by)
                    behind[p] = -v_alphas_flat[at + bx] if v_alphas_flat.shape[0] > 0 else np.float32(0.0)
                    end[p] = kept[TILE_PIXELS + p]
                for d in range(channels if channels > 0 else D):
                    plane = v[d * TILE_PIXELS : (d + 1) * TILE_PIXELS]
                    for bx in range(columns):
                        plane[_pixel(bx, by)] = v_image_flat[(at + bx) * (channels if channels > 0 else D) + d]
            if backgrounds.shape[0] > 0:
                for d in range(D):
                    background = splat(backgrounds[i, d])
                    for p in range(0, TILE_PIXELS, 16):
                        store(behind, p, fma(background, load(v, d * TILE_PIXELS + p), load(behind, p)))
            furthest = zero
            for p in range(0, TILE_PIXELS, 16):
                store(T, p, load(kept, p))
                store(behind, p, load(behind, p) * load(T, p))
                furthest = maximum(furthest, load(end, p))
            # how many entries count for some pixel of the tile
            walked = np.float32(0.0)
            store(end, TILE_PIXELS, furthest)
            for lane in range(16):
                walked = max(walked, end[TILE_PIXELS + lane])
            walk = min(np.int64(walked), count)
            for k in range(walk, count):
                for d in range(parts.shape[1]):
                    parts[start + k, d] = 0.0
            for k in range(walk - 1, -1, -1):
                item = entries[start + k]
                mean_x, mean_y = shape[item, 0] - corner_x, shape[item, 1] - corner_y
                x0, x1, y0, y1 = _block_box(mean_x, mean_y, shape[item, 6], shape[item, 7])
                xx, xy, yy = splat(shape[item, 2]), splat(shape[item, 3]), splat(shape[item, 4])
                log_opacity = splat(shape[item, 5])
                index = splat(np.float32(k))
                m0, mx, my, mxx, mxy, myy = zero, zero, zero, zero, zero, zero
                ax, ay = zero, zero
                g0, g1, g2, g3 = zero, zero, zero, zero
                if absolutes:
                    conic_a, conic_b, conic_c = (
                        splat(conics[item, 0]),
                        splat(conics[item, 1]),
                        splat(conics[item, 2]),
                    )
                if channels > 0:
                    c0 = splat(colors[item, 0])
                    c1 = splat(colors[item, min(1, channels - 1)])
                    c2 = splat(colors[item, min(2, channels - 1)])
                    c3 = splat(colors[item, min(3, channels - 1)])
                else:
                    for d in range(D):
                        store(color_sums, d * 16, zero)
                for by in range(y0, y1 + 1):
                    dy = lane_y + splat(np.float32(by * BLOCK_H) - mean_y)
                    base = fma(yy * dy, dy, log_opacity)
                    cross = xy * dy
                    for bx in range(x0, x1 + 1):
                        p = (by * BLOCKS_X + bx) * 16
                        dx = lane_x + splat(np.float32(bx * BLOCK_W) - mean_x)
                        exponent = fma(fma(xx, dx, cross), dx, base)
                        seen = (exponent >= least) & (index < load(end, p))
                        if not any_lane(seen):  # worth its mispredictions here, not in the forward kernel
                            continue
                        raw = exp2(exponent)
                        alpha = select(seen, minimum(raw, most), zero)
                        ratio = one / (one - alpha)
                        before = load(T, p) * ratio
                        store(T, p, before)
                        weight = before * alpha
                        if channels > 0:
                            v0 = load(v, p)
                            shade = c0 * v0
                            g0 = fma(weight, v0, g0)
                        else:
                            shade = zero
                            for d in range(D):
                                vd = load(v, d * TILE_PIXELS + p)
                                shade = fma(splat(colors[item, d]), vd, shade)
                                store(color_sums, d * 16, fma(weight, vd, load(color_sums, d * 16)))
                        if channels > 1:
                            v1 = load(v, p + TILE_PIXELS)
                            shade = fma(c1, v1, shade)
                            g1 = fma(weight, v1, g1)
                        if channels > 2:
                            v2 = load(v, p + 2 * TILE_PIXELS)
                            shade = fma(c2, v2, shade)
                            g2 = fma(weight, v2, g2)
                        if channels > 3:
                            v3 = load(v, p + 3 * TILE_PIXELS)
                            shade = fma(c3, v3, shade)
                            g3 = fma(weight, v3, g3)
                        rest = load(behind, p)
                        # -dL/d alpha, times the unclamped alpha: dL/d sigma
                        v_sigma = raw * (rest * ratio - before * shade)
                        store(behind, p, fma(weight, shade, rest))
                        v_sigma = select(seen & (raw <= most), v_sigma, zero)
                        sx = v_sigma * dx
                        sy = v_sigma * dy
                        m0 = m0 + v_sigma
                        mx = mx + sx
                        my = my + sy
                        mxx = fma(sx, dx, mxx)
                        mxy = fma(sx, dy, mxy)
                        myy = fma(sy, dy, myy)
                        if absolutes:
                            ax = ax + absolute(fma(conic_a, sx, conic_b * sy))
                            ay = ay + absolute(fma(conic_b, sx, conic_c * sy))
                row = start + k
                parts[row, 0] = total(m0)
                parts[row, 1] = total(mx)
                parts[row, 2] = total(my)
                parts[row, 3] = total(mxx)
                parts[row, 4] = total(mxy)
                parts[row, 5] = total(myy)
                if absolutes:
                    parts[row, 6] = total(ax)
                    parts[row, 7] = total(ay)
                if channels > 0:
                    parts[row, MOMENTS + extra] = total(g0)
                if channels > 1:
                    parts[row, MOMENTS + extra + 1] = total(g1)
                if channels > 2:
                    parts[row, MOMENTS + extra + 2] = total(g2)
                if channels > 3:
                    parts[row, MOMENTS + extra + 3] = total(g3)
                if channels == 0:
                    for d in range(D):
                        parts[row, MOMENTS + extra + d] = total(load(color_sums, d * 16))

    return composite_backward


@njit(nogil=True, cache=True)
def gather(
    counter,
    slots,  # (M + 1,) int64
    places,  # (intersections,) int32
    parts,  # (intersections + padding, MOMENTS + extra + D)
    conics,  # (M, 3)
    opacities,  # (M,)
    v_means2d,  # (M, 2); outputs from here on
    v_conics,  # (M, 3)
    v_opacities,  # (M,)
    v_colors,  # (M, D)
    v_absolute,  # (M, 2), or (0, 2) when not wanted
):
    """Add up each Gaussian's parts over its tiles, and turn moments into gradients."""
    M, D = v_colors.shape
    extra = 2 if v_absolute.shape[0] > 0 else 0
    row = MOMENTS + extra + D
    flat = parts.reshape(parts.size)
    vectors = (row + 15) // 16
    sums = _aligned(vectors * 16)
    while True:
        piece = take_number(counter)
        if piece * CHUNK >= M:
            return
        for item in range(piece * CHUNK, min((piece + 1) * CHUNK, M)):
            # whole vectors: what is read past a row's end is not used, and `parts` has room behind the last one
            for k in range(vectors):
                added = splat(np.float32(0.0))
                for slot in range(slots[item], slots[item + 1]):
                    added = added + load(flat, places[slot] * row + k * 16)
                store(sums, k * 16, added)
            a, b, c = conics[item, 0], conics[item, 1], conics[item, 2]
            # sigma = (a dx^2 + 2 b dx dy + c dy^2) / 2 with dx = pixel - mean
            v_means2d[item, 0] = -(a * sums[1] + b * sums[2])
            v_means2d[item, 1] = -(b * sums[1] + c * sums[2])
            v_conics[item, 0] = np.float32(0.5) * sums[3]
            v_conics[item, 1] = sums[4]
            v_conics[item, 2] = np.float32(0.5) * sums[5]
            v_opacities[item] = np.float32(0.0)
            if slots[item + 1] > slots[item]:
                v_opacities[item] = -sums[0] / opacities[item]
            if extra:
                v_absolute[item, 0] = sums[6]
                v_absolute[item, 1] = sums[7]
            for d in range(D):
                v_colors[item, d] = sums[MOMENTS + extra + d]


_composites: dict = {}


def composite_for(channels: int):
    """The forward kernel for this many channels."""
    key = channels if channels <= 4 and channels != 2 else 0
    if key not in _composites:
        _composites[key] = _make_composite(key)
    return _composites[key]


def composite_backward_for(channels: int, absolutes: bool):
    """The backward kernel for this many channels."""
    key = (channels if channels <= 4 and channels != 2 else 0, absolutes)
    if key not in _composites:
        _composites[key] = _make_composite_backward(*key)
    return _composites[key]
