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
    exp2,
    fma,
    load,
    minimum,
    select,
    splat,
    store,
    take_number,
    total,
)

TILE = 16
BLOCK_W, BLOCK_H = 8, 2
BLOCKS_X, BLOCKS_Y = TILE // BLOCK_W, TILE // BLOCK_H
TILE_PIXELS = TILE * TILE
CHUNK = 512  # Gaussians per piece of work

ALPHA_MIN = 1.0 / 255.0
ALPHA_MAX = np.float32(0.999)
TRANSMITTANCE_MIN = np.float32(1e-4)
NEVER = np.float32(1e9)
EXTENT = 3.33  # sigmas
LOG2_E = 1.4426950408889634
LOG2_ALPHA_MIN = np.float32(np.log2(ALPHA_MIN))
SHAPE = 8  # numbers per item in `shape`: mean x, y; quadratic xx, xy, yy; log2 opacity; half extents x, y
MOMENTS = 6

# pixel centres of a block, from its corner
_LANE_X = (np.arange(16) % BLOCK_W + 0.5).astype(np.float32)
_LANE_Y = (np.arange(16) // BLOCK_W + 0.5).astype(np.float32)


@njit(inline="always")
def _rotation(qw, qx, qy, qz):
    """Rows of the rotation of a quaternion of any length; identity for zero. Also 1 / its length."""
    # torch's normalize divides by max(length, 1e-12)
    inverse = 1.0 / max(np.sqrt(qw * qw + qx * qx + qy * qy + qz * qz), 1e-12)
    w, x, y, z = qw * inverse, qx * inverse, qy * inverse, qz * inverse
    r00, r01, r02 = 1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)
    r10, r11, r12 = 2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)
    r20, r21, r22 = 2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)
    return r00, r01, r02, r10, r11, r12, r20, r21, r22, w, x, y, z, inverse


@njit(inline="always")
def _clamp_limits(K, width, height):
    """How far outside the view x / z and y / z may lie before the projection's slope is frozen (gsplat, persp_proj)."""
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    return (
        -cx / fx - margin_x,
        (width - cx) / fx + margin_x,
        -cy / fy - margin_y,
        (height - cy) / fy + margin_y,
    )


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
    radii,  # (B, C, N, 2) int32, zero where culled; outputs from here on
    means2d,  # (B, C, N, 2)
    depths,  # (B, C, N)
    conics,  # (B, C, N, 3)
    compensations,  # (B, C, N)
    shape,  # (B * C * N, SHAPE)
    tile_counts,  # (B * C * N,) int32
):
    """EWA projection (Zwicker et al. 2001, eq. 31; Kerbl et al. 2023, eq. 5) and the box of tiles of each Gaussian.

    With M = R S, J the slope of the projection and W the camera rotation, the 2-D covariance is U U^T, U = J W M.
    A Gaussian with a number that is not finite is culled.
    """
    B, N = means.shape[0], means.shape[1]
    C = viewmats.shape[1]
    per_image = (N + CHUNK - 1) // CHUNK
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    while True:
        piece = take_number(counter)
        if piece >= B * C * per_image:
            return
        image = piece // per_image
        start = (piece - image * per_image) * CHUNK
        b = image // C
        c = image - b * C
        V = viewmats[b, c].astype(np.float64)
        K = Ks[b, c].astype(np.float64)
        fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
        x_low, x_high, y_low, y_high = _clamp_limits(K, width, height)
        for n in range(start, min(start + CHUNK, N)):
            item = image * N + n
            radii[b, c, n, 0] = 0
            radii[b, c, n, 1] = 0
            means2d[b, c, n, 0] = 0.0
            means2d[b, c, n, 1] = 0.0
            depths[b, c, n] = 0.0
            conics[b, c, n, 0] = 0.0
            conics[b, c, n, 1] = 0.0
            conics[b, c, n, 2] = 0.0
            compensations[b, c, n] = 0.0
            tile_counts[item] = 0
            mx, my, mz = np.float64(means[b, n, 0]), np.float64(means[b, n, 1]), np.float64(means[b, n, 2])
            z = V[2, 0] * mx + V[2, 1] * my + V[2, 2] * mz + V[2, 3]
            if not (z >= near and z <= far and z > 0.0):
                continue
            x = V[0, 0] * mx + V[0, 1] * my + V[0, 2] * mz + V[0, 3]
            y = V[1, 0] * mx + V[1, 1] * my + V[1, 2] * mz + V[1, 3]
            rz = 1.0 / z
            u, v = fx * x * rz + cx, fy * y * rz + cy
            r00, r01, r02, r10, r11, r12, r20, r21, r22, _, _, _, _, _ = _rotation(
                np.float64(quats[b, n, 0]),
                np.float64(quats[b, n, 1]),
                np.float64(quats[b, n, 2]),
                np.float64(quats[b, n, 3]),
            )
            s0, s1, s2 = np.float64(scales[b, n, 0]), np.float64(scales[b, n, 1]), np.float64(scales[b, n, 2])
            # J W, rows 0 and 1
            jx, jy = fx * rz, fy * rz
            jxz = -jx * min(max(x * rz, x_low), x_high)
            jyz = -jy * min(max(y * rz, y_low), y_high)
            t00, t01, t02 = (
                jx * V[0, 0] + jxz * V[2, 0],
                jx * V[0, 1] + jxz * V[2, 1],
                jx * V[0, 2] + jxz * V[2, 2],
            )
            t10, t11, t12 = (
                jy * V[1, 0] + jyz * V[2, 0],
                jy * V[1, 1] + jyz * V[2, 1],
                jy * V[1, 2] + jyz * V[2, 2],
            )
            u00, u01, u02 = (
                (t00 * r00 + t01 * r10 + t02 * r20) * s0,
                (t00 * r01 + t01 * r11 + t02 * r21) * s1,
                (t00 * r02 + t01 * r12 + t02 * r22) * s2,
            )
            u10, u11, u12 = (
                (t10 * r00 + t11 * r10 + t12 * r20) * s0,
                (t10 * r01 + t11 * r11 + t12 * r21) * s1,
                (t10 * r02 + t11 * r12 + t12 * r22) * s2,
            )
            sxx = u00 * u00 + u01 * u01 + u02 * u02
            sxy = u00 * u10 + u01 * u11 + u02 * u12
            syy = u10 * u10 + u11 * u11 + u12 * u12
            # the determinant as |u0 x u1|^2 does not cancel (Lagrange's identity)
            k0, k1, k2 = u01 * u12 - u02 * u11, u02 * u10 - u00 * u12, u00 * u11 - u01 * u10
            det_sharp = k0 * k0 + k1 * k1 + k2 * k2
            det = det_sharp + eps2d * (sxx + syy + eps2d)
            sxx += eps2d
            syy += eps2d
            if not (det > 0.0 and det < np.inf):
                continue
            compensation = np.sqrt(det_sharp / det)
            opacity = np.float64(opacities[b, n])
            if antialiased:
                opacity *= compensation
            if not (opacity >= ALPHA_MIN and opacity < np.inf):
                continue
            # alpha falls to 1/255 here (Radl et al. 2024, section B.2), as gsplat 1.5 bounds it
            extent = min(EXTENT, np.sqrt(2.0 * np.log(opacity / ALPHA_MIN)))
            half_x, half_y = extent * np.sqrt(sxx), extent * np.sqrt(syy)
            radius_x, radius_y = min(np.ceil(half_x), 1e9), min(np.ceil(half_y), 1e9)
            if radius_x <= radius_clip and radius_y <= radius_clip:
                continue
            if not (u + radius_x > 0 and u - radius_x < width and v + radius_y > 0 and v - radius_y < height):
                continue
            a, bb, d = syy / det, -sxy / det, sxx / det
            radii[b, c, n, 0] = np.int32(radius_x)
            radii[b, c, n, 1] = np.int32(radius_y)
            means2d[b, c, n, 0] = u
            means2d[b, c, n, 1] = v
            depths[b, c, n] = z
            conics[b, c, n, 0] = a
            conics[b, c, n, 1] = bb
            conics[b, c, n, 2] = d
            compensations[b, c, n] = compensation
            shape[item, 0] = u
            shape[item, 1] = v
            shape[item, 2] = -0.5 * LOG2_E * a
            shape[item, 3] = -LOG2_E * bb
            shape[item, 4] = -0.5 * LOG2_E * d
            shape[item, 5] = np.log(opacity) * LOG2_E
            # a little more than the ellipse, so that rounding never cuts a pixel off
            shape[item, 6] = half_x * 1.0001 + 1e-3
            shape[item, 7] = half_y * 1.0001 + 1e-3
            x0, x1, y0, y1 = _tile_box(shape[item], tiles_x, tiles_y)
            tile_counts[item] = max(x1 - x0, 0) * max(y1 - y0, 0)


@njit(inline="always")
def _tile_box(shape, tiles_x, tiles_y):
    """The tiles [x0, x1) x [y0, y1) with a pixel centre inside the extents of a Gaussian."""
    x0 = np.int64(max(np.floor((shape[0] - shape[6] - np.float32(0.5)) / TILE), np.float32(0.0)))
    y0 = np.int64(max(np.floor((shape[1] - shape[7] - np.float32(0.5)) / TILE), np.float32(0.0)))
    x1 = np.int64(min(np.floor((shape[0] + shape[6] - np.float32(0.5)) / TILE) + 1.0, np.float64(tiles_x)))
    y1 = np.int64(min(np.floor((shape[1] + shape[7] - np.float32(0.5)) / TILE) + 1.0, np.float64(tiles_y)))
    return x0, x1, y0, y1


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
    radii,  # (B, C, N, 2) int32
    conics,  # (B, C, N, 3)
    compensations,  # (B, C, N)
    v_means2d,  # (B, C, N, 2) gradients that come in
    v_depths,  # (B, C, N)
    v_conics,  # (B, C, N, 3)
    v_compensations,  # (B, C, N)
    v_means,  # (B, N, 3) gradients that go out
    v_quats,  # (B, N, 4)
    v_scales,  # (B, N, 3)
    v_viewmats,  # (B, pieces, C, 3, 4) float64, one part per piece of work, zeroed
):
    """The transpose of `project`, derived by hand from the same formulas."""
    B, N = means.shape[0], means.shape[1]
    C = viewmats.shape[1]
    per_batch = (N + CHUNK - 1) // CHUNK
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
            V = viewmats[b, c].astype(np.float64)
            K = Ks[b, c].astype(np.float64)
            fx, fy = K[0, 0], K[1, 1]
            x_low, x_high, y_low, y_high = _clamp_limits(K, width, height)
            w = np.zeros((3, 4))
            for n in range(start, stop):
                if radii[b, c, n, 0] == 0:
                    continue
                mx, my, mz = (
                    np.float64(means[b, n, 0]),
                    np.float64(means[b, n, 1]),
                    np.float64(means[b, n, 2]),
                )
                x = V[0, 0] * mx + V[0, 1] * my + V[0, 2] * mz + V[0, 3]
                y = V[1, 0] * mx + V[1, 1] * my + V[1, 2] * mz + V[1, 3]
                z = V[2, 0] * mx + V[2, 1] * my + V[2, 2] * mz + V[2, 3]
                rz = 1.0 / z
                r00, r01, r02, r10, r11, r12, r20, r21, r22, qw, qx, qy, qz, inverse = _rotation(
                    np.float64(quats[b, n, 0]),
                    np.float64(quats[b, n, 1]),
                    np.float64(quats[b, n, 2]),
                    np.float64(quats[b, n, 3]),
                )
                s0, s1, s2 = (
                    np.float64(scales[b, n, 0]),
                    np.float64(scales[b, n, 1]),
                    np.float64(scales[b, n, 2]),
                )
                jx, jy = fx * rz, fy * rz
                slope_x = min(max(x * rz, x_low), x_high)
                slope_y = min(max(y * rz, y_low), y_high)
                jxz, jyz = -jx * slope_x, -jy * slope_y
                t00, t01, t02 = (
                    jx * V[0, 0] + jxz * V[2, 0],
                    jx * V[0, 1] + jxz * V[2, 1],
                    jx * V[0, 2] + jxz * V[2, 2],
                )
                t10, t11, t12 = (
                    jy * V[1, 0] + jyz * V[2, 0],
                    jy * V[1, 1] + jyz * V[2, 1],
                    jy * V[1, 2] + jyz * V[2, 2],
                )
                # T R, and U = T R S
                p00, p01, p02 = (
                    t00 * r00 + t01 * r10 + t02 * r20,
                    t00 * r01 + t01 * r11 + t02 * r21,
                    t00 * r02 + t01 * r12 + t02 * r22,
                )
                p10, p11, p12 = (
                    t10 * r00 + t11 * r10 + t12 * r20,
                    t10 * r01 + t11 * r11 + t12 * r21,
                    t10 * r02 + t11 * r12 + t12 * r22,
                )
                # conic -> covariance: dS = -C dC C with C symmetric; v_conics[1] belongs to both off-diagonals
                a, h, d = (
                    np.float64(conics[b, c, n, 0]),
                    np.float64(conics[b, c, n, 1]),
                    np.float64(conics[b, c, n, 2]),
                )
                ga, gh, gd = (
                    np.float64(v_conics[b, c, n, 0]),
                    0.5 * np.float64(v_conics[b, c, n, 1]),
                    np.float64(v_conics[b, c, n, 2]),
                )
                m00, m01 = ga * a + gh * h, ga * h + gh * d
                m10, m11 = gh * a + gd * h, gh * h + gd * d
                gxx = -(a * m00 + h * m10)
                gxy = -(a * m01 + h * m11)
                gyy = -(h * m01 + d * m11)
                # compensation^2 = det S / det (S + eps I); its derivative is (1 - comp^2) C - eps det(C) I
                g = np.float64(v_compensations[b, c, n])
                if g != 0.0:
                    compensation = np.float64(compensations[b, c, n])
                    g *= 0.5 / (compensation + 1e-6)
                    rest = 1.0 - compensation * compensation
                    det_conic = a * d - h * h
                    gxx += g * (rest * a - eps2d * det_conic)
                    gxy += g * rest * h
                    gyy += g * (rest * d - eps2d * det_conic)
                # S = U U^T -> v_U = 2 v_S U; columns then scaled by s give v_(T R)
                u00, u01, u02, u10, u11, u12 = p00 * s0, p01 * s1, p02 * s2, p10 * s0, p11 * s1, p12 * s2
                g00, g01, g02 = (
                    2.0 * (gxx * u00 + gxy * u10),
                    2.0 * (gxx * u01 + gxy * u11),
                    2.0 * (gxx * u02 + gxy * u12),
                )
                g10, g11, g12 = (
                    2.0 * (gxy * u00 + gyy * u10),
                    2.0 * (gxy * u01 + gyy * u11),
                    2.0 * (gxy * u02 + gyy * u12),
                )
                v_scales[b, n, 0] += g00 * p00 + g10 * p10
                v_scales[b, n, 1] += g01 * p01 + g11 * p11
                v_scales[b, n, 2] += g02 * p02 + g12 * p12
                g00, g01, g02, g10, g11, g12 = g00 * s0, g01 * s1, g02 * s2, g10 * s0, g11 * s1, g12 * s2
                # v_R = T^T v_(T R)
                e00, e01, e02 = t00 * g00 + t10 * g10, t00 * g01 + t10 * g11, t00 * g02 + t10 * g12
                e10, e11, e12 = t01 * g00 + t11 * g10, t01 * g01 + t11 * g11, t01 * g02 + t11 * g12
                e20, e21, e22 = t02 * g00 + t12 * g10, t02 * g01 + t12 * g11, t02 * g02 + t12 * g12
                # R(q) for unit q, then through the normalisation: v_q = (v - q (q . v)) / |q|
                nw = 2.0 * (qx * (e21 - e12) + qy * (e02 - e20) + qz * (e10 - e01))
                nx = 2.0 * (-2.0 * qx * (e11 + e22) + qy * (e01 + e10) + qz * (e02 + e20) + qw * (e21 - e12))
                ny = 2.0 * (qx * (e01 + e10) - 2.0 * qy * (e00 + e22) + qz * (e12 + e21) + qw * (e02 - e20))
                nz = 2.0 * (qx * (e02 + e20) + qy * (e12 + e21) - 2.0 * qz * (e00 + e11) + qw * (e10 - e01))
                along = qw * nw + qx * nx + qy * ny + qz * nz
                v_quats[b, n, 0] += (nw - qw * along) * inverse
                v_quats[b, n, 1] += (nx - qx * along) * inverse
                v_quats[b, n, 2] += (ny - qy * along) * inverse
                v_quats[b, n, 3] += (nz - qz * along) * inverse
                # v_T = v_(T R) R^T
                f00, f01, f02 = (
                    g00 * r00 + g01 * r01 + g02 * r02,
                    g00 * r10 + g01 * r11 + g02 * r12,
                    g00 * r20 + g01 * r21 + g02 * r22,
                )
                f10, f11, f12 = (
                    g10 * r00 + g11 * r01 + g12 * r02,
                    g10 * r10 + g11 * r11 + g12 * r12,
                    g10 * r20 + g11 * r21 + g12 * r22,
                )
                # T = J W -> v_J = v_T W^T
                v_jx = f00 * V[0, 0] + f01 * V[0, 1] + f02 * V[0, 2]
                v_jxz = f00 * V[2, 0] + f01 * V[2, 1] + f02 * V[2, 2]
                v_jy = f10 * V[1, 0] + f11 * V[1, 1] + f12 * V[1, 2]
                v_jyz = f10 * V[2, 0] + f11 * V[2, 1] + f12 * V[2, 2]
                # means2d = (fx x / z + cx, fy y / z + cy)
                gu, gv = np.float64(v_means2d[b, c, n, 0]), np.float64(v_means2d[b, c, n, 1])
                gx, gy = jx * gu, jy * gv
                gz = -(jx * x * gu + jy * y * gv) * rz + np.float64(v_depths[b, c, n])
                # J = (fx / z, -fx slope / z); slope = x / z unless clamped
                gz -= (jx * v_jx + jxz * v_jxz + jy * v_jy + jyz * v_jyz) * rz
                if x_low <= x * rz <= x_high:
                    gx -= jx * rz * v_jxz
                    gz += jx * rz * slope_x * v_jxz
                if y_low <= y * rz <= y_high:
                    gy -= jy * rz * v_jyz
                    gz += jy * rz * slope_y * v_jyz
                v_means[b, n, 0] += V[0, 0] * gx + V[1, 0] * gy + V[2, 0] * gz
                v_means[b, n, 1] += V[0, 1] * gx + V[1, 1] * gy + V[2, 1] * gz
                v_means[b, n, 2] += V[0, 2] * gx + V[1, 2] * gy + V[2, 2] * gz
                # v_W = J^T v_T + v_x m^T; v_t = v_x
                w[0, 0] += jx * f00 + gx * mx
                w[0, 1] += jx * f01 + gx * my
                w[0, 2] += jx * f02 + gx * mz
                w[0, 3] += gx
                w[1, 0] += jy * f10 + gy * mx
                w[1, 1] += jy * f11 + gy * my
                w[1, 2] += jy * f12 + gy * mz
                w[1, 3] += gy
                w[2, 0] += jxz * f00 + jyz * f10 + gz * mx
                w[2, 1] += jxz * f01 + jyz * f11 + gz * my
                w[2, 2] += jxz * f02 + jyz * f12 + gz * mz
                w[2, 3] += gz
            v_viewmats[b, part, c] = w


@njit(nogil=True, cache=True)
def bin_tiles(
    counter,
    shape,  # (M, SHAPE)
    depths,  # (M,)
    tile_counts,  # (M,) int32
    slots,  # (M + 1,) int64: running sum of tile_counts
    image_starts,  # (I + 1,) int64: first item of each image
    tiles_x,
    tiles_y,
    tile_starts,  # (I * tiles_y * tiles_x + 1,) int64; outputs from here on
    entries,  # (intersections,) int32: items, by image, tile and depth
    entry_slots,  # (intersections,) int32: where each came from in item order
):
    """Each tile's list of Gaussians, front to back; equal depths keep their order. One image is one piece of work.

    Gaussians are radix-sorted by depth once per image; walking them in that order appends to every tile's list.
    """
    images = image_starts.shape[0] - 1
    tiles = tiles_x * tiles_y
    while True:
        image = take_number(counter)
        if image >= images:
            return
        first, last = image_starts[image], image_starts[image + 1]
        count = 0
        for item in range(first, last):
            if tile_counts[item] > 0:
                count += 1
        order = np.empty(count, np.int32)
        keys = np.empty(count, np.uint32)
        k = 0
        bits = depths.view(np.uint32)  # positive floats sort as their bits do
        cursor = np.zeros(tiles + 1, np.int64)
        for item in range(first, last):
            if tile_counts[item] > 0:
                order[k] = item
                keys[k] = bits[item]
                k += 1
                x0, x1, y0, y1 = _tile_box(shape[item], tiles_x, tiles_y)
                for ty in range(y0, y1):
                    for tx in range(x0, x1):
                        cursor[ty * tiles_x + tx + 1] += 1
        order = _sort_by_key(keys, order)
        cursor[0] = slots[first]
        for tile in range(tiles):
            cursor[tile + 1] += cursor[tile]
            tile_starts[image * tiles + tile] = cursor[tile]
        if image == images - 1:
            tile_starts[images * tiles] = slots[last]
        for k in range(count):
            item = order[k]
            slot = slots[item]
            x0, x1, y0, y1 = _tile_box(shape[item], tiles_x, tiles_y)
            for ty in range(y0, y1):
                for tx in range(x0, x1):
                    tile = ty * tiles_x + tx
                    entries[cursor[tile]] = item
                    entry_slots[cursor[tile]] = slot
                    cursor[tile] += 1
                    slot += 1


@njit(nogil=True)
def _sort_by_key(keys, values):
    """`values` in the order of uint32 `keys`: radix sort, 11 bits a pass, stable; both arrays are overwritten."""
    count = keys.shape[0]
    histogram = np.zeros((3, 2048), np.int64)
    for i in range(count):
        key = keys[i]
        histogram[0, key & 2047] += 1
        histogram[1, (key >> 11) & 2047] += 1
        histogram[2, key >> 22] += 1
    other_keys, other_values = np.empty_like(keys), np.empty_like(values)
    for digit in range(3):
        shift = 11 * digit
        if count == 0 or histogram[digit, (keys[0] >> shift) & 2047] == count:
            continue
        position = 0
        for bucket in range(2048):
            here = histogram[digit, bucket]
            histogram[digit, bucket] = position
            position += here
        for i in range(count):
            bucket = (keys[i] >> shift) & 2047
            position = histogram[digit, bucket]
            histogram[digit, bucket] = position + 1
            other_keys[position] = keys[i]
            other_values[position] = values[i]
        keys, other_keys = other_keys, keys
        values, other_values = other_values, values
    return values


@njit(inline="always")
def _aligned(count):
    """Room for `count` floats that starts on a cache line."""
    room = np.empty(count + 16, np.float32)
    skip = (-room.ctypes.data % 64) // 4
    return room[skip : skip + count]


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
            for by in range(TILE):
                y = ty * TILE + by
                if y >= height:
                    break
                for bx in range(min(TILE, width - tx * TILE)):
                    x = tx * TILE + bx
                    p = _pixel(bx, by)
                    transmittance = abs(T[p])
                    alpha_image[i, y, x] = np.float32(1.0) - transmittance
                    for d in range(D):
                        value = sums[d * TILE_PIXELS + p]
                        if backgrounds.shape[0] > 0:
                            value += transmittance * backgrounds[i, d]
                        image[i, y, x, d] = value
            kept = state[tile]
            for p in range(0, TILE_PIXELS, 16):
                store(kept, p, absolute(load(T, p)))
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
        entry_slots,
        tiles_x,
        tiles_y,
        state,
        v_image,  # (I, H, W, D) gradients that come in
        v_alpha_image,  # (I, H, W)
        parts,  # (intersections, MOMENTS + extra + D): one Gaussian's sums over one tile's pixels
    ):
        """Walk each tile's list back from its last contributor, undoing the compositing (Kerbl et al. 2023, appendix C).

        With S = sum over the channels of colour times upstream gradient, only one running number per pixel is needed
        for what lies behind, whatever the number of channels. Per Gaussian the sums over pixels of v_sigma times
        (1, dx, dy, dx^2, dx dy, dy^2) give the gradients of opacity, mean and conic.
        """
        images, height, width, D = v_image.shape
        tiles = tiles_x * tiles_y
        T = _aligned(TILE_PIXELS)
        behind = _aligned(TILE_PIXELS)
        end = _aligned(TILE_PIXELS)
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
            count = tile_starts[tile + 1] - tile_starts[tile]
            walked = np.float32(0.0)  # how many entries count for some pixel of the tile
            for by in range(TILE):
                y = ty * TILE + by
                for bx in range(TILE):
                    x = tx * TILE + bx
                    p = _pixel(bx, by)
                    T[p] = kept[p]
                    if y < height and x < width:
                        gradient = -v_alpha_image[i, y, x]
                        for d in range(D):
                            v[d * TILE_PIXELS + p] = v_image[i, y, x, d]
                            if backgrounds.shape[0] > 0:
                                gradient += backgrounds[i, d] * v_image[i, y, x, d]
                        behind[p] = gradient * kept[p]
                        walked = max(walked, kept[TILE_PIXELS + p])
                        end[p] = kept[TILE_PIXELS + p]
                    else:
                        behind[p] = 0.0
                        end[p] = 0.0
                        for d in range(D):
                            v[d * TILE_PIXELS + p] = 0.0
            start = tile_starts[tile]
            walk = min(np.int64(walked), count)
            for k in range(walk, count):
                for d in range(parts.shape[1]):
                    parts[entry_slots[start + k], d] = 0.0
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
                        raw = exp2(exponent)
                        seen = (exponent >= least) & (index < load(end, p))
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
                slot = entry_slots[start + k]
                parts[slot, 0] = total(m0)
                parts[slot, 1] = total(mx)
                parts[slot, 2] = total(my)
                parts[slot, 3] = total(mxx)
                parts[slot, 4] = total(mxy)
                parts[slot, 5] = total(myy)
                if absolutes:
                    parts[slot, 6] = total(ax)
                    parts[slot, 7] = total(ay)
                if channels > 0:
                    parts[slot, MOMENTS + extra] = total(g0)
                if channels > 1:
                    parts[slot, MOMENTS + extra + 1] = total(g1)
                if channels > 2:
                    parts[slot, MOMENTS + extra + 2] = total(g2)
                if channels > 3:
                    parts[slot, MOMENTS + extra + 3] = total(g3)
                if channels == 0:
                    for d in range(D):
                        parts[slot, MOMENTS + extra + d] = total(load(color_sums, d * 16))

    return composite_backward


@njit(nogil=True, cache=True)
def gather(
    counter,
    slots,  # (M + 1,) int64
    parts,  # (intersections, MOMENTS + extra + D)
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
    sums = np.empty(MOMENTS + extra + D, np.float32)
    while True:
        piece = take_number(counter)
        if piece * CHUNK >= M:
            return
        for item in range(piece * CHUNK, min((piece + 1) * CHUNK, M)):
            sums[:] = 0.0
            for slot in range(slots[item], slots[item + 1]):
                for d in range(sums.shape[0]):
                    sums[d] += parts[slot, d]
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
