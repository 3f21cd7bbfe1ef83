"""The dlib detector (HOG, Dalal and Triggs 2005) and its 68-point predictor (Kazemi and Sullivan 2014)."""

import importlib.util
import threading
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from recon4d import InputError

from prep_faces.faces import Faces, five_points

DETECT_SIDE = 480  # longer side of the image that the detector sees first; its smallest face is 80 pixels
FACE_SIDE = 400  # side of the face box in the picture that the predictor sees
# Where dlib's own boxes lie against the bounding box of the points found in them (shares of its size).
BOX_SHIFT = np.array([0.0, -0.10])
BOX_GROW = 1.08
# Shifts (shares of half the side) and scales of the box over which the points are averaged.
JITTER = [(x, y, grow) for x, y in ((0, 0), (-0.06, 0), (0.06, 0), (0, -0.06), (0, 0.06)) for grow in (0.96, 1.04)]


_of_thread = threading.local()


def load_detector() -> Any:
    """The frontal face detector of the calling thread: dlib's keeps the picture it works on in itself."""
    if not hasattr(_of_thread, "detector"):
        load_predictor()  # says what is missing
        import dlib

        _of_thread.detector = dlib.get_frontal_face_detector()
    return _of_thread.detector


@cache
def load_predictor() -> Any:
    """The 68-point predictor, which threads can share."""
    try:
        import dlib
    except ImportError as error:
        raise InputError("--detector dlib needs the package dlib-bin; install it or choose another") from error
    # Importing face_recognition_models fails where setuptools no longer has pkg_resources; only its files matter.
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        raise InputError("--detector dlib needs the package face-recognition-models; install it")
    file = Path(spec.origin).parent / "models" / "shape_predictor_68_face_landmarks.dat"
    if not file.is_file():
        raise InputError(f"{file} is missing; reinstall the package face-recognition-models")
    return dlib.shape_predictor(str(file))


def find_boxes(image: np.ndarray, threshold: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Faces in (H, W, 3) uint8 RGB: boxes (N, 4) float32 x0 y0 x1 y1 in pixels, scores (N,), best first.

    Works on a copy of at most DETECT_SIDE pixels, and on a finer one only when that shows nothing.
    """
    detector = load_detector()
    longest = max(image.shape[:2])
    for side in (DETECT_SIDE, 3 * DETECT_SIDE):
        # Small pictures are enlarged, up to 4 times, because of the detector's smallest face.
        scale = min(side / longest, 4.0)
        if side != DETECT_SIDE and scale <= DETECT_SIDE / longest:
            break
        width, height = (max(1, round(length * scale)) for length in (image.shape[1], image.shape[0]))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(image, (width, height), interpolation=interpolation)
        rectangles, scores, _ = detector.run(small, 0, threshold)
        if len(rectangles) and max(scores) > 0:
            break
    # dlib's rectangles hold their last pixel, hence right + 1.
    boxes: np.ndarray = np.array([(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in rectangles], np.float32)
    boxes = boxes.reshape(-1, 4) / np.array([width, height] * 2, np.float32)
    boxes = boxes * np.array(image.shape[1::-1] * 2, np.float32)
    order = np.argsort(-np.asarray(scores), kind="stable")
    return boxes[order], np.asarray(scores, np.float32)[order]


def predict_points(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The 68 iBUG points of the face in `box`: (68, 2) float32 pixels, pixel centres at +0.5.

    dlib answers in whole pixels of the picture it sees, with pixel centres at whole numbers, so the face is shown
    to it at a fixed size (FACE_SIDE), and 0.5 is added before the answer is scaled back: this keeps fractions of
    a pixel. The answer also depends on where the box lies, by a percent of its side, and the detector's boxes
    jump from frame to frame: so a first answer gives a new box, and the mean over shifts of that is the result.
    """
    predictor = load_predictor()
    import dlib

    x0, y0, x1, y1 = map(float, box)
    side = max(x1 - x0, y1 - y0, 2.0)
    center = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    scale = FACE_SIDE / side
    # The predictor looks a little beyond the box, and reads zeros outside of the picture.
    reach = 1.6 * side / 2
    corner = center - reach
    extent = round(2 * reach * scale)
    to_picture = np.array([[scale, 0, -corner[0] * scale], [0, scale, -corner[1] * scale]])
    warp = to_picture.copy()  # OpenCV puts pixel centres at whole numbers
    warp[:, 2] += 0.5 * scale - 0.5
    source = image
    if scale < 0.5:  # avoid aliasing: halve before the bilinear warp
        factor = 1 / scale
        source = cv2.GaussianBlur(image, (0, 0), 0.3 * factor)
    picture = cv2.warpAffine(source, warp, (extent, extent), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def mean_points(middle: np.ndarray, half: float, jitter: list[tuple[float, float, float]]) -> np.ndarray:
        answers = []
        for shift_x, shift_y, grow in jitter:
            left, top = middle - half * grow + half * np.array([shift_x, shift_y])
            right, bottom = left + 2 * half * grow, top + 2 * half * grow
            rectangle = dlib.rectangle(*(round(v) for v in (left, top, right - 1, bottom - 1)))
            shape = predictor(picture, rectangle)
            answers.append([(part.x, part.y) for part in shape.parts()])
        mean: np.ndarray = np.mean(np.array(answers, np.float64), axis=0) + 0.5
        return mean

    points = mean_points((center - corner) * scale, side * scale / 2, [(0, 0, 1)])
    low, high = points.min(0), points.max(0)
    center = (low + high) / 2 + BOX_SHIFT * (high - low)
    points = mean_points(center, BOX_GROW * float(np.mean(high - low)) / 2, JITTER)
    return (points / scale + corner).astype(np.float32)


def find_faces(image: np.ndarray, threshold: float = 0.0) -> Faces:
    """Faces of (H, W, 3) uint8 RGB with their 68 points."""
    boxes, scores = find_boxes(image, threshold)
    landmarks = np.array([predict_points(image, box) for box in boxes], np.float32).reshape(-1, 68, 2)
    return Faces(boxes, scores, five_points(landmarks), landmarks)
