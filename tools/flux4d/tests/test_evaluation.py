"""Measures of images and motion, against known answers."""

import dataclasses

import numpy as np
import pytest
import torch
from flux4d import evaluation, flow, labels, lift, samples
from flux4d.config import Lift
from flux4d.gaussians import MovingGaussians
from flux4d.model import Flux
from recon4d import InputError


def known(sample, labelled, wrong=0.0):
    """Gaussians at the LiDAR points of the input frames, with the velocity that the labels say plus an error."""
    clip = sample.clip
    points = [labelled[frame][0] for frame in clip.input]
    velocity = np.concatenate([labelled[frame][1].velocity for frame in clip.input])
    velocity[np.linalg.norm(velocity, axis=1) > 0] += [wrong, 0, 0]
    means = torch.from_numpy(np.concatenate(points)).float()
    n = len(means)
    times = torch.cat([clip.times[frame].expand(len(p)) for frame, p in zip(clip.input, points)])
    return MovingGaussians(
        means=means,
        scales=torch.full((n, 3), -2.0),
        quats=torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4),
        opacities=torch.ones(n, 1),
        colours=torch.zeros(n, 3),
        times=times,
        velocities=torch.from_numpy(velocity).float()[:, None],
        sky=torch.zeros(n, dtype=torch.bool),
    )


@pytest.fixture(scope="module")
def crossing(root, indexed, small):
    (entry,) = [clip for clip in indexed["clips"] if clip["scene"] == "002"]
    return samples.load_sample(entry, root, small, torch.device("cpu"))


def test_true_motion_scores_well_and_wrong_motion_by_its_error(crossing, root):
    labelled = labels.of_clip(crossing.clip, root)
    assert len(labelled) == 16 and sum(found.moving.sum() for _, found in labelled) > 100
    rows = {}
    for wrong in (0.0, 1.0):
        one = evaluation.measure_clip(known(crossing, labelled, wrong), crossing, root)
        joined = [np.concatenate(parts) for parts in zip(*one["flows"])]
        rows[wrong] = flow.measures(*joined, 0.1)
    assert rows[0.0]["acc5"] > 0.95 and rows[0.0]["angular_error_deg"] < 2 and rows[0.0]["background_speed"] < 0.2
    assert rows[1.0]["epe_fd"] - rows[0.0]["epe_fd"] == pytest.approx(0.1, abs=0.03)  # 1 m/s for 0.1 s
    assert [row["setting"] for row in one["rows"]] == ["interpolation"] * 5 + ["future"] * 5


def test_dynamic_mask_covers_what_moves(crossing, root):
    labelled = labels.of_clip(crossing.clip, root)
    hit = total = 0
    for frame in (1, 5, 9):
        points, found = labelled[frame]
        mask = labels.dynamic_mask(points, found.moving, crossing.clip, frame)
        truth = np.load(root / "002" / "truth" / "camera" / f"{frame:02d}.npz")
        fast = np.linalg.norm(truth["velocity"].astype(float), axis=-1) > 0.6
        hit += (mask & fast).sum()
        total += fast.sum()
        assert mask.mean() < 0.5
    assert hit > 0.85 * total > 10


def test_image_measures_by_hand():
    truth = torch.full((16, 20, 3), 0.5)
    image = truth.clone()
    image[:, :10] += 0.1
    mask = np.zeros((16, 20), bool)
    mask[:, 5:10] = True
    depth = torch.full((16, 20), 7.0)
    samples = (torch.tensor([0, 7, 12]), torch.tensor([7.0, 3.0, 10.0]))
    found = evaluation.image_measures(image, truth, depth, samples, mask)
    assert found["psnr"] == pytest.approx(-10 * np.log10(0.005), abs=1e-3)
    assert found["dynamic_psnr"] == pytest.approx(20, abs=1e-3)  # mean over pixels and channels inside
    assert found["depth_rmse"] == pytest.approx(np.sqrt((0 + 16 + 9) / 3))
    assert found["dynamic_depth_rmse"] == pytest.approx(4)  # only the second sample is inside
    for nothing in (None, np.zeros((16, 20), bool)):
        found = evaluation.image_measures(image, truth, depth, (torch.zeros(0).long(), torch.zeros(0)), nothing)
        assert found["dynamic_psnr"] is None and found["depth_rmse"] is None and found["psnr"] is not None


def test_scene_without_cuboids(indexed, root, small):
    torch.manual_seed(0)
    entry = dict(indexed["clips"][0], cuboids=None)
    found = evaluation.measure(Flux(small.model), small, [entry], root, torch.device("cpu"))
    assert found["flow"] is None and found["interpolation"]["dynamic_psnr"] is None
    assert found["interpolation"]["frames"] == 5 and found["interpolation"]["psnr"] > 10
    assert found["future"] == {"frames": 0} | dict.fromkeys(evaluation.IMAGE_MEASURES)


def test_points_behind_the_camera_have_no_pixel(clip):
    behind = clip.points[0][clip.points[0][:, 1] < -1]
    assert len(behind) > 500
    for points in (behind, torch.zeros(1, 3), torch.full((1, 3), float("inf"))):
        _, inside = lift.coloured(points, clip, 0)
        assert not inside.any()
    nowhere = dataclasses.replace(
        clip, points=[behind] * len(clip.points), point_times=[behind[:, 0]] * len(clip.points)
    )
    with pytest.raises(InputError, match="no point of its input frames is in the image"):
        lift.lift(nowhere, Lift(sky_points=100))
