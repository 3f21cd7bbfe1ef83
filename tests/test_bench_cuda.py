"""What waits for a GPU runs to its end without one, at toy size, and writes its page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_all_parts_run_at_toy_size(tmp_path):
    found = subprocess.run(
        [sys.executable, "bench/cuda.py", "--toy", "--out", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
    results = json.loads((tmp_path / "benchmarks-cuda.json").read_text())
    assert set(results) == {"machine", "tests", "avatar", "gaussians", "triangles", "street", "relighting"}
    assert results["tests"]["exit"] == 0 and results["avatar"]["training, images per second, cpu"] > 0
    assert results["gaussians"]["mean difference of the pictures"] < 1e-3
    page = (tmp_path / "benchmarks-cuda.md").read_text()
    assert page.startswith("# Benchmarks on a GPU") and page.count("\n## ") == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would really run")
def test_without_a_gpu_it_says_so():
    found = subprocess.run([sys.executable, "bench/cuda.py"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1 and "there is no CUDA device; give --toy" in found.stderr
