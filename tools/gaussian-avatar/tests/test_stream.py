"""Frames as they arrive: pacing, threads, folders, pipes."""

import io
import threading
import time
from dataclasses import replace
from itertools import chain

import cv2
import numpy as np
import pytest
import torch
from gaussian_avatar import motions, streams
from gaussian_avatar.config import load_config
from recon4d import InputError
from recon4d.formats import track_stream
from recon4d.formats.track import read as read_track

CONFIG = load_config("cpu-online", ["online.image_wait=0"])


def test_a_slow_taker_loses_nothing():
    arrived = []
    for batch in streams.as_they_come(range(300)):
        arrived += batch
        time.sleep(0.001)
    assert arrived == list(range(300))


def test_a_fast_taker_gets_empty_lists_meanwhile():
    lists = list(streams.as_they_come(streams.paced(range(3), 20.0)))
    assert list(chain(*lists)) == [0, 1, 2] and [] in lists and lists[0] == [0]


def test_paced_items_are_not_early():
    started = time.monotonic()
    times = [time.monotonic() - started for _ in streams.paced(range(4), 50.0)]
    assert all(at >= i / 50 for i, at in enumerate(times))


def test_a_stream_begins_when_its_taker_is_ready():
    items = iter(range(9))
    arrivals = streams.as_they_come(streams.paced(items, 50.0))
    assert next(arrivals) == [0]
    time.sleep(0.1)
    assert next(items) == 1  # nothing was read ahead
    started = time.monotonic()
    taken = list(chain(*arrivals))
    assert taken == list(range(2, 9)) and time.monotonic() - started >= 7 / 50


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_taken():
    def items():
        yield 1
        raise InputError("no more")

    taken = []
    with pytest.raises(InputError, match="no more"):
        for batch in streams.as_they_come(items()):
            taken += batch
    assert taken == [1]
    with pytest.raises(InputError, match="no more"):
        list(streams.as_they_come(iter_that_raises()))
    assert list(streams.as_they_come([])) == []


def iter_that_raises():
    raise InputError("no more")
    yield


def test_the_thread_ends_with_its_taker():
    def endless():
        while True:
            yield 0

    arrivals = streams.as_they_come(endless())
    next(arrivals)
    next(arrivals)
    arrivals.close()
    for thread in threading.enumerate():
        if thread.name == "frames":
            thread.join(5)
            assert not thread.is_alive()


def test_pace_by_work():
    assert list(streams.in_step("abc", 2)) == [["a"], [], ["b"], [], ["c"], []]
    assert list(streams.in_step("abcde", 0.5)) == [["a", "b"], ["c", "d"], ["e"]]


@pytest.mark.parametrize("preload", [True, False])
def test_a_folder_streams_its_split(head, data_dir, preload):
    notes = []
    config = load_config("cpu-online", [f"data.preload={str(preload).lower()}"])
    stream = streams.from_folder(data_dir / "one", head, config, torch.device("cpu"), 2, notes.append)
    items = list(stream.frames)
    assert stream.count == len(items) == 40 and len(stream.track()) == 24  # 20 of 24 frames, twice
    assert [frame.index for _, frame in items] == list(range(40))
    assert [frame.name for _, frame in items[:2]] == [frame.name for _, frame in items[20:22]]
    motion = motions.from_track(stream.track(), head)
    for i in (0, 7, 19):
        camera, frame = items[i]
        torch.testing.assert_close(frame.vertices, motion.vertices[i])
        torch.testing.assert_close(frame.inputs, motion.inputs[i])
        torch.testing.assert_close(camera.world_to_camera, motion.camera.world_to_camera)
        image = cv2.imread(str(data_dir / "one/images" / frame.name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(frame.pixels, image[..., [2, 1, 0, 3]])


def lines(track):
    pipe = io.StringIO("\n".join([track_stream.header_line(track), *track_stream.frame_lines(track)]))
    pipe.name = "pipe"
    return pipe


@pytest.fixture
def track(data_dir):
    return read_track(data_dir / "one/track.npz").take(slice(0, 6))


def test_a_pipe_streams_the_same(head, data_dir, track):
    valid = track.valid.copy()
    valid[[0, 2]] = False
    track = replace(track, valid=valid)
    stream = streams.from_pipe(lines(track), data_dir / "one", head, CONFIG)
    items = list(stream.frames)
    assert [frame.name for _, frame in items] == [str(name) for name in track.names[valid]]
    assert [frame.index for _, frame in items] == [0, 1, 2, 3]
    motion = motions.from_track(track, head)
    torch.testing.assert_close(items[1][1].vertices, motion.vertices[3], atol=1e-6, rtol=0)
    torch.testing.assert_close(items[1][0].world_to_camera, motion.camera.world_to_camera)
    assert stream.track().names.tolist() == track.names.tolist()  # those passed over are in the track


def test_pictures_with_masks_and_late_ones(head, data_dir, track, tmp_path):
    for kind in ("images", "masks", "ready"):
        (tmp_path / kind).mkdir()
    rgba = [cv2.imread(str(data_dir / "one/images" / str(n)), cv2.IMREAD_UNCHANGED) for n in track.names[:2]]
    for name, image in zip(track.names, rgba):
        cv2.imwrite(str(tmp_path / "images" / str(name)), image[..., :3])
        cv2.imwrite(str(tmp_path / "ready" / str(name)), image[..., 3])
    (tmp_path / "ready" / "00000.png").rename(tmp_path / "masks" / "00000.png")
    places = [f"online.images={tmp_path / 'images'}", f"online.masks={tmp_path / 'masks'}"]
    patient = load_config("cpu-online", [*places, "online.image_wait=60"])
    stream = streams.from_pipe(lines(track.take([0, 1])), tmp_path, head, patient)
    late = threading.Timer(0.2, (tmp_path / "ready" / "00001.png").rename, [tmp_path / "masks" / "00001.png"])
    late.start()
    for (_, frame), image in zip(list(stream.frames), rgba, strict=True):
        np.testing.assert_array_equal(frame.pixels, image[..., [2, 1, 0, 3]])

    def refused(message, *changes):
        config = load_config("cpu-online", [*places, "online.image_wait=0", *changes])
        with pytest.raises(InputError, match=message):
            list(streams.from_pipe(lines(track.take([0, 1])), tmp_path, head, config).frames)

    refused("00000.png has no alpha channel", "online.masks=null")
    refused("nowhere is not a folder", f"online.images={tmp_path / 'nowhere'}")
    cv2.imwrite(str(tmp_path / "masks" / "00001.png"), rgba[1][:30, :, 3])
    refused(r"masks/00001.png is not of the size of")
    (tmp_path / "masks" / "00001.png").unlink()
    refused(r"masks/00001.png does not exist")


def test_a_pipe_of_another_head_or_nothing(head, data_dir, track):
    wide = replace(track, expression=np.zeros((6, 400), np.float32))
    with pytest.raises(InputError, match="400 expression coefficients"):
        list(streams.from_pipe(lines(wide), data_dir / "one", head, CONFIG).frames)
    broken = io.StringIO(lines(track).getvalue()[:-50])
    broken.name = "pipe"
    taken = []
    with pytest.raises(InputError, match="pipe, line 7 is not a JSON object"):
        for _, frame in streams.from_pipe(broken, data_dir / "one", head, CONFIG).frames:
            taken.append(frame.index)
    assert taken == [0, 1, 2, 3, 4]
