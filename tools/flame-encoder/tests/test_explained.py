"""The picture explained at once: derivatives against differences, and a drawn person found again."""

from dataclasses import replace

import numpy as np
import pytest
import recon4d.head
import roma
import torch
from flame_encoder.encoder import identity, rendering, vector
from flame_encoder.encoder.crop import CropView, turn_of
from flame_encoder.encoder.vector import Layout
from flame_encoder.people import colours, explained, refine
from flame_encoder.people.colours import LOOKS, Window
from flame_encoder.people.explained import Looked
from flame_encoder.people.refine import Belief
from recon4d.cameras import Camera
from recon4d.head import with_uv

VIEW, LAYOUT = CropView(fov=14.0, size=160), Layout()
CROP = torch.tensor([0.0, 0.0, 160.0])


@pytest.fixture(scope="module")
def head():
    model = with_uv(recon4d.head.load())
    return replace(model, dense=replace(model.dense, bias=torch.zeros_like(model.dense.bias)))


@pytest.fixture(scope="module")
def drawn(head):
    """A person, drawn; where a landmarker that errs by a pixel and a half sees the points; the rig and the skin."""
    generator = torch.Generator().manual_seed(5)
    detail = torch.zeros(1, 56)
    detail[0, :27] = 0.2 * torch.randn(27, generator=generator)
    detail[0, 27:35] = torch.tensor([1.2, -1.0, 0.6, 0.5, -0.6, 0, 1.1, 0])
    rotation = roma.rotvec_to_rotmat(torch.tensor([[0.1, 0.3, 0.0]]))
    parts = {
        "shape": 0.9 * torch.randn(1, 100, generator=generator), "expression": torch.zeros(1, 50),
        "global_rot": rotation[:, :2].flatten(1), "jaw": torch.tensor([[0.1, 0, 0]]), "eyes": torch.zeros(1, 6),
        "neck": torch.zeros(1, 3), "transl": torch.zeros(1, 3), "detail": detail,
    }  # fmt: skip
    small = rendering.reduced(head)
    image, _ = rendering.render(small, parts, VIEW)
    picture = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    vertices = rendering.placed(VIEW, rendering.turned(head, parts), parts["transl"])
    surface = (vertices[:, head.faces[head.dense.faces]] * head.dense.bary[..., None]).sum(2)[0]
    points = np.full((478, 2), np.nan)
    pixels, _ = Camera(VIEW.K, torch.eye(4), 160, 160).project(surface)
    points[head.dense.indices.numpy()] = pixels + 1.5 * torch.randn(pixels.shape, generator=generator)
    rig = refine.rig_of(head, LAYOUT)
    return parts, picture, points, rig, colours.coloured(rig, small, 29)


def prepared(drawn):
    _, picture, points, rig, _ = drawn
    rest = torch.zeros(LAYOUT.size)
    rest[150:156] = torch.tensor(vector.IDENTITY_6D)
    one = refine.picture(rig, LAYOUT, VIEW, rest, CROP, None, refine.seen(points, (160, 160)))
    looked = Looked(one, picture, CROP, torch.zeros(27), torch.full((27,), 0.3))
    return looked, Belief(torch.zeros(108, dtype=torch.float64), torch.eye(108, dtype=torch.float64) / 0.81)


def test_derivatives(drawn):
    """Over a picture that is a ramp, whose slopes no blur changes."""
    *_, surface = drawn
    looked, _ = prepared(drawn)
    rng = np.random.default_rng(0)
    across = np.linspace(0.2, 0.7, 160, dtype=np.float32)
    sharp = np.repeat((0.5 * across[None, :, None] + 0.5 * across[:, None, None]), 3, 2)
    ramp = torch.from_numpy(sharp.transpose(2, 0, 1)).double()
    slope = torch.full_like(ramp, float(across[1] - across[0]) / 2)
    K = torch.tensor([[500.0, 0, 80], [0, 500, 80], [0, 0, 1]])
    turn = turn_of(torch.tensor([20.0, 0, 160]), K)
    window = Window(sharp, ramp, slope, slope, 1.0, 1.0, np.zeros(2), turn, (160, 160))
    shared = torch.from_numpy(0.3 * rng.standard_normal(108))
    looks = torch.from_numpy(np.r_[0.1 * rng.standard_normal(27), 0.02 * rng.random(19), 0.03 * rng.standard_normal(6)])
    mine = torch.cat([looked.picture.start, looks])
    mine[7:51] = 0.05
    chosen = torch.arange(1000, 3000, 10)
    beside = torch.zeros(len(chosen), 3, dtype=torch.float64)

    def at(shared, mine):
        return colours.residuals(surface, looked.picture, shared, mine, window, chosen, beside)

    Js, Jo = at(shared, mine)[1]()
    columns = [(0, i) for i in (0, 3, 20, 100, 101, 106)]
    columns += [(1, i) for i in range(7)]
    columns += [(1, 7 + list(surface.head.expression_names).index(name)) for name in ("mouthSmileLeft", "browInnerUp")]
    columns += [(1, len(mine) - LOOKS + i) for i in (0, 5, 26, 27, 33, 46, 47, 48, 49, 50, 51)]
    for which, column in columns:
        step = torch.zeros_like(shared if which == 0 else mine)
        step[column] = 1e-2 if which == 0 else 1e-3
        more, less = (at(shared + s, mine) if which == 0 else at(shared, mine + s) for s in (step, -step))
        expected = (more[0] - less[0]) / (2 * step[column])
        found = (Js if which == 0 else Jo)[..., column]
        # turning is linear in the coefficients, the head's normals are nearly
        assert (found - expected).norm() < 0.25 * expected.norm() + 1e-3, (which, column)


def test_a_drawn_person_is_found_again(head, drawn):
    """Nearer than its points alone say, skin too; and it is known how near."""
    parts, *_, surface = drawn
    looked, belief = prepared(drawn)
    shape_belief = Belief(belief.mean[:100], belief.precision[:100, :100])
    shape, placed, before = refine.solve([looked.picture], shape_belief)
    found = explained.explain(surface, [looked], belief, shape, placed)
    assert found is not None and found.doubt < 3

    def error(shape):
        ours, theirs = head(shape.float()[None])[0], head(parts["shape"])[0]
        R, t, size = roma.rigid_points_registration(ours, theirs, compute_scaling=True)  # which no picture tells
        return 1000 * (size * ours @ R.T + t - theirs).norm(dim=1).mean().item()

    assert error(found.shared[:100]) < 0.85 * error(shape)
    tints = parts["detail"][0, 27:35].double()
    assert (found.shared[100:] - tints).norm() < 0.5 * tints.norm()
    assert found.covariance.diagonal()[:100].mean() < before.diagonal().mean()
    assert found.placed().shape == placed.shape and found.lights().shape == (1, 27)
    lost = replace(looked, image=np.zeros_like(looked.image))
    nothing = explained.explain(surface, [lost], belief, shape, placed)
    assert nothing is None or nothing.shared.isfinite().all()


def test_a_smooth_field_is_correlated_noise(monkeypatch):
    """What is left without the field is what noise with the field's covariance would leave, against a dense solve."""
    monkeypatch.setattr(explained, "ROBUST", 1e12)
    rng = np.random.default_rng(0)
    field = explained._field(torch.from_numpy(rng.uniform(0, 60, (200, 2))))
    np.testing.assert_allclose(field.sum(1), 1)
    off, weight = torch.from_numpy(rng.standard_normal((200, 3))), 0.4
    rest, robust, z, _ = explained._freed(off, 2 * field, weight)
    F = 2 * field.numpy()
    whitened = np.linalg.solve(np.eye(200) / weight + F @ F.T, off.numpy())
    np.testing.assert_allclose(weight * rest, whitened, atol=1e-9)
    np.testing.assert_allclose(robust, 1)
    cost = weight * float(rest.square().sum()) + float(z.square().sum())
    assert cost == pytest.approx(float((off.numpy() * whitened).sum()), rel=1e-9)


def test_around_something_wrong_nothing_counts():
    """Points that look right by chance amid a hand are left out, those on the other side are not."""
    x, y = np.meshgrid(np.arange(10, 90, 2.0), np.arange(10, 90, 2.0))
    pixels = torch.from_numpy(np.stack([x.ravel(), y.ravel()], 1))
    like = (pixels[:, 0] > 50) | (torch.from_numpy(np.random.default_rng(0).random(len(pixels))) < 0.3)
    share = explained._share(like, pixels, 100)
    assert (share[pixels[:, 0] < 40] < explained.COHERENT).all() and (share[pixels[:, 0] > 62] > 0.95).all()


def test_what_is_told_is_a_ratio_of_densities(monkeypatch):
    """Of two noisy looks at the same numbers, which hang together, against SciPy's normal distributions."""
    from scipy.stats import multivariate_normal

    rng = np.random.default_rng(0)
    v = rng.uniform(0.3, 1, 4)
    looks = rng.standard_normal((2, 6, 4))
    values = rng.standard_normal((2, 6))
    prior = np.r_[v, 0.0]  # a number that differs in nobody
    monkeypatch.setattr(identity, "TEMPER", 1.0)
    monkeypatch.setattr(identity, "FLOOR", 0.0)

    def told(A, y):
        covariance = np.linalg.inv(A.T @ A + np.diag(1 / v))
        whole = np.eye(5)
        whole[:4, :4] = covariance
        rows = identity.told(prior, np.r_[covariance @ A.T @ y, 9.0], whole)
        again = identity.known(prior, rows)
        if identity.FLOOR:
            return rows
        np.testing.assert_allclose(again.identity, np.r_[covariance @ A.T @ y, 0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(again.covariance[:4, :4], covariance, rtol=1e-4, atol=1e-5)
        return rows

    def density(A, y):
        return multivariate_normal(np.zeros(len(y)), A @ np.diag(v) @ A.T + np.eye(len(y))).logpdf(y)

    expected = density(np.concatenate(looks), np.concatenate(values)) - sum(map(density, looks, values))
    some, others = (told(A, y) for A, y in zip(looks, values))
    assert some.shape == (identity.AXES, 6) and (some[:, 4] == 0).all() and (some[4:, :5] ** 2 < 1e-4).all()
    assert identity.told_likeness(prior, some, others) == pytest.approx(expected, rel=1e-6)
    assert identity.told_likeness(prior, some, 0 * others) == pytest.approx(0, abs=1e-9)
    monkeypatch.setattr(identity, "FLOOR", 0.5)
    assert abs(identity.told_likeness(prior, told(looks[0], values[0]), others)) < abs(expected) + 1
