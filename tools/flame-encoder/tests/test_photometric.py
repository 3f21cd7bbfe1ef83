"""The photometric stage on drawn clips whose truth is known."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import roma
import torch
from flame_encoder.encoder import trained
from flame_encoder.tracker import gaze, initial, observations, photometric, points
from flame_encoder.tracker.clip import fit
from flame_encoder.tracker.problem import Options, Problem
from recon4d import head, synthetic
from recon4d.color import linear_from_srgb
from recon4d.files import InputError
from recon4d.formats.track import Track
from recon4d.head import HeadModel

SIZE, FRAMES = 200, 10


@dataclass(frozen=True)
class Clip:
    model: HeadModel
    truth: Track
    vertices: torch.Tensor
    frames: list[Path]
    landmarks: np.ndarray


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A head that turns by 20 degrees and opens its mouth before a wall; exact landmarks."""
    model, n = head.load(), FRAMES
    rng = np.random.default_rng(3)
    time = torch.linspace(0, torch.pi, n)
    turn = torch.stack([0.08 * torch.sin(2 * time), 0.35 * torch.cos(time), 0.05 * torch.sin(time)], 1)
    expression = np.zeros((n, model.n_expression), np.float32)
    expression[:, [3, 20]] = 0.5 * torch.sin(time).numpy()[:, None]
    growth = points.Rig(model).growth.numpy()
    shape = (0.7 * rng.standard_normal(model.n_shape)).astype(np.float32)
    shape -= (shape @ growth) * growth / (growth @ growth)  # as large as the mean head
    zero = torch.zeros(n)
    looking = points.eye_rotation(torch.stack([0.3 * torch.cos(2 * time), 0.15 * torch.cos(time)], 1))
    jaw = roma.rotvec_to_rotmat(torch.stack([0.15 * torch.sin(time), zero, zero], 1))
    truth = Track(
        head_model=model.name,
        image_size=np.array([SIZE, SIZE]),
        fps=25.0,
        K=np.array([[2 * SIZE, 0, SIZE / 2], [0, 2 * SIZE, SIZE / 2], [0, 0, 1]], np.float32),
        names=np.array([f"{i:05d}.png" for i in range(n)]),
        valid=np.ones(n, bool),
        shape=shape,
        expression=expression,
        R=(points.FACING @ roma.rotvec_to_rotmat(turn)).numpy(),
        t=np.tile(np.array([[0, 0, 0.75]], np.float32), (n, 1)),
        neck=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),
        jaw=jaw.numpy(),
        eyes=torch.stack([looking, looking], 1).numpy(),
        eyelids=np.zeros((n, 2), np.float32),
    )
    vertices = truth.vertices(model)
    albedo, light = linear_from_srgb(synthetic.random_albedo(model, 1)), synthetic.random_light(1)
    # random_light is for a world with y up; the camera looks along -z of it
    to_world = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    wall, folder, frames = synthetic.wall(SIZE, 1), tmp_path_factory.mktemp("frames"), []
    for i in range(n):
        world = vertices[i] * to_world.diagonal()[:3]
        image = synthetic.render_head(model, world, to_world, torch.from_numpy(truth.K), SIZE, albedo, light)
        alpha = image[..., 3:] / 255.0
        frames.append(folder / truth.names[i])
        cv2.imwrite(str(frames[-1]), (255 * wall * (1 - alpha) + image[..., :3] * alpha).astype(np.uint8)[..., ::-1])
    landmarks = model.landmarks(vertices) @ torch.from_numpy(truth.K).T
    return Clip(model, truth, vertices, frames, (landmarks[..., :2] / landmarks[..., 2:]).numpy())


def eye_distance(clip):
    return float(np.linalg.norm(clip.landmarks[:, 36] - clip.landmarks[:, 45], axis=1).mean())


def test_the_head_is_drawn_as_it_looks(clip):
    surface = photometric.Surface(clip.model)
    windows = photometric.cut(clip.frames, clip.truth, clip.vertices)
    assert windows.scale == 1 and windows.images.shape[1] < SIZE
    looks = photometric.looks(surface, windows, clip.truth, clip.vertices)
    for i in (0, 5):
        drawing, rast = photometric.draw(surface, looks, windows, clip.truth, clip.vertices, i)
        mask = rast.mask[0].numpy()
        error = np.abs(drawing - windows.images[i] / 255.0).mean(-1)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5)))
        assert mask.mean() > 0.3 and error[inner > 0].mean() < 0.02
        assert error[~mask].max() < 1e-6  # the rest is the frame itself


def test_heads_without_regions_and_texture_coordinates(clip):
    """As FLAME comes: unwrapped, and its skin told from the skinning weights."""
    bare = photometric.Surface(replace(clip.model, regions=None, vt=None, ft=None))
    assert bare.mask.float().mean() > 0.2
    at = bare.at(clip.model.v_template, bare.faces, bare.bary)
    eyes = clip.model.regions["eyes"] | clip.model.regions["neck"]
    wrong = eyes[clip.model.faces[bare.faces]].all(1)
    assert len(at) == photometric.CANDIDATES and wrong.float().mean() < 0.05
    assert (at[:, 2] > 0.03).sum() > 50  # some are on the face


def test_large_heads_are_scaled_to_the_window(clip, tmp_path):
    image = cv2.resize(cv2.imread(str(clip.frames[0])), (4 * SIZE, 4 * SIZE), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "large.png"), image)
    large = replace(clip.truth.take([0]), K=np.diag([4.0, 4, 1]).astype(np.float32) @ clip.truth.K)
    windows = photometric.cut([tmp_path / "large.png"], large, clip.vertices[:1])
    small = photometric.cut(clip.frames[:1], clip.truth.take([0]), clip.vertices[:1])
    assert windows.images.shape[1] <= photometric.WINDOW < 4 * small.images.shape[1]
    # the head's middle is at the same place of the window, and has the same colour
    for cut, track in ((windows, large), (small, clip.truth)):
        middle = cut.K(track.K, 0) @ clip.vertices[0].mean(0)
        assert ((middle[:2] / middle[2] - cut.images.shape[1] / 2).abs() < 0.1 * cut.images.shape[1]).all()
    resized = cv2.resize(small.images[0], windows.images.shape[1:3]).astype(float)
    assert np.abs(resized - windows.images[0]).mean() < 6


def test_matches_are_where_the_surface_is(clip):
    surface = photometric.Surface(clip.model)
    windows = photometric.cut(clip.frames, clip.truth, clip.vertices)
    looks = photometric.looks(surface, windows, clip.truth, clip.vertices)
    moved = clip.vertices.clone()
    moved[4] += torch.tensor([0.004, -0.003, 0.0])  # about two pixels
    found = photometric.match(surface, looks, windows, clip.truth, moved, eye_distance(clip), 2)
    at = surface.at(clip.vertices[4], surface.faces, surface.bary)[found.rows[4]] @ torch.from_numpy(clip.truth.K).T
    good = found.whiten[4].abs().sum((1, 2)) > 0
    error = (found.pixels[4] - at[:, :2] / at[:, 2:])[good].norm(dim=1)
    before = 400 * 0.005 / 0.75
    assert good.sum() > 60 and found.found[4] > 0.5
    assert error.median() < 0.15 * before and before > 2
    # Whitened, errors are about standard deviations.
    whitened = (found.whiten[4][good] @ (found.pixels[4] - at[:, :2] / at[:, 2:])[good][..., None]).norm(dim=1)
    assert 0.05 < whitened.median() < 2.5


def test_nothing_is_matched_beyond_the_frame(clip, tmp_path):
    """A frame that ends in the middle of the face, whose window repeats its last column."""
    half = cv2.imread(str(clip.frames[0]))[:, : SIZE // 2]
    cv2.imwrite(str(tmp_path / "half.png"), half)
    cut = replace(clip.truth.take([0]), image_size=np.array([SIZE // 2, SIZE]))
    surface = photometric.Surface(clip.model)
    windows = photometric.cut([tmp_path / "half.png"], cut, clip.vertices[:1])
    looks = photometric.looks(surface, windows, cut, clip.vertices[:1])
    found = photometric.match(surface, looks, windows, cut, clip.vertices[:1], eye_distance(clip), 1)
    good = found.whiten[0].abs().sum((1, 2)) > 0
    assert good.sum() > 30 and found.pixels[0][good][:, 0].max() < SIZE // 2 + 2


def test_the_images_steady_a_noisy_track(clip):
    rng = np.random.default_rng(0)
    noisy = clip.landmarks + 0.03 * eye_distance(clip) * rng.normal(size=clip.landmarks.shape)
    n = len(clip.frames)
    seen = observations.Observations(
        clip.truth.names, noisy.astype(np.float32), np.ones(n, bool), np.full((n, 2, 2), np.nan), (SIZE, SIZE), 25.0
    )
    options = Options(focal=2.0 * SIZE, photometric_levels=(2, 2, 1, 1))  # fewer rounds, for speed
    keep = clip.model.regions["face"]

    def error(track):
        """Spread over frames of the rotation between the tracked and the true face, degrees."""
        a, b = track.vertices(clip.model)[:, keep].double(), clip.vertices[:, keep].double()
        turn = roma.rotmat_to_rotvec(roma.rigid_points_registration(a, b)[0])
        return float(torch.rad2deg((turn - turn.mean(0)).norm(dim=1)).mean())

    rough, _ = fit(clip.model, seen, options)
    steps = []
    fine, figures = fit(clip.model, seen, options, clip.frames, report=lambda step, text: steps.append(step))
    assert error(fine) < 0.5 * error(rough)
    assert figures["photometric_error"][-1] < figures["photometric_error"][0] and figures["found"][-1] > 0.5
    assert steps == sorted(set(steps)) and steps[-1] <= options.steps(photometric=True, dense=False)


def test_landmarks_that_the_encoder_contradicts_are_replaced(clip):
    """One face's landmarks beside the face, one's mirrored, one's as wrong as landmarks are."""
    wrong = clip.landmarks.copy()
    wrong[2] += [0.3 * eye_distance(clip), 0]
    wrong[7] = wrong[7].mean(0) + (wrong[7] - wrong[7].mean(0)) * [-1, 1]
    wrong[5] += 0.03 * eye_distance(clip) * np.random.default_rng(0).normal(size=wrong[5].shape)
    valid = np.ones(FRAMES, bool)
    valid[4], wrong[4] = False, np.nan
    irises = clip.landmarks[:, [42, 36]]
    seen = observations.Observations(clip.truth.names, wrong.astype(np.float32), valid, irises, (SIZE, SIZE), 25.0)
    found, count = initial.confirmed(seen, trained.load(), clip.frames, 2.0 * SIZE)
    replaced = np.flatnonzero((found.landmarks != seen.landmarks).any((1, 2)) & valid)
    assert count == 2 and replaced.tolist() == [2, 7] and np.isnan(found.irises[replaced]).all()
    errors = np.linalg.norm(found.landmarks - clip.landmarks, axis=2)[replaced].mean(1) / eye_distance(clip)
    assert errors.max() < 0.1
    # An image with two faces, one of them wrong: a frame of a stream.
    both = observations.FrameFaces(clip.frames[2].name, wrong[[2, 2]].astype(np.float32), irises[[2, 2]], (SIZE, SIZE))
    both.faces[1] = clip.landmarks[2]
    again = initial.confirmed_frame(both, trained.load(), clip.frames[2].parent, None)
    assert (again.faces[1] == both.faces[1]).all()
    assert np.linalg.norm(again.faces[0] - clip.landmarks[2], axis=1).mean() < 0.1 * eye_distance(clip)
    assert np.isnan(found.landmarks[4]).all() and (seen.landmarks[2] == wrong[2].astype(np.float32)).all()


def test_gaze_is_where_the_irises_are(clip):
    windows = photometric.cut(clip.frames, clip.truth, clip.vertices)
    found, information = gaze.measure(clip.model, windows, clip.truth, clip.vertices, 0.3)
    towards = torch.from_numpy(clip.truth.eyes[:, 0, :, 2])
    error = torch.rad2deg(torch.arccos((points.eye_rotation(found)[:, :, 2] * towards).sum(1)))
    from_rest = torch.rad2deg(torch.arccos(towards[:, 2]))
    assert error.mean() < 3.5 and error.max() < 7 and from_rest.mean() > 10
    assert (torch.linalg.inv(information).diagonal(dim1=1, dim2=2).sqrt() < np.radians(12)).all()
    # Closed eyes say nothing: what is left is the prior.
    closed = replace(clip.truth, eyelids=np.ones((FRAMES, 2), np.float32))
    found, information = gaze.measure(clip.model, windows, closed, closed.vertices(clip.model), 0.3)
    assert (found == 0).all() and torch.allclose(information, torch.eye(2) / 0.3**2)


def test_an_image_that_vanishes_is_named(clip, tmp_path):
    with pytest.raises(InputError, match=r"gone\.png does not exist"):
        photometric.cut([tmp_path / "gone.png"], clip.truth.take([0]), clip.vertices[:1])


def test_matches_enter_thenormal_equations(clip):
    n = 3
    seen = observations.Observations(
        clip.truth.names[:n], clip.landmarks[:n], np.ones(n, bool), np.full((n, 2, 2), np.nan), (SIZE, SIZE), 25.0
    )
    problem = Problem(points.Rig(clip.model, 4, 5), seen, Options())
    surface = photometric.Surface(clip.model)
    problem.surface, problem.shares = problem.rig.points(surface.faces, surface.bary), (0.3, 0.5)
    g, q = problem.start()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(surface.faces), (n, 20), generator=generator)
    pixels = problem.rig.project(g, q, problem.surface, problem.centre, chosen)
    pixels = pixels + torch.randn(pixels.shape, generator=generator)
    whiten = torch.randn(n, 20, 2, 2, generator=generator)
    problem.matches = photometric.Matches(chosen, pixels, whiten, 0.0, np.ones(n))
    rows = problem.choose(g, q)
    *_, a, c = problem.normal_equations(g, q, rows)

    def slope(which, index, step=2e-4):
        values = []
        for sign in (1, -1):
            moved = {"g": g.clone(), "q": q.clone()}
            moved[which][index] += sign * step
            values.append(problem.cost(moved["g"], moved["q"], rows))
        return (values[0] - values[1]) / (2 * step)

    for index in ((0, 1), (1, 4), (2, 7), (1, 12)):
        assert 2 * a[index].item() == pytest.approx(slope("q", index), rel=0.03, abs=3)
    for index in (0, 2, 4):
        assert 2 * c[index].item() == pytest.approx(slope("g", index), rel=0.03, abs=3)
