"""Pictures of a trained avatar: its clip again, another clip's motion, and a turn of the head."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from recon4d import video
from recon4d.cli import progress
from recon4d.formats import track as track_format
from recon4d.formats.track import Track
from torch import Tensor

from gaussian_avatar import avatar as avatars
from gaussian_avatar import motion as motions
from gaussian_avatar.avatar import View, rasterize
from gaussian_avatar.images import write_png
from gaussian_avatar.motion import Motion
from gaussian_avatar.run import Run

BATCH = 8
TURN_SECONDS = 5.0


def driving_motion(run: Run, track_path: Path | None) -> tuple[Motion, float]:
    """The motion to render and its frames per second: the training clip's own, or another track's on this identity."""
    if track_path is None:
        return run.motion, run.track.fps
    track = track_format.read(track_path)
    motions.check_track(track, run.head, str(track_path))
    motion = motions.from_track(track, run.head, shape=run.track.shape)
    scale = max(run.motion.width, run.motion.height) / max(motion.width, motion.height)
    if scale < 1:  # not above the size that the Gaussians were made for
        motion = motions.resized(motion, round(motion.width * scale), round(motion.height * scale))
    return motion, track.fps


def frontal_frame(track: Track) -> int:
    """The frame in which the head looks most straight at the camera."""
    return int(np.argmax(np.einsum("nij,ij->n", track.R @ track.neck, motions.AXES)))


def turn(run: Run, degrees: float, fps: float) -> tuple[Motion, Tensor]:
    """A turn of the head: the motion, one frame per camera, and the cameras (n, 4, 4).

    The head is held as in the frame nearest to frontal while the clip's expressions play on. The camera goes
    to one side, through the whole angle to the other and back to the front, slowing at the ends: seen from it the
    head turns.
    """
    n = max(2, round(TURN_SECONDS * fps))
    track = run.track
    frontal = frontal_frame(track)
    frames = np.arange(n) % len(track)
    held = {key: np.repeat(getattr(track, key)[frontal : frontal + 1], n, 0) for key in ("R", "t", "neck")}
    moved = {key: getattr(track, key)[frames] for key in ("names", "valid", "expression", "jaw", "eyes", "eyelids")}
    motion = motions.from_track(replace(track, **held, **moved), run.head, origin=track.t[0])
    motion = motions.resized(motion, run.motion.width, run.motion.height)
    angles = -degrees / 2 * np.sin(2 * np.pi * np.arange(n) / n)
    return motion, motions.orbit(motion, torch.from_numpy(angles.astype(np.float32)))


def render(run: Run, motion: Motion, cameras: Tensor, background: Tensor, alpha: bool = False) -> Iterator[np.ndarray]:
    """Frames of a motion, each from its own camera (n, 4, 4), as RGB uint8 (H, W, 3), or RGBA with `alpha`.

    RGBA is straight (not premultiplied), over black where nothing is.
    """
    device = run.avatar.means.device
    head = run.head.to(device)
    for chunk in torch.arange(len(motion)).split(BATCH):
        view = View(cameras[chunk].to(device), motion.K.to(device), motion.width, motion.height)
        with torch.no_grad():
            splats, _ = avatars.deform(
                run.avatar,
                head,
                motion.vertices[chunk].to(device),
                motion.inputs[chunk].to(device),
                view.world_to_camera,
                one_sided=run.config.model.one_sided,
            )
            colour = torch.zeros(3) if alpha else background
            image, opacity = rasterize(splats, view, colour.to(device).expand(len(chunk), 3))
            if alpha:
                image = torch.cat([image / opacity.clamp_min(1e-6), opacity], -1)
        yield from (image.clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()


def write_render(
    run: Run, track_path: Path | None, white: bool, alpha: bool, degrees: float | None
) -> dict[str, int | float]:
    """Write `render_image/00000.png ...` and `render.mp4` into the run's folder; counts and render speed.

    With `alpha` the PNGs are RGBA; the video, which has no alpha, is on the background in any case.
    """
    folder = run.folder / "render_image"
    motion, fps = driving_motion(run, track_path)
    background = torch.full((3,), 1.0 if white else 0.0)
    cameras = motion.world_to_camera.expand(len(motion), 4, 4)
    for stale in folder.glob("*.png"):
        stale.unlink()
    shots = [(motion, cameras)]
    if degrees is not None:
        shots.append(turn(run, degrees, fps))
        if (shots[1][0].width, shots[1][0].height) != (motion.width, motion.height):
            shots[1] = (motions.resized(shots[1][0], motion.width, motion.height), shots[1][1])
    total = sum(len(shot) for shot, _ in shots)
    clock = 0.0

    def frames() -> Iterator[np.ndarray]:
        nonlocal clock
        index = 0
        for shot, views in shots:
            images = render(run, shot, views, background, alpha)
            while True:
                started = time.perf_counter()
                image = next(images, None)
                clock += time.perf_counter() - started
                if image is None:
                    break
                if shot is motion:
                    write_png(folder / f"{index:05d}.png", image)
                index += 1
                if alpha:
                    over = image[..., 3:].astype(np.float32) / 255
                    image = (image[..., :3] * over + 255 * background.numpy() * (1 - over) + 0.5).astype(np.uint8)
                yield image

    count = video.write_mp4(run.folder / "render.mp4", progress(frames(), "rendering", total), fps)
    return {
        "frames": len(motion),
        "video_frames": count,
        "frames_per_second": round(count / max(clock, 1e-9), 1),
    }
