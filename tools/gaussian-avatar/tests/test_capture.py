"""Reading a subject's folder: pairing, splits, images, motion."""

import shutil
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest
import roma
import torch
from gaussian_avatar import captures, motions, synth
from gaussian_avatar.backgrounds import composite
from gaussian_avatar.config import load_config
from recon4d import InputError
from recon4d.formats import insta
from recon4d.formats.track import read as read_track


def quiet(_):
    pass


def test_synth_writes_what_it_rendered(head, data_dir):
    folder = data_dir / "one"
    track = read_track(folder / "track.npz")
    frames, notes = insta.read(folder, name=track.head_model)
    assert notes == []
    for name in ("expression", "R", "t", "jaw", "eyes", "eyelids", "shape", "K"):
        np.testing.assert_allclose(getattr(frames, name), getattr(track, name), atol=2e-6, err_msg=name)
    with av.open(str(folder / "capture.mp4")) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert video.streams.video[0].average_rate == 25
    assert len(pictures) == 24 and pictures[0].shape == (64, 64, 3)
    motion = motions.from_track(track, head)
    for i in (0, 11):
        image = cv2.imread(str(folder / "images" / f"{i:05d}.png"), cv2.IMREAD_UNCHANGED)
        inside = image[..., 3] == 255
        assert np.abs(pictures[i][inside].astype(int) - image[inside][:, 2::-1]).mean() < 12
        # The matte covers the vertices and not much more.
        points = motion.vertices[i] @ motion.camera.world_to_camera[:3, :3].T + motion.camera.world_to_camera[:3, 3]
        pixels = (points @ motion.camera.K.T)[:, :2] / points[:, 2:]
        rows, columns = np.nonzero(image[..., 3])
        low, high = pixels.min(0).values.numpy(), pixels.max(0).values.numpy()
        assert np.abs(np.array([columns.min(), rows.min()]) - low).max() < 2
        assert np.abs(np.array([columns.max() + 1, rows.max() + 1]) - high).max() < 2
    turns = (motions.AXES @ track.R)[:, :, 2]
    assert np.degrees(np.arctan2(turns[:, 0], turns[:, 2])).std() > 3  # the head does turn
    assert track.eyelids.max() > 0.5 and (track.expression.max(0) > 0.2).sum() > 5


def test_the_same_seed_makes_the_same_person(head):
    a, b, c = (synth.random_parameters(head, 30, 64, 25.0, seed) for seed in (1, 1, 2))
    assert np.array_equal(a.shape, b.shape) and np.array_equal(a.R, b.R)
    assert not np.array_equal(a.shape, c.shape)


def test_a_capture_that_turns_late(head):
    track = synth.random_parameters(head, 100, 64, 25.0, 4, "frontal-then-turn")
    ahead = (motions.AXES @ track.R)[:, :, 2]
    yaw = np.degrees(np.arctan2(ahead[:, 0], ahead[:, 2]))
    assert np.abs(yaw[:50]).max() < 6
    assert 35 < yaw[50:].max() < 46 and -46 < yaw[50:].min() < -35 and abs(yaw[-1]) < 10


def test_motion_keeps_the_face_and_frees_the_neck(head, data_dir):
    track = read_track(data_dir / "one" / "track.npz")
    motion = motions.from_track(track, head)
    assert motion.inputs.shape == (24, motions.n_inputs(head))
    E = motion.camera.world_to_camera
    ours = motion.vertices @ E[:3, :3].T + E[:3, 3]
    theirs = track.vertices(head)
    rigid = head.weights[:, 0] < 1e-6
    assert rigid.sum() > 3000
    assert (ours[:, rigid] - theirs[:, rigid]).abs().max() < 1e-5
    # The base of the neck, which belongs to the root, does not turn with the head.
    base = head.weights[:, 0] > 0.99
    if base.any():
        moved = motion.vertices[:, base] - motion.inputs[:, None, -3:]
        assert (moved - moved[:1]).abs().max() < 3e-3  # expressions and correctives only


def test_a_neck_rotation_is_composed(head, data_dir):
    track = read_track(data_dir / "one" / "track.npz")
    neck = roma.rotvec_to_rotmat(torch.tensor([0.1, 0.3, -0.1])).numpy()
    bent = replace(track, neck=np.tile(neck, (24, 1, 1)))
    ours = motions.from_track(bent, head)
    E = ours.camera.world_to_camera
    theirs = bent.vertices(head)
    face = head.weights[:, 0] < 1e-6
    assert ((ours.vertices @ E[:3, :3].T + E[:3, 3])[:, face] - theirs[:, face]).abs().max() < 1e-5


def test_orbit_turns_about_the_head(head, data_dir):
    motion = motions.from_track(read_track(data_dir / "one" / "track.npz"), head)
    cameras = motions.orbit(motion, torch.tensor([0.0, 30.0, -90.0])).world_to_camera
    torch.testing.assert_close(cameras[0], motion.camera.world_to_camera)
    centre = motion.vertices.mean((0, 1))
    for camera in cameras:
        torch.testing.assert_close(camera[:3, :3] @ camera[:3, :3].T, torch.eye(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            camera[:3, :3] @ centre + camera[:3, 3],
            cameras[0][:3, :3] @ centre + cameras[0][:3, 3],
            atol=1e-5,
            rtol=0,
        )
    eye = -cameras[:, :3, :3].transpose(1, 2) @ cameras[:, :3, 3:]
    assert eye[1, 0] > eye[0, 0] + 0.1 and eye[2, 0] < centre[0] - 0.3  # +x is the person's left


def test_splits():
    notes = []
    train, test = captures.split_frames(3000, 350, 0.15, notes.append)
    assert (len(train), len(test), test[0]) == (2650, 350, 2650) and not notes
    train, test = captures.split_frames(144, 350, 0.15, notes.append)
    assert (len(train), len(test)) == (122, 22) and "22 (15%) are held out" in notes[0]


def test_untracked_frames_are_left_out(data_dir):
    capture = captures.open_capture(data_dir / "one", None, quiet)
    valid = capture.track.valid.copy()
    valid[[2, 23]] = False
    capture = replace(capture, track=replace(capture.track, valid=valid))
    notes = []
    chosen = captures.choose_frames(capture, load_config("offline"), "all", notes.append)
    assert len(chosen) == 22 and not {2, 23} & set(chosen.tolist())
    assert any("2 frames without a track" in note for note in notes)


def test_images_are_reduced_with_their_mask(tmp_path):
    # A white disc whose hidden background is bright green: none of it may bleed in.
    image = np.zeros((64, 64, 4), np.uint8)
    image[..., 1] = 255
    cv2.circle(image, (32, 32), 20, (200, 200, 200, 255), -1)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    small = captures.read_image(tmp_path / "a.png", 24, 24, (64, 64))
    assert small.shape == (24, 24, 4)
    assert np.abs(small[small[..., 3] > 20][:, :3].astype(int) - 200).max() <= 3
    assert abs(small[..., 3].mean() - image[..., 3].mean()) < 1
    whole = captures.read_image(tmp_path / "a.png", 64, 64, (64, 64))
    np.testing.assert_array_equal(whole, image[..., [2, 1, 0, 3]])
    background = torch.tensor([[1.0, 0.0, 0.5]])
    target, mask = composite(torch.from_numpy(whole)[None], background)
    torch.testing.assert_close(target[0, 0, 0], background[0])
    torch.testing.assert_close(target[0, 32, 32], torch.full((3,), 200 / 255))
    assert mask.max() == 1 and mask.min() == 0


@pytest.fixture
def broken(data_dir, tmp_path):
    return shutil.copytree(data_dir / "one", tmp_path / "one")


def open_and_load(folder):
    capture = captures.open_capture(folder, None, quiet)
    return captures.preload(capture, np.arange(len(capture)))


def test_missing_image_is_named(broken):
    (broken / "images" / "00007.png").unlink()
    with pytest.raises(InputError, match="00007 has a frame but no image"):
        open_and_load(broken)


def test_missing_frame_is_named(broken):
    (broken / "track.npz").unlink()
    (broken / "checkpoint" / "00009.frame").unlink()
    with pytest.raises(InputError, match="00009 has an image but no frame"):
        open_and_load(broken)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda image: image[..., :3], "not 8-bit RGBA"),
        (lambda image: image[:32], "is 64x32 pixels but the track is of 64x64"),
        (lambda image: image.astype(np.uint16) * 257, "not 8-bit RGBA"),
    ],
)
def test_wrong_images_are_named(broken, spoil, message):
    path = broken / "images" / "00003.png"
    cv2.imwrite(str(path), spoil(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))
    capture = captures.open_capture(broken, None, quiet)
    for check in (captures.preload, captures.check_images):
        with pytest.raises(InputError, match=message) as caught:
            check(capture, np.arange(24))
        assert "00003.png" in str(caught.value)


def test_empty_mask_and_broken_file_are_named(broken):
    path = broken / "images" / "00003.png"
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image[..., 3] = 0
    cv2.imwrite(str(path), image)
    with pytest.raises(InputError, match=r"00003.png has an empty mask"):
        open_and_load(broken)
    path.write_bytes(b"not a picture")
    capture = captures.open_capture(broken, None, quiet)
    for check in (captures.preload, captures.check_images):
        with pytest.raises(InputError, match=r"00003.png is not a readable image"):
            check(capture, np.arange(24))


def test_varying_identity_is_averaged_and_said(broken, head):
    (broken / "track.npz").unlink()
    track, _ = insta.read(broken)
    path = broken / "checkpoint" / "00000.frame"
    one = replace(
        track,
        shape=track.shape + 1,
        names=track.names[:1],
        **{k: getattr(track, k)[:1] for k in ("valid", "expression", "R", "t", "neck", "jaw", "eyes", "eyelids")},
    )
    path.unlink()
    insta.write(broken, one)
    notes = []
    capture = captures.open_capture(broken, None, notes.append)
    assert "the identity varies over the frames" in notes[0]
    np.testing.assert_allclose(capture.track.shape, track.shape + 1 / 24, atol=1e-5)
