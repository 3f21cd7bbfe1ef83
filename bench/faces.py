"""Face detectors on this machine: speed, agreement, and how much smoothing steadies crops, in one run.

    python bench/faces.py                    astronaut and a drawn clip; writes docs/benchmarks-faces.md
    python bench/faces.py --clip me.mp4      also that video
    python bench/faces.py --overlays FOLDER  also pictures with the boxes and points of each detector
    python bench/faces.py --quick            few frames, prints only

face-alignment is measured where its weights are in PyTorch's cache.
"""

import argparse
import os
import platform
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from prep_faces.crop import CropConfig, place, steady_places
from prep_faces.detectors import DETECTORS, detect, prepare
from prep_faces.faces import Faces
from prep_faces.landmarks import choose_face, overlap
from prep_faces.video import decode
from recon4d import InputError, head, synthetic
from recon4d.color import linear_from_srgb
from recon4d.images import write_png

ROOT = Path(__file__).resolve().parent.parent
COLORS = {"mtcnn": (255, 60, 60), "dlib": (60, 255, 60), "mediapipe": (255, 220, 0), "face-alignment": (80, 120, 255)}


def drawn_clip(count: int, size: int = 360) -> tuple[list[np.ndarray], np.ndarray]:
    """The open head that turns before a wall: images (size, size, 3) uint8, true landmarks (N, 68, 2) in pixels."""
    model = head.load()
    albedo = linear_from_srgb(synthetic.random_albedo(model, 0))
    light = synthetic.random_light(0)
    background = synthetic.wall(size, 0) * 255
    K = torch.tensor([[2.2 * size, 0, size / 2], [0, 2.2 * size, size / 2], [0, 0, 1]])
    to_camera = torch.eye(4)
    to_camera[:3, :3] = torch.diag(torch.tensor([1.0, -1, -1]))
    to_camera[2, 3] = 0.8
    images, landmarks = [], []
    for yaw in 0.35 * np.sin(np.linspace(0, 2 * np.pi, count)):
        turn = torch.tensor([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]).float()
        vertices = model.v_template @ turn.T
        rgba = synthetic.render_head(model, vertices, to_camera, K, size, albedo, light).astype(np.float32)
        alpha = rgba[..., 3:] / 255
        images.append(np.rint(rgba[..., :3] * alpha + background * (1 - alpha)).astype(np.uint8))
        points = model.landmarks(vertices[None])[0] @ to_camera[:3, :3].T + to_camera[:3, 3]
        pixels = points @ K.T
        landmarks.append((pixels[:, :2] / pixels[:, 2:]).numpy())
    return images, np.array(landmarks)


def usable(names: tuple[str, ...]) -> list[str]:
    """The detectors whose weights are here."""
    found = []
    for name in names:
        try:
            prepare(name, "cpu")
            found.append(name)
        except InputError as error:
            print(f"without {name}: {error}")
    return found


def followed(images: list[np.ndarray], detector: str) -> tuple[list[Faces | None], float]:
    """The one person's face in each image with its 68 points, and the images per second of finding boxes."""
    detect(images[:1], detector)
    start = time.perf_counter()
    for first in range(0, len(images), 8):
        detect(images[first : first + 8], detector)
    seconds = time.perf_counter() - start
    people: list[Faces | None] = []
    previous = None
    for faces in detect(images, detector, points="ibug"):
        chosen = choose_face(faces, previous, -np.inf)
        if chosen is None:
            people.append(None)
            continue
        previous = faces.boxes[chosen]
        people.append(Faces(*(value[[chosen]] for value in (faces.boxes, faces.scores, faces.points, faces.landmarks))))
    return people, len(images) / seconds


def agreement(a: list[Faces | None], b: list[Faces | None]) -> tuple[float, float, float]:
    """Mean IoU of boxes; mean distance of the five and of the 68 points, % of the distance between the pupils."""
    rows = []
    for x, y in zip(a, b):
        if x is not None and y is not None:
            pupils = np.linalg.norm(y.points[0, 0] - y.points[0, 1]) / 100
            five = np.linalg.norm(x.points[0] - y.points[0], axis=1).mean() / pupils
            many = np.linalg.norm(x.landmarks[0] - y.landmarks[0], axis=1).mean() / pupils
            rows.append((overlap(x.boxes[0], y.boxes[0]), five, many))
    return tuple(np.mean(rows, axis=0)) if rows else (np.nan,) * 3


def error(people: list[Faces | None], truth: np.ndarray) -> float:
    """Mean distance from the true 68 points, % of the distance between the pupils."""
    rows = []
    for faces, points in zip(people, truth):
        if faces is not None:
            pupils = np.linalg.norm(points[36:42].mean(0) - points[42:48].mean(0)) / 100
            rows.append(np.linalg.norm(faces.landmarks[0] - points, axis=1).mean() / pupils)
    return float(np.mean(rows)) if rows else np.nan


def jitter(people: list[Faces | None]) -> tuple[float, float]:
    """Root mean square of the second difference of crop centres, % of the crop's side: as found, and smoothed."""
    config = CropConfig()
    empty = np.full(4, np.nan)
    places = np.array([empty if p is None else place(p.points[0], p.boxes[0], config) for p in people])
    answers = []
    for smooth in (0.0, config.smooth):
        steady = steady_places(places, smooth)
        jumps = np.linalg.norm(np.diff(steady[:, :2], 2, axis=0), axis=1)
        answers.append(100 * float(np.sqrt((jumps**2).mean())) / float(np.exp(steady[:, 2]).mean()))
    return answers[0], answers[1]


def overlay(image: np.ndarray, found: dict[str, Faces | None]) -> np.ndarray:
    """`image`, twice as large, with each detector's box and 68 points, its five points as crosses."""
    picture = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    for name, faces in found.items():
        if faces is None:
            continue
        x0, y0, x1, y1 = np.rint(2 * faces.boxes[0]).astype(int).tolist()
        cv2.rectangle(picture, (x0, y0), (x1, y1), COLORS[name], 2)
        for x, y in np.rint(2 * faces.landmarks[0] - 0.5).astype(int).tolist():
            cv2.circle(picture, (x, y), 2, COLORS[name], -1, cv2.LINE_AA)
        for x, y in np.rint(2 * faces.points[0] - 0.5).astype(int).tolist():
            cv2.drawMarker(picture, (x, y), COLORS[name], cv2.MARKER_CROSS, 14, 2)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clip", type=Path, help="a video of one person")
    parser.add_argument("--overlays", type=Path, help="write pictures there")
    parser.add_argument("--quick", action="store_true", help="few frames; print, write no page")
    options = parser.parse_args()
    count = 8 if options.quick else 60
    drawn, truth = drawn_clip(count)
    sources = {"astronaut": [skimage.data.astronaut()] * (1 if options.quick else 8), "drawn clip": drawn}
    if options.clip is not None:
        frames = islice(decode(options.clip), count)
        sources["video"] = [item[1] for item in frames if not isinstance(item, InputError)]
    names = usable(DETECTORS)
    speed, pairs, steadiness = [], [], []
    for source, images in sources.items():
        height, width = images[0].shape[:2]
        found, rates = {}, {}
        for name in names:
            found[name], rates[name] = followed(images, name)
            faces = sum(person is not None for person in found[name])
            true = f"{error(found[name], truth):.1f}" if source == "drawn clip" else ""
            ratio = rates[name] / rates[names[0]]
            speed.append(
                f"| {source} | {width}x{height} | {name} | {faces} of {len(images)} | {rates[name]:.1f} | {ratio:.2f} "
                f"| {true} |"
            )
            if len(images) > 2 and source != "astronaut":
                before, after = jitter(found[name])
                steadiness.append(f"| {source} | {name} | {before:.2f} | {after:.3f} | {before / after:.0f} |")
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                iou, five, many = agreement(found[first], found[second])
                pairs.append(f"| {source} | {first}, {second} | {iou:.2f} | {five:.1f} | {many:.1f} |")
        if options.overlays is not None:
            for i in sorted({0, len(images) // 3, 2 * len(images) // 3}):
                picture = overlay(images[i], {name: found[name][i] for name in names})
                write_png(options.overlays / f"{source} {i:03d}.png", picture)
    threads = torch.get_num_threads()
    text = "\n".join(
        [
            "# Face detectors",
            "",
            f"Measured by `python bench/faces.py` on {platform.machine()}, {os.cpu_count()} cores, PyTorch with "
            f"{threads} thread(s); the load average was {os.getloadavg()[0]:.1f} when it ended: where that is not far "
            "below the number of cores, speeds are too low. `astronaut` is scikit-image's picture, `drawn clip` the "
            "open head turning by 20 degrees to each side before a wall."
            + ("" if options.clip is None else " `video` is a portrait clip of one person."),
            "",
            "## Speed",
            "",
            "Images per second, in batches of 8, in one process (dlib: one thread), boxes and what comes with them: "
            f"five points from MTCNN, 68 from dlib. The ratio is to {names[0]}. The error is that of the 68 points "
            "(MTCNN: dlib's, in its boxes) from those of the drawn head, % of the distance between the pupils.",
            "",
            "| images | size | detector | found | images/s | ratio | error |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: |",
            *speed,
            "",
            "## Agreement",
            "",
            "Intersection over union of the boxes (dlib draws a square without the forehead), and the mean distance of "
            "points, % of the distance between the pupils.",
            "",
            "| images | detectors | boxes, IoU | five points | 68 points |",
            "| --- | --- | ---: | ---: | ---: |",
            *pairs,
            "",
            "## Steadiness of crops",
            "",
            "Root mean square of the second difference of a crop's centre from frame to frame, % of its side, with "
            "`smooth: 0` and with the default, 2 frames.",
            "",
            "| images | detector | as found | smoothed | ratio |",
            "| --- | --- | ---: | ---: | ---: |",
            *steadiness,
            "",
        ]
    )
    print(text)
    if not options.quick:
        (ROOT / "docs/benchmarks-faces.md").write_text(text)


if __name__ == "__main__":
    main()
