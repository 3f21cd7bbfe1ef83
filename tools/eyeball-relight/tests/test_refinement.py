"""Corrections of poses, focal length and exposure: what they mean, their gradients, and that they are found."""

from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from eyeball_relight import checkpoint, config, refinement, training, volume
from eyeball_relight.batches import gather
from eyeball_relight.field import new_field
from eyeball_relight.rays import rays_through
from eyeball_relight.refinement import corrected, gains, refined, trained_views, without_gauge
from recon4d.cameras import Camera

ON = ("train.refine_pose=true", "train.refine_focal=true", "light.exposure=true", "train.refine_after=5")


@pytest.fixture(scope="module")
def field(trained):
    """The trained field with corrections, which are zero."""
    loaded, settings, out, _ = trained
    state = checkpoint.read(out / checkpoint.CHECKPOINT)
    fields = settings.model_copy(
        update={
            "train": settings.train.model_copy(update={"refine_pose": True}),
            "light": settings.light.model_copy(update={"exposure": True}),
        }
    )
    found = new_field(fields, len(loaded))
    missing = found.load_state_dict(state["field"], strict=False).missing_keys
    assert set(missing) == {"pose", "focal", "exposure"}
    return found


def test_nothing_is_corrected_to_begin_with(field, trained):
    loaded = trained[0]
    camera = refined(field, loaded.camera)
    torch.testing.assert_close(camera.world_to_camera, loaded.camera.world_to_camera, atol=1e-6, rtol=0)
    torch.testing.assert_close(camera.K, loaded.camera.K)
    assert torch.equal(gains(field), torch.ones(len(loaded), 3))


def test_off_is_off(trained):
    loaded, settings, _, _ = trained
    plain = new_field(settings, len(loaded))
    assert {"pose", "focal", "exposure"}.isdisjoint(plain.state_dict())
    assert refined(plain, loaded.camera) is loaded.camera and corrected(plain, loaded) is loaded
    assert len(training.adam(plain).param_groups) == 3


def test_what_all_views_share_is_left_out():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(7, 3, generator=generator)
    motion = 0.1 * torch.randn(7, 6, generator=generator)
    away = torch.nn.functional.normalize(centres, dim=1)
    out = without_gauge(motion, centres)
    assert out[:, :3].mean(0).abs().max() < 1e-6
    common = torch.cat([torch.full((7, 3), 0.2), torch.full((7, 3), -0.3)], 1)
    torch.testing.assert_close(without_gauge(motion + common, centres), out, atol=1e-6, rtol=0)
    towards = torch.cat([torch.zeros(7, 3), 0.1 * away], 1)
    left = without_gauge(towards - towards.mean(0), centres)
    assert (left[:, 3:] * away).sum(1).mean().abs() < 0.1 * 0.1


def test_a_longer_lens_leaves_the_head_as_large(field, trained):
    """A point at the head's middle, across the axis, stays where it is; one nearer to the camera moves."""
    loaded = trained[0]
    with torch.no_grad():
        field.focal.fill_(0.2)
        camera = refined(field, loaded.camera)
        field.focal.zero_()
    turn = loaded.camera.world_to_camera[:, :3, :3].transpose(1, 2)
    ratio = camera.world_to_camera[:, 2, 3] / loaded.camera.world_to_camera[:, 2, 3]
    torch.testing.assert_close(ratio, torch.full_like(ratio, np.exp(0.2)))
    for i in (0, 4):
        view, old = (Camera(c.K, c.world_to_camera[i], c.width, c.height) for c in (camera, loaded.camera))
        across, near = turn[i] @ torch.tensor([0.05, 0.02, 0.0]), turn[i] @ torch.tensor([0.05, 0.02, -0.1])
        torch.testing.assert_close(view.project(across[None])[0], old.project(across[None])[0], atol=1e-3, rtol=0)
        assert (view.project(near[None])[0] - old.project(near[None])[0]).norm() > 0.5


def test_gradients_are_those_of_finite_differences(field, trained):
    """Of how opaque rays are, by turns, shifts and the focal length; bins are held where they are."""
    loaded, settings, _, _ = trained
    generator = torch.Generator().manual_seed(1)
    shown = (loaded.mask > 20) & (loaded.mask < 235)  # outlines, where poses matter
    pool = torch.cat([shown[i].flatten().nonzero()[:, 0] + i * 64 * 64 for i in trained_views(len(loaded))])
    pixels = pool[torch.randint(len(pool), (400,), generator=generator)]
    beta, active, k = torch.tensor(0.05), field.active(70), 24
    start = rays_through(loaded.camera, settings.data.bound, pixels).origin.norm(dim=1, keepdim=True)
    edges = start + torch.linspace(-0.8, 0.8, k + 1)
    where = torch.full((len(pixels), k), 0.5)
    weight = torch.rand(len(pixels), generator=generator)

    def opacity():
        rays = rays_through(refined(field, loaded.camera), settings.data.bound, pixels)
        samples = volume.render(field, rays, edges, beta, active, torch.ones(3), where)
        return (weight * samples.opacity).sum()

    field.zero_grad()
    opacity().backward()
    view, step = trained_views(len(loaded))[3], 2e-3
    checked = [(field.focal, ())] + [(field.pose, (view, j)) for j in range(6)]
    for parameter, place in checked:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[place] += sign * step
            values.append(float(opacity()))
            with torch.no_grad():
                parameter[place] -= sign * step
        measured = (values[0] - values[1]) / (2 * step)
        assert float(parameter.grad[place]) == pytest.approx(measured, rel=0.1, abs=0.4)
    field.zero_grad()


def test_a_wrong_pose_and_exposure_are_found(field, trained):
    """The field's own picture, darkened, taken for one of a camera that is turned: corrections undo most of it."""
    loaded, settings, _, _ = trained
    view, size = trained_views(len(loaded))[4], 64
    every = torch.arange(size * size) + view * size * size
    rays = rays_through(loaded.camera, settings.data.bound, every)
    edges = rays.origin.norm(dim=1, keepdim=True) + torch.linspace(-0.8, 0.8, 33)
    beta, active, intensity = field.width(69), field.active(69), torch.full((3,), 0.73)
    drawn = volume.render(field, rays, edges, beta, active, intensity, torch.full((len(every), 32), 0.5))
    image, mask = loaded.image.clone(), loaded.mask.clone()
    light = 0.6 * drawn.pbr.detach().clamp(0, 1)
    image[view] = (light ** (1 / 2.2) * 255).round().to(torch.uint8).view(size, size, 3)
    mask[view] = (drawn.opacity.detach().clamp(0, 1) * 255).round().to(torch.uint8).view(size, size)
    true = loaded.camera.world_to_camera[view, :3, :3]
    pose = loaded.camera.world_to_camera.clone()
    pose[view, :3, :3] = true @ roma.rotvec_to_rotmat(torch.tensor([0.0, 0.05, 0.02]))
    wrong = replace(loaded, camera=replace(loaded.camera, world_to_camera=pose), image=image, mask=mask)
    grid = torch.zeros((settings.train.grid + 1,) * 3)
    training.marching.update_grid(grid, field, field.active(69), 0)
    pool = every[torch.nn.functional.max_pool2d(mask[view][None].float(), 9, 1, 4)[0].flatten() > 0]
    optimizer = torch.optim.Adam([{"params": [field.pose], "lr": 2e-3}, {"params": [field.exposure], "lr": 0.02}])
    for step in range(60):
        generator = training.generator_of(7, step)
        pixels = pool[torch.randint(len(pool), (300,), generator=generator)]
        batch, _ = gather(field, wrong, grid, pixels, 69, generator)
        terms = training.volume_terms(field, wrong.camera, batch, field.active(69), intensity)
        optimizer.zero_grad()
        (terms["pbr"] + terms["mask"]).backward()
        optimizer.step()
    camera = refined(field, wrong.camera)
    before, after = (
        float(roma.rotmat_geodesic_distance(R[view, :3, :3], true)) for R in (pose, camera.world_to_camera)
    )
    assert after < 0.5 * before
    assert gains(field).detach()[view].tolist() == pytest.approx([0.6] * 3, abs=0.12)
    with torch.no_grad():
        field.pose.zero_()
        field.exposure.zero_()


def test_a_views_own_share_of_the_room_is_held(trained):
    loaded, settings, _, _ = trained
    grid, pixels = torch.zeros((settings.train.grid + 1,) * 3), torch.arange(3000, 3400)
    for weight in (0.0, 0.5):
        held = settings.model_copy(update={"losses": settings.losses.model_copy(update={"occlusion": weight})})
        field = new_field(held, len(loaded))
        with torch.no_grad():
            field.occlusion.fill_(0.1)
        training.marching.update_grid(grid, field, field.active(0), 0)
        generator = training.generator_of(0, 0)
        batch, _ = gather(field, loaded, grid, pixels, 0, generator)
        terms = training.volume_terms(field, loaded.camera, batch, field.active(0), torch.ones(3))
        assert ("occlusion" in terms) == (weight > 0)
    assert float(terms["occlusion"].detach()) == pytest.approx(0.5 * 9 * 0.01)


def test_a_run_with_corrections_resumes_and_exports(data, tiny, tmp_path):
    from eyeball_relight import captures, exports

    short = [*tiny, *ON, "train.iterations=64", "train.mesh_render_iter=60", "train.milestones=[50]", "eyes.still=10"]
    settings = config.load(data / "config.yaml", "cpu-quick", [*short, "train.checkpoint_every=15"])
    loaded = captures.read(data, print)
    training.train(settings, loaded, tmp_path, print)
    found, intensity, step = checkpoint.open_field(tmp_path / checkpoint.CHECKPOINT)
    assert found.pose.abs().max() > 0 and found.exposure.abs().max() > 0
    exports.export_field(found, step, intensity, loaded, tmp_path / "asset", 64, 1000, 4096, print)
    _, lights = exports.read(tmp_path / "asset")
    torch.testing.assert_close(lights.views.world_to_camera, refined(found, loaded.camera).world_to_camera)
    held = loaded.held_out[0]
    zoom = float(found.focal.exp())
    ratio = lights.views.world_to_camera[held, :3, 3] / loaded.camera.world_to_camera[held, :3, 3]
    torch.testing.assert_close(ratio, torch.tensor([1, 1, zoom]))  # held-out views keep their pose
    assert refinement.gains(found)[held].tolist() == [1, 1, 1]
