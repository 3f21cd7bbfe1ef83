"""Motion of Gaussians and its image: against integration and finite differences."""

import dataclasses

import pytest
import torch
from flux4d import pictures, rendering, scenes
from flux4d.clips import path_in_world
from flux4d.gaussians import MovingGaussians, inverse_softplus, moved, to_world, velocity_at
from flux4d.timed_cameras import at_times, timed_cameras
from recon4d.cameras import project
from scipy.integrate import quad


@pytest.fixture
def moving():
    """A few Gaussians with polynomial motion, in float64."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = 6
    return MovingGaussians(
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
    found = moved(moving, times)
    for f, time in enumerate(times.tolist()):
        for i in range(len(moving)):
            for axis in range(3):

                def speed(t, i=i, axis=axis):
                    return float(velocity_at(moving, torch.tensor([t], dtype=torch.float64))[0, i, axis])

                way, _ = quad(speed, float(moving.times[i]), time)
                assert float(found[f, i, axis]) == pytest.approx(float(moving.means[i, axis]) + way, abs=1e-9)


def test_image_velocity_is_the_projections_derivative(moving):
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.linalg.matrix_exp(torch.tensor([[0, 0.1, 0.2], [-0.1, 0, -0.3], [-0.2, 0.3, 0]]).double())
    K = torch.tensor([[80.0, 0, 50], [0, 90, 40], [0, 0, 1]], dtype=torch.float64)
    time, step = torch.tensor([0.4], dtype=torch.float64), 0.1
    camera = timed_cameras(pose[None], K, time, 100, 80)  # its step is 0.1
    slow = dataclasses.replace(moving, velocities=0.3 * moving.velocities)
    here, velocity = moved(slow, time), velocity_at(slow, time)
    found = rendering.image_velocity(here, velocity, camera)[0]
    d = 1e-6
    after, before = (project(moved(slow, time + s)[0], K, pose)[0] for s in (d, -d))
    torch.testing.assert_close(found, (after - before) / (2 * d) * step, rtol=1e-6, atol=1e-7)
    # faster than 10 pixels: the direction stays
    fast = rendering.image_velocity(here, 1000 * velocity, camera)[0]
    torch.testing.assert_close(fast.norm(dim=-1), torch.full((len(moving),), 10.0, dtype=torch.float64))
    torch.testing.assert_close(fast / 10, torch.nn.functional.normalize(found, dim=-1))
    behind = rendering.image_velocity(here - torch.tensor([0, 0, 30.0]).double(), velocity, camera)
    assert behind.isfinite().all()


def test_rendered_flow_of_a_moving_ball():
    """One opaque Gaussian moves to the right: the flow in its middle is its own, and the picture moves with it."""
    ball = MovingGaussians(
        means=torch.tensor([[0.0, 0, 10]]),
        scales=inverse_softplus(torch.full((1, 3), 0.5)),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        opacities=torch.full((1, 1), 6.0),
        colours=torch.tensor([[3.0, -3, -3]]),
        times=torch.zeros(1),
        velocities=torch.tensor([[[10.0, 0, 0]]]),
        sky=torch.zeros(1, dtype=torch.bool),
    )
    K = torch.tensor([[50.0, 0, 32], [0, 50, 32], [0, 0, 1]])
    times = torch.tensor([0.0, 0.2])
    cameras = timed_cameras(torch.eye(4).repeat(2, 1, 1), K, times, 64, 64)
    cameras = dataclasses.replace(cameras, steps=torch.full((2,), 0.1))
    shown = rendering.render(ball, cameras, flow=True)
    assert shown.colour[0, 32, 32, 0] > 0.9 and shown.colour[1, 32, 42, 0] > 0.9  # 2 m at 10 m are 10 pixels
    assert shown.depth[0, 32, 32] == pytest.approx(10, abs=0.01)
    assert 0.1 < shown.alpha[0, 32, 35] < 0.9  # what it does not cover of a pixel is not black
    torch.testing.assert_close(shown.colour[0, 32, 35], ball.colours[0].sigmoid(), atol=1e-3, rtol=0)
    expected = shown.alpha[0, 32, 32] * torch.tensor([5.0, 0])  # by its share of the pixel
    torch.testing.assert_close(shown.flow[0, 32, 32], expected, atol=1e-3, rtol=0)
    red = pictures.flow_colours(shown.flow[0].numpy())[32, 32]
    assert red[0] > 100 and red[1] == red[2] == 0


def test_inverse_softplus():
    x = torch.tensor([1e-4, 0.3, 5.0, 60.0], dtype=torch.float64)
    torch.testing.assert_close(torch.nn.functional.softplus(inverse_softplus(x)), x)


def test_scene_in_the_world_renders_the_same(sample, tmp_path):
    """Written, read again and rendered in the world along the camera's path: the picture of the clip's own frame."""
    gaussians = dataclasses.replace(
        sample.given.gaussians, velocities=0.3 * torch.randn(len(sample.given.gaussians), 2, 3)
    )
    scenes.write(tmp_path, to_world(gaussians, sample.clip.ego_to_world), path_in_world(sample.clip))
    placed, path = scenes.read(tmp_path)
    assert placed.velocities.shape == (len(gaussians), 2, 3)
    speed = velocity_at(gaussians, path.times[3:4]).norm(dim=-1)
    torch.testing.assert_close(velocity_at(placed, path.times[3:4]).norm(dim=-1), speed, atol=1e-4, rtol=1e-3)
    here = rendering.render(gaussians, sample.cameras[[3]]).colour[0]
    there = rendering.render(placed, at_times(path, path.times[3:4])).colour[0]
    assert (here - there).abs().mean() < 2e-3 and here.std() > 0.1
    # between two frames the camera is between them
    between = at_times(path, path.times[3:5].mean()[None])
    torch.testing.assert_close(between.batch.center[0], path.batch.center[3:5].mean(0), atol=1e-3, rtol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_video(moving, tmp_path, monkeypatch):
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 1.0
    path = timed_cameras(
        poses, torch.tensor([[80.0, 0, 50], [0, 90, 40], [0, 0, 1]]), torch.tensor([0.0, 1.0]), 100, 80
    )
    scene = MovingGaussians(**{k: v.float() if v.is_floating_point() else v for k, v in vars(moving).items()})
    kept = {}
    monkeypatch.setattr(pictures.video, "write_mp4", lambda path, frames, fps: kept.update({path.name: list(frames)}))
    for device in ("cpu", "cuda"):
        pictures.write_video(tmp_path / device, scene, path, 5, 1, device)
    for ours, theirs in zip(kept["cpu"], kept["cuda"], strict=True):
        assert ours.any() and abs(ours.astype(int) - theirs).max() <= 2
