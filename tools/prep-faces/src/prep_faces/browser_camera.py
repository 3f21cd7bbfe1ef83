"""The camera of whoever opens a page: the browser asks for it and sends its frames to this machine, as JPEG.

One tab lends its camera at a time, the one that was opened last. What a browser sends is not trusted: other pages are
refused, messages and pictures have a most.
"""

import contextlib
import json
import logging
import struct
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from http import HTTPStatus
from importlib import resources
from typing import Any

import cv2
import numpy as np
from recon4d.addresses import check_address, page_of, same_site
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from prep_faces.sources import Source

FRAMES = "/frames"  # where the page sends them
MOST_BYTES, MOST_SIDE = 4 << 20, 4096  # of a picture
STALE = 5.0  # seconds between a browser's clock and ours, above which it is not believed
TAKEN, OVER = 4001, 4002  # why a tab is let go: another one lends now; this command has ended


@contextlib.contextmanager
def from_browser(host: str, port: int, fps: float, open_browser: bool, log: Callable[[str], None]) -> Iterator[Source]:
    """The page is served for the block; its pictures come once someone has opened it and said yes.

    Raises InputError for an address that cannot be used.
    """
    check_address(host, port)
    html = resources.files("prep_faces").joinpath("page/camera.html").read_text().replace("FPS", f"{fps:g}")
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # a broken message ends its own connection only
    tabs = _Tabs(log)

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        if not same_site(request.headers.get("Host"), request.headers.get("Origin"), host):
            return connection.respond(HTTPStatus.FORBIDDEN, "this page answers itself only\n")
        if request.path == FRAMES:
            return None
        found = request.path.split("?")[0] == "/"
        body = html.encode() if found else b"not here\n"
        kind = "text/html; charset=utf-8" if found else "text/plain"
        headers = Headers({"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"})
        return Response(200 if found else 404, "OK" if found else "Not Found", headers, body)

    with serve(tabs.lend, host, port, process_request=answer, max_size=MOST_BYTES, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
        thread.start()
        page = page_of(host, server.socket.getsockname()[1])
        log(f"lend a camera at {page}")
        try:
            if open_browser:
                webbrowser.open(page)
            yield Source(fps, tabs.shots(), "the browser ended")
        finally:
            tabs.let_go(OVER, "prep-faces camera has ended")


class _Tabs:
    """The tab that lends its camera, and its newest picture."""

    def __init__(self, log: Callable[[str], None]):
        self.log = log
        self.changed = threading.Condition()
        self.tab: ServerConnection | None = None
        self.newest: tuple[float, bytes] | None = None

    def lend(self, tab: ServerConnection) -> None:
        """A tab's connection, until it closes."""
        self.let_go(TAKEN, "another tab lends its camera now")
        self.tab = tab
        self.log("a browser lends its camera")
        try:
            for message in tab:
                if isinstance(message, bytes):
                    with self.changed:
                        self.newest = (_time(message), message[8:])
                        self.changed.notify()
                    tab.send("next")
                else:
                    self.log(f"the browser: {_said(message)}")
        except (ConnectionClosed, OSError):
            pass
        if self.tab is tab:
            self.tab = None
            self.log("the tab is closed; open the page again to go on")

    def let_go(self, code: int, why: str) -> None:
        """Close the tab that lends."""
        tab, self.tab = self.tab, None
        if tab is not None:
            with contextlib.suppress(ConnectionClosed, OSError):
                tab.close(code, why)

    def shots(self) -> Iterator[tuple[float, np.ndarray]]:
        """Pictures as they come, the newest first; those that are none are passed over."""
        while True:
            with self.changed:
                while self.newest is None:
                    self.changed.wait(0.5)
                (taken, data), self.newest = self.newest, None
            image = _decoded(data)
            if image is not None:
                yield taken, image


def _decoded(data: bytes) -> np.ndarray | None:
    """RGB uint8 (H, W, 3) of a JPEG; None for what is none, or is too large."""
    size = _jpeg_size(data)
    if size is None or not 16 <= min(size) <= max(size) <= MOST_SIDE:
        return None
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return image if isinstance(image, np.ndarray) else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as a JPEG's frame header says (ITU T.81, B.2.2), before anything is decoded."""
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return None


def _time(message: bytes) -> float:
    """When the browser had a picture, seconds since 1970; now where it does not say, or its clock is another one."""
    now = time.time()
    if len(message) < 8:
        return now
    said: float = struct.unpack("<d", message[:8])[0] / 1e3
    return said if now - STALE < said <= now else now


def _said(message: str) -> str:
    """What a page says, as one short line."""
    try:
        text = json.loads(message)["said"]
    except (ValueError, KeyError, TypeError):
        text = "something that is not understood"
    return " ".join(str(text).split())[:200]
