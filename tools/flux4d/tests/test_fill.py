"""Depth between beams against the ray caster's; footprints; Gaussians that come and go."""

import dataclasses

import numpy as np
import pytest
import roma
import torch
from flux4d import fill, labels, model, reconstruction, samples, scenes
from flux4d.config import change_config
from flux4d.gaussians import deviations, opacities_at
from flux4d.rendering import render
from recon4d.cameras import Camera, unproject
from scipy.spatial import cKDTree


def test_depth_between_beams_is_the_scenes(root, clip):
    errors, alone, found_sky, true_sky = [], [], [], []
    for frame in (0, 5, 10):
        truth = np.load(root / "001" / "truth" / "camera" / f"{frame:02d}.npz")["depth"]
        pixels, depth = clip.depths[frame]
        found, sky = fill.depth_map(clip.images[frame].numpy(), clip.camera(frame), clip.points[frame])
        measured = np.zeros(truth.shape, bool)
        measured.flat[pixels.numpy()] = True
        top = np.nonzero(measured.any(1))[0][0]
        between = ~measured & (truth > 0) & (np.arange(len(truth))[:, None] >= top)
        assert between.mean() > 0.2
        errors.append(np.abs(found - truth)[between] / truth[between])
        row, column = np.nonzero(measured)
        _, near = cKDTree(np.stack([row, column], -1)).query(np.argwhere(between))
        alone.append(np.abs(depth.numpy()[near] - truth[between]) / truth[between])
        found_sky.append(sky)
        true_sky.append(truth == 0)
    error, nearest = np.concatenate(errors), np.concatenate(alone)  # by the nearest measured pixel
    assert np.median(error) < 0.01 and np.median(error) < 0.4 * np.median(nearest)
    assert error.mean() < 0.8 * nearest.mean()
    found, true = np.stack(found_sky), np.stack(true_sky)
    assert (found & true).sum() > 0.7 * true.sum() and (found & true).sum() > 0.95 * found.sum()


def test_footprints_are_differences_of_places():
    """On a slanted plane: the spans of a pixel, the normal, the thickness; the shape seen by its camera is round."""
    K = torch.tensor([[90.0, 0, 32], [0, 80, 24], [0, 0, 1]])
    pose = torch.eye(4)
    pose[:3, :3] = roma.rotvec_to_rotmat(torch.tensor([0.2, -0.4, 0.1]))
    pose[:3, 3] = torch.tensor([1.0, 2, 3])
    camera = Camera(K, pose, 64, 48)
    row, column = np.mgrid[:48, :64]
    pixels = torch.from_numpy(np.stack([column, row], -1) + 0.5).float().reshape(-1, 2)
    inverse = 0.25 + 0.002 * (column - 32) + 0.003 * (row - 24)
    depth = 1 / inverse
    sizes, turns = fill.footprints(depth, camera)
    places = unproject(pixels, torch.from_numpy(depth).float().reshape(-1), K, pose).reshape(48, 64, 3).double()
    at = (30, 40)
    right = (places[30, 41] - places[30, 39]) / 2
    down = (places[31, 40] - places[29, 40]) / 2
    normal = torch.linalg.cross(right, down)
    assert float(sizes[at][0]) == pytest.approx(float(right.norm()), rel=2e-3)
    area = sizes[at][0] * sizes[at][1]  # of the two spans, whatever the angle between them
    assert float(area) == pytest.approx(float(normal.norm()), rel=5e-3)
    assert float(sizes[at][2]) == pytest.approx(fill.THIN * float(sizes[at][:2].min()))
    turn = turns[at].double()
    torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)
    assert abs(float(turn[:, 2] @ normal / normal.norm())) == pytest.approx(1, abs=1e-4)
    # at an edge there is no slope: as if it faced the camera
    depth[:, 41:] *= 3
    flat, _ = fill.footprints(depth, camera)
    assert float(flat[30, 40, 0]) == pytest.approx(float(depth[30, 40]) / 90, rel=0.3)


@pytest.fixture(scope="module")
def filled(root, indexed, small):
    settings = ["lift.fill=true", "model.lifetime=0.12", "model.moments=6", "model.refine_velocity=true"]
    chosen = change_config(small.model_dump(), "test", [*settings, "losses.flow=0.02", "model.polynomial=0"])
    return chosen, samples.load_sample(indexed["clips"][0], root, chosen, torch.device("cpu"))


def test_pixels_become_gaussians(filled, clip):
    """Not more than asked for, of all frames alike; an input frame is drawn as it is by its own alone."""
    settings, sample = filled
    gaussians = sample.given.gaussians
    solid = gaussians[~gaussians.sky]
    assert 0.95 * settings.lift.max_gaussians < len(solid) <= 1.02 * settings.lift.max_gaussians
    counts = [int((solid.times == clip.times[frame]).sum()) for frame in clip.input]
    assert sum(counts) == len(solid) and max(counts) < 1.2 * min(counts)
    every = change_config(settings.model_dump(), "test", ["lift.max_gaussians=100000", "lift.opacity=0.9"])
    whole = samples.lift(clip, every.lift)
    own = whole.sky | (whole.times == clip.times[4])
    error = (render(whole[own], sample.cameras[[4]]).colour - sample.images[[4]]).square().mean()
    assert float(-10 * error.log10()) > 22


def test_gaussians_come_and_go(filled):
    _, sample = filled
    gaussians = sample.given.gaussians
    lives = torch.where(gaussians.sky, torch.inf, torch.linspace(0.05, 3, len(gaussians)))
    mortal = dataclasses.replace(gaussians, lifetimes=lives)
    times = torch.tensor([0.3, 0.5, 1.7])
    found = opacities_at(mortal, times)
    last = float(gaussians.times[~gaussians.sky].max())
    for f, time in enumerate((0.3, 0.5, last)):  # after the last of them all that was there then stays
        expected = 0.5 * np.exp(-(((time - gaussians.times.numpy()) / lives.numpy()) ** 2) / 2)
        np.testing.assert_allclose(found[f].numpy(), np.where(gaussians.sky, 0.5, expected), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(opacities_at(gaussians, times), torch.full((3, len(gaussians)), 0.5))


def test_lifetimes_on_disk(filled, tmp_path):
    _, sample = filled
    gaussians = sample.given.gaussians
    lives = torch.where(gaussians.sky, torch.inf, torch.linspace(0.05, 3, len(gaussians)))
    mortal = dataclasses.replace(gaussians, lifetimes=lives)
    scenes.write_gaussians(tmp_path / "a.ply", mortal)
    again = scenes.read_gaussians(tmp_path / "a.ply")
    torch.testing.assert_close(again.lifetimes, lives)
    scenes.write_gaussians(tmp_path / "b.ply", gaussians)  # those that stay need no column
    assert b"lifetime" not in (tmp_path / "b.ply").read_bytes()[:3000]
    assert scenes.read_gaussians(tmp_path / "b.ply").lifetimes.isinf().all()


def test_the_network_learns_lifetimes_and_leaves_the_sky(filled):
    settings, sample = filled
    torch.manual_seed(0)
    network = model.Flux(settings.model)
    torch.nn.init.normal_(network.base.head[-1].weight, std=0.05)
    found = reconstruction.gaussians_of(network, sample, settings)
    start = sample.given.gaussians
    assert torch.equal(found.means[start.sky], start.means[start.sky]) and found.lifetimes[start.sky].isinf().all()
    assert not torch.equal(found.means[~start.sky], start.means[~start.sky])
    assert found.lifetimes[~start.sky].std() > 1e-3 and (deviations(found) > 0).all()
    total, terms = reconstruction.frame_loss(found, sample, [1, 4], settings.losses)
    total.backward()
    head = network.base.head[-1].weight.grad
    assert head.isfinite().all() and head[-1].abs().max() > 0 and head[-4:-1].abs().max() > 0 and terms["flow"] > 0


def test_gradient_by_the_velocities(filled):
    """Of one frame it is that by the places times the time that has passed since a Gaussian was seen."""
    settings, sample = filled
    gaussians = dataclasses.replace(
        sample.given.gaussians, velocities=sample.given.gaussians.velocities + 0.1, lifetimes=None
    )
    weights = {"losses.ssim": 0, "losses.velocity": 0, "losses.flow": 0}
    losses = change_config(settings.model_dump(), "test", (), weights).losses
    found = model.gradient(gaussians, lambda g: reconstruction.frame_loss(g, sample, [4], losses)[0], moving=True)
    assert found.shape == (len(gaussians), 17)
    passed = sample.cameras.times[4] - gaussians.times
    ratio = found[:, 14:] / (found[:, :3] * passed[:, None])
    sound = (
        (found[:, :3].abs() > 1e-3)
        & (found[:, :3].abs() < 4.9)
        & (found[:, 14:].abs() < 4.9)
        & (passed.abs()[:, None] > 0.05)
    )
    for axis in range(3):  # each column has a scale of its own
        column = ratio[:, axis][sound[:, axis]]
        assert len(column) > 20
        torch.testing.assert_close(column, column.median().expand(len(column)), rtol=1e-3, atol=1e-6)


def test_motion_is_the_cuboids(root, filled):
    """Against the truth at the pixels where the Gaussians were lifted."""
    _, sample = filled
    gaussians, clip = sample.given.gaussians, sample.clip
    known = labels.motion(clip, root, gaussians)
    assert torch.equal(known, sample.motion)
    checked = 0
    for frame in clip.input:
        truth = np.load(root / "001" / "truth" / "camera" / f"{frame:02d}.npz")
        own = (gaussians.times == clip.times[frame]) & ~gaussians.sky
        column, row = clip.camera(frame).project(gaussians.means[own])[0].long().T
        near = (
            torch.from_numpy(truth["depth"])[row, column] - clip.camera(frame).project(gaussians.means[own])[1]
        ).abs()
        velocity = (
            torch.from_numpy(truth["velocity"]).float()[row, column]
            @ torch.from_numpy(clip.ego_to_world[:3, :3]).float()
        )
        moves = (velocity.norm(dim=1) > 0.6) & (near < 0.2)
        error = (known[own] - velocity).norm(dim=1)
        checked += int(moves.sum())
        if moves.any():
            assert error[moves].median() < 0.1 * velocity[moves].norm(dim=1).median() + 0.1
        assert error[velocity.norm(dim=1) == 0].median() == 0
    assert checked > 30
