"""Clips whose mattes are known, for bench/matte.py: drawn heads with hair, and people before a green screen."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from prep_faces.headshape import HeadShape, shape_from_landmarks
from prep_faces.video import decode
from recon4d import InputError, head, landmarker, synthetic
from recon4d.color import linear_from_srgb
from recon4d.formats.landmarks import IBUG


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames with their true mattes."""

    name: str
    images: list[np.ndarray]  # (H, W, 3) uint8
    truth: list[np.ndarray]  # (H, W) float32 in [0, 1]
    shapes: list[HeadShape]
    fronts: list[np.ndarray]  # (H, W, 3) uint8: the same before grey, whose optical flow is that of the person


def background(name: str, size: int) -> np.ndarray:
    """(size, size, 3) float in [0, 1]: a picture of scikit-image's, or "noise", or "wall"."""
    if name == "wall":
        return synthetic.wall(size, 5)
    if name == "noise":
        rng = np.random.default_rng(5)
        layers = [
            cv2.resize(rng.random((cells, cells, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
            for cells in (4, 16, 64)
        ]
        return np.clip(np.mean(layers, 0) * 1.6 - 0.3, 0, 1)
    picture = getattr(skimage.data, name)() if name != "motorcycle" else skimage.data.stereo_motorcycle()[0]
    side = min(picture.shape[:2])
    left = (picture.shape[1] - side) // 2
    return cv2.resize(picture[:side, left : left + side, :3], (size, size), interpolation=cv2.INTER_AREA) / 255


def strands(model: head.HeadModel, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hair on the skull of the open head: (count, 12, 3) points in the head's axes, (count, 3) colours."""
    rng = np.random.default_rng(seed)
    template = model.v_template.numpy()
    eyes = model.landmarks(model.v_template[None])[0].numpy()[36:48].mean(0)
    middle = (template.min(0) + template.max(0)) / 2
    high, behind = template[:, 1] - eyes[1], template[:, 2] < middle[2]
    skull = np.flatnonzero((high > 0.065) | (behind & (high > -0.03)))
    roots = template[rng.choice(skull, count)]
    outward = roots - np.array([eyes[0], eyes[1], middle[2]])
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    length = rng.uniform(0.03, 0.075, (count, 1, 1))
    along = np.linspace(0, 1, 12)[None, :, None]
    sag = np.array([0, -1.0, 0]) * along**2 * rng.uniform(0.3, 0.9, (count, 1, 1))
    curl = rng.normal(0, 0.15, (count, 1, 3)) * np.sin(along * rng.uniform(2, 6, (count, 1, 1)))
    points = roots[:, None] + length * (outward[:, None] * along * 0.8 + sag * 0.6 + curl)
    base = rng.uniform(0.1, 0.6) * np.array([1, rng.uniform(0.6, 0.85), rng.uniform(0.3, 0.6)])
    return points, np.clip(base + rng.normal(0, 0.04, (count, 1)), 0, 1)


def drawn_clip(where: str, seed: int, count: int, size: int = 360) -> Clip:
    """The open head with drawn hair that turns before a background, and from half of the frames on stands still."""
    model = head.load()
    albedo = linear_from_srgb(synthetic.random_albedo(model, seed))
    light = synthetic.random_light(seed)
    behind = background(where, size)
    K = torch.tensor([[1.7 * size, 0, size / 2], [0, 1.7 * size, 0.55 * size], [0, 0, 1]])
    to_camera = torch.eye(4)
    to_camera[:3, :3] = torch.diag(torch.tensor([1.0, -1, -1]))
    to_camera[2, 3] = 0.8
    hair, colors = strands(model, 2500, seed)
    clip = Clip(f"drawn, {where}", [], [], [], [])
    for yaw in 0.35 * np.sin(2 * np.pi / 60 * np.minimum(np.arange(count), count // 2)):
        turn = torch.tensor([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]).float()
        rgba = synthetic.render_head(model, model.v_template @ turn.T, to_camera, K, size, albedo, light)

        def project(points: np.ndarray, turn: torch.Tensor = turn) -> np.ndarray:
            placed = points @ turn.numpy().T @ to_camera[:3, :3].numpy().T + to_camera[:3, 3].numpy()
            pixels = placed @ K.numpy().T
            return pixels[..., :2] / pixels[..., 2:]

        color, alpha = rgba[..., :3] / 255.0, rgba[..., 3].astype(np.float32) / 255
        color, alpha = comb(color, alpha, project(hair), colors)
        points = project(model.landmarks(model.v_template[None])[0].numpy())
        add(clip, color, alpha, behind, shape_from_landmarks(points, (size, size)))
    return clip


def comb(color: np.ndarray, alpha: np.ndarray, lines: np.ndarray, colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hair drawn over straight RGBA, antialiased by four times the resolution."""
    fine, height, width = 4, *alpha.shape
    cover = np.zeros((fine * height, fine * width), np.uint8)
    paint = np.zeros((fine * height, fine * width, 3), np.uint8)
    for line, shade in zip(lines, colors):
        corners = [np.rint(line * fine * 16).astype(np.int32)]
        tone = tuple(int(value) for value in np.rint(shade * 255))
        cv2.polylines(cover, corners, False, 255, 2, cv2.LINE_AA, 4)
        cv2.polylines(paint, corners, False, tone, 3, cv2.LINE_8, 4)
    share = cv2.resize(cover, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    weight = (cover > 0).astype(np.float32)[..., None]
    tint = cv2.resize(paint * weight, (width, height), interpolation=cv2.INTER_AREA)
    tint = tint / np.maximum(cv2.resize(weight[..., 0], (width, height), interpolation=cv2.INTER_AREA)[..., None], 1e-3)
    whole = share + (1 - share) * alpha[..., None]
    mixed = (tint / 255 * share + color * (1 - share) * alpha[..., None]) / np.maximum(whole, 1e-6)
    return mixed, whole[..., 0]


def keyed_frames(path: Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Colours free of green (H, W, 3) float in [0, 1] and alpha (H, W) of a clip before a green screen."""
    frames = [frame[1] for frame in decode(path) if not isinstance(frame, InputError)]
    for frame in frames[:count]:
        picture = frame[10:, 10:-10].astype(np.float32) / 255
        # How green, relative to how bright: the screen is not evenly lit.
        green = (picture[..., 1] - picture[..., [0, 2]].max(-1)) / (picture[..., 1] + 0.06)
        green = cv2.GaussianBlur(green, (0, 0), 3)  # chroma is coarse, in blocks
        screen = np.quantile(green, 0.9)
        alpha = 1 - np.clip((green / screen - 0.15) / 0.55, 0, 1)
        parts = cv2.connectedComponentsWithStats((alpha > 0.3).astype(np.uint8))
        largest = 1 + int(parts[2][1:, cv2.CC_STAT_AREA].argmax())
        near = cv2.dilate((parts[1] == largest).astype(np.uint8), np.ones((5, 5), np.uint8))
        alpha = np.where(near > 0, alpha, 0).astype(np.float32)
        color = picture.copy()
        color[..., 1] = np.minimum(color[..., 1], color[..., [0, 2]].max(-1))
        yield color, alpha


def keyed_clip(path: Path, where: str, count: int) -> Clip:
    """A green-screen clip before another background."""
    clip = Clip(f"{path.stem}, {where}", [], [], [], [])
    face = None
    for color, alpha in keyed_frames(path, count):
        size = max(alpha.shape)
        behind = background(where, size)[: alpha.shape[0], : alpha.shape[1]]
        grey = np.rint(255 * (color * alpha[..., None] + 0.5 * (1 - alpha[..., None]))).astype(np.uint8)
        face = landmarker.follow(grey, None if face is None else face.next_square())
        if face is not None:
            points = face.points[IBUG, :2].astype(np.float64)
            add(clip, color, alpha, behind, shape_from_landmarks(points, (alpha.shape[1], alpha.shape[0])))
    return clip


def add(clip: Clip, color: np.ndarray, alpha: np.ndarray, behind: np.ndarray, shape: HeadShape) -> None:
    """One frame more."""
    rng = np.random.default_rng(len(clip.images))
    for pictures, back in ((clip.images, behind), (clip.fronts, np.full_like(behind, 0.5))):
        mixed = color * alpha[..., None] + back * (1 - alpha[..., None])
        noise = rng.normal(0, 0.006, mixed.shape) if back is behind else 0  # of a camera
        pictures.append(np.rint(255 * np.clip(mixed + noise, 0, 1)).astype(np.uint8))
    clip.truth.append(alpha.astype(np.float32))
    clip.shapes.append(shape)
