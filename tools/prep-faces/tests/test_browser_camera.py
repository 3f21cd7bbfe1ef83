"""The browser's camera: what a tab sends, what it may not, and a real browser with a camera that is a file."""

import contextlib
import json
import struct
import threading
import time
import urllib.request

import browser
import cv2
import numpy as np
import pytest
import websockets
from prep_faces.browser_camera import OVER, TAKEN, from_browser
from recon4d.images import encode
from websockets.sync.client import connect


@pytest.fixture
def served():
    """A page, what is said about it, and the pictures that come."""
    said, pictures, times = [], [], []
    with from_browser("127.0.0.1", 0, 25.0, False, said.append) as source:

        def take():
            for taken, image in source.shots:
                times.append(taken)
                pictures.append(image)

        threading.Thread(target=take, daemon=True).start()
        page = said[0].split()[-1]
        yield page, said, pictures, times


def lent(page, **options):
    return connect(page.replace("http", "ws") + "/frames", max_size=None, **options)


def message(image, taken=None) -> bytes:
    return struct.pack("<d", 1e3 * (time.time() if taken is None else taken)) + encode(".jpg", image)


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


GREY = np.full((48, 64, 3), 90, np.uint8)


def test_pictures_come_with_the_browser_s_time(served):
    page, said, pictures, times = served
    with lent(page, origin=page) as tab:
        for taken, wanted in (
            (None, None),
            (time.time() - 0.5, 0.5),
            (time.time() + 900, 0.0),
            (time.time() - 900, 0.0),
        ):
            count = len(pictures)
            tab.send(message(GREY, taken))
            assert tab.recv(timeout=10) == "next"
            until(lambda count=count: len(pictures) > count)
            if wanted is not None:
                assert time.time() - times[-1] == pytest.approx(wanted, abs=0.45)
        tab.send(json.dumps({"said": "the camera was refused"}))
        until(lambda: any("the browser: the camera was refused" in line for line in said))
    until(lambda: "the tab is closed; open the page again to go on" in said)
    assert pictures[0].shape == (48, 64, 3) and abs(int(pictures[0].mean()) - 90) <= 1


def test_what_is_no_picture_is_passed_over(served):
    page, said, pictures, _ = served
    huge = bytearray(message(np.zeros((64, 64, 3), np.uint8)))
    frame = huge.index(b"\xff\xc0")
    huge[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    with lent(page) as tab:
        for bad in (
            b"",
            b"12345678",
            b"12345678" + b"\xff\xd8\xff\xc0",
            bytes(huge),
            message(GREY)[:60],
            b"\xff" * 5000,
        ):
            tab.send(bad)
            assert tab.recv(timeout=10) == "next"
        for text in ("no", "[]", '{"said": ' + json.dumps("x" * 10_000) + "}"):
            tab.send(text)
        tab.send(message(GREY))
        until(lambda: len(pictures) == 1)
    assert max(map(len, said)) < 300
    with pytest.raises(websockets.ConnectionClosed), lent(page) as tab:
        tab.send(b"x" * (5 << 20))
        while True:
            tab.recv(timeout=10)
    with lent(page) as tab:
        tab.send(message(GREY))
        until(lambda: len(pictures) == 2)


def test_the_newest_tab_lends(served):
    page, _, pictures, _ = served
    with lent(page) as first, lent(page) as second:
        with pytest.raises(websockets.ConnectionClosed) as closed:
            first.recv(timeout=10)
        assert closed.value.rcvd.code == TAKEN and "another tab" in closed.value.rcvd.reason
        second.send(message(GREY))
        until(lambda: len(pictures) == 1)


def test_pages_of_others_and_other_addresses_are_refused(served):
    page, _, _, _ = served
    for origin in ("http://elsewhere.example", "null"):
        with pytest.raises(websockets.InvalidStatus), lent(page, origin=origin):
            pass
    assert b"getUserMedia" in urllib.request.urlopen(page).read()
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(page + "/etc/passwd")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(page, headers={"Host": "evil.example"}))


def test_a_tab_is_told_when_it_is_over():
    said = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(from_browser("127.0.0.1", 0, 25.0, False, said.append))
        tab = lent(said[0].split()[-1])
        until(lambda: "a browser lends its camera" in said)
    with pytest.raises(websockets.ConnectionClosed) as closed:
        tab.recv(timeout=10)
    assert closed.value.rcvd.code == OVER


def motion_jpeg(path, portrait) -> None:
    """A film for Chromium's fake camera: pictures one after another."""
    wide = np.full((240, 320, 3), 120, np.uint8)
    with open(path, "wb") as file:
        for i in range(20):
            image = wide.copy()
            image[:, 40 + 2 * i : 280 + 2 * i] = cv2.resize(portrait, (240, 240), interpolation=cv2.INTER_AREA)
            file.write(encode(".jpg", image))


def test_a_real_browser_lends_its_camera(served, portrait, tmp_path):
    from recon4d import landmarker

    page, said, pictures, times = served
    motion_jpeg(tmp_path / "film.mjpeg", portrait)
    switches = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={tmp_path / 'film.mjpeg'}",
    )
    with browser.open_page(700, 720, switches) as tab:
        tab.goto(page)
        until(lambda: len(pictures) > 15)
        assert "is lent" in tab.locator("#state").text_content()
        until(lambda: "frames a second" in tab.locator("#figures").text_content())
        tab.screenshot(path=tmp_path / "lent.png")
        assert cv2.imread(str(tmp_path / "lent.png"))[200:400, 250:450].std() > 20  # it shows the film
        assert all(len(landmarker.find(picture)) == 1 for picture in pictures[5:15:3])
        assert max(time.time() - taken for taken in times[-1:]) < 5
        # A second tab takes over, the first says so.
        other = tab.context.browser.new_page()
        other.goto(page)
        until(lambda: "Another tab lends" in tab.locator("#state").text_content())
        count = len(pictures)
        until(lambda: len(pictures) > count + 3)
        other.evaluate("stream.getVideoTracks()[0].dispatchEvent(new Event('ended'))")  # as when it is unplugged
        until(lambda: any("the camera is gone" in line for line in said))
        assert "plug it in" in other.locator("#state").text_content()
        other.close()
    until(lambda: said[-1].startswith("the tab is closed"))


def test_a_real_browser_refuses(served):
    page, said, _, _ = served
    with browser.open_page(
        700, 720, ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream=deny")
    ) as tab:
        tab.goto(page)
        until(lambda: any("the camera was refused" in line for line in said))
        assert "allow it beside the address" in tab.locator("#state").text_content()
        assert tab.locator("#start").is_visible()
