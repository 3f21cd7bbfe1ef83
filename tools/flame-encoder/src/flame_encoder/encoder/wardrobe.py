"""What surrounds a drawn head: backgrounds, hair, beards, teeth, clothes, glasses, hands, and a bad camera."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

HAIR = np.array(
    [[18, 14, 12], [45, 30, 22], [92, 62, 40], [150, 115, 72], [200, 175, 130], [130, 60, 30], [165, 162, 158]]
)


def noise(size: int, cells: int, rng: np.random.Generator, channels: int = 1) -> np.ndarray:
    """Smooth noise (size, size, channels) of about unit variance."""
    grid = rng.standard_normal((cells, cells, channels)).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC).reshape(size, size, channels)


def random_colour(rng: np.random.Generator) -> np.ndarray:
    return rng.random(3).astype(np.float32)


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Something behind the head (size, size, 3) in [0, 1]: colours, blobs, boxes and lines, more or less sharp."""
    out: np.ndarray = random_colour(rng) + rng.uniform(0, 0.25) * noise(size, int(rng.integers(2, 5)), rng, 3)
    out = np.ascontiguousarray(out, np.float32)
    for _ in range(rng.integers(0, 10)):
        a, b = rng.integers(-size // 4, size * 5 // 4, (2, 2))
        colour = tuple(random_colour(rng).tolist())
        kind = rng.random()
        if kind < 0.4:
            cv2.rectangle(out, a.tolist(), b.tolist(), colour, -1)
        elif kind < 0.7:
            axes = rng.integers(size // 20, size // 2, 2).tolist()
            cv2.ellipse(out, a.tolist(), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
        else:
            cv2.line(out, a.tolist(), b.tolist(), colour, int(rng.integers(1, size // 12)))
    if rng.random() < 0.7:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.5, size / 20))
    return np.clip(out + rng.uniform(0, 0.06) * noise(size, int(rng.integers(16, 64)), rng), 0, 1)


def strands(size: int, rng: np.random.Generator) -> np.ndarray:
    """A texture of hair (size, size, 3): a colour, streaked."""
    colour = HAIR[rng.integers(len(HAIR))] / 255 * rng.uniform(0.6, 1.3)
    if rng.random() < 0.1:  # hats and scarves
        colour = random_colour(rng)
    grid = rng.standard_normal((int(rng.integers(4, 12)), int(rng.integers(30, 90)))).astype(np.float32)
    streaks = cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR)
    slope = np.linspace(rng.uniform(0.6, 1.4), rng.uniform(0.5, 1.1), size, dtype=np.float32)[:, None]
    shade = slope * (1 + rng.uniform(0.05, 0.4) * streaks)
    answer: np.ndarray = np.clip(shade[..., None] * colour, 0, 1).astype(np.float32)
    return answer


@dataclass(frozen=True, eq=False)
class Parts:
    """Which pixels (H, W) bool of a picture are head, scalp, ears, and inside of the mouth."""

    head: np.ndarray
    scalp: np.ndarray
    ears: np.ndarray
    mouth: np.ndarray


def dressed(
    canvas: np.ndarray, colour: np.ndarray, parts: Parts, marks: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The head on the canvas, with clothes, hair, beard, glasses and things in front: (H, W, 3) in [0, 1].

    Args:
        marks: (68, 2) landmarks, pixels.
    """
    size = len(canvas)
    seen = parts.head
    width = float(np.linalg.norm(marks[0] - marks[16]) + np.linalg.norm(marks[27] - marks[8])) / 2
    down = marks[8] - marks[27]
    down = down / max(np.linalg.norm(down), 1e-6)
    crown, chin = marks[27] - 0.25 * width * down, marks[8]
    hair = strands(size, rng)
    bald = rng.random() < 0.15
    out = canvas

    def ellipse(centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
        mask = np.zeros((size, size), np.uint8)
        cv2.ellipse(mask, [int(x) for x in centre], [max(int(x), 1) for x in axes], 0, 0, 360, 1, -1)
        return mask.astype(bool)

    if not bald and rng.random() < 0.5:  # hair behind the head, short to long
        centre = crown + down * width * rng.uniform(-0.1, 0.8)
        behind = ellipse(centre, width * rng.uniform([0.6, 0.6], [1.0, 1.5]))
        out = np.where(behind[..., None], hair, out)
    clothes = ellipse(
        chin + down * width * rng.uniform(0.75, 1.3) + [rng.normal(0, 0.1) * width, 0],
        width * rng.uniform([0.9, 0.4], [1.8, 0.8]),
    )
    out = np.where(clothes[..., None], random_colour(rng) * (1 + 0.15 * noise(size, 6, rng)), out)
    out = np.where(seen[..., None], colour, out)

    if rng.random() < 0.8:  # teeth, which the open head has not
        polygon = marks[60:68]
        share = rng.uniform(0.3, 1.0)
        lower = polygon[[7, 6, 5]] * share + polygon[[1, 2, 3]] * (1 - share)
        mask: np.ndarray = np.zeros((size, size), np.uint8)
        cv2.fillPoly(mask, [np.round(np.concatenate([polygon[:5], lower[::-1]])).astype(np.int32)], 1)
        mask = mask.astype(bool) & parts.mouth
        out[mask] = np.array([0.9, 0.86, 0.78]) * rng.uniform(0.4, 1.05)
    if rng.random() < 0.2:  # a beard
        mask = np.zeros((size, size), np.float32)
        outline = np.concatenate([marks[2:15], marks[[35, 33, 31]] + 0.3 * (marks[[54, 51, 48]] - marks[[35, 33, 31]])])
        cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1.0)
        cv2.fillPoly(mask, [np.round(marks[48:60]).astype(np.int32)], 0.0)
        mask = cv2.GaussianBlur(mask, (0, 0), width / 30) * rng.uniform(0.2, 0.9)
        mask = mask * (seen & ~parts.mouth) * np.clip(1 + 0.4 * noise(size, 40, rng)[..., 0], 0, 1)
        out = out * (1 - mask[..., None]) + hair * mask[..., None]
    if not bald:
        source = parts.scalp
        if rng.random() < 0.4:
            source = source | parts.ears
        field = cv2.GaussianBlur(source.astype(np.float32), (0, 0), width * rng.uniform(0.02, 0.12))
        field = field + 0.12 * noise(size, int(rng.integers(5, 20)), rng)[..., 0] * (field > 0.02)
        on_skin = seen & ~source
        limit = np.where(on_skin, rng.uniform(0.35, 0.9), rng.uniform(0.1, 0.5))
        mask = cv2.GaussianBlur((field > limit).astype(np.float32), (0, 0), 1.0)[..., None]
        out = out * (1 - mask) + hair * mask
    if rng.random() < 0.22:
        out = glasses(np.ascontiguousarray(out), marks, rng)
    if rng.random() < 0.25:
        out = occluded(np.ascontiguousarray(out), marks, width, rng)
    return out


def glasses(image: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames around the eyes, with dark or clear lenses."""
    thick = int(rng.integers(1, 6))
    colour = tuple((random_colour(rng) * rng.uniform(0, 0.6)).tolist())
    height = rng.uniform(0.7, 1.1)
    lens = image.copy()
    for eye in (marks[36:42], marks[42:48]):
        middle = eye.mean(0) + 0.15 * (marks[30] - marks[27]) * rng.uniform(0, 1)
        across = eye[3] - eye[0]
        angle = math.degrees(math.atan2(across[1], across[0]))
        reach = 0.95 * np.linalg.norm(across)
        axes = [max(int(reach), 2), max(int(0.55 * height * np.linalg.norm(marks[36] - marks[39]) + 0.3 * reach), 2)]
        cv2.ellipse(lens, [int(x) for x in middle], axes, angle, 0, 360, colour, -1)
        cv2.ellipse(image, [int(x) for x in middle], axes, angle, 0, 360, colour, thick, cv2.LINE_AA)
    cv2.line(image, marks[39].astype(int).tolist(), marks[42].astype(int).tolist(), colour, thick, cv2.LINE_AA)
    dark = rng.uniform(0.6, 0.97) if rng.random() < 0.25 else rng.uniform(0, 0.12)
    return image * (1 - dark) + lens * dark


def occluded(image: np.ndarray, marks: np.ndarray, width: float, rng: np.random.Generator) -> np.ndarray:
    """A hand, a microphone, the edge of something: shapes over a part of the face."""
    size = len(image)
    mask = np.zeros((size, size), np.uint8)
    start = marks[rng.integers(68)] + rng.normal(0, 0.1 * width, 2)
    kind = rng.random()
    if kind < 0.5:  # fingers: thick lines from below or the side
        away = np.array([rng.uniform(-0.3, 1.3), rng.choice([1.1, rng.uniform(0.4, 1.1)])]) * size
        for i in range(rng.integers(1, 5)):
            tip = start + np.array([i * 0.11, rng.normal(0, 0.05)]) * width
            end = away + np.array([i * 0.1 * width, 0])
            cv2.line(mask, tip.astype(int).tolist(), end.astype(int).tolist(), 1, max(int(0.1 * width), 2))
        colour = image[int(np.clip(marks[30, 1], 0, size - 1)), int(np.clip(marks[30, 0], 0, size - 1))]
        colour = colour * rng.uniform(0.7, 1.2)
    elif kind < 0.8:
        axes = [max(int(x), 1) for x in width * rng.uniform(0.08, 0.3, 2)]
        cv2.ellipse(mask, start.astype(int).tolist(), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        colour = random_colour(rng)
    else:  # a plane that cuts a side off
        edge = int(rng.uniform(0.02, 0.25) * size)
        side = rng.integers(4)
        mask[:edge] = 1
        mask = np.ascontiguousarray(np.rot90(mask, int(side)))
        colour = random_colour(rng)
    textured = colour * (1 + 0.12 * noise(size, 12, rng))
    return np.where(mask[..., None] > 0, np.clip(textured, 0, 1), image)


def photographed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera and a file do to a picture (S, S, 3) in [0, 1]: uint8."""
    size = len(image)
    image = np.clip(image, 0, 1).astype(np.float32) ** math.exp(rng.normal(0, 0.15))
    image = (image - 0.5) * rng.uniform(0.75, 1.25) + 0.5 + rng.normal(0, 0.06)
    image = image * (1 + rng.normal(0, 0.05, 3))
    if rng.random() < 0.06:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), rng.uniform(0.4, 0.016 * size))
    if rng.random() < 0.2:
        low = int(size * rng.uniform(0.3, 0.9))
        image = cv2.resize(cv2.resize(image, (low, low), interpolation=cv2.INTER_AREA), (size, size))
    if rng.random() < 0.6:
        image = image + rng.uniform(0, 0.05) * rng.standard_normal(image.shape, np.float32)
    out = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.5:
        _, data = cv2.imencode(".jpg", out[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None
        out = decoded[..., ::-1]
    return np.ascontiguousarray(out)
