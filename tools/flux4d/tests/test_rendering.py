"""Motion of Gaussians and its image: against integration and finite differences."""

import dataclasses

import numpy as np
import pytest
import torch
from flux4d import lift, pictures, rendering, scene, training
from recon4d.cameras import project
from scipy.integrate import quad
from scipy.spatial import cKDTree


@pytest.fixture
def moving():
    """A few Gaussians with polynomial motion, in float64."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = 6
    return lift.Gaussians(
        means=random(n, 3) + torch.tensor([0, 0, 9.0], dtype=torch.float64),
        scales=random(n, 3),
        quats=torch.nn.functional.normalize(random(n, 4), dim=1),
        opacities=random(n, 1),
        colours=random(n, 3),
        times=torch.rand(n, generator=generator, dtype=torch.float64),
        velocities=random(n, 3, 3),
        sky=torch.zeros(n, dtype=torch.bool),
    )


def test_positions_integrate_velocities(moving):
    times = torch.tensor([0.0, 0.35, 1.2], dtype=torch.float64)
    found = rendering.moved(moving, times)
    for f, time in enumerate(times.tolist()):
        for i in range(len(moving)):
            for axis in range(3):

                def speed(t, i=i, axis=axis):
                    return float(rendering.velocity_at(moving, torch.tensor([t], dtype=torch.float64))[0, i, axis])

                way, _ = quad(speed, float(moving.times[i]), time)
                assert float(found[f, i, axis]) == pytest.approx(float(moving.means[i, axis]) + way, abs=1e-9)


def test_image_velocity_is_the_projections_derivative(moving):
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.linalg.matrix_exp(torch.tensor([[0, 0.1, 0.2], [-0.1, 0, -0.3], [-0.2, 0.3, 0]]).double())
    K = torch.tensor([[80.0, 0, 50], [0, 90, 40], [0, 0, 1]], dtype=torch.float64)
    time, step = torch.tensor([0.4], dtype=torch.float64), 0.1
    views = rendering.Views(pose[None], K, time, torch.tensor([step], dtype=torch.float64), 100, 80)
    slow = dataclasses.replace(moving, velocities=0.3 * moving.velocities)
    here, velocity = rendering.moved(slow, time), rendering.velocity_at(slow, time)
    found = rendering.image_velocity(here, velocity, views)[0]
    d = 1e-6
    after, before = (project(rendering.moved(slow, time + s)[0], K, pose)[0] for s in (d, -d))
    torch.testing.assert_close(found, (after - before) / (2 * d) * step, rtol=1e-6, atol=1e-7)
    # faster than 10 pixels: the direction stays
    fast = rendering.image_velocity(here, 1000 * velocity, views)[0]
    torch.testing.assert_close(fast.norm(dim=-1), torch.full((len(moving),), 10.0, dtype=torch.float64))
    torch.testing.assert_close(fast / 10, torch.nn.functional.normalize(found, dim=-1))
    behind = rendering.image_velocity(here - torch.tensor([0, 0, 30.0]).double(), velocity, views)
    assert behind.isfinite().all()


def test_rendered_flow_of_a_moving_ball():
    """One opaque Gaussian moves to the right: the flow in its middle is its own, and the picture moves with it."""
    ball = lift.Gaussians(
        means=torch.tensor([[0.0, 0, 10]]),
        scales=lift.inverse_softplus(torch.full((1, 3), 0.5)),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        opacities=torch.full((1, 1), 6.0),
        colours=torch.tensor([[3.0, -3, -3]]),
        times=torch.zeros(1),
        velocities=torch.tensor([[[10.0, 0, 0]]]),
        sky=torch.zeros(1, dtype=torch.bool),
    )
    K = torch.tensor([[50.0, 0, 32], [0, 50, 32], [0, 0, 1]])
    times = torch.tensor([0.0, 0.2])
    views = rendering.Views(torch.eye(4).repeat(2, 1, 1), K, times, torch.full((2,), 0.1), 64, 64)
    shown = rendering.render(ball, views, flow=True)
    assert shown.colour[0, 32, 32, 0] > 0.9 and shown.colour[1, 32, 42, 0] > 0.9  # 2 m at 10 m are 10 pixels
    assert shown.depth[0, 32, 32] == pytest.approx(10, abs=0.01)
    expected = shown.alpha[0, 32, 32] * torch.tensor([5.0, 0])  # weighted as colour is
    torch.testing.assert_close(shown.flow[0, 32, 32], expected, atol=1e-3, rtol=0)
    red = pictures.flow_colours(shown.flow[0].numpy())[32, 32]
    assert red[0] > 100 and red[1] == red[2] == 0


def test_lifted_points(clip, sample):
    """Colours, scales, times and places of the initial Gaussians are those of the points."""
    gaussians = sample.given.gaussians
    assert len(gaussians) > 2500 and gaussians.sky.sum() > 100
    torch.testing.assert_close(gaussians.quats.norm(dim=1), torch.ones(len(gaussians)))
    assert torch.all(gaussians.opacities == 0) and torch.all(gaussians.velocities == 0)
    solid = lift.Gaussians(**{name: value[~gaussians.sky] for name, value in vars(gaussians).items()})
    tree = cKDTree(torch.cat([clip.points[frame] for frame in clip.input]).numpy())
    assert tree.query(solid.means.numpy())[0].max() == 0
    # a static point is its image's colour in its own frame: render error is small without any training
    for frame in (0, 4, 10):
        own = (solid.times - clip.lidar_times[frame]).abs() < 0.04
        pixels, depth = project(solid.means[own], clip.K, clip.world_to_camera[frame])
        assert (depth > 0).all() and (pixels >= 0).all() and (pixels[:, 0] < clip.width).all()
        column, row = pixels.long().T
        expected = clip.images[frame][row, column].float().div(255).clamp(0.02, 0.98)
        torch.testing.assert_close(solid.colours[own].sigmoid(), expected, atol=1e-4, rtol=0)


def test_neighbour_distance_and_downsampling():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 3))
    every = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.testing.assert_allclose(lift.neighbour_distance(points), np.sort(every, 1)[:, 1:4].mean(1))
    assert lift.neighbour_distance(points[:2]).tolist() == [0.1, 0.1]
    twice = torch.from_numpy(np.concatenate([points, points + 1e-9])).float()
    times = torch.zeros(120)
    kept = lift.voxel_downsample(twice, times, 0.2)
    assert len({tuple(v) for v in (twice[kept] // 0.2).tolist()}) == len(kept) <= 60
    # the same place at another moment is another point: the thing moved there
    assert len(lift.voxel_downsample(twice, torch.arange(120) // 60 * 0.1, 0.2)) == 2 * len(kept)
    sky = lift.sky_points(100.0, 500)
    torch.testing.assert_close(sky.norm(dim=1), torch.full((500,), 100.0))
    assert sky[:, 2].min() > 0 and sky[:, :2].mean(0).abs().max() < 2


def test_inverse_softplus():
    x = torch.tensor([1e-4, 0.3, 5.0, 60.0], dtype=torch.float64)
    torch.testing.assert_close(torch.nn.functional.softplus(lift.inverse_softplus(x)), x)


def test_scene_in_the_world_renders_the_same(sample, tmp_path):
    """Written, read again and rendered in the world along the camera's path: the picture of the clip's own frame."""
    gaussians = dataclasses.replace(
        sample.given.gaussians, velocities=0.3 * torch.randn(len(sample.given.gaussians), 2, 3)
    )
    scene.write(tmp_path, scene.to_world(gaussians, sample.clip.ego_to_world), scene.camera_path(sample.clip))
    placed, path = scene.read(tmp_path)
    assert placed.velocities.shape == (len(gaussians), 2, 3)
    speed = rendering.velocity_at(gaussians, path.times[3:4]).norm(dim=-1)
    torch.testing.assert_close(rendering.velocity_at(placed, path.times[3:4]).norm(dim=-1), speed, atol=1e-4, rtol=1e-3)
    here = rendering.render(gaussians, training.some_views(sample.views, [3])).colour[0]
    there = rendering.render(placed, scene.at_times(path, path.times[3:4])).colour[0]
    assert (here - there).abs().mean() < 2e-3 and here.std() > 0.1
    # between two frames the camera is between them
    between = scene.at_times(path, path.times[3:5].mean()[None])
    middle = torch.linalg.inv(between.world_to_camera[0])[:3, 3]
    torch.testing.assert_close(middle, path.poses[3:5, :3, 3].mean(0), atol=1e-3, rtol=0)
