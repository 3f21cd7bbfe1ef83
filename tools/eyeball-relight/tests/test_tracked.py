"""Captures from a tracked video: which frames are taken, where their cameras are, what their masks show."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import roma
import torch
from eyeball_relight import assets, captures, config, lamp, selection, spheres, synth, tracked
from eyeball_relight.field import new_field
from eyeball_relight.pictures import read_picture
from recon4d import InputError, images
from recon4d.cameras import Camera
from recon4d.formats import track as tracks

N, SIZE = 14, 96
BLINK, TALK, LOST = 4, 7, 10  # frames that are no use


def film(folder, head, light=(0.0, 0.0, 0.0)):
    """A tracked video of the still synthetic head before a moving camera with a flash; its asset, truth and camera."""
    asset, truth = synth.head_asset(head, 3)
    shape = (0.6 * np.random.default_rng((3, 5)).standard_normal(head.n_shape)).astype(np.float32)
    vertices = head(torch.from_numpy(shape)[None])[0]
    middle = ((vertices.amin(0) + vertices.amax(0)) / 2).numpy()
    camera = synth.orbit(N, SIZE, 3)
    K = camera.K.clone()
    K[:2, :2] *= 0.75
    K[:2, 2] += torch.tensor([9.0, -6.0])  # the head is not in the middle
    camera = Camera(K, camera.world_to_camera, SIZE, SIZE)
    names = [f"{i:05d}.png" for i in range(N)]
    for i, name in enumerate(names):
        view = Camera(K, camera.world_to_camera[i], SIZE, SIZE)
        eye, turn = view.center, view.world_to_camera[:3, :3]

        def shade(pixels, eye=eye, turn=turn):
            where = eye + turn.T @ torch.tensor(light)
            lit = assets.lit_by_point(pixels, asset, eye, where, torch.full((3,), synth.INTENSITY))
            return lit + 0.03 * pixels.diffuse

        picture, coverage = assets.picture(asset, view, shade, 2)
        straight = picture / coverage.clamp(min=1e-3) ** (1 / 2.2)
        rgba = torch.cat([straight.clamp(0, 1), coverage], -1).numpy()
        images.write_png(folder / "images" / name, (rgba * 255 + 0.5).astype(np.uint8))
    eyelids, jaw = np.zeros((N, 2), np.float32), np.tile(np.eye(3, dtype=np.float32), (N, 1, 1))
    eyelids[BLINK] = 0.9
    jaw[TALK] = roma.rotvec_to_rotmat(torch.tensor([0.2, 0.0, 0.0])).numpy()
    R = camera.world_to_camera[:, :3, :3].numpy()
    track = tracks.Track(
        head_model="open-head",
        image_size=np.array([SIZE, SIZE]),
        fps=30.0,
        K=K.numpy(),
        names=np.array(names),
        valid=np.arange(N) != LOST,
        shape=shape,
        expression=np.zeros((N, head.n_expression), np.float32),
        R=R,
        t=camera.world_to_camera[:, :3, 3].numpy() - R @ middle,
        neck=np.tile(np.eye(3, dtype=np.float32), (N, 1, 1)),
        jaw=jaw,
        eyes=np.tile(np.eye(3, dtype=np.float32), (N, 2, 1, 1)),
        eyelids=eyelids,
    )
    track.write(folder / "track.npz")
    return asset, truth, camera, track


@pytest.fixture(scope="module")
def filmed(head, tmp_path_factory):
    folder = tmp_path_factory.mktemp("filmed")
    return folder, *film(folder, head)


@pytest.fixture(scope="module")
def imported(filmed, tmp_path_factory):
    said = []
    out = tmp_path_factory.mktemp("imported") / "capture"
    return tracked.import_track(filmed[0], out, size=80, poses="track", log=said.append), out, said


def test_frames_that_differ_are_left_out(imported):
    summary, out, said = imported
    names = [f["name"] for f in json.loads((out / "source.json").read_text())["frames"]]
    assert summary["frames"] == N - 3 and names == [f"{i:05d}" for i in range(N) if i not in (BLINK, TALK, LOST)]
    assert {"1 of 14 frames left out: not tracked", "1 of 14 frames left out: eyes closed"} <= set(said)
    assert summary["light_warning"] is None and not any("warning" in text for text in said)


def test_poses_are_those_of_the_camera_and_look_at_the_head(filmed, imported):
    """The capture's space is the head's about its middle, in metres: the truth's own, for its shape is the track's."""
    _, asset, _, camera, _ = filmed
    _, out, _ = imported
    names, found = captures.read_poses(out)
    true = camera.world_to_camera[[int(name) for name in names]]
    torch.testing.assert_close(found.center, torch.linalg.inv(true)[:, :3, 3], atol=1e-4, rtol=0)
    middle, depth = found.project(torch.zeros(1, 3))
    torch.testing.assert_close(middle, torch.full_like(middle, 40.0), atol=1e-3, rtol=0)
    frames = json.loads((out / "source.json").read_text())["frames"]
    turned = torch.tensor([f["turn"] for f in frames]) @ true[:, :3, :3]
    torch.testing.assert_close(found.world_to_camera[:, :3, :3], turned, atol=1e-4, rtol=0)
    assert (depth > 0.3).all()
    # the pictures fit the poses: the mesh drawn by them covers the masks
    capture = captures.read(out, print)
    for i in (0, 5):
        _, coverage = assets.picture(asset, capture.view(i), lambda p: p.diffuse, 2)
        drawn, mask = coverage[..., 0] > 0.5, capture.mask[i] > 127
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97


def test_masks_of_hair_and_eyes(filmed, imported, head):
    _, asset, _, _, _ = filmed
    _, out, _ = imported
    capture = captures.read(out, print)
    scalp = synth.baked(head, head.regions["scalp"].float()[:, None], len(asset["face"].diffuse))
    overlap = np.zeros((3, 2))
    for i in range(len(capture)):
        true = synth.part_coverage(asset, scalp, capture.view(i)) > 0.5
        for k, mask in enumerate((capture.hair, capture.left, capture.right)):
            ours = mask[i] > 127
            overlap[k] += [int((ours & true[..., k]).sum()), int((ours | true[..., k]).sum())]
    assert (overlap[:, 0] / overlap[:, 1] > [0.85, 0.4, 0.4]).all()


def test_a_light_beside_the_camera_is_said(head, tmp_path):
    film(tmp_path / "in", head, (0.25, 0.1, 0.0))
    said = []
    summary = tracked.import_track(tmp_path / "in", tmp_path / "out", size=80, poses="track", log=said.append)
    assert "away from the camera" in summary["light_warning"] and said[-1].startswith("warning: ")
    assert summary["light"]["offset"][0] > 0.1
    room = lamp.Seen([0.0, 0.0, 0.0], 0.5, 0.9, 0.1, 0.1)
    assert "from the room" in lamp.warning(room) and lamp.warning(None) is None


def test_neck_turns_are_part_of_the_pose(filmed, head):
    """A head turned by its neck is the same as one turned about the neck's joint by its pose."""
    track = filmed[4]
    neck = roma.rotvec_to_rotmat(torch.tensor([[0.1, 0.4, 0.0]])).numpy().repeat(N, 0)
    bent = replace(track, neck=neck)
    shapes = selection.head_shape(bent, head)
    found = selection.poses(bent, head, shapes[0]).world_to_camera
    rigid = head.regions["face"] | head.regions["scalp"]
    rigid &= head.weights[:, 1] > 0.99  # what the neck's joint alone moves
    seen = bent.vertices(head, slice(0, 1))[0][rigid].double().numpy()
    ours = shapes[0][rigid].double().numpy() @ found[0, :3, :3].T + found[0, :3, 3]
    assert rigid.sum() > 100 and np.abs(seen - ours).max() < 2e-3


def test_sharp_frames_from_all_sides():
    rng = np.random.default_rng(0)
    yaw = np.sort(rng.uniform(-0.8, 0.8, 200))
    towards = np.stack([np.sin(yaw), np.zeros(200), np.cos(yaw)], 1)
    sharp = rng.uniform(0.2, 1.0, 200)
    chosen = selection.spread(towards, sharp, 12)
    assert len(set(chosen.tolist())) == 12 and (np.diff(chosen) > 0).all()
    assert np.diff(yaw[chosen]).max() < 0.3 and np.ptp(yaw[chosen]) > 1.4
    assert sharp[chosen].mean() > 0.85
    assert selection.spread(towards[:5], sharp[:5], 12).tolist() == [0, 1, 2, 3, 4]


def test_blur_is_found_whatever_the_exposure():
    rng = np.random.default_rng(1)
    picture = rng.integers(60, 200, (64, 64, 3)).astype(np.uint8)
    alpha = np.full((64, 64), 255, np.uint8)
    blurred = cv2.GaussianBlur(picture, (0, 0), 2)
    assert selection.sharpness(picture, alpha) > 5 * selection.sharpness(blurred, alpha)
    assert selection.sharpness(picture // 2, alpha) == pytest.approx(selection.sharpness(picture, alpha), rel=0.1)
    assert selection.sharpness(picture, 0 * alpha) == 0


def test_bad_input(filmed, tmp_path):
    folder, *_, track = filmed
    (tmp_path / "empty").mkdir()
    (tmp_path / "opaque" / "images").mkdir(parents=True)
    track.write(tmp_path / "opaque" / "track.npz")
    for name in track.names:
        images.write_png(tmp_path / "opaque" / "images" / name, np.zeros((SIZE, SIZE, 3), np.uint8))
    (tmp_path / "blink").mkdir()
    replace(track, valid=np.arange(N) < 6).write(tmp_path / "blink" / "track.npz")
    for arguments, message in (
        ((tmp_path / "empty", tmp_path / "o"), "has no track.npz"),
        ((tmp_path / "opaque", tmp_path / "o"), "has no alpha"),
        ((folder, tmp_path / "o", tmp_path / "empty"), "has no picture 00000.png"),
        ((folder, tmp_path / "o", None, tmp_path / "none"), "--landmarks"),
        ((folder, folder / "images" / "o"), "lies inside the input"),
    ):
        with pytest.raises(InputError, match=message):
            tracked.import_track(*arguments)
    with pytest.raises(InputError, match="show one still face"):
        tracked.import_track(tmp_path / "blink", tmp_path / "o", folder / "images")
    assert not (tmp_path / "o").exists()


def test_the_picture_is_black_outside_the_head(imported):
    _, out, _ = imported
    picture, mask = (read_picture(out / where / "00000.png", n) for where, n in (("image", 3), ("mask", 1)))
    assert picture[mask[..., 0] == 0].max() < 0.01 and picture[mask[..., 0] == 1].mean() > 0.1


def test_skin_brings_the_head_models_eyeballs(filmed, head, tmp_path, monkeypatch):
    """Poses by skin bring the eyeballs that training begins with, and its surface."""
    folder, _, truth, *_ = filmed

    def as_they_are(views, lens, head, still, *_):
        return views, lens, still, {"poses": "skin"}

    monkeypatch.setattr(tracked.adjusting, "refine", as_they_are)
    tracked.import_track(folder, tmp_path / "out", size=48, log=lambda _: None)
    settings = config.load(tmp_path / "out/config.yaml", "cpu-quick")
    assert settings.data.head == "head.npz"
    field = new_field(settings, 3)
    capture = captures.read(tmp_path / "out", lambda _: None)
    spheres.place_eyes(field, capture, torch.ones(3), lambda _: None)
    bound = settings.data.bound
    for k, side in enumerate(("left", "right")):
        true = torch.tensor(truth[f"{side}_centre"])
        assert (bound * field.eye_centres[k].detach() - true).norm() < 5e-4
    assert abs(bound * float(field.eye_radius.detach()) - truth["radius"]) < 5e-4
    with pytest.raises(InputError, match="left and right, or none"):
        config.load(tmp_path / "out/config.yaml", None, ["data.eyeballs=[[0,0,0,0.01]]"])
