"""Pictures and losses: zero at the truth, the same as PyTorch3D's, right gradients."""

from dataclasses import fields, replace

import pytest
import torch
from flame_encoder.encoder import losses, rendering, samples, synthetic, vector
from flame_encoder.encoder.config import LossWeights
from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.vector import Layout
from recon4d import InputError, head
from recon4d.head import HeadModel

VIEW = CropView(fov=14.0, size=64)


@pytest.fixture(scope="module")
def model() -> HeadModel:
    return head.load()


@pytest.fixture(scope="module")
def judge(model):
    return losses.judge(model, Layout(), VIEW)


@pytest.fixture(scope="module")
def batch(model):
    scene = synthetic.scene(model, Layout(), VIEW)
    made = [synthetic.sample(scene, 3, i) for i in range(3)]
    return samples.collate(
        [samples.Item(s.image, s.landmarks, s.vector, True, s.points, i) for i, s in enumerate(made)]
    )


ALL = LossWeights(**{name: 1.0 for name in LossWeights.model_fields if name != "perceptual"})


def test_thinned_head_is_the_same_head(model, batch):
    thin = rendering.thinned(model)
    assert len(thin.v_template) < 0.3 * len(model.v_template)
    parts = Layout().split(batch.vectors)
    arguments = vector.head_arguments(model, parts)
    torch.testing.assert_close(
        thin.landmarks(thin(**arguments)), model.landmarks(model(**arguments)), atol=1e-6, rtol=1e-4
    )


def test_terms_at_the_truth(judge, batch):
    found = losses.terms(judge, batch.vectors, batch, ALL)
    assert set(found) == set(LossWeights.model_fields) - {"perceptual"}
    assert found["params"] == 0 and found["vertices"] < 2e-3 and found["landmark"] < 1e-4
    parts = Layout().split(batch.vectors)
    torch.testing.assert_close(found["reg_shape"], parts["shape"].square().mean())
    turned = parts["global_rot"] - torch.tensor([1.0, 0, 0, 0, 1, 0])
    torch.testing.assert_close(found["reg_global_pose"], turned.square().mean())
    # The picture of the truth itself leaves nothing of the pixel loss; another person's does.
    own, _ = rendering.render(judge.head, parts, VIEW)
    same = losses.terms(judge, batch.vectors, replace(batch, images=own), ALL)
    assert same["pixel"] < 1e-6 < 1e-2 < found["pixel"]
    background = torch.where(own > 0, own, 1.0)  # only the face counts
    there = replace(batch, images=background)
    assert losses.terms(judge, batch.vectors, there, ALL)["pixel"] < 1e-6


def test_landmark_error_is_in_shares_of_the_image(judge, batch):
    moved = replace(batch, landmarks=batch.landmarks + 6.4)
    found = losses.terms(judge, batch.vectors, moved, LossWeights(landmark=1.0))
    assert found["landmark"].item() == pytest.approx(0.01, rel=0.03)  # (6.4 / 64)^2


def test_unknown_vectors_do_not_count(judge, batch):
    vectors = batch.vectors + 0.1
    half = replace(batch, known=torch.tensor([True, False, False]))
    weights = LossWeights(params=1.0, vertices=1.0)
    every, some = (losses.terms(judge, vectors, b, weights) for b in (batch, half))
    nobody = replace(half, vectors=batch.vectors * half.known[:, None])  # what a folder of photographs gives
    assert losses.terms(judge, vectors, nobody, weights) == some
    first = samples.Batch(*(getattr(batch, field.name)[:1] for field in fields(batch)))
    alone = losses.terms(judge, vectors[:1], first, weights)
    for name in weights.model_dump(exclude_defaults=True):
        torch.testing.assert_close(some[name] * 3, alone[name])
        assert every[name] > some[name]


def test_gradients_by_finite_differences(model, batch):
    double = losses.judge(model.to(torch.float64), Layout(), VIEW)
    truth = samples.Batch(*(getattr(batch, field.name)[:1].double() for field in fields(batch)))
    weights = LossWeights(landmark=30.0, params=1.0, vertices=1.0, reg_jaw_pose=1.0)
    start = truth.vectors + 0.05 * torch.randn(1, 227, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(vectors):
        return losses.total(losses.terms(double, vectors, truth, weights), weights)

    vectors = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(vectors), vectors)
    for i in (0, 57, 101, 145, 150, 154, 157, 160, 167, 170):
        step = torch.zeros_like(start)
        step[0, i] = 1e-5
        difference = (value(start + step) - value(start - step)) / 2e-5
        assert gradient[0, i].item() == pytest.approx(difference.item(), rel=1e-4, abs=1e-8)


def test_total_says_what_is_wrong():
    with pytest.raises(InputError, match="all loss weights of the stage are zero"):
        losses.total({}, LossWeights())
    with pytest.raises(InputError, match="not finite"):
        losses.total({"pixel": torch.tensor(float("nan"))}, LossWeights(pixel=1.0))


def test_perceptual_with_a_network(judge, batch):
    """LPIPS: zero for the same pictures, and with a gradient for others."""
    vectors = batch.vectors.clone().requires_grad_()
    found = losses.terms(judge, vectors, batch, LossWeights(perceptual=1.0))["perceptual"]
    found.backward()
    assert found > 0 and vectors.grad.abs().sum() > 0
    own, _ = rendering.render(judge.head, Layout().split(batch.vectors), VIEW)
    same = replace(batch, images=own)
    assert losses.terms(judge, batch.vectors, same, LossWeights(perceptual=1.0))["perceptual"] < 1e-6


def test_pytorch3d_draws_the_same_head(judge, batch):
    parts = Layout().split(batch.vectors[:2].clone().requires_grad_())
    ours, seen = rendering.render(judge.head, parts, VIEW)
    theirs, also_seen = rendering.render_pytorch3d(judge.head, parts, VIEW)
    mine, other = seen >= 0, also_seen >= 0
    assert (mine & other).sum() / (mine | other).sum() > 0.97
    # PyTorch3D's soft edges reach over triangles smaller than a pixel, so the neighbour may be the nearest.
    centres = judge.head.v_template[judge.head.faces].mean(1)
    apart = (centres[seen[mine & other].long()] - centres[also_seen[mine & other]]).norm(dim=-1)
    assert (apart < 0.02).float().mean() > 0.95
    # Lamps differ; where the face is lit from the front the colours are close.
    both = (mine & other)[:, None]
    assert ((ours - theirs).abs() * both).sum() / (3 * both.sum()) < 0.25
    theirs.sum().backward()
