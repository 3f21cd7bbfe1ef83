"""The tracker on clips of the open head whose truth is known."""

import numpy as np
import pytest
import roma
import torch
from flame_encoder.tracker import contour, points
from flame_encoder.tracker.clip import fit
from flame_encoder.tracker.observations import Observations
from flame_encoder.tracker.problem import Options, Problem
from known_clip import clip, face_error
from recon4d import InputError, head


@pytest.fixture(scope="module")
def model():
    return head.load()


def test_recovers_a_known_clip_with_known_focal_length(model):
    truth, seen, jaw = clip(model)
    found, figures = fit(model, seen, Options(focal=900.0))
    assert face_error(model, truth, found.vertices(model)) < 2.0
    assert figures["mean_iod"] < 1.5 and figures["interpolated"] == 0
    assert found.K[0, 0] == pytest.approx(900, rel=1e-3)
    mean_jaw = roma.rotmat_to_rotvec(torch.from_numpy(found.jaw))[:, 0]
    assert np.corrcoef(mean_jaw, jaw[:, 0])[0, 1] > 0.5


def test_recovers_a_known_clip_with_unknown_focal_length(model):
    truth, seen, _ = clip(model)
    found, figures = fit(model, seen)
    assert face_error(model, truth, found.vertices(model)) < 3.0
    assert 450 < figures["focal"] < 1800


def test_frames_without_landmarks_are_interpolated_and_marked(model):
    truth, seen, _ = clip(model)
    gone = np.array([0, 11, 12, 30])
    seen.valid[gone] = False
    seen.landmarks[gone] = np.nan
    found, figures = fit(model, seen, Options(focal=900.0))
    assert figures["interpolated"] == 4 and (~found.valid).nonzero()[0].tolist() == gone.tolist()
    assert np.isfinite(found.R).all() and np.isfinite(found.t).all()
    vertices = found.vertices(model)
    assert face_error(model, truth[gone], vertices[gone]) < 4.0
    assert (vertices[gone] - truth[gone]).norm(dim=-1).mean() < 0.05  # in place, not only in shape


def test_wild_landmarks_in_some_frames_do_not_spoil_the_rest(model):
    truth, seen, _ = clip(model)
    seen.landmarks[5, 48:] += 120
    seen.landmarks[20] += np.random.default_rng(0).normal(size=(68, 2)) * 60
    found, _ = fit(model, seen, Options(focal=900.0))
    rest = np.setdiff1d(np.arange(40), [4, 5, 6, 19, 20, 21])
    assert face_error(model, truth[rest], found.vertices(model)[rest]) < 2.2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_short_clips(model, n):
    _, seen, _ = clip(model, n=40)
    short = Observations(seen.names[:n], seen.landmarks[:n], seen.valid[:n], seen.irises[:n], (512, 512), 30.0)
    found, figures = fit(model, short, Options(focal=900.0))
    assert len(found) == n and figures["mean_iod"] < 3


def test_no_landmarks_at_all(model):
    _, seen, _ = clip(model, n=3)
    seen.valid[:] = False
    with pytest.raises(InputError, match="no frame has landmarks"):
        fit(model, seen)


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
    problem = Problem(points.Rig(model, 5, 6), seen, Options())
    g, q = problem.start()
    g[:-1] = torch.randn(5) * 0.3
    q[:, 6:12] = torch.rand(4, 6) * 0.5
    rows = problem.choose(g, q)
    *_, a, c = problem.normal_equations(g, q, rows)

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
