"""Losses, schedules, resuming, and two processes that do what one does."""

import math
from dataclasses import replace

import lightning_fabric as lightning
import pytest
import torch
from flux4d import checkpoints, reconstruction, schedule, training
from flux4d.config import change_config
from flux4d.model import Flux
from flux4d.rendering import render
from recon4d import InputError, metrics


def run(settings, indexed, root, output, **options):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    return training.train(settings, indexed["clips"][:1], root, output, fabric, **options)


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_loss_terms(sample, small):
    model = Flux(small.model)
    gaussians = reconstruction.gaussians_of(model, sample, small)
    losses = small.losses.model_copy(update={"reweight": False})
    total, values = reconstruction.frame_loss(gaussians, sample, [1, 4], losses)
    shown = render(gaussians, sample.cameras[[1, 4]])
    truth = torch.stack([sample.images[1], sample.images[4]])
    assert values["l1"] == pytest.approx(0.8 * float((shown.over_black - truth).detach().abs().mean()))
    both = [x.permute(0, 3, 1, 2).detach() for x in (shown.over_black, truth)]
    assert values["ssim"] == pytest.approx(0.2 * (1 - float(metrics.ssim(*both).mean())), abs=1e-6)
    errors = []
    for row, frame in enumerate((1, 4)):
        pixels, depth = sample.depths[frame]
        seen = shown.depth[row].flatten()[pixels].detach()
        errors += (0.01 * (seen - depth).abs() + 0.5 * (10 / seen - 10 / depth).abs()).tolist()
    assert values["depth"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert float(total) == pytest.approx(sum(values[k] for k in ("l1", "ssim", "depth", "velocity")), rel=1e-5)
    # pixels of moving things count more
    more, weighted = reconstruction.frame_loss(gaussians, sample, [1, 4], small.losses)
    moving = render(gaussians, sample.cameras[[1, 4]], flow=True).flow.norm(dim=-1, keepdim=True)
    assert weighted["l1"] == pytest.approx(
        0.8 * float(((1 + moving) * (shown.over_black - truth).abs()).mean()), rel=1e-4
    )
    grown = [p.grad for p in model.parameters()]
    assert grown.count(None) == len(grown)
    more.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.base.head[-1].weight.grad[-6:].abs().max() > 0  # the velocities learn


def test_depth_samples_are_the_nearest_points(clip):
    pixels, depth = clip.depths[2]
    uv, z = clip.camera(2).project(clip.points[2])
    nearest = {}
    for (u, v), d in zip(uv.tolist(), z.tolist()):
        if d > 0.1 and 0 <= u < clip.width and 0 <= v < clip.height:
            key = int(v) * clip.width + int(u)
            nearest[key] = min(nearest.get(key, math.inf), d)
    found = dict(zip(pixels.tolist(), depth.tolist()))
    assert found.items() <= nearest.items() and len(found) > 0.8 * len(nearest) > 240
    for key in nearest.keys() - found.keys():  # hidden by something much nearer beside it
        around = [nearest.get(key + y * clip.width + x, math.inf) for y in range(-2, 3) for x in (-1, 0, 1)]
        assert nearest[key] > 1.3 * min(around)


def test_rates_clips_and_frames(small, clip):
    steps = small.model_copy(update={"train": small.train.model_copy(update={"iterations": 100, "warmup": 10})})
    rates = [schedule.rate(step, steps) for step in range(100)]
    assert rates[0] == pytest.approx(steps.train.rate / 10) and max(rates) == rates[9]
    assert rates[99] == pytest.approx(steps.train.final_rate, rel=0.03)
    steps = change_config(steps.model_dump(), "test", ["train.narrow=0"])
    passes = [schedule.chosen_clips(step, steps, 5)[0] for step in range(20)]
    assert all(sorted(passes[i : i + 5]) == list(range(5)) for i in range(0, 20, 5)) and passes[:5] != passes[5:10]
    frames = [schedule.chosen_frames(step, 0, steps, clip) for step in range(60)]
    assert {f for chosen in frames for f in chosen} == set(range(11)) and {len(f) for f in frames} == {2}
    fixed = change_config(steps.model_dump(), "test", ["train.fixed_frame=3"])
    assert schedule.chosen_frames(7, 0, fixed, clip) == [3]


def test_weight_of_the_velocity(small):
    """It stays in the first half of a run and goes to its final value in the second; the rest stays."""
    given = ["train.iterations=100", "losses.velocity=0.01", "losses.final_velocity=0.03"]
    run = change_config(small.model_dump(), "test", given)
    found = [schedule.weights(step, run).velocity for step in (0, 49, 50, 75, 100)]
    assert found == pytest.approx([0.01, 0.01, 0.01, 0.02, 0.03])
    assert schedule.weights(75, run).model_copy(update={"velocity": 0.01}) == run.losses
    assert schedule.weights(99, small) == small.losses


def test_window(small, sample):
    """First the neighbouring sweeps alone, at targets; then more; then all."""
    steps = change_config(small.model_dump(), "test", ["train.iterations=100", "train.narrow=0.4", "train.window=0.15"])
    widths = [schedule.window(step, steps) for step in range(100)]
    assert set(widths[:40]) == {0.15} and set(widths[71:]) == {math.inf} and widths == sorted(widths)
    assert 1.0 < widths[69] < 1.2
    clip = sample.clip
    narrow = {f for step in range(40) for f in schedule.chosen_frames(step, 0, steps, clip)}
    assert narrow == set(clip.target)  # the clip's targets lie between its inputs
    # frames long after the last input come when the window reaches them
    future = replace(clip, input=[0, 2, 4], target=[1, 3, 5, 6, 7, 8, 9, 10])
    reached = [{f for i in range(60) for f in schedule.chosen_frames(at, i, steps, future)} for at in (5, 50, 80)]
    assert reached == [{1, 3, 5}, set(range(9)), set(range(11))]
    everything = change_config(small.model_dump(), "test", ["train.narrow=0"])
    assert schedule.window(0, everything) == math.inf
    # what is drawn at a target is what a scene of the two sweeps beside it shows
    gaussians, cameras = sample.given.gaussians, sample.cameras[[3]]
    near = ((gaussians.times - cameras.times[0]).abs() <= 0.15) | gaussians.sky
    assert 0.2 < near.float().mean() < 0.6
    some = render(gaussians, cameras, within=0.15).colour
    torch.testing.assert_close(some, render(gaussians[near], cameras).colour)


def test_nothing_moves_in_the_still_part(tmp_path, indexed, root, small):
    still = change_config(small.model_dump(), "test", ["train.still=1", "train.iterations=2", "losses.velocity=1"])
    run(still, indexed, root, tmp_path / "still")
    assert "velocity 0.0000" in (tmp_path / "still" / "train.log").read_text()
    moving = change_config(still.model_dump(), "test", ["train.still=0"])
    run(moving, indexed, root, tmp_path / "moving")
    assert "velocity 0.0000" not in (tmp_path / "moving" / "train.log").read_text()


def test_resumed_run_is_the_uninterrupted_one(tmp_path, indexed, root, small, capsys):
    whole = run(small, indexed, root, tmp_path / "whole")
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"ckpt_last.pt", "ckpt_step_000003.pt", "ckpt_step_000006.pt", "train.log", "step_000003"} <= names
    assert len((tmp_path / "whole" / "train.log").read_text().splitlines()) == 3
    half = tmp_path / "whole" / "ckpt_step_000003.pt"
    again = run(small, indexed, root, tmp_path / "again", resume_from=half)
    assert again.loss == pytest.approx(whole.loss, rel=1e-4)
    one, two = (weights(tmp_path / name / "ckpt_last.pt") for name in ("whole", "again"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
    # without the optimizer's state the steps differ
    run(small, indexed, root, tmp_path / "third", resume_from=half, with_optimizer=False)
    third = weights(tmp_path / "third" / "ckpt_last.pt")
    assert max(float((one[name] - third[name]).abs().max()) for name in one) > 1e-4
    # a network with refinement takes over what fits, but only without the optimizer
    other = change_config(small.model_dump(), "test", ["model.refinements=0"])
    with pytest.raises(InputError, match=r"is of another model .* or --resume-no-optim"):
        run(other, indexed, root, tmp_path / "fourth", resume_from=half)
    lines = []
    run(other, indexed, root, tmp_path / "fourth", resume_from=half, with_optimizer=False, log=lines.append)
    assert "0 parameters begin anew" in lines[0]


def test_broken_checkpoints_are_named(tmp_path, small):
    model = Flux(small.model)
    path = tmp_path / "x.pt"
    with pytest.raises(InputError, match="does not exist; give a checkpoint"):
        checkpoints.fill(path, model, None)
    for content in (b"", b"no"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is not a readable checkpoint .*give a checkpoint of flux4d"):
            checkpoints.fill(path, model, None)
    torch.save({"step": 3}, path)
    with pytest.raises(InputError, match="other content"):
        checkpoints.open_model(path, torch.device("cpu"))


def test_batches_that_do_not_divide(tmp_path, indexed, root, small):
    class Two:
        world_size = 2

    with pytest.raises(InputError, match=r"train.batch_size 1 does not divide among 2 processes"):
        training.train(small, indexed["clips"], root, tmp_path, Two())
