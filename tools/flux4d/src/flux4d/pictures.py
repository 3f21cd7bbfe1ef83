"""Pictures to look at: truth, render, depth and motion side by side, LiDAR points over an image, videos."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import InputError, images, runs, video
from recon4d.cli import pick_device, progress
from torch import Tensor

from flux4d import checkpoints, clips, indices, labels
from flux4d.clips import in_view
from flux4d.config import config_file
from flux4d.gaussians import MovingGaussians
from flux4d.reconstruction import gaussians_of
from flux4d.rendering import MAX_FLOW, render
from flux4d.samples import Sample, load_sample
from flux4d.timed_cameras import TimedCameras, at_times


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


def comparison(gaussians: MovingGaussians, sample: Sample, frame: int) -> np.ndarray:
    """Truth over depth, render over motion, of one frame of a sample."""
    shown = render(gaussians, sample.cameras[[frame]], flow=True)
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


def write_alignment(
    index_path: str | Path,
    out_dir: str | Path,
    clip_index: int = 0,
    frame: int = 0,
    camera: str = "front_camera",
    data_root: str | Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Draw the LiDAR points of a clip's frame over its image, SCENE_FRAME_NN.png; its path and how many fall where.

    Raises:
        InputError: an index or clip that cannot be read, no such clip, camera or frame, a picture that exists (unless
            `force`).
    """
    entry, root = indices.open_clip(index_path, clip_index, data_root)
    if not 0 <= frame < len(entry["frames"]):
        raise InputError(f"--frame-index {frame}: the clip has frames 0 to {len(entry['frames']) - 1}")
    path = Path(out_dir) / f"{clips.name_of(entry)}_{frame:02d}.png"
    if "," in camera:
        raise InputError(f"--camera {camera}: give one")
    runs.claim_file(path, force=force, inputs=[index_path, root])
    clip = clips.load(entry, root, camera)
    points = clip.points[frame]
    pixels, depth, inside = in_view(points, clip.camera(frame))
    size = max(round(clip.width / 640), 1)
    images.write_png(path, overlay(clip.images[frame].numpy(), pixels[inside].numpy(), depth[inside].numpy(), size))
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
        # beyond the clip there is nothing, however far it goes
        wanted = list(range(int(first), min(int(last), count) + 1)) if dash else [int(part) for part in text.split(",")]
    except (ValueError, OverflowError) as error:
        raise InputError(f"--render-frames {text[:40]} is not like 0-15 or 0,3,5") from error
    found = [frame for frame in wanted if 0 <= frame < count]
    if not found or (not dash and len(found) < len(wanted)):
        raise InputError(f"--render-frames {text[:40]}: the clip has frames 0 to {count - 1}")
    return found


@torch.no_grad()
def write_flow(
    checkpoint: str | Path | None,
    index_path: str | Path,
    out_dir: str | Path,
    *,
    clip_index: int = 0,
    camera: str | None = None,
    mode: str = "both",
    frames: str = "0-15",
    reference: int = 0,
    config: str | Path | None = None,
    overrides: Iterable[str] = (),
    data_root: str | Path | None = None,
    device: str = "auto",
    force: bool = False,
) -> dict[str, Any]:
    """Draw images and image-plane motion of a clip's frames side by side, as PNG and MP4 by mode; a summary with the
    mean motion over moving things and over the rest, where cuboids are known.

    Args:
        checkpoint: of a training; None is the network that ships.
        camera: whose images, by name; None: the checkpoint's.
        mode: `fixed`, the camera stands where it was in the frame `reference`; `follow`, it moves along; or `both`.
        frames: as in `frame_list`.
        config, overrides: settings in place of the checkpoint's, as in `config.load_config`.
        data_root: where the scenes are, when they are not where the index was made.
        force: replace what is in `out_dir`.

    Raises:
        InputError: a checkpoint, index or clip that cannot be read, no such clip, camera or frame, an output that
            exists.
    """
    out, chosen_device = Path(out_dir), pick_device(device)
    model, settings = checkpoints.open_model(checkpoint, chosen_device, config, overrides, camera)
    entry, root = indices.open_clip(index_path, clip_index, data_root)
    count = len(entry["frames"])
    chosen = frame_list(frames, count)
    if not 0 <= reference < count:
        raise InputError(f"--frame-ref {reference}: the clip has frames 0 to {count - 1}")
    with runs.claim(out, "flux4d vis-flow", force=force, inputs=[checkpoint, index_path, root, config_file(config)]):
        sample = load_sample(entry, root, settings, chosen_device)
        gaussians = gaussians_of(model, sample, settings)
        known = labels.of_clip(sample.clip, root)
        result: dict[str, Any] = {"clip": sample.clip.name, "frames": len(chosen), "folder": str(out)}
        for kind in ("fixed", "follow") if mode == "both" else (mode,):
            pages, moving, still = [], [], []
            for frame in chosen:
                cameras = sample.cameras[[frame]]
                if kind == "fixed":
                    cameras = replace(cameras, batch=sample.cameras[[reference]].batch)
                shown = render(gaussians, cameras, flow=True)
                flow = shown.flow[0].cpu().numpy()
                pages.append(np.hstack([bytes_of(shown.colour[0]), flow_colours(flow)]))
                images.write_png(out / kind / f"{frame:02d}.png", pages[-1])
                if known is not None and kind == "follow":
                    points, found = known[frame]
                    mask = labels.dynamic_mask(points, found.moving, sample.clip, frame)
                    speed = np.linalg.norm(flow, axis=-1)
                    moving += speed[mask].tolist()
                    still += speed[~mask].tolist()
            video.write_mp4(out / f"{kind}.mp4", pages, 10.0)
            if known is not None and kind == "follow":
                result["moving_px"] = float(np.mean(moving)) if moving else None
                result["still_px"] = float(np.mean(still)) if still else None
    return result


@torch.no_grad()
def write_video(
    path: Path,
    gaussians: MovingGaussians,
    along: TimedCameras,
    fps: float,
    slow: float,
    device: torch.device | str = "cpu",
) -> int:
    """A video of a scene in the world, seen from a camera that moves along a path; the number of frames.

    Args:
        slow: seconds of the video per second of the scene.
        device: that draws it, wherever the scene is.
    """
    gaussians = gaussians.to(device)
    start, end = float(along.times[0]), float(along.times[-1])
    count = max(round((end - start) * slow * fps), 1) + 1
    times = torch.linspace(start, end, count)

    def frames() -> Iterator[np.ndarray]:
        for time in progress(times, "rendering", count):
            yield bytes_of(render(gaussians, at_times(along, time[None]).to(device)).colour[0])

    return video.write_mp4(path, frames(), fps)
