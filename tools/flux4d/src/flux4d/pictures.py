"""Pictures to look at: truth, render, depth and motion side by side, and LiDAR points over an image."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import InputError, video
from recon4d.cli import progress
from recon4d.files import atomic_path
from torch import Tensor

from flux4d import scene
from flux4d.clip import Clip, in_view
from flux4d.config import Config
from flux4d.lift import Gaussians
from flux4d.rendering import MAX_FLOW, render
from flux4d.scene import CameraPath


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write RGB uint8 (H, W, 3) as PNG, atomically."""
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), np.ascontiguousarray(image[..., ::-1]))


def bytes_of(image: Tensor) -> np.ndarray:
    """Colours in [0, 1] as uint8."""
    return (image.detach().clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()


def depth_colours(depth: np.ndarray, near: float = 3.0, far: float = 100.0) -> np.ndarray:
    """Depth (...,) in metres as RGB uint8 (..., 3), by its logarithm; black where it is not positive."""
    share = 1 - np.clip(np.log(np.maximum(depth, near) / near) / np.log(far / near), 0, 1)
    flat = np.round(255 * share).astype(np.uint8).reshape(-1, 1)
    colours = cv2.applyColorMap(flat, cv2.COLORMAP_TURBO)[:, 0, ::-1].reshape(*depth.shape, 3)
    return np.where((depth > 0)[..., None], colours, 0).astype(np.uint8)


def flow_colours(flow: np.ndarray, top: float = MAX_FLOW) -> np.ndarray:
    """Motion on the image (..., 2) as RGB uint8: hue is the direction (red is to the right), brightness the speed."""
    speed = np.linalg.norm(flow, axis=-1)
    hue = np.round(np.degrees(np.arctan2(flow[..., 1], flow[..., 0])) % 360 / 2)
    hsv = np.stack([hue % 180, np.full_like(hue, 255), np.round(255 * np.clip(speed / top, 0, 1))], -1).astype(np.uint8)
    return cv2.cvtColor(hsv.reshape(1, -1, 3), cv2.COLOR_HSV2RGB).reshape(*flow.shape[:-1], 3)


def comparison(gaussians, sample, frame: int) -> np.ndarray:
    """Truth over depth, render over motion, of one frame of a sample."""
    from flux4d.training import some_views

    shown = render(gaussians, some_views(sample.views, [frame]), flow=True)
    truth, image = bytes_of(sample.images[frame]), bytes_of(shown.colour[0])
    depth = depth_colours(shown.depth[0].cpu().numpy() * (shown.alpha[0] > 0.5).cpu().numpy())
    flow = flow_colours(shown.flow[0].cpu().numpy(), 5.0)
    return np.vstack([np.hstack([truth, image]), np.hstack([depth, flow])])


def overlay(image: np.ndarray, pixels: np.ndarray, depth: np.ndarray, size: int = 1) -> np.ndarray:
    """Points on an image (H, W, 3) uint8: pixels (N, 2), coloured by depth (N,), far ones below near ones."""
    out, colours = image.copy(), depth_colours(depth)
    for i in np.argsort(-depth):
        x, y = pixels[i].astype(int)
        out[max(y - size + 1, 0) : y + size, max(x - size + 1, 0) : x + size] = colours[i]
    return out


def write_alignment(clip: Clip, frame: int, folder: Path) -> dict[str, Any]:
    """The LiDAR points of a frame over its image, and how many fall where. InputError for no such frame."""
    if not 0 <= frame < len(clip.times):
        raise InputError(f"--frame-index {frame}: the clip has frames 0 to {len(clip.times) - 1}")
    points = clip.points[frame]
    pixels, depth, inside = in_view(points, clip.K, clip.world_to_camera[frame], clip.width, clip.height)
    path = folder / f"{clip.name}_{frame:02d}.png"
    size = max(round(clip.width / 640), 1)
    write_png(path, overlay(clip.images[frame].numpy(), pixels[inside].numpy(), depth[inside].numpy(), size))
    return {
        "picture": str(path),
        "points": len(points),
        "in_image": int(inside.sum()),
        "behind": int((depth <= 0).sum()),
        "camera_minus_lidar_s": round(float(clip.times[frame] - clip.lidar_times[frame]), 6),
    }


def frame_list(text: str, count: int) -> list[int]:
    """`0-15` or `0,3,5` as frames that a clip of `count` has; a range may reach beyond it."""
    first, dash, last = text.partition("-")
    try:
        wanted = list(range(int(first), int(last) + 1)) if dash else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--render-frames {text} is not like 0-15 or 0,3,5") from error
    found = [frame for frame in wanted if 0 <= frame < count]
    if not found or (not dash and len(found) < len(wanted)):
        raise InputError(f"--render-frames {text}: the clip has frames 0 to {count - 1}")
    return found


@torch.no_grad()
def write_flow(
    model: torch.nn.Module,
    config: Config,
    entry: dict[str, Any],
    root: Path,
    device: torch.device,
    folder: Path,
    modes: tuple[str, ...],
    frames: list[int],
    reference: int,
) -> dict[str, Any]:
    """Image and image-plane motion of a clip's frames, as PNG and MP4 by mode; the mean motion over moving things and
    the rest where cuboids are known."""
    from flux4d import evaluation, training

    sample = training.load_sample(entry, root, config, device)
    if not 0 <= reference < len(sample.clip.times):
        raise InputError(f"--frame-ref {reference}: the clip has frames 0 to {len(sample.clip.times) - 1}")
    gaussians = training.reconstruct(model, sample, config)
    labels = evaluation.labels_of(sample.clip, root)
    result: dict[str, Any] = {"clip": sample.clip.name, "frames": len(frames), "folder": str(folder)}
    for mode in modes:
        pages, moving, still = [], [], []
        for frame in frames:
            views = training.some_views(sample.views, [frame])
            if mode == "fixed":
                views = replace(views, world_to_camera=sample.views.world_to_camera[[reference]])
            shown = render(gaussians, views, flow=True)
            flow = shown.flow[0].cpu().numpy()
            pages.append(np.hstack([bytes_of(shown.colour[0]), flow_colours(flow)]))
            write_png(folder / mode / f"{frame:02d}.png", pages[-1])
            if labels is not None and mode == "follow":
                points, found = labels[frame]
                mask = evaluation.dynamic_mask(points, found.moving, sample.clip, frame)
                speed = np.linalg.norm(flow, axis=-1)
                moving += speed[mask].tolist()
                still += speed[~mask].tolist()
        video.write_mp4(folder / f"{mode}.mp4", pages, 10.0)
        if mode == "follow" and labels is not None:
            result["moving_px"] = float(np.mean(moving)) if moving else None
            result["still_px"] = float(np.mean(still)) if still else None
    return result


@torch.no_grad()
def write_video(path: Path, gaussians: Gaussians, along: CameraPath, fps: float, slow: float) -> int:
    """A video of a scene in the world along its camera path; the number of frames."""
    start, end = float(along.times[0]), float(along.times[-1])
    count = max(round((end - start) * slow * fps), 1) + 1
    times = torch.linspace(start, end, count)

    def frames() -> Iterator[np.ndarray]:
        for time in progress(times, "rendering", count):
            yield bytes_of(render(gaussians, scene.at_times(along, time[None])).colour[0])

    return video.write_mp4(path, frames(), fps)
