"""A contact sheet of encoded images: each crop, the head over it, and the head with its albedo and light."""

from pathlib import Path

import numpy as np
import recon4d.images
import torch
from recon4d.cameras import project
from recon4d.head import HeadModel, with_uv
from torch import Tensor

from flame_encoder import drawing
from flame_encoder.encoder import losses, mouth, rendering, vector
from flame_encoder.encoder.crop import cut_out
from flame_encoder.encoder.encodings import Encoding

SIZE = 256


def write(path: Path, head: HeadModel, found: Encoding, images: list[Path]) -> None:
    """Write the PNG; a head model without texture coordinates is unwrapped."""
    head = rendering.reduced(with_uv(head))
    view = found.view.model_copy(update={"size": SIZE})
    judge = losses.judge(head, found.layout, view)
    tiles = [tile(judge, found, row, recon4d.images.read(image)) for row, image in enumerate(images)]
    drawing.contact_sheet(path, tiles, columns=min(2, len(tiles)), width=3 * SIZE)


def landmarks(head: HeadModel, found: Encoding, row: int) -> Tensor:
    """The 68 landmarks (68, 2) of an encoded head, in pixels of its image."""
    R, t, K = found.head_pose(head, row)
    vertices = head(**vector.head_arguments(head, found.parts([row]))) @ R.T + t
    pixels, _ = project(head.landmarks(vertices)[0], K, torch.eye(4))
    return pixels


def tile(judge: losses.Judge, found: Encoding, row: int, image: np.ndarray) -> np.ndarray:
    """One image (SIZE, 3 SIZE, 3) uint8: the crop, landmarks and shape over it, the head alone."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    seen = cut_out(pixels, torch.from_numpy(found.crops[[row]]), SIZE)[0].permute(1, 2, 0).clamp(0, 255) / 255
    parts = found.parts([row])
    inside = None if found.mouths is None else found.mouths[row]
    textures = mouth.painted(judge.head, vector.albedo(judge.head, parts)[0], inside)[None]
    picture, triangles = rendering.render(judge.head, parts, judge.view, textures)
    camera, R, t = found.crop_camera(judge.head, row, SIZE)
    vertices = judge.head(**vector.head_arguments(judge.head, parts)) @ R.T + t
    grey, mask = drawing.shaded(judge.head, vertices, camera.K.numpy(), (SIZE, SIZE))
    points = camera.project(judge.head.landmarks(vertices)[0])[0]
    over = np.where(mask[..., None], 0.45 * seen.numpy() + 0.55 * grey, seen.numpy())
    over = np.ascontiguousarray((over * 255).round().astype(np.uint8))
    drawing.dot(over, points.numpy(), drawing.RED)
    alone = torch.where(triangles[0, ..., None] >= 0, picture[0].permute(1, 2, 0), 1.0)
    rest = [(x * 255).round().byte().numpy() for x in (seen, alone)]
    return np.hstack([rest[0], over, rest[1]])
