"""A capture of the head model rendered with known parameters: images, mattes, tracker frames and a video."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import roma
import torch
from recon4d import InputError, video
from recon4d.cli import progress
from recon4d.color import linear_from_srgb
from recon4d.files import write_text
from recon4d.formats import insta
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from recon4d.images import write_png
from recon4d.runs import claim
from recon4d.synthetic import random_albedo, random_light, render_head, smooth_noise, wall

from gaussian_avatar import motions
from gaussian_avatar.motions import Motion

# How far each named expression goes in a portrait video; names are ARKit's. Sides move together but for a little.
EXPRESSION_RANGES = {
    "mouthSmile": 0.7,
    "mouthPucker": 0.6,
    "mouthFunnel": 0.4,
    "mouthStretch": 0.35,
    "mouthFrown": 0.4,
    "mouthUpperUp": 0.3,
    "mouthLowerDown": 0.35,
    "mouthPress": 0.3,
    "mouthLeft": 0.25,
    "mouthRight": 0.25,
    "browInnerUp": 0.7,
    "browOuterUp": 0.6,
    "browDown": 0.6,
    "cheekSquint": 0.4,
    "eyeSquint": 0.4,
    "noseSneer": 0.35,
}
MOTIONS = ("portrait", "frontal-then-turn")
UNNAMED_EXPRESSIONS = 10  # of a FLAME model, whose expressions are components with unit variance


def random_parameters(head: HeadModel, n: int, width: int, fps: float, seed: int, motion: str = MOTIONS[0]) -> Track:
    """A random person, random but smooth expressions, blinks, gaze, jaw and head motion, as a track of n frames.

    Args:
        motion: `portrait` keeps yaw within 25 degrees, pitch within 12, roll within 8. `frontal-then-turn` keeps all
            within a fifth of that in the first half; in the second the head turns by 40 degrees to one side, then to
            the other, and back.
    """
    rng = np.random.default_rng(seed)
    seconds = n / fps
    shape = (0.7 * rng.standard_normal(head.n_shape)).astype(np.float32)

    expression = np.zeros((n, head.n_expression), np.float32)
    if head.expression_names:
        common: dict[str, np.ndarray] = {}
        for i, name in enumerate(head.expression_names):
            stem = name.removesuffix("Left").removesuffix("Right") if name not in EXPRESSION_RANGES else name
            if stem not in EXPRESSION_RANGES:
                continue
            if stem not in common:
                common[stem] = smooth_noise(n, 0.9 * seconds, rng)[0] - 0.3
            own = 0.15 * smooth_noise(n, 0.6 * seconds, rng)[0]
            expression[:, i] = EXPRESSION_RANGES[stem] * np.clip(0.7 * (common[stem] + own), 0, 1)
    else:
        k = min(UNNAMED_EXPRESSIONS, head.n_expression)
        expression[:, :k] = np.clip(smooth_noise(n, 0.9 * seconds, rng, k), -2, 2).T

    opening = np.clip(0.7 * smooth_noise(n, 1.3 * seconds, rng)[0], 0, 1)
    jaw = np.zeros((n, 3))
    jaw[:, 0] = 0.22 * opening
    jaw[:, 1] = 0.02 * smooth_noise(n, 0.5 * seconds, rng)[0]

    lids = np.zeros(n)
    centre = rng.uniform(0.2, 0.8) * min(1.5 * fps, n)
    while centre < n:
        # A blink takes about a quarter of a second (Stern et al. 1984).
        lids = np.maximum(lids, np.exp(-0.5 * ((np.arange(n) - centre) / (0.07 * fps)) ** 2))
        centre += rng.uniform(0.9, 1.7) * fps
    eyelids = np.stack([lids, lids], 1).astype(np.float32) * (head.eyelids is not None)

    gaze = np.clip(smooth_noise(n, 0.8 * seconds, rng, 2), -1.8, 1.8)
    eye_vectors = np.stack([0.08 * gaze[0], 0.14 * gaze[1], np.zeros(n)], 1)  # pitch, yaw

    angles = smooth_noise(n, 0.55 * seconds, rng, 3)
    angles = np.tanh(angles / 1.2) * np.radians([[25.0], [12.0], [8.0]])
    if motion == "frontal-then-turn":
        late = np.clip(np.arange(n) / n * 2 - 1, 0, 1)  # 0 in the first half, then up to 1
        angles = 0.2 * angles
        angles[0] += np.radians(40.0) * np.sin(2 * np.pi * late)
    turn = roma.euler_to_rotmat("YXZ", torch.from_numpy(angles.T))
    R = torch.from_numpy(motions.AXES) @ turn

    focal = 2.0 * width
    K = np.array([[focal, 0, width / 2], [0, focal, width / 2], [0, 0, 1]], np.float32)
    # Centre the mean head in the image, with about a fifth of the image's height left.
    lowest, highest = head.v_template.min(0).values.numpy(), head.v_template.max(0).values.numpy()
    middle, extent = (lowest + highest) / 2, float(highest[1] - lowest[1])
    t = np.array([0.0, middle[1], 0.0]) + np.array([0, 0, focal * extent / (0.78 * width)])
    drift = smooth_noise(n, 0.4 * seconds, rng, 3) * np.array([[0.008], [0.005], [0.012]])
    t = t + drift.T

    def rotations(vectors: np.ndarray) -> np.ndarray:
        matrices: np.ndarray = roma.rotvec_to_rotmat(torch.from_numpy(vectors)).numpy()
        return matrices.astype(np.float32)

    eyes = rotations(eye_vectors)
    return Track(
        head_model=head.name,
        image_size=np.array([width, width]),
        fps=fps,
        K=K,
        names=np.array([f"{i:05d}.png" for i in range(n)]),
        valid=np.ones(n, bool),
        shape=shape,
        expression=expression,
        R=R.numpy().astype(np.float32),
        t=t.astype(np.float32),
        neck=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),
        jaw=rotations(jaw),
        eyes=np.stack([eyes, eyes], 1),
        eyelids=eyelids,
    )


def synthesise(
    folder: str | Path,
    frames: int = 144,
    size: int = 256,
    fps: float = 25.0,
    motion: str = MOTIONS[0],
    head_model: str | Path | None = None,
    seed: int = 0,
    force: bool = False,
    cameras: int = 1,
) -> dict[str, int | float | str]:
    """Write a capture into a subject's folder: images, checkpoint, track.npz, capture.mp4, synth.json; a summary.

    The head is posed as `motions.from_track` poses it, so the base of the neck stays upright when the head turns; the
    track holds the head's pose, as a tracker's does.

    Args:
        size: pixels per side. motion: one of MOTIONS; see `random_parameters`.
        head_model: a FLAME file; None is the open head. force: replace an earlier capture of this command.
        cameras: how many look on, from an arc around the head; of several there are no `.frame` files.

    Raises:
        InputError: an occupied folder, an odd size, a head model that is not readable.
    """
    folder = Path(folder)
    if size % 2:
        raise InputError(f"--size {size} must be even: the video's colours are stored at half the size")
    head = motions.load_head(head_model)
    with claim(folder, "gaussian-avatar synth", force=force, inputs=[head_model]):
        return _write(folder, head, frames, size, fps, motion, seed, cameras)


def several(track: Track, motion: Motion, cameras: int) -> Track:
    """A track that several cameras look on, camera after camera: the first is its own.

    They stand on an arc of 120 degrees around the head, every second one 15 degrees higher or lower.
    """
    n = len(track)
    order = np.argsort(np.abs(np.arange(cameras) - (cameras - 1) / 2), kind="stable")
    degrees = np.linspace(-60, 60, cameras)[order]
    degrees[0] = 0.0
    raised = 15.0 * np.where(np.arange(cameras) % 4 == 1, 1.0, -1.0) * (np.arange(cameras) % 2)
    around = motions.orbit(motion, torch.from_numpy(degrees).float(), torch.from_numpy(raised).float())
    views = (around.world_to_camera @ motion.camera.camera_to_world).numpy()
    whole = track.take(np.tile(np.arange(n), cameras))
    names = [f"{camera}_{frame:05d}.png" for camera in range(cameras) for frame in range(n)]
    return replace(
        whole,
        names=np.array(names),
        Ks=np.tile(track.K, (n * cameras, 1, 1)),
        views=np.repeat(views, n, 0),
        cameras=np.repeat([str(camera) for camera in range(cameras)], n),
    )


def _write(
    folder: Path, head: HeadModel, n: int, size: int, fps: float, kind: str, seed: int, cameras: int
) -> dict[str, int | float | str]:
    track = random_parameters(head, n, size, fps, seed, kind)
    motion = motions.from_track(track, head)
    if cameras > 1:
        track = several(track, motion, cameras)
        motion = motions.from_track(track, head)
    albedo = linear_from_srgb(random_albedo(head, seed))
    light = random_light(seed)
    background = wall(size, seed)
    coverage: list[float] = []

    def frames() -> Iterator[np.ndarray]:
        for i, vertices in enumerate(progress(motion.vertices, "rendering", len(motion))):
            camera = motions.cameras_of(motion, np.array([i]))
            pose, K = camera.world_to_camera.view(-1, 4, 4)[0], camera.K.view(-1, 3, 3)[0]
            image = render_head(head, vertices, pose, K, size, albedo, light)
            write_png(folder / "images" / str(track.names[i]), image)
            alpha = image[..., 3:] / 255.0
            coverage.append(float(alpha.mean()))
            if i < n:
                yield (255 * background * (1 - alpha) + image[..., :3] * alpha + 0.5).astype(np.uint8)

    video.write_mp4(folder / "capture.mp4", frames(), fps, quality=10)
    if cameras == 1:
        insta.write(folder, track)
    track.write(folder / "track.npz")
    summary: dict[str, int | float | str] = {
        "frames": n,
        "size": size,
        "fps": fps,
        "seed": seed,
        "motion": kind,
        "cameras": cameras,
        "head_model": head.name,
        "focal_length": float(track.K[0, 0]),
        "distance": float(track.t[:, 2].mean()),
        "head_share": float(np.mean(coverage)),
    }
    write_text(folder / "synth.json", json.dumps(summary | {"light": light.tolist()}, indent=2) + "\n")
    return summary | {"folder": str(folder)}
