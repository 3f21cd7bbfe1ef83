"""Starting from an encoder."""

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from flame_encoder.cli import main
from flame_encoder.encoder import trained
from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.network import EidolonEncoder
from flame_encoder.encoder.vector import Layout
from flame_encoder.tracker import initial, points
from flame_encoder.tracker.clip import fit
from flame_encoder.tracker.observations import Observations
from flame_encoder.tracker.problem import Options, Problem
from known_clip import clip, face_error
from recon4d import head

SMALL = "mobilenetv3_small_050"  # of timm


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An encoder that knows nothing: its answers are near the neutral head in the middle of the crop."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "small.pth"
    trained.save(path, trained.state_of(EidolonEncoder(SMALL), Layout(), CropView(size=64), "open-head", SMALL))
    return path


def test_the_encoders_pose_is_where_the_face_is(weights, tmp_path):
    model = head.load()
    truth, long, _ = clip(model, n=40)
    seen = Observations(long.names[:5], long.landmarks[:5], long.valid[:5], long.irises[:5], (512, 512), 30.0)
    seen.valid[2] = False
    seen.landmarks[2] = np.nan
    frames = [tmp_path / str(name) for name in seen.names]
    for path in frames:
        cv2.imwrite(str(path), np.full((512, 512, 3), 120, np.uint8))
    problem = Problem(points.Rig(model), seen, Options(focal=900.0))
    g, q = initial.encoded(problem, trained.load(weights), frames)
    assert torch.isfinite(g).all() and torch.isfinite(q).all()
    landmarks = problem.rig.project(g, q, problem.points, problem.centre, problem.choose(g, q))[:, :68]
    for i in (0, 1, 3, 4):
        assert np.linalg.norm(landmarks[i].numpy() - seen.landmarks[i], axis=1).mean() < 0.1 * seen.iod[i]
    between = (landmarks[1] + landmarks[3]).mean(0) / 2
    assert (landmarks[2].mean(0) - between).norm() < 0.3 * seen.iod[1]  # the encoder sees the place, not the turn
    found, figures = fit(
        model, seen, Options(focal=900.0), start=lambda p: initial.encoded(p, trained.load(weights), frames)
    )
    assert figures["mean_iod"] < 2 and face_error(model, truth[[0]], found.vertices(model)[[0]]) < 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--encoder", "x.pth"), "--encoder is for --init encoder"),
        (("--init", "encoder", "--encoder", "missing.pth"), "missing.pth does not exist"),
    ],
)
def test_bad_starts(tmp_path, more, message):
    frames, landmarks = tmp_path / "frames", tmp_path / "landmarks"
    frames.mkdir()
    landmarks.mkdir()
    _, seen, _ = clip(head.load(), n=1)
    cv2.imwrite(str(frames / "00000.png"), np.zeros((512, 512, 3), np.uint8))
    np.save(landmarks / "00000.npy", seen.landmarks[0])
    command = ["track", str(frames), "--landmarks", str(landmarks), "--out", str(tmp_path / "out"), *more]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and message in result.stderr and not (tmp_path / "out").exists()
