"""The viewer's page and its loop: controls in the browser, pictures rendered by the same code as `render`.

The pose is common to all browsers that look on, each has a camera of its own (`recon4d.viewer`).
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import viser
from recon4d import InputError, video
from recon4d.cameras import Camera
from recon4d.formats.track import Track
from recon4d.images import encode
from recon4d.viewer import Shown, camera_of, number, serving, show

from gaussian_avatar import driving, model_file, poses
from gaussian_avatar.driving import Transfer
from gaussian_avatar.poses import Direction, Pose
from gaussian_avatar.runs import Run

TICK = 0.008  # seconds between looks at the controls
MODEL_TICK = 0.5  # seconds between looks at model.ply
OWN_CLIP = "training clip"
SPEEDS = (0.1, 2.0)  # of playing, times the clip's own
SAVED_HEIGHT = (64, 2160)  # of pictures and videos, rows
SLIDERS = {  # degrees, but for the last: of face and head
    "Jaw open": (-10.0, 25.0),
    "Jaw right": (-10.0, 10.0),
    "Gaze up": (-20.0, 20.0),
    "Gaze right": (-30.0, 30.0),
    "Head up": (-25.0, 25.0),
    "Head right": (-40.0, 40.0),
    "Head tilt": (-20.0, 20.0),
    "Blink": (-1.0, 1.0),
}


@dataclass(frozen=True)
class Controls:
    """Handles of the page's controls; their values are read in every turn of the loop."""

    clip: viser.GuiDropdownHandle[str]
    play: viser.GuiCheckboxHandle
    follow: viser.GuiCheckboxHandle
    frame: viser.GuiSliderHandle[int]
    speed: viser.GuiSliderHandle[float]
    expression: list[viser.GuiSliderHandle[float]]
    pose: dict[str, viser.GuiSliderHandle[float]]
    background: viser.GuiRgbHandle
    height: viser.GuiNumberHandle[int]
    picture: viser.GuiButtonHandle
    film: viser.GuiButtonHandle
    status: viser.GuiMarkdownHandle


@dataclass(frozen=True)
class Moment:
    """What is to be seen, whatever the camera."""

    clip: str
    pose: Pose
    colour: tuple[float, float, float]


@dataclass
class Viewer:
    """All that the loop and the buttons share. The lock guards rendering and `run`."""

    server: viser.ViserServer
    run: Run
    along: list[Direction]
    clips: dict[str, Track]
    controls: Controls
    position: float = 0.0  # in the clip, frames
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)
    filming: threading.Lock = field(default_factory=threading.Lock)  # held while a video is rendered: one at a time

    def clip(self) -> str:
        """The chosen clip's name."""
        chosen = self.controls.clip.value
        return chosen if chosen in self.clips else next(iter(self.clips))

    def moment(self) -> Moment:
        """What the controls say, within their bounds whatever a browser sends."""
        controls, clip = self.controls, self.clip()
        sliders = {name: number(slider.value, *SLIDERS[name]) for name, slider in controls.pose.items()}
        colour = controls.background.value
        rgb = [number(value, 0, 255) / 255 for value in (colour if isinstance(colour, tuple | list) else ())][:3]
        red, green, blue = rgb if len(rgb) == 3 else (0.0, 0.0, 0.0)
        pose = Pose(
            frame=min(int(self.position), len(self.clips[clip]) - 1),
            follow=bool(controls.follow.value),
            expression=tuple(
                number(slider.value, -reach_of(direction), reach_of(direction))
                for slider, direction in zip(controls.expression, self.along)
            ),
            jaw=(sliders["Jaw open"], sliders["Jaw right"]),
            gaze=(sliders["Gaze up"], sliders["Gaze right"]),
            neck=(sliders["Head up"], sliders["Head right"], sliders["Head tilt"]),
            blink=sliders["Blink"],
        )
        return Moment(clip, pose, (red, green, blue))

    def picture(self, moment: Moment, camera: Camera) -> np.ndarray:
        """The moment as a camera sees it, RGB uint8 (H, W, 3)."""
        with self.lock:
            motion = poses.posed(self.run, self.clips[moment.clip], self.along, moment.pose)
            return poses.picture(self.run, motion, camera, torch.tensor(moment.colour))

    def saved_camera(self, client: viser.ClientHandle) -> Camera | None:
        """A browser's camera for a picture of the height that is to be saved."""
        return camera_of(client, int(number(self.controls.height.value, *SAVED_HEIGHT)) // 2 * 2)


def reach_of(direction: Direction) -> float:
    """How far the slider of a direction goes to both sides."""
    return max(round(direction.reach, 2), 0.01)


def open_clips(
    run: Run,
    path: str | Path | None,
    transfer: Transfer = "absolute",
    log: Callable[[str], None] = print,
    track_head_model: str | Path | None = None,
) -> dict[str, Track]:
    """The training clip, and before it another one to follow, as `driving.track_of` reads it and raises errors."""
    own = {OWN_CLIP: run.track}
    return own if path is None else {str(path): driving.track_of(run, path, transfer, log, track_head_model)} | own


def serve(
    run: Run,
    track: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    open_browser: bool = False,
    announce: Callable[[str], None] = print,
    log: Callable[[str], None] = print,
    transfer: Transfer = "absolute",
    track_head_model: str | Path | None = None,
) -> None:
    """Show a run's avatar in the browser until Ctrl-C.

    Args:
        track, transfer, track_head_model: what else to follow; see `driving.track_of`.
        host: the address to listen on; 0.0.0.0 is the network.
        port: 0 takes any free one.
        open_browser: open the page here.
        announce: gets the page's address when it is up.

    Raises:
        InputError: a taken port, a host that is not this machine's, a track that does not fit.
    """
    clips = open_clips(run, track, transfer, log, track_head_model)
    with serving(host, port, f"{run.folder.parent.name}: {run.folder.name}", announce, log, open_browser) as server:
        viewer = set_up(server, run, clips)
        try:
            loop(viewer, log)
        finally:
            viewer.ended.set()


def set_up(server: viser.ViserServer, run: Run, clips: dict[str, Track]) -> Viewer:
    """Put the controls on the page and the browsers' first camera where the clip's was."""
    server.scene.set_up_direction("+y")
    position, look_at, up, fov = poses.first_camera(run)
    start = server.initial_camera
    start.position, start.look_at, start.up, start.fov = position, look_at, up, fov
    along = poses.directions(run.track, run.head)
    viewer = Viewer(server, run, along, clips, add_controls(server, clips, along))
    add_buttons(viewer)
    return viewer


def add_controls(server: viser.ViserServer, clips: dict[str, Track], along: list[Direction]) -> Controls:
    """Put the controls on the page."""
    gui = server.gui
    pose = {}
    with gui.add_folder("Clip"):
        clip = gui.add_dropdown("Clip", tuple(clips), visible=len(clips) > 1)
        play = gui.add_checkbox("Play", True)
        last = len(next(iter(clips.values()))) - 1
        frame = gui.add_slider("Frame", 0, max(last, 1), 1, 0)
        speed = gui.add_slider("Speed", *SPEEDS, 0.1, 1.0)
        follow = gui.add_checkbox("Follow the clip", True, hint="Off: a neutral face; the sliders alone move it.")
    with gui.add_folder("Face"):
        expression = [
            gui.add_slider(direction.name, -reach_of(direction), reach_of(direction), 0.01, 0.0) for direction in along
        ]
        for name in ("Jaw open", "Jaw right", "Gaze up", "Gaze right"):
            pose[name] = gui.add_slider(name, *SLIDERS[name], 0.5, 0.0)
        pose["Blink"] = gui.add_slider("Blink", *SLIDERS["Blink"], 0.02, 0.0)
    with gui.add_folder("Head"):
        for name in ("Head up", "Head right", "Head tilt"):
            pose[name] = gui.add_slider(name, *SLIDERS[name], 0.5, 0.0)
        reset = gui.add_button("Reset sliders")
    with gui.add_folder("Picture"):
        background = gui.add_rgb("Background", (24, 24, 28))
        height = gui.add_number("Saved height", 512, min=SAVED_HEIGHT[0], max=SAVED_HEIGHT[1], step=2)
        picture = gui.add_button("Save picture")
        film = gui.add_button("Save video")
        status = gui.add_markdown("")

    @reset.on_click
    def _(_: viser.GuiEvent[Any]) -> None:
        for slider in (*expression, *pose.values()):
            slider.value = 0.0  # type: ignore[misc]

    return Controls(clip, play, follow, frame, speed, expression, pose, background, height, picture, film, status)


def add_buttons(viewer: Viewer) -> None:
    """What the two saving buttons do; their files go to the browser that asked."""
    controls = viewer.controls

    @controls.picture.on_click
    def _(event: viser.GuiEvent[Any]) -> None:
        client = event.client
        camera = None if client is None else viewer.saved_camera(client)
        if client is not None and camera is not None:
            content = encode(".png", viewer.picture(viewer.moment(), camera))
            client.send_file_download("avatar.png", content, save_immediately=True)

    @controls.film.on_click
    def _(event: viser.GuiEvent[Any]) -> None:
        client, moment = event.client, viewer.moment()
        camera = None if client is None else viewer.saved_camera(client)
        if client is None or camera is None or not viewer.filming.acquire(blocking=False):
            return
        track = viewer.clips[moment.clip]
        total = len(track) if moment.pose.follow else 1
        note = client.add_notification("Video", "rendering", loading=True, with_close_button=False)

        def frames() -> Iterator[np.ndarray]:
            for frame in range(total):
                if viewer.ended.is_set():
                    return
                if frame % 10 == 0:
                    note.body = f"rendering, {frame} of {total} frames"
                yield viewer.picture(replace(moment, pose=replace(moment.pose, frame=frame)), camera)

        controls.film.disabled = True
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "avatar.mp4"
                video.write_mp4(path, frames(), track.fps)
                client.send_file_download(path.name, path.read_bytes(), save_immediately=True)
        finally:
            viewer.filming.release()
            controls.film.disabled = False
            note.remove()


def loop(viewer: Viewer, log: Callable[[str], None]) -> None:
    """Until it is ended: move on in the clip, send each browser the picture it lacks, take up a new model."""
    shown: dict[int, Shown] = {}
    model = model_stamp(viewer.run)
    version, note = 0, ""
    before = last_look = last_status = time.monotonic()
    sent = 0
    while not viewer.ended.is_set():
        now = time.monotonic()
        play(viewer, now - before)
        before = now
        if now - last_look > MODEL_TICK:
            last_look = now
            latest = model_stamp(viewer.run)
            if latest not in (None, model):
                model = latest
                try:
                    reload_model(viewer)
                    version, note = version + 1, f"model read anew at {time.strftime('%H:%M:%S')}"
                except InputError as error:
                    note = "the new model is not readable: this is the one before"
                    log(str(error))
        clients = viewer.server.get_clients()
        shown = {key: shown.get(key, Shown()) for key in clients}
        moment = viewer.moment()
        busy = [
            show(
                client,
                shown[key],
                (moment, version),
                partial(camera_of, client),
                partial(viewer.picture, moment),
                len(clients),
            )
            for key, client in clients.items()
        ]
        sent += sum(busy)
        if now - last_status > 1:
            heights = [state.height for state in shown.values() if not state.full]
            speed = f"{sent / (now - last_status):.0f} pictures/s" + (f" of {min(heights)} rows" if heights else "")
            viewer.controls.status.content = "\n\n".join(filter(None, [speed if sent else "still", note]))
            last_status, sent = now, 0
        if not any(busy):
            time.sleep(TICK)


def play(viewer: Viewer, seconds: float) -> None:
    """Move on in the clip, or to where the user has moved the slider."""
    controls, track = viewer.controls, viewer.clips[viewer.clip()]
    slider, last = controls.frame, len(track) - 1
    if slider.max != max(last, 1):
        slider.max = max(last, 1)
        viewer.position = min(viewer.position, last)
    frame = int(number(slider.value, 0, last))
    if frame != int(viewer.position):
        viewer.position = float(frame)
    if controls.play.value and controls.follow.value:
        speed = number(controls.speed.value, *SPEEDS)
        viewer.position = poses.advanced(viewer.position, seconds, track.fps, speed, len(track))
        slider.value = int(viewer.position)  # type: ignore[misc]


def model_stamp(run: Run) -> tuple[int, int, int] | None:
    """What changes when `model.ply` is written again; None while it is away."""
    try:
        found = (run.folder / "model.ply").stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def reload_model(viewer: Viewer) -> None:
    """Take up `model.ply` as it is now. Raises InputError, and keeps the old one, when it is not readable."""
    run = viewer.run
    avatar = model_file.read_ply(run.folder / "model.ply", run.head, run.motion.inputs.shape[1])
    with viewer.lock:
        viewer.run = replace(run, avatar=avatar.to(run.avatar.means.device))
