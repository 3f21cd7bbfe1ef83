"""The compiled projection of points of the head against torch: posed by the head model, differentiated by autograd."""

import numpy as np
import pytest
import roma
import torch
from flame_encoder.tracker import jacobians, points
from recon4d import head


@pytest.fixture(scope="module", params=["open head", "without eyelids"])
def rig(request):
    model = head.load()
    if request.param == "without eyelids":
        from dataclasses import replace

        model = replace(model, eyelids=None)
    return points.Rig(model, 7, 9)


def reference(rig, g, q, faces, bary, centre):
    """(n, 2) pixels of one frame, by the head model itself, float64."""
    model, parts = rig.head, rig.columns.split(q)
    size = rig.size(g)
    yaw, pitch = parts["gaze"]
    eye = roma.rotvec_to_rotmat(torch.stack([-pitch, yaw, torch.zeros_like(yaw)]))
    vertices = model(
        shape=g[None, :-1],
        expression=size * parts["expression"][None],
        eyelids=size * parts["eyelids"][None] if rig.columns.eyelids else None,
        jaw=roma.rotvec_to_rotmat(parts["jaw"])[None],
        eyes=torch.stack([eye, eye])[None],
    )[0]
    on = (vertices[model.faces[faces]] * bary[..., None]).sum(1)
    x, y, log_z = parts["place"]
    place = torch.stack([x, y, torch.ones_like(x)]) * log_z.exp()
    camera = on @ (roma.rotvec_to_rotmat(parts["rotation"]) @ points.FACING.double()).T + place
    return camera[:, :2] / camera[:, 2:] * g[-1].exp() + centre


def test_pixels_and_derivatives_are_those_of_the_head_model(rig):
    rng = np.random.default_rng(0)
    model = rig.head.to(torch.float64)
    torch.manual_seed(0)
    # Corners of triangles: elsewhere skinning weights are interpolated, which is not quite the same.
    faces = torch.from_numpy(rng.integers(0, len(model.faces), 200))
    bary = torch.eye(3)[torch.from_numpy(rng.integers(0, 3, 200))]
    on = rig.points(faces, bary)
    n, P = 3, rig.columns.size
    g = torch.cat([torch.randn(rig.columns.n_shape), torch.tensor([6.5])]).double()
    q = 0.2 * torch.randn(n, P).double()
    q[:, 5] = torch.tensor([-0.4, 0.1, 0.8])
    q[0, :3] = 0.0  # where the angle of the rotation has no derivative
    centre = torch.tensor([200.0, 150.0])
    rows = torch.stack([torch.randperm(200)[:60] for _ in range(n)])
    pixels, Jg, Jq = rig.derivatives(g, q, on, centre, rows)
    double = points.Rig(model, rig.columns.n_shape, rig.columns.n_expression)
    double.growth = rig.growth.double()
    assert pixels.shape == (n, 60, 2) and Jg.shape == (n, 60, 2, len(g)) and Jq.shape == (n, 60, 2, P)
    for i in range(n):

        def of(g, q, i=i):
            return reference(double, g, q, faces[rows[i]], bary[rows[i]].double(), centre.double())

        torch.testing.assert_close(pixels[i].double(), of(g, q[i]), atol=0.02, rtol=0)
        by_g, by_q = torch.autograd.functional.jacobian(of, (g, q[i]))
        for mine, theirs in ((Jg[i], by_g), (Jq[i], by_q)):
            error = (mine.double() - theirs).abs().amax((0, 1))
            assert (error < 2e-3 * theirs.abs().amax((0, 1)) + 1e-3).all()


def test_only_what_is_asked_for(rig):
    g = torch.zeros(rig.columns.n_shape + 1).double() + 0.1
    q = torch.full((2, rig.columns.size), 0.1).double()
    rows = torch.arange(5).expand(2, 5)
    whole = rig.derivatives(g, q, rig.landmarks, torch.zeros(2), rows)
    pixels, Jg, Jq = rig.derivatives(g, q, rig.landmarks, torch.zeros(2), rows, shared=False)
    assert len(Jg) == 0 and torch.equal(Jq, whole[2]) and torch.equal(pixels, whole[0])
    assert torch.equal(rig.project(g, q, rig.landmarks, torch.zeros(2), rows), pixels)


def test_rotations_of_any_size():
    vectors = np.concatenate([np.random.default_rng(1).normal(size=(6, 3)), np.zeros((1, 3)), [[1e-9, 0, 0]]])
    R, dR = jacobians.rotations(vectors)
    v = torch.from_numpy(vectors)
    np.testing.assert_allclose(R, roma.rotvec_to_rotmat(v).numpy(), atol=1e-12)
    step = 1e-6
    for k in range(3):
        moved = torch.zeros(3).double()
        moved[k] = step
        numeric = (jacobians.rotations((v + moved).numpy())[0] - jacobians.rotations((v - moved).numpy())[0]) / (
            2 * step
        )
        np.testing.assert_allclose(dR[:, k], numeric, atol=1e-8)
