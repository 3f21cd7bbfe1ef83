"""A reconstructed scene in the browser: controls there, pictures rendered here and sent as JPEG.

All browsers share the moment; each has a camera of its own, which begins on the recorded path.
"""

import contextlib
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch
import viser
from recon4d.cli import check_address

from flux4d import pictures, scenes
from flux4d.gaussians import MovingGaussians
from flux4d.rendering import render
from flux4d.timed_cameras import TimedCameras, at_times, timed_cameras

HEIGHT = 360  # of pictures while something moves
STILL_HEIGHT = 720
STILL_AFTER = 0.3  # seconds
TICK = 0.01


@dataclass(frozen=True)
class Controls:
    """Handles of the page's controls."""

    time: viser.GuiSliderHandle
    play: viser.GuiCheckboxHandle
    speed: viser.GuiSliderHandle
    ride: viser.GuiCheckboxHandle
    flow: viser.GuiCheckboxHandle


@dataclass
class Shown:
    """What one browser shows: time, camera and mode of its picture, when it changed, and whether at full size."""

    state: tuple | None = None
    changed: float = 0.0
    full: bool = False


def free_camera(
    position: np.ndarray, wxyz: np.ndarray, fov: float, width: int, height: int, time: float
) -> TimedCameras:
    """One camera from a camera-to-world rotation and position; `fov` is vertical, radians."""
    pose = torch.eye(4)
    w, x, y, z = (float(value) for value in wxyz)
    pose[:3, :3] = roma.unitquat_to_rotmat(torch.nn.functional.normalize(torch.tensor([x, y, z, w]), dim=0))
    pose[:3, 3] = torch.from_numpy(np.asarray(position, np.float32))
    focal = 0.5 * height / np.tan(fov / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float32)
    return timed_cameras(torch.linalg.inv(pose)[None], K, torch.tensor([time]), width, height)


@torch.no_grad()
def picture(gaussians: MovingGaussians, camera: TimedCameras, flow: bool) -> np.ndarray:
    """What a camera sees, RGB uint8 (H, W, 3); with `flow` the motion on the image."""
    shown = render(gaussians, camera, flow=flow)
    return pictures.flow_colours(shown.flow[0].numpy()) if flow else pictures.bytes_of(shown.colour[0])


def vertical_fov(path: TimedCameras) -> float:
    """Of the recorded camera, radians."""
    return 2 * float(np.arctan(path.batch.height / 2 / float(path.batch.K[0, 1, 1])))


def ride_along(client: viser.ClientHandle, path: TimedCameras, time: float) -> None:
    """Put a browser's camera where the recorded one was at a time."""
    pose = at_times(path, torch.tensor([time])).one(0).camera_to_world
    position, forward = pose[:3, 3].numpy(), pose[:3, 2].numpy()
    with client.atomic():
        client.camera.position = position
        client.camera.look_at = position + 10 * forward
        client.camera.up_direction = -pose[:3, 1].numpy()
        client.camera.fov = vertical_fov(path)


def serve(
    scene_dir: Path,
    host: str = "localhost",
    port: int = 8080,
    announce: Callable[[str], None] = print,
    log: Callable[[str], None] = print,
) -> None:
    """Show a scene of `reconstruct` or `edit` until Ctrl-C; `announce` gets the page's address when it is up.

    Raises InputError for a folder without a scene, a taken port, or a host that is not this machine's.
    """
    gaussians, path = scenes.read(scene_dir)
    check_address(host, port)
    with contextlib.redirect_stdout(sys.stderr):  # viser greets and says goodbye on stdout
        server = viser.ViserServer(host, port, label=f"flux4d: {scene_dir.name}", verbose=False)
    # A browser may leave while its picture is made.
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
    server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
    server.scene.set_up_direction("+z")
    first, last = float(path.times[0]), float(path.times[-1])
    gui = server.gui
    controls = Controls(
        gui.add_slider("Time", first, max(last, first + 0.01), 0.01, first),
        gui.add_checkbox("Play", False),
        gui.add_slider("Speed", 0.1, 2.0, 0.1, 0.5),
        gui.add_checkbox("Ride along", True, hint="The camera follows its recorded path."),
        gui.add_checkbox("Motion", False, hint="Colours show where things go on the image."),
    )
    announce(f"http://{'localhost' if host in ('0.0.0.0', '::') else host}:{server.get_port()}")
    try:
        loop(server, controls, gaussians, path)
    except KeyboardInterrupt:
        log("stopped")
    finally:
        with contextlib.redirect_stdout(sys.stderr):
            server.stop()


def loop(server: viser.ViserServer, controls: Controls, gaussians: MovingGaussians, path: TimedCameras) -> None:
    """Until interrupted: move on in time, and send each browser the picture that it lacks."""
    shown: dict[int, Shown] = {}
    before = time.monotonic()
    first, last = path.times[[0, -1]].tolist()
    while True:
        now = time.monotonic()
        if controls.play.value:
            moment = controls.time.value + (now - before) * controls.speed.value
            controls.time.value = moment if moment < last else first  # type: ignore[misc]
        before = now
        clients = server.get_clients()
        shown = {key: shown.get(key, Shown()) for key in clients}
        if not any([show(client, shown[key], controls, gaussians, path) for key, client in clients.items()]):
            time.sleep(TICK)


def show(
    client: viser.ClientHandle, last: Shown, controls: Controls, gaussians: MovingGaussians, path: TimedCameras
) -> bool:
    """Send a browser its picture if that has changed, or a larger one once it is still; whether it was sent."""
    moment, theirs = float(controls.time.value), client.camera
    try:
        own = (tuple(theirs.position), tuple(theirs.wxyz), theirs.fov, theirs.image_width, theirs.image_height)
    except Exception:  # the browser has not said yet where its camera is
        return False
    riding = controls.ride.value
    place = own[3:] if riding else own
    state = (moment, controls.flow.value, riding, place)
    now = time.monotonic()
    changed = state != last.state
    if not changed and (last.full or now - last.changed < STILL_AFTER):
        return False
    if riding and (last.state is None or changed):
        ride_along(client, path, moment)
    height = HEIGHT if changed else STILL_HEIGHT
    width = max(2, round(height * own[3] / max(own[4], 1)))
    if riding:
        pose = at_times(path, torch.tensor([moment])).one(0).camera_to_world
        x, y, z, w = roma.rotmat_to_unitquat(pose[:3, :3].contiguous()).tolist()
        camera = free_camera(pose[:3, 3].numpy(), np.array([w, x, y, z]), vertical_fov(path), width, height, moment)
    else:
        camera = free_camera(np.array(own[0]), np.array(own[1]), own[2], width, height, moment)
    client.scene.set_background_image(picture(gaussians, camera, controls.flow.value), format="jpeg", jpeg_quality=88)
    last.changed = now if changed else last.changed
    last.state, last.full = state, not changed
    return True
