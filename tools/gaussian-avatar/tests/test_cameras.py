"""Several cameras, and squares that follow the head: what is trained on is what those cameras see."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from flame_files import flame_arrays, write_flame_pickle
from gaussian_avatar import captures, evaluation, framing, motions, runs, synth, training
from gaussian_avatar.config import Data, load_config
from recon4d import InputError
from recon4d.formats import vhap
from recon4d.formats.track import read as read_track
from scipy.spatial.transform import Rotation

SMALL = ("model.tex_size=40", "model.basis=6", "model.hidden=32", "data.image_size=48", "train.iterations=300")


def quiet(_):
    pass


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rig") / "three"
    found = synth.synthesise(folder, frames=6, size=64, seed=5, cameras=3)
    assert found["cameras"] == 3
    return folder


def middle_and_extent(alpha):
    ys, xs = np.nonzero(alpha > 127)
    return np.array([xs.mean() + 0.5, ys.mean() + 0.5]), np.array([np.ptp(xs), np.ptp(ys)])


@pytest.mark.parametrize("crop", [False, True])
def test_pictures_are_what_their_cameras_see(rig, head, crop):
    capture = captures.open_capture(rig, None, quiet)
    motion = motions.from_track(capture.track, head)
    capture, motion = framing.fitted(capture, motion, Data(image_size=48, crop=crop))
    assert (capture.width, capture.height) == (48, 48) and len(motion) == 18
    for i in (0, 7, 17):
        middle, extent = middle_and_extent(captures.read_frame(capture, i)[..., 3])
        pixels = motions.cameras_of(motion, np.array([i])).project(motion.vertices[i : i + 1])[0][0].numpy()
        low, high = pixels.min(0), pixels.max(0)
        assert np.abs(extent - (high - low)).max() < 2.5
        assert np.abs(middle - (low + high) / 2).max() < 6  # the middle of the mask is not that of its box
        if crop:
            assert extent.max() > 27  # of 48; in whole pictures the head has less


def test_tracks_of_several_cameras(rig, tmp_path):
    track = read_track(rig / "track.npz")
    assert track.views.shape == (18, 4, 4) and set(track.cameras) == {"0", "1", "2"}
    one = track.of_one_camera()
    assert len(one) == 6 and one.views is None and (one.names == track.names[:6]).all()
    track.take(np.array([3, 9])).write(tmp_path / "t.npz")
    assert read_track(tmp_path / "t.npz").cameras.tolist() == ["0", "1"]
    with np.load(rig / "track.npz") as file:
        arrays = dict(file)
    for broken, message in (
        ({"views": None}, "some of Ks, views and cameras"),
        ({"views": arrays["views"][:5]}, "views has shape"),
        ({"views": 3 * arrays["views"]}, "something else than rotations"),
        ({"cameras": np.arange(18)}, "cameras holds int64"),
    ):
        np.savez(tmp_path / "b.npz", **{k: v for k, v in (arrays | broken).items() if v is not None})
        with pytest.raises(InputError, match=message):
            read_track(tmp_path / "b.npz")


def test_one_camera_is_held_out(rig, tmp_path):
    capture = captures.open_capture(rig, None, quiet)
    config = load_config("cpu-quick")
    train = captures.choose_frames(capture, config, "train", quiet)
    test = captures.choose_frames(capture, config, "test", quiet)
    assert set(capture.track.cameras[test]) == {"0"} and set(capture.track.cameras[train]) == {"1", "2"}
    config = load_config("cpu-quick", ["data.test_camera='1'", "data.train_cameras=['2']"])
    assert set(capture.track.cameras[captures.choose_frames(capture, config, "train", quiet)]) == {"2"}
    for setting in ("data.test_camera='7'", "data.train_cameras=['0']", "data.train_cameras=[]"):
        with pytest.raises(InputError, match=r"data.test_camera and data.train_cameras: .* of 0, 1, 2"):
            captures.choose_frames(capture, load_config("cpu-quick", [setting]), "test", quiet)


def test_cameras_and_crops_are_learned(rig, head, tmp_path):
    """What five hundred pictures teach, a camera that was held out sees too; the run shows whole pictures."""
    folder = tmp_path / "out" / "three" / "run"
    training.start(folder, rig, "cpu-quick", [*SMALL, "data.crop=true"], device="cpu", log=quiet)
    run = runs.open_run(folder, "cpu")
    assert len(run.track) == 6 and run.motion.camera.world_to_camera.dim() == 2
    found = evaluation.evaluate(run, data=rig, log=quiet)
    assert (found["frames"], found["width"]) == (6, 48) and found["psnr"] > 19  # grey gives 14
    finer = evaluation.evaluate(run, data=rig, force=True, log=quiet, square=60)
    assert finer["width"] == 60 and abs(finer["psnr"] - found["psnr"]) < 3


def test_folders_of_vhap(rig, tmp_path):
    """A capture of two cameras as VHAP exports it, with masks: heads, cameras and pictures are where they were."""
    write_flame_pickle(tmp_path / "m.pkl", flame_arrays(3))
    model = motions.load_head(tmp_path / "m.pkl")
    track = read_track(rig / "track.npz").of_one_camera()
    rng = np.random.default_rng(1)
    parts = {"shape": rng.normal(size=30).astype(np.float32), "eyelids": np.zeros_like(track.eyelids)}
    parts["expression"] = rng.normal(size=(len(track), 20)).astype(np.float32)
    track = replace(track, head_model=model.name, **parts)
    folder = tmp_path / "v"
    for name in ("images", "fg_masks"):
        (folder / name).mkdir(parents=True)
    vhap.write(folder, track, model, folder / "images")
    listed = json.loads((folder / "transforms.json").read_text())
    turn = Rotation.from_euler("yx", [30, 10], degrees=True)
    second = np.eye(4)  # OpenGL, camera to world
    second[:3, :3], second[:3, 3] = turn.as_matrix(), [0.4, 0.1, -0.1]
    frames = []
    for i, frame in enumerate(listed["frames"]):
        for camera in (0, 1):
            name = f"{i:05d}_{camera:02d}.png"
            picture = np.full((64, 64, 3), 40 * (camera + 1), np.uint8)
            cv2.imwrite(str(folder / "images" / name), picture)
            cv2.imwrite(str(folder / "fg_masks" / name), np.full((64, 64), 255, np.uint8))
            paths = {"file_path": f"images/{name}", "fg_mask_path": f"fg_masks/{name}"}
            own = {"transform_matrix": second.tolist(), "fl_x": 150.0, "fl_y": 150.0} if camera else {}
            frames.append(frame | paths | own | {"camera_index": camera})
    content = listed | {"frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))

    capture = captures.open_capture(folder, None, quiet, head=model)
    assert len(capture) == 12 and capture.track.cameras.tolist() == 6 * ["0"] + 6 * ["1"]
    assert captures.inspect(folder, tmp_path / "m.pkl", quiet)["cameras"] == 2
    motion = motions.from_track(capture.track, model)
    before = motions.from_track(track, model)
    assert (motion.vertices[:6] - before.vertices).norm(dim=-1).max() < 2e-5
    world = before.camera.world_to_camera[:3, :3] @ before.vertices[2].T + before.camera.world_to_camera[:3, 3:]
    world = np.diag([1, -1, -1]) @ world.double().numpy()  # VHAP's, which is the first camera's place, y up
    seen = np.diag([1, -1, -1]) @ turn.as_matrix().T @ (world - second[:3, 3:])
    pixels = motions.cameras_of(motion, np.array([8])).project(motion.vertices[8:9])[0][0].numpy()
    assert np.abs(pixels - (seen[:2] / seen[2] * np.array([[150], [150]]) + 32).T).max() < 0.05
    assert captures.read_frame(capture, 8)[0, 0].tolist() == [80, 80, 80, 255]

    for change, message in (
        ({"file_path": "../x.png"}, "outside its folder; correct file_path"),
        ({"file_path": "images/none.png"}, "none.png is missing"),
        ({"fg_mask_path": "images/00000_00.png"}, "in several folders"),
        ({"w": 32}, "several sizes"),
        ({"transform_matrix": [[1, 0], [0, 1]]}, "holds no cameras"),
        ({"fl_x": "wide"}, "holds no cameras"),
    ):
        broken = [*frames[:3], frames[3] | change, *frames[4:]]
        (folder / "transforms.json").write_text(json.dumps(listed | {"frames": broken}))
        with pytest.raises(InputError, match=message):
            captures.open_capture(folder, None, quiet, head=model)
