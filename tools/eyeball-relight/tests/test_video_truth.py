"""The truth of a synthetic video, found again in the space of a capture that is turned, moved and of another size."""

import json
from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from eyeball_relight import evaluation, filming, synth, video_truth
from eyeball_relight.captures import Capture
from eyeball_relight.frames import looking_at
from recon4d import InputError, cameras
from recon4d.cameras import Camera

N, SIZE, SCALE = 8, 48, 1.1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A video's truth without its pictures, and a capture of it whose space is SCALE times as large."""
    folder = tmp_path_factory.mktemp("truth")
    video, data = folder / "video", folder / "capture"
    pose = filming.poses(*filming.path(N, SIZE, 0), 0)
    K = cameras.intrinsics_from_fov(np.radians(43), SIZE, SIZE)
    names = [f"{i:05d}" for i in range(N)]
    (video / "truth").mkdir(parents=True)
    data.mkdir()
    gain = np.full((N, 3), 1.25)
    np.savez(video / "truth/poses.npz", names=names, world_to_camera=pose.double().numpy(), K=K.numpy(), gain=gain)
    eyes = {"left_centre": [0.03, 0.05, 0.06], "right_centre": [-0.03, 0.05, 0.06], "radius": 0.016}
    truth = {"size": SIZE, "seed": 0, "fps": 2.5, "eyes": eyes, "intensity": synth.INTENSITY, "relight": synth.RELIGHT}
    (video / "truth/truth.json").write_text(json.dumps(truth | {"head_model": "open-head"}))
    turn, shift = roma.rotvec_to_rotmat(torch.tensor([0.1, -0.3, 0.05])), torch.tensor([0.02, -0.01, 0.03])
    ours = pose.clone()  # x_truth = turn x / SCALE + shift
    ours[:, :3, :3] = pose[:, :3, :3] @ turn
    ours[:, :3, 3] = SCALE * (pose[:, :3, 3] + pose[:, :3, :3] @ shift)
    turns = np.stack([looking_at(p[:3, 3].double().numpy()) for p in ours])
    listed = [{"name": n, "turn": t.tolist()} for n, t in zip(names, turns)]
    (data / "source.json").write_text(json.dumps({"K": K.tolist(), "size": [SIZE, SIZE], "frames": listed}))
    ours[:, :3] = torch.from_numpy(turns).float() @ ours[:, :3]
    camera = Camera(K, ours, SIZE, SIZE)
    blank = torch.zeros(N, SIZE, SIZE, dtype=torch.uint8)
    picture = blank[..., None].expand(-1, -1, -1, 3)
    return video, Capture(data, tuple(names), camera, picture, blank + 255, blank, blank, blank, None), turn, shift


def test_size_turn_and_place_are_found(made):
    video, capture, turn, shift = made
    found = video_truth.read(video, capture, capture.camera)
    assert found.poses["pose_degrees"] < 0.01 and found.poses["pose_mm"] < 0.01
    assert found.poses["size_ratio"] == pytest.approx(SCALE, abs=1e-3)
    assert found.poses["focal_ratio"] == pytest.approx(1, abs=1e-3)
    wanted = SCALE * (torch.tensor([0.03, 0.05, 0.06]) - shift) @ turn
    torch.testing.assert_close(found.centres["left"], wanted, atol=1e-4, rtol=0)
    assert found.radius == pytest.approx(0.016 * SCALE, rel=1e-3)
    torch.testing.assert_close(found.intensity, torch.full((3,), synth.INTENSITY * SCALE**2 * 1.25), rtol=1e-3, atol=0)


def test_frames_that_were_named_anew_are_known_by_their_time(made, tmp_path):
    """Of every two frames one is kept, and the kept ones are counted from 0."""
    video, capture, _, _ = made
    kept = list(range(1, N, 2))
    source = json.loads((capture.folder / "source.json").read_text())
    frames = [source["frames"][i] | {"name": f"{k:05d}", "time": i / 2.5} for k, i in enumerate(kept)]
    (tmp_path / "source.json").write_text(json.dumps(source | {"frames": frames}))
    camera = replace(capture.camera, world_to_camera=capture.camera.world_to_camera[kept])
    names = tuple(f["name"] for f in frames)
    fewer = replace(capture, folder=tmp_path, names=names, camera=camera)
    assert video_truth.read(video, fewer, camera).poses["pose_degrees"] < 0.01


def test_poses_that_are_off_are_told(made):
    video, capture, _, _ = made
    rng = np.random.default_rng(0)
    noise = roma.rotvec_to_rotmat(torch.from_numpy(rng.normal(0, 0.02, (N, 3)))).float()
    pose = capture.camera.world_to_camera.clone()
    pose[:, :3, :3] = noise @ pose[:, :3, :3]
    zoomed = capture.camera.K.clone()
    zoomed[:2, :2] *= 1.2
    found = video_truth.read(video, capture, Camera(zoomed, pose, SIZE, SIZE))
    assert 0.5 < found.poses["pose_degrees"] < 4 and found.poses["focal_ratio"] == pytest.approx(1.2, abs=1e-3)


def test_views_of_the_truth(made):
    """The person is where the capture's cameras look, and lit from where the lights are."""
    video, capture, _, _ = made
    found = evaluation.filmed_truth(video_truth.read(video, capture, capture.camera), capture, None)
    (i,) = capture.held_out
    assert (found.views[i]["part"] == 1).mean() > 0.1 and found.relative
    assert len(found.relit[i]) == 3 and found.relit[i][0].max() > 0.3
    length = np.linalg.norm(found.views[i]["normal"], axis=-1)
    np.testing.assert_allclose(length[found.views[i]["part"] > 0], 1, atol=1e-3)


def test_bad_input(made, tmp_path):
    video, capture, _, _ = made
    (tmp_path / "truth").mkdir()
    for name, content in (("poses.npz", None), ("truth.json", "{}")):
        if content is None:
            (tmp_path / "truth" / name).write_bytes((video / "truth" / name).read_bytes())
        else:
            (tmp_path / "truth" / name).write_text(content)
    with pytest.raises(InputError, match="is not the truth of the video"):
        video_truth.read(tmp_path, capture, capture.camera)
    other = Capture(tmp_path, *(getattr(capture, k) for k in ("names", "camera", "image", "mask", "hair", "left")),
                    capture.right, None)  # fmt: skip
    with pytest.raises(InputError, match=r"has no source\.json"):
        video_truth.read(video, other, capture.camera)
