"""Which part of each picture an avatar is trained and measured on, and the cameras that see just that part."""

from dataclasses import replace

import numpy as np
import torch
from recon4d.cameras import Camera

from gaussian_avatar import captures, motions
from gaussian_avatar.captures import Capture
from gaussian_avatar.config import Data
from gaussian_avatar.motions import Motion

ROOM = 1.25  # side of the square around a head, in lengths of the box of its mesh, which has no hair


def fitted(capture: Capture, motion: Motion, data: Data) -> tuple[Capture, Motion]:
    """A capture and its motion at the size that they are trained on.

    Whole pictures are reduced to `image_size`. With `crop`, each is cut to a square around the head, which follows it
    with its own intrinsics, so that the head has the resolution that the picture has of it: squares of `image_size`
    pixels, or of as many as half of them have where that is fewer.

    Args:
        motion: of the capture's track, its cameras those of the whole pictures.
    """
    width, height = (int(side) for side in capture.track.image_size)
    if not data.crop:
        size = captures.reduced_size(width, height, data.image_size)
        return replace(capture, width=size[0], height=size[1], boxes=None), motions.resized(motion, *size)
    boxes = head_boxes(motion, width, height)
    side = crop_side(boxes, data.image_size)
    return replace(capture, width=side, height=side, boxes=boxes), replace(motion, camera=cut(motion, boxes, side))


def crop_side(boxes: np.ndarray, image_size: int | None) -> int:
    """Pixels a side of the trained squares."""
    usual = int(np.median(boxes[:, 2]))
    return usual if image_size is None else min(usual, image_size)


def head_boxes(motion: Motion, width: int, height: int) -> np.ndarray:
    """Squares around the head inside the pictures: (N, 3) int, left, top and side in pixels."""
    n = len(motion)
    boxes = np.empty((n, 3), int)
    for i in range(n):
        pixels = motions.cameras_of(motion, np.array([i])).project(motion.vertices[i : i + 1])[0][0].numpy()
        low, high = np.clip(pixels.min(0), 0, [width, height]), np.clip(pixels.max(0), 0, [width, height])
        side = min(max(round(ROOM * float((high - low).max())), 16), width, height)
        corner = np.rint((low + high - side) / 2).astype(int)
        boxes[i] = [*np.clip(corner, 0, [width - side, height - side]), side]
    return boxes


def cut(motion: Motion, boxes: np.ndarray, side: int) -> Camera:
    """The cameras (N) of squares of the pictures, each reduced to `side` pixels."""
    n = len(motion)
    scale = torch.from_numpy(side / boxes[:, 2].astype(np.float64)).float()
    K = motion.camera.K.expand(n, 3, 3).clone()
    K[:, :2, 2] -= torch.from_numpy(boxes[:, :2]).float()
    K[:, :2] *= scale[:, None, None]
    return Camera(K, motion.camera.world_to_camera.expand(n, 4, 4), side, side)


def view_size(motion: Motion, data: Data) -> tuple[int, int]:
    """Width and height of whole pictures in which the head is as large as in those trained on."""
    width, height = motion.camera.width, motion.camera.height
    if not data.crop:
        return captures.reduced_size(width, height, data.image_size)
    boxes = head_boxes(motion, width, height)
    scale = crop_side(boxes, data.image_size) / float(np.median(boxes[:, 2]))
    return max(1, round(width * scale)), max(1, round(height * scale))
