"""The loops of matting over windows and pixels, compiled."""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, fastmath=True)
def window_sums(image: np.ndarray, windows: np.ndarray, number: np.ndarray, epsilon: float, sums: np.ndarray) -> None:
    """Add what 3x3 windows give the matting Laplacian (Levin et al. 2008, equation 12).

    Args:
        image: (H, W, 3) float64. windows: (m,) flat places of their middles, none on the border.
        number: (H W,) int32, which row a pixel is, -1 where it is none.
        sums: (rows, 25) float64, for each row's 5x5 neighbourhood; added to.
    """
    width = image.shape[1]
    colors, turned = np.empty((9, 3)), np.empty((9, 3))
    places = np.empty(9, np.int64)
    for middle in windows:
        y, x = middle // width, middle % width
        m0 = m1 = m2 = 0.0
        for k in range(9):
            row, column = y + k // 3 - 1, x + k % 3 - 1
            places[k] = row * width + column
            colors[k, 0], colors[k, 1], colors[k, 2] = (
                image[row, column, 0],
                image[row, column, 1],
                image[row, column, 2],
            )
            m0 += colors[k, 0]
            m1 += colors[k, 1]
            m2 += colors[k, 2]
        m0, m1, m2 = m0 / 9, m1 / 9, m2 / 9
        a = d = f = epsilon
        b = c = e = 0.0
        for k in range(9):
            r, g, s = colors[k, 0] - m0, colors[k, 1] - m1, colors[k, 2] - m2
            colors[k, 0], colors[k, 1], colors[k, 2] = r, g, s
            a += r * r
            b += r * g
            c += r * s
            d += g * g
            e += g * s
            f += s * s
        # 9 times the inverse of the symmetric [a b c; b d e; c e f], which is 9 times the covariance with epsilon
        i00, i01, i02 = d * f - e * e, c * e - b * f, b * e - c * d
        scale = 9 / (a * i00 + b * i01 + c * i02)
        i11, i12, i22 = a * f - c * c, b * c - a * e, a * d - b * b
        for k in range(9):
            r, g, s = colors[k, 0], colors[k, 1], colors[k, 2]
            turned[k, 0] = scale * (i00 * r + i01 * g + i02 * s)
            turned[k, 1] = scale * (i01 * r + i11 * g + i12 * s)
            turned[k, 2] = scale * (i02 * r + i12 * g + i22 * s)
        for k in range(9):
            row = number[places[k]]
            if row < 0:
                continue
            for j in range(9):
                alike = colors[j, 0] * turned[k, 0] + colors[j, 1] * turned[k, 1] + colors[j, 2] * turned[k, 2]
                value = (1.0 if j == k else 0.0) - (1 + alike) / 9
                sums[row, (j // 3 - k // 3 + 2) * 5 + (j % 3 - k % 3 + 2)] += value


@numba.njit(cache=True, nogil=True, fastmath=True)
def jacobi(
    color: np.ndarray,
    alpha: np.ndarray,
    here: np.ndarray,
    front: np.ndarray,
    back: np.ndarray,
    regularization: float,
    rounds: int,
) -> None:
    """Foreground and background of mixed pixels in place (Germer et al. 2020, equation 4), by Jacobi's method.

    Args:
        color, front, back: (H, W, 3) float32. alpha: (H, W) float32. here: (n,) flat places of the mixed pixels.
    """
    height, width = alpha.shape
    new_front, new_back = np.empty((len(here), 3), np.float32), np.empty((len(here), 3), np.float32)
    for _ in range(rounds):
        for k in range(len(here)):
            y, x = here[k] // width, here[k] % width
            a = alpha[y, x]
            total = 0.0
            f0 = f1 = f2 = b0 = b1 = b2 = 0.0
            for step in range(4):
                v = min(max(y + (step == 1) - (step == 0), 0), height - 1)
                u = min(max(x + (step == 3) - (step == 2), 0), width - 1)
                weight = regularization + abs(alpha[v, u] - a)
                total += weight
                f0 += weight * front[v, u, 0]
                f1 += weight * front[v, u, 1]
                f2 += weight * front[v, u, 2]
                b0 += weight * back[v, u, 0]
                b1 += weight * back[v, u, 1]
                b2 += weight * back[v, u, 2]
            p, q, r = a * a + total, a * (1 - a), (1 - a) ** 2 + total
            scale = 1 / (p * r - q * q)
            for c in range(3):
                c0 = a * color[y, x, c] + (f0 if c == 0 else f1 if c == 1 else f2)
                c1 = (1 - a) * color[y, x, c] + (b0 if c == 0 else b1 if c == 1 else b2)
                new_front[k, c] = min(max(scale * (r * c0 - q * c1), 0.0), 255.0)
                new_back[k, c] = min(max(scale * (p * c1 - q * c0), 0.0), 255.0)
        for k in range(len(here)):
            y, x = here[k] // width, here[k] % width
            front[y, x] = new_front[k]
            back[y, x] = new_back[k]
