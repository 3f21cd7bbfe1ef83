"""How good an encoder is: on synthetic people it has not seen, and on photographs against a landmark detector.

    python bench/encoder.py                                     # the shipped encoder, 200 people
    python bench/encoder.py --encoder outputs/eidolon_encoder_final.pth --images frames --landmarks landmarks

Prints one JSON object. Errors of vertices are means over the whole head, millimetres: `posed_mm` about the middle of
the face, `aligned_mm` after the best rigid motion, `mean_head_mm` the same for the mean head in its stead. Errors of
landmarks are per cent of the distance between the outer eye corners.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import roma
import torch
from flame_encoder.encoder import losses, rendering, samples, synthetic, trained
from flame_encoder.encoder.trained import Encoder
from flame_encoder.frames import frame_paths
from torch import Tensor

UNSEEN = 987_654_321  # a seed that no training uses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--landmarks", type=Path)
    options = parser.parse_args()
    encoder = trained.load(options.encoder)
    found = {"encoder": str(options.encoder or "shipped"), "backbone": encoder.backbone} | of_people(
        encoder, options.people
    )
    if options.images:
        found |= of_images(encoder, options.images, options.landmarks)
    print(json.dumps(found, indent=2))


@torch.no_grad()
def of_people(encoder: Encoder, count: int) -> dict:
    """Errors on `count` synthetic people, and milliseconds per image."""
    scene = synthetic.scene(encoder.head, encoder.layout, encoder.view)
    people = samples.Synthetic(scene, count, UNSEEN)
    start = time.perf_counter()
    items = [people[i] for i in range(count)]
    drawing = time.perf_counter() - start
    batch = samples.collate(items)
    times, vectors = [], []
    for image in batch.images:
        start = time.perf_counter()
        vectors.append(encoder.network(image[None]))
        times.append(time.perf_counter() - start)
    parts, truth = encoder.layout.split(torch.cat(vectors)), encoder.layout.split(batch.vectors)
    judge = losses.judge(encoder.head, encoder.layout, encoder.view)
    posed, aligned, mean = [], [], []
    for i in range(count):
        mine, goal = ({k: v[[i]] for k, v in p.items()} for p in (parts, truth))
        ours, theirs = (rendering.turned(encoder.head, p)[0] for p in (mine, goal))
        posed.append((ours - theirs).norm(dim=-1).mean())
        aligned.append(after_alignment(ours, theirs))
        mean.append(after_alignment(encoder.head.v_template, theirs))
    points = losses.landmark_pixels(judge, rendering.turned(judge.points, parts), parts["transl"])
    error = landmark_error(points, batch.landmarks)
    return {
        "people": count,
        "posed_mm": millimetres(posed),
        "aligned_mm": millimetres(aligned),
        "mean_head_mm": millimetres(mean),
        "landmarks_percent": round(error.mean().item(), 2),
        "landmarks_percent_median": round(error.median().item(), 2),
        "ms_per_image": round(1000 * float(np.median(times)), 2),
        "ms_to_draw_a_person": round(1000 * drawing / count, 1),
    }


def of_images(encoder: Encoder, images: Path, landmarks: Path) -> dict:
    """Landmarks of the encoded heads against the files', inner points alone and all; crops from the same files."""
    folder = samples.Folder(images, landmarks, encoder.layout, encoder.view)
    batch = samples.collate([folder[i] for i in range(len(folder))])
    judge = losses.judge(encoder.head, encoder.layout, encoder.view)
    with torch.no_grad():
        parts = encoder.layout.split(encoder.network(batch.images))
        points = losses.landmark_pixels(judge, rendering.turned(judge.points, parts), parts["transl"])
    inner = landmark_error(points, batch.landmarks, slice(17, None))
    names = [path.name for path, _ in folder.pairs]
    return {
        "images": len(frame_paths(images)),
        "faces": len(folder),
        "landmarks_percent_images": round(landmark_error(points, batch.landmarks).mean().item(), 2),
        "inner_landmarks_percent_images": round(inner.mean().item(), 2),
        "each": {name: round(value, 2) for name, value in zip(names, inner.tolist())},
    }


def landmark_error(points: Tensor, truth: Tensor, which: slice = slice(None)) -> Tensor:
    """(B,) mean distance in per cent of the distance between the true outer eye corners."""
    eyes = (truth[:, 36] - truth[:, 45]).norm(dim=-1)
    return 100 * (points - truth)[:, which].norm(dim=-1).mean(1) / eyes


def after_alignment(points: Tensor, goal: Tensor) -> Tensor:
    R, t = roma.rigid_points_registration(points, goal)
    return (points @ R.T + t - goal).norm(dim=-1).mean()


def millimetres(values: list[Tensor]) -> float:
    return round(1000 * torch.stack(values).mean().item(), 2)


if __name__ == "__main__":
    main()
