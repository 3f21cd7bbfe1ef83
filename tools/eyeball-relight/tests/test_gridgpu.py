"""The GPU's kernels of the hash grid against plain torch: on a GPU, and anywhere by Triton's interpreter."""

import subprocess
import sys

import pytest
import torch
from eyeball_relight import hashgrid

RESOLUTION = hashgrid.resolutions(4, 40, 5)


def differences(encode, device: str, features: int, points: int = 300) -> list[float]:
    """How far values, gradients by points and tables, and those of a loss on normals are from torch's in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(points, 3, generator=generator, dtype=torch.float64)
    x[:4] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [-0.3, 0.5, 1.2], [0.2, 0.45, 0.8]])
    table = torch.randn(5, 512, features, generator=generator, dtype=torch.float64)
    weight = torch.randn(5 * features, 4, generator=generator, dtype=torch.float64)
    results = []
    for function, kind in ((encode, torch.float32), (hashgrid.encode_torch, torch.float64)):
        leaves = [t.to(device, kind).requires_grad_() for t in (x, table, weight)]
        out = torch.tanh(function(leaves[0], leaves[1], RESOLUTION) @ leaves[2]).sum(1)
        (normal,) = torch.autograd.grad(out.sum(), leaves[0], create_graph=True)
        loss = ((normal.square().sum(1) + 1e-6).sqrt() - 1).square().sum() + out.square().sum()
        results.append([out, normal, *torch.autograd.grad(loss, leaves)])
    ours, theirs = results
    within = x[:, None] * torch.tensor(RESOLUTION)[:, None] % 1
    inside = ((within > 0.01) & (within < 0.99)).flatten(1).all(1).to(device)  # on a border the second derivative jumps
    found = [(ours[0], theirs[0]), *((a[inside], b[inside]) for a, b in zip(ours[1:3], theirs[1:3]))]
    found += list(zip(ours[3:], theirs[3:]))
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in found]


def interpreted(x, table, resolution):
    """`hashgrid.encode` with the GPU's kernels on the CPU, where Triton interprets them."""
    from eyeball_relight import gridgpu

    sides = torch.tensor(resolution, dtype=torch.int32)
    return hashgrid._Encode.apply(x, table, gridgpu, sides)


def test_interpreted_kernels_are_those_of_torch():
    pytest.importorskip("triton")
    code = "import test_gridgpu as t; print(max(t.differences(t.interpreted, 'cpu', 2, points=100)))"
    words = [sys.executable, "-c", code]
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(__file__).rsplit("/", 1)[0]}
    found = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 2e-3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("features", [1, 2, 3, 4])
def test_a_gpu_computes_what_torch_does(features):
    assert max(differences(hashgrid.encode, "cuda", features)) < 2e-3
