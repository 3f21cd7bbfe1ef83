"""How good a trained avatar is: image metrics on held-out frames, and a contact sheet to look at."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import InputError, metrics
from recon4d.cameras import Camera
from recon4d.files import write_npz, write_text
from recon4d.images import write_png
from recon4d.perceptual import SMALLEST
from recon4d.runs import claim
from torch import Tensor

from gaussian_avatar import avatars, captures, motions, runs
from gaussian_avatar.avatars import Splats, rasterize
from gaussian_avatar.backgrounds import composite
from gaussian_avatar.captures import Capture
from gaussian_avatar.learners import corrected
from gaussian_avatar.runs import Run

BATCH = 8
FILES = ("metrics.json", "metrics.npz", "metrics.txt", "contact.png")
REFINE_STEPS = 40
METRICS = ("l1_error", "l2_error", "psnr", "ssim", "lpips")
ERROR_GAIN = 4  # the error row of the contact sheet shows this many times the absolute difference


def evaluate(
    run: Run,
    split: int | None = None,
    data: str | Path | None = None,
    refine_pose: bool = False,
    force: bool = False,
    log: Callable[[str], None] = print,
    square: int | None = None,
) -> dict[str, float | int | None]:
    """Compare renders with held-out images; means over the frames, as `summary` has them.

    Writes `metrics.json`, `metrics.npz` (per frame), `metrics.txt` and `contact.png` into the run's folder.

    Args:
        split: the first frame to measure, negative from the end; None is the run's test split.
        data: the subject's folder; None is the one that was trained on.
        refine_pose: also with each pose fitted to the image it is measured on; see `measure`.
        force: replace earlier metrics.
        square: measure on squares of so many pixels around the head, whatever the avatar was trained on.

    Raises:
        InputError: pictures that are missing or do not fit, a split without frames, metrics that are there already.
    """
    subject = Path(data or Path(run.config.data_dir) / run.folder.parent.name)
    if square is not None:
        data_settings = run.config.data.model_copy(update={"crop": True, "image_size": square})
        run = replace(run, config=run.config.model_copy(update={"data": data_settings}))
    run, capture = runs.pictures(run, subject)
    frames = runs.held_out(run, split, log)
    captures.check_images(capture, frames)
    with claim(run.folder, "gaussian-avatar metrics", force=force, inputs=[subject], names=FILES):
        values = measure(run, frames, capture, refine_pose, log)
        frames = values["frame"]
        means = summary(values, run)
        write_metrics(run.folder, values, means)
        write_png(run.folder / "contact.png", contact_sheet(run, frames, capture))
    return means


def render_frames(run: Run, frames: np.ndarray, background: Tensor) -> tuple[Tensor, Tensor]:
    """Images (n, H, W, 3) in [0, 1] and opacities (n, H, W, 1) of the training clip's frames on a background (3,)."""
    splats, camera = _posed(run, frames)
    with torch.no_grad():
        image, alpha = rasterize(splats, camera, background.to(splats.means.device).expand(len(frames), 3))
    return image.clamp(0, 1), alpha


@torch.no_grad()
def _posed(run: Run, frames: np.ndarray) -> tuple[Splats, Camera]:
    """The Gaussians of the training clip's frames, and their camera, on the avatar's device."""
    device, motion = run.avatar.means.device, run.motion
    camera = motions.cameras_of(motion, frames).to(device)
    splats, _ = avatars.deform(
        run.avatar,
        run.head.to(device),
        motion.vertices[frames].to(device),
        motion.inputs[frames].to(device),
        camera.world_to_camera,
        one_sided=run.config.model.one_sided,
    )
    return splats, camera


def measure(
    run: Run,
    frames: np.ndarray,
    capture: Capture,
    refine_pose: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, np.ndarray]:
    """Per-frame metrics, inside the mask (`psnr` ...) and over the whole image on black (`full_psnr` ...).

    Renders and targets have the size that the avatar was trained on. LPIPS is NaN where they are too small for it.
    With `refine_pose`, `refined_psnr` and `refined_ssim` follow a correction of each frame's pose that is fitted to
    the very image it is measured on: they tell what the track's pose costs, not how good the avatar is on new frames.
    Frames with an empty mask are left out, which `log` is told. Raises InputError where all are.
    """
    rows: dict[str, list[Tensor]] = {}
    measured: list[np.ndarray] = []
    device = run.avatar.means.device
    for start in range(0, len(frames), BATCH):
        chosen = frames[start : start + BATCH]
        read = np.stack(list(captures.read_images(capture, chosen)))
        seen = read[..., 3].any((1, 2))
        if not seen.any():
            continue
        chosen, images = chosen[seen], torch.from_numpy(read[seen]).to(device)
        measured.append(chosen)
        black = torch.zeros(len(chosen), 3, device=device)
        target, mask = composite(images, black)
        rendered, _ = render_frames(run, chosen, torch.zeros(3))
        a, b, m = (x.permute(0, 3, 1, 2) for x in (rendered, target, mask))
        values = {
            "l1_error": ((a - b).abs() * m).sum((1, 2, 3)) / (3 * m.sum((1, 2, 3))),
            "l2_error": ((a - b).square() * m).sum((1, 2, 3)) / (3 * m.sum((1, 2, 3))),
            "psnr": metrics.psnr(a, b, m),
            "ssim": metrics.ssim(a, b, m),
            "full_psnr": metrics.psnr(a, b),
            "full_ssim": metrics.ssim(a, b),
        }
        large = min(a.shape[-2:]) >= SMALLEST
        values["lpips"] = metrics.lpips(a, b, m) if large else torch.full_like(values["psnr"], float("nan"))
        if refine_pose:
            a = refined(run, chosen, target).permute(0, 3, 1, 2)
            values |= {"refined_psnr": metrics.psnr(a, b, m), "refined_ssim": metrics.ssim(a, b, m)}
        for name, value in values.items():
            rows.setdefault(name, []).append(value.detach().cpu())
    if not measured:
        raise InputError(f"{capture.folder}: the masks of all frames are empty; make them again with prep-faces matte")
    kept = np.concatenate(measured)
    if len(kept) < len(frames):
        log(f"{len(frames) - len(kept)} frames with an empty mask are left out")
    return {"frame": kept} | {name: torch.cat(parts).numpy() for name, parts in rows.items()}


def refined(run: Run, frames: np.ndarray, target: Tensor) -> Tensor:
    """Renders (n, H, W, 3) on black, each with a rigid correction of its pose that brings it nearest to its target."""
    device = run.avatar.means.device
    splats, camera = _posed(run, frames)
    vertices = run.motion.vertices[frames].to(device)
    black = torch.zeros(len(frames), 3, device=device)
    corrections = torch.zeros(len(frames), 6, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([corrections], lr=0.0)
    for step in range(REFINE_STEPS):
        optimizer.param_groups[0]["lr"] = 5e-3 * 0.05 ** (step / REFINE_STEPS)  # radians and decimetres
        image, _ = rasterize(splats, corrected(camera, corrections, vertices), black)
        optimizer.zero_grad()
        (image - target).abs().mean((1, 2, 3)).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return rasterize(splats, corrected(camera, corrections, vertices), black)[0].clamp(0, 1)


def summary(values: dict[str, np.ndarray], run: Run) -> dict[str, float | int | None]:
    """Means over the frames, with what they were measured on; LPIPS is null without weights."""
    means = {name: float(values[name].mean()) for name in values if name != "frame"}
    return {name: value if np.isfinite(value) else None for name, value in means.items()} | {
        "frames": len(values["frame"]),
        "width": run.motion.camera.width,
        "height": run.motion.camera.height,
        "gaussians": len(run.avatar),
    }


def write_metrics(folder: Path, values: dict[str, np.ndarray], means: dict[str, Any]) -> None:
    """`metrics.npz` (per frame), `metrics.txt` and `metrics.json` (means), each atomically."""
    write_npz(folder / "metrics.npz", **values)
    write_text(folder / "metrics.json", json.dumps(means, indent=2) + "\n")
    lines = [f"{name}: {means[name]:.6f}" if means[name] is not None else f"{name}: no weights" for name in METRICS]
    write_text(folder / "metrics.txt", "\n".join(lines) + "\n")


def contact_sheet(run: Run, frames: np.ndarray, capture: Capture, columns: int = 8) -> np.ndarray:
    """Evenly spaced frames as columns; rows are truth, render, error (times 4). RGB uint8, tiles of 320 at most."""
    chosen = frames[np.unique(np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int))]
    images = torch.from_numpy(np.stack(list(captures.read_images(capture, chosen))))
    truth = composite(images, torch.ones(len(chosen), 3))[0].numpy()
    rendered = render_frames(run, chosen, torch.ones(3))[0].cpu().numpy()
    error = np.minimum(ERROR_GAIN * np.abs(truth - rendered), 1)
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in (truth, rendered, error)], 0)
    tile = max(run.motion.camera.width, run.motion.camera.height)
    if tile > 320:
        sheet = cv2.resize(sheet, None, fx=320 / tile, fy=320 / tile, interpolation=cv2.INTER_AREA)
    return (sheet * 255 + 0.5).astype(np.uint8)
