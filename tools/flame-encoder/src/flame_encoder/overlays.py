"""A contact sheet of encoded images: each crop, the head over it, and the head with its albedo and light."""

from pathlib import Path

import numpy as np
import torch
from recon4d import head as heads
from recon4d.head import HeadModel

from flame_encoder import losses, preview, rendering
from flame_encoder import view as views
from flame_encoder.parameters import Parameters
from flame_encoder.samples import read_image
from flame_encoder.view import View

SIZE = 256


def write(path: Path, head: HeadModel, found: Parameters, images: list[Path]) -> None:
    """Write the PNG; a head model without texture coordinates is unwrapped."""
    head = rendering.reduced(heads.with_uv(head))
    view = View(found.view.fov, found.view.distance, found.view.head_size, SIZE)
    judge = losses.judge(head, found.layout, view)
    tiles = [tile(judge, found, row, read_image(image)) for row, image in enumerate(images)]
    preview.contact_sheet(path, tiles, columns=min(2, len(tiles)), width=3 * SIZE)


def tile(judge: losses.Judge, found: Parameters, row: int, image: np.ndarray) -> np.ndarray:
    """One image (SIZE, 3 SIZE, 3) uint8: the crop, landmarks and shape over it, the head alone."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    seen = views.crop(pixels, torch.from_numpy(found.crops[[row]]), SIZE)[0].permute(1, 2, 0).clamp(0, 255) / 255
    parts = found.parts([row])
    picture, triangles = rendering.render(judge.head, parts, judge.view)
    vertices = rendering.placed(judge.view, rendering.turned(judge.head, parts), parts["transl"])
    grey, mask = preview.shaded(judge.head, vertices, judge.view.K.numpy(), (SIZE, SIZE))
    points = losses.landmark_pixels(judge, rendering.turned(judge.points, parts), parts["transl"])[0]
    over = np.where(mask[..., None], 0.45 * seen.numpy() + 0.55 * grey, seen.numpy())
    over = np.ascontiguousarray((over * 255).round().astype(np.uint8))
    preview.dot(over, points.numpy(), preview.RED)
    alone = torch.where(triangles[0, ..., None] >= 0, picture[0].permute(1, 2, 0), 1.0)
    rest = [(x * 255).round().byte().numpy() for x in (seen, alone)]
    return np.hstack([rest[0], over, rest[1]])
