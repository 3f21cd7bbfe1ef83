"""Pictures of a track: the mesh and the landmarks over the frames."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import recon4d.images
import torch
from recon4d.files import InputError
from recon4d.formats.track import Track
from recon4d.head import HeadModel

from flame_encoder import drawing


def overlays(head: HeadModel, track: Track, frames: Path, seen: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB with the shaded mesh half over them, its landmarks (red) and the detected (green).

    Args:
        seen: (N, 68, 2) detected landmarks, NaN where there are none.
        rows: which frames.
    """
    width, height = (int(s) for s in track.image_size)

    def one(i: int) -> np.ndarray:
        path = frames / track.names[i]
        out = recon4d.images.read(path).copy()
        if out.shape[:2] != (height, width):
            raise InputError(f"{path} is no longer {width}x{height}; make the frames again")
        vertices = track.vertices(head, np.array([i]))
        shading, mask = drawing.shaded(head, vertices, track.K, (height, width))
        grey = cv2.cvtColor((255 * shading[..., 0]).astype(np.uint8), cv2.COLOR_GRAY2RGB)
        cv2.copyTo(cv2.addWeighted(out, 0.45, grey, 0.55, 0), mask.astype(np.uint8), out)
        model = head.landmarks(vertices)[0] @ torch.from_numpy(track.K).T
        for points, colour in ((seen[i], drawing.GREEN), ((model[:, :2] / model[:, 2:]).numpy(), drawing.RED)):
            drawing.dot(out, points, colour)
        return out

    with ThreadPoolExecutor(2) as pool:
        waiting: deque[Future[np.ndarray]] = deque()
        for i in rows:
            waiting.append(pool.submit(one, int(i)))
            if len(waiting) > 4:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
