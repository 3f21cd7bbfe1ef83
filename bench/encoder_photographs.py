"""Encoded photographs against a landmark detector, for encoder.py."""

import time
from pathlib import Path

import numpy as np
import recon4d.images
import torch
from flame_encoder import drawing
from flame_encoder.encoder import overlays, rendering, vector
from flame_encoder.encoder.encodings import Encoding
from flame_encoder.encoder.losses import judge
from flame_encoder.encoder.trained import Encoder
from flame_encoder.frames import frame_paths
from flame_encoder.people import photographs, second_stage
from recon4d import cameras, mesh
from recon4d.head import with_uv
from recon4d.head.model import outer_eyes


def measured(encoder: Encoder, folder: Path, sheet: Path | None) -> dict:
    """Encoded heads against the landmarker's points that face the camera, before and after the solver."""
    paths = frame_paths(folder)
    looked = photographs.look(encoder, paths, {}, {})
    raw = looked.encoding
    begun = time.perf_counter()
    done = second_stage.refined(encoder, raw, looked.faces, lambda i: recon4d.images.read(paths[i]))
    spent = time.perf_counter() - begun
    each = {}
    for i in np.flatnonzero(raw.found):
        points = looked.faces[i].points
        each[paths[i].name] = [round(against(encoder, one, i, points), 2) for one in (raw, done)]
    errors = np.array(list(each.values()))
    order = sorted(each, key=lambda name: -each[name][1])
    if sheet is not None:
        write_sheet(encoder, sheet, raw, done, paths)
    return {
        "images": len(paths),
        "faces": len(each),
        "points_percent": dict(zip(("raw", "refined"), errors.mean(0).round(2).tolist())),
        "points_percent_median": dict(zip(("raw", "refined"), np.median(errors, axis=0).round(2).tolist())),
        "worst": {name: each[name] for name in order[:3]},
        "ms_to_refine": round(1000 * spent / max(len(each), 1), 1),
    }


def against(encoder: Encoder, found: Encoding, row: int, points: np.ndarray) -> float:
    """Mean distance of the dense points, per cent of the distance between the outer eye corners (from the front)."""
    head = encoder.head
    dense = head.dense
    assert dense is not None
    R, t, K = found.head_pose(head, row)
    vertices = head(**vector.head_arguments(head, found.parts([row])))[0] @ R.T + t
    places = (vertices[head.faces[dense.faces]] * dense.bary[..., None]).sum(1)
    pixels, _ = cameras.project(places, K, torch.eye(4))
    normals = mesh.vertex_normals(vertices[None], head.faces)[0][head.faces[dense.faces[:, None]]].squeeze(1).mean(1)
    facing = -(normals * places).sum(1) / (normals.norm(dim=1) * places.norm(dim=1)) > 0.2
    unit = outer_eyes(head) * K[0, 0] / places[:, 2].mean()
    off = (pixels - torch.from_numpy(points[dense.indices.numpy()]).float()).norm(dim=1)
    return float(100 * off[facing].mean() / unit)


def write_sheet(encoder: Encoder, path: Path, raw: Encoding, done: Encoding, paths: list[Path]) -> None:
    head = rendering.reduced(with_uv(encoder.head))
    asked = judge(head, raw.layout, raw.view.model_copy(update={"size": overlays.SIZE}))
    tiles = []
    for i in range(len(paths)):
        image = recon4d.images.read(paths[i])
        before, after = (overlays.tile(asked, one, i, image) for one in (raw, done))
        side = overlays.SIZE
        tiles.append(np.hstack([before[:, : 2 * side], after[:, side:]]))
    drawing.contact_sheet(path, tiles, columns=3, width=4 * overlays.SIZE)
