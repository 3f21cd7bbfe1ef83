"""A reconstructed scene in the browser: all browsers share the moment, each has a camera of its own.

A camera rides along the recorded path until its browser says otherwise.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import viser
from recon4d import viewer
from recon4d.cameras import Camera

from flux4d import pictures, scenes
from flux4d.gaussians import MovingGaussians
from flux4d.rendering import render
from flux4d.timed_cameras import TimedCameras, at_times, timed_cameras

TICK = 0.01  # seconds to wait where nothing changes
FASTEST = 2.0  # scene seconds per second


@dataclass(frozen=True)
class Controls:
    """Handles of the page's controls."""

    time: viser.GuiSliderHandle[Any]
    play: viser.GuiCheckboxHandle
    speed: viser.GuiSliderHandle[Any]
    ride: viser.GuiCheckboxHandle
    flow: viser.GuiCheckboxHandle


@torch.no_grad()
def picture(gaussians: MovingGaussians, camera: Camera, time: float, flow: bool) -> np.ndarray:
    """What a camera sees at a time, RGB uint8 (H, W, 3); with `flow` the motion on the image."""
    here = timed_cameras(camera.world_to_camera[None], camera.K, torch.tensor([time]), camera.width, camera.height)
    shown = render(gaussians, here, flow=flow)
    return pictures.flow_colours(shown.flow[0].numpy()) if flow else pictures.bytes_of(shown.colour[0])


def vertical_fov(path: TimedCameras) -> float:
    """Of the recorded camera, radians."""
    return 2 * float(np.arctan(path.batch.height / 2 / float(path.batch.K[0, 1, 1])))


def riding_camera(path: TimedCameras, time: float, client: viser.ClientHandle, height: int) -> Camera:
    """The recorded camera at a time, for a picture of some height and a browser's proportions; its vertical field of
    view stays."""
    aspect, _ = viewer.window(client)
    width, focal = max(2, round(height * aspect) // 2 * 2), height / 2 / math.tan(vertical_fov(path) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return Camera(K, at_times(path, torch.tensor([time])).batch.world_to_camera[0], width, height)


def makes_sense(client: viser.ClientHandle) -> bool:
    """Whether what a browser says of its camera is numbers, and none of them out of this world."""
    eye = client.camera
    try:
        said = np.array([*eye.wxyz, *eye.position, *eye.look_at, *eye.up_direction, eye.fov], np.float64)
    except (TypeError, ValueError):
        return False
    return said.shape == (14,) and bool(np.abs(said).max() <= viewer.FARTHEST)  # NaN is not


def ride_along(client: viser.ClientHandle, path: TimedCameras, time: float) -> None:
    """Put a browser's camera where the recorded one was at a time, so that it goes on from there when it is let go."""
    pose = at_times(path, torch.tensor([time])).one(0).camera_to_world
    position, forward = pose[:3, 3].numpy(), pose[:3, 2].numpy()
    with client.atomic():
        client.camera.position = position
        client.camera.look_at = position + 10 * forward
        client.camera.up_direction = -pose[:3, 1].numpy()
        client.camera.fov = vertical_fov(path)


def serve(
    scene_dir: str | Path,
    host: str = "localhost",
    port: int = 8080,
    announce: Callable[[str], None] = print,
    log: Callable[[str], None] = print,
) -> None:
    """Show a scene of `scenes.reconstruct` or `actors.edit` until Ctrl-C.

    Args:
        port: 0 takes any free one.
        announce: gets the page's address when it is up.

    Raises:
        InputError: a folder without a scene, a taken port, or a host that is not this machine's.
    """
    gaussians, path = scenes.read(scene_dir)
    with viewer.serving(host, port, f"flux4d: {Path(scene_dir).name}", announce, log) as server:
        server.scene.set_up_direction("+z")
        first, last = path.times[[0, -1]].tolist()
        gui = server.gui
        controls = Controls(
            gui.add_slider("Time", first, max(last, first + 0.01), 0.01, first),
            gui.add_checkbox("Play", False),
            gui.add_slider("Speed", 0.1, FASTEST, 0.1, 0.5),
            gui.add_checkbox("Ride along", True, hint="The camera follows its recorded path."),
            gui.add_checkbox("Motion", False, hint="Colours show where things go on the image."),
        )
        loop(server, controls, gaussians, path)


def loop(server: viser.ViserServer, controls: Controls, gaussians: MovingGaussians, path: TimedCameras) -> None:
    """Until interrupted: move on in time, and send each browser the picture that it lacks."""
    shown: dict[int, viewer.Shown] = {}
    before = time.monotonic()
    first, last = path.times[[0, -1]].tolist()
    while True:
        now, moment = time.monotonic(), viewer.number(controls.time.value, first, last)
        if controls.play.value is True:
            moment += (now - before) * viewer.number(controls.speed.value, 0.1, FASTEST)
            moment = moment if moment < last else first
            controls.time.value = moment  # type: ignore[misc]
        before = now
        clients = {key: client for key, client in server.get_clients().items() if makes_sense(client)}
        shown = {key: shown.get(key, viewer.Shown()) for key in clients}
        riding, flow = controls.ride.value is True, controls.flow.value is True
        draw = partial(picture, gaussians, time=moment, flow=flow)
        sent = False
        for key, client in clients.items():
            camera_at = partial(riding_camera, path, moment, client) if riding else partial(viewer.camera_of, client)
            new = viewer.show(client, shown[key], (moment, flow, riding), camera_at, draw, len(clients))
            if new and riding and not shown[key].full:
                ride_along(client, path, moment)
            sent |= new
        if not sent:
            time.sleep(TICK)
