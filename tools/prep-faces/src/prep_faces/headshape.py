"""Where a head is in a picture, as far as landmarks or a tracked mesh tell: what matting starts from."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from recon4d import InputError

STEADY = [*range(0, 3), *range(14, 48)]  # points that the mouth does not move


@dataclass(frozen=True, eq=False)
class HeadShape:
    """The outline of skull, face and neck without hair, in pixels of the full image, centres at +0.5."""

    polygons: tuple[np.ndarray, ...]  # each (n, 2) float; the head is their union
    face: np.ndarray  # (m, 2) convex outline of the face proper, which is surely head
    middle: np.ndarray  # (2,) between the eyes
    up: np.ndarray  # (2,) unit vector towards the crown
    width: float  # of the face from ear to ear: the unit of length
    chin: float  # distance of the chin below `middle` along `up`, in widths
    neck: float  # distance below `middle`, in widths, where the head's neck ends
    margin: float  # how far the outline may be wrong, in widths
    anchors: np.ndarray  # (k, 2) points that move with the skull, the same ones in every frame
    image_size: tuple[int, int] | None = None  # width, height of the image that all this refers to, where known

    def visible(self, height: int, width: int) -> bool:
        """Whether the middle of the face lies in an image of this size."""
        center = self.face.mean(0)
        return bool((center >= 0).all() and (center < [width, height]).all())

    def fitted(self, height: int, width: int) -> "HeadShape":
        """The shape in an image of another size. Raises InputError when its proportions are not the same."""
        if self.image_size is None or self.image_size == (width, height):
            return self
        scale = width / self.image_size[0]
        if abs(self.image_size[1] * scale - height) > 1.5:
            old = "x".join(map(str, self.image_size))
            raise InputError(f"the head was found in an image of {old} and this one is {width}x{height}; find it anew")
        return replace(
            self,
            polygons=tuple(polygon * scale for polygon in self.polygons),
            face=self.face * scale,
            middle=self.middle * scale,
            width=self.width * scale,
            anchors=self.anchors * scale,
            image_size=(width, height),
        )


def shape_from_landmarks(points: np.ndarray, image_size: tuple[int, int] | None = None) -> HeadShape:
    """A head around 68 iBUG points (68, 2): the jaw line as it is, a skull and a neck of average proportions."""
    points = np.asarray(points, np.float64)[:, :2]
    right = points[42:48].mean(0) - points[36:42].mean(0)
    right /= max(float(np.linalg.norm(right)), 1e-6)
    up = np.array([right[1], -right[0]])
    middle = (points[36:42].mean(0) + points[42:48].mean(0)) / 2
    hull = cv2.convexHull(points.astype(np.float32))[:, 0]
    # A frontal face outlined by its 68 points covers 0.7 of the square of its width; the area hardly changes with
    # yaw and pitch, while every distance between two points does.
    width = max(float(np.sqrt(cv2.contourArea(hull) / 0.7)), 2.0)

    jaw = points[0:17]
    ears = (jaw[0] + jaw[16]) / 2
    # Turned to one side, the head extends behind the ears to the other side.
    turn = float((points[30] - ears) @ right) / width
    center = ears - right * 0.35 * turn * width
    half = 0.54 * width
    angles = np.linspace(0, np.pi, 33)
    crown = center + half * np.cos(angles)[:, None] * right + 0.80 * width * np.sin(angles)[:, None] * up
    skull = cv2.convexHull(np.concatenate([jaw, crown]).astype(np.float32))[:, 0]

    chin = float((middle - jaw[8]) @ up) / width
    neck = chin + 0.45
    corners = np.stack([jaw[4] + 0.10 * width * right, jaw[12] - 0.10 * width * right])
    feet = corners - up * ((neck - (middle - corners) @ up / width) * width)[:, None]
    throat = np.stack([corners[0], corners[1], feet[1], feet[0]])
    brow = hull.astype(np.float64)
    face = brow + np.where((brow - middle) @ up > 0, 0.15 * width, 0.0)[:, None] * up
    return HeadShape((skull, throat), face, middle, up, width, chin, neck, 0.10, points[STEADY], image_size)


def shape_mask(shape: HeadShape, to_small: np.ndarray, height: int, width: int) -> np.ndarray:
    """The union of the polygons, uint8 0 or 1, drawn into a picture that the 2x3 matrix `to_small` maps to."""
    mask = np.zeros((height, width), np.uint8)
    for polygon in shape.polygons:
        draw_polygon(mask, polygon, to_small)
    return mask


def draw_polygon(mask: np.ndarray, polygon: np.ndarray, to_small: np.ndarray) -> None:
    """Fill (n, 2) `polygon`, mapped by the 2x3 matrix `to_small`, with ones."""
    corners = polygon @ to_small[:, :2].T + to_small[:, 2] - 0.5  # OpenCV puts pixel centres at whole numbers
    cv2.fillPoly(mask, [np.rint(np.clip(corners, -1e6, 1e6) * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
