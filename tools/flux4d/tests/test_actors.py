"""Moving things are found, removed, moved and copied; depth maps stand in for LiDAR."""

import cv2
import numpy as np
import pytest
import torch
from flux4d import actors, depthmaps, samples
from flux4d.config import change_config
from flux4d.gaussians import MovingGaussians, moved
from recon4d import InputError
from scipy.spatial import cKDTree


@pytest.fixture
def street():
    """A standing crowd of 400, a car of 60 that goes right, one of 40 that crosses it to the left, and sky."""
    generator = torch.Generator().manual_seed(0)

    def cloud(n, x, vx, spread=0.5):
        means = torch.tensor([x, 0.0, 0]) + spread * torch.randn(n, 3, generator=generator)
        velocity = torch.tensor([vx, 0.0, 0]) + 0.1 * torch.randn(n, 3, generator=generator) * (vx != 0)
        return means, velocity

    parts = [cloud(400, 0, 0.0, 10.0), cloud(60, -5, 10.0), cloud(40, 5, -10.0), cloud(20, 0, 20.0, 100.0)]
    n = sum(len(means) for means, _ in parts)
    return MovingGaussians(
        means=torch.cat([means for means, _ in parts]),
        scales=torch.zeros(n, 3),
        quats=torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4),
        opacities=torch.zeros(n, 1),
        colours=torch.zeros(n, 3),
        times=torch.zeros(n),
        velocities=torch.cat([velocity for _, velocity in parts])[:, None],
        sky=torch.arange(n) >= n - 20,
    )


def test_actors_that_meet_are_told_apart(street):
    labels = actors.find(street, 0.5)  # both are at x = 0 then
    right, left = labels[400:460], labels[460:500]
    assert (labels[:400] == -1).all() and (labels[500:] == -1).all()
    one, two = int(right.mode().values), int(left.mode().values)
    assert one != two and (right == one).float().mean() > 0.8 and (left == two).float().mean() > 0.8
    found = actors.describe(street, labels, 0.5)
    assert [actor.number for actor in found] == [one, two]
    assert found[0].velocity[0] == pytest.approx(10, abs=0.3) and found[1].speed == pytest.approx(10, abs=0.3)
    assert np.linalg.norm(found[0].centre) < 0.5
    assert (actors.find(street, 0.5, min_speed=50.0) == -1).all()


def test_remove_move_add(street):
    labels = actors.find(street, 0.5)
    first = int(labels[400:460].mode().values)
    count = int((labels == first).sum())
    without, rest = actors.remove(street, labels, first)
    assert len(without) == len(street) - count and first not in rest
    assert torch.equal(without.means, street.means[labels != first])
    shifted = actors.move(street, labels, first, (0.0, 3.0, 0.0))
    way = shifted.means - street.means
    assert torch.equal(way[labels != first], torch.zeros_like(way[labels != first]))
    torch.testing.assert_close(way[labels == first], torch.tensor([0.0, 3, 0]).expand(count, 3))
    more, more_labels = actors.add(street, labels, first, (0.0, -4.0, 0.0))
    assert len(more) == len(street) + count and int(more_labels.max()) == int(labels.max()) + 1
    later = torch.tensor([0.8])  # the copy moves as the actor does
    copy = moved(more, later)[0][len(street) :]
    torch.testing.assert_close(copy, moved(street, later)[0][labels == first] + torch.tensor([0.0, -4, 0]))
    for change in (actors.remove, actors.move, actors.add):
        with pytest.raises(InputError, match="there is no such actor"):
            change(street, labels, 77, *(() if change is actors.remove else ((0.0, 0, 0),)))


@pytest.fixture(scope="module")
def maps(root, tmp_path_factory):
    """The true depth of scene 001 as depth maps: npy, every third a 16-bit PNG."""
    folder = tmp_path_factory.mktemp("maps")
    place = folder / "001" / "front_camera"
    place.mkdir(parents=True)
    for i in range(16):
        depth = np.load(root / "001" / "truth" / "camera" / f"{i:02d}.npz")["depth"]
        if i % 3 == 0:
            cv2.imwrite(str(place / f"{i:02d}.png"), np.clip(1000 * depth, 0, 65535).astype(np.uint16))
        else:
            np.save(place / f"{i:02d}.npy", depth)
    return folder


def test_points_of_depth_maps_lie_where_lidar_points_do(root, indexed, clip, maps, small):
    found = depthmaps.points(maps, clip, 2)
    assert len(found) == len(clip.input) and min(len(points) for points, _ in found) > 600
    for number in (0, 2):
        points, colours = found[number]
        near = points.norm(dim=1) < 25
        distance, _ = cKDTree(clip.points[clip.input[number]].numpy()).query(points[near].numpy())
        assert np.median(distance) < 0.7  # beams hit the ground 1.5 m apart
        assert colours.min() >= 0 and colours.max() <= 1
    settings = change_config(small.model_dump(), "test", ["lift.points=depth"], {"data.depth_dir": str(maps)})
    alone = samples.load_sample(indexed["clips"][0], root, settings, torch.device("cpu"))
    assert alone.clip.points[0].shape == (0, 3) and len(alone.given.gaussians) > 2500
    pixels, depth = alone.depths[1]  # the loss compares with the map
    truth = np.load(root / "001" / "truth" / "camera" / "01.npz")["depth"].ravel()
    torch.testing.assert_close(depth, torch.from_numpy(truth)[pixels])
    both = change_config(settings.model_dump(), "test", ["lift.points=both", "lift.max_gaussians=100000"])
    joined = samples.load_sample(indexed["clips"][0], root, both, torch.device("cpu"))
    lidar = change_config(small.model_dump(), "test", ["lift.max_gaussians=100000"])
    points = samples.load_sample(indexed["clips"][0], root, lidar, torch.device("cpu"))
    solid = [int((~s.given.gaussians.sky).sum()) for s in (joined, points)]
    assert solid[0] == solid[1] + sum(len(points) for points, _ in found)


def test_depth_maps_that_are_not(tmp_path, root, indexed, small, clip, maps):
    def refused(folder, message):
        settings = change_config(small.model_dump(), "test", ["lift.points=depth"], {"data.depth_dir": folder})
        with pytest.raises(InputError, match=message):
            samples.load_sample(indexed["clips"][0], root, settings, torch.device("cpu"))

    refused(None, "needs depth maps; give their folder with --depth-dir")
    refused(str(tmp_path), "00.npy does not exist; give a depth map for every input frame")
    place = tmp_path / "001" / "front_camera"
    place.mkdir(parents=True)
    (place / "00.npy").write_bytes(b"no")
    refused(str(tmp_path), "not a readable npy file")
    np.save(place / "00.npy", np.zeros((4, 5, 3)))
    refused(str(tmp_path), "one depth per pixel")
    np.save(place / "00.npy", np.array([{}], dtype=object))
    refused(str(tmp_path), "holds objects, not numbers")
    (place / "00.npy").unlink()
    cv2.imwrite(str(place / "00.png"), np.zeros((4, 5), np.uint8))
    refused(str(tmp_path), "not a 16-bit PNG")
