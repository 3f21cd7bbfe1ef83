"""What other frames see at a point's place, by hand and against the known motion of a street."""

from types import SimpleNamespace

import pytest
import torch
from flux4d import evidence, samples
from flux4d.config import change_config
from recon4d.cameras import Camera, unproject


def test_a_box_before_a_wall():
    """A red box 5 m away, before a white wall at 10 m, goes from the left to the right in a second."""
    camera = Camera(torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]), torch.eye(4), 64, 48)
    images, depths = torch.full((2, 48, 64, 3), 255, dtype=torch.uint8), [torch.full((48, 64), 10.0) for _ in range(2)]
    for frame, left in enumerate((10, 40)):
        images[frame, 10:30, left : left + 15] = torch.tensor([255, 0, 0], dtype=torch.uint8)
        depths[frame][10:30, left : left + 15] = 5
    skies = [torch.zeros(48, 64, dtype=torch.bool) for _ in range(2)]
    skies[1][:, :4] = True
    clip = SimpleNamespace(
        input=[0, 1], camera=lambda frame: camera, images=images, times=torch.tensor([0.0, 1]), width=64, height=48
    )
    places = torch.tensor([[17.5, 20.5], [47.5, 20.5], [32.5, 40.5], [2.5, 40.5], [90, 20]])
    points = unproject(places, torch.tensor([5.0, 10, 10, 10, 10]), camera.K, camera.world_to_camera)
    colours = torch.tensor([[1.0, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    found = evidence.timeline(points, colours, clip, depths, skies, 3)
    # the box, gone in the second frame; the wall that it hides then; a wall that stays; one that is sky later; unseen
    expected = [[-1, 0, 1], [-1, 0, 0], [-1, 0, -1], [-1, 0, 1], [0, 0, 0]]
    torch.testing.assert_close(found[:, :3], torch.tensor(expected).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 3:], torch.zeros(5, 3), atol=1e-5, rtol=0)
    black = evidence.timeline(points[2:3], torch.zeros(1, 3), clip, depths, skies, 3)
    torch.testing.assert_close(black[:, 3:], torch.tensor([[4.0, 0, 4]]))
    assert evidence.timeline(points, colours, clip, depths, skies, 0).shape == (5, 0)


def test_what_moves_is_seen_through(root, indexed, small):
    """Of a crossing: the share of the other frames that see through a point, of what moves and of what stands."""
    given = ["lift.fill=true", "model.evidence=6", "losses.flow=0.1"]
    settings = change_config(small.model_dump(), "test", given)
    entry = next(entry for entry in indexed["clips"] if entry["scene"] == "002")
    sample = samples.load_sample(entry, root, settings, torch.device("cpu"))
    gaussians = sample.given.gaussians
    place, unlike = gaussians.evidence.split(6, 1)
    assert place.abs().max() <= 1.001 and not gaussians.evidence[gaussians.sky].any() and unlike.min() >= 0
    assert sample.motion is not None
    speed = sample.motion.norm(dim=1)
    stands = place[(speed < 0.01) & ~gaussians.sky]
    moves = place[speed > 3]
    through = [float((part > 0.5).float().mean()) for part in (moves, stands)]
    assert len(moves) > 20 and through[0] > 0.2 and through[1] < 0.03, through
    own = (gaussians.times * 5).round().long()  # the frame that it comes from sees it
    assert place[~gaussians.sky].gather(1, own[~gaussians.sky, None]).mean() == pytest.approx(-1, abs=0.05)
