"""Everything that waits for a GPU, one part after another, each with a figure beside the CPU's of the same run.

    bash bench/cuda.sh [--wheels FOLDER]       on a machine with CUDA: three minutes; writes out/benchmarks-cuda.md
    python bench/cuda.py --toy --out FOLDER    anywhere, at toy size: the same code to its end

A part that fails says so in the results, and the others go on.
"""

import argparse
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gaussian_avatar import avatars, captures, learners, motions
from gaussian_avatar import synth as portraits
from gaussian_avatar.config import Config, load_config
from gaussian_avatar.learners import Batch
from recon4d import cameras, head, mesh, splat

ROOT = Path(__file__).resolve().parents[1]
Figures = dict[str, Any]


def seconds(action: Callable[[], object], device: torch.device, repetitions: int) -> float:
    """The median time of an action, after three to warm up; a GPU is waited for."""
    times = []
    for i in range(3 + repetitions):
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= 3:
            times.append(time.perf_counter() - started)
    return float(np.median(times))


def tests(devices: list[torch.device], toy: bool) -> Figures:
    """The tests that need a GPU: how many passed, were skipped, failed."""
    marked = [
        str(path)
        for folder in ("shared/tests", "tools")
        for path in sorted((ROOT / folder).rglob("test_*.py"))
        if "mark.cuda" in path.read_text()
    ]
    options = ["-m", "cuda", "-n", "0", "-o", "addopts=-q --import-mode=importlib"]
    words = [sys.executable, "-m", "pytest", *options, *marked]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    last = found.stdout.strip().splitlines()[-1] if found.stdout.strip() else found.stderr[-300:]
    failed = [line.removeprefix("FAILED ") for line in found.stdout.splitlines() if line.startswith("FAILED")]
    return {"exit": found.returncode, "said": last} | ({"failed": "; ".join(failed)} if failed else {})


def avatar(devices: list[torch.device], toy: bool) -> Figures:
    """Training and rendering of a head avatar: images learned from and frames rendered per second."""
    size, tex_size = (64, 24) if toy else (512, 278)
    figures: Figures = {"pixels": size}
    with tempfile.TemporaryDirectory() as folder:
        portraits.synthesise(Path(folder) / "head", frames=20, size=size)
        capture = captures.open_capture(Path(folder) / "head", size, lambda _: None)
        images = captures.preload(capture, np.arange(20))
    config = load_config("cpu-quick", [f"data.image_size={size}", f"model.tex_size={tex_size}"])
    for device in devices:
        repetitions = 3 if toy or device.type == "cpu" else 50
        figures |= _avatar_on(device, config, capture, images.to(device), repetitions)
    return figures


def _avatar_on(
    device: torch.device, config: Config, capture: captures.Capture, pictures: torch.Tensor, repetitions: int
) -> Figures:
    model = motions.load_head(None)
    motion = motions.from_track(capture.track, model)
    trained = learners.new(config, model, motion.camera, motion.inputs.shape[1], 0, device)
    vertices, inputs, camera = motion.vertices.to(device), motion.inputs.to(device), motion.camera.to(device)
    steps = itertools.count()

    def learn() -> None:
        step = next(steps)
        batch = Batch(vertices[:10], inputs[:10], pictures[:10], torch.rand(10, 3, device=device))
        learners.step(trained, batch, 10 * step, 0.1, slice(None) if step < 4 else None)

    def draw() -> None:
        with torch.no_grad():
            view = camera.world_to_camera
            splats, _ = avatars.deform(trained.avatar, trained.head, vertices[:8], inputs[:8], view, True, True)
            avatars.rasterize(splats, camera)

    return {
        "Gaussians": len(trained.avatar),
        f"training, images per second, {device.type}": 10 / seconds(learn, device, repetitions),
        f"rendering, frames per second, {device.type}": 8 / seconds(draw, device, repetitions),
    }


def gaussians(devices: list[torch.device], toy: bool) -> Figures:
    """The Gaussian rasterizer, forward and backward, and how far the devices' pictures are apart."""
    count, size = (500, 64) if toy else (100_000, 512)
    random = torch.Generator().manual_seed(0)
    means = torch.randn(count, 3, generator=random) * 0.4 + torch.tensor([0.0, 0, 3])
    quats, colors = torch.randn(count, 4, generator=random), torch.rand(count, 3, generator=random)
    scales = torch.rand(count, 3, generator=random) * 0.01 + 0.003
    opacities = torch.rand(count, generator=random)
    K = torch.tensor([[size * 1.2, 0, size / 2], [0, size * 1.2, size / 2], [0, 0, 1]])[None]
    figures: Figures = {"Gaussians": count, "pixels": size}
    drawn = []
    for device in devices:
        values = [t.to(device).requires_grad_(True) for t in (means, quats, scales, opacities, colors)]
        view, lens = torch.eye(4, device=device)[None], K.to(device)

        def step(values: list = values, view: torch.Tensor = view, lens: torch.Tensor = lens) -> torch.Tensor:
            image, _, _ = splat.rasterize(*values, view, lens, size, size)
            image.square().mean().backward()
            return image.detach()

        figures[f"forward and backward, ms, {device.type}"] = 1e3 * seconds(step, device, 3 if toy else 20)
        drawn.append(step().cpu())
    figures["mean difference of the pictures"] = float((drawn[0] - drawn[-1]).abs().mean())
    return figures


def triangles(devices: list[torch.device], toy: bool) -> Figures:
    """The mesh rasterizer on the open head."""
    size, batch = (64, 1) if toy else (1024, 8)
    figures: Figures = {"pixels": size, "heads": batch}
    covered = []
    for device in devices:
        model = head.load().to(device)
        eye, target, up = torch.tensor([0.0, 0, 0.6]), torch.zeros(3), torch.tensor([0.0, 1, 0])
        lens = cameras.intrinsics_from_fov(0.5, size, size)
        camera = cameras.Camera(lens, cameras.look_at(eye, target, up), size, size).to(device)
        positions = camera.clip(model()).expand(batch, -1, -1).contiguous()
        action = lambda positions=positions, faces=model.faces: mesh.rasterize(positions, faces, (size, size))  # noqa: E731
        figures[f"ms, {device.type}"] = 1e3 * seconds(action, device, 3 if toy else 20)
        covered.append(float((action().tri_id >= 0).float().mean()))
    figures["share of the picture that differs"] = abs(covered[0] - covered[-1])
    return figures


def street(devices: list[torch.device], toy: bool) -> Figures:
    """A clip of a street reconstructed in one pass of a network (of random weights: the work is the same)."""
    from flux4d import indices, scenes, training

    width, columns = (64, 120) if toy else (1920, 1800)
    figures: Figures = {"pixels": f"{width}x{width * 9 // 16}"}
    with tempfile.TemporaryDirectory() as name:
        from flux4d.synth import write_scenes

        folder = Path(name)
        write_scenes(folder / "scenes", frames=16, width=width, columns=columns, samples=1)
        indices.write_clips(folder / "scenes", folder / "clips.json", preset="debug", log=lambda _: None)
        for device in devices:
            run = folder / device.type
            size = f"data.image_size={width}"
            quiet = {"log": lambda _: None}
            training.start(
                folder / "clips.json", run, clip_index=0, iterations=1, overrides=[size], device=str(device), **quiet
            )
            started = time.perf_counter()
            found = scenes.reconstruct(
                run / "ckpt_last.pt", folder / "clips.json", folder / f"out-{device.type}", device=str(device)
            )
            figures[f"reconstruct with its video, s, {device.type}"] = time.perf_counter() - started
            figures["Gaussians"] = found.get("gaussians")
    return figures


def relighting(devices: list[torch.device], toy: bool) -> Figures:
    """Steps of training a relightable face, with the start; rays are marched on the CPU in any case."""
    from eyeball_relight import synth, training

    steps = 3 if toy else 50
    figures: Figures = {"steps": steps}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synth.synthesise(folder / "capture", frames=4, size=32 if toy else 256)
        names = ("iterations", "mesh_render_iter")
        overrides = [f"train.{name}={steps}" for name in names] + [f"train.milestones=[{steps}]"]
        settings = folder / "capture" / "config.yaml"
        for device in devices:
            run = folder / device.type
            found = training.start(settings, "cpu-first", overrides, run, device=str(device), log=lambda _: None)
            figures |= {f"seconds, {device.type}": found.seconds, f"loss, {device.type}": found.loss}
    return figures


PARTS = (tests, avatar, gaussians, triangles, street, relighting)


def page(results: dict[str, Figures], machine: str) -> str:
    """The results as a page of the documentation."""
    lines = ["# Benchmarks on a GPU", "", f"By `bash bench/cuda.sh` on {machine}.", ""]
    for part in PARTS:
        if part.__name__ in results:
            lines += [f"## {part.__doc__.splitlines()[0].rstrip('.')}", "", "| | |", "| --- | ---: |"]
            for key, value in results[part.__name__].items():
                lines.append(f"| {key} | {value:.4g} |" if isinstance(value, float) else f"| {key} | {value} |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="toy sizes, on what there is")
    parser.add_argument("--part", action="append", choices=[part.__name__ for part in PARTS], help="only this one")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder of benchmarks-cuda.md and .json")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    if not gpu and not options.toy:
        raise SystemExit("there is no CUDA device; give --toy to run the code at toy size on the CPU")
    devices = [torch.device("cpu"), *([torch.device("cuda")] if gpu else [])]
    machine = f"{torch.cuda.get_device_name() if gpu else 'no GPU'}, {platform.processor() or platform.machine()}"
    results: dict[str, Figures] = {}
    options.out.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if options.part and part.__name__ not in options.part:
            continue
        started = time.perf_counter()
        try:
            results[part.__name__] = part(devices, options.toy)
        except Exception as error:  # the other parts go on
            traceback.print_exc()
            results[part.__name__] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        results[part.__name__]["part took, s"] = time.perf_counter() - started
        print(f"{part.__name__}: {json.dumps(results[part.__name__])}", flush=True)
        text = json.dumps({"machine": machine, **results}, indent=2)
        (options.out / "benchmarks-cuda.json").write_text(text + "\n")
        (options.out / "benchmarks-cuda.md").write_text(page(results, machine) + "\n")
    if any("failed" in figures for figures in results.values()):
        raise SystemExit("a part failed; see above")


if __name__ == "__main__":
    main()
