"""What waits for a GPU runs to its end without one, at toy size, and writes its page."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "bench" / "cuda.py"


@pytest.fixture
def bench(monkeypatch):
    """A function that runs bench/cuda.py with its arguments in this process, and in forks what it starts: pytest."""

    really = subprocess.run

    def start(words, cwd=None, **options):
        if list(words[:3]) != [sys.executable, "-m", "pytest"]:
            return really(words, cwd=cwd, **options)
        monkeypatch.chdir(cwd)
        return forks.run(*words[2:])

    def run(*arguments):
        monkeypatch.setattr(subprocess, "run", start)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_all_parts_run_at_toy_size(bench, tmp_path):
    bench("--toy", "--out", tmp_path)
    results = json.loads((tmp_path / "benchmarks-cuda.json").read_text())
    assert set(results) == {"machine", "tests", "avatar", "gaussians", "triangles", "street", "relighting"}
    assert results["tests"]["exit"] == 0 and results["avatar"]["training, images per second, cpu"] > 0
    assert results["gaussians"]["mean difference of the pictures"] < 1e-3
    page = (tmp_path / "benchmarks-cuda.md").read_text()
    assert page.startswith("# Benchmarks on a GPU") and page.count("\n## ") == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would really run")
def test_without_a_gpu_it_says_so(bench):
    with pytest.raises(SystemExit, match="there is no CUDA device; give --toy"):
        bench()
