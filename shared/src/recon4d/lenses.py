"""Lenses: what bends the picture of a pinhole, and pictures straightened.

One formula covers the models of OpenCV, COLMAP, Metashape, nerfstudio and instant-ngp. A point of the camera's axes
(x, y, z) becomes (a, b) = (x, y) / z, for a fisheye (x, y) / r theta with r = |(x, y)| and theta = atan2(r, z). With
q = a^2 + b^2 the lens shows it at

    a' = a s + 2 p1 a b + p2 (q + 2 a^2) + s1 q + s2 q^2
    b' = b s + p1 (q + 2 b^2) + 2 p2 a b + s3 q + s4 q^2,   s = (1 + k1 q + k2 q^2 + ...) / (1 + d1 q + d2 q^2 + ...)

which K turns into pixels. OpenCV calls d1, d2, d3 its k4, k5, k6, and has four k and nothing else for a fisheye.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

_SAMPLES = 2048  # where along a radius it is tried whether a lens folds the picture over
_TURNS = {  # EXIF orientation: the camera's x and y axes after the turn, in those before
    3: ((-1, 0), (0, -1)),
    6: ((0, -1), (1, 0)),
    8: ((0, 1), (-1, 0)),
}


@dataclass(frozen=True)
class Lens:
    """The terms of the formula above; none of them is no distortion.

    radial: k1, k2 ... rational: d1, d2 ... tangential: p1, p2. prism: s1 to s4. fisheye: angles instead of tangents.
    """

    radial: tuple[float, ...] = ()
    rational: tuple[float, ...] = ()
    tangential: tuple[float, float] = (0.0, 0.0)
    prism: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    fisheye: bool = False

    @property
    def straight(self) -> bool:
        """Whether it is a pinhole."""
        return not (self.fisheye or any((*self.radial, *self.rational, *self.tangential, *self.prism)))


@dataclass(frozen=True, eq=False)
class LensCamera:
    """K (3, 3) float64, pixel centres at +0.5; the size of the picture in pixels; the lens."""

    K: np.ndarray
    width: int
    height: int
    lens: Lens = field(default_factory=Lens)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of points (N, 3) in the camera's OpenCV axes."""
        pixels: np.ndarray = bend(self.lens, points) @ self.K[:2, :2].T + self.K[:2, 2]
        return pixels


def _series(terms: tuple[float, ...], q: np.ndarray) -> np.ndarray:
    """1 + k1 q + k2 q^2 + ..."""
    out = np.zeros_like(q)
    for term in reversed(terms):
        out = (out + term) * q
    return out + 1.0


def bend(lens: Lens, points: np.ndarray) -> np.ndarray:
    """(N, 2) where the lens shows points (N, 3) of the camera's axes, in its image plane at distance 1.

    NaN behind a camera that is no fisheye.
    """
    x, y, z = points.T
    if lens.fisheye:
        r = np.hypot(x, y)
        scale = np.where(r > 1e-12, np.arctan2(r, z) / np.maximum(r, 1e-12), 1.0)
    else:
        scale = 1.0 / np.where(z > 0, z, np.nan)
    a, b = x * scale, y * scale
    q = a * a + b * b
    s = _series(lens.radial, q) / _series(lens.rational, q)
    (p1, p2), (s1, s2, s3, s4) = lens.tangential, lens.prism
    return np.stack(
        [
            a * s + 2 * p1 * a * b + p2 * (q + 2 * a * a) + s1 * q + s2 * q * q,
            b * s + p1 * (q + 2 * b * b) + 2 * p2 * a * b + s3 * q + s4 * q * q,
        ],
        1,
    )


def reach(lens: Lens, most: float = np.pi / 2) -> float:
    """Radians from the axis up to which the lens shows a larger angle farther out; `most` at most.

    Beyond it a fitted polynomial folds the picture over itself: what it says there is not what a lens shows.
    """
    angle = np.linspace(0.0, most, _SAMPLES)
    r = angle if lens.fisheye else np.tan(np.minimum(angle, np.pi / 2 - 1e-6))
    with np.errstate(all="ignore"):
        shown = r * _series(lens.radial, r * r) / _series(lens.rational, r * r)
        growing = np.diff(shown) > 0
    return most if growing.all() else float(angle[int(np.argmin(growing))])


def turned(orientation: int) -> np.ndarray:
    """(3, 3) rotation from the axes of a camera as it was held to those of the upright picture.

    orientation: EXIF's, of which 3, 6 and 8 are turns; every other number is none.
    """
    rotation = np.eye(3)
    rotation[:2, :2] = _TURNS.get(orientation, ((1, 0), (0, 1)))
    return rotation


def upright(camera: LensCamera, orientation: int) -> LensCamera:
    """The pinhole camera of a camera's pictures once they are turned as EXIF's `orientation` says."""
    rotation = turned(orientation)[:2, :2]
    width, height = (camera.height, camera.width) if orientation in (6, 8) else (camera.width, camera.height)
    K, middle = camera.K, np.array([camera.width / 2, camera.height / 2])
    out = np.eye(3)
    out[:2, :2] = rotation @ K[:2, :2] @ rotation.T
    out[:2, 2] = rotation @ (K[:2, 2] - middle) + np.array([width / 2, height / 2])
    return LensCamera(out, width, height)


def straightening(camera: LensCamera, to: LensCamera, rotation: np.ndarray | None = None) -> np.ndarray:
    """Where each pixel of a pinhole camera is in a lens's picture: (H, W, 2) float32 column and row for `cv2.remap`.

    cv2.remap has the first pixel's centre at 0. What the lens does not show is far outside, at -1e4.

    Args:
        to: a camera without distortion, at the same place.
        rotation: (3, 3) from the axes of `camera` to those of `to`.
    """
    y, x = np.mgrid[0 : to.height, 0 : to.width].reshape(2, -1) + 0.5
    rays = np.stack([x, y, np.ones_like(x)], 1) @ np.linalg.inv(to.K).T
    rays = rays if rotation is None else rays @ rotation
    pixels = camera.project(rays) - 0.5
    angle = np.arctan2(np.hypot(rays[:, 0], rays[:, 1]), rays[:, 2])
    pixels[~np.isfinite(pixels).all(1) | (angle > reach(camera.lens))] = -1e4
    return pixels.clip(-1e4, 1e6).astype(np.float32).reshape(to.height, to.width, 2)


def straighten(
    picture: np.ndarray, camera: LensCamera, to: LensCamera, rotation: np.ndarray | None = None
) -> np.ndarray:
    """A lens's picture (H, W) or (H, W, C) as a pinhole camera at the same place sees it; zeros where it has nothing.

    The picture itself where that camera sees just the same. Args as `straightening`.
    """
    same = (camera.width, camera.height) == (to.width, to.height) and np.array_equal(camera.K, to.K)
    if camera.lens.straight and same and (rotation is None or np.array_equal(rotation, np.eye(3))):
        return picture
    places = straightening(camera, to, rotation)
    columns, rows = (np.ascontiguousarray(places[..., i]) for i in (0, 1))
    return cv2.remap(picture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
