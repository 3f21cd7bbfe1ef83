"""Mattes against truth: GrabCut, each network alone, live and matting, on drawn heads and green-screen clips.

    python bench/matte.py                       drawn heads; prints the table and writes docs/benchmarks-matte.md
    python bench/matte.py --green FOLDER        also clips before a green screen, keyed, before other backgrounds
    python bench/matte.py --sheets FOLDER       also pictures of what each method keeps, and of its error
    python bench/matte.py --chosen              the captures that settings were chosen on, instead of the others
    python bench/matte.py --frames 8 --quick    few frames, prints only

Errors are counted in a band around the true outline, above the chin, so that where a method cuts the neck does not
count. Gradient error: Rhemann et al. 2009. Flicker: mean change of alpha from frame to frame in the band, beyond
the truth's own, after the optical flow of the person before grey is taken out, in thousandths.
"""

import argparse
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from matte_truth import Clip, drawn_clip, keyed_clip
from prep_faces import networks
from prep_faces.affine import invert, warp
from prep_faces.clipmatte import DETAIL, Frame, Way, live_cover, look_at, matte_clip
from prep_faces.cuts import cut_clip
from prep_faces.grabcut import reduced_frame
from prep_faces.headshape import HeadShape
from prep_faces.image_files import ImageFile
from recon4d import images
from recon4d.parallel import cores
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parent.parent
CHOSEN = (("coffee", 1), ("noise", 2), ("rocket", 3))  # backgrounds and seeds that settings were chosen on
SHOWN = (("motorcycle", 4), ("chelsea", 5), ("wall", 6))
BAND = 0.08  # half width, in face widths
Method = Callable[[Clip], list[np.ndarray]]


def through_files(clip: Clip, work: Callable[[list[Frame]], object]) -> list[np.ndarray]:
    """Alphas of a way of the package that goes from files to files."""
    folder = Path(tempfile.mkdtemp())
    frames = []
    for i, (image, shape) in enumerate(zip(clip.images, clip.shapes)):
        path = folder / f"{i:05d}.png"
        images.write(path, image)
        frames.append(Frame(ImageFile(path, path.name, path.stem), shape, folder / f"out{i}.png", True))
    for _ in work(frames):  # type: ignore[attr-defined]
        pass
    found = [
        images.read(frame.target, "RGBA")[..., 3].astype(np.float32) / 255
        if frame.target.exists()
        else np.zeros(clip.truth[0].shape, np.float32)
        for frame in frames
    ]
    shutil.rmtree(folder)
    return found


def alone(look: Callable[[np.ndarray], np.ndarray], clip: Clip) -> list[np.ndarray]:
    """What one network says of the part around the head."""
    found = []
    for image, shape in zip(clip.images, clip.shapes):
        height, width = image.shape[:2]
        to_small, rows, columns = reduced_frame(shape, height, width, DETAIL)
        answer = cv2.resize(look(warp(image, to_small, rows, columns)), (columns, rows))
        found.append(warp(answer, invert(to_small), height, width))
    return found


def methods(workers: int) -> dict[str, Method]:
    def ours(clip: Clip, method: str) -> list[np.ndarray]:
        return through_files(clip, lambda frames: matte_clip(frames, Way(method, "portrait", 2), workers))

    return {
        "GrabCut": lambda clip: through_files(clip, lambda frames: cut_clip(frames, None, 2, workers)),
        "U2NETP alone": partial(alone, networks.salient),
        "selfie alone": partial(alone, networks.person),
        "live": partial(ours, method="live"),
        "matting": partial(ours, method="matting"),
    }


def band(truth: np.ndarray, shape: HeadShape) -> np.ndarray:
    """The pixels that count, (H, W) bool."""
    reach = max(2, round(BAND * shape.width))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    outer = cv2.dilate((truth > 0.02).astype(np.uint8), brush) > 0
    inner = cv2.erode((truth > 0.98).astype(np.uint8), brush, borderValue=1) > 0
    y, x = np.mgrid[: truth.shape[0], : truth.shape[1]] + 0.5
    above = (np.stack([x, y], -1) - shape.middle) @ shape.up / shape.width
    return outer & ~inner & (above > -shape.chin)


def slope(alpha: np.ndarray) -> np.ndarray:
    return np.hypot(gaussian_filter(alpha, 1.4, order=(0, 1)), gaussian_filter(alpha, 1.4, order=(1, 0)))


def flows(clip: Clip) -> list[np.ndarray]:
    """(H, W, 2): where each pixel of a frame was in the frame before."""
    grey = [cv2.cvtColor(front, cv2.COLOR_RGB2GRAY) for front in clip.fronts]
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return [finder.calc(after, before, None) for before, after in pairwise(grey)]


def measures(clip: Clip, alphas: list[np.ndarray], moved: list[np.ndarray]) -> list[float]:
    """SAD / 1000 a frame, MSE, gradient error / 1000 a frame, flicker x 1000; all in the band."""
    rows, changes = [], []
    bands = [band(truth, shape) for truth, shape in zip(clip.truth, clip.shapes)]
    for alpha, truth, where in zip(alphas, clip.truth, bands):
        error = (alpha - truth)[where]
        rows.append(
            [np.abs(error).sum() / 1e3, (error**2).mean(), ((slope(alpha) - slope(truth))[where] ** 2).sum() / 1e3]
        )
    height, width = clip.truth[0].shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    # The truth's own change is not counted. No flow follows drawn hair: where a head stands still, only that counts.
    errors = [alpha - truth for alpha, truth in zip(alphas, clip.truth)]
    still = [np.array_equal(before, after) for before, after in zip(clip.truth, clip.truth[1:])]
    for before, after, flow, where, stands in zip(errors, errors[1:], moved, bands[1:], still):
        if any(still) and not stands:
            continue
        flow = np.zeros_like(flow) if stands else flow
        there = cv2.remap(before, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        changes.append(1e3 * np.abs(after - there)[where].mean())
    return [*np.mean(rows, 0).tolist(), float(np.mean(changes)) if changes else float("nan")]


def sheet(clip: Clip, found: dict[str, list[np.ndarray]], i: int) -> np.ndarray:
    """One frame before green as each method cuts it."""
    green = np.array([60, 200, 80.0])
    cells = [clip.images[i]]
    for name, alphas in {"truth": clip.truth, **found}.items():
        alpha = alphas[i][..., None]
        mixed = (clip.images[i] * alpha + green * (1 - alpha)).astype(np.uint8)
        cells.append(cv2.putText(mixed, name, (6, 20), 0, 0.6, (255, 255, 0), 1, cv2.LINE_AA))
    return np.hstack([cv2.resize(cell, (360, 360), interpolation=cv2.INTER_AREA) for cell in cells])


def live_rate(clip: Clip, side: int = 256) -> float:
    """Frames per second of live mattes on one core, of pictures of `side` pixels that are in memory."""
    cv2.setNumThreads(1)
    height, width = clip.images[0].shape[:2]
    pictures = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in clip.images]
    whole = clip.shapes[0].image_size == (width, height) and width == height
    shapes = [shape.fitted(side, side) for shape in clip.shapes] if whole else []
    way = Way("live", "portrait", 2)
    before: list = []
    start = time.perf_counter()
    for _ in range(4):
        for picture, shape in zip(pictures, shapes):
            here = look_at(picture, shape, way)
            live_cover(here, before)
            before = [here, *before][:2]
    return 4 * len(shapes) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--green", type=Path, help="a folder of clips before a green screen, or one of them")
    parser.add_argument("--sheets", type=Path, help="write pictures there")
    parser.add_argument("--frames", type=int, default=24, help="of each clip")
    parser.add_argument("--chosen", action="store_true", help="the captures that settings were chosen on")
    parser.add_argument("--only", help="these methods, with commas between")
    parser.add_argument("--quick", action="store_true", help="print, write no page")
    options = parser.parse_args()
    places = CHOSEN if options.chosen else SHOWN
    clips = [drawn_clip(where, seed, options.frames) for where, seed in places]
    drawn = clips[0]
    if options.green is not None:
        paths = sorted(options.green.glob("*.mp4")) if options.green.is_dir() else [options.green]
        clips += [keyed_clip(path, where, options.frames) for path in paths for where, _ in places]
    chosen = methods(cores())
    if options.only:
        chosen = {name: chosen[name] for name in options.only.split(",")}
    lines, totals = [], {name: [] for name in ("truth", *chosen)}
    for clip in clips:
        moved = flows(clip)
        found = {name: method(clip) for name, method in chosen.items()}
        for name, alphas in {"truth": clip.truth, **found}.items():
            row = measures(clip, alphas, moved)
            totals[name].append(row)
            lines.append(f"| {clip.name} | {name} | {row[0]:.2f} | {row[1]:.4f} | {row[2]:.3f} | {row[3]:.1f} |")
            print(lines[-1], flush=True)
        if options.sheets is not None:
            pictures = [sheet(clip, found, i) for i in sorted({0, len(clip.images) // 2, len(clip.images) - 1})]
            images.write_png(options.sheets / f"{clip.name}.png", np.vstack(pictures))
    for name, rows in totals.items():
        row = np.mean(rows, 0)
        lines.append(f"| all | {name} | {row[0]:.2f} | {row[1]:.4f} | {row[2]:.3f} | {row[3]:.1f} |")
        print(lines[-1])
    rate = live_rate(drawn)
    text = "\n".join(
        [
            "# Mattes",
            "",
            f"Measured by `python bench/matte.py` on {platform.machine()}, {os.cpu_count()} cores, {options.frames} "
            "frames a clip. Drawn: the open head with 2,500 drawn hairs, which turns and then stands still. Others "
            "are green-screen clips, keyed by colour, before another background. Settings were chosen on other "
            "backgrounds (`--chosen`). Errors in a band of 0.08 face widths on each side of the outline, above the "
            "chin: sum of absolute differences (thousands a frame), mean squared error, gradient error (thousands a "
            "frame), and flicker: the mean change of alpha from frame to frame after optical flow is taken out, "
            "beyond the truth's own (x 1000).",
            "",
            "| clip | method | SAD | MSE | gradient | flicker |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
            *lines,
            "",
            f"Live, {256} pixels, one core: {rate:.0f} frames a second.",
            "",
        ]
    )
    print(f"live: {rate:.0f} frames a second on one core")
    if not options.quick:
        (ROOT / "docs/benchmarks-matte.md").write_text(text)


if __name__ == "__main__":
    main()
