"""How well a network does on clips: images and depth at the targets' moments, and scene flow on LiDAR points."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import metrics
from recon4d.cli import progress
from scipy.spatial import cKDTree

from flux4d import flow, pandaset, pictures, training
from flux4d.clip import Clip, in_view
from flux4d.config import Config
from flux4d.flow import Labels
from flux4d.lift import Gaussians
from flux4d.model import Flux
from flux4d.rendering import moved, render, velocity_at
from flux4d.training import Sample, some_views

DILATION = 5  # pixels by which projected points of moving things are widened
IMAGE_MEASURES = ("psnr", "ssim", "depth_rmse", "dynamic_psnr", "dynamic_ssim", "dynamic_depth_rmse")


def labels_of(clip: Clip, root: Path) -> list[tuple[np.ndarray, Labels]] | None:
    """Per frame, the LiDAR points in the camera's view (N, 3), in the clip's frame, and what cuboids say about them."""
    boxes = flow.read_cuboids(clip.entry, root)
    if boxes is None:
        return None
    times = np.array(clip.entry["timestamps"])
    steps = flow.steps_of(boxes)
    turn, shift = clip.ego_to_world[:3, :3], clip.ego_to_world[:3, 3]
    out = []
    for frame, name in enumerate(clip.entry["lidar"]):
        sweep = pandaset.read_points(root / name)
        points = torch.from_numpy((sweep["xyz"] - shift) @ turn).float()
        _, _, inside = in_view(points, clip.K, clip.world_to_camera[frame], clip.width, clip.height)
        own = points[inside].numpy().astype(np.float64)
        at = min(frame, len(times) - 2)
        seconds = float(times[at + 1] - times[at])
        found = flow.label(own @ turn.T + shift, sweep["d"][inside.numpy()], boxes[frame], steps[frame], seconds)
        out.append((own, Labels(found.velocity @ turn, found.kind, found.moving)))
    return out


def dynamic_mask(points: np.ndarray, moving: np.ndarray, clip: Clip, frame: int) -> np.ndarray:
    """(H, W) bool: pixels within DILATION of a projected point of a moving thing."""
    mask = np.zeros((clip.height, clip.width), np.uint8)
    chosen = torch.from_numpy(points[moving]).float()
    pixels, _, inside = in_view(chosen, clip.K, clip.world_to_camera[frame], clip.width, clip.height)
    column, row = pixels[inside].long().numpy().T
    mask[row, column] = 1
    size = 2 * DILATION + 1
    return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))).astype(bool)


def image_measures(
    colour: torch.Tensor, truth: torch.Tensor, depth: torch.Tensor, samples: tuple, mask: np.ndarray | None
) -> dict[str, float | None]:
    """PSNR, SSIM and depth RMSE of an image (H, W, 3), whole and inside a mask (H, W); None where there is nothing."""
    image, target = (x.permute(2, 0, 1)[None].clamp(0, 1) for x in (colour, truth))
    pixels, distance = samples
    error = (depth.flatten()[pixels] - distance).square()
    out: dict[str, float | None] = {
        "psnr": float(metrics.psnr(image, target)),
        "ssim": float(metrics.ssim(image, target)),
        "depth_rmse": float(error.mean().sqrt()) if len(error) else None,
    }
    out |= dict.fromkeys(IMAGE_MEASURES[3:])
    if mask is not None and mask.any():
        weight = torch.from_numpy(mask).to(image)[None, None]
        inside = torch.from_numpy(mask.ravel()).to(pixels.device)[pixels]
        out |= {
            "dynamic_psnr": float(metrics.psnr(image, target, weight)),
            "dynamic_ssim": float(metrics.ssim(image, target, weight)),
            "dynamic_depth_rmse": float(error[inside].mean().sqrt()) if inside.any() else None,
        }
    return out


def predicted_velocity(gaussians: Gaussians, points: np.ndarray, time: torch.Tensor) -> np.ndarray:
    """(N, 3) m/s at points (N, 3) and a moment: that of the nearest Gaussian that is there then and can be seen."""
    solid = ~gaussians.sky & (gaussians.opacities[:, 0].sigmoid() > 0.1)
    solid = solid if solid.any() else ~gaussians.sky
    places = moved(gaussians, time[None])[0][solid].double().cpu().numpy()
    velocity = velocity_at(gaussians, time[None])[0][solid].double().cpu().numpy()
    _, nearest = cKDTree(places).query(points)
    return velocity[nearest]


def measure_clip(gaussians: Gaussians, sample: Sample, root: Path, save: Path | None) -> dict[str, Any]:
    """Measures of one clip: a row per target frame, and velocities at all frames' points."""
    clip = sample.clip
    labels = labels_of(clip, root)
    rows = []
    last = max(clip.input)
    for frame in clip.target:
        shown = render(gaussians, some_views(sample.views, [frame]), flow=save is not None)
        mask = None if labels is None else dynamic_mask(labels[frame][0], labels[frame][1].moving, clip, frame)
        values = image_measures(shown.colour[0], sample.images[frame], shown.depth[0], sample.depths[frame], mask)
        rows.append({"frame": frame, "setting": "future" if frame > last else "interpolation", **values})
        if save is not None:
            pictures.write_png(save / clip.name / f"{frame:02d}.png", pictures.comparison(gaussians, sample, frame))
    flows = []
    for frame, (points, found) in enumerate(labels or []):
        if frame <= last and len(points):
            predicted = predicted_velocity(gaussians, points, sample.views.times[frame])
            flows.append((predicted, found.velocity, found.kind))
    return {"name": clip.name, "rows": rows, "flows": flows}


def mean_of(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Means of the image measures over frames; a measure that no frame has is None."""
    rows = list(rows)
    out: dict[str, Any] = {"frames": len(rows)}
    for name in IMAGE_MEASURES:
        values = [row[name] for row in rows if row[name] is not None]
        out[name] = float(np.mean(values)) if values else None
    return out


@torch.no_grad()
def evaluate(
    model: Flux,
    config: Config,
    entries: list[dict[str, Any]],
    root: Path,
    device: torch.device,
    save: Path | None = None,
) -> dict[str, Any]:
    """All measures over clips: `interpolation`, `future` (after the last input), `flow`, and `clips` one by one."""
    found, flows, gaps = [], [], []
    for entry in progress(entries, "evaluating", len(entries)):
        sample = training.load_sample(entry, root, config, device)
        gaussians = training.reconstruct(model, sample, config)
        one = measure_clip(gaussians, sample, root, save)
        found.append(one)
        flows += one["flows"]
        gaps += np.diff(entry["timestamps"]).tolist()
    seconds = float(np.median(gaps))
    rows = [row for one in found for row in one["rows"]]
    by_setting = {s: mean_of(row for row in rows if row["setting"] == s) for s in ("interpolation", "future")}
    joined = [np.concatenate(parts) for parts in zip(*flows)] if flows else None
    return {
        **by_setting,
        "flow": flow.measures(*joined, seconds) if joined else None,
        "clips": [
            {
                "name": one["name"],
                **mean_of(one["rows"]),
                "flow": (
                    flow.measures(*(np.concatenate(parts) for parts in zip(*one["flows"])), seconds)
                    if one["flows"]
                    else None
                ),
            }
            for one in found
        ],
    }
