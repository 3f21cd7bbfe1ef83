"""Which backend runs, what each refuses, threads, forks, the compile cache, and CUDA against the CPU."""

import inspect
import sys
import threading

import forks
import gsplat
import numpy as np
import pytest
import torch
from recon4d import splat, threads
from recon4d.splat import simd

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def small_scene(seed=0, N=300, width=100, height=70, device="cpu", **more):
    random = torch.Generator().manual_seed(seed)
    means = torch.rand(N, 3, generator=random) * torch.tensor([3.0, 2.0, 2.0]) + torch.tensor([-1.5, -1.0, 1.0])
    scales = torch.exp(torch.rand(N, 3, generator=random) * 2 - 5)
    quats, opacities = torch.randn(N, 4, generator=random), torch.rand(N, generator=random)
    colors, K = torch.rand(N, 3, generator=random), torch.tensor([[70.0, 0, 50], [0, 70, 35], [0, 0, 1]])
    tensors = dict(
        means=means, quats=quats, scales=scales, opacities=opacities, colors=colors, viewmats=torch.eye(4)[None],
        Ks=K[None],
    )  # fmt: skip
    return {k: v.to(device) for k, v in tensors.items()} | dict(width=width, height=height) | more


def test_backends_are_listed_with_reasons(monkeypatch):
    listed = splat.backends()
    assert list(listed) == ["numba", "gsplat"] and listed["numba"] is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in splat.backends()["gsplat"]


def test_forced_backends_that_cannot_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    scene = small_scene()
    with pytest.raises(ValueError, match=r"gsplat backend .* no CUDA device"):
        splat.rasterize(**scene, backend="gsplat")
    with pytest.raises(ValueError, match="backend=metal is not a backend; choose one of numba, gsplat"):
        splat.rasterize(**scene, backend="metal")
    monkeypatch.setenv("RECON4D_SPLAT_BACKEND", "gsplat")
    with pytest.raises(ValueError, match="RECON4D_SPLAT_BACKEND"):
        splat.rasterize(**scene)
    splat.rasterize(**scene, backend="numba")  # the keyword wins


def test_tensors_must_be_where_the_backend_is(monkeypatch):
    scene = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in small_scene().items()}
    with pytest.raises(ValueError, match="needs tensors on cpu, not on meta"):
        splat.rasterize(**scene)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(distributed=True), "distributed"),
        (dict(camera_model="fisheye"), "camera_model"),
        (dict(covars=torch.zeros(300, 3, 3)), "covars"),
        (dict(with_ut=True), "with_ut"),
        (dict(radial_coeffs=torch.zeros(1, 6)), "radial_coeffs"),
    ],
)
def test_what_the_cpu_cannot_do_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        splat.rasterize(**small_scene(), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(quats=torch.zeros(300, 3)), "quats has shape"),
        (dict(opacities=torch.zeros(300, 1)), "opacities has shape"),
        (dict(viewmats=torch.eye(4)), "viewmats has shape|Ks has shape"),
        (dict(colors=torch.zeros(299, 3)), "colors has shape"),
        (dict(backgrounds=torch.zeros(3)), "backgrounds has shape"),
        (dict(sh_degree=1, colors=torch.zeros(300, 3, 3)), "sh_degree"),
        (dict(render_mode="RGBD"), "render_mode"),
        (dict(rasterize_mode="sharp"), "rasterize_mode"),
        (dict(width=0), "width and height"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        splat.rasterize(**(small_scene() | change))


def test_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="tile_sise"):
        splat.rasterize(**small_scene(), tile_sise=16)


def test_signature_is_that_of_gsplat():
    theirs = inspect.signature(gsplat.rasterization).parameters
    ours = inspect.signature(splat.rasterize).parameters
    own = {"backend", "gsplat_only"}
    different = {n for n in set(ours) - own if ours[n].default != theirs[n].default}
    assert different == {"packed"}
    rest = set(theirs) - set(ours)
    assert rest == set(sys.modules["recon4d.splat.rasterize"]._GSPLAT_ONLY)


def test_gsplat_gets_every_argument(monkeypatch):
    """What is passed on where gsplat renders; that it renders is for the tests marked cuda."""
    module = sys.modules["recon4d.splat.rasterize"]
    monkeypatch.setattr(module, "_choose_backend", lambda forced, device: "gsplat")
    given: dict = {}
    signature = inspect.signature(gsplat.rasterization)
    monkeypatch.setattr(gsplat, "rasterization", lambda *a, **k: given.update(signature.bind(*a, **k).arguments))
    # a value of its own for every parameter, so that a swap shows
    tokens = {name: f"<{name}>" for name in signature.parameters}
    tokens |= {"render_mode": "RGB+ED", "rasterize_mode": "antialiased", "means": torch.zeros(1, 3)}
    splat.rasterize(**tokens)
    assert given == tokens
    given.clear()
    splat.rasterize(**small_scene())
    defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not inspect.Parameter.empty}
    assert {n: given[n] for n in defaults if n in given} == {
        n: v for n, v in (defaults | {"packed": False}).items() if n in given
    }


def test_other_number_types_and_strides():
    scene = small_scene()
    expected, gradient = gradients(scene)
    strided = {
        k: v.double().t().contiguous().t() if torch.is_tensor(v) and v.dim() == 2 else v for k, v in scene.items()
    }
    image, double_gradient = gradients(strided)
    assert torch.equal(image, expected) and image.dtype == torch.float32
    assert double_gradient.dtype == torch.float64 and torch.equal(double_gradient.float(), gradient)


def test_backward_twice_gives_the_same():
    scene = small_scene()
    means = scene["means"].clone().requires_grad_()
    image, alphas, _ = splat.rasterize(**(scene | {"means": means}))
    loss = image.square().sum() + alphas.sum()
    first, second = (torch.autograd.grad(loss, means, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (only_alphas,) = torch.autograd.grad(alphas.sum(), means, retain_graph=True)
    (only_image,) = torch.autograd.grad(image.square().sum(), means)
    torch.testing.assert_close(only_alphas + only_image, first, rtol=1e-4, atol=1e-4)


def gradients(scene):
    means = scene["means"].clone().requires_grad_()
    image, _, _ = splat.rasterize(**(scene | {"means": means}))
    image.square().sum().backward()
    return image.detach(), means.grad


def test_results_do_not_depend_on_the_number_of_threads():
    scene = small_scene(N=2000)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(scene))
    finally:
        torch.set_num_threads(before)
    for image, gradient in results[1:]:
        assert torch.equal(image, results[0][0]) and torch.equal(gradient, results[0][1])


def test_two_python_threads_render_together():
    """The online trainer with a live viewer does this."""
    scenes = [small_scene(seed=seed, N=1500) for seed in range(4)]
    expected = [gradients(scene) for scene in scenes]
    wrong, together = [], threading.Barrier(4)

    def work(index):
        together.wait()
        for _ in range(15):
            image, gradient = gradients(scenes[index])
            if not (torch.equal(image, expected[index][0]) and torch.equal(gradient, expected[index][1])):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads) and not wrong


FRESH = """
import os, sys, torch
from recon4d import splat
n = torch.arange(50.0)
means = torch.stack([n / 50 - 0.5, n * 0, n / 50 + 1], -1).requires_grad_()
K = torch.tensor([[[30.0, 0, 16], [0, 30, 16], [0, 0, 1]]])
def render():
    return splat.rasterize(means, torch.ones(50, 4), torch.full((50, 3), 0.1), torch.full((50,), 0.5),
                           torch.rand(50, 3), torch.eye(4)[None], K, 32, 32)[0]
render()
"""


SMALL = """
import numba
@numba.njit(cache=True, nogil=True)
def kernel(counter, out):
    counter[0] += 1
    out[0] = 7
"""
USES_SMALL = """
import sys
import numpy as np
from recon4d import threads
sys.path.insert(0, sys.argv[1])
import small
out = np.zeros(1)
for _ in range(2):
    threads.run(small.kernel, 1, out)
assert out[0] == 7 and threads.is_cached(small.kernel)
"""


def test_a_kernel_compiles_once_says_so_and_is_warm_in_the_next_process(tmp_path):
    (tmp_path / "small.py").write_text(SMALL)
    runs = [forks.run("python", "-c", USES_SMALL, tmp_path) for _ in range(2)]
    assert [r.returncode for r in runs] == [0, 0], runs[0].stderr
    assert runs[0].stderr.count("compiling the CPU rasterizer") == 1
    assert len(runs[0].stderr.strip().splitlines()) == 1
    assert runs[1].stderr == runs[0].stdout == runs[1].stdout == ""


def test_the_rasterizer_does_so_too(monkeypatch, capfd):
    """Said once where nothing is cached; and what was compiled here, another process has."""
    gradients(small_scene())
    done = forks.run("python", "-c", FRESH + "render().sum().backward()")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    monkeypatch.setattr(threads, "is_cached", lambda kernel: False)
    monkeypatch.setattr(threads, "_announced", set())
    capfd.readouterr()
    gradients(small_scene())
    said = capfd.readouterr()
    assert said.err.count("compiling the CPU rasterizer") == said.err.count("\n") == 1 and said.out == ""


def test_a_forked_child_renders_too():
    code = FRESH + (
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    render().sum().backward()\n"
        "    os._exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
    )
    done = forks.run("python", "-c", code)
    assert done.returncode == 0, done.stderr


def test_vector_functions():
    from numba import njit

    @njit
    def apply(x, powers, logs, sums):
        for i in range(0, len(x), 16):
            simd.store(powers, i, simd.exp2(simd.load(x, i)))
            simd.store(logs, i, simd.log2(simd.absolute(simd.load(x, i))))
            sums[i // 16] = simd.total(simd.load(x, i))

    x = np.linspace(-120, 120, 16 * 500).astype(np.float32)
    x[:160] = np.linspace(0.5, 2, 160)
    powers, logs, sums = np.zeros_like(x), np.zeros_like(x), np.zeros(500, np.float32)
    apply(x, powers, logs, sums)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(powers, np.exp2(exact), rtol=3e-7)
    np.testing.assert_allclose(logs, np.log2(np.abs(exact)), rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(sums, exact.reshape(-1, 16).sum(1), rtol=1e-6, atol=1e-4)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(rasterize_mode="antialiased", render_mode="RGB+ED"),
        dict(render_mode="D", packed=True),
        dict(backgrounds=torch.tensor([[0.2, 0.4, 0.6]])),
        dict(sh_degree=2, colors=torch.rand(300, 9, 3, generator=torch.Generator().manual_seed(1)) - 0.3),
    ],
)
def test_cuda_agrees_with_the_cpu(options):
    results = []
    for device in ("cpu", "cuda"):
        moved = {k: v.to(device) if torch.is_tensor(v) else v for k, v in (small_scene() | options).items()}
        names = [n for n in ("means", "quats", "scales", "opacities", "viewmats") if n in moved]
        leaves = {n: moved[n].clone().requires_grad_() for n in names}
        image, alphas, _ = splat.rasterize(**(moved | leaves))
        grads = torch.autograd.grad(image.square().sum() + alphas.sum(), list(leaves.values()))
        results.append((image.detach().cpu(), alphas.detach().cpu(), [g.cpu() for g in grads]))
    (image, alphas, grads), (other, other_alphas, other_grads) = results
    assert (image - other).abs().mean() < 1e-5 and (alphas - other_alphas).abs().mean() < 1e-5
    for gradient, reference in zip(grads, other_grads):
        assert (gradient - reference).norm() < 1e-2 * reference.norm()


@pytest.mark.cuda
@needs_cuda
def test_distributed_passes_through(tmp_path):
    """One rank is enough to see that gsplat's distributed rasterization is reached."""
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        scene = small_scene(device="cuda", packed=True)
        image, _, _ = splat.rasterize(**scene, distributed=True)
        torch.testing.assert_close(image, splat.rasterize(**scene)[0], rtol=1e-4, atol=1e-4)
    finally:
        torch.distributed.destroy_process_group()
