"""One head model's parameters on another: a drawn head of FLAME's format, whose truth is known, and the open head."""

from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from drawn_heads import write_flame_like
from recon4d import InputError
from recon4d.formats import arkit
from recon4d.formats.track import Track
from recon4d.head import load
from recon4d.head.correspondence import match
from recon4d.retargeting import retarget

N = 6
BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """The open head, another one, and how its expressions are mixed."""
    path = tmp_path_factory.mktemp("heads") / "other.npz"
    mixture = write_flame_like(path)
    return load(), load(path), mixture


def turns(degrees):
    return roma.euler_to_rotmat("YXZ", torch.as_tensor(degrees, dtype=torch.float32), degrees=True).numpy()


@pytest.fixture(scope="module")
def track(heads):
    """A track of the open head: some expressions, lids from open to closed, a jaw that opens and turns."""
    head, rng = heads[0], np.random.default_rng(1)
    names = head.expression_names
    expression = np.zeros((N, head.n_expression), np.float32)
    for name in ("mouthSmileLeft", "mouthSmileRight", "browInnerUp", "mouthPucker", "cheekPuff"):
        expression[:, names.index(name)] = rng.uniform(0, 0.8, N)
    return Track(
        head_model=head.name,
        image_size=np.array([64, 64]),
        fps=25.0,
        K=np.array([[90, 0, 32], [0, 90, 32], [0, 0, 1]], np.float32),
        names=np.array([f"{i}.png" for i in range(N)]),
        valid=np.ones(N, bool),
        shape=rng.normal(size=head.n_shape).astype(np.float32),
        expression=expression,
        R=np.diag([1, -1, -1]).astype(np.float32) @ turns(rng.normal(size=(N, 3)) * 15),
        t=(np.array([0, 0, 0.8]) + 0.05 * rng.normal(size=(N, 3))).astype(np.float32),
        neck=turns(rng.normal(size=(N, 3)) * 8),
        jaw=turns(np.stack([rng.normal(size=N) * 2, rng.uniform(0, 14, N), np.zeros(N)], 1)),
        eyes=turns(rng.normal(size=(N, 2, 3)) * 8),
        eyelids=np.repeat(np.linspace(0, 1, N, dtype=np.float32)[:, None], 2, 1),
    )


def seen(head, track):
    """(N, 51, 3) landmarks, without the jaw line, before the camera, millimetres."""
    return 1e3 * head.landmarks(track.vertices(head))[:, 17:]


def test_flame_to_the_open_head_and_what_it_says(heads, track):
    head, other, mixture = heads
    moves = np.concatenate([track.expression, track.eyelids], 1)
    mixed = (np.linalg.pinv(mixture) @ moves.T).T.astype(np.float32)
    shape = np.random.default_rng(2).normal(size=60).astype(np.float32) * 0.7
    flame = replace(track, head_model="other", shape=shape, expression=mixed, eyelids=np.zeros_like(track.eyelids))
    free = [i for i, name in enumerate(head.expression_names) if name not in (*arkit.JAW, *BLINKS)]
    both = match(other, head, count=500)
    assert both.weights.sum() == pytest.approx(1, abs=1e-5)
    made = retarget(flame, other, head, free, both=both)
    assert (made.error < 0.2 * made.moved).all() and made.moved.max() > 3, (made.error, made.moved)
    np.testing.assert_allclose(made.track.eyelids, track.eyelids, atol=0.12)
    for name in ("mouthSmileLeft", "browInnerUp", "mouthPucker"):
        column = head.expression_names.index(name)
        np.testing.assert_allclose(made.track.expression[:, column], track.expression[:, column], atol=0.15)
    assert made.track.expression.min() >= 0 and made.track.expression.max() <= 1
    opened = [roma.rotmat_to_rotvec(torch.from_numpy(one.jaw)).norm(dim=1).numpy() for one in (made.track, track)]
    np.testing.assert_allclose(*opened, atol=np.radians(1.5))
    # Head, neck and place: the same points of both heads are at the same places before the camera.
    apart = (seen(head, made.track) - seen(other, flame)).norm(dim=2)
    assert apart.mean() < 2.5, apart.mean()


def test_open_head_to_flame(heads, track):
    head, other, _ = heads
    made = retarget(track, head, other, both=match(head, other, count=500))
    assert (made.error < 0.2 * made.moved).all() and made.moved.max() > 3, (made.error, made.moved)
    assert made.track.expression.shape == (N, 60) and not made.track.eyelids.any()
    moved = [seen(*pair) - seen(pair[0], pair[1]).mean(0) for pair in ((other, made.track), (head, track))]
    assert (moved[0] - moved[1]).norm(dim=2).mean() < 1.5
    gaze = [one.R @ one.neck @ one.eyes[:, 0] @ [0, 0, 1] for one in (made.track, track)]
    assert np.degrees(np.arccos((gaze[0] * gaze[1]).sum(1).clip(-1, 1))).max() < 3


def test_what_it_refuses(heads):
    head, other, _ = heads
    with pytest.raises(InputError, match="other has no landmarks"):
        match(replace(other, landmark_faces=None), head)
