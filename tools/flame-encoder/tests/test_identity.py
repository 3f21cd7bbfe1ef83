"""Who is who: the statistics against simulated answers whose truth is known, and compare."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from flame_encoder.cli import main
from flame_encoder.encoder import encodings, identity, losses, trained
from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.encodings import Encoding
from flame_encoder.encoder.network import EidolonEncoder
from flame_encoder.encoder.vector import Layout
from flame_encoder.people import comparing, photographs
from flame_encoder.people.comparing import Someone
from recon4d import InputError
from scipy.stats import multivariate_normal

SMALL = "mobilenet_v3_small"
LAYOUT, VIEW = Layout(shape=12, expression=3, detail=30), CropView(fov=14.0, size=64)


def simulated(people, seed=0, noise=0.4):
    """Truth (P, 15) and answers (P, 2, 15): shrunk truth with noise; the last number differs in nobody."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((people, 15)) * np.r_[np.linspace(1, 0.3, 14), 0]
    answers = 0.5 * truth[:, None] + noise * rng.standard_normal((people, 2, 15)) * 0.5 + 0.1
    return truth, answers


@pytest.fixture(scope="module")
def measured():
    truth, answers = simulated(4000)
    return identity.measure(truth, answers, np.ones((2, LAYOUT.size)))


def test_more_pictures_are_surer(measured):
    """The regression is the best linear guess: better than the answers, better with more of them, and it knows it."""
    assert measured.columns.tolist() == list(range(14))
    rng = np.random.default_rng(1)
    truth, _ = simulated(300, 2)
    errors = {}
    for n in (1, 5):
        answers = 0.5 * truth[:, None] + 0.2 * rng.standard_normal((300, n, 15)) + 0.1
        people = [identity.combine(measured, one) for one in answers]
        errors[n] = np.array([one.identity for one in people]) - truth
        said = np.diag(people[0].covariance)[:14]
        np.testing.assert_allclose((errors[n] ** 2).mean(0)[:14], said, rtol=0.4)
        assert (errors[n] ** 2).mean() < ((answers.mean(1) - truth) ** 2).mean()
    assert (errors[5] ** 2).mean() < 0.6 * (errors[1] ** 2).mean()
    assert identity.combine(measured, truth[:1]).identity.shape == (15,)


def test_likeness_is_a_ratio_of_densities(measured):
    _, answers = simulated(3, 5)
    score = identity.likeness(measured, answers[0], answers[1, :1])
    B, W = measured.between, measured.within
    both = np.concatenate([answers[0].mean(0)[:14], answers[1, 0, :14]]) - np.tile(measured.mean, 2)
    one = np.block([[B + W / 2, B], [B, B + W]])
    two = np.block([[B + W / 2, 0 * B], [0 * B, B + W]])
    expected = multivariate_normal(np.zeros(28), one).logpdf(both) - multivariate_normal(np.zeros(28), two).logpdf(both)
    assert score == pytest.approx(expected, rel=1e-6)
    _, answers = simulated(100, 6)
    same = [identity.likeness(measured, a[:1], a[1:]) for a in answers]
    other = [identity.likeness(measured, a[:1], b[1:]) for a, b in zip(answers, np.roll(answers, 1, 0))]
    assert np.mean(np.array(same) > 0) > 0.85 and np.mean(np.array(other) < 0) > 0.85


def test_told_beside_the_network(measured):
    """Whom the second stage knows is compared with whom it does not by what the network tells of the latter."""
    truth, answers = simulated(60, 9)
    prior = identity.prior_of(measured, 15)
    sure = np.diag(np.full(15, 0.01))
    someone = [Someone("", a[:1], (t, identity.told(prior, t, sure))) for t, a in zip(truth, answers)]
    other = [Someone("", a[1:]) for a in answers]
    same = [comparing.alike(measured, a, b) for a, b in zip(someone, other)]
    turned = [comparing.alike(measured, b, a) for a, b in zip(someone, other)]
    np.testing.assert_allclose(same, turned, atol=1e-9)
    assert np.median(same) > 1 and np.median([comparing.alike(measured, a, b) for a, b in zip(someone, other[1:])]) < -1
    both = [comparing.alike(measured, a, a) for a in someone]
    assert np.median(both) > np.median(same)


def test_identity_loss():
    """Low where pictures of one person agree, high where they agree with others; nothing without pairs."""
    torch.manual_seed(0)
    people = torch.randn(4, LAYOUT.size)
    pairs = people.repeat_interleave(2, 0)
    right = losses.identity(LAYOUT, pairs + 0.05 * torch.randn_like(pairs), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    wrong = losses.identity(LAYOUT, pairs, torch.tensor([0, 1, 1, 2, 2, 3, 3, 0]))
    assert right < 0.1 and wrong > 3
    assert losses.identity(LAYOUT, pairs, torch.full((8,), -1)) == 0
    assert losses.identity(LAYOUT, pairs, torch.arange(8)) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory, measured):
    """An encoder that was measured, and two files of answers: three people, and one of them in three pictures."""
    folder = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    network = EidolonEncoder(SMALL, layout=LAYOUT)
    state = trained.state_of(network, LAYOUT, VIEW, "open-head", SMALL) | {"measured": measured.state()}
    trained.save(folder / "e.pth", state)
    trained.save(folder / "half.pth", trained.halved(state))
    encoder = trained.load(folder / "e.pth")
    rng = np.random.default_rng(7)
    truth, _ = simulated(3, 8)

    def write(name, who, person=False):
        answers = np.zeros((len(who), LAYOUT.size), np.float32)
        noisy = 0.5 * truth[who] + 0.1 * rng.standard_normal((len(who), 15)) + 0.1
        answers[:, :12], answers[:, -3:] = noisy[:, :12], noisy[:, 12:]
        n = len(who)
        made = Encoding(
            "open-head", np.array([f"{k}{i}.png" for i, k in enumerate(who)]), np.full((n, 2), 64), answers,
            np.tile(np.float32([0, 0, 64]), (n, 1)), LAYOUT, VIEW, np.ones(n, bool), np.zeros(n, bool), answers,
            np.full(n, 200.0), encoder.digest,
        )  # fmt: skip
        if person:
            made = photographs.of_one_person(encoder, made)
        made.write(folder / name)

    write("crowd.npz", [0, 1, 2])
    write("one.npz", [1, 1, 1], person=True)
    return folder


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.stderr


def test_compare(folder):
    for encoder in ("e.pth", "half.pth"):  # halving the weights changes neither their name nor what they say
        found = run("compare", folder / "one.npz", folder / "crowd.npz", "--encoder", folder / encoder)
        assert found["a"] == "one.npz" and found["compared"] == 3
        assert found["people"][0]["name"] == "11.png"
        first, second, _ = found["people"]
        assert first["same"] is True and first["mm"] < second["mm"] and second["likeness"] < first["likeness"]
    found = run("compare", folder / "crowd.npz", folder / "one.npz", "--row", 1, "--encoder", folder / "e.pth")
    assert found["compared"] == 1 and found["people"][0]["same"] is True


def test_one_identity_for_many_pictures(folder):
    encoder = trained.load(folder / "e.pth")
    found = encodings.read(folder / "one.npz")
    assert found.person and np.ptp(found.vectors[:, :12], axis=0).max() == 0 and np.ptp(found.raw[:, :12]) > 0
    who = photographs.person_of(encoder, found)
    np.testing.assert_allclose(found.vectors[0, :12], who.identity[:12], rtol=1e-5)
    np.testing.assert_allclose(found.identity_sigma[1], np.sqrt(np.diag(who.covariance)), rtol=1e-5, atol=1e-6)


def test_compare_refuses(folder, tmp_path):
    e, one, crowd = folder / "e.pth", folder / "one.npz", folder / "crowd.npz"
    assert "shows 3 people; say which with --row" in run("compare", crowd, one, "--encoder", e, code=2)
    assert "--row 3 is not in" in run("compare", crowd, one, "--row", 3, "--encoder", e, code=2)
    assert "has the layout [12, 3, 6, 3, 6, 3, 3, 30], the encoder [100, 50," in run("compare", one, one, code=2)
    network = EidolonEncoder(SMALL, layout=LAYOUT)
    trained.save(tmp_path / "other.pth", trained.state_of(network, LAYOUT, VIEW, "open-head", SMALL))
    error = run("compare", one, crowd, "--encoder", tmp_path / "other.pth", code=2)
    assert "was made by another encoder" in error
    (tmp_path / "empty").mkdir()
    assert "has no images" in run("compare", one, tmp_path / "empty", "--encoder", e, code=2)
    assert "not a readable image" in run("compare", tmp_path / "other.pth", one, "--encoder", e, code=2)
    with np.load(one) as arrays:
        kept = dict(arrays)
    for change, message in (
        ({"raw": kept["raw"][:, :5]}, "its raw do not fit"),
        ({"focals": -kept["focals"]}, "its focals do not fit"),
        ({"identity_sigma": kept["identity_sigma"] * np.nan}, "its identity_sigma do not fit"),
        ({"identity_told": np.zeros((3, 4, 15), np.float16)}, "its identity_told do not fit"),
        ({"identity_told": np.zeros((3, 4, 16), int)}, "its identity_told do not fit"),
        ({"found": np.zeros(3, bool)}, "no face is found in"),
    ):
        np.savez(tmp_path / "bad.npz", **(kept | change))
        assert message in run("compare", tmp_path / "bad.npz", crowd, "--encoder", e, code=2)


def test_files_of_measurements(folder, measured):
    state = measured.state()
    again = identity.of_state(state, LAYOUT.size, 15, "x")
    np.testing.assert_allclose(again.within, measured.within, atol=1e-9)
    for change in ({"sigma": state["sigma"][:3]}, {"between": None}, {"columns": state["columns"] + 9}):
        with pytest.raises(InputError, match=r"^x: "):
            identity.of_state(state | change, LAYOUT.size, 15, "x")
    with pytest.raises(InputError, match="train it again"):
        identity.of_state(7, LAYOUT.size, 15, "x")


def test_nearest_by_distance_where_nobody_measured(folder, tmp_path):
    """Without statistics there are millimetres and no verdict."""
    state = trained.read(folder / "e.pth")
    del state["measured"]
    trained.save(tmp_path / "bare.pth", state)
    found = run("compare", folder / "one.npz", folder / "crowd.npz", "--encoder", tmp_path / "bare.pth")
    assert found["people"][0]["name"] == "11.png" and found["people"][0]["same"] is None
    assert comparing.SURE > 0
