"""Measure head avatars: ablations, online against offline, speed, and a long stream. Each part prints Markdown.

    python bench/avatar.py ablations --data DATA/SUBJECT --images 10000
    python bench/avatar.py online --data DATA/SUBJECT --images 10000
    python bench/avatar.py speed
    python bench/avatar.py soak --minutes 30

Without --data, a synthetic capture is made (`gaussian-avatar synth`). docs/benchmarks-avatar.md gathers the results.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

import numpy as np
import recon4d  # noqa: F401 (before torch, whose threads it tames)
import torch
from gaussian_avatar import avatars, captures, learners, motions, online, streams
from gaussian_avatar.config import load_config
from gaussian_avatar.learners import Batch

CODE = "import sys; from gaussian_avatar.cli import main; main(sys.argv[1:])"
CPU = torch.device("cpu")

ABLATIONS = {
    "all of it": [],
    "without colour initialisation": ["train.initial_colours=false"],
    "without the basis": ["train.blend_start=1000000000"],
    "K = 5": ["model.basis=5"],
    "K = 10": ["model.basis=10"],
    "K = 40": ["model.basis=40"],
    "with pose correction in training": ["train.refine_pose=true"],
    "unseen Gaussians hidden": ["model.fill_unseen=false"],
    "both sides drawn": ["model.one_sided=false"],
    "without SSIM in the loss": ["train.losses.ssim=0"],
    "mask in the loss, weight 0.2": ["train.losses.alpha=0.2"],
    "basis held back ten times more": ["train.losses.basis=0.03"],
    "without priors": [f"train.losses.{name}=0" for name in ("offset", "size", "cover", "smooth", "basis")],
}


def command(*args: object) -> dict:
    """The JSON result of a gaussian-avatar command in a process of its own."""
    done = subprocess.run([sys.executable, "-c", CODE, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"gaussian-avatar {args[0]} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def words(overrides: list[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def subject(options: argparse.Namespace, scratch: Path, *synth: object) -> tuple[Path, str]:
    """The folder of subjects and the subject's name; a synthetic one where none is given."""
    if options.data is not None:
        return options.data.parent, options.data.name
    command("synth", scratch / "data", "--subject", "synthetic", *synth)
    return scratch / "data", "synthetic"


def where(data: Path, name: str, work: str, scratch: Path) -> list[object]:
    return ["--data-dir", data, "--subject", name, "--work-name", work, "--output-dir", scratch / "output"]


def schedule(images: int) -> list[str]:
    """cpu-quick's schedule for another number of images."""
    return [
        f"train.iterations={images}",
        f"train.rates.position_images={images}",
        "train.preview_seconds=0",
        "data.crop=false",
    ]


def ablations(options: argparse.Namespace, scratch: Path) -> None:
    data, name = subject(options, scratch)
    size = [f"data.image_size={options.size}", *options.set]
    print(f"\n{options.images} images of {options.size} pixels each, cpu-quick, held-out frames inside the mask.\n")
    print("| variant | PSNR | SSIM | whole image PSNR |\n| --- | ---: | ---: | ---: |", flush=True)
    for i, (variant, overrides) in enumerate(ABLATIONS.items()):
        place = where(data, name, f"v{i}", scratch)
        command("train-offline", *place, "--preset", "cpu-quick", *words(schedule(options.images) + size + overrides))
        found = command("metrics", *place)
        print(f"| {variant} | {found['psnr']:.2f} | {found['ssim']:.4f} | {found['full_psnr']:.2f} |", flush=True)


def online_and_offline(options: argparse.Namespace, scratch: Path) -> None:
    """The same number of images, from a stream and from shuffled passes over the whole clip.

    Streams go by work, not by the clock, so that the machine does not matter; the pace that it can keep is the
    images per second that it learns from, divided by the images per frame.
    """
    data, name = subject(options, scratch, "--motion", "frontal-then-turn", "--frames", 160)
    size = [f"data.image_size={options.size}", *options.set]
    frames = command("import", data / name)["frames"]
    arriving = frames - max(1, round(0.15 * frames))
    pace = options.images / arriving
    after = round((options.images - 5 * arriving) / 10)
    stream = ["train-online", "--preset", "cpu-online", *words([*size, "train.preview_seconds=0"])]
    runs_: dict[str, list[object]] = {
        "offline": ["train-offline", "--preset", "cpu-quick", *words(schedule(options.images) + size)],
        f"online, {pace:.0f} images per frame": [*stream, "--images-per-frame", pace],
        "online, 5 images per frame": [*stream, "--images-per-frame", 5],
        f"the same and {after} steps after it": [*stream, "--images-per-frame", 5, "--post-steps", after],
        f"online, {pace:.0f} images per frame, local pool only": [
            *(*stream, "--images-per-frame", pace),
            *words(["online.force_local=true"]),
        ],
    }
    print(f"\n{frames} frames of which {arriving} are learned from, {options.size} pixels.\n")
    print("| training | images | PSNR, the end (held out) | SSIM, the end | PSNR, first quarter | CPU seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for i, (variant, args) in enumerate(runs_.items()):
        place = where(data, name, f"o{i}", scratch)
        before = _child_seconds()
        result = command(args[0], *place, *args[1:])
        seconds = _child_seconds() - before
        late = command("metrics", *place)
        command("metrics", *place, "--split", 0, "--force")
        with np.load(scratch / "output" / name / f"o{i}" / "metrics.npz") as values:
            early = values["psnr"][: frames // 4].mean()
        images = result["images"] + result.get("post_images", 0)
        print(
            f"| {variant} | {images} | {late['psnr']:.2f} | {late['ssim']:.4f} | {early:.2f} | {seconds:.0f} |",
            flush=True,
        )


def _child_seconds() -> float:
    """CPU seconds of all commands that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def speed(options: argparse.Namespace, scratch: Path) -> None:
    """Images learned from and frames rendered per second, and which part of a step takes which share."""
    print("\n| pixels | Gaussians | training, images per second | rendering, frames per second |")
    print("| ---: | ---: | ---: | ---: |", flush=True)
    for size in (256, 512):
        for tex_size in (128, 256):
            _speed_row(size, tex_size, options, scratch)


def _speed_row(size: int, tex_size: int, options: argparse.Namespace, scratch: Path) -> None:
    folder = scratch / "data" / f"s{size}"
    if not folder.exists():
        command("synth", folder.parent, "--subject", folder.name, "--size", size, "--frames", 40)
    config = load_config("cpu-quick", [f"data.image_size={size}", f"model.tex_size={tex_size}"])
    head = motions.load_head(None)
    capture = captures.open_capture(folder, size, lambda _: None)
    motion = motions.from_track(capture.track, head)
    images = captures.preload(capture, np.arange(len(capture)))
    trained = learners.new(config, head, motion.camera, motion.inputs.shape[1], 0, CPU)

    def learn(step: int) -> None:
        chosen = torch.arange(10) * 4 + step % 4
        batch = Batch(motion.vertices[chosen], motion.inputs[chosen], images[chosen], torch.rand(10, 3))
        learners.step(trained, batch, 1000 + 10 * step, 0.1, slice(None) if step < 4 else None)

    def draw(step: int) -> None:
        chosen = torch.arange(8) * 5 + step % 5
        with torch.no_grad():
            splats, _ = avatars.deform(
                trained.avatar,
                head,
                motion.vertices[chosen],
                motion.inputs[chosen],
                motion.camera.world_to_camera,
                True,
                True,
            )
            avatars.rasterize(splats, motion.camera)

    training, drawing = (count / _seconds(action, options.repetitions) for action, count in ((learn, 10), (draw, 8)))
    print(f"| {size} | {len(trained.avatar)} | {training:.1f} | {drawing:.1f} |", flush=True)


def _seconds(action: Callable[[int], None], repetitions: int) -> float:
    """The median time of an action, after eight calls to warm up."""
    times = []
    for step in range(8 + repetitions):
        started = time.perf_counter()
        action(step)
        times.append(time.perf_counter() - started)
    return float(np.median(times[8:]))


def soak(options: argparse.Namespace, scratch: Path) -> None:
    """A clip streamed again and again for so many minutes: memory, and the book-keeping of every frame and step."""
    data, name = subject(options, scratch)
    output = scratch / "output"
    output.mkdir()
    config = load_config("cpu-online", [f"data.image_size={options.size}"])
    head = motions.load_head(None)
    stream = streams.from_folder(data / name, head, config, CPU, 10**9, lambda _: None)
    until = time.monotonic() + 60 * options.minutes
    arrived: list[int] = []
    memory: list[tuple[float, int, float]] = []

    def counted() -> Iterator:
        started = time.monotonic()
        items = takewhile(lambda _: time.monotonic() < until, stream.arrivals)
        if options.images_per_frame is None:
            arrivals = streams.as_they_come(streams.paced(items, options.fps), stream.pose)
        else:
            arrivals = streams.in_step(map(stream.pose, items), options.images_per_frame / config.train.batch_size)
        for batch in arrivals:
            arrived.extend(frame.index for _, frame in batch)
            minute = (time.monotonic() - started) / 60
            if not memory or minute - memory[-1][0] > options.minutes / 12:
                memory.append((minute, len(arrived), _resident_mib()))
                print(f"| {minute:.1f} | {len(arrived)} | {memory[-1][2]:.0f} |", flush=True)
            yield batch

    print(f"\n{name}, {options.size} pixels, {os.cpu_count()} cores.\n\n| minutes | frames arrived | resident MiB |")
    print("| ---: | ---: | ---: |")
    result = online.train(config, head, counted(), stream, output, CPU, log=lambda _: None)
    sample = [[int(word) for word in line.split()] for line in (output / "sample.txt").read_text().splitlines()]
    newest = [int(line) for line in (output / "step2frame.txt").read_text().splitlines()]
    assert arrived == list(range(result.frames)), "a frame was lost or counted twice"
    assert len(sample) == len(newest) and newest[-1] == result.frames - 1
    assert all(max(frames) <= last and len(set(frames)) == len(frames) for frames, last in zip(sample, newest))
    assert sum(map(len, sample)) == result.images
    print(f"\n{result.frames} frames arrived, each once; {result.used} were in a batch; {len(sample)} steps, ", end="")
    print(f"{result.images_per_second:.1f} images per second; {result.kept} frames kept at the end.")


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = {"ablations": ablations, "online": online_and_offline, "speed": speed, "soak": soak}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--data", type=Path, help="a subject's folder; default: a synthetic capture")
    parser.add_argument("--images", type=int, default=10000, help="images to learn from")
    parser.add_argument("--size", type=int, default=256, help="longer side of the images, pixels")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for all rows of ablations and online")
    parser.add_argument("--repetitions", type=int, default=30, help="of a step, for speed")
    parser.add_argument("--minutes", type=float, default=30, help="of soak")
    parser.add_argument("--fps", type=float, default=25, help="of soak's stream")
    parser.add_argument("--images-per-frame", type=float, help="soak: pace by work instead of --fps")
    parser.add_argument("--keep", type=Path, help="folder for the runs; default: one that is removed")
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; ",
        end="",
    )
    print(f"torch {torch.__version__}; load average {os.getloadavg()[0]:.1f} at the start.")
    with tempfile.TemporaryDirectory() as folder:
        parts[options.part](options, options.keep or Path(folder))


if __name__ == "__main__":
    main()
