"""Errors of flame-encoder's tracker on drawn clips whose truth is known, as a table for docs/benchmarks-track.md.

uv run --all-packages python bench/track.py                  # minutes on two cores; writes the page
uv run --all-packages python bench/track.py --quick          # a short clip, one turn, nothing written
uv run --all-packages python bench/track.py --clip clip      # a real clip: frames/ and landmarks/ in a folder
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import roma
import torch
from flame_encoder.encoder import trained
from flame_encoder.frames import frame_paths
from flame_encoder.tracker import contour, initial, observations, photometric, stream
from flame_encoder.tracker.clip import fit
from flame_encoder.tracker.points import FACING
from flame_encoder.tracker.problem import Options, Problem
from gaussian_avatar.motions import from_track
from gaussian_avatar.synth import random_parameters
from recon4d import head as heads
from recon4d import synthetic
from recon4d.color import linear_from_srgb
from recon4d.files import InputError
from recon4d.formats import arkit
from recon4d.formats.track import Track, join

ROOT = Path(__file__).resolve().parents[1]
SIZE, FPS, NOISE, MISSING = 256, 25.0, 0.01, 0.05
METHODS = ("landmarks", "photometric", "encoder, photometric", "stream", "encoder, stream")
COLUMNS = {
    "mm": "vertices, mm",
    "turn": "pose, degrees",
    "shake": "pose jitter, degrees",
    "px": "slip, px",
    "expression": "expression",
    "jaw": "jaw, degrees",
    "gaze": "gaze, degrees",
    "focal": "focal length",
    "seconds": "s",
}


def make_clip(model, folder: Path, turn: float, n: int, seed: int) -> tuple[Track, torch.Tensor]:
    """A clip whose head turns by up to `turn` degrees, as frames in a folder; its truth, and vertices in the camera."""
    truth = random_parameters(model, n, SIZE, FPS, seed)
    vectors = roma.rotmat_to_rotvec(FACING.T @ torch.from_numpy(truth.R))
    vectors = vectors * (np.radians(turn) / vectors[:, 1].abs().max())
    truth = replace(truth, R=(FACING @ roma.rotvec_to_rotmat(vectors)).numpy())
    motion = from_track(truth, model)
    albedo, light = linear_from_srgb(synthetic.random_albedo(model, seed)), synthetic.random_light(seed)
    wall = synthetic.wall(SIZE, seed)
    folder.mkdir(parents=True)
    for name, vertices in zip(truth.names, motion.vertices):
        image = synthetic.render_head(
            model, vertices, motion.camera.world_to_camera, motion.camera.K, SIZE, albedo, light
        )
        alpha = image[..., 3:] / 255.0
        cv2.imwrite(
            str(folder / str(name)), (255 * wall * (1 - alpha) + image[..., :3] * alpha).astype(np.uint8)[..., ::-1]
        )
    E = motion.camera.world_to_camera
    return truth, motion.vertices @ E[:3, :3].T + E[:3, 3]


def exact_landmarks(model, truth: Track, vertices: torch.Tensor, folder: Path, seed: int) -> None:
    """The model's own landmarks, the outline slid, with noise of 1 % of the distance between the outer eye corners."""
    K = torch.from_numpy(truth.K)

    def pixels(points: torch.Tensor) -> torch.Tensor:
        return points[..., :2] / points[..., 2:] * K[0, 0] + K[:2, 2]

    faces, bary = contour.candidates(model)
    outline = pixels((vertices[:, model.faces[faces]] * bary[..., None]).sum(3))
    chosen = contour.visible(outline)
    points = pixels(model.landmarks(vertices))
    points[:, :17] = outline.gather(2, chosen[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    eyes = (points[:, 36] - points[:, 45]).norm(dim=-1)[:, None, None]
    points = points.numpy() + NOISE * eyes.numpy() * np.random.default_rng(seed).normal(size=points.shape)
    folder.mkdir()
    for name, face in zip(truth.names, points):
        np.save(folder / f"{Path(str(name)).stem}.npy", face.astype(np.float32))


def drop_some(folder: Path, seed: int) -> None:
    files = sorted(folder.glob("*.npy"))
    for i in np.random.default_rng(seed).choice(len(files), round(MISSING * len(files)), replace=False):
        files[i].unlink()


def run(method: str, model, frames: Path, landmarks: Path) -> tuple[Track, dict, float]:
    """The track, its figures, and the seconds it took (CPU time of this process)."""
    seen = observations.read(frames, landmarks, FPS)
    start = time.process_time()
    if method.endswith("stream"):
        arriving = stream.arrivals(frames, landmarks)
        if method.startswith("encoder"):
            network = trained.load()
            arriving = (initial.confirmed_frame(shown, network, frames, None) for shown in arriving)
        first = min(45, len(seen.names) // 3)
        parts = [part for part, _ in stream.fit(model, arriving, FPS, Options(), first)]
        return join(parts), {}, time.process_time() - start
    paths = frame_paths(frames)
    begin = Problem.start
    if method.startswith("encoder"):
        network = trained.load()
        seen, _ = initial.confirmed(seen, network, paths, 2.0 * max(seen.image_size))
        begin = partial(initial.encoded, encoder=network, frames=paths)
    found, figures = fit(model, seen, None, paths if "photometric" in method else None, begin)
    return found, figures, time.process_time() - start


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(torch.rad2deg(roma.rotmat_geodesic_distance(torch.from_numpy(a), torch.from_numpy(b))).mean())


def errors(model, found: Track, truth: Track, vertices: torch.Tensor) -> dict[str, float]:
    """What is wrong with a track. The face's vertices are aligned rigidly in each frame; the constant part of the
    rotation and of the image error belongs to the identity and is left out of pose and slip."""
    keep = model.regions["face"]
    motion = from_track(found, model)
    E = motion.camera.world_to_camera
    a, b = (motion.vertices @ E[:3, :3].T + E[:3, 3])[:, keep].double(), vertices[:, keep].double()
    R, t = roma.rigid_points_registration(a, b)
    vectors = roma.rotmat_to_rotvec(R)
    second = vectors[2:] - 2 * vectors[1:-1] + vectors[:-2]
    slip = a[..., :2] / a[..., 2:] * found.K[0, 0] - b[..., :2] / b[..., 2:] * truth.K[0, 0]
    spread = vectors - vectors.median(0).values
    return {
        "mm": 1000 * float((a @ R.transpose(1, 2) + t[:, None] - b).norm(dim=-1).mean()),
        "turn": float(torch.rad2deg(spread.norm(dim=1).square().mean().sqrt())),
        "shake": float(torch.rad2deg(second.norm(dim=1).square().mean().sqrt())),
        "px": float((slip - slip.median(0).values).norm(dim=-1).mean()),
        "expression": float(np.abs(found.expression - truth.expression).mean()),
        "jaw": angle(found.jaw, truth.jaw),
        "gaze": angle(found.eyes, truth.eyes),
        "focal": float(found.K[0, 0] / truth.K[0, 0]),
    }


def table(rows: list[dict]) -> str:
    heads_ = ["turn", "landmarks", "method", *COLUMNS.values()]
    lines = ["| " + " | ".join(heads_) + " |", "| ---: | --- | --- |" + " ---: |" * len(COLUMNS)]
    for row in rows:
        digits = [f"{row[key]:.3f}" if key == "expression" else f"{row[key]:.2f}" for key in COLUMNS]
        numbers = ["" if number == "nan" else number for number in digits]
        lines.append("| " + " | ".join([f"{row['degrees']:.0f}°", row["source"], row["method"], *numbers]) + " |")
    return "\n".join(lines)


def synthetic_rows(turns: tuple[float, ...], n: int, methods: tuple[str, ...], seed: int = 5) -> list[dict]:
    model, rows = heads.load(), []
    with tempfile.TemporaryDirectory() as scratch:
        for turn in turns:
            clip = Path(scratch) / f"turn{turn:.0f}"
            truth, vertices = make_clip(model, clip / "frames", turn, n, seed)
            exact_landmarks(model, truth, vertices, clip / "exact", seed)
            for detector in ("dlib", "mediapipe"):
                command = ["prep-faces", "landmarks", str(clip / "frames"), "--out", str(clip / detector)]
                command += ["--detector", detector, "--points", "dense" if detector == "mediapipe" else "ibug"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for source, folder in (
                ("exact + 1 % noise", clip / "exact"),
                ("dlib", clip / "dlib" / "landmarks"),
                ("mediapipe", clip / "mediapipe" / "landmarks"),
            ):
                drop_some(folder, seed)
                for method in methods:
                    row = {"degrees": turn, "source": source, "method": method}
                    try:
                        found, _, seconds = run(method, model, clip / "frames", folder)
                        row |= {"seconds": seconds} | errors(model, found, truth, vertices)
                    except InputError:  # a stream whose detector sees nobody in its first frames
                        row |= dict.fromkeys(COLUMNS, float("nan"))
                    rows.append(row)
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def photometric_error(model, frames: list[Path], found: Track, every: int = 6) -> float:
    """Mean absolute difference, of 1, of the drawn head and the frame within the outline of the landmarks."""
    surface, vertices = photometric.Surface(model), found.vertices(model)
    windows = photometric.cut(frames, found, vertices)
    looks = photometric.looks(surface, windows, found, vertices)
    total = []
    for i in range(0, len(frames), every):
        drawing, rast = photometric.draw(surface, looks, windows, found, vertices, i)
        mask = rast.mask[0].numpy()
        points = model.landmarks(vertices[i : i + 1])[0] @ windows.K(found.K, i).T
        hull = cv2.convexHull((points[:, :2] / points[:, 2:]).round().int().numpy())
        face = cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), hull, 1).astype(bool) & mask
        total.append(np.abs(drawing - windows.images[i] / 255.0)[face].mean())
    return float(np.mean(total))


def beside_mediapipe(model, found: Track, table: Path) -> dict[str, float]:
    """Correlation over time of a track's activations with MediaPipe's blendshapes, of those that move in a clip."""
    records = {r["file"]: r for r in map(json.loads, table.read_text().splitlines()) if "blendshapes" in r}
    names = [name for name in map(str, found.names) if name in records]
    ours = arkit.of_track(found.take([list(found.names).index(name) for name in names]), model).values
    theirs = np.array([[records[name]["blendshapes"].get(key, 0) for key in arkit.NAMES] for name in names])
    moving = (theirs.std(0) > 0.05) & (ours.std(0) > 0.01)
    return {
        arkit.NAMES[k]: round(float(np.corrcoef(ours[:, k], theirs[:, k])[0, 1]), 2) for k in np.flatnonzero(moving)
    }


def real_rows(clip: Path) -> list[dict]:
    model, rows = heads.load(), []
    for method in ("landmarks", "photometric", "encoder, photometric"):
        found, figures, seconds = run(method, model, clip / "frames", clip / "landmarks")
        error = photometric_error(model, frame_paths(clip / "frames"), found)
        rows.append({"method": method, "seconds": round(seconds, 1)} | figures | {"photometric_error": error})
        rows[-1]["beside_mediapipe"] = beside_mediapipe(model, found, clip / "landmarks.jsonl")
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short clip, nothing written")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--clip", type=Path, help="folder with frames/ and landmarks/ of a real clip")
    arguments = parser.parse_args()
    if arguments.clip:
        print(json.dumps(real_rows(arguments.clip), indent=2))
        return
    turns = (25.0,) if arguments.quick else (10.0, 25.0, 40.0, 60.0)
    rows = synthetic_rows(turns, 16 if arguments.quick else arguments.frames, METHODS)
    print(table(rows))
    if not arguments.quick:
        page = (ROOT / "docs" / "benchmarks-track.md").read_text()
        before, _, after = page.partition("<!-- table: made by bench/track.py -->\n")
        after = after.partition("<!-- end of table -->")[2]
        where = (
            f"{arguments.frames} frames; {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}."
        )
        text = f"<!-- table: made by bench/track.py -->\n{where}\n\n{table(rows)}\n\n<!-- end of table -->"
        (ROOT / "docs" / "benchmarks-track.md").write_text(before + text + after)


if __name__ == "__main__":
    main()
