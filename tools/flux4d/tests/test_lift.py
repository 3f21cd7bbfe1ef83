"""Initial Gaussians: colours, scales, times and places of the points they are lifted from."""

import numpy as np
import torch
from flux4d import lift
from scipy.spatial import cKDTree


def test_lifted_points(clip, sample):
    """Colours, scales, times and places of the initial Gaussians are those of the points."""
    gaussians = sample.given.gaussians
    assert len(gaussians) > 2500 and gaussians.sky.sum() > 100
    torch.testing.assert_close(gaussians.quats.norm(dim=1), torch.ones(len(gaussians)))
    assert torch.all(gaussians.opacities == 0) and torch.all(gaussians.velocities == 0)
    solid = gaussians[~gaussians.sky]
    tree = cKDTree(torch.cat([clip.points[frame] for frame in clip.input]).numpy())
    assert tree.query(solid.means.numpy())[0].max() == 0
    # a static point is its image's colour in its own frame: render error is small without any training
    for frame in (0, 4, 10):
        own = (solid.times - clip.lidar_times[frame]).abs() < 0.04
        pixels, depth = clip.camera(frame).project(solid.means[own])
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
