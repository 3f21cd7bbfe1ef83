"""What another picture sees at a point's place, by hand."""

from types import SimpleNamespace

import torch
from flux4d.seen_through import behind, carried
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


def test_what_pictures_show():
    """A bright patch goes 4 pixels a picture, another stays: at 10 m and 50 pixels a metre that is 0.8 m."""
    camera = Camera(torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]), torch.eye(4), 64, 48)
    pictures = torch.zeros(3, 48, 64, 3, dtype=torch.uint8)
    for number in range(3):
        pictures[number, 10:20, 10 + 4 * number : 20 + 4 * number] = 255
        pictures[number, 30:40, 40:50] = 255
    moments = torch.tensor([0, 0.1, 0.2])
    clip = SimpleNamespace(camera=lambda frame: camera, input=[0, 1, 2], images=pictures, times=moments)
    places = torch.tensor([[11.5, 15.5], [41.5, 35.5], [70, 20]])
    points = unproject(places, torch.full((3,), 10.0), camera.K, camera.world_to_camera)
    velocity = torch.tensor([[8.0, 0, 0]]).expand(3, 3)
    seen = carried(points, torch.ones(3, 3), torch.zeros(3), velocity, clip)
    assert seen.tolist() == [True, False, False]
    back = carried(points[1:2], torch.ones(1, 3), torch.zeros(1), -velocity[:1], clip)
    assert not back.any()
