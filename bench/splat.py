"""Time the Gaussian rasterizer against named peers, in one run, and write docs/benchmarks-splat.md with a plot.

uv run --all-packages python bench/splat.py            # minutes on two cores
uv run --all-packages python bench/splat.py --quick    # seconds, nothing written

Times are the best of several interleaved repetitions, because other processes share the machine; with one thread they
are CPU time of this process, with more they are wall-clock time. Compare ratios.
"""

import argparse
import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch
from recon4d import splat
from recon4d.splat import simd

ROOT = Path(__file__).resolve().parents[1]
RADIUS = 4.8  # pixels, the mean of the scenes below
# vector instructions per block of 16 pixels in kernels.py: 29 forward, 46 backward
OPERATIONS_PER_PAIR = (29, 46)


def make_scene(count: int, width: int, height: int, radius: float = RADIUS, device: str = "cpu") -> dict:
    """Gaussians spread evenly over the image at depths 3 to 5, opacity 0.5, mean radius about `radius` pixels."""
    random = torch.Generator().manual_seed(0)
    focal = 1.2 * width
    z = torch.rand(count, generator=random) * 2 + 3
    x = (torch.rand(count, generator=random) - 0.5) * width * z / focal
    y = (torch.rand(count, generator=random) - 0.5) * height * z / focal
    scales = (0.5 + torch.rand(count, 3, generator=random)) * (radius / 4.0) * (z / focal)[:, None]
    tensors = dict(
        means=torch.stack([x, y, z], -1),
        quats=torch.randn(count, 4, generator=random),
        scales=scales,
        opacities=torch.full((count,), 0.5),
        colors=torch.rand(count, 3, generator=random),
        viewmats=torch.eye(4)[None],
        Ks=torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]]),
    )
    return {k: v.to(device) for k, v in tensors.items()} | dict(width=width, height=height)


def best(actions: dict[str, Callable[[], float]], repetitions: int) -> dict[str, float]:
    """The least milliseconds of each action over interleaved repetitions; an action returns its own seconds."""
    least = dict.fromkeys(actions, math.inf)
    for repetition in range(repetitions + 2):
        for name, action in actions.items():
            seconds = action()
            if repetition >= 2:  # the first ones warm up
                least[name] = min(least[name], seconds * 1e3)
    return least


def timed(action: Callable[[], object], device: str = "cpu") -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    # with one thread, time in which others hold the core does not count
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def forward_and_backward(render: Callable, scene: dict, device: str = "cpu") -> dict[str, Callable[[], float]]:
    """Two actions, to be run in turn: render, then differentiate with a fixed upstream gradient."""
    names = ("means", "quats", "scales", "opacities", "colors")
    leaves = {n: scene[n].clone().requires_grad_() for n in names}
    held: dict = {}
    upstream = torch.randn(1, scene["height"], scene["width"], 3, device=device)

    def forward() -> float:
        held.clear()
        return timed(lambda: held.update(image=render(**(scene | leaves))[0]), device)

    def backward() -> float:
        seconds = timed(lambda: held["image"].backward(upstream), device)
        for leaf in leaves.values():
            leaf.grad = None
        return seconds

    return {"forward": forward, "backward": backward}


def dense_composite(means, quats, scales, opacities, colors, viewmats, Ks, width, height):
    """All pixels times all Gaussians, in plain torch (what one writes without a rasterizer)."""
    from gsplat.cuda import _torch_impl as reference

    covars, _ = reference._quat_scale_to_covar_preci(quats, scales, True, False)
    radii, means2d, depths, conics, _ = reference._fully_fused_projection(means, covars, viewmats, Ks, width, height)
    order = torch.argsort(depths[0])
    m, q, o, c = means2d[0, order], conics[0, order], opacities[order], colors[order]
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    dx, dy = xs[..., None] - m[:, 0], ys[..., None] - m[:, 1]
    sigma = 0.5 * (q[:, 0] * dx * dx + q[:, 2] * dy * dy) + q[:, 1] * dx * dy
    alpha = (o * torch.exp(-sigma)).clamp_max(0.999)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
    left = torch.cumprod(1 - alpha, -1)
    before = torch.cat([torch.ones_like(left[..., :1]), left[..., :-1]], -1)
    return torch.einsum("hwn,nd->hwd", alpha * before, c)[None], radii


def count_pairs(scene: dict) -> tuple[int, float, int]:
    """(Gaussian, pixel) pairs inside the radii, the mean radius, and (Gaussian, tile) pairs."""
    _, _, meta = splat.rasterize(**scene)
    radii = meta["radii"][meta["radii"][..., 0] > 0].double()
    return int(math.pi * radii.prod(-1).sum()), float(radii.mean()), int(meta["tiles_per_gauss"].sum())


@numba.njit(nogil=True)
def _multiply_add(count, out):
    """12 independent chains of vector multiply-adds: the most this core does."""
    one, tiny = simd.splat(np.float32(0.999)), simd.splat(np.float32(1e-3))
    a, b, c, d, e, f = one, one, one, one, one, one
    g, h, i, j, k, m = one, one, one, one, one, one
    for _ in range(count):
        a, b, c = simd.fma(a, one, tiny), simd.fma(b, one, tiny), simd.fma(c, one, tiny)
        d, e, f = simd.fma(d, one, tiny), simd.fma(e, one, tiny), simd.fma(f, one, tiny)
        g, h, i = simd.fma(g, one, tiny), simd.fma(h, one, tiny), simd.fma(i, one, tiny)
        j, k, m = simd.fma(j, one, tiny), simd.fma(k, one, tiny), simd.fma(m, one, tiny)
    simd.store(out, 0, a + b + c + d + e + f + g + h + i + j + k + m)


def machine_limits() -> tuple[float, float]:
    """Vector multiply-adds per second and bytes per second (read and written) of one thread."""
    out = np.zeros(16, np.float32)
    source, target = torch.ones(16_000_000), torch.empty(16_000_000)
    limits = best(
        {
            "fma": lambda: timed(lambda: _multiply_add(100_000, out)),
            "copy": lambda: timed(lambda: target.copy_(source)),
        },
        15,
    )
    return 12 * 100_000 / limits["fma"] * 1e3, 2 * 64e6 / limits["copy"] * 1e3


def table(header: list[str], rows: list[list]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---:"] * len(header)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]) + "\n"


def headline(repetitions: int, threads: tuple[int, ...]) -> str:
    """10,000 Gaussians at 256x256 against torch.exp on as many numbers as there are pairs."""
    scene = make_scene(10_000, 256, 256)
    pairs, radius, tiles = count_pairs(scene)
    numbers = -torch.rand(pairs)
    result = torch.empty_like(numbers)
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        actions = forward_and_backward(splat.rasterize, scene)
        times = best(actions | {"exp": lambda: timed(lambda: torch.exp(numbers, out=result))}, repetitions)
        both = times["forward"] + times["backward"]
        shown = [f"{t:.2f}" for t in (times["forward"], times["backward"], both, times["exp"])]
        rows.append([count, *shown, f"{both / times['exp']:.1f}"])
        if count == 1:
            single = both
    torch.set_num_threads(1)
    speed, bandwidth = machine_limits()
    arithmetic = pairs / 16 * sum(OPERATIONS_PER_PAIR) / speed * 1e3
    # read 14 numbers and their gradients per Gaussian, twice; image, alphas and their gradients per pixel
    memory = (10_000 * 14 * 2 * 2 + 256 * 256 * 4 * 2) * 4
    return (
        f"10,000 Gaussians, 256x256, mean radius {radius:.1f} px, opacity 0.5: {pairs:,} (Gaussian, pixel) pairs "
        f"inside the radii, {tiles:,} (Gaussian, tile) pairs.\n\n"
        + table(["threads", "forward ms", "backward ms", "both ms", "torch.exp ms", "ratio"], rows)
        + f"\nRoofline, one thread: {sum(OPERATIONS_PER_PAIR)} vector operations for every 16 pairs "
        f"({OPERATIONS_PER_PAIR[0]} forward, {OPERATIONS_PER_PAIR[1]} backward) take {arithmetic:.2f} ms at the "
        f"{speed / 1e9:.1f} billion 16-lane multiply-adds a second measured here, {100 * arithmetic / single:.0f} % of "
        f"the {single:.2f} ms; the {memory / 1e6:.1f} MB that must move take {memory / bandwidth * 1e3:.2f} ms at "
        f"{bandwidth / 1e9:.0f} GB/s. So arithmetic bounds it; the rest of the time goes to lanes of a block outside "
        "the ellipse, to sums over lanes, projection, sorting, and Python.\n"
    )


def against_dense(repetitions: int, sizes) -> str:
    rows = []
    for count, side in sizes:
        scene = make_scene(count, side, side)
        ours = best(forward_and_backward(splat.rasterize, scene), 10 * repetitions)
        dense = best(forward_and_backward(dense_composite, scene), repetitions)
        rows.append(
            [f"{count:,}", side]
            + [f"{ours[k]:.2f}" for k in ours]
            + [f"{dense[k]:.0f}" for k in dense]
            + [f"{sum(dense.values()) / sum(ours.values()):,.0f}"]
        )
    header = [
        "Gaussians",
        "px",
        "forward ms",
        "backward ms",
        "dense forward ms",
        "dense backward ms",
        "ratio",
    ]
    return table(header, rows)


def scaling(repetitions: int, counts, sizes, threads: tuple[int, ...]) -> tuple[str, dict]:
    """Time over the number of Gaussians at 1080p, and over the size of the image."""
    text, curves = "", {}
    for title, scenes in (
        ("Gaussians at 1920x1080", [(n, 1920, 1080, RADIUS) for n in counts]),
        (
            "pixels, 10,000 Gaussians that grow with the image",
            [(10_000, w, h, RADIUS * h / 256) for w, h in sizes],
        ),
    ):
        rows = []
        for count, width, height, radius in scenes:
            scene = make_scene(count, width, height, radius)
            pairs, _, _ = count_pairs(scene)
            numbers = -torch.rand(pairs)
            result = torch.empty_like(numbers)
            row = [f"{count:,}", f"{width}x{height}", f"{pairs / 1e6:.2f}"]
            for number in threads:
                torch.set_num_threads(number)
                actions = forward_and_backward(splat.rasterize, scene)
                actions["exp"] = lambda n=numbers, r=result: timed(lambda: torch.exp(n, out=r))
                times = best(actions, max(3, int(repetitions * min(1, 2e6 / pairs))))
                both = times["forward"] + times["backward"]
                row += [f"{times['forward']:.2f}", f"{times['backward']:.2f}", f"{both / times['exp']:.1f}"]
                for part in ("forward", "backward"):
                    size = count if "1920" in title else width * height
                    curves.setdefault(title, {}).setdefault((part, number), []).append((size, times[part]))
            rows.append(row)
        header = ["Gaussians", "image", "million pairs"]
        for number in threads:
            header += [f"forward ms, {number} thr.", f"backward ms, {number} thr.", "/ torch.exp"]
        text += f"\nOver {title}:\n\n" + table(header, rows)
    return text, curves


def plot(curves: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(10, 4), layout="constrained")
    for axis, (title, lines) in zip(axes, curves.items()):
        for (part, threads), points in lines.items():
            style = "-" if part == "forward" else "--"
            label = f"{part}, {threads} thread{'s' if threads > 1 else ''}"
            axis.loglog(*zip(*points), style, marker="o", markersize=4, color=f"C{threads - 1}", label=label)
        axis.set_xlabel("Gaussians" if "1920" in title else "pixels")
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("milliseconds")
        axis.grid(True, which="both", alpha=0.25)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def on_cuda(repetitions: int, counts) -> str:
    """Ours and gsplat called directly, to see what our layer costs."""
    import gsplat

    rows = []
    for count in counts:
        scene = make_scene(count, 1920, 1080, device="cuda")
        actions = {}
        for name, render in (("ours", splat.rasterize), ("gsplat", gsplat.rasterization)):
            scene_of = scene | ({"packed": False} if name == "gsplat" else {})
            for part, action in forward_and_backward(render, scene_of, "cuda").items():
                actions[f"{name} {part}"] = action
        times = best(actions, repetitions)
        ratio = (times["ours forward"] + times["ours backward"]) / (times["gsplat forward"] + times["gsplat backward"])
        rows.append([f"{count:,}", *(f"{times[k]:.3f}" for k in times), f"{ratio:.3f}"])
    header = ["Gaussians", "forward ms", "backward ms", "gsplat forward ms", "gsplat backward ms", "ratio"]
    return f"\nOn {torch.cuda.get_device_name()}, 1920x1080:\n\n" + table(header, rows)


def machine() -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "numba", "llvmlite"))
    return f"{name}, {os.cpu_count()} logical cores, {numba.core.config.CPU_NAME or 'native'} code; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions, nothing written")
    quick = parser.parse_args().quick
    threads = (1, 2) if (os.cpu_count() or 1) > 1 else (1,)
    repetitions = 10 if quick else 60
    counts = (1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    sizes = [(128, 128), (256, 256)] if quick else [(128, 128), (256, 256), (512, 512), (1024, 1024), (1920, 1080)]
    text = "# Gaussian rasterizer\n\n"
    text += f"Written by `bench/splat.py`. Machine: {machine()}.\n"
    text += (
        "Times are the best of interleaved repetitions in one run while other processes shared the machine: with one "
        "thread CPU time of this process, with two threads wall-clock time, which counts waiting for a core too.\n\n"
    )
    text += headline(5 * repetitions, threads)
    torch.set_num_threads(1)
    text += "\nAgainst a dense composite in torch (every pixel times every Gaussian), one thread:\n\n"
    text += against_dense(2 if quick else 3, [(200, 64)] if quick else [(1_000, 64), (1_000, 128)])
    tables, curves = scaling(repetitions, counts, sizes, threads)
    text += tables
    if torch.cuda.is_available():
        text += on_cuda(repetitions, counts)
    else:
        text += "\nNo CUDA device was at hand: what `rasterize` costs over calling gsplat directly is unmeasured.\n"
    if not quick:
        plot(curves, ROOT / "docs/images/splat-scaling.png")
        text += "\n![Time over the number of Gaussians and over the number of pixels](images/splat-scaling.png)\n"
        (ROOT / "docs/benchmarks-splat.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
