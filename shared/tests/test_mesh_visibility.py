"""Visibility against a float64 brute force over all (pixel, triangle) pairs, against PyTorch3D, and by properties."""

import concurrent.futures
import os
import sys
import types

import forks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recon4d import mesh, threads
from recon4d.mesh.visibility import _nvdiffrast_context, choose_backend


def sphere(n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit sphere, counterclockwise seen from outside."""
    theta, phi = torch.linspace(0.05, 3.09, n + 1), torch.arange(m) * (2 * torch.pi / m)
    ring = theta.sin()[:, None]
    vertices = torch.stack([ring * phi.cos(), theta.cos()[:, None].expand(-1, m), ring * phi.sin()], -1).reshape(-1, 3)
    i, j = torch.arange(n)[:, None], torch.arange(m)[None]
    a, b, c, d = i * m + j, i * m + (j + 1) % m, (i + 1) * m + (j + 1) % m, (i + 1) * m + j
    faces = torch.cat([torch.stack([a, b, c], -1).view(-1, 3), torch.stack([a, c, d], -1).view(-1, 3)])
    return vertices, faces


def perspective(points: torch.Tensor, focal: float = 2.0, near: float = 0.1, far: float = 20.0) -> torch.Tensor:
    """OpenGL camera at the origin looking along -z."""
    x, y, z = points.unbind(-1)
    slope, offset = (far + near) / (near - far), 2 * far * near / (near - far)
    return torch.stack([focal * x, focal * y, slope * z + offset, -z], -1)


def soup(seed: int, count: int, size: float = 1.0, depth: tuple[float, float] = (1.0, 6.0)) -> torch.Tensor:
    """`count` random triangles in front of `perspective`: (3 count, 4) clip space."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 1, 3, generator=generator) * torch.tensor([4.0, 4.0, depth[1] - depth[0]])
    points = (
        centre + torch.tensor([-2.0, -2.0, -depth[1]]) + (torch.rand(count, 3, 3, generator=generator) - 0.5) * size
    )
    return perspective(points.view(-1, 3))


def brute_force(pos: torch.Tensor, tri: torch.Tensor, height: int, width: int, cull: str | None = None):
    """Nearest triangle by float64 homogeneous edge functions, and how sure that is: (ids, depth, doubtful)."""
    p = pos.double()[tri.long()]  # (F, 3, 4)
    px = ((torch.arange(width).double() + 0.5) * 2 / width - 1)[None, None, :, None]
    py = (1 - (torch.arange(height).double() + 0.5) * 2 / height)[None, :, None, None]
    x = p[:, None, None, :, 0] - px * p[:, None, None, :, 3]
    y = p[:, None, None, :, 1] - py * p[:, None, None, :, 3]
    area = x[..., [1, 2, 0]] * y[..., [2, 0, 1]] - y[..., [1, 2, 0]] * x[..., [2, 0, 1]]
    total = area.sum(-1, keepdim=True)
    bary = area / total
    w = (bary * p[:, None, None, :, 3]).sum(-1)
    z = (bary * p[:, None, None, :, 2]).sum(-1) / w
    # distance from the edges in pixels, by the gradient of the edge functions
    scale = torch.stack([
        torch.hypot(
            (p[:, k, 1] * p[:, j, 3] - p[:, j, 1] * p[:, k, 3]) * 2 / width,
            (p[:, j, 0] * p[:, k, 3] - p[:, k, 0] * p[:, j, 3]) * 2 / height,
        )
        for j, k in ((1, 2), (2, 0), (0, 1))
    ], -1)  # fmt: skip
    signed = (area / scale[:, None, None] * total.sign()).amin(-1)  # > 0 inside
    inside = (bary >= 0).all(-1) & (w > 0) & (z >= -1) & (z < 1) & (total[..., 0] != 0)
    front = torch.linalg.det(p[..., [0, 1, 3]])[:, None, None] > 0
    if cull:
        inside = inside & (front if cull == "back" else ~front)
    z = torch.where(inside, z, torch.inf)
    depth, ids = z.min(0)
    covered = depth.isfinite()
    second = torch.where(torch.arange(len(tri))[:, None, None] == ids, torch.inf, z).amin(0)
    near_edge = ((signed.abs() < 1e-3) & (w > 0)).any(0) | ((z + 1).abs().amin(0) < 1e-5)
    doubtful = near_edge | ((second - depth).abs() < 1e-6)
    return torch.where(covered, ids, -1), torch.where(covered, depth, 1.0), doubtful


def assert_agrees(pos, tri, height, width, cull=None, backend="numba"):
    ids, depth = mesh.visibility(pos[None], tri, (height, width), backend, cull)
    want, want_depth, doubtful = brute_force(pos, tri, height, width, cull)
    same = (ids[0] == want) | doubtful
    assert same.all(), f"{(~same).sum()} pixels differ away from edges"
    assert doubtful.float().mean() < 0.05
    clear = ~doubtful
    # vertices snapped by up to 1 / 65536 pixel, times NDC depth slopes of up to 2 per pixel at the near plane
    torch.testing.assert_close(depth[0][clear].double(), want_depth[clear], atol=3e-5, rtol=0)
    assert (want >= 0).any()


@pytest.mark.parametrize("backend", ["numba", "pytorch3d"])
@pytest.mark.parametrize("cull", [None, "back", "front"])
def test_random_triangles(backend, cull):
    pos = soup(1, 120)
    assert_agrees(pos, torch.arange(360).view(-1, 3), 37, 52, cull, backend)


@pytest.mark.parametrize("backend", ["numba", "pytorch3d"])
def test_triangles_across_the_near_plane_are_clipped(backend):
    generator = torch.Generator().manual_seed(3)
    points = (torch.rand(25, 3, 3, generator=generator) - 0.5) * torch.tensor([3.0, 3.0, 4.0])
    pos = perspective(points.view(-1, 3), near=0.3)
    tri = torch.arange(75).view(-1, 3)
    behind = (pos[..., 2] < -pos[..., 3]).view(-1, 3)
    assert (behind.any(1) & ~behind.all(1)).sum() > 5
    assert_agrees(pos, tri, 40, 40, backend=backend)


def test_a_floor_under_the_camera_reaches_the_bottom_of_the_image():
    floor = torch.tensor([[-50.0, -1, 50], [50, -1, 50], [50, -1, -50], [-50, -1, -50]])
    tri = torch.tensor([[0, 1, 2], [0, 2, 3]])
    ids, _ = mesh.visibility(perspective(floor, far=1000.0)[None], tri, (32, 32))
    assert (ids[0, 18:] >= 0).all() and (ids[0, :16] == -1).all()


@pytest.mark.parametrize("scale", [30.0, 1e4, 1e8, 1e15])
def test_enormous_triangles(scale):
    pos = torch.tensor([[-1.0, -0.9, 0, 1], [1.1, -1, 0.5, 1], [0.1, 1, 0.2, 1]]) * torch.tensor([scale, scale, 1, 1])
    ids, depth = mesh.visibility(pos[None], torch.tensor([[0, 1, 2]]), (33, 47))
    assert (ids == 0).all() and depth.isfinite().all()
    assert_agrees(pos, torch.tensor([[0, 1, 2]]), 33, 47)


def test_sub_pixel_triangles_cover_the_pixels_that_hold_a_centre():
    vertices, tri = sphere(60, 60)
    pos = perspective(vertices * 0.9 + torch.tensor([0.0, 0, -4]))
    ids, _ = mesh.visibility(pos[None], tri, (10, 10), cull="back")
    want, _, doubtful = brute_force(pos, tri, 10, 10, "back")
    assert ((ids[0] == want) | doubtful).all() and doubtful.sum() < 10
    assert (ids[0, 4:6, 4:6] >= 0).all()  # no holes between tiny triangles


def test_nothing_crashes_on_degenerate_input():
    pos = soup(5, 40)
    tri = torch.arange(120).view(-1, 3)
    good, _ = mesh.visibility(pos[None], tri, (32, 32))
    bad = pos.clone()
    bad[0:3, 0] = float("nan")
    bad[3, 2] = float("inf")
    bad[6, 3] = float("-inf")
    bad[9:12] = 0.0  # all at the origin of clip space
    bad[12] = bad[13]  # zero area
    bad[15:18] = bad[15:18] * torch.tensor([1.0, 1, 1, -1])  # behind the camera
    bad[18:21] *= 1e30
    ids, depth = mesh.visibility(bad[None], tri, (32, 32))
    assert not torch.isin(ids, torch.tensor([0, 1, 2, 3, 4])).any()
    assert depth.isfinite().all()
    untouched = torch.isin(ids, torch.arange(7, 40, dtype=torch.int32))
    assert (ids[untouched] == good[untouched]).float().mean() > 0.9
    one_line = torch.tensor([[0, 0, 1], [2, 2, 2]])
    assert (mesh.visibility(pos[None], one_line, (8, 8))[0] == -1).all()


def test_empty_inputs():
    none = torch.empty(0, 3, dtype=torch.int64)
    for pos, tri in (
        (torch.rand(2, 5, 4), none),
        (torch.rand(2, 0, 4), none),
        (torch.rand(0, 5, 4), torch.zeros(1, 3).int()),
    ):
        ids, depth = mesh.visibility(pos, tri, (4, 6))
        assert ids.shape == depth.shape == (len(pos), 4, 6) and (ids == -1).all() and (depth == 1).all()


def grid_positions(xy: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Clip positions of image points (pixels, origin top left); exact for power-of-two sizes."""
    ndc = torch.stack([xy[:, 0] * 2 / width - 1, 1 - xy[:, 1] * 2 / height], -1)
    return torch.cat([ndc, torch.zeros(len(xy), 1), torch.ones(len(xy), 1)], -1)


def test_top_left_rule_half_open_rectangle():
    xy = torch.tensor([[2.5, 2.5], [6.5, 2.5], [6.5, 5.5], [2.5, 5.5]])
    for tri in ([[0, 1, 2], [0, 2, 3]], [[1, 0, 3], [3, 2, 1]], [[2, 1, 0], [0, 3, 2]]):
        ids, _ = mesh.visibility(grid_positions(xy, 16, 16)[None], torch.tensor(tri), (16, 16))
        want = torch.zeros(16, 16, dtype=torch.bool)
        want[2:5, 2:6] = True  # top and left edges in, bottom and right edges out
        assert ((ids[0] >= 0) == want).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_every_pixel_of_a_tiling_is_drawn_exactly_once(seed):
    # a triangulated square whose inner vertices sit on pixel centres, quarter pixels or anywhere
    generator = torch.Generator().manual_seed(seed)
    n = 6
    xy = torch.stack(torch.meshgrid(torch.linspace(0, 32, n), torch.linspace(0, 32, n), indexing="xy"), -1)
    step = (0.5, 0.25, 1e-4)[seed % 3]
    jitter = ((torch.rand(n, n, 2, generator=generator) - 0.5) * 5 / step).round() * step
    inner = torch.zeros(n, n, 1)
    inner[1:-1, 1:-1] = 1
    xy = (((xy / step).round() * step + jitter) * inner + xy * (1 - inner)).view(-1, 2)
    i = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).view(-1)
    flip = torch.rand(len(i), generator=generator) < 0.5
    one = torch.where(flip[:, None], torch.stack([i, i + 1, i + n + 1], -1), torch.stack([i, i + 1, i + n], -1))
    two = torch.where(flip[:, None], torch.stack([i, i + n + 1, i + n], -1), torch.stack([i + 1, i + n + 1, i + n], -1))
    tri = torch.cat([one, two])
    pos = grid_positions(xy, 32, 32)
    corner = xy[tri]
    u, v = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    if (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0] <= 0).any():
        return  # folded over: not a tiling
    drawn = sum((mesh.visibility(pos[None], t[None], (32, 32))[0] >= 0).int() for t in tri)
    assert (drawn == 1).all()


def test_culling_follows_the_winding():
    vertices, tri = sphere(12, 16)
    pos = perspective(vertices * 0.8 + torch.tensor([0.0, 0, -4]))[None]
    both, _ = mesh.visibility(pos, tri, (40, 40))
    back, depth = mesh.visibility(pos, tri, (40, 40), cull="back")
    front, inner = mesh.visibility(pos, tri, (40, 40), cull="front")
    assert (both == back).all() and (front[both >= 0] != both[both >= 0]).all()
    assert (inner[both >= 0] > depth[both >= 0]).all()
    flipped, _ = mesh.visibility(pos, tri[:, [0, 2, 1]], (40, 40), cull="front")
    assert (flipped == both).all()


def test_row_zero_is_the_top_and_equal_depth_goes_to_the_first():
    xy = torch.tensor([[0.0, 0], [16, 0], [0, 8], [16, 8]])  # upper half of a 16 x 16 image
    pos = grid_positions(xy, 16, 16)[None]
    ids, _ = mesh.visibility(pos, torch.tensor([[0, 1, 2], [1, 3, 2], [0, 1, 2]]), (16, 16))
    assert (ids[0, :8] >= 0).all() and (ids[0, 8:] == -1).all() and not (ids == 2).any()


# properties


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_permuting_triangles_permutes_ids(seed):
    pos, tri = soup(seed, 60)[None], torch.arange(180).view(-1, 3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    ids, depth = mesh.visibility(pos, tri, (48, 48))
    other, other_depth = mesh.visibility(pos, tri[order], (48, 48))
    named = torch.where(other >= 0, order[other.clamp(min=0).long()], -1)
    assert torch.equal(depth, other_depth)
    assert torch.equal(ids.long(), named)  # random depths: no ties


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(-20, 20), st.integers(-20, 20))
def test_shifting_by_whole_pixels_shifts_the_image(seed, dx, dy):
    pos, tri = soup(seed, 40)[None], torch.arange(120).view(-1, 3)
    moved = pos.clone().double()
    moved[..., 0] += moved[..., 3] * (2 * dx / 64)
    moved[..., 1] -= moved[..., 3] * (2 * dy / 64)
    one, _ = mesh.visibility(pos, tri, (64, 64))
    two, _ = mesh.visibility(moved.float(), tri, (64, 64))
    a = one[0, max(0, -dy) : 64 - max(0, dy), max(0, -dx) : 64 - max(0, dx)]
    b = two[0, max(0, dy) : 64 - max(0, -dy), max(0, dx) : 64 - max(0, -dx)]
    assert (a != b).sum() <= 2  # float32 rounding of the shifted positions can move an edge over a centre


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_splitting_a_batch_changes_nothing(seed, cut):
    pos, tri = torch.stack([soup(seed + i, 40) for i in range(5)]), torch.arange(120).view(-1, 3)
    ids, depth = mesh.visibility(pos, tri, (33, 29))
    parts = [mesh.visibility(part, tri, (33, 29)) for part in (pos[:cut], pos[cut:])]
    assert torch.equal(ids, torch.cat([p[0] for p in parts])) and torch.equal(depth, torch.cat([p[1] for p in parts]))


@settings(max_examples=10, deadline=None)
@given(st.floats(0, 6), st.floats(2.5, 6), st.integers(12, 40))
def test_doubling_the_resolution_refines_the_image(angle, distance, size):
    vertices, tri = sphere(9, 14)
    turn = torch.tensor([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    pos = perspective(vertices @ turn.float() + torch.tensor([0.0, 0, -distance]))[None]
    low, _ = mesh.visibility(pos, tri, (size, size), cull="back")
    high, _ = mesh.visibility(pos, tri, (2 * size, 2 * size), cull="back")
    four = high.view(1, size, 2, size, 2)
    agree = (four == four[:, :, :1, :, :1]).all(4).all(2)
    # a convex triangle that holds the four centres of a block holds their mean, the centre of the large pixel
    assert torch.equal(low[agree], four[:, :, 0, :, 0][agree]) and agree.float().mean() > 0.3


# threads and processes


def test_the_number_of_threads_does_not_matter():
    pos, tri = torch.stack([soup(i, 300) for i in range(2)]), torch.arange(900).view(-1, 3)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(mesh.visibility(pos, tri, (100, 90)))
    finally:
        torch.set_num_threads(before)
    for ids, depth in results[1:]:
        assert torch.equal(ids, results[0][0]) and torch.equal(depth, results[0][1])


def test_a_large_mesh_is_binned_by_several_threads_alike():
    pos, tri = soup(7, 31000, size=0.05), torch.arange(93000).view(-1, 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = mesh.visibility(pos[None], tri, (128, 128))
        torch.set_num_threads(3)
        three = mesh.visibility(pos[None], tri, (128, 128))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], three[0]) and torch.equal(one[1], three[1])


def test_two_python_threads_may_render_together():
    scenes = [(soup(i, 200)[None], torch.arange(600).view(-1, 3)) for i in range(2)]
    want = [mesh.visibility(pos, tri, (64, 64))[0] for pos, tri in scenes]

    def loop(number: int) -> bool:
        pos, tri = scenes[number]
        return all(torch.equal(mesh.visibility(pos, tri, (64, 64))[0], want[number]) for _ in range(40))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert all(pool.map(loop, [0, 1]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_may_render():
    code = """
import os, torch
from recon4d import mesh
pos, tri = torch.rand(1, 30, 4) + torch.tensor([0., 0, 0, 1]), torch.arange(30).view(-1, 3)
torch.set_num_threads(2)
want = mesh.rasterize(pos, tri, (64, 64)).bary
pid = os.fork()
if pid == 0:
    os._exit(0 if torch.equal(mesh.rasterize(pos, tri, (64, 64)).bary, want) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    done = forks.run("python", "-c", code)
    assert done.returncode == 0, done.stderr


def test_compiling_is_announced_once_and_cached_for_the_next_process(monkeypatch, capfd):
    """`test_splat_backends` sees a kernel compiled from nothing; the rasterizer's take ten seconds."""
    triangle = torch.rand(1, 3, 4), torch.tensor([[0, 1, 2]]), (8, 8)
    mesh.visibility(*triangle)
    draw = "mesh.visibility(torch.rand(1, 3, 4), torch.tensor([[0, 1, 2]]), (8, 8))"
    done = forks.run("python", "-c", f"import torch; from recon4d import mesh; {draw}")
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.setattr(threads, "is_cached", lambda kernel: False)
    monkeypatch.setattr(threads, "_announced", set())
    capfd.readouterr()
    for _ in range(2):
        mesh.visibility(*triangle)
    assert capfd.readouterr().err.count("compiling the mesh rasterizer once") == 1


# errors and backends


@pytest.mark.parametrize(
    ("pos", "tri", "size", "options", "words"),
    [
        (torch.rand(4, 4), torch.zeros(1, 3).int(), (4, 4), {}, "pos_clip has shape"),
        (torch.rand(1, 4, 4), torch.zeros(1, 3), (4, 4), {}, "give integers"),
        (torch.rand(1, 4, 4), torch.tensor([[0, 1, 4]]), (4, 4), {}, "outside 0..3"),
        (torch.rand(1, 4, 4), torch.tensor([[0, 1, -1]]), (4, 4), {}, "outside 0..3"),
        (torch.rand(1, 4, 4), torch.tensor([[0, 1, 4]]), (4, 4), {"backend": "pytorch3d"}, "outside 0..3"),
        (torch.rand(1, 4, 4), torch.tensor([[0, 1, 2]]), (0, 4), {}, "out of range"),
        (torch.rand(1, 4, 4), torch.tensor([[0, 1, 2]]), (4, 4), {"cull": "left"}, "cull='left'"),
        (
            torch.rand(1, 4, 4),
            torch.tensor([[0, 1, 2]]),
            (4, 4),
            {"backend": "opengl"},
            "'opengl' does not exist",
        ),
    ],
)
def test_errors_name_what_is_wrong(pos, tri, size, options, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        mesh.visibility(pos, tri, size, **options)


def test_backends_say_why_they_are_not_usable(monkeypatch):
    found = mesh.backends()
    assert set(found) == {"numba", "nvdiffrast", "pytorch3d"} and found["numba"] is None
    if not torch.cuda.is_available():
        assert "nvdiffrast" in found["nvdiffrast"]
        with pytest.raises(ValueError, match="not usable"):
            mesh.visibility(torch.rand(1, 4, 4), torch.tensor([[0, 1, 2]]), (4, 4), "nvdiffrast")
    monkeypatch.setenv("RECON4D_MESH_BACKEND", "pytorch3d")
    assert choose_backend(torch.device("cpu")) == "pytorch3d"
    assert choose_backend(torch.device("cpu"), "numba") == "numba"


def test_what_pytorch_has_compiled_for_nvdiffrast_is_found(monkeypatch, tmp_path):
    def context(device):
        if str(tmp_path / "nvdiffrast_plugin_1") not in sys.path:
            raise ModuleNotFoundError("No module named 'nvdiffrast_plugin_1'", name="nvdiffrast_plugin_1")
        return f"on {device}"

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    fake = types.ModuleType("nvdiffrast.torch")
    fake.RasterizeCudaContext = context
    package = types.ModuleType("nvdiffrast")
    package.torch = fake
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", fake)
    assert _nvdiffrast_context.__wrapped__("cuda:0") == "on cuda:0"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["nvdiffrast", "pytorch3d", "numba"])
@pytest.mark.parametrize("cull", [None, "back", "front"])
def test_cuda_backends_agree_with_the_cpu(backend, cull):
    if mesh.backends()[backend] is not None:
        pytest.skip(mesh.backends()[backend])
    vertices, tri = sphere(24, 32)
    pos = torch.stack([perspective(vertices * s + torch.tensor([0.0, 0.2, -4])) for s in (0.8, 1.2)])
    want, depth = mesh.visibility(pos, tri, (100, 84), "numba", cull)
    ids, z = mesh.visibility(pos.cuda(), tri.cuda(), (100, 84), backend, cull)
    assert ids.is_cuda and ids.dtype == torch.int32
    assert (ids.cpu() != want).float().mean() < 0.0075  # nvdiffrast snaps to 1/16 pixel
    same = ids.cpu() == want
    torch.testing.assert_close(z.cpu()[same], depth[same], atol=1e-4, rtol=0)
