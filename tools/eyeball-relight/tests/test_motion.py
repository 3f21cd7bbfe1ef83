"""Poses of structure from motion, brought into the head's space; and what is said where they cannot be had."""

import numpy as np
import pytest
import roma
import torch
from eyeball_relight import motion, synth
from eyeball_relight.frames import Frame, looking_at
from recon4d import InputError, images
from recon4d.formats.shot import intrinsics
from recon4d.lenses import LensCamera

MIDDLE = np.array([0.01, 0.03, -0.02])


def frames(folder, n):
    camera = synth.orbit(n, 64, 0)
    poses = camera.world_to_camera.double().numpy()
    return [Frame(f"{i:05d}", folder / f"{i:05d}.png", pose, looking_at(pose[:3, 3])) for i, pose in enumerate(poses)]


def of_another_space(poses, scale, seed=0):
    """The same cameras in a space that is turned, moved and scaled."""
    rng = np.random.default_rng(seed)
    turn = roma.random_rotmat(generator=torch.Generator().manual_seed(seed)).double().numpy()
    shift = rng.normal(size=3)
    out = poses.copy()
    out[:, :3, :3] = poses[:, :3, :3] @ turn
    out[:, :3, 3] = scale * poses[:, :3, 3] + out[:, :3, :3] @ shift
    return out


def test_another_space_is_undone(tmp_path):
    true = np.stack([f.world_to_camera for f in frames(tmp_path, 12)])
    found = motion.into_head(of_another_space(true, 3.7), true, MIDDLE, 1.0)
    np.testing.assert_allclose(found, true, atol=1e-6)
    # a track whose frames are off by themselves: what is common is kept, what is not is not
    rng = np.random.default_rng(1)
    noise = roma.rotvec_to_rotmat(torch.from_numpy(rng.normal(0, 0.02, (12, 3)))).numpy()
    track = true.copy()
    track[:, :3, :3] = noise @ true[:, :3, :3]
    track[:, :3, 3] += rng.normal(0, 0.004, (12, 3))
    found = motion.into_head(of_another_space(true, 0.2), track, MIDDLE, 1.0)
    ours, theirs = (motion.agreement(p, true, MIDDLE) for p in (found, track))
    assert ours["degrees"] < 0.6 * theirs["degrees"] and ours["mm"] < 0.7 * theirs["mm"]


def test_a_longer_lens_puts_the_head_farther_away(tmp_path):
    true = np.stack([f.world_to_camera for f in frames(tmp_path, 8)])
    found = motion.into_head(of_another_space(true, 1.0), true, np.zeros(3), 1.2)
    distance = np.linalg.norm(found[:, :3, 3], axis=1) / np.linalg.norm(true[:, :3, 3], axis=1)
    np.testing.assert_allclose(distance, 1.2, rtol=0.02)


def test_pictures_without_texture_keep_the_track(tmp_path):
    views = frames(tmp_path, 5)
    for frame in views:
        images.write_png(frame.file, np.full((64, 64, 4), 200, np.uint8))
    lens = LensCamera(intrinsics(80.0, 80.0, 32.0, 32.0), 64, 64)
    said = []
    kept, same, summary = motion.refine(views, lens, MIDDLE, True, said.append)
    assert kept is views and same is lens and summary["poses"] == "track" and len(said) == 1
    try:
        motion.module()
    except InputError:
        message = "needs pycolmap"
    else:
        message = "places 0 of 5 pictures"
        assert message in said[0]
    with pytest.raises(InputError, match=message):
        motion.refine(views, lens, MIDDLE, False, said.append)


def test_a_few_pictures_tell_the_focal_length(tmp_path, monkeypatch):
    """Too few for their poses to be taken: the track's stay, and the focal length is said."""
    views, lens = frames(tmp_path, 12), LensCamera(intrinsics(100.0, 100.0, 32.0, 32.0), 64, 64)
    said = []
    monkeypatch.setattr(motion, "module", lambda: None)
    for focal, n in ((80.0, 8), (80.0, 7), (101.0, 8)):
        placed = {f.name: (f.world_to_camera, focal) for f in views[:n]}
        monkeypatch.setattr(motion, "reconstruct", lambda *_, placed=placed: placed)
        kept, same, summary = motion.refine(views, lens, MIDDLE, True, said.append)
        assert kept is views and same is lens and summary["poses"] == "track" and summary["placed"] == n
        assert summary.get("focal") == (80.0 if (focal, n) == (80.0, 8) else None)
    assert [text for text in said if "--focal 80" in text] == said[:1]


def test_without_pycolmap(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(motion.importlib, "import_module", absent)
    views, lens, said = frames(tmp_path, 5), LensCamera(intrinsics(80.0, 80.0, 32.0, 32.0), 64, 64), []
    assert motion.refine(views, lens, MIDDLE, True, said.append)[2] == {"poses": "track"}
    assert "not installed" in said[0]
    with pytest.raises(InputError, match=r"install eyeball-relight\[colmap\]"):
        motion.refine(views, lens, MIDDLE, False, said.append)


def test_it_finds_cameras_of_a_textured_plane(tmp_path):
    """The whole way through COLMAP, on pictures that it can do something with."""
    import cv2

    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (256, 256)).astype(np.uint8), (0, 0), 1.2)
    views, n, size = [], 6, 160
    K = np.array([[190.0, 0, 80], [0, 190.0, 80], [0, 0, 1]])
    # two planes at a right angle, so that the focal length is known
    planes = [(np.eye(3), np.array([-0.1, -0.1, 0.0])), (np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]), None)]
    for i in range(n):
        yaw = np.radians(-28 + 10 * i)
        towards = np.array([np.sin(yaw) * 0.8, 0.1 * np.sin(i), np.cos(yaw)])
        eye = 0.42 * towards / np.linalg.norm(towards)
        pose = np.eye(4)
        pose[:3, :3] = np.diag([1.0, -1, -1]) @ roma.rotvec_to_rotmat(torch.tensor([0.0, -yaw, 0.0])).double().numpy()
        pose[:3, 3] = -pose[:3, :3] @ eye
        picture = np.zeros((size, size), np.uint8)
        for k, (axes, _) in enumerate(planes):
            across = axes[:, :2] * 0.001
            origin = np.array([-0.13, -0.13, 0.0]) if k == 0 else np.array([-0.1, -0.13, -0.05])
            world = np.column_stack([across, origin])
            H = K @ (pose[:3, :3] @ world + np.outer(pose[:3, 3], [0, 0, 1]))
            drawn = cv2.warpPerspective(texture if k == 0 else texture[::-1].copy(), H, (size, size))
            picture = np.where(drawn > 0, drawn, picture)
        rgba = np.dstack([picture] * 3 + [np.full_like(picture, 255)])
        frame = Frame(f"{i:05d}", tmp_path / "in" / f"{i:05d}.png", pose, np.eye(3))
        images.write_png(frame.file, rgba)
        views.append(frame)
    lens = LensCamera(K, size, size)
    kept, seen, summary = motion.refine(views, lens, np.zeros(3), False, print)
    assert len(kept) >= n - 1 and summary["poses"] == "colmap" and abs(seen.K[0, 0] - 190) < 30
    assert summary["from_track"]["degrees"] < 1.5 and summary["from_track"]["mm"] < 6
