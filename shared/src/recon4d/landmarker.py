"""MediaPipe's face landmarker: boxes, 478 points and 52 blendshapes, by its networks on the CPU.

Three networks in one file, `face_landmarker.task` (Google, Apache-2.0), which ships with the library; its page
`assets/face_landmarker.md` says where it is from. What happens around them is written from their model cards and from
"BlazeFace" (Bazarevsky et al. 2019) and "Real-time facial surface geometry from monocular video on mobile GPUs"
(Kartynnik et al. 2019):

1. The detector sees the picture at 128 pixels and answers on a grid of anchors.
2. A square, turned so that the eyes are level and 1.5 times as large as what was found, becomes 256 pixels.
3. The landmark network answers with 478 points in that square, and whether there is a face at all (`presence`).
4. 146 of the points give the blendshapes.

The points of one frame give the square of the next, so that a face that is followed costs step 3 alone.
"""

import functools
import io
import math
import threading
import zipfile
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from recon4d import shipped

ASSET = "face_landmarker.task"
SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
INSTEAD = "another detector (--detector dlib)"
N_POINTS = 478  # 468 of the surface, then five of each iris: centre, right, up, left, down
SURE = 0.5  # score of a detection
PRESENT = 0.5  # probability that there is a face in the square
MARGIN = 1.5  # of the square over what was found
SMALL = 128  # pixels that the detector sees
LEAST = 96  # pixels of a part that it is worth looking at
PARTS = (0.6, 0.36, 0.22)  # of the longer side, where the detector looks for small faces
RETRY = 5  # of so many pictures without a face one is looked at in all parts
CROP = 256  # pixels that the landmark network sees
EYES = (33, 263)  # outer corners of the person's right and left eye
IRISES = (468, 473)  # centres of the person's right and left iris

BLENDSHAPES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip

# What the blendshape network is given, in its order.
SHAPE_POINTS = np.array(
    [
        0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78,
        80, 81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152,
        153, 154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246,
        249, 251, 263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312,
        314, 317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381,
        382, 384, 385, 386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472,
        473, 474, 475, 476, 477,
    ],
    np.int64,
)  # fmt: skip


@dataclass(frozen=True)
class Square:
    """A turned square of a picture. centre: (2,) pixels. side: pixels. angle: radians, clockwise on the screen."""

    centre: tuple[float, float]
    side: float
    angle: float

    def to_crop(self) -> np.ndarray:
        """(2, 3) affine map from pixels of the picture to pixels of the crop, pixel centres at +0.5."""
        scale = CROP / self.side
        cosine, sine = scale * np.cos(self.angle), scale * np.sin(self.angle)
        turn = np.array([[cosine, sine], [-sine, cosine]])
        return np.concatenate([turn, (CROP / 2 - turn @ np.array(self.centre))[:, None]], 1)


@dataclass(frozen=True, eq=False)
class DenseFace:
    """One face. points: (478, 3) float32 pixels and, in the same unit, depth relative to the head's middle, nearer is
    less. presence: probability that there is a face. square: where it was looked for.
    """

    points: np.ndarray
    presence: float
    square: Square

    @functools.cached_property
    def blendshapes(self) -> np.ndarray:
        """(52,) in `BLENDSHAPES`' order, found when they are asked for."""
        return blendshapes(self.points)

    @property
    def hidden(self) -> np.ndarray:
        """(k,) which points of the surface face away from the camera, by their depth: not to be trusted."""
        surface = self.points[:468]
        ears = surface[[234, 454]].mean(0)  # the middle of the head, about
        away = surface - ears
        answer: np.ndarray = np.flatnonzero(away[:, 2] > 0.15 * np.linalg.norm(away, axis=1))
        return answer

    @property
    def box(self) -> np.ndarray:
        """(4,) x0 y0 x1 y1 of the points."""
        return np.concatenate([self.points[:, :2].min(0), self.points[:, :2].max(0)])

    def next_square(self) -> Square:
        """Where the face is looked for in the next frame."""
        return square_of(self.points[:, :2], self.points[list(EYES), :2])


def square_of(points: np.ndarray, eyes: np.ndarray) -> Square:
    """The square around points (N, 2), turned so that the eyes (2, 2), right first, are level."""
    across = eyes[1] - eyes[0]
    angle = float(np.arctan2(across[1], across[0]))
    low, high = points.min(0), points.max(0)
    centre = (low + high) / 2
    return Square((float(centre[0]), float(centre[1])), MARGIN * float((high - low).max()), angle)


_ASKED = threading.Lock()  # an interpreter has one set of buffers


@functools.cache
def _networks(threads: int) -> dict[str, Any]:
    """The three networks by name. Raises InputError for a missing asset, another file, or a missing runtime."""
    data = shipped.read("recon4d", ASSET, SHA256, INSTEAD)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = ("face_detector", "face_landmarks_detector", "face_blendshapes")
        return {name: shipped.tflite(archive.read(f"{name}.tflite"), INSTEAD, threads) for name in names}


def _run(name: str, given: np.ndarray, threads: int) -> list[np.ndarray]:
    """All answers of a network; of several threads that ask one after the other is answered."""
    with _ASKED:
        network = _networks(threads)[name]
        network.set_tensor(network.get_input_details()[0]["index"], given)
        network.invoke()
        return [network.get_tensor(answer["index"]).copy() for answer in network.get_output_details()]


@functools.cache
def _anchors() -> np.ndarray:
    """(896, 2) centres of the detector's anchors in [0, 1]: a grid of 16 with two a cell, one of 8 with six."""
    centres = []
    for cells, each in ((16, 2), (8, 6)):
        y, x = np.mgrid[:cells, :cells]
        places = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) / cells
        centres.append(np.repeat(places, each, 0))
    return np.concatenate(centres).astype(np.float32)


def detect(image: np.ndarray, threshold: float = SURE, threads: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4), scores (N,) and six points (N, 6, 2) of faces in RGB uint8 (H, W, 3), best first, pixels.

    The points are the person's right and left eye, nose tip, mouth, right and left ear.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    scale = SMALL / side
    shift = (side - np.array([width, height])) / 2
    moved = np.array([[scale, 0, shift[0] * scale], [0, scale, shift[1] * scale]])
    small = _warp(image, moved, SMALL)
    regressed, raw = _run("face_detector", (small.astype(np.float32) / 127.5 - 1)[None], threads)
    scores = _sigmoid(raw[0, :, 0])
    chosen = scores >= threshold
    values = regressed[0, chosen].reshape(-1, 8, 2) / SMALL
    anchors, scores = _anchors()[chosen], scores[chosen]
    centre, size, points = values[:, 0] + anchors, values[:, 1], values[:, 2:] + anchors[:, None]
    found = np.concatenate([centre - size / 2, centre + size / 2, points.reshape(-1, 12)], 1)
    found, scores = _merged(found, scores)
    pixels = found.reshape(-1, 8, 2) * side - shift
    return pixels[:, :2].reshape(-1, 4).astype(np.float32), scores, pixels[:, 2:].astype(np.float32)


def _merged(found: np.ndarray, scores: np.ndarray, overlap: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Detections (N, 16) that overlap become their mean by score, the best first (BlazeFace, section 3.4)."""
    order = np.argsort(-scores)
    found, scores = found[order], scores[order]
    kept, kept_scores = [], []
    while len(found):
        low = np.maximum(found[:, :2], found[0, :2])
        high = np.minimum(found[:, 2:4], found[0, 2:4])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        areas = np.prod(np.clip(found[:, 2:4] - found[:, :2], 0, None), axis=1)
        same = shared / np.maximum(areas + areas[0] - shared, 1e-12) > overlap
        same[0] = True
        kept.append((found[same] * scores[same, None]).sum(0) / scores[same].sum())
        kept_scores.append(scores[0])
        found, scores = found[~same], scores[~same]
    return np.array(kept).reshape(-1, 16), np.array(kept_scores, np.float32)


def landmarks(image: np.ndarray, square: Square, threads: int = 1) -> DenseFace:
    """The face in a square of RGB uint8 (H, W, 3); `presence` says whether there is one."""
    to_crop = square.to_crop()
    crop = _warp(image, to_crop, CROP)
    raw, presence, _ = _run("face_landmarks_detector", (crop.astype(np.float32) / 255)[None], threads)
    points = raw.reshape(N_POINTS, 3)
    back = cv2.invertAffineTransform(to_crop)
    pixels = points[:, :2] @ back[:, :2].T + back[:, 2]
    placed = np.concatenate([pixels, points[:, 2:] * square.side / CROP], 1).astype(np.float32)
    return DenseFace(placed, float(_sigmoid(presence.reshape(-1))[0]), square)


def blendshapes(points: np.ndarray, threads: int = 1) -> np.ndarray:
    """The 52 activations (52,) of points (478, 2 or 3), pixels."""
    given = points[None, SHAPE_POINTS, :2].astype(np.float32)
    return _run("face_blendshapes", given, threads)[0].reshape(-1)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -100, 100)))


def find(
    image: np.ndarray,
    threshold: float = SURE,
    threads: int = 1,
    every: bool = False,
    parts: tuple[float, ...] = PARTS,
) -> list[DenseFace]:
    """Faces of RGB uint8 (H, W, 3), the likeliest first.

    The detector sees faces from about a tenth of the picture on. Where it sees none in the whole, it looks at smaller
    and smaller overlapping parts, down to a fifth of the picture.

    Args:
        every: look at the parts in any case, for small faces beside large ones.
        parts: their sizes, shares of the longer side.
    """
    found, scores = _detected(image, threshold, threads)
    for share in parts:
        if (len(found) and not every) or share * max(image.shape[:2]) < LEAST:
            break
        smaller = [
            _detected(image, threshold, threads, window) for window in _windows(image.shape[0], image.shape[1], share)
        ]
        found, scores = _merged(*map(np.concatenate, zip((found, scores), *smaller)))  # type: ignore[arg-type]
    faces: list[DenseFace] = []
    for box, six in zip(found[:, :4], found[:, 4:].reshape(-1, 6, 2)):
        face = landmarks(image, square_of(box.reshape(2, 2), six[:2]), threads)
        if face.presence >= PRESENT:
            face = landmarks(image, face.next_square(), threads)
            if not any(_same(face, other) for other in faces):  # seen in the whole and in a part
                faces.append(face)
    return faces


def _same(face: DenseFace, other: DenseFace) -> bool:
    """Whether two are one: their middles are nearer than a third of the larger one's side."""
    size = max(face.next_square().side, other.next_square().side) / MARGIN
    return math.dist(face.next_square().centre, other.next_square().centre) < size / 3


def _detected(
    image: np.ndarray, threshold: float, threads: int, window: tuple[int, int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and points (N, 16) and scores (N,) of faces in a window (left, top, side) of a picture, its pixels."""
    left, top, side = window or (0, 0, max(image.shape[:2]))
    boxes, scores, points = detect(image[top : top + side, left : left + side], threshold, threads)
    placed = np.concatenate([boxes.reshape(-1, 2, 2), points], 1) + np.array([left, top], np.float32)
    return placed.reshape(-1, 16), scores


def _windows(height: int, width: int, share: float) -> list[tuple[int, int, int]]:
    """Squares (left, top, side) of a share of the longer side, half overlapping, that cover a picture."""
    side = max(2, round(max(height, width) * share))
    starts = [
        np.unique(np.linspace(0, max(0, n - side), -(-2 * max(0, n - side) // side) + 1)) for n in (width, height)
    ]
    return [(round(left), round(top), side) for top in starts[1] for left in starts[0]]


def follow(image: np.ndarray, before: Square | None, lost: int = 0, threads: int = 1) -> DenseFace | None:
    """The face of a picture: looked for where the one before says (`next_square`), else anywhere; None: no face.

    Where several faces are found it is the one nearest to the last.

    Args:
        lost: in how many pictures since then there was no face.
    """
    if before is not None and not lost:
        face = landmarks(image, before, threads)
        if face.presence >= PRESENT:
            return face
    # Looking at all parts of every picture that shows nobody would take longer than all else.
    faces = find(image, threads=threads, parts=PARTS if lost % RETRY == 0 else PARTS[:1])
    if before is None or len(faces) < 2:
        return faces[0] if faces else None
    return min(faces, key=lambda face: math.dist(face.next_square().centre, before.centre))


def _warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """A part of a picture as (size, size, 3), black outside; `matrix` (2, 3) has pixel centres at +0.5."""
    half = matrix[:, :2].sum(1) / 2 - 0.5
    centred = np.concatenate([matrix[:, :2], (matrix[:, 2] + half)[:, None]], 1)
    shrunk = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if shrunk < 0.5:  # bilinear sampling would skip pixels
        factor = 2 ** int(np.log2(1 / shrunk))
        small = cv2.resize(
            image, (max(1, image.shape[1] // factor), max(1, image.shape[0] // factor)), interpolation=cv2.INTER_AREA
        )
        ratio = np.array([image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]])
        scaled = np.concatenate([matrix[:, :2] * ratio, matrix[:, 2:]], 1)
        half = scaled[:, :2].sum(1) / 2 - 0.5
        centred = np.concatenate([scaled[:, :2], (scaled[:, 2] + half)[:, None]], 1)
        image = small
    return cv2.warpAffine(image, centred, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
