"""Motion from sweep to sweep, against what a street knows and what it is made of."""

import math

import numpy as np
import pytest
import torch
from flux4d import clips, fill, labels, matching, model, reconstruction, samples
from flux4d.config import change_config
from recon4d.cameras import Camera
from scipy.spatial import cKDTree


@pytest.fixture(scope="module")
def crossing(root, indexed):
    """A crossing: its clip, and its sweeps matched."""
    entry = next(entry for entry in indexed["clips"] if entry["scene"] == "002")
    clip = clips.load(entry, root)
    _, depths, skies = fill.lifted(clip, 3000)
    return clip, matching.sweeps_of(clip, depths, skies)


def test_velocities_are_the_streets(root, crossing):
    """At the LiDAR points in view: most of what moves is matched within some per cent, what stands is left alone."""
    clip, sweeps = crossing
    found, known, true = [], [], []
    for frame, sweep in zip(clip.input, sweeps):
        points, told = labels.of_clip(clip, root)[frame]
        moments, places = torch.full((len(points),), sweep.time), torch.from_numpy(points).float()
        velocity, sure = matching.settled(places, torch.zeros(len(points), 3), moments, clip, sweeps)
        found.append(velocity.numpy())
        known.append(sure.numpy())
        true.append(told.velocity)
    velocity, sure, truth = map(np.concatenate, (found, known, true))
    speed, guessed = np.linalg.norm(truth, axis=1), np.linalg.norm(velocity, axis=1)
    matched = (speed > 0.5) & sure & (guessed > 0)
    error = np.linalg.norm(velocity - truth, axis=1)[matched] / speed[matched]
    assert matched.sum() > 0.4 * (speed > 0.5).sum() and np.median(error) < 0.15  # 240 columns
    stands = speed == 0
    assert (sure & (guessed == 0))[stands].mean() > 0.9 and guessed[stands].mean() < 0.2
    assert not velocity[~sure].any()


@pytest.mark.parametrize("speed", [(3.0, 0.0), (-12.0, 5.0), (0.0, 25.0)])
def test_a_row_of_boxes(speed):
    """Boxes that follow each other, seen from above: not the next one's place is taken, but what fits all sweeps."""
    rng = np.random.default_rng(0)
    box = rng.uniform([-1, -2, 0.3], [1, 2, 1.5], (300, 3))
    side = rng.integers(0, 2, 300)
    box[side == 0, 0], box[side == 1, 1] = 1, -2  # two of its sides
    velocity = np.array([*speed, 0.0])
    along = velocity / np.linalg.norm(velocity)
    row = [box + place * along for place in (-29, -17, -8, 0, 9, 21, 30)]
    times = (-0.4, -0.2, 0.2, 0.4)
    down = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    down[2, 3] = 60
    above = Camera(torch.tensor([[50.0, 0, 50], [0, 50, 50], [0, 0, 1]]), down, 100, 100)
    trees = [cKDTree(np.concatenate(row) + time * velocity) for time in times]
    others = [matching.Other(time, tree, tree, [above]) for time, tree in zip(times, trees)]
    found = matching._velocity(box + rng.normal(0, 0.02, box.shape), others, 0)
    np.testing.assert_allclose(found, velocity, atol=0.2)
    tree = cKDTree(np.concatenate(row))
    still = [matching.Other(other.apart, tree, tree, [above]) for other in others]
    assert math.isnan(np.max(matching._velocity(box, still, 0)))


def test_a_cyclist_beside_a_parked_car(monkeypatch):
    """One group, seen from above: what is met unmoved stands, the rest is matched alone; wheels go with it."""
    rng = np.random.default_rng(0)
    parked = rng.uniform([0, 0, 0.3], [2, 4, 1.5], (200, 3))
    cyclist = rng.uniform([-0.5, -1, 0.3], [-0.2, 0.8, 1.8], (80, 3))
    velocity = np.array([0, 6.0, 0])
    down = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    down[2, 3] = 60
    above = [Camera(torch.tensor([[50.0, 0, 50], [0, 50, 50], [0, 0, 1]]), down, 100, 100)]
    low = matching._lowest([np.concatenate([rng.uniform([-30, -30, 0], [30, 30, 0.01], (40000, 3))])])
    sweeps = []
    for time in (0.0, 0.2, 0.4, 0.6):
        points = np.concatenate([parked, cyclist + time * velocity])
        group = matching._groups(points, low)
        moves = np.arange(group.max() + 1) > 0
        sweeps.append(matching.Sweep(points, time, group, moves, np.full((len(moves), 3), np.nan), low))
    assert sweeps[0].group.max() == 1
    cameras = [above] * 4
    sweeps = [matching._parted(sweep, others) for sweep, others in zip(sweeps, matching._around(sweeps, cameras))]
    sweeps = matching._matched(sweeps, matching._around(sweeps, cameras))
    for sweep in sweeps:
        own = sweep.group[200:]
        assert not sweep.moves[sweep.group[:200]].any() and sweep.moves[own].mean() > 0.9
        np.testing.assert_allclose(np.nanmedian(sweep.velocity[own], axis=0), velocity, atol=0.3)
    feet = np.array([[-0.35, 0, 0.15], [-0.35, 0, 0.02], [5, 0, 0.15], [-0.35, 0, 1]])
    groups, _ = matching._group_of(feet, sweeps[0])
    assert groups[0] == groups[3] != 0 and groups[1] == 0 and not sweeps[0].moves[groups[2]]
    high = torch.tensor([[-0.35, 0, 2.2], [-0.35, 0, 3.5], [-0.35, 0, 6], [1, 2, 4]])
    for seen in (False, True):
        monkeypatch.setattr(matching, "carried", lambda points, *_, seen=seen: torch.full((len(points),), seen))
        found, sure = matching.settled(high, torch.zeros(4, 3), torch.zeros(4), None, sweeps)
        assert found[:, 1].abs().round().tolist() == [6, 6 * seen, 0, 0] and sure.tolist() == [True, seen, True, True]


def test_the_network_leaves_them(root, indexed, small):
    """What is known keeps its velocity through the network and its refinement; the rest is the network's."""
    given = ["lift.fill=true", "model.matched=true", "model.polynomial=1"]
    settings = change_config(small.model_dump(), "test", given)
    entry = next(entry for entry in indexed["clips"] if entry["scene"] == "002")
    sample = samples.load_sample(entry, root, settings, torch.device("cpu"))
    start = sample.given.gaussians
    assert 0.5 < start.settled.float().mean() < 1 and not start.settled[start.sky].any()
    assert (start.velocities[start.settled].norm(dim=-1) > 1).any()
    torch.manual_seed(0)
    network = model.Flux(settings.model)
    for branch in (network.base, network.refiner):
        torch.nn.init.normal_(branch.head[-1].weight, std=0.05)
    found = reconstruction.gaussians_of(network, sample, settings)
    assert torch.equal(found.velocities[start.settled, :1], start.velocities[start.settled])
    assert not found.velocities[start.settled, 1:].any()
    inside = sample.given.grid.inside & ~start.settled & ~start.sky
    assert (found.velocities[inside].norm(dim=-1) > 0).float().mean() > 0.9
