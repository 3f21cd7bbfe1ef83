"""The tracker on clips of the open head whose truth is known."""

import numpy as np
import pytest
import roma
import torch
from flame_encoder import contour, points, tracker
from flame_encoder.observations import Observations
from recon4d import InputError, head


@pytest.fixture(scope="module")
def model():
    return head.load()


def clip(model, n=40, yaw=25.0, noise=0.004, focal=900.0, seed=0):
    """True parameters and noisy landmarks of a head that turns and talks, seen at 512x512."""
    g = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 2 * torch.pi, n)
    shape = torch.randn(1, model.n_shape, generator=g) * 0.8
    # No video tells the size of a head; the tracker takes the mean head's, so the true head has it too.
    landmarks = points.Points.on(model, model.landmark_faces, model.landmark_bary, model.n_shape, model.n_expression)
    growth = landmarks.growth(model.n_shape)
    shape = shape - (shape @ growth)[:, None] * growth / growth.square().sum()
    phase = torch.rand(model.n_expression, generator=g) * 2 * torch.pi
    expression = (torch.sin(time[:, None] * 2 + phase) - 0.6).clamp_min(0) * 0.8
    jaw = torch.stack([0.15 * (1 + torch.sin(3 * time)) / 2, 0 * time, 0 * time], 1)
    eyelids = torch.sin(4 * time)[:, None].clamp_min(0).expand(-1, 2)
    turn = torch.stack([0.12 * torch.sin(2 * time), np.radians(yaw) * torch.sin(time), 0.08 * torch.cos(time)], 1)
    R = points.FACING @ roma.rotvec_to_rotmat(turn)
    t = torch.stack([0.02 * torch.sin(time), 0.01 * torch.cos(time), 0.7 + 0.03 * torch.sin(time)], 1)
    vertices = (
        model(shape, expression, jaw=roma.rotvec_to_rotmat(jaw), eyelids=eyelids) @ R.transpose(1, 2) + t[:, None]
    )
    faces, bary = contour.candidates(model)
    rows = (vertices[:, model.faces[faces]] * bary[..., None]).sum(3)  # (N, 17, C, 3)
    centre = 256.0
    project = lambda p: p[..., :2] / p[..., 2:] * focal + centre  # noqa: E731
    chosen = contour.visible(project(rows))
    seen_at = project(model.landmarks(vertices))
    seen_at[:, :17] = project(rows).gather(2, chosen[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    iod = (seen_at[:, 36] - seen_at[:, 45]).norm(dim=-1)
    seen_at = seen_at + noise * iod[:, None, None] * torch.randn(seen_at.shape, generator=g)
    seen = Observations(
        names=np.array([f"{i:05d}.png" for i in range(n)]),
        landmarks=seen_at.numpy(),
        valid=np.ones(n, bool),
        irises=np.full((n, 2, 2), np.nan),
        image_size=(512, 512),
        fps=30.0,
    )
    return vertices, seen, jaw


def face_error(model, truth, found):
    """Mean distance (mm) of the face region's vertices after rigid alignment in each frame."""
    keep = model.regions["face"]
    a, b = found[:, keep].double(), truth[:, keep].double()
    R, t = roma.rigid_points_registration(a, b)
    return 1000 * (a @ R.transpose(1, 2) + t[:, None] - b).norm(dim=-1).mean().item()


def test_recovers_a_known_clip_with_known_focal_length(model):
    truth, seen, jaw = clip(model)
    found, figures = tracker.track(model, seen, tracker.Options(focal=900.0))
    assert face_error(model, truth, found.vertices(model)) < 2.0
    assert figures["mean_iod"] < 1.5 and figures["interpolated"] == 0
    assert found.K[0, 0] == pytest.approx(900, rel=1e-3)
    mean_jaw = roma.rotmat_to_rotvec(torch.from_numpy(found.jaw))[:, 0]
    assert np.corrcoef(mean_jaw, jaw[:, 0])[0, 1] > 0.5


def test_recovers_a_known_clip_with_unknown_focal_length(model):
    truth, seen, _ = clip(model)
    found, figures = tracker.track(model, seen)
    assert face_error(model, truth, found.vertices(model)) < 3.0
    assert 450 < figures["focal"] < 1800


def test_frames_without_landmarks_are_interpolated_and_marked(model):
    truth, seen, _ = clip(model)
    gone = np.array([0, 11, 12, 30])
    seen.valid[gone] = False
    seen.landmarks[gone] = np.nan
    found, figures = tracker.track(model, seen, tracker.Options(focal=900.0))
    assert figures["interpolated"] == 4 and (~found.valid).nonzero()[0].tolist() == gone.tolist()
    assert np.isfinite(found.R).all() and np.isfinite(found.t).all()
    vertices = found.vertices(model)
    assert face_error(model, truth[gone], vertices[gone]) < 4.0
    assert (vertices[gone] - truth[gone]).norm(dim=-1).mean() < 0.05  # in place, not only in shape


def test_wild_landmarks_in_some_frames_do_not_spoil_the_rest(model):
    truth, seen, _ = clip(model)
    seen.landmarks[5, 48:] += 120
    seen.landmarks[20] += np.random.default_rng(0).normal(size=(68, 2)) * 60
    found, _ = tracker.track(model, seen, tracker.Options(focal=900.0))
    rest = np.setdiff1d(np.arange(40), [4, 5, 6, 19, 20, 21])
    assert face_error(model, truth[rest], found.vertices(model)[rest]) < 2.2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_short_clips(model, n):
    _, seen, _ = clip(model, n=40)
    short = Observations(seen.names[:n], seen.landmarks[:n], seen.valid[:n], seen.irises[:n], (512, 512), 30.0)
    found, figures = tracker.track(model, short, tracker.Options(focal=900.0))
    assert len(found) == n and figures["mean_iod"] < 3


def test_no_landmarks_at_all(model):
    _, seen, _ = clip(model, n=3)
    seen.valid[:] = False
    with pytest.raises(InputError, match="no frame has landmarks"):
        tracker.track(model, seen)


def test_contour_slides_on_the_far_side_only(model):
    faces, bary = contour.candidates(model)
    assert faces.shape == (17, contour.CANDIDATES) and torch.allclose(bary.sum(-1), torch.ones(faces.shape), atol=1e-5)
    points = (model.v_template[model.faces[faces]] * bary[..., None]).sum(2)
    assert torch.allclose(points[:, 0], model.landmarks(model.v_template[None])[0, :17], atol=1e-6)
    # A positive turn about y moves the nose to +x, the person's left: that side (landmarks 10..16) is the far one.
    for yaw, far, near in ((0.6, slice(10, 17), slice(0, 7)), (-0.6, slice(0, 7), slice(10, 17))):
        turned = points @ roma.rotvec_to_rotmat(torch.tensor([0.0, yaw, 0.0])).T
        chosen = contour.visible(torch.stack([turned[..., 0], -turned[..., 1]], -1)[None])[0].float()
        assert chosen[far].mean() > 1 + 2 * chosen[near].mean()


def test_normal_equations_match_finite_differences(model):
    _, seen, _ = clip(model, n=4)
    problem = tracker.Problem(points.Rig(model, 5, 6), seen, tracker.Options())
    g, q = problem.start()
    g[:-1] = torch.randn(5) * 0.3
    q[:, 6:12] = torch.rand(4, 6) * 0.5
    rows = problem.choose(g, q)
    *_, a, c = problem._normal_equations(g, q, rows)
    a = a + problem._smooth_gradient(q)

    # The gradient of the true cost differs by the robust weights' own derivative: w r with w = 9 / (9 + r^2)
    # against the Geman-McClure derivative 81 r / (9 + r^2)^2, which is what squaring the weight gives.
    def numeric(which, index, step):
        values = []
        for sign in (1, -1):
            moved_g, moved_q = g.clone(), q.clone()
            (moved_g if which == "g" else moved_q)[index] += sign * step
            values.append(problem.cost(moved_g, moved_q, rows))
        return (values[0] - values[1]) / (2 * step)

    for index in ((0, 1), (1, 4), (2, 7), (3, 12), (1, 15)):
        assert 2 * a[index].item() == pytest.approx(numeric("q", index, 1e-3), rel=0.03, abs=3)
    for index in (0, 3, 5):
        assert 2 * c[index].item() == pytest.approx(numeric("g", index, 1e-3), rel=0.03, abs=3)
