"""Cameras at moments: their steps in time, and a camera between those of a path."""

import numpy as np
import torch
from flux4d.timed_cameras import at_times, steps_to_next, timed_cameras
from scipy.spatial.transform import Rotation, Slerp


def test_steps_in_any_order():
    assert steps_to_next(torch.tensor([0.5, 0.0, 0.2])).tolist() == torch.tensor([0.3, 0.2, 0.3]).tolist()
    assert steps_to_next(torch.tensor([7.0])).tolist() == torch.tensor([0.1]).tolist()


def test_between_two_moments_beside_scipy():
    turns = Rotation.from_euler("xyz", [[0.1, 0.2, 0.3], [0.4, -0.2, 0.1], [-0.3, 0.5, 0.9]])
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turns.as_matrix(), [[0, 0, 0], [1, 4, 0], [2, 4, 1]]
    K = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    times = torch.tensor([0.0, 0.4, 1.0])
    path = timed_cameras(torch.linalg.inv(torch.from_numpy(poses)).float(), K, times, 64, 48)
    wanted = torch.tensor([-1.0, 0.1, 0.7, 9.0])
    found = at_times(path, wanted)
    inside = wanted.clamp(0, 1).double().numpy()
    expected = Slerp(times.double().numpy(), turns)(inside).as_matrix()
    np.testing.assert_allclose(found.batch.camera_to_world[:, :3, :3], expected, atol=1e-6)
    centres = [np.interp(inside, times, poses[:, axis, 3]) for axis in range(3)]
    np.testing.assert_allclose(found.batch.center, np.stack(centres, 1), atol=1e-6)
    assert found.times.tolist() == torch.from_numpy(inside).float().tolist() and len(found) == 4
    picked = path[[2, 0]]
    assert torch.equal(picked.batch.world_to_camera[1], path.one(0).world_to_camera) and picked.times.tolist() == [1, 0]
