"""The exchange formats: written, read back, and refused when wrong."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import roma
import scipy.spatial.transform as st
import torch
from recon4d import InputError, rotations
from recon4d.formats import insta, track, track_stream


def some_track(n=4, seed=0):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    floats = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return track.Track(
        head_model="open-head",
        image_size=np.array([64, 48]),
        fps=25.0,
        K=np.array([[90, 0, 32], [0, 90, 24], [0, 0, 1]], np.float32),
        names=np.array([f"{i:05d}.png" for i in range(n)]),
        valid=np.ones(n, bool),
        shape=floats(10),
        expression=floats(n, 7),
        R=roma.random_rotmat(n).numpy(),
        t=floats(n, 3),
        neck=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),
        jaw=roma.random_rotmat(n).numpy(),
        eyes=roma.random_rotmat((n, 2)).numpy(),
        eyelids=rng.random((n, 2)).astype(np.float32),
    )


def same(a, b, fields, tolerance=1e-6):
    for field in fields:
        np.testing.assert_allclose(getattr(a, field), getattr(b, field), atol=tolerance, err_msg=field)


GEOMETRY = ("K", "shape", "expression", "R", "t", "jaw", "eyes", "eyelids", "image_size")


@pytest.fixture
def capture(tmp_path):
    written = some_track()
    insta.write(tmp_path, written)
    (tmp_path / "images").mkdir()
    for name in written.names:
        (tmp_path / "images" / name).touch()
    return tmp_path


def test_track_round_trip(tmp_path):
    written = some_track()
    written.write(tmp_path / "track.npz")
    found = track.read(tmp_path / "track.npz")
    same(written, found, (*GEOMETRY, "neck", "valid"))
    assert list(found.names) == list(written.names) and found.fps == 25 and found.head_model == "open-head"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["track.npz"]  # no temporary file stays


def test_wrong_tracks_say_what_is_wrong(tmp_path):
    path = tmp_path / "track.npz"
    good = some_track()
    for changes, message in (
        ({"R": good.R[:2]}, r"R has shape \(2, 3, 3\)"),
        ({"t": good.t * np.nan}, "t holds NaN"),
        ({"eyes": good.eyes[:, 0]}, "eyes has shape"),
    ):
        replace(good, **changes).write(path)
        with pytest.raises(InputError, match=message):
            track.read(path)
    good.write(path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="not a readable npz"):
            track.read(path)
    np.savez(path, a=1)
    with pytest.raises(InputError, match="not a track file"):
        track.read(path)
    np.savez(path, format=track.FORMAT, a=1)
    with pytest.raises(InputError, match="has no head_model"):
        track.read(path)


def test_insta_round_trip(capture):
    found, notes = insta.read(capture)
    same(some_track(), found, GEOMETRY, 1e-5)
    assert notes == []


def test_frames_hold_what_metrical_tracker_writes(capture):
    data = torch.load(capture / "checkpoint" / "00002.frame", weights_only=False)
    shapes = {k: v.shape for k, v in data["flame"].items()}
    assert shapes == {"exp": (1, 7), "shape": (1, 10), "jaw": (1, 6), "eyes": (1, 12), "eyelids": (1, 2)}
    assert {k: v.shape for k, v in data["opencv"].items()} == {"R": (1, 3, 3), "t": (1, 3), "K": (1, 3, 3)}
    np.testing.assert_array_equal(data["img_size"], [48, 64])  # height, width
    # 6D: the first two rows.
    np.testing.assert_allclose(data["flame"]["jaw"][0], some_track().jaw[2, :2].reshape(6), atol=1e-6)


def test_6d_rows_round_trip_and_orthonormalise():
    R = torch.from_numpy(st.Rotation.random(50, rng=np.random.default_rng(0)).as_matrix())
    torch.testing.assert_close(rotations.from_6d(rotations.to_6d(R)), R)
    noisy = rotations.to_6d(R) * 1.7 + 0.05
    import pytorch3d.transforms as p3d

    torch.testing.assert_close(rotations.from_6d(noisy), p3d.rotation_6d_to_matrix(noisy))


def test_identity_that_varies_is_averaged_and_said(capture):
    other = replace(some_track(), shape=some_track().shape + 2)
    insta.write(capture / "other", other)
    shutil.copy(capture / "other" / "checkpoint" / "00001.frame", capture / "checkpoint" / "00001.frame")
    found, notes = insta.read(capture)
    np.testing.assert_allclose(found.shape, some_track().shape + 0.5, atol=1e-5)
    assert len(notes) == 1 and "identity varies" in notes[0]


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_hostile_and_broken_frames_are_refused(capture):
    path, ran = capture / "checkpoint" / "00001.frame", capture / "ran"
    whole = path.read_bytes()
    torch.save({"flame": Hostile(ran)}, path)
    with pytest.raises(InputError, match=r"00001\.frame.*system"):
        insta.read(capture)
    assert not ran.exists()
    for length in (0, 50, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"00001\.frame is not a readable"):
            insta.read(capture)
    torch.save({"flame": {}}, path)
    with pytest.raises(InputError, match=r"no flame\.exp"):
        insta.read(capture)


def test_images_and_frames_that_do_not_pair(capture):
    (capture / "images" / "00002.png").unlink()
    with pytest.raises(InputError, match="00002 has a frame but no image; 3 images and 4 frames"):
        insta.read(capture)
    (capture / "images" / "00002.png").touch()
    (capture / "checkpoint" / "00003.frame").unlink()
    with pytest.raises(InputError, match="00003 has an image but no frame"):
        insta.read(capture)
    shutil.rmtree(capture / "images")
    with pytest.raises(InputError, match="has no images"):
        insta.read(capture)
    shutil.rmtree(capture / "checkpoint")
    with pytest.raises(InputError, match=r"no \.frame files"):
        insta.read(capture)


def test_frames_cannot_hold_a_neck(tmp_path):
    turned = replace(some_track(), neck=roma.random_rotmat(4).numpy())
    with pytest.raises(InputError, match="neck"):
        insta.write(tmp_path, turned)


def test_track_stream_round_trip():
    written = some_track()
    lines = [track_stream.header_line(written), "", *track_stream.frame_lines(written)]
    assert set(json.loads(lines[0])) == {"format", "head_model", "image_size", "fps", "K", "shape"}
    assert json.loads(lines[2])["name"] == "00000.png" and json.loads(lines[2])["valid"] is True
    found = list(track_stream.read(iter(lines), "pipe"))
    assert [str(frame.names[0]) for frame in found] == [str(name) for name in written.names]
    for i, frame in enumerate(found):
        same(frame, written.take([i]), (*GEOMETRY, "neck", "valid"), tolerance=0)
        assert (frame.head_model, frame.fps, len(frame)) == (written.head_model, written.fps, 1)
    same(track.join(found), written, (*GEOMETRY, "neck", "valid"), tolerance=0)


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (0, lambda r: {}, "line 1 is not the header of a track stream"),
        (0, lambda r: {k: v for k, v in r.items() if k != "K"}, "line 1 has no K"),
        (2, lambda r: {k: v for k, v in r.items() if k != "jaw"}, "line 3 has no jaw"),
        (2, lambda r: r | {"t": [1, 2]}, r"line 3: t has shape \(1, 2\); \(1, 3\) is needed"),
        (2, lambda r: r | {"t": [1, 2, float("nan")]}, "line 3: t holds NaN"),
        (2, lambda r: r | {"t": "far"}, 'line 3: t must hold numbers, not "far"'),
        (2, lambda r: r | {"R": [[1], [2, 3]]}, "line 3: R is not an array"),
        (2, lambda r: r | {"valid": 1}, "line 3: valid must hold true or false"),
        (1, lambda r: [1], "line 2 is not a JSON object"),
    ],
)
def test_wrong_track_streams_name_the_line(line, change, message):
    written = some_track()
    lines = [track_stream.header_line(written), *track_stream.frame_lines(written)]
    lines[line] = json.dumps(change(json.loads(lines[line])))
    with pytest.raises(InputError, match=message):
        list(track_stream.read(lines, "pipe"))


def test_truncated_and_empty_track_streams():
    line = track_stream.header_line(some_track())
    with pytest.raises(InputError, match="pipe, line 1 is not a JSON object"):
        list(track_stream.read([line[:40]], "pipe"))
    with pytest.raises(InputError, match="pipe is empty"):
        list(track_stream.read([], "pipe"))
