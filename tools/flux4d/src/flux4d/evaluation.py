"""How well a network does on clips: images and depth at the targets' moments, and scene flow on LiDAR points."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError, images, metrics, runs
from recon4d.cli import pick_device, progress
from recon4d.files import write_text
from scipy.spatial import cKDTree

from flux4d import checkpoints, flow, indices, labels, memory, pictures
from flux4d.config import Config, config_file
from flux4d.gaussians import MovingGaussians, moved, opacities_at, velocity_at
from flux4d.model import Flux
from flux4d.reconstruction import gaussians_of
from flux4d.rendering import render
from flux4d.samples import Sample, load_sample

Flow = tuple[np.ndarray, np.ndarray, np.ndarray]  # of points: predicted and true velocities (N, 3), classes (N,)

IMAGE_MEASURES = ("psnr", "ssim", "depth_rmse", "dynamic_psnr", "dynamic_ssim", "dynamic_depth_rmse")


def image_measures(
    colour: torch.Tensor,
    truth: torch.Tensor,
    depth: torch.Tensor,
    samples: tuple[torch.Tensor, ...],
    mask: np.ndarray | None,
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


def predicted_velocity(gaussians: MovingGaussians, points: np.ndarray, time: torch.Tensor) -> np.ndarray:
    """(N, 3) m/s at points (N, 3) and a moment: that of the nearest Gaussian that is there then and can be seen."""
    solid = ~gaussians.sky & (opacities_at(gaussians, time[None])[0] > 0.1)
    solid = solid if solid.any() else ~gaussians.sky
    places = moved(gaussians, time[None])[0][solid].double().cpu().numpy()
    velocity = velocity_at(gaussians, time[None])[0][solid].double().cpu().numpy()
    _, nearest = cKDTree(places).query(points)
    return velocity[nearest]


def measure_clip(gaussians: MovingGaussians, sample: Sample, root: Path, save: Path | None = None) -> dict[str, Any]:
    """Measures of one clip: `rows`, one per target picture; `flows` at the points of frames up to the last input."""
    clip = sample.clip
    known = labels.of_clip(clip, root)
    rows = []
    last = max(clip.entry["input"])
    for frame in clip.target:
        moment, camera = clip.frame_of(frame), clip.name_of_camera(frame)
        shown = render(gaussians, sample.cameras[[frame]])
        mask = None
        if known is not None:
            points, found = known[frame]
            mask = labels.dynamic_mask(points, found.moving, clip, frame)
        values = image_measures(shown.colour[0], sample.images[frame], shown.depth[0], sample.depths[frame], mask)
        setting = "future" if moment > last else "interpolation"
        rows.append({"frame": moment, "camera": camera, "setting": setting, **values})
        if save is not None:
            folder = save / clip.name / camera if len(clip.names) > 1 else save / clip.name
            images.write_png(folder / f"{moment:02d}.png", pictures.comparison(gaussians, sample, frame))
    flows: list[Flow] = []
    for frame, (points, found) in enumerate(known or []):
        if clip.frame_of(frame) <= last and len(points):
            predicted = predicted_velocity(gaussians, points, sample.cameras.times[frame])
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


def evaluate(
    checkpoint: str | Path | None,
    index_path: str | Path,
    out_dir: str | Path,
    *,
    split: str = "test",
    clip_index: int | None = None,
    config: str | Path | None = None,
    overrides: Iterable[str] = (),
    data_root: str | Path | None = None,
    save_renders: bool = False,
    camera: str | None = None,
    device: str = "auto",
    force: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure a trained network on clips of an index; write metrics.json and, if asked, renders of the target frames.

    Returns what `measure` does but for the single clips, which are in metrics.json.

    Args:
        checkpoint: of a training; None is the network that ships.
        split: the clips, `test` or `train`. clip_index: the only clip, of either split.
        config, overrides: settings of data and lift in place of the checkpoint's, as in `config.load_config`.
        data_root: where the scenes are, when they are not where the index was made.
        camera: whose images, by name, or several with commas; None: the checkpoint's.
        force: replace an earlier evaluation in `out_dir`.

    Raises:
        InputError: a checkpoint, index or clip that cannot be read, a split without clips, an output that exists.
    """
    out, chosen_device = Path(out_dir), pick_device(device)
    model, settings = checkpoints.open_model(checkpoint, chosen_device, config, overrides, camera)
    index = indices.read(index_path)
    if clip_index is None:
        entries = [entry for entry in index["clips"] if entry["split"] == split]
    else:
        entries = [indices.choose(index, clip_index)]
    if not entries:
        raise InputError(f"--index-path {index_path} has no {split} clips; use --split or flux4d index --val-scenes")
    root = indices.root_of(index, data_root)
    log(memory.sentence(max(memory.of_clip(settings, entry) for entry in entries), chosen_device))
    inputs, names = [checkpoint, index_path, root, config_file(config)], ("metrics.json", "renders")
    with runs.claim(out, "flux4d eval", force=force, inputs=inputs, names=names):
        result = measure(model, settings, entries, root, chosen_device, out / "renders" if save_renders else None)
        write_text(out / "metrics.json", json.dumps(result, indent=2) + "\n")
    return {name: value for name, value in result.items() if name != "clips"} | {"folder": str(out)}


@torch.no_grad()
def measure(
    model: Flux,
    config: Config,
    entries: list[dict[str, Any]],
    root: Path,
    device: torch.device,
    save: Path | None = None,
) -> dict[str, Any]:
    """All measures over clips: `interpolation`, `future` (after the last input), `flow`, and `clips` one by one.

    Args:
        root: where the index's paths begin. save: a folder for renders.
    """
    found, gaps = [], []
    for entry in progress(entries, "evaluating", len(entries)):
        sample = load_sample(entry, root, config, device)
        found.append(measure_clip(gaussians_of(model, sample, config), sample, root, save))
        gaps += np.diff(entry["timestamps"]).tolist()
    seconds = float(np.median(gaps))
    rows = [row for one in found for row in one["rows"]]
    by_setting = {s: mean_of(row for row in rows if row["setting"] == s) for s in ("interpolation", "future")}
    return {
        **by_setting,
        "flow": joined_flow([part for one in found for part in one["flows"]], seconds),
        "clips": [
            {"name": one["name"], **mean_of(one["rows"]), "flow": joined_flow(one["flows"], seconds)} for one in found
        ],
    }


def joined_flow(flows: list[Flow], seconds: float) -> dict[str, Any] | None:
    """Measures of scene flow over all points of several frames; None where cuboids say nothing."""
    if not flows:
        return None
    predicted, truth, kind = (np.concatenate(parts) for parts in zip(*flows))
    return flow.measures(predicted, truth, kind, seconds)
