"""Pictures of a trained avatar: its clip again, another clip's motion, and a turn of the head."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from recon4d import video
from recon4d.cli import progress
from recon4d.images import write_png
from recon4d.runs import claim
from torch import Tensor

from gaussian_avatar import avatars, driving, motions
from gaussian_avatar.avatars import rasterize
from gaussian_avatar.driving import Transfer
from gaussian_avatar.motions import Motion
from gaussian_avatar.runs import Run

BATCH = 8
TURN_SECONDS = 5.0
PICTURES, VIDEO = "render_image", "render.mp4"


def turned(run: Run, degrees: float, fps: float) -> Motion:
    """A turn of the head, with a camera for each frame.

    The head is held as in the frame nearest to frontal while the clip's expressions play on. The camera goes
    to one side, through the whole angle to the other and back to the front, slowing at the ends: seen from it the
    head turns.
    """
    n = max(2, round(TURN_SECONDS * fps))
    track = run.track
    frontal = motions.frontal_frame(track)
    frames = np.arange(n) % len(track)
    still = track.take(np.full(n, frontal))
    held = replace(track.take(frames), R=still.R, t=still.t, neck=still.neck)
    motion = replace(motions.from_track(held, run.head, origin=track.t[0]), camera=run.motion.camera)
    angles = -degrees / 2 * np.sin(2 * np.pi * np.arange(n) / n)
    return replace(motion, camera=motions.orbit(motion, torch.from_numpy(angles.astype(np.float32))))


def render(run: Run, motion: Motion, background: Tensor, alpha: bool = False) -> Iterator[np.ndarray]:
    """Frames of a motion as its camera sees them: RGB uint8 (H, W, 3), or RGBA with `alpha`.

    The motion's camera may be one for each frame. RGBA is straight (not premultiplied), over black where nothing is.
    """
    device = run.avatar.means.device
    head = run.head.to(device)
    motion = motions.within(motion, run.motion)
    poses = motion.camera.world_to_camera.expand(len(motion), 4, 4)
    for chunk in torch.arange(len(motion)).split(BATCH):
        camera = replace(motion.camera, world_to_camera=poses[chunk]).to(device)
        with torch.no_grad():
            splats, _ = avatars.deform(
                run.avatar,
                head,
                motion.vertices[chunk].to(device),
                motion.inputs[chunk].to(device),
                camera.world_to_camera,
                one_sided=run.config.model.one_sided,
            )
            colour = torch.zeros(3) if alpha else background
            image, opacity = rasterize(splats, camera, colour.to(device).expand(len(chunk), 3))
            if alpha:
                image = torch.cat([image / opacity.clamp_min(1e-6), opacity], -1)
        yield from (image.clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()


def write_render(
    run: Run,
    track: str | Path | None = None,
    white_bg: bool = False,
    alpha: bool = False,
    turn: float | None = None,
    force: bool = False,
    transfer: Transfer = "absolute",
    log: Callable[[str], None] = lambda _: None,
    track_head_model: str | Path | None = None,
) -> dict[str, int | float | str]:
    """Write `render_image/00000.png ...` and `render.mp4` into the run's folder; counts and render speed.

    Args:
        track: what to follow, as `driving.track_of` reads it; None is the training clip.
        white_bg: a white background instead of a black one.
        alpha: RGBA pictures; the video, which has no alpha, is on the background in any case.
        turn: end the video with a turn of the head through so many degrees.
        force: replace what was rendered before.
        transfer, log, track_head_model: see `driving.track_of`.

    Raises InputError as `driving.track_of` does, and for renders that are there.
    """
    motion, driver = driving.motion_of(run, track, transfer, log, track_head_model)
    fps = driver.fps
    background = torch.full((3,), 1.0 if white_bg else 0.0)
    shots = [motion]
    if turn is not None:
        shots.append(motions.resized(turned(run, turn, fps), motion.camera.width, motion.camera.height))
    total = sum(map(len, shots))
    clock = 0.0

    def frames() -> Iterator[np.ndarray]:
        nonlocal clock
        index = 0
        for shot in shots:
            images = render(run, shot, background, alpha)
            while True:
                started = time.perf_counter()
                image = next(images, None)
                clock += time.perf_counter() - started
                if image is None:
                    break
                if shot is motion:
                    write_png(run.folder / PICTURES / f"{index:05d}.png", image)
                index += 1
                if alpha:
                    over = image[..., 3:].astype(np.float32) / 255
                    image = (image[..., :3] * over + 255 * background.numpy() * (1 - over) + 0.5).astype(np.uint8)
                yield image

    with claim(run.folder, "gaussian-avatar render", force=force, inputs=[track], names=(PICTURES, VIDEO)):
        count = video.write_mp4(run.folder / VIDEO, progress(frames(), "rendering", total), fps)
    return {
        "frames": len(motion),
        "video_frames": count,
        "frames_per_second": round(count / max(clock, 1e-9), 1),
        "video": str(run.folder / VIDEO),
    }
