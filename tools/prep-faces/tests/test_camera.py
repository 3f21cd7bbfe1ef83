"""A camera's frames: the window that follows a face, the ring that forgets, the lines, and how it ends."""

import contextlib
import io
import json
import os
import signal
import threading
import time

import cv2
import forks
import numpy as np
import pytest
from prep_faces import camera, ring
from prep_faces.camera import Source, window_of
from recon4d import InputError, landmarker
from recon4d.formats import camera_stream
from recon4d.formats.landmarks import read_landmarks
from recon4d.video import write_mp4
from skimage.data import astronaut

SIDE, FRAMES = 240, 14


def shifted(i: int) -> np.ndarray:
    """An astronaut who moves a little."""
    part = astronaut()[0:320, 60:380]
    move = np.array([[0.75, 0, 3 * i], [0, 0.75, i]])
    return cv2.warpAffine(part, move, (SIDE + 80, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "astronaut.mp4"
    write_mp4(path, (shifted(i) for i in range(FRAMES)), 25.0)
    return path


def lines_of(out: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_the_window_is_still_while_the_face_is_in_its_middle():
    box = np.array([300, 150, 400, 270])
    first = window_of(None, box, 640, 480)
    left, top, side = first
    assert side == int(camera.ROOM * 120) and (left + side / 2, top + side / 2) == pytest.approx((350, 210), abs=1)
    assert window_of(first, box + 20, 640, 480) == first
    moved = window_of(first, box + 60, 640, 480)
    assert moved != first and moved[2] == side
    grown = np.array([270, 110, 430, 310])
    assert window_of(first, grown, 640, 480)[2] > side


def test_the_window_stays_in_the_picture():
    rng = np.random.default_rng(0)
    window = None
    for _ in range(300):
        size = rng.integers(40, 700, 2)
        corner, extent = rng.uniform(-100, 700, 2), rng.uniform(1, 500, 2)
        box = None if rng.random() < 0.2 else np.concatenate([corner, corner + extent])
        window = window_of(window, box, int(size[0]), int(size[1]))
        left, top, side = window
        assert left >= 0 and top >= 0 and side >= 1 and left + side <= size[0] and top + side <= size[1]


def test_a_clip_becomes_lines_and_files(clip, tmp_path):
    out, said = io.StringIO(), []
    camera.stream(str(clip), tmp_path / "ring", size=128, leave=True, out=out, log=said.append)
    header, *shown, end = lines_of(out)
    assert camera_stream.read_header(header, "x") == camera_stream.Header(tmp_path / "ring", 128, 25.0, False)
    assert end == {"end": "astronaut.mp4 ended"} and "has ended" in said[-1]
    assert [frame["name"] for frame in shown] == [f"{i:08d}.jpg" for i in range(FRAMES)]
    for record in (shown[0], shown[-1]):
        frame = camera_stream.read_frame(record, "x")
        assert frame.face and frame.size == (SIDE + 80, SIDE)
        left, top, side = frame.window
        stem = frame.name[:-4]
        picture = cv2.imread(str(tmp_path / "ring/images" / frame.name))
        matte = cv2.imread(str(tmp_path / "ring/mattes" / f"{stem}.png"), cv2.IMREAD_GRAYSCALE)
        assert picture.shape == (128, 128, 3) and matte.shape == (128, 128)
        points = read_landmarks(tmp_path / "ring/landmarks" / f"{stem}.npy")[0]
        # Where the landmarker finds the face in the whole picture.
        (found,) = landmarker.find(shifted(int(stem)))
        placed = points[:, :2] * side / 128 + [left, top]
        assert np.abs(placed - found.points[:, :2]).mean() < 3
        x, y = np.rint(points[[1, 10, 152], :2]).astype(int).T  # nose, forehead, chin
        assert (matte[y, x] > 200).all() and matte[:8].mean() < 60 and matte[:, -6:].mean() < 60
        assert record["stages"]["camera"]["dropped"] == 0
    seconds = [frame["time"] for frame in shown]
    np.testing.assert_allclose(np.diff(seconds), 0.04, atol=1e-3)


def test_a_ring_forgets_and_is_gone_at_the_end(clip, tmp_path):
    most = []

    class Watched(io.StringIO):
        def flush(self):
            most.append(len(list((tmp_path / "ring").rglob("*.*"))))

    camera.stream(str(clip), tmp_path / "ring", size=64, keep=8, out=Watched(), log=lambda _: None)
    assert max(most) == 3 * 8 and not (tmp_path / "ring").exists()


def test_rings_of_the_dead_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(ring, "MEMORY", tmp_path)
    for name, owner in (("dead", 2**22 + 1), ("mine", os.getpid())):
        (tmp_path / f"{ring.PREFIX}{name}").mkdir()
        (tmp_path / f"{ring.PREFIX}{name}" / ring.OWNER).write_text(str(owner))
    with ring.opened(None, 8) as files:
        assert files.folder.parent == tmp_path
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {f"{ring.PREFIX}mine", files.folder.name}
    assert {path.name for path in tmp_path.iterdir()} == {f"{ring.PREFIX}mine"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/picture.png").write_text("")
    for place, message in ((tmp_path / "mine", "holds something else"), (tmp_path / f"{ring.PREFIX}mine", "in use")):
        with pytest.raises(InputError, match=message), ring.opened(place, 8):
            pass
    assert (tmp_path / "mine/picture.png").exists()


def test_frames_without_a_face(tmp_path):
    pictures = [np.full((60, 100, 3), 90, np.uint8), shifted(0), np.full((60, 100, 3), 90, np.uint8)]
    with ring.opened(tmp_path / "ring", 8) as files:
        found = list(camera.frames(iter([((i / 25, p), 0) for i, p in enumerate(pictures)]), files, 64))
        assert [frame.face for frame in found] == [False, True, False]
        assert found[0].window == (20, 0, 60) and found[2].size == (100, 60)
        files_of = [len(list((tmp_path / "ring" / kind).iterdir())) for kind in ("images", "mattes", "landmarks")]
        assert files_of == [3, 1, 1]


def test_what_comes_too_fast_is_dropped_and_counted(tmp_path, monkeypatch):
    """A camera twice as fast as the frames are worked on."""

    def shots():
        for i in range(40):
            time.sleep(0.005)
            yield i / 25, np.full((60, 60, 3), i, np.uint8)

    monkeypatch.setattr(landmarker, "follow", lambda *_: time.sleep(0.03) or None)
    out = io.StringIO()
    monkeypatch.setattr(camera, "opened", lambda *_: contextlib.nullcontext(Source(25.0, shots(), "over")))
    camera.stream("camera", tmp_path / "ring", size=64, leave=True, out=out, log=lambda _: None)
    _, *shown, end = lines_of(out)
    dropped = shown[-1]["stages"]["camera"]["dropped"]
    assert end == {"end": "over"} and dropped > 10 and len(shown) + dropped == 40
    last = cv2.imread(str(tmp_path / "ring/images" / shown[-1]["name"]))
    assert abs(int(last.mean()) - 39) <= 1  # the last is never dropped


@pytest.mark.parametrize(
    ("source", "message"),
    [("no.mp4", "does not exist"), ("/dev/video99", "cannot be opened"), ("rtsp://127.0.0.1:9/x", "cannot be opened")],
)
def test_cameras_that_are_none(source, message, tmp_path):
    out = io.StringIO()
    with pytest.raises(InputError, match=message):
        camera.stream(source, tmp_path / "ring", out=out, log=lambda _: None)
    assert not (tmp_path / "ring").exists() and out.getvalue() == ""


def test_it_ends_when_nobody_reads_and_when_it_is_told_to(clip, tmp_path):
    read, write = os.pipe()
    ended = []

    def run():
        with open(write, "w") as out:
            try:
                camera.stream(str(clip), tmp_path / "a", loop=True, size=64, out=out, log=lambda _: None)
            except InputError as error:
                ended.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    with open(read) as lines:
        assert "format" in json.loads(lines.readline())
    thread.join(30)
    assert ended == ["the next command of the pipe has ended, and this one with it"] and not (tmp_path / "a").exists()

    # With a word that all is well it is no error.
    read, write = os.pipe()
    said: list[str] = []
    lines, out = open(read), open(write, "w")  # noqa: SIM115

    def close_soon():
        lines.readline()
        (tmp_path / "c" / camera_stream.OVER).write_text("stopped")
        lines.close()

    thread = threading.Thread(target=close_soon)
    thread.start()
    camera.stream(str(clip), tmp_path / "c", loop=True, size=64, out=out, log=said.append)
    thread.join(30)
    with contextlib.suppress(BrokenPipeError):
        out.close()
    assert said == ["the others have ended; prep-faces camera has ended"]

    where = ["camera", clip, "--realtime", "--loop", "--size", 64, "--ring", tmp_path / "b"]
    process = forks.start("prep-faces", *where)
    until = time.monotonic() + 30
    while process.said()[0].count("\n") < 3 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(30)
    assert json.loads(out.splitlines()[-1]) == {"end": "the camera was stopped"} and "Traceback" not in err
    assert not (tmp_path / "b").exists()
