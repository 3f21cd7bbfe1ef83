"""The synthetic phone video: what is in it, and that its truth is that of its pictures."""

import json

import av
import numpy as np
import pytest
import torch
from eyeball_relight import assets, filming, synth
from recon4d.cameras import Camera

N, SIZE = 10, 96


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film") / "phone"
    summary = filming.film(folder, N, SIZE, seed=2)
    with av.open(str(folder / "video.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    with np.load(folder / "truth" / "poses.npz") as arrays:
        return folder, summary, frames, dict(arrays)


def test_video_and_truth(filmed):
    folder, summary, frames, truth = filmed
    assert len(frames) == N == summary["frames"] and frames[0].shape == (SIZE, SIZE, 3)
    assert summary["fps"] == N / filming.SECONDS
    written = json.loads((folder / "truth" / "truth.json").read_text())
    assert written["eyes"]["radius"] == summary["radius"] and written["seed"] == 2
    assert truth["world_to_camera"].shape == (N, 4, 4) and truth["gain"].shape == (N, 3)
    assert abs(np.log(truth["gain"]).mean()) < 1e-9 and 0.02 < np.log(truth["gain"]).std() < 0.4


def test_poses_are_those_of_the_pictures(filmed, head):
    """The person drawn by the true pose covers what is bright in the frame."""
    _, _, frames, truth = filmed
    asset, _ = filming.person(head, 2)
    for i in (0, 6):
        view = Camera(torch.from_numpy(truth["K"]), torch.from_numpy(truth["world_to_camera"][i]).float(), SIZE, SIZE)
        _, cover = assets.picture(asset, view, lambda p: p.diffuse, 1)
        inside = cover[..., 0].numpy() > 0.5
        grey = frames[i].astype(float).mean(-1)
        assert grey[inside].mean() > 1.8 * grey[~inside].mean()


def test_corneas_stand_out_and_hair_grows(head):
    asset, eyes = synth.head_asset(head, 2)
    ball = filming.bulging(asset["left"])
    centre = torch.tensor(eyes["left_centre"])
    away = (ball.vertices - centre).norm(dim=1)
    front = ball.vertices[:, 2] - centre[2] > 0.95 * away
    assert away[front].max() == pytest.approx((1 + filming.CORNEA) * eyes["radius"], rel=1e-3)
    assert away[ball.normals[:, 2] < 0].max() == pytest.approx(eyes["radius"], rel=1e-3)
    grown = filming.hair(asset["face"], head, 2)
    strands = grown.vertices[len(asset["face"].vertices) :]
    assert len(strands) == 2 * (filming.STRAND + 1) * filming.STRANDS and grown.ft.max() < len(grown.vt)
    scalp = asset["face"].vertices[head.regions["scalp"]]
    nearest = torch.cdist(strands[::50], scalp).amin(1)
    assert 0.003 < nearest.mean() < filming.LENGTH


def test_it_is_hard(filmed):
    """Somebody blinks; the pictures have noise; people differ."""
    frames = filmed[2]
    lids = filming.blinks(600, 30.0, np.random.default_rng(0))
    assert lids.max() > 0.95 and 0.01 < (lids > 0.5).mean() < 0.1
    flat = frames[0][:8, :8].astype(float)
    assert flat.std((0, 1)).max() > 0.3
    head_tones = [float(filming.person_tone(seed)) for seed in range(4)]
    assert max(head_tones) > 1.3 * min(head_tones)
