"""Points of posed heads in the image and their analytic derivatives, as a compiled kernel on the CPU.

For a fixed pose the posed points are affine in the coefficients, so those derivatives are the basis, posed like a
point; rotations have closed derivatives (Gallego and Yezzi, "A compact formula for the derivative of a 3-D rotation in
exponential coordinates", 2015, equation 9). One pass per point: nothing of the size of all points and all coefficients
is made but the derivatives themselves.
"""

import numpy as np
from numba import njit
from recon4d import threads

SMALL = 1e-6  # radians under which a rotation's derivative is that at the identity


def rotations(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation matrices (B, 3, 3) of rotation vectors (B, 3), and their derivatives (B, 3, 3, 3) by each component."""
    vectors = np.ascontiguousarray(vectors, np.float64)
    R, dR = np.empty((len(vectors), 3, 3)), np.empty((len(vectors), 3, 3, 3))
    _rotations(vectors, R, dR)
    return R, dR


@njit(cache=True, nogil=True)
def _cross(v, out):
    """The matrix whose product with a vector is the cross product with v (3,)."""
    out[0, 0], out[0, 1], out[0, 2] = 0.0, -v[2], v[1]
    out[1, 0], out[1, 1], out[1, 2] = v[2], 0.0, -v[0]
    out[2, 0], out[2, 1], out[2, 2] = -v[1], v[0], 0.0


@njit(cache=True, nogil=True)
def _rotations(vectors, R, dR):
    cross, part, moved = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3)
    for b in range(len(vectors)):
        v = vectors[b]
        angle2 = v[0] ** 2 + v[1] ** 2 + v[2] ** 2
        small = angle2 < SMALL**2
        angle = np.sqrt(angle2)
        sine = 1.0 if small else np.sin(angle) / angle
        cosine = 0.5 if small else (1 - np.cos(angle)) / angle2
        _cross(v, cross)
        for i in range(3):
            for j in range(3):
                squared = cross[i, 0] * cross[0, j] + cross[i, 1] * cross[1, j] + cross[i, 2] * cross[2, j]
                R[b, i, j] = (1.0 if i == j else 0.0) + sine * cross[i, j] + cosine * squared
        for k in range(3):
            if small:
                moved[:] = 0.0
                moved[k] = 1.0
                _cross(moved, dR[b, k])
                continue
            x, y, z = -R[b, 0, k], -R[b, 1, k], -R[b, 2, k]  # (I - R) e_k
            x, y, z = x + (k == 0), y + (k == 1), z + (k == 2)
            moved[0], moved[1], moved[2] = v[1] * z - v[2] * y, v[2] * x - v[0] * z, v[0] * y - v[1] * x
            _cross(moved, part)
            for i in range(3):
                for j in range(3):
                    part[i, j] = (part[i, j] + v[k] * cross[i, j]) / angle2
            for i in range(3):
                for j in range(3):
                    dR[b, k, i, j] = part[i, 0] * R[b, 0, j] + part[i, 1] * R[b, 1, j] + part[i, 2] * R[b, 2, j]


@njit(cache=True, nogil=True, boundscheck=False, fastmath=True)
def _frames(
    first, last, H, dH, R, dR, place, focal, centre, coefficients, relative, size, growth,
    template, basis, weights, posedirs, joints, joint_basis, rows, lids, derive, pixels, Jg, Jq,
):  # fmt: skip
    n, S, C = rows.shape[1], growth.shape[0], basis.shape[2]
    E = C - S - lids
    x, y, camera, at, side = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
    T = np.zeros((3, 3))
    acc = np.zeros(C, np.float32)
    for b in range(first, last):
        for i in range(n):
            p = rows[b, i]
            for k in range(3):
                total = np.float32(0.0)
                for c in range(C):
                    total += basis[p, k, c] * coefficients[b, c]
                value = template[p, k] + total
                for j in range(2, 5):
                    for r in range(9):
                        value += posedirs[p, k, 9 * (j - 1) + r] * (
                            R[b, j, r // 3, r % 3] - (1.0 if r % 4 == 0 else 0.0)
                        )
                x[k] = value
            for k in range(3):
                for m in range(3):
                    T[k, m] = 0.0
                    for j in range(5):
                        T[k, m] += weights[p, j] * R[b, j, k, m]
            for k in range(3):
                y[k] = T[k, 0] * x[0] + T[k, 1] * x[1] + T[k, 2] * x[2]
                for j in range(2, 5):
                    w = weights[p, j]
                    if w != 0.0:
                        turned = 0.0
                        for m in range(3):
                            turned += R[b, j, k, m] * joints[b, j, m]
                        y[k] += w * (joints[b, j, k] - turned)
            for k in range(3):
                camera[k] = H[b, k, 0] * y[0] + H[b, k, 1] * y[1] + H[b, k, 2] * y[2] + place[b, k]
            Z = max(camera[2], 1e-3)
            for d in range(2):
                pixels[b, i, d] = focal * camera[d] / Z + centre[d]
            if not derive:
                continue
            for d in range(2):
                # side: the derivative of this pixel coordinate by the point in the head's axes
                near, far = focal / Z, -focal * camera[d] / (Z * Z)
                for k in range(3):
                    side[k] = near * H[b, d, k] + far * H[b, 2, k]
                for k in range(3):
                    at[k] = side[0] * T[0, k] + side[1] * T[1, k] + side[2] * T[2, k]
                a0, a1, a2 = np.float32(at[0]), np.float32(at[1]), np.float32(at[2])
                for c in range(C):
                    acc[c] = a0 * basis[p, 0, c] + a1 * basis[p, 1, c] + a2 * basis[p, 2, c]
                for j in range(2, 5):
                    w = weights[p, j]
                    if w != 0.0:
                        for k in range(3):
                            turned = side[0] * R[b, j, 0, k] + side[1] * R[b, j, 1, k] + side[2] * R[b, j, 2, k]
                            a0 = np.float32(w * (side[k] - turned))
                            for c in range(C):
                                acc[c] += a0 * joint_basis[j, k, c]
                by_size = 0.0
                for c in range(S, C):
                    by_size += acc[c] * relative[b, c - S]
                if Jg.shape[0]:
                    for c in range(S):
                        Jg[b, i, d, c] = acc[c] + np.float32(by_size) * growth[c]
                    Jg[b, i, d, S] = focal * camera[d] / Z
                for k in range(3):
                    total64 = 0.0
                    for r in range(3):
                        moved = dH[b, k, r, 0] * y[0] + dH[b, k, r, 1] * y[1] + dH[b, k, r, 2] * y[2]
                        total64 += (near if r == d else 0.0) * moved + (far if r == 2 else 0.0) * moved
                    Jq[b, i, d, k] = total64
                for k in range(2):
                    Jq[b, i, d, 3 + k] = near * place[b, 2] if k == d else 0.0
                Jq[b, i, d, 5] = near * place[b, d] + far * place[b, 2]
                for c in range(E):
                    Jq[b, i, d, 6 + c] = size * acc[S + c]
                for k in range(3):
                    Jq[b, i, d, 6 + E + k] = _turn(side, at, x, weights[p], posedirs[p], joints[b], dR[b, k], 2, 3)
                for c in range(lids):
                    Jq[b, i, d, 9 + E + c] = size * acc[S + E + c]
                for k in range(2):
                    Jq[b, i, d, 9 + E + lids + k] = _turn(
                        side, at, x, weights[p], posedirs[p], joints[b], dR[b, 3 + k], 3, 5
                    )


@njit(cache=True, nogil=True, boundscheck=False, fastmath=True)
def _turn(side, at, x, weights, posedirs, joints, dR, first, last):
    """By a parameter that turns the joints from `first` up to `last` by dR (3, 3)."""
    total = 0.0
    for j in range(first, last):
        w = weights[j]
        for k in range(3):
            if w != 0.0:
                moved = 0.0
                for m in range(3):
                    moved += dR[k, m] * (x[m] - joints[j, m])
                total += side[k] * w * moved
            for r in range(9):
                total += at[k] * posedirs[k, 9 * (j - 1) + r] * dR[r // 3, r % 3]
    return total


def project(
    rotation: np.ndarray,
    facing: np.ndarray,
    place: np.ndarray,
    jaw: np.ndarray,
    gaze: np.ndarray,
    focal: float,
    centre: np.ndarray,
    coefficients: np.ndarray,
    relative: np.ndarray,
    size: float,
    growth: np.ndarray,
    points: tuple[np.ndarray, ...],
    joints: np.ndarray,
    rows: np.ndarray,
    lids: int,
    shared: bool,
    frame: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (B, n, 2) in pixels, and derivatives (B, n, 2, S + 1) by shared and (B, n, 2, P) by frames' unknowns.

    Args:
        rotation: (B, 3) of the head, before `facing` (3, 3). place: (B, 3) x / z, y / z, log z. jaw: (B, 3) rotation
            vectors. gaze: (B, 2) yaw and pitch.
        coefficients: (B, S + E + lids) of the basis. relative: (B, E + lids) those of the frame over `size`.
        growth: (S,) of the size by the identity.
        points: template (m, 3), basis (m, 3, S + E + lids), weights (m, 5), posedirs (m, 3, 36), joint basis
            (5, 3, S + E + lids).
        joints: (B, 5, 3) unposed. rows: (B, n) which of the m points. lids: how many last columns.
        shared, frame: which derivatives are wanted; the others are empty.
    """
    H, dH = rotations(rotation)
    H, dH = H @ facing, dH @ facing
    B, n = rows.shape
    R = np.tile(np.eye(3), (B, 5, 1, 1))
    dR = np.zeros((B, 5, 3, 3))
    R[:, 2], dR[:, :3] = rotations(jaw)
    eye, by_eye = rotations(np.stack([-gaze[:, 1], gaze[:, 0], np.zeros(B)], 1))
    R[:, 3] = R[:, 4] = eye
    dR[:, 3], dR[:, 4] = by_eye[:, 1], -by_eye[:, 0]
    depth = np.exp(place[:, 2:])
    at = np.concatenate([place[:, :2], np.ones((B, 1))], 1) * depth
    template, basis, weights, posedirs, joint_basis = points
    P = 11 + basis.shape[2] - len(growth)
    pixels = np.empty((B, n, 2), np.float32)
    derive = shared or frame
    Jg = np.empty((B if shared else 0, n, 2, len(growth) + 1), np.float32)
    Jq = np.empty((B if derive else 0, n, 2, P), np.float32)
    threads.announce_compile("the tracker", 5, _frames)
    threads.share(
        lambda b: _frames(
            b, b + 1, H, dH, R, dR, at, focal, centre, coefficients, relative, size, growth,
            template, basis, weights, posedirs, joints, joint_basis, rows, lids, derive, pixels, Jg, Jq,
        ),
        B,
    )  # fmt: skip
    return pixels, Jg, Jq


def solve_step(J: np.ndarray, r: np.ndarray, diagonal: np.ndarray, gradient: np.ndarray, damping: float) -> np.ndarray:
    """The step x (P,) with (J'J + diag(diagonal), its diagonal damped) x = J'r + gradient.

    In compiled loops: for so small a system the threads of BLAS cost more than they save.

    Args:
        J: (m, P) float32. r: (m,) float32.
    """
    x = np.empty(J.shape[1])
    _solve(J, r, diagonal, gradient, damping, x)
    return x


@njit(cache=True, nogil=True, boundscheck=False, fastmath=True)
def _solve(J, r, diagonal, gradient, damping, x):
    m, P = J.shape
    A32, b32 = np.zeros((P, P), np.float32), np.zeros(P, np.float32)
    A, b = np.zeros((P, P)), gradient.copy()
    for i in range(m):
        for a in range(P):
            value = J[i, a]
            b32[a] += value * r[i]
            for c in range(a + 1):
                A32[a, c] += value * J[i, c]
        if i % 128 == 127 or i == m - 1:  # float32 sums of many terms lose digits
            for a in range(P):
                b[a] += b32[a]
                b32[a] = 0.0
                for c in range(a + 1):
                    A[a, c] += A32[a, c]
                    A32[a, c] = 0.0
    for a in range(P):
        A[a, a] += diagonal[a] + damping * A[a, a]
    for a in range(P):  # Cholesky, A = L L'
        for c in range(a):
            total = A[a, c]
            for k in range(c):
                total -= A[a, k] * A[c, k]
            A[a, c] = total / A[c, c]
        total = A[a, a]
        for k in range(a):
            total -= A[a, k] * A[a, k]
        A[a, a] = np.sqrt(max(total, 1e-12))
    for a in range(P):
        total = b[a]
        for k in range(a):
            total -= A[a, k] * x[k]
        x[a] = total / A[a, a]
    for a in range(P - 1, -1, -1):
        total = x[a]
        for k in range(a + 1, P):
            total -= A[k, a] * x[k]
        x[a] = total / A[a, a]
