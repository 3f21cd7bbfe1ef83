"""Tracking by MediaPipe's dense points: clips whose truth is known, offline and frame by frame; the embedding."""

from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from flame_encoder import embedding, head_check
from flame_encoder.report import unseen
from flame_encoder.tracker import beliefs, live, observations, points, stream
from flame_encoder.tracker.clip import fit
from flame_encoder.tracker.observations import FrameFaces, Observations
from flame_encoder.tracker.problem import Identity, Options, Problem
from known_clip import face_error
from recon4d import InputError, files, head
from recon4d.formats.landmarks import IBUG
from recon4d.head.dense import read_dense, write_dense

FOCAL, SIZE = 900.0, 512


@pytest.fixture(scope="module")
def model():
    return head.load()


def dense_clip(model, n=40, yaw=25.0, noise=0.004, seed=0):
    """Vertices, poses and what a landmarker would say of a head that turns and talks, seen at 512x512."""
    rng, time = np.random.default_rng(seed), torch.linspace(0, 2 * torch.pi, n)
    rig = points.Rig(model)
    shape = torch.from_numpy(0.8 * rng.standard_normal(model.n_shape)).float()
    shape = shape - (shape @ rig.growth) * rig.growth / rig.growth.square().sum()  # no video tells the size of a head
    q = torch.zeros(n, rig.columns.size, dtype=torch.float64)
    parts = rig.columns.split(q)
    parts["rotation"][:] = torch.stack(
        [0.12 * torch.sin(2 * time), np.radians(yaw) * torch.sin(time), 0.08 * torch.cos(time)], 1
    )
    parts["place"][:] = torch.stack([0.03 * torch.sin(time), 0.02 * torch.cos(time), torch.full((n,), np.log(0.7))], 1)
    phase = torch.from_numpy(rng.uniform(0, 6, model.n_expression))
    parts["expression"][:] = (torch.sin(time[:, None] * 2 + phase) - 0.6).clamp_min(0) * 0.8
    parts["jaw"][:, 0] = 0.15 * (1 + torch.sin(3 * time)) / 2
    parts["gaze"][:, 0] = 0.3 * torch.sin(2 * time)
    g = torch.cat([shape.double(), torch.tensor([np.log(FOCAL)])])
    centre = torch.tensor([SIZE / 2, SIZE / 2])
    m = len(rig.dense.weights)
    seen = rig.project(g, q, rig.dense, centre, torch.arange(m).expand(n, -1)) + rig.seen_from(g, q)[1]
    unit = rig.eye_distance * FOCAL / 0.7
    seen = seen.numpy() + noise * unit * rng.standard_normal(seen.shape)
    dense = np.full((n, 478, 2), np.nan, np.float32)
    dense[:, :468], irises = seen[:, :-2], seen[:, -2:].astype(np.float32)
    names = np.array([f"{i:05d}.png" for i in range(n)])
    observed = Observations(names, dense[:, IBUG], np.ones(n, bool), irises, (SIZE, SIZE), 30.0, dense)
    problem = Problem(rig, observed, Options())
    return problem.as_track(g, q), observed


def turn_error(found, truth):
    """Largest error of the rotation, degrees, freed of its constant part."""
    R = torch.from_numpy(found.R @ truth.R.transpose(0, 2, 1))
    vectors = roma.rotmat_to_rotvec(R)
    return float(torch.rad2deg((vectors - vectors.median(0).values).norm(dim=1).max()))


@pytest.mark.parametrize("yaw", [25.0, 60.0])
def test_a_known_clip_comes_back(model, yaw):
    truth, seen = dense_clip(model, yaw=yaw)
    found, figures = fit(model, seen)
    assert face_error(model, truth.vertices(model), found.vertices(model)) < 1.2
    assert turn_error(found, truth) < 2.0
    assert 0.9 < figures["focal"] / FOCAL < 1.1
    assert figures["mean_iod"] < 1.0
    gaze = np.arctan2(found.eyes[:, 0, 0, 2], found.eyes[:, 0, 2, 2])
    true = np.arctan2(truth.eyes[:, 0, 0, 2], truth.eyes[:, 0, 2, 2])
    assert np.abs(gaze - true).mean() < np.radians(3)


def test_key_frames_say_what_all_frames_say(model):
    truth, seen = dense_clip(model)
    whole, _ = fit(model, seen, Options(focal=FOCAL))
    few, _ = fit(model, seen, Options(focal=FOCAL, key_frames=14))
    assert face_error(model, whole.vertices(model), few.vertices(model)) < 0.7
    assert turn_error(few, truth) < 2.0


def test_wild_points_and_missing_ones(model):
    truth, seen = dense_clip(model)
    seen.dense[5, 200:300] += 90
    seen.dense[:, 100:180] = np.nan
    seen.valid[11:13] = False
    found, _ = fit(model, seen, Options(focal=FOCAL))
    assert turn_error(found, truth) < 2.5 and (~found.valid).nonzero()[0].tolist() == [11, 12]


def test_landmarks_that_no_head_explains_are_bridged(model):
    truth, seen = dense_clip(model)
    seen.dense[20:22] = seen.dense[20:22] + 40 * np.random.default_rng(0).standard_normal((2, 478, 2))
    found, figures = fit(model, seen, Options(focal=FOCAL))
    assert figures["doubted"] == 2 and (~found.valid).nonzero()[0].tolist() == [20, 21]
    assert turn_error(found, truth) < 2.5


def test_a_stream_follows_the_clip(model):
    truth, seen = dense_clip(model, n=60)

    def arriving():
        for i in range(60):
            face = () if i in (40, 41, 42) else (i,)
            shown = (seen.landmarks[list(face)], seen.irises[list(face)].astype(float), (SIZE, SIZE))
            yield FrameFaces(str(seen.names[i]), *shown, seen.dense[list(face)])

    parts = list(stream.fit(model, arriving(), 30.0, Options(focal=FOCAL), calibration=20))
    assert len(parts) == 60
    good = [i for i in range(60) if i not in (40, 41, 42)]
    vertices = torch.cat([part.vertices(model) for part, _ in parts])
    assert face_error(model, truth.vertices(model)[good], vertices[good]) < 1.5
    errors = np.array([error for _, error in parts])
    assert np.isnan(errors[40:43]).all() and np.nanmax(errors[good]) < 2.0
    assert not any(parts[i][0].valid[0] for i in (40, 41, 42))


def test_the_frame_solver_takes_the_step_of_dense_algebra(model):
    _, seen = dense_clip(model, n=4)
    problem = Problem(points.Rig(model), seen, Options(focal=FOCAL))
    g, q = problem.start()
    solver = live.Solver.of(problem)
    rows = problem.choose(g, q)
    who = live.person(problem.rig, g)
    pixels, J = live._projected(solver, who, q[1].numpy())
    expected, _, by = problem.rig.derivatives(g, q[1:2], problem.points, problem.centre, rows[1:2], shared=False)
    np.testing.assert_allclose(pixels, expected[0], atol=2e-3)
    np.testing.assert_allclose(J, by[0], rtol=1e-3, atol=2e-2)
    share, beside = live._seen_from(solver, who, q[1].numpy())
    np.testing.assert_allclose(share, problem.towards[1], atol=1e-4)
    np.testing.assert_allclose(beside, problem.rig.seen_from(g, q)[1][1], atol=1e-2)


def test_a_step_solves_the_normal_equations():
    rng = np.random.default_rng(0)
    J, r = rng.standard_normal((300, 9)).astype(np.float32), rng.standard_normal(300).astype(np.float32)
    diagonal, gradient = rng.uniform(1, 2, 9), rng.standard_normal(9)
    A = J.astype(float).T @ J
    A += np.diag(diagonal + 0.1 * A.diagonal())
    found = live.jacobians.solve_step(J, r, diagonal, gradient, 0.1)
    np.testing.assert_allclose(found, np.linalg.solve(A, J.T.astype(float) @ r + gradient), rtol=1e-4)


def test_the_embedding_is_learned_from_drawings(model, tmp_path):
    path = tmp_path / "mine.npz"
    found = embedding.embed(model, people=36)
    places = [(model.v_template[model.faces[d.faces]] * d.bary[..., None]).sum(1) for d in (found, model.dense)]
    distance = (places[0] - places[1]).norm(dim=1)
    assert distance.median() < 0.002 and distance.quantile(0.9) < 0.006
    assert 0.0005 < found.sigma.median() < 0.004
    write_dense(path, found)
    again = read_dense(path, len(model.faces))
    assert torch.equal(again.faces, found.faces) and torch.equal(again.bias, found.bias)
    assert torch.equal(again.activations.weights, found.activations.weights)
    assert found.activations.sigma[0] < 0.08 and (found.activations.sigma[3:5] < 0.35).all()  # jaw, eyelids


def test_a_known_person_needs_less(model):
    """Two frames from the front hardly tell a shape; what is known of it beforehand stays."""
    truth, seen = dense_clip(model, n=40, noise=0.02)
    few = observations.some(seen, np.array([0, 1]), 1)
    errors = []
    for known in (None, Identity(truth.shape.astype(float), np.full(model.n_shape, 0.1))):
        found, _ = fit(model, few, Options(focal=FOCAL, identity=known))
        errors.append(face_error(model, truth.vertices(model)[:2], found.vertices(model)))
    assert errors[1] < 0.6 * errors[0]


def test_blendshapes_say_what_is_drawn(model):
    """A closed eye and an open mouth, from the points of the head itself; nothing where a point is missing."""
    rig = points.Rig(model)
    q = torch.zeros(1, rig.columns.size, dtype=torch.float64)
    q[0, 5] = np.log(0.7)
    g, centre = torch.zeros(model.n_shape + 1, dtype=torch.float64), torch.tensor([SIZE / 2, SIZE / 2])
    g[-1] = np.log(FOCAL)
    parts = rig.columns.split(q)
    answers = []
    for jaw, lid in ((0.0, 0.0), (0.3, 0.0), (0.0, 1.0)):
        parts["jaw"][0, 0], parts["eyelids"][:] = jaw, lid
        seen = rig.project(g, q, rig.dense, centre, torch.arange(len(rig.dense.weights))[None])[0].numpy()
        face = np.concatenate([seen[:468], seen[-2:].repeat(5, 0)])
        answers.append(rig.columns.split(torch.from_numpy(beliefs.told(rig, face)[0])))
    calm, open_, closed = answers
    assert open_["jaw"][0] > calm["jaw"][0] + 0.1 and (closed["eyelids"] > calm["eyelids"] + 0.2).all()
    face[470] = np.nan
    assert not beliefs.told(rig, face)[1].any()
    prior = np.full(rig.columns.size, 3.0)
    assert all(np.array_equal(a, b) for a, b in zip(beliefs.joined(prior, beliefs.told(rig, face)), (0 * prior, prior)))


def test_the_gradient_of_what_is_believed_is_that_of_the_cost(model):
    _, seen = dense_clip(model, n=3)
    seen.dense[:, 468:] = seen.irises.repeat(5, 1)  # blendshapes need the irises
    problem = Problem(points.Rig(model), seen, Options(focal=FOCAL))
    assert (problem.prior_mean != 0).any()
    g, q = problem.start()
    problem.weight.zero_()  # the points say nothing
    q = q + 0.01 * torch.from_numpy(np.random.default_rng(0).standard_normal(q.shape))
    rows = problem.choose(g, q)
    gradient = problem.normal_equations(g, q, rows, shared=False)[3]
    step = 1e-6 * torch.from_numpy(np.random.default_rng(1).standard_normal(q.shape))
    change = (problem.cost(g, q + step, rows) - problem.cost(g, q - step, rows)) / 2
    assert change == pytest.approx(2 * float((gradient * step).sum()), rel=1e-4)


def test_an_embedding_of_another_head_is_refused(model, tmp_path):
    path = tmp_path / "x_dense.npz"
    write_dense(path, model.dense)
    with pytest.raises(InputError, match="does not fit the head model"):
        read_dense(path, 100)
    activations = replace(model.dense.activations, sigma=model.dense.activations.sigma[1:])
    write_dense(path, replace(model.dense, activations=activations))
    with pytest.raises(InputError, match="does not fit the head model"):
        read_dense(path, len(model.faces))
    files.write_npz(path, lmk_face_idx=np.zeros(3, int))
    with pytest.raises(InputError, match="no embedding of dense landmarks"):
        read_dense(path, 100)
    with pytest.raises(InputError, match="the open head has its points already"):
        head_check.check(embed=unseen)
