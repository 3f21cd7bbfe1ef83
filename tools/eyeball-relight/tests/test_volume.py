"""Ray marching and compositing against known shapes and dense quadrature."""

import math

import torch
from eyeball_relight import marching, volume


def ball(size=64, radius=0.5):
    points = marching.grid_points(size)
    return points.norm(dim=-1) - radius


def camera_rays(n=400):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(n, 3, generator=generator) * 1.6 - 0.8
    origin = torch.tensor([0.0, 0, 3]).expand(n, 3)
    return origin, torch.nn.functional.normalize(target - origin, dim=1)


def test_bins_lie_on_the_surface():
    origin, direction = camera_rays()
    wanted = torch.zeros(len(origin), dtype=torch.bool)
    jitter = torch.full((len(origin), 9), 0.5)
    edges, hit = marching.bins_along(ball(), torch.zeros(0, 3), 0.1, 0.01, origin, direction, wanted, 8, jitter)
    along = -(origin * direction).sum(1)
    miss = (origin.square().sum(1) - along**2).clamp(min=0).sqrt()
    assert hit[miss < 0.45].all() and not hit[miss > 0.7].any()
    straight = miss < 0.4
    truth = along - (0.25 - miss**2).clamp(min=0).sqrt()
    assert (edges.diff(dim=1) >= 0).all()
    assert (edges[straight].median(1).values - truth[straight]).abs().max() < 0.06
    assert (edges[straight, -1] - edges[straight, 0]).max() < 0.5


def test_eyeballs_stop_rays_before_the_face():
    origin, direction = torch.tensor([[0.0, 0, 3]]), torch.tensor([[0.0, 0, -1]])
    centres = torch.tensor([[0.0, 0, 0.6]])
    jitter = torch.full((1, 9), 0.5)
    no = torch.zeros(1, dtype=torch.bool)
    edges, _ = marching.bins_along(ball(), centres, 0.1, 0.005, origin, direction, no, 8, jitter)
    assert abs(float(edges[0].median()) - 2.3) < 0.05


def test_a_wanted_ray_is_sampled_where_nothing_is_yet():
    origin, direction = torch.tensor([[0.9, 0, 3]]), torch.tensor([[0.0, 0, -1]])
    jitter = torch.full((1, 9), 0.5)
    for wanted in (True, False):
        flag = torch.tensor([wanted])
        _, hit = marching.bins_along(ball(), torch.zeros(0, 3), 0.1, 0.01, origin, direction, flag, 8, jitter)
        assert bool(hit[0]) == wanted
    away, hit = marching.bins_along(ball(), torch.zeros(0, 3), 0.1, 0.01, -origin, direction, ~flag, 8, jitter)
    assert not hit[0] and away.abs().max() == 0  # behind the cube


def test_density_is_the_laplace_cdf():
    beta, s = torch.tensor(0.1), torch.linspace(-1, 1, 201, dtype=torch.float64)
    laplace = torch.distributions.Laplace(0.0, 0.1)
    torch.testing.assert_close(volume.density(s, beta), laplace.cdf(-s) / 0.1, rtol=1e-5, atol=1e-6)


def test_compositing_converges_to_the_integral():
    """A ray straight into a slab: transmittance is exp of minus the integral of the density (Max 1995, equation 1)."""
    beta, n = torch.tensor(0.05, dtype=torch.float64), 4000
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    distance = 0.5 - t
    lengths = torch.full((1, n), 1 / n, dtype=torch.float64)
    weights, parts = volume.composite(distance.view(1, n, 1), lengths, beta)
    # the integral of the density over [0, 1], in closed form on both sides of the surface
    depth = 0.5 * (1 - math.exp(-0.5 / 0.05)) + (0.5 / 0.05 - 0.5 * (1 - math.exp(-0.5 / 0.05)))
    assert abs(float(weights.sum()) - (1 - math.exp(-depth))) < 1e-4
    torch.testing.assert_close(parts[:, 0], weights.sum(1))


def test_a_hidden_part_has_no_opacity():
    t = (torch.arange(200) + 0.5) / 200
    front, behind = 0.3 - t, 0.8 - t
    distances = torch.stack([behind, front, torch.full_like(t, 5.0)], -1)[None]
    _, parts = volume.composite(distances, torch.full((1, 200), 1 / 200), torch.tensor(0.004))
    assert parts[0, 1] > 0.99 and parts[0, 0] < 0.01 and parts[0, 2] < 1e-6
