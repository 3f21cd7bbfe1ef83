"""What flux4d learns from synthetic streets, what the network that ships does on a log, and how fast the sparse
convolution is. Prints Markdown.

uv run --all-packages python bench/flux.py                # hours on two cores
uv run --all-packages python bench/flux.py --quick        # minutes
uv run --all-packages python bench/flux.py --shipped      # minutes: eight unseen streets, without training
uv run --all-packages python bench/flux.py --log clips.json --clip 1    # of flux4d import and index

One network per variant is trained on twelve scenes and measured on four others, of a seed of their own: constant
velocity alone, without and with the preset's schedule of motion; then with refinement, with polynomial motion, with
velocity reweighting, each on top of the one before; with depth between beams and Gaussians that come and go; with the
motion of the drawn streets. On a log the network that ships is measured as it is, then after training on the clip, and
a new one after as many steps. With several `--seeds`, of trainings or, with --shipped, of the streets, all tables give
the mean and the standard deviation over them. The convolution's peer is torch's dense conv3d on the volume that holds
the same voxels.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from flux4d import sparse

ROOT = Path(__file__).resolve().parents[1]
BASE = ["model.refinements=0"]
FILLED = [
    "lift.fill=true", "lift.opacity=0.6", "model.lifetime=0.12", "model.moments=6", "model.refine_velocity=true",
    "model.refine_frames=6", "train.still=0", "train.narrow=0",
]  # fmt: skip
VARIANTS = {
    "base, all points from the start": [*BASE, "train.still=0", "train.narrow=0"],
    "base": BASE,
    "+ refinement, the preset": [],
    "+ polynomial motion": ["model.polynomial=1"],
    "+ reweighting": ["model.polynomial=1", "losses.reweight=true"],
    "filled, lifetimes": [*FILLED, "losses.flow=0", "losses.velocity=5e-3", "losses.final_velocity=2e-2"],
    "+ motion of drawn streets": [*FILLED, "losses.flow=0.02", "losses.velocity=0"],
}
COLUMNS = {
    "interpolation psnr": "PSNR between the inputs, dB",
    "interpolation dynamic_psnr": "dynamic",
    "future psnr": "PSNR after them, dB",
    "future dynamic_psnr": "dynamic",
    "interpolation depth_rmse": "depth RMSE, m",
    "flow epe3d": "EPE3D, m per frame",
    "flow epe_3way": "three-way EPE, m per frame",
    "flow epe_fd": "of moving points",
    "flow angular_error_deg": "median angle of moving points, degrees",
    "flow angular_error_mean_deg": "mean",
    "flow background_speed": "background speed, m/s",
}


def flux4d(*arguments: object) -> dict:
    """Run a command of the tool; its JSON result."""
    print("+ flux4d", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run(["flux4d", *map(str, arguments)], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def variants(work: Path, scenes: int, unseen: int, frames: int, steps: int | None, seed: int) -> dict[str, dict]:
    """Train and measure every variant; measures by its name. steps: None is the preset's. seed: of the training."""
    if not (work / "clips.json").exists():
        size = ["--frames", frames, "--width", 160, "--columns", 600]
        flux4d("synth", work / "scenes", "--scenes", scenes + unseen, *size, "--seed", 1)
        held = ",".join(f"{number:03d}" for number in range(scenes + 1, scenes + unseen + 1))
        flux4d("index", "--data-root", work / "scenes", "--out-full", work / "clips.json", "--val-scenes", held)
    index = ["--index-path", work / "clips.json"]
    found = {}
    for number, (name, overrides) in enumerate(VARIANTS.items()):
        out = work / f"train-{number}-{seed}"
        run = ["--config", "cpu-scenes", "--output-dir", out, "--seed", seed, *settings(*overrides), *resumed(out)]
        flux4d("train", *index, *run, *(["--iters", steps] if steps else []))
        scores = flux4d("eval", *index, "--ckpt", out / "ckpt_last.pt", "--out-dir", work / f"eval-{number}", "--force")
        found[name] = flat(scores)
    return found


def over_seeds(measure: Callable[[int], dict[str, dict]], seeds: Sequence[int]) -> dict[str, dict[str, list]]:
    """Measures of several seeds by name: for each measure its values, where there are any."""
    every = [measure(seed) for seed in seeds]
    return {
        name: {key: [one[name][key] for one in every if one[name].get(key) is not None] for key in row}
        for name, row in every[0].items()
    }


def shipped(work: Path, seed: int) -> dict[str, dict]:
    """Measures of the network that ships on four plain and four varied streets that it has not seen."""
    found = {}
    for kind in ("plain", "varied"):
        place = work / f"unseen-{kind}-{seed}"
        if not (place / "clips.json").exists():
            size = ["--frames", 16, "--width", 320, "--columns", 900, "--streets", kind, "--seed", seed]
            flux4d("synth", place / "scenes", "--scenes", 4, "--first", 501, *size)
            names = ",".join(f"{number:03d}" for number in range(501, 505))
            flux4d("index", "--data-root", place / "scenes", "--out-full", place / "clips.json", "--val-scenes", names)
        scores = flux4d("eval", "--index-path", place / "clips.json", "--out-dir", place / "eval", "--force")
        found[f"{kind} streets, as it ships"] = flat(scores)
    return found


def flat(scores: dict) -> dict[str, float | None]:
    return {
        f"{part} {key}": value
        for part in ("interpolation", "future", "flow")
        for key, value in (scores[part] or {}).items()
    }


def of_log(index: Path, clip: int, work: Path, steps: int, seed: int) -> dict[str, dict]:
    """Measures on a clip of a log, and seconds: the network as it ships, trained on the clip from it, from nothing."""
    given = ["--index-path", index, "--clip-index", clip]
    found: dict[str, dict] = {}
    for name, begin in {
        "as it ships": None,
        f"{steps} steps from nothing": ["--config", "shipped"],
        f"{steps} steps from it": ["--init", "shipped"],
    }.items():
        started, use = time.perf_counter(), []
        if begin is not None:
            out = work / f"log-{'shipped' if '--init' in begin else 'nothing'}-{steps}-{seed}"
            flux4d("overfit", *given, *begin, "--iters", steps, "--seed", seed, "--output-dir", out, *resumed(out))
            use = ["--ckpt", out / "ckpt_last.pt"]
        seconds = time.perf_counter() - started
        folder = work / f"log-eval-{len(found)}"
        scores = flux4d("eval", *given, *use, "--out-dir", folder, "--force", "--save-renders")
        found[name] = flat(scores) | {
            "seconds": seconds
            if begin
            else flux4d("reconstruct", *given, "--out-dir", work / "log-scene", "--force")["seconds"]
        }
    return found


def resumed(out: Path) -> list[str]:
    return ["--resume"] if (out / "ckpt_last.pt").exists() else ["--force"]


def convolution(side: int, share: float, channels: int, repetitions: int) -> dict[str, float]:
    """Milliseconds, forward and backward, of one 3x3x3 convolution on a share of side^3 voxels, and of dense conv3d.

    MB: what each holds from the forward pass to the backward one, without the weights.
    """
    generator = torch.Generator().manual_seed(0)
    occupied = (torch.rand(side, side, side, generator=generator) < share).nonzero()
    grid = sparse.voxelize(occupied + 0.5, 1.0, torch.zeros(3), torch.full((3,), float(side)), 1)
    level = grid.levels[0]
    features = torch.randn(len(level), channels, generator=generator, requires_grad=True)
    weight = torch.randn(27, channels, channels, generator=generator, requires_grad=True)
    volume = torch.zeros(1, channels, side, side, side, requires_grad=True)
    kernel = torch.randn(channels, channels, 3, 3, 3, generator=generator, requires_grad=True)
    actions = {
        "sparse": lambda: sparse.convolve(features, weight, level.same, len(level)).sum().backward(),
        "dense": lambda: torch.nn.functional.conv3d(volume, kernel, padding=1).sum().backward(),
        "kernel map": lambda: sparse.neighbour_map(sparse.keys(level.coordinates), level.coordinates),
    }
    least = dict.fromkeys(actions, float("inf"))
    for repetition in range(repetitions + 1):
        for name, action in actions.items():
            started = time.process_time()
            action()
            if repetition:  # the first one warms up
                least[name] = min(least[name], 1e3 * (time.process_time() - started))
    held = {
        "sparse MB": 4 * 2 * features.numel() + sum(8 * (len(rows) + len(out)) for rows, out in level.same),
        "dense MB": 4 * 2 * volume.numel(),
    }
    return least | {"side": side, "voxels": len(level)} | {name: value / 1e6 for name, value in held.items()}


LOG_COLUMNS = {
    "interpolation psnr": "PSNR between the inputs, dB",
    "interpolation ssim": "SSIM",
    "interpolation depth_rmse": "depth RMSE, m",
    "future psnr": "PSNR after them, dB",
    "future ssim": "SSIM",
    "future depth_rmse": "depth RMSE, m",
    "seconds": "seconds of the network or training",
}


def cell(value: float | Sequence[float] | None) -> str:
    """A number; of several their mean and standard deviation."""
    if isinstance(value, Sequence):
        if len(value) > 1:
            return f"{cell(statistics.fmean(value))} +- {statistics.stdev(value):.2g}"
        value = value[0] if value else None
    return "-" if value is None else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def table(scores: dict[str, dict], columns: dict[str, str]) -> str:
    lines = [
        "| network | " + " | ".join(columns.values()) + " |",
        "| --- |" + " --- |" * len(columns),
        *(f"| {name} | " + " | ".join(cell(row.get(key)) for key in columns) + " |" for name, row in scores.items()),
    ]
    return "\n".join(lines)


def page(scores: dict[str, dict], speeds: list[dict[str, float]], arguments: argparse.Namespace) -> str:
    lines = [
        "# flux4d",
        "",
        f"`bench/flux.py` on {os.cpu_count()} cores of {platform.machine()}: networks trained with "
        f"`--config cpu-scenes`, {arguments.steps or 'its'} steps, on {arguments.scenes} scenes of {arguments.frames} "
        f"frames and measured on {arguments.unseen} others. Each variant adds to the one above.",
        "",
        table(scores, COLUMNS),
        "",
        "## The sparse convolution",
        "",
        "One 3x3x3 convolution of 32 channels on 4 % of a cube's voxels, forward and backward, CPU time of one thread, "
        "beside torch's dense `conv3d` on the cube; neighbours are found once per clip. Memory is what each holds "
        "between the two passes.",
        "",
        "| voxels | of | sparse, ms | neighbours, ms | dense, ms | sparse, MB | dense, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['voxels']} | {row['side']}^3 | "
            + " | ".join(cell(row[k]) for k in ("sparse", "kernel map", "dense", "sparse MB", "dense MB"))
            + " |"
            for row in speeds
        ),
        "",
    ]
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "bench-flux", help="scenes and networks; kept")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--unseen", type=int, default=4)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--steps", type=int, help="of training; default: the preset's")
    parser.add_argument("--out", type=Path, help="a Markdown file; default: the terminal alone")
    parser.add_argument("--shipped", action="store_true", help="only the network that ships, on unseen streets")
    parser.add_argument("--seeds", type=numbers, help="with commas; default: 0, or 2 of unseen streets")
    parser.add_argument("--log", type=Path, help="only a clip of this index: the network that ships, and trained on it")
    parser.add_argument("--clip", type=int, default=0, help="its number")
    parser.add_argument("--quick", action="store_true", help="two scenes, few steps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.scenes, arguments.unseen, arguments.frames, arguments.steps = 1, 1, 16, 8
    torch.set_num_threads(1)
    work, seeds = arguments.work, arguments.seeds or [2 if arguments.shipped else 0]
    work.mkdir(parents=True, exist_ok=True)
    if arguments.shipped:
        print(table(over_seeds(lambda seed: shipped(work, seed), seeds), COLUMNS))
        return
    if arguments.log:
        given = arguments.log, arguments.clip, work, arguments.steps or 200
        print(table(over_seeds(lambda seed: of_log(*given, seed), seeds), LOG_COLUMNS))
        return
    sides = (16, 32) if arguments.quick else (32, 64, 96)
    speeds = [convolution(side, 0.04, 32, 1 if arguments.quick else 5) for side in sides]
    sizes = arguments.scenes, arguments.unseen, arguments.frames, arguments.steps
    scores = over_seeds(lambda seed: variants(work, *sizes, seed), seeds)
    text = page(scores, speeds, arguments)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
