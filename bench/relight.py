"""The hash grid of eyeball-relight beside the same in plain torch, in one run.

    python bench/relight.py            prints the table of docs/benchmarks-relight.md
    python bench/relight.py --quick    fewer points

Times are the best of several runs, so that other work on the machine shows as little as possible; read the ratios.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from functools import partial

import torch
from eyeball_relight import hashgrid


def best(run: Callable[[], object], runs: int) -> float:
    """Seconds of the fastest of `runs` runs, after one to warm up."""
    run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def eikonal(encode: Callable, x: torch.Tensor, table: torch.Tensor, resolution: list[int]) -> None:
    """Values, their gradient by position, and the gradient of a loss on that by the table: one step of training."""
    features = encode(x, table, resolution)
    (gradient,) = torch.autograd.grad(features.sum(), x, create_graph=True)
    torch.autograd.grad((gradient.norm(dim=1) - 1).square().mean() + features.square().mean(), table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rows = []
    for points in (1024, 4096) if quick else (1024, 4096, 16384, 65536):
        x = torch.rand(points, 3).requires_grad_()
        table = (0.1 * torch.randn(8, 2**14, 2)).requires_grad_()
        resolution = hashgrid.resolutions(8, 256, 8)
        ours, theirs = (
            best(partial(eikonal, f, x, table, resolution), 3 if quick else 7)
            for f in (hashgrid.encode, hashgrid.encode_torch)
        )
        rows.append(f"| {points} | {1000 * ours:.1f} | {1000 * theirs:.1f} | {theirs / ours:.1f} |")
    table_text = "| points | kernels, ms | plain torch, ms | ratio |\n| ---: | ---: | ---: | ---: |\n" + "\n".join(rows)
    print(f"{platform.machine()} with {os.cpu_count()} cores, {torch.get_num_threads()} torch threads\n\n{table_text}")


if __name__ == "__main__":
    main()
