"""A page in the browser that shows rendered pictures: its server, the browsers' cameras, and what to send when.

Pictures are rendered here and sent as JPEG, small while something moves and full once it is still. Any number of
browsers may look on, each with a camera of its own. What a browser says is not trusted: pages of other origins are
refused, cameras and numbers are clamped, and nothing is uploaded.
"""

import contextlib
import functools
import logging
import math
import sys
import time
import warnings
import webbrowser
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import roma
import torch
import viser
import websockets.asyncio.server

from recon4d.addresses import check_address, page_of, same_site
from recon4d.cameras import Camera

BUDGET = 1 / 25  # seconds for a picture while something moves
STILL_AFTER = 0.2  # seconds without a change until the picture is rendered at full size
SMALL_HEIGHT, FULL_HEIGHT = 160, 1080  # of pictures on the page
WIDEST = 4.0  # width over height of a window, and the other way round
FARTHEST = 1e6  # metres from the origin at which a browser's camera may be
MOST_MESSAGE = 1 << 20  # bytes of a browser's message


@contextlib.contextmanager
def serving(
    host: str,
    port: int,
    label: str,
    announce: Callable[[str], None],
    log: Callable[[str], None],
    open_browser: bool = False,
) -> Iterator[viser.ViserServer]:
    """A viser server while the block runs; Ctrl-C ends the block quietly.

    Args:
        port: 0 takes any free one.
        label: the page's title.
        announce: gets the page's address when it is up. log: gets "stopped" after Ctrl-C.

    Raises:
        InputError: a taken port, or a host that is not this machine's.
    """
    check_address(host, port)
    # A browser may leave while its picture is made.
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # a broken message ends its own connection only
    with contextlib.redirect_stdout(sys.stderr), _guarded(host):  # viser greets and says goodbye on stdout
        server = viser.ViserServer(host, port, label=label, verbose=False)
    server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
    page = page_of(host, server.get_port())
    announce(page)
    try:
        if open_browser:
            webbrowser.open(page)
        yield server
    except KeyboardInterrupt:
        log("stopped")
    finally:
        with contextlib.redirect_stdout(sys.stderr):
            server.stop()


@contextlib.contextmanager
def _guarded(host: str) -> Iterator[None]:
    """While a server starts: let it refuse foreign pages, large messages and uploads, for which viser has no option."""
    from viser._gui_api import GuiApi

    serve = websockets.asyncio.server.serve

    def guarded(handler: Any, *args: Any, process_request: Any = None, **options: Any) -> Any:
        def checked(connection: Any, request: Any) -> Any:
            if not same_site(request.headers.get("Host"), request.headers.get("Origin"), host):
                return connection.respond(HTTPStatus.FORBIDDEN, "this viewer answers its own page only\n")
            return process_request(connection, request) if process_request is not None else None

        return serve(handler, *args, process_request=checked, **{**options, "max_size": MOST_MESSAGE})

    GuiApi._handle_file_transfer_start = lambda self, client_id, message: None  # type: ignore[method-assign]
    if not hasattr(GuiApi, "_recon4d_updates"):
        GuiApi._recon4d_updates = GuiApi._handle_gui_updates  # type: ignore[attr-defined]

    async def updated(gui: Any, client_id: Any, message: Any) -> None:
        if set(message.updates) == {"value"} and _plausible(message.updates["value"]):
            with contextlib.suppress(TypeError, ValueError, AssertionError, OverflowError):
                await gui._recon4d_updates(client_id, message)

    GuiApi._handle_gui_updates = updated  # type: ignore[method-assign, assignment]
    websockets.asyncio.server.serve = functools.wraps(serve)(guarded)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        websockets.asyncio.server.serve = serve  # type: ignore[misc]


def _plausible(value: Any) -> bool:
    """Whether a control may get a value: a flag, a finite number, a short text, or a few of them."""
    if isinstance(value, list | tuple):
        return len(value) <= 16 and all(_plausible(item) and not isinstance(item, list | tuple) for item in value)
    if isinstance(value, str):
        return len(value) <= 1000
    return isinstance(value, bool | int | float) and abs(value) < 1e9


def number(value: Any, low: float, high: float) -> float:
    """What a control says, within bounds; `low` where it is no number."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return low
    return min(max(found, low), high) if math.isfinite(found) else low


def window(client: viser.ClientHandle) -> tuple[float, int]:
    """Width over height of a browser's window, within bounds, and its height in pixels, at most `FULL_HEIGHT`."""
    width, height = number(client.camera.image_width, 1, 1e5), number(client.camera.image_height, 1, 1e5)
    return number(width / height, 1 / WIDEST, WIDEST), int(number(height, 2, FULL_HEIGHT))


def camera_of(client: viser.ClientHandle, height: int) -> Camera | None:
    """A browser's camera for a picture of some height, with its window's proportions; None for one that is none."""
    eye = client.camera
    try:
        place = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in (eye.wxyz, eye.position)])
    except (TypeError, ValueError):  # text, or lists of unequal length
        return None
    if place.shape != (7,) or not np.isfinite(place).all():
        return None
    if np.abs(place[4:]).max() > FARTHEST or np.linalg.norm(place[:4]) < 1e-3:
        return None
    aspect, _ = window(client)
    return posed(place[:4], place[4:], number(eye.fov, 0.02, 3.0), max(2, round(height * aspect) // 2 * 2), height)


def posed(wxyz: np.ndarray, position: np.ndarray, fov: float, width: int, height: int) -> Camera:
    """A camera from its pose in the world (OpenCV axes) and its vertical field of view in radians."""
    rotation = roma.unitquat_to_rotmat(
        roma.quat_normalize(roma.quat_wxyz_to_xyzw(torch.as_tensor(wxyz, dtype=torch.float64)))
    )
    world_to_camera = torch.eye(4, dtype=torch.float64)
    world_to_camera[:3, :3] = rotation.T
    world_to_camera[:3, 3] = -rotation.T @ torch.as_tensor(position, dtype=torch.float64)
    focal = height / 2 / math.tan(fov / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return Camera(K.float(), world_to_camera.float(), width, height)


@dataclass
class Shown:
    """What one browser shows: the scene of its picture, when that changed, its height while things move."""

    scene: tuple[Hashable, ...] | None = None
    height: int = 256
    changed: float = 0.0
    full: bool = False  # whether the last picture was at full size


def show(
    client: viser.ClientHandle,
    shown: Shown,
    scene: Hashable,
    camera_at: Callable[[int], Camera | None],
    draw: Callable[[Camera], np.ndarray],
    clients: int = 1,
) -> bool:
    """Send a browser the picture of a scene, unless it has it: a small one while something moves, then a full one.

    Args:
        scene: what is to be seen, whatever the camera; a change of it asks for a new picture.
        camera_at: the browser's camera for a picture of some height, None while it has none.
        draw: the picture (H, W, 3) uint8 RGB of a camera.
        clients: how many browsers share the time.

    Returns:
        Whether one was sent.
    """
    _, full = window(client)
    view = camera_at(full)
    if view is None:
        return False
    seen = (scene, view.width, view.height, *view.world_to_camera.flatten().tolist(), float(view.K[1, 1]))
    now = time.monotonic()
    if seen != shown.scene:
        shown.scene, shown.changed, shown.full = seen, now, False
        height = min(shown.height, full)
        view = view.resized(max(2, round(view.width * height / full)), height)
    elif shown.full or now - shown.changed < STILL_AFTER:
        return False
    else:
        shown.full = True
    image = draw(view)
    if not shown.full:
        shown.height = next_height(height, time.monotonic() - now, BUDGET / clients, full)
    client.scene.set_background_image(image, format="jpeg", jpeg_quality=95 if shown.full else 85)
    client.flush()
    return True


def next_height(height: int, seconds: float, budget: float, full: int) -> int:
    """The height of the next picture while things move, so that it takes `budget` seconds where this took `seconds`.

    Work grows with the number of pixels. Between `SMALL_HEIGHT` and `full`.
    """
    wanted = height * (budget / max(seconds, 1e-4)) ** 0.5
    return int(np.clip(0.5 * (height + wanted), min(SMALL_HEIGHT, full), full))
