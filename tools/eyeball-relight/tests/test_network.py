"""The fused networks against plain torch in float64: values, first and second derivatives."""

import copy

import pytest
import torch
from eyeball_relight import cells
from eyeball_relight.config import Config, Model
from eyeball_relight.field import new_field


@pytest.fixture(scope="module")
def fields():
    """A field in float32, which the kernels take, and the same in float64, which they leave to torch."""
    model = Model(coarsest=4, finest=24, levels=5, log2_entries=10, hidden=48)  # the last levels are hashed
    field = new_field(Config(model=model), 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for table in (field.distance_table, field.material_table):
            table.copy_(0.02 * torch.randn(table.shape, generator=generator))
        for layer in (0, 2, 4):
            weight = field.distance_mlp[layer].parametrizations.weight.original1
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return field, copy.deepcopy(field).double()


def points(n):
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x[:3] = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [-1.3, 0.5, 1.2]])
    return x


def gradients(field, loss, *others):
    """By every parameter that the loss depends on, and by `others`."""
    named = dict(field.named_parameters()) | {f"other {i}": x for i, x in enumerate(others)}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found) if g is not None}


def close(ours, theirs, tolerance=2e-5):
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        error = (ours[name].double() - wanted).abs().max() / wanted.abs().max()
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("levels", [5, 3])
@pytest.mark.parametrize("cores", [1, 2])
def test_distance_gradient_and_the_derivatives_of_both(fields, levels, cores):
    def everything(field):
        x = points(64 * 8 + 13).to(field.beta.dtype)
        assert cells.usable(x, field.distance_table, 48) == (x.dtype == torch.float32)
        distance, feature, gradient = field.face_gradient(x, field.resolution[:levels])
        loss = (gradient.norm(dim=1) - 1).square().mean() + (gradient * x.flip(1)).mean()  # as losses on normals are
        loss = loss + distance.abs().mean() + feature.square().mean()
        found = {"distance": distance, "feature": feature, "gradient": gradient}
        return found | gradients(field, loss)

    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        with cells.torch_alone():
            assert torch.get_num_threads() == 1
            ours, theirs = (everything(field) for field in fields)
    finally:
        torch.set_num_threads(before)
    close(ours, theirs)
    off = ours["distance_table"][levels:]
    assert not off.any() and ours["distance_table"][:levels].any()


def test_distance_alone(fields):
    def everything(field):
        x = points(70).to(field.beta.dtype)
        distance, feature = field.face(x, field.resolution)
        return {"distance": distance, "feature": feature} | gradients(field, (distance.sin() + feature.sum(1)).mean())

    ours, theirs = (everything(field) for field in fields)
    close(ours, theirs)
    with torch.no_grad():  # where nothing is kept
        for n in (0, 1, 70):
            found = fields[0].face(points(70)[:n], fields[0].resolution)[0]
            torch.testing.assert_close(found, ours["distance"][:n])


def test_material_and_its_derivatives(fields):
    def everything(field):
        x = points(200).to(field.beta.dtype)[3:].requires_grad_()  # outside, the position is clamped
        part = torch.zeros(len(x), dtype=torch.long)
        material = field.material(x, part, field.resolution[:4])
        loss = (material.diffuse * x.detach()).mean() + (material.specular * material.roughness).mean()
        return {"diffuse": material.diffuse, "roughness": material.roughness} | gradients(field, loss, x)

    close(*(everything(field) for field in fields))
