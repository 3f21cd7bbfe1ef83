"""What stages of a live pipe share: what is dropped, what is not, and how each learns that another has ended."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from recon4d import threads
from recon4d.files import InputError
from recon4d.formats import camera_stream, track_stream
from recon4d.formats.camera_stream import CameraFrame, Header
from recon4d.stages import (
    Inbox,
    Meter,
    lines_of,
    newest,
    resident_mib,
    stand_back,
    until_closed,
    while_read,
    write_line,
)


def gate(items, opened):
    """Items, the last of which waits."""
    *before, last = items
    yield from before
    opened.wait(10)
    yield last


def test_the_oldest_of_too_many_are_dropped_and_counted():
    opened = threading.Event()
    inbox = Inbox(gate(range(11), opened), 3)
    while inbox.dropped < 7:
        time.sleep(0.001)
    assert inbox.take() == [7, 8, 9] and inbox.take() == []
    opened.set()
    assert inbox.take(10) == [10]
    assert inbox.take(10) is None and inbox.dropped == 7


def test_the_last_is_never_dropped():
    for _ in range(20):
        found = list(newest(range(50)))
        assert found[-1][0] == 49 and sum(1 + dropped for _, dropped in found) == 50


def test_the_patient_lose_nothing():
    inbox, found = Inbox(range(100), 2, patient=True), []
    while (taken := inbox.take(1)) is not None:
        assert len(taken) <= 2
        found += taken
    assert found == list(range(100)) and inbox.dropped == 0


def test_an_error_is_raised_after_what_came_before_it():
    def items():
        yield 1
        raise InputError("no more")

    inbox = Inbox(items(), 4)
    assert inbox.take(10) == [1]
    with pytest.raises(InputError, match="no more"):
        inbox.take(10)


def test_who_writes_learns_that_nobody_reads(tmp_path):
    read, write = os.pipe()
    with open(write, "w") as out:
        write_line(out, {"a": 1})
        begin = time.monotonic()
        until_closed(out, 0.2)
        assert time.monotonic() - begin >= 0.2  # there is a reader still
        (tmp_path / "over").write_text("")
        assert not until_closed(out, 30, tmp_path / "over")  # at once too
        with open(read) as lines:
            assert json.loads(lines.readline()) == {"a": 1}
        assert until_closed(out, 30)  # returns at once
        with pytest.raises(InputError, match="next command of the pipe has ended"):
            for _ in range(3):
                write_line(out, {"a": 1})
    until_closed(io.StringIO(), 30)


def test_lines_of_a_pipe_of_a_file_and_of_memory(tmp_path, monkeypatch):
    text = "one\n\ntwo é\nthree"
    (tmp_path / "file").write_text(text)
    read, write = os.pipe()
    for part in (text[:2], text[2:]):
        os.write(write, part.encode())
    os.close(write)
    with open(tmp_path / "file") as file, open(read) as pipe:
        for source in (file, pipe, io.StringIO(text)):
            assert [line.rstrip("\n") for line in lines_of(source)] == ["one", "", "two é", "three"]
    monkeypatch.setattr("recon4d.stages.LONGEST", 10)
    (tmp_path / "long").write_text("x" * 100)
    with open(tmp_path / "long") as file, pytest.raises(InputError, match="is no line of JSON"):
        list(lines_of(file))


def test_a_process_may_end_while_a_thread_waits_for_a_line():
    code = """
import sys, time
from recon4d.stages import Inbox, lines_of
Inbox(lines_of(sys.stdin), 1)
time.sleep(0.2)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.wait(60) == 0 and process.stderr.read() == b""


def test_who_writes_nothing_learns_it_too():
    read, write = os.pipe()
    with open(write, "w") as out:
        threading.Timer(0.1, os.close, [read]).start()
        with pytest.raises(InputError, match="next command of the pipe has ended"), while_read(out):
            for _ in range(600):
                time.sleep(0.05)  # a longer one would not be woken
    with pytest.raises(KeyboardInterrupt), while_read(io.StringIO()):
        raise KeyboardInterrupt


def test_figures_are_of_the_last_seconds():
    meter = Meter(span=0.2)
    for _ in range(4):
        time.sleep(0.02)
        meter.add(0.01, dropped=2)
    first = meter.figures()
    assert first["frames"] == 4 and first["dropped"] == 8 and first["ms"] == 10.0 and 5 < first["fps"] <= 50
    time.sleep(0.25)
    meter.add(0.03)
    assert meter.figures()["ms"] == 30.0 and len(meter.times) == 1
    assert resident_mib() > 10


SHOWN = CameraFrame("7.jpg", 12.5, (640, 480), (80.0, 10.0, 400.0), True, {"stages": {"camera": {"fps": 25}}})


def test_a_camera_s_lines_round_trip(tmp_path):
    written = [
        camera_stream.header(Header(tmp_path, 256, 25.0, True)),
        camera_stream.frame(SHOWN),
        camera_stream.end("x"),
    ]
    lines = [json.dumps(record) for record in written]
    found = list(camera_stream.records(iter([lines[0], "", *lines[1:], "never read"]), "pipe", "someone"))
    assert [record for record, _ in found] == written
    assert camera_stream.read_header(*found[0]) == Header(tmp_path, 256, 25.0, True)
    assert camera_stream.read_frame(*found[1]) == SHOWN


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../7.jpg"}, {"name": ""}, {"name": None}, {"time": "now"}, {"time": None}, {"size": [640]},
        {"size": [0, 480]}, {"window": [0, 0, 0]}, {"window": [0, 0]}, {"window": [0, 0, "1"]}, {"face": 1},
    ],
)  # fmt: skip
def test_frames_that_are_none(change):
    with pytest.raises(InputError, match="pipe, line 2 is no frame"):
        camera_stream.read_frame(camera_stream.frame(SHOWN) | change, "pipe, line 2")


def test_headers_that_are_none(tmp_path):
    good = camera_stream.header(Header(tmp_path, 256, 25.0, True))
    for change, message in (
        ({"format": "x"}, "not the header"),
        ({"folder": str(tmp_path / "no")}, "does not exist"),
        ({"folder": 3}, "does not exist"),
        ({"side": True}, "no number of pixels"),
        ({"fps": 0}, "no number of pixels"),
    ):
        with pytest.raises(InputError, match=message):
            camera_stream.read_header(good | change, "pipe, line 1")
    for line in ("[1]", "no", "[" * 3000):
        with pytest.raises(InputError, match=r"pipe, line 1 is not a JSON object .*from someone"):
            list(camera_stream.records([line], "pipe", "someone"))


def test_a_track_stream_may_change_its_header_and_its_cameras(some_track):
    track = replace(some_track, Ks=np.stack([some_track.K, 2 * some_track.K]))
    other = replace(track, shape=track.shape + 1)
    records = [
        track_stream.header(track, folder="/ring"),
        track_stream.frame(track, 0, time=3.5, stages={"camera": {}}),
        track_stream.header(other, folder="/ring"),
        track_stream.frame(other, 1),
        {"end": "the clip ended"},
        {"never": "read"},
    ]
    lines = list(track_stream.read_all(map(json.dumps, records), "pipe"))
    assert [line.track is None for line in lines] == [True, False, True, False, True]
    assert lines[0].said["folder"] == "/ring" and lines[1].said["time"] == 3.5 and lines[4].said["end"]
    first, second = lines[1].track, lines[3].track
    np.testing.assert_allclose(first.Ks[0], track.K)
    np.testing.assert_allclose(second.Ks[0], 2 * track.K)
    np.testing.assert_allclose(second.shape - first.shape, 1, atol=1e-5)
    assert len(list(track_stream.read(map(json.dumps, records), "pipe"))) == 2
    with pytest.raises(InputError, match="has no frame: no camera"):
        list(track_stream.read_all(['{"end": "no camera"}'], "pipe"))


@pytest.fixture
def some_track():
    from recon4d.formats.track import Track

    eye = np.eye(3, dtype=np.float32)
    return Track(
        head_model="open-head",
        image_size=np.array([64, 64]),
        fps=25.0,
        K=np.array([[100, 0, 32], [0, 100, 32], [0, 0, 1]], np.float32),
        names=np.array(["a.jpg", "b.jpg"]),
        valid=np.ones(2, bool),
        shape=np.zeros(4, np.float32),
        expression=np.zeros((2, 3), np.float32),
        R=np.stack([eye] * 2),
        t=np.ones((2, 3), np.float32),
        neck=np.stack([eye] * 2),
        jaw=np.stack([eye] * 2),
        eyes=np.tile(eye, (2, 2, 1, 1)),
        eyelids=np.zeros((2, 2), np.float32),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority is of the whole process")
def test_a_thread_that_stands_back_leaves_the_others_as_they_are():
    before, found = os.getpriority(os.PRIO_PROCESS, 0), []

    def work():
        stand_back(3)
        found.append(os.getpriority(os.PRIO_PROCESS, 0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [min(before + 3, 19)] and os.getpriority(os.PRIO_PROCESS, 0) == before


def test_a_thread_that_works_alone_does_all_itself():
    who = []

    def work():
        threads.work_alone()
        threads.share(lambda _: who.append(threading.current_thread()), 50)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert who == [thread] * 50
