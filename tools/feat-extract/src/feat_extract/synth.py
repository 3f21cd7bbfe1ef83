"""Labelled sequences of the open head that performs small expressions: a data set whose truth is known."""

from pathlib import Path

import numpy as np
import roma
import torch
import yaml
from recon4d import images, runs
from recon4d.cli import progress
from recon4d.color import linear_from_srgb
from recon4d.files import write_text
from recon4d.formats.track import Track
from recon4d.head import HeadModel, load, with_uv
from recon4d.synthetic import random_albedo, random_light, render_head, smooth_noise, wall

from feat_extract.config import CLASSES
from feat_extract.labels import write_table

DATASET = "data/inference_artifacts/dataset"
FPS = 30.0

# What a face does in each class, as ARKit activations at full strength; both sides move but for a little.
EXPRESSIONS = {
    "positive": {"mouthSmile": 1.0, "cheekSquint": 0.7, "mouthDimple": 0.3},
    "negative": {"browDown": 1.0, "noseSneer": 0.6, "mouthFrown": 0.8},
    "surprise": {"browInnerUp": 1.0, "browOuterUp": 0.9, "eyeWide": 0.8, "jawOpen": 0.3},
    "repression": {"mouthPress": 1.0, "mouthRollLower": 0.9, "mouthRollUpper": 0.9},
    "others": {"mouthPucker": 0.8, "cheekPuff": 0.8},
}
PAIRS = [("positive", "surprise"), ("negative", "repression"), ("surprise", "others"), ("negative", "surprise")]
PAIR_SHARE = 0.25  # of the sequences show two classes
STRENGTH = (0.35, 0.65)  # at the apex, of full strength
AXES = np.diag([1.0, -1.0, -1.0])  # world (y up) to OpenCV camera


def random_track(head: HeadModel, shape: np.ndarray, labels: set[str], n: int, size: int, seed: int) -> Track:
    """n frames of one person who shows `labels` once, from onset over apex to offset, as a track.

    Head, gaze and all other expressions move a little too, and some clips have a blink.
    """
    rng = np.random.default_rng((seed, 4))
    time = np.arange(n) / (n - 1)
    expression = 0.04 * np.abs(smooth_noise(n, 1.0, rng, head.n_expression)).T
    for name in sorted(labels):
        # A raised cosine up to the apex and another one down, of different lengths.
        apex = rng.uniform(0.4, 0.6)
        ends = apex - rng.uniform(0.25, 0.4), apex + rng.uniform(0.25, 0.4)
        curve = 0.5 + 0.5 * np.cos(np.pi * np.interp(time, [ends[0], apex, ends[1]], [-1, 0, 1]))
        strength = rng.uniform(*STRENGTH)
        for i, unit in enumerate(head.expression_names):
            share = EXPRESSIONS[name].get(unit.removesuffix("Left").removesuffix("Right"))
            if share is not None:
                expression[:, i] += strength * share * rng.uniform(0.8, 1.2) * curve

    lids = np.zeros(n)
    if rng.random() < 0.3:
        lids = np.exp(-0.5 * ((np.arange(n) - rng.uniform(0, n)) / 1.2) ** 2)
    gaze = 0.05 * smooth_noise(n, 0.7, rng, 2)
    eyes = _rotations(np.stack([gaze[0], gaze[1], np.zeros(n)], 1))
    pose = np.radians([4, 7, 3]) * rng.uniform(-1, 1, 3)  # pitch, yaw, roll of the whole clip
    angles = pose + np.radians([0.8, 1.2, 0.6]) * smooth_noise(n, 0.7, rng, 3).T
    R = AXES @ _rotations(angles)

    focal = 2.5 * size
    middle = head.landmarks(head.v_template[None])[0].mean(0).numpy()
    # The camera shows 32 cm at the face, which turns about its middle.
    place = np.array([0.0, 0.0, 0.32 * focal / size]) + rng.normal(0, 0.004, 3)
    t = place + 0.0008 * smooth_noise(n, 0.8, rng, 3).T - R @ middle
    still = np.tile(np.eye(3, dtype=np.float32), (n, 1, 1))
    return Track(
        head_model=head.name,
        image_size=np.array([size, size]),
        fps=FPS,
        K=np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], np.float32),
        names=np.array([f"{i:05d}.png" for i in range(n)]),
        valid=np.ones(n, bool),
        shape=shape,
        expression=np.clip(expression, 0, 1).astype(np.float32),
        R=R.astype(np.float32),
        t=t.astype(np.float32),
        neck=still,
        jaw=still,
        eyes=np.stack([eyes, eyes], 1).astype(np.float32),
        eyelids=np.stack([lids, lids], 1).astype(np.float32),
    )


def _rotations(vectors: np.ndarray) -> np.ndarray:
    return roma.rotvec_to_rotmat(torch.from_numpy(vectors)).numpy()


@torch.no_grad()
def render(folder: Path, head: HeadModel, track: Track, person: int, clip: int) -> None:
    """Write the track's frames as PNG: skin by `person`; light, wall and camera noise by `clip`."""
    rng = np.random.default_rng((clip, 5))
    size = int(track.image_size[0])
    albedo, light = linear_from_srgb(random_albedo(head, person)), random_light(clip)
    background = wall(size, clip)
    world_to_camera = torch.eye(4)
    world_to_camera[:3, :3] = torch.from_numpy(AXES)
    vertices = track.vertices(head) @ torch.from_numpy(AXES).float()
    for name, posed in zip(track.names, vertices):
        rgba = render_head(head, posed, world_to_camera, torch.from_numpy(track.K), size, albedo, light) / 255.0
        image = background * (1 - rgba[..., 3:]) + rgba[..., :3] * rgba[..., 3:]
        image = 255 * image + rng.normal(0, 1.5, image.shape)
        images.write_png(folder / str(name), np.clip(image + 0.5, 0, 255).astype(np.uint8))


def synthesise(
    folder: str | Path,
    train_people: int = 12,
    test_people: int = 5,
    clips: int = 10,
    frames: int = 12,
    size: int = 192,
    seed: int = 0,
    force: bool = False,
) -> dict[str, int | str]:
    """Write a data set in the challenge's layout, with labels, true parameters and an exp.yaml; returns a summary.

    People of the split `test` are not in the split `train`.

    Args:
        clips: sequences per person. frames: of each, at least 4. size: pixels per side. force: replace an earlier one.
    """
    folder = Path(folder)
    with runs.claim(folder, "feat-extract synth", force=force):
        return _write(folder, train_people, test_people, clips, frames, size, seed)


def _write(
    folder: Path, train_people: int, test_people: int, clips: int, frames: int, size: int, seed: int
) -> dict[str, int | str]:
    head = with_uv(load(None))
    rng = np.random.default_rng(seed)
    dataset = folder / DATASET
    rows: list[dict[str, str | int]] = []
    tracks = []
    for person in range(train_people + test_people):
        shape = (0.8 * rng.standard_normal(head.n_shape)).astype(np.float32)
        order = [CLASSES[(person + i) % len(CLASSES)] for i in range(clips)]  # every class as often as the others
        for clip, single in enumerate(order):
            pairs = [pair for pair in PAIRS if single in pair]
            paired = pairs and rng.random() < PAIR_SHARE
            labels = set(pairs[rng.integers(len(pairs))]) if paired else {single}
            name = f"p{person:02d}_{clip:02d}"
            number = seed * 100_000 + person * 1000 + clip
            tracks.append((name, person, number, random_track(head, shape, labels, frames, size, number)))
            split = "train" if person < train_people else "test"
            rows.append(
                {"sequence": name, "split": split, "identity": f"p{person:02d}"}
                | {label: int(label in labels) for label in CLASSES}
            )
    for name, person, number, track in progress(tracks, "rendering"):
        render(dataset / "original_image" / name, head, track, seed * 1000 + person, number)
        track.write(dataset / "tracks" / name / "track.npz")
    write_table(dataset / "labels.csv", rows)
    tests = [row for row in rows if row["split"] == "test"]
    rng.shuffle(tests)
    sample = [{"sequence": row["sequence"]} | dict.fromkeys(CLASSES, 0) for row in tests]
    write_table(folder / "sample_submission.csv", sample)
    config = {
        "dataset": DATASET,
        "prep_faces": {"size": 128, "margin": 0.0},
        "feat2d": {"backbone": "timm:tf_efficientnet_lite0", "size": 128},
        "feat3d": {"kind": "track", "input": "tracked"},
        "sequences": {"length": frames},
        # The tracks hold the truth: with feat3d it is no test. ImageNet's features see too little of small expressions.
        "model": {"streams": ["feat3d", "crops"]},
        "submit": {"sample": "sample_submission.csv"},
    }
    write_text(folder / "exp.yaml", yaml.safe_dump(config, sort_keys=False))
    return {"sequences": len(rows), "frames": len(rows) * frames, "test": len(tests), "folder": str(folder)}
