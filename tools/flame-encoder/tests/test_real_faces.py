"""What photographs teach: points and blendshapes, their share of each batch, and folders that are broken.

Drawn people stand for photographs here: their truth is known to the test, and not to what it tests.
"""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from flame_encoder.cli import main
from flame_encoder.encoder import crop, feeding, losses, real_faces, samples, synthetic, trained, vector
from flame_encoder.encoder.config import LossWeights, load
from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.vector import Layout
from recon4d import cameras, head
from recon4d.files import InputError
from recon4d.rotations import from_6d

VIEW = CropView(fov=14.0, size=112)
PEOPLE = 4


@pytest.fixture(scope="module")
def model():
    return head.load()


@pytest.fixture(scope="module")
def judge(model):
    return losses.judge(model, Layout(), VIEW)


@pytest.fixture(scope="module")
def drawn(model):
    """Drawn people, and as a batch in which nobody knows their vectors."""
    scene = synthetic.scene(model, Layout(), VIEW)
    made = [synthetic.sample(scene, 3, i) for i in range(PEOPLE)]
    items = [samples.Item(s.image, s.landmarks, s.vector, False, s.points, -1) for s in made]
    return made, samples.collate(items)


def places(model, vectors):
    """MediaPipe's points (B, 478, 2) of heads, through the whole head model and the camera of `crop.pose`."""
    parts = Layout().split(vectors)
    R, t = crop.pose(model, VIEW, from_6d(parts["global_rot"]), parts["transl"])
    vertices = model(**vector.head_arguments(model, parts)) @ R.mT + t[:, None]
    corners = vertices[:, model.faces[model.dense.faces]]
    seen = cameras.project((corners * model.dense.bary[..., None]).sum(2), VIEW.K, torch.eye(4))[0]
    points = torch.zeros(len(vectors), 478, 2)
    points[:, model.dense.indices] = seen
    return points


def test_points_are_where_the_head_has_them(model, drawn):
    """Nothing is off at the truth, and a point that is moved by a tenth of the picture counts a hundredth."""
    unbiased = replace(model.dense, bias=torch.zeros_like(model.dense.bias))
    marked = real_faces.marked(replace(model, dense=unbiased))
    truth = drawn[1].vectors
    points = places(model, truth)
    assert real_faces.points_off(marked, Layout(), VIEW, truth, points).max() < 1e-8
    moved = real_faces.points_off(marked, Layout(), VIEW, truth, points + 11.2)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), atol=1e-4, rtol=0)


def test_the_landmarker_agrees_with_the_truth(judge, drawn):
    """What it finds on drawn faces is within two hundredths of the picture of their heads, nearer than others'."""
    _, batch = drawn
    found = batch.points.isfinite().all(2).all(1)
    assert found.sum() >= 3
    truth, points = batch.vectors[found], batch.points[found]
    off = real_faces.points_off(judge.marked, Layout(), VIEW, truth, points).sqrt()
    others = real_faces.points_off(judge.marked, Layout(), VIEW, truth.roll(1, 0), points).sqrt()
    assert off.max() < 0.02 and (off < 0.5 * others).all()
    said = real_faces.blendshapes_off(judge.marked, Layout(), truth, points)
    assert (said < real_faces.blendshapes_off(judge.marked, Layout(), truth * 0 + 1, points)).all()


def test_the_loss_reaches_pose_and_shape(judge, drawn):
    """Of photographs alone, as a mean of the batch."""
    _, batch = drawn
    start = (batch.vectors * 0.7 + 0.02).requires_grad_()
    found = losses.terms(judge, start, batch, LossWeights(points=1.0, blendshapes=1.0))
    assert set(found) == {"points", "blendshapes"}
    (slope,) = torch.autograd.grad(found["points"], start, retain_graph=True)
    (said,) = torch.autograd.grad(found["blendshapes"], start)
    parts, told = Layout().split(slope), Layout().split(said)
    for name in ("shape", "expression", "global_rot", "jaw", "transl"):
        assert parts[name].abs().max() > 0, name
    assert parts["detail"].abs().max() == 0 == told["shape"].abs().max()
    assert told["expression"].abs().max() > 0 < told["jaw"].abs().max()
    # Whose vector is known is taught by that.
    half = replace(batch, known=torch.arange(PEOPLE) > 0)
    found = losses.terms(judge, start, half, LossWeights(points=1.0))["points"]
    (slope,) = torch.autograd.grad(found, start)
    assert slope[1:].abs().max() == 0 < slope[0].abs().max()
    none = losses.terms(judge, start, replace(batch, known=torch.ones(PEOPLE, dtype=torch.bool)), LossWeights(points=1))
    assert none["points"] == 0


def test_a_head_without_points(model, drawn):
    blind = losses.judge(replace(model, dense=None), Layout(), VIEW)
    with pytest.raises(InputError, match="check-model --embed"):
        losses.terms(blind, drawn[1].vectors, drawn[1], LossWeights(points=1.0))


def test_photographs_have_their_share_of_each_batch():
    config = load("quick", {"train": {"batch_size": 8, "photographs": 0.3, "pairs": False}})
    assert feeding.photographs_of(config, 3, 23) == 2
    whole = list(feeding.batches(23, config, 0, 9, 0, 1, photographs=3))
    assert all(sum(i < 3 for i in batch) == 2 and len(batch) == 8 for batch in whole)
    assert sorted(i for batch in whole[:3] for i in batch if i < 3) == [0, 0, 1, 1, 2, 2]
    assert len({i for batch in whole[:3] for i in batch if i >= 3}) == 18
    parts = [list(feeding.batches(23, config, 2, 9, rank, 2, photographs=3)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts)] == [sorted(batch) for batch in whole[2:]]
    assert all(len(batch) == 4 for part in parts for batch in part)
    pairs = load("quick", {"train": {"batch_size": 8, "photographs": 0.3, "pairs": True}})
    for batch in feeding.batches(23, pairs, 0, 9, 0, 1, photographs=3):
        people = [i for i in batch if i >= 3]
        assert len(people) == 6 and all(b == a + 1 for a, b in zip(people[::2], people[1::2]))
    plain = load("quick", {"train": {"batch_size": 8}})
    assert feeding.photographs_of(plain, 3, 23) == 0
    with pytest.raises(InputError, match=r"train\.photographs"):
        feeding.photographs_of(load("quick", {"train": {"batch_size": 2, "photographs": 0.9}}), 3, 23)


CONFIG = {
    "view": {"fov": 14.0, "size": 64},
    "encoder": {"backbone": "mobilenet_v3_small", "weights": "none", "freeze": "backbone", "points": True},
    "data": {"synthetic": 8, "validation": 1},
    "train": {"batch_size": 4, "photographs": 0.5, "validate_every": 100},
    "stages": [
        {
            "name": "One",
            "epochs": 1,
            "learning_rate": 0.01,
            "loss_weights": {"params": 1.0, "points": 100.0, "blendshapes": 0.1},
        }
    ],
}


def train(*arguments, code=0):
    result = CliRunner().invoke(main, ["train", *[str(a) for a in arguments]])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.stderr


@pytest.fixture(scope="module")
def pictures(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, one in enumerate(drawn[0]):
        cv2.imwrite(str(folder / f"{i}.png"), one.picture[..., ::-1])
    return folder


def test_photographs_without_landmarks_or_parameters(pictures, tmp_path):
    """The landmarker finds the faces; four steps of two photographs and two drawn people."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    figures = train("--config", tmp_path / "c.yaml", "--out", tmp_path / "out", "--images", pictures)
    assert figures["steps"] == 4
    assert set(figures["losses"]) == {"total", "params", "points", "blendshapes"}
    assert figures["losses"]["points"] > 0 < figures["losses"]["blendshapes"]
    assert trained.load(tmp_path / "out/eidolon_encoder_final.pth").network.points is not None
    folder = samples.Folder(pictures, None, Layout(), VIEW)
    found = samples.collate([folder[i] for i in range(len(folder))])
    assert len(folder) >= 3 and not found.known.any() and (found.vectors == 0).all()
    assert found.points.isfinite().all() and (found.landmarks > 0).all() and (found.landmarks < 112).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_folders_are_said_in_one_sentence(pictures, tmp_path, workers):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    words = ["--config", tmp_path / "c.yaml", "--workers", workers]

    def error(*more):
        said = train(*words, "--out", tmp_path / "out", *more, code=2)
        assert said.count("\n") == 1 and len(said) < 300, said
        assert not (tmp_path / "out/eidolon_encoder_final.pth").exists()
        return said

    if not workers:
        assert "train.photographs" in error()
        assert "--images" in error("--landmarks", pictures)
        (tmp_path / "empty").mkdir()
        assert "has no images" in error("--images", tmp_path / "empty")
        (tmp_path / "grey").mkdir()
        cv2.imwrite(str(tmp_path / "grey/a.png"), np.full((80, 80, 3), 99, np.uint8))
        assert "no face is found in any of the 1 images" in error("--images", tmp_path / "grey")
        (tmp_path / "half").mkdir()
        (tmp_path / "half/a.png").write_bytes((pictures / "0.png").read_bytes()[:2000])
        assert "a.png" in error("--images", tmp_path / "half")
    marks = tmp_path / "marks"
    marks.mkdir()
    (tmp_path / "later").mkdir()
    for i in range(3):
        np.save(marks / f"{i}.npy", np.random.default_rng(i).uniform(20, 60, (478, 2)))
        (tmp_path / f"later/{i}.png").write_bytes((pictures / f"{i}.png").read_bytes()[: 2000 if i else None])
    assert ".png" in error("--images", tmp_path / "later", "--landmarks", marks)
