"""Normals by many pictures' brightness, and a surface that is bent to them."""

import pytest
import torch
from eyeball_relight import brdf, checkpoint, config, shading
from eyeball_relight.checkpoint import CHECKPOINT
from eyeball_relight.field import new_field
from torch.nn.functional import normalize


@pytest.fixture(scope="module")
def field(data, tiny):
    return new_field(config.load(data / "config.yaml", "cpu-quick", tiny), 11)


def degrees(a, b):
    return torch.rad2deg(torch.acos((a * b).sum(1).clamp(-1, 1)))


def test_many_pictures_tell_normals(field):
    generator = torch.Generator().manual_seed(0)
    true = normalize(torch.randn(200, 3, generator=generator) * 0.3 + torch.tensor([0.0, 0, 1]), dim=1)
    away = torch.tensor([0.0, 0, 0.4]) + 0.25 * torch.randn(200, 24, 3, generator=generator)
    away[..., 2].clamp_(min=0.2)
    diffuse = 0.1 + 0.4 * torch.rand(200, 3, generator=generator)
    gloss = torch.tensor([[0.4, 0.5]]).expand(200, 2)
    intensity, gain = torch.full((3,), 0.5), 1 + 0.1 * torch.randn(24, 3, generator=generator)
    square = away.square().sum(-1, keepdim=True)
    several = [values[:, None].expand(-1, 24, -1) for values in (true, diffuse, gloss[:, :1], gloss[:, 1:])]
    light = brdf.reflect_flash(several[0], away / square.sqrt(), *several[1:]) * intensity / square
    room = brdf.ambient(true, field.ambient.detach(), torch.zeros(9), field.config.light.ambient_scale)
    value = brdf.to_picture(gain * (light + (diffuse * room)[:, None]))
    fine = ((normalize(away, dim=-1) * true[:, None]).sum(-1) > 0.2).float()
    value[:, 3] = torch.rand(200, 3, generator=generator)  # something stood in the way
    seen = shading.Seen(value, fine, away, gain)
    begin = normalize(true + 0.12 * torch.randn(200, 3, generator=generator), dim=1)
    dull = torch.tensor([[0.3, 0.5]]).expand(200, 2)
    found, sure = shading.solve(field, seen, begin, 0.8 * diffuse, dull, intensity)
    assert degrees(begin, true).median() > 5 and degrees(found, true)[sure].median() < 0.5 and sure.float().mean() > 0.9
    # a single picture tells nothing, and is not believed
    _, none = shading.solve(
        field, shading.Seen(value, fine * (torch.arange(24) < 1), away, gain), begin, diffuse, dull, intensity
    )
    assert not none.any()


def test_a_surface_bends_to_normals_and_stays(field, monkeypatch):
    monkeypatch.setattr(shading, "STEPS", 60)
    monkeypatch.setattr(shading, "BATCH", 512)
    monkeypatch.setattr(shading, "RATE", 4e-3)
    active = field.active(0)
    direction = normalize(torch.randn(2000, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    at = 0.4 * direction
    for _ in range(4):  # onto the level
        distance, _, gradient = field.face_gradient(at, active)
        at = (at - (distance - field.level)[:, None] * gradient / gradient.square().sum(1, keepdim=True)).detach()
    waves = 0.2 * (8 * at).cos() * torch.tensor([1.0, 0, 0])  # the slope of a sine
    wanted = normalize(field.face_gradient(at, active)[2].detach() + waves, dim=1)
    told = shading.Told(at, wanted, torch.ones(len(at), dtype=torch.bool))

    def off():
        distance, _, gradient = field.face_gradient(at, active)
        return float(degrees(normalize(gradient.detach(), dim=1), wanted).median()), float(
            distance.detach().abs().mean()
        )

    before, _ = off()
    shading.bend(field, active, told, 0)
    after, moved = off()
    assert after < 0.7 * before and moved < 0.03, (before, after, moved)


def test_points_of_a_trained_face_are_told(trained, monkeypatch):
    loaded, settings, out, _ = trained
    monkeypatch.setattr(shading, "FEWEST", 2)  # so few views see a face so coarse
    state = checkpoint.read(out / CHECKPOINT)
    own = new_field(settings, len(loaded))
    own.load_state_dict(state["field"])
    told = shading.normals_told(own, own.active(90), loaded, state["intensity"], 0)
    assert told.sure.sum() > 20 and (told.normal.norm(dim=1) - 1).abs().max() < 1e-4
    assert told.position.abs().max() <= 1 and len(told.position) == len(told.normal) == len(told.sure)
