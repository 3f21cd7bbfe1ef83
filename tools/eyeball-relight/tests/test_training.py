"""Training on a small capture: it learns, resumes to the same result, and says what is wrong."""

import json
import shutil

import forks
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from eyeball_relight import (
    assets,
    captures,
    checkpoint,
    config,
    exports,
    flash,
    losses,
    spheres,
    surface_phase,
    synth,
    training,
)
from eyeball_relight.cli import main
from eyeball_relight.evaluation import measure, read_truth
from eyeball_relight.field import Material, eyeballs, new_field
from eyeball_relight.rays import Rays
from recon4d import InputError


def test_it_learns_the_head(trained, data, tmp_path):
    """The surface is near the true one, eyeballs stay near theirs, held-out pictures are far better than black."""
    loaded, settings, out, result = trained
    assert result.steps == 90 and result.rays > 3000 and np.isfinite(result.loss)
    field, intensity, step = checkpoint.open_field(out / checkpoint.CHECKPOINT)
    assert step == 90 and torch.allclose(intensity, torch.full((3,), settings.light.intensity))
    exports.export_field(field, step, intensity, loaded, tmp_path, 128, 3000, 4096, print)
    asset, lights = exports.read(tmp_path)
    scores = measure(asset, lights, loaded, read_truth(loaded.folder / "truth", loaded), tmp_path)
    black = -10 * (loaded.image[5][loaded.mask[5] > 127].float() / 255).square().mean().log10()
    assert scores["psnr"] > black + 4 and scores["normal_deg"] < 60 and scores["chamfer_mm"] < 30
    assert scores["eye_centre_mm"] < 12 and scores["eye_radius_mm"] < 4
    assert (tmp_path / "contact.png").is_file() and (tmp_path / "truth.png").is_file()
    # what was read back is what the field holds
    face = asset["face"]
    again = exports.bake(field, field.active(step), face.vertices, 0, 500)
    assert again.shape == (len(face.vertices), 5) and again.min() >= 0 and again.max() <= 1
    middle = (asset["left"].vertices.amin(0) + asset["left"].vertices.amax(0)) / 2
    torch.testing.assert_close(middle, field.eye_centres[0] * settings.data.bound, atol=1e-5, rtol=0)


def test_left_and_right_are_not_swapped(trained, data):
    _, _, out, _ = trained
    field, _, _ = checkpoint.open_field(out / checkpoint.CHECKPOINT)
    truth = json.loads((data / "truth" / "truth.json").read_text())["eyes"]
    bound = field.config.data.bound
    for k, side in enumerate(("left", "right")):
        own, other = (torch.tensor(truth[f"{s}_centre"]) for s in (side, {"left": "right", "right": "left"}[side]))
        assert (field.eye_centres[k] * bound - own).norm() < (field.eye_centres[k] * bound - other).norm()


def test_a_resumed_run_is_the_uninterrupted_one(trained, tmp_path, monkeypatch):
    """Stopped in the volume phase and again in the mesh phase, it ends with the same parameters to the bit."""
    loaded, settings, out, _ = trained
    material, steps = surface_phase.surface_terms, []

    def stop(*_):
        raise KeyboardInterrupt

    def stop_later(*arguments):
        steps.append(70 + len(steps))
        return stop() if steps[-1] == 85 else material(*arguments)

    said = []
    for place, stand_in, kept in (("surface_views", stop, 40), ("surface_terms", stop_later, 80)):
        monkeypatch.setattr(surface_phase, place, stand_in)
        with pytest.raises(KeyboardInterrupt):
            training.train(settings, loaded, tmp_path, said.append, resume=bool(said))
        monkeypatch.undo()
        assert checkpoint.read(tmp_path / checkpoint.CHECKPOINT)["step"] == kept
    training.train(settings, loaded, tmp_path, said.append, resume=True)
    assert {"resumed at step 40", "resumed at step 80"} <= set(said)
    ours, theirs = (checkpoint.read(p / checkpoint.CHECKPOINT)["field"] for p in (tmp_path, out))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_full_preset_runs(data, tmp_path):
    """All its levels, in both phases; only lengths and grids are cut."""
    short = ["train.iterations=4", "train.mesh_render_iter=3", "train.milestones=[2]", "train.samples=4096"]
    short += ["train.mesh_resolution=64", "train.grid=32", "model.init_level=16", "train.shading=0"]
    settings = config.load(data / "config.yaml", "full", short)
    result = training.train(settings, captures.read(data, print), tmp_path, print)
    field, _, step = checkpoint.open_field(tmp_path / checkpoint.CHECKPOINT)
    assert step == 4 and np.isfinite(result.loss) and field.active(step)[-1] == 1024
    assert all(p.isfinite().all() for p in field.parameters())


def test_without_eyes(trained, tmp_path):
    loaded, settings, _, _ = trained
    plain = settings.model_copy(
        update={
            "eyes": config.Eyes(enabled=False),
            "train": settings.train.model_copy(update={"iterations": 12, "mesh_render_iter": 12}),
        }
    )
    training.train(plain, loaded, tmp_path, print)
    field, _, _ = checkpoint.open_field(tmp_path / checkpoint.CHECKPOINT)
    assert eyeballs(field) == {} and field.eyes(torch.zeros(3, 3)).min() == 10


def test_only_material_learns_in_the_mesh_phase(trained):
    loaded, _, out, _ = trained
    field, intensity, step = checkpoint.open_field(out / checkpoint.CHECKPOINT)
    field.requires_grad_(True)
    views = surface_phase.surface_views(field, field.active(step), loaded)
    terms = surface_phase.surface_terms(
        field, loaded, views, field.active(step), intensity, training.generator_of(0, 1)
    )
    sum(terms.values()).backward()
    grown = {name for name, p in field.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {"material_table", "ambient", "occlusion"} <= grown
    assert not grown & {"distance_table", "eye_centres", "beta"} and not any(n.startswith("distance") for n in grown)


def test_lpips_joins_in_the_mesh_phase(trained):
    loaded, _, out, _ = trained
    field, intensity, step = checkpoint.open_field(out / checkpoint.CHECKPOINT)
    view = surface_phase.surface_views(field, field.active(step), loaded)[0]
    losses = field.config.losses.model_copy(update={"lpips": 0.5})
    field.config = field.config.model_copy(update={"losses": losses})
    field.requires_grad_(True)
    arguments = (field, loaded, [view], field.active(step), intensity, training.generator_of(0, 1))
    found = surface_phase.surface_terms(*arguments)["lpips"]
    rendered = torch.rand(len(view.pixel), 3, requires_grad=True)
    distance = surface_phase.perceptual(loaded, view, rendered)
    (distance + found).backward()
    assert 0 < found < 0.5 * distance and rendered.grad.abs().max() > 0
    assert field.material_table.grad.abs().max() > 0


def test_landmarks_pull_a_sphere_onto_them():
    """The loss is 0 on the true sphere, and its slope leads back from one that is moved or swollen."""
    centre, radius = torch.tensor([0.1, -0.2, 0.3]), 0.14
    away = torch.nn.functional.normalize(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    points = (centre + radius * away).tolist()
    settings = config.Config(
        data=config.Data(left_eye_ldm=points, right_eye_ldm=points),
        eyes=config.Eyes(radius=[0.14 - 0.09, 0.14 + 0.09]),  # the true radius is where the logit is 0
        model=config.Model(levels=1, log2_entries=8),
    )
    field = new_field(settings, 2)
    moved = torch.tensor([0.02, 0.01, -0.03])
    with torch.no_grad():
        field.eye_centres[:] = centre
        assert losses.landmark_loss(field) < 1e-6
        field.eye_centres[0] += moved
    loss = losses.landmark_loss(field)
    loss.backward()
    assert loss > 0.005 and field.eye_centres.grad[0] @ moved > 0
    with torch.no_grad():
        field.eye_centres[:] = centre
        field.eye_radius_logit.fill_(0.5)
    field.zero_grad()
    losses.landmark_loss(field).backward()
    assert field.eye_radius_logit.grad > 0


def test_a_face_before_an_eye_is_pushed_back(trained):
    _, _, out, _ = trained
    field, _, step = checkpoint.open_field(out / checkpoint.CHECKPOINT)
    ahead = field.eye_centres[0] + torch.tensor([0.0, 0.0, 1.5])
    rays = Rays(ahead[None], torch.tensor([[0.0, 0, -1]]), torch.tensor([0]))
    eyes, near = torch.tensor([[1.0, 0.0]]), torch.tensor([0.4])
    clear = float(losses.clearance_loss(field, rays, eyes, field.active(step), near))
    with torch.no_grad():
        field.distance_mlp[4].bias[0] -= 0.5  # the face swells
    assert float(losses.clearance_loss(field, rays, eyes, field.active(step), near)) > clear + 0.3
    assert float(losses.clearance_loss(field, rays, 0 * eyes, field.active(step), near)) == 0


def test_eyes_are_placed_behind_their_masks(data):
    loaded = captures.read(data, print)
    settings = config.load(data / "config.yaml", "cpu-quick")
    field = new_field(settings, len(loaded))
    said = []
    spheres.place_eyes(field, loaded, torch.ones(3), said.append)
    assert "too small to fit spheres to" in said[0]
    truth = json.loads((data / "truth" / "truth.json").read_text())["eyes"]
    for k, side in enumerate(("left", "right")):
        away = field.eye_centres[k].detach() * settings.data.bound - torch.tensor(truth[f"{side}_centre"])
        assert away.norm() < 0.008
    blind = captures.Capture(**(vars(loaded) | {"left": torch.zeros_like(loaded.left)}))
    with pytest.raises(InputError, match="the left eye has no landmarks"):
        spheres.place_eyes(field, blind, torch.ones(3), print)


def test_a_light_off_the_camera_is_noticed(head, tmp_path):
    """With the true surface and albedo, the residual gives the light's place; at the camera nothing is said."""
    for offset in ((0.0, 0.0, 0.0), (0.06, 0.0, 0.0)):
        folder = tmp_path / str(offset[0])
        synth.synthesise(folder, 5, 96, offset, seed=3)
        loaded = captures.read(folder, print)
        found = flash.light_offset(*true_views(loaded, head))
        assert abs(found[0] - offset[0]) < 0.015 and abs(found[1] - offset[1]) < 0.015
        warning = flash.light_warning(loaded, found)
        assert (warning is None) == (offset[0] == 0) and (warning is None or "away from the camera" in warning)


def true_views(loaded, head):
    """Arguments of `light_offset` for a field that knows the true surface and material."""
    asset, _ = synth.head_asset(head, 3)
    settings = config.load(loaded.folder / "config.yaml", "cpu-quick")
    field = new_field(settings, len(loaded))
    views, shares = [], {}
    for i in range(len(loaded)):
        pixels = assets.visible(asset, loaded.view(i))
        start = i * loaded.camera.height * loaded.camera.width
        view = surface_phase.SurfaceView(start + pixels.index, i, pixels.part, pixels.position, pixels.normal)
        views.append(view)
        for key, values in zip(view.position, torch.cat([pixels.diffuse, pixels.specular, pixels.roughness], 1)):
            shares[tuple((key / settings.data.bound).tolist())] = values

    def known(x, part, active):
        values = torch.stack([shares[tuple(point)] for point in x.tolist()])
        return Material(values[:, :3], values[:, 3:4], values[:, 4:])

    field.material = known
    return field, loaded, views, [], flash.flash_intensity(settings, loaded), training.generator_of(3, 0)


def test_unknown_intensity_is_chosen_for_a_plausible_albedo(data):
    loaded = captures.read(data, print)
    settings = config.load(data / "config.yaml", "cpu-quick", ["light.intensity=null"])
    found = float(flash.flash_intensity(settings, loaded)[0])
    assert 0.4 < found / synth.INTENSITY < 2.5


KILLED = """
import os, signal, sys
from eyeball_relight import training
from eyeball_relight.cli import main

rate = training.rate

def until(last):
    def killing(settings, step):
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return rate(settings, step)
    return killing

for moment in map(int, sys.argv[2].split(",")):
    if os.fork() == 0:
        training.rate = until(moment)
        main(["train", "--workspace", f"{sys.argv[1]}/{moment}", *sys.argv[3:]])
    os.wait()
"""


def test_a_killed_run_goes_on(data, tmp_path, tiny):
    """Killed before the first checkpoint, after it and near the end: --resume ends as a run that was never stopped."""
    words = ["--config-path", str(data / "config.yaml")]
    settings = [*tiny, "train.iterations=16", "train.mesh_render_iter=12", "train.milestones=[5]", "train.samples=256"]
    settings += ["train.grid=16", "train.mesh_resolution=32"]
    for setting in [*settings, "train.checkpoint_every=5"]:
        words += ["--set", setting]
    done = forks.run("python", "-c", KILLED, tmp_path, "2,6,15", *words)
    assert done.returncode == 0, done.stderr
    whole = run("train", "--workspace", tmp_path / "whole", *words)
    assert whole.exit_code == 0, whole.output
    fields = {}
    for name, kept in (("2", None), ("6", 5), ("15", 15)):
        out = tmp_path / name
        assert (out / "config.yaml").is_file() and (out / checkpoint.CHECKPOINT).is_file() == (kept is not None)
        if kept is None:  # nothing to lose: the same command works again
            shutil.copytree(out, tmp_path / "again")
            assert run("train", "--workspace", tmp_path / "again", *words).exit_code == 0
        else:
            refused = run("train", "--workspace", out, *words)
            assert refused.exit_code == 2 and "--resume to go on or --force" in refused.stderr
            other = run("train", "--workspace", out, *words, "--resume", "--set", "train.lr=0.5")
            assert other.exit_code == 2 and "whose train.lr is another" in other.stderr
        more = words if name == "15" else words[:2]  # the same command again, or --resume alone
        resumed = run("train", "--workspace", out, *more, "--resume")
        assert resumed.exit_code == 0, resumed.output
        assert (f"resumed at step {kept}" if kept else "training begins anew") in resumed.stderr
        fields[name] = checkpoint.read(out / checkpoint.CHECKPOINT)["field"]
    expected = checkpoint.read(tmp_path / "whole" / checkpoint.CHECKPOINT)["field"]
    assert all(torch.equal(found[key], expected[key]) for found in fields.values() for key in expected)


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize("damage", ["cut", "foreign", "missing"])
def test_broken_checkpoints(trained, tmp_path, damage):
    _, _, out, _ = trained
    path = tmp_path / "latest.pth"
    if damage == "cut":
        path.write_bytes((out / checkpoint.CHECKPOINT).read_bytes()[:5000])
    elif damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    message = "does not exist" if damage == "missing" else "is not a readable checkpoint"
    with pytest.raises(InputError, match=message):
        checkpoint.open_field(path)


def test_a_checkpoint_of_other_settings(trained, tmp_path):
    loaded, settings, out, _ = trained
    shutil.copy(out / checkpoint.CHECKPOINT, tmp_path)
    larger = settings.model_copy(update={"model": settings.model.model_copy(update={"hidden": 40})})
    with pytest.raises(InputError, match="does not fit these settings"):
        training.train(larger, loaded, tmp_path, print, resume=True)


def test_bounds_that_miss_the_head(trained, tmp_path):
    loaded, settings, _, _ = trained
    tiny = settings.model_copy(update={"data": settings.data.model_copy(update={"bound": 0.0005})})
    with pytest.raises(InputError, match=r"almost no ray meets the head|no surface"):
        training.train(tiny, loaded, tmp_path, print)
