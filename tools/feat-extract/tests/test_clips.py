"""Sequences as arrays: sampling, padding, missing frames."""

import numpy as np
import pytest
from feat_extract.clips import Streams, load_clip, open_streams
from feat_extract.config import Config, Model, Sequences
from feat_extract.dataset import find_frames
from recon4d import InputError


@pytest.fixture
def write(tmp_path):
    """Write frames of one sequence whose features are (frame, 2 frame); open them as the only stream."""

    def make(frames, length=8, missing="interpolate", others=()) -> tuple[Streams, Config]:
        for stream, chosen in (("feat2d", frames), ("feat3d", others)):
            folder = tmp_path / stream / "s"
            folder.mkdir(parents=True, exist_ok=True)
            for frame in chosen:
                values = np.array([frame, 2.0 * frame])
                np.save(folder / f"{frame}.npy", values if stream == "feat2d" else np.tile(values, 200))
        config = Config(
            dataset=str(tmp_path),
            sequences=Sequences(length=length, missing=missing),
            model=Model(streams=["feat2d", "feat3d"] if len(others) else ["feat2d"]),
        )
        return open_streams(config), config

    return make


def test_short_sequences_are_padded(write):
    clip = load_clip("s", *write([8, 9, 10]))
    assert clip.mask.tolist() == [True] * 3 + [False] * 5
    assert clip.inputs["feat2d"][:, 0].tolist() == [8, 9, 10, 0, 0, 0, 0, 0]  # 10 after 9, not before 8


def test_long_sequences_are_sampled_evenly(write):
    clip = load_clip("s", *write(range(29)))
    assert clip.mask.all() and clip.inputs["feat2d"][:, 0].tolist() == [0, 4, 8, 12, 16, 20, 24, 28]


def test_missing_frames_lie_between_their_neighbours(write):
    frames, have = np.arange(40), [2, 3, 7, 19, 20, 33]
    clip = load_clip("s", *write(have, length=40, others=frames))
    np.testing.assert_allclose(clip.inputs["feat2d"][:, 0], np.interp(frames, have, have), rtol=1e-6)
    np.testing.assert_allclose(clip.inputs["feat3d"][:, 0], frames)
    assert clip.inputs["feat3d"].shape == (40, 171)


def test_missing_frames_can_be_refused(write):
    streams, config = write([0, 2], missing="refuse", others=range(4))
    with pytest.raises(InputError, match=r"feat2d of s lacks the frame 1 and 1 others"):
        load_clip("s", streams, config)


def test_unreadable_features_are_named(write, tmp_path):
    streams, config = write(range(3))
    path = tmp_path / "feat2d" / "s" / "1.npy"
    for data, message in (
        (path.read_bytes()[:60], "is not a readable npy file"),
        (b"", "is not a readable npy file"),
        (np.array([{}], dtype=object), "holds objects, not numbers"),
        (np.array(["a"]), "holds no array of numbers"),
        (np.zeros((2, 2)), r"has shape \(2, 2\)"),
        (np.zeros(3), r"has shape \(3,\), frames before it \(2,\)"),
        (np.array([1, np.inf]), "NaN or infinite"),
    ):
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            np.save(path, data, allow_pickle=True)
        with pytest.raises(InputError, match=message) as caught:
            load_clip("s", streams, config)
        assert str(path) in str(caught.value)


def test_one_frame_in_two_files(tmp_path):
    folder = tmp_path / "images" / "s"
    folder.mkdir(parents=True)
    for name in ("1.png", "1.jpg"):
        (folder / name).touch()
    with pytest.raises(InputError, match="same frame"):
        find_frames(tmp_path / "images", (".png", ".jpg"))


def test_a_stream_without_files(tmp_path):
    config = Config(dataset=str(tmp_path), model=Model(streams=["feat2d"]))
    with pytest.raises(InputError, match="feat2d has no features"):
        open_streams(config)
    with pytest.raises(InputError, match="lr_image is not a folder"):
        open_streams(config.model_copy(update={"model": Model(streams=["crops"])}))
