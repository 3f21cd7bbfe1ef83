"""What another picture sees at a point's place, by hand."""

from types import SimpleNamespace

import torch
from flux4d.seen_through import behind
from recon4d.cameras import Camera, unproject


def test_a_box_before_a_wall():
    """A box 5 m away, before a wall at 10 m and the sky."""
    camera = Camera(torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]), torch.eye(4), 64, 48)
    depth, sky = torch.full((48, 64), 10.0), torch.zeros(48, 64, dtype=torch.bool)
    depth[10:30, 40:55] = 5
    sky[:, :4] = True
    clip = SimpleNamespace(camera=lambda frame: camera, width=64, height=48)
    places = torch.tensor([[17.5, 20.5], [47.5, 20.5], [47.5, 20.5], [1.5, 40.5], [40.5, 20.5], [90, 20]])
    points = unproject(places, torch.tensor([5.0, 10, 5, 10, 10, 10]), camera.K, camera.world_to_camera)
    seen, share, far = behind(points, clip, 0, depth, sky)
    assert seen.tolist() == [True] * 5 + [False]
    torch.testing.assert_close(far, torch.tensor([5.0, 10, 5, 10, 10]))
    # through its place; hidden by the box; the box; before the sky; at the box's edge what is beside it counts
    torch.testing.assert_close(share, torch.tensor([1.0, -0.5, 0, torch.inf, 0]), atol=1e-5, rtol=0)
