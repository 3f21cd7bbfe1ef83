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
        (lambda image: image[..., :3], "has no alpha channel"),
        (lambda image: image[:32], "is 64x32 pixels but the track is of 64x64"),
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


def test_a_broken_file_is_named(broken):
    path = broken / "images" / "00003.png"
    path.write_bytes(b"not a picture")
    capture = captures.open_capture(broken, None, quiet)
    for check in (captures.preload, captures.check_images):
        with pytest.raises(InputError, match=r"00003.png is not a readable image"):
            check(capture, np.arange(24))


def test_frames_with_an_empty_mask_are_left_out(broken):
    path = broken / "images" / "00003.png"
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image[..., 3] = 0
    cv2.imwrite(str(path), image)
    capture, said = captures.open_capture(broken, None, quiet), []
    assert captures.with_heads(capture, np.arange(6), said.append).tolist() == [0, 1, 2, 4, 5]
    assert said == [f"1 frames with an empty mask are left out, the first is {path}"]
    with pytest.raises(InputError, match="masks of all frames are empty"):
        captures.with_heads(capture, np.array([3]), quiet)


def reframed(folder, change):
    """Every .frame file changed; without track.npz."""
    (folder / "track.npz").unlink(missing_ok=True)
    for path in sorted((folder / "checkpoint").glob("*.frame")):
        data = torch.load(path, weights_only=False)
        change(data)
        torch.save(data, path)


def widened(folder):
    """The images with 32 more columns at either side, and the principal point with them."""
    for path in (folder / "images").glob("*.png"):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), cv2.copyMakeBorder(image, 0, 0, 32, 32, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0)))

    def change(data):
        data["opencv"]["K"] = data["opencv"]["K"] + np.array([[0, 0, 32], [0, 0, 0], [0, 0, 0]], np.float32)

    return change


@pytest.mark.parametrize("size", [(64, 128), (128, 64)], ids=["height, width", "width, height"])
def test_landscape_frames_in_either_order(broken, size):
    change = widened(broken)
    reframed(broken, lambda data: (change(data), data.update(img_size=np.array(size))))
    capture = captures.open_capture(broken, None, quiet)
    assert capture.track.image_size.tolist() == [128, 64] and (capture.width, capture.height) == (128, 64)
    assert captures.read_frame(capture, 2).shape == (64, 128, 4)


def test_parameters_of_torch_and_no_eyelids(broken):
    whole = captures.open_capture(broken, None, quiet).track

    def change(data):
        data["flame"] = {k: torch.nn.Parameter(torch.from_numpy(v)) for k, v in data["flame"].items() if k != "eyelids"}
        data["img_size"] = torch.tensor([64, 64])

    reframed(broken, change)
    said = []
    found = captures.open_capture(broken, None, said.append).track
    np.testing.assert_allclose(found.expression, whole.expression, atol=1e-6)
    assert not found.eyelids.any() and len(said) == 1 and "24 of 24 frames have no eyelids" in said[0]


def test_intrinsics_by_frame(broken):
    """A clip that zooms: each picture goes from its own camera to the track's, so that the head stays."""
    still = captures.open_capture(broken, None, quiet)
    wanted = [captures.read_frame(still, i) for i in (0, 23)]
    zoom = np.linspace(0.9, 1.1, 24)
    for i, factor in enumerate(zoom):
        path = still.image_path(i)
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cx, cy = still.track.K[0, 2] - 0.5, still.track.K[1, 2] - 0.5
        move = np.array([[factor, 0, cx * (1 - factor)], [0, factor, cy * (1 - factor)]])
        cv2.imwrite(str(path), cv2.warpAffine(image, move, (64, 64)))
    factors = iter(zoom)

    def change(data):
        K = data["opencv"]["K"].copy()
        K[0, [0, 1], [0, 1]] *= next(factors)
        data["opencv"]["K"] = K

    reframed(broken, change)
    said = []
    capture = captures.open_capture(broken, None, said.append)
    assert "K differs from frame to frame" in said[0]
    np.testing.assert_allclose(capture.track.K, still.track.K, rtol=1e-3)
    for i, before in zip((0, 23), wanted):
        assert np.abs(captures.read_frame(capture, i)[..., 3].astype(int) - before[..., 3]).mean() < 3
    capture.track.write(broken / "again.npz")
    np.testing.assert_array_equal(read_track(broken / "again.npz").take([3, 4]).Ks, capture.track.Ks[3:5])


def test_numbers_that_are_shifted(broken):
    for path in sorted((broken / "images").iterdir(), reverse=True):
        path.rename(path.with_stem(f"{int(path.stem) + 1:03d}"))
    (broken / "images" / "._00001.png").write_bytes(b"of a Mac")
    with pytest.raises(InputError, match=r"00000 has a frame but no image; .* give --frame-offset 1"):
        captures.open_capture(broken, None, quiet)
    capture = captures.open_capture(broken, None, quiet, frame_offset=1)
    assert len(capture) == 24 and capture.track.names[:2].tolist() == ["001.png", "002.png"]
    (broken / "images" / "024.png").unlink()
    with pytest.raises(InputError, match="--pairs common"):
        captures.open_capture(broken, None, quiet, frame_offset=1)
    said = []
    assert len(captures.open_capture(broken, None, said.append, frame_offset=1, common=True)) == 23
    assert "1 frames without an image are left out" in said[0]
    (broken / "track.npz").unlink()
    assert len(captures.open_capture(broken, None, quiet, frame_offset=1, common=True)) == 23


def test_names_without_zeros_are_in_natural_order(broken):
    for folder in ("images", "checkpoint"):
        for path in list((broken / folder).iterdir()):
            path.rename(path.with_stem(f"frame_{int(path.stem)}"))
    (broken / "track.npz").unlink()
    names = captures.open_capture(broken, None, quiet).track.names.tolist()
    assert names == [f"frame_{i}.png" for i in range(24)]


@pytest.mark.parametrize("place", ["matted", "mask"])
def test_pictures_without_alpha_beside_mattes_or_masks(broken, place):
    whole = captures.read_frame(captures.open_capture(broken, None, quiet), 5)
    (broken / place).mkdir()
    for path in sorted((broken / "images").iterdir()):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(broken / place / path.name), image if place == "matted" else image[..., 3])
        path.unlink()
        cv2.imwrite(str(path.with_suffix(".tif")), image[..., :3])
    capture = captures.open_capture(broken, None, quiet)
    np.testing.assert_array_equal(captures.read_frame(capture, 5), whole)
    assert captures.inspect(broken, None, quiet)["frames"] == 24


def test_eyelids_that_move_nothing_are_said(broken, head):
    track, said = captures.open_capture(broken, None, quiet).track, []
    motions.check_track(track, replace(head, eyelids=None), "it", said.append)
    motions.check_track(track, head, "it", said.append)
    assert len(said) == 1 and "they move no vertex" in said[0]


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
