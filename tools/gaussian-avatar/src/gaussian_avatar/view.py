"""The viewer's page and its loop: controls in the browser, pictures rendered here.

Pictures are rendered by the same code as `render` and sent as JPEG, so the page shows exactly what that writes, and
any number of browsers may look on: the pose is common to all, each has a camera of its own.
"""

import contextlib
import sys
import tempfile
import threading
import time
import warnings
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import viser
from recon4d import InputError, video
from recon4d.cameras import Camera
from recon4d.cli import check_address
from recon4d.formats import track as track_format
from recon4d.formats.track import Track

from gaussian_avatar import model_file
from gaussian_avatar import motion as motions
from gaussian_avatar import view_pose as poses
from gaussian_avatar.run import Run
from gaussian_avatar.view_pose import Direction, Pose

BUDGET = 1 / 25  # seconds for a picture while something moves
STILL_AFTER = 0.2  # seconds without a change until the picture is rendered at full size
FULL_HEIGHT = 1080  # of pictures on the page
TICK = 0.008  # seconds between looks at the controls
MODEL_TICK = 0.5  # seconds between looks at model.ply
OWN_CLIP = "training clip"


@dataclass(frozen=True)
class Controls:
    """Handles of the page's controls; their values are read in every turn of the loop."""

    clip: viser.GuiDropdownHandle
    play: viser.GuiCheckboxHandle
    follow: viser.GuiCheckboxHandle
    frame: viser.GuiSliderHandle
    speed: viser.GuiSliderHandle
    expression: list[viser.GuiSliderHandle]
    pose: dict[str, viser.GuiSliderHandle]
    background: viser.GuiRgbHandle
    height: viser.GuiNumberHandle
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
class Shown:
    """What one browser shows."""

    scene: tuple | None = None  # moment, model and camera of the last picture
    height: int = 256  # of the next picture while something moves
    changed: float = 0.0
    full: bool = False  # whether the last picture was at full size


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

    def moment(self) -> Moment:
        controls, clip = self.controls, self.controls.clip.value
        sliders = {name: slider.value for name, slider in controls.pose.items()}
        red, green, blue = (value / 255 for value in controls.background.value[:3])
        pose = Pose(
            frame=min(int(self.position), len(self.clips[clip]) - 1),
            follow=controls.follow.value,
            expression=tuple(slider.value for slider in controls.expression),
            jaw=(sliders["Jaw open"], sliders["Jaw right"]),
            gaze=(sliders["Gaze up"], sliders["Gaze right"]),
            neck=(sliders["Head up"], sliders["Head right"], sliders["Head tilt"]),
            blink=sliders["Blink"],
        )
        return Moment(clip, pose, (red, green, blue))

    def picture(self, moment: Moment, view: Camera) -> np.ndarray:
        """The moment as a camera sees it, RGB uint8 (H, W, 3)."""
        with self.lock:
            motion = poses.posed(self.run, self.clips[moment.clip], self.along, moment.pose)
            return poses.picture(self.run, motion, view, torch.tensor(moment.colour))


def open_clips(run: Run, track_path: Path | None) -> dict[str, Track]:
    """The training clip, and before it the other clip to follow. Raises InputError for one that does not fit."""
    if track_path is None:
        return {OWN_CLIP: run.track}
    track = track_format.read(track_path)
    motions.check_track(track, run.head, str(track_path))
    return {str(track_path): track, OWN_CLIP: run.track}


def serve(
    run: Run,
    track_path: Path | None,
    host: str,
    port: int,
    open_browser: bool,
    announce: Callable[[str], None],
    log: Callable[[str], None],
) -> None:
    """Show a run's avatar until Ctrl-C.

    Args:
        port: 0 takes any free one.
        announce: gets the page's address when it is up.

    Raises:
        InputError: a taken port, a host that is not this machine's, a track that does not fit.
    """
    clips = open_clips(run, track_path)
    check_address(host, port)
    with contextlib.redirect_stdout(sys.stderr):  # viser greets and says goodbye on stdout
        server = viser.ViserServer(host, port, label=f"{run.folder.parent.name}: {run.folder.name}", verbose=False)
    # A browser may leave while its picture is made.
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
    viewer = set_up(server, run, clips)
    name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    page = f"http://{name}:{server.get_port()}"
    announce(page)
    try:
        if open_browser:
            webbrowser.open(page)
        loop(viewer, log)
    except KeyboardInterrupt:
        log("stopped")
    finally:
        viewer.ended.set()
        with contextlib.redirect_stdout(sys.stderr):
            server.stop()


def set_up(server: viser.ViserServer, run: Run, clips: dict[str, Track]) -> Viewer:
    """Put the controls on the page and the browsers' first camera where the clip's was."""
    server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
    server.scene.set_up_direction("+y")
    position, look_at, up, fov = poses.first_view(run)
    start = server.initial_camera
    start.position, start.look_at, start.up, start.fov = position, look_at, up, fov
    along = poses.directions(run.track, run.head)
    viewer = Viewer(server, run, along, clips, add_controls(server, clips, along))
    add_buttons(viewer)
    return viewer


def add_controls(server: viser.ViserServer, clips: dict[str, Track], along: list[Direction]) -> Controls:
    gui = server.gui
    pose = {}
    with gui.add_folder("Clip"):
        clip = gui.add_dropdown("Clip", tuple(clips), visible=len(clips) > 1)
        play = gui.add_checkbox("Play", True)
        last = len(next(iter(clips.values()))) - 1
        frame = gui.add_slider("Frame", 0, max(last, 1), 1, 0)
        speed = gui.add_slider("Speed", 0.1, 2.0, 0.1, 1.0)
        follow = gui.add_checkbox("Follow the clip", True, hint="Off: a neutral face; the sliders alone move it.")
    with gui.add_folder("Face"):
        expression = [
            gui.add_slider(direction.name, -reach, reach, 0.01, 0.0)
            for direction in along
            for reach in [max(round(direction.reach, 2), 0.01)]
        ]
        for name, low, high in (
            ("Jaw open", -10.0, 25.0),
            ("Jaw right", -10.0, 10.0),
            ("Gaze up", -20.0, 20.0),
            ("Gaze right", -30.0, 30.0),
        ):
            pose[name] = gui.add_slider(name, low, high, 0.5, 0.0)
        pose["Blink"] = gui.add_slider("Blink", -1.0, 1.0, 0.02, 0.0)
    with gui.add_folder("Head"):
        for name, reach in (("Head up", 25.0), ("Head right", 40.0), ("Head tilt", 20.0)):
            pose[name] = gui.add_slider(name, -reach, reach, 0.5, 0.0)
        reset = gui.add_button("Reset sliders")
    with gui.add_folder("Picture"):
        background = gui.add_rgb("Background", (24, 24, 28))
        height = gui.add_number("Saved height", 512, min=64, max=2160, step=2)
        picture = gui.add_button("Save picture")
        film = gui.add_button("Save video")
        status = gui.add_markdown("")

    @reset.on_click
    def _(_: viser.GuiEvent) -> None:
        for slider in (*expression, *pose.values()):
            slider.value = 0.0

    return Controls(clip, play, follow, frame, speed, expression, pose, background, height, picture, film, status)


def add_buttons(viewer: Viewer) -> None:
    """What the two saving buttons do; their files go to the browser that asked."""
    controls = viewer.controls

    @controls.picture.on_click
    def _(event: viser.GuiEvent) -> None:
        image = viewer.picture(viewer.moment(), camera_of(event.client, int(controls.height.value)))
        event.client.send_file_download("avatar.png", encoded(".png", image), save_immediately=True)

    @controls.film.on_click
    def _(event: viser.GuiEvent) -> None:
        moment, view = viewer.moment(), camera_of(event.client, int(controls.height.value))
        track = viewer.clips[moment.clip]
        total = len(track) if moment.pose.follow else 1
        note = event.client.add_notification("Video", "rendering", loading=True, with_close_button=False)

        def frames() -> Iterator[np.ndarray]:
            for frame in range(total):
                if viewer.ended.is_set():
                    return
                if frame % 10 == 0:
                    note.body = f"rendering, {frame} of {total} frames"
                yield viewer.picture(replace(moment, pose=replace(moment.pose, frame=frame)), view)

        controls.film.disabled = True
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "avatar.mp4"
                video.write_mp4(path, frames(), track.fps)
                event.client.send_file_download(path.name, path.read_bytes(), save_immediately=True)
        finally:
            controls.film.disabled = False
            note.remove()


def encoded(suffix: str, image: np.ndarray) -> bytes:
    """RGB uint8 as the bytes of a PNG or JPEG file."""
    return cv2.imencode(suffix, image[..., ::-1])[1].tobytes()


def camera_of(client: viser.ClientHandle, height: int) -> Camera:
    """A browser's camera for a picture of some height, with its window's proportions."""
    eye = client.camera
    width = max(2, round(height * eye.image_width / max(eye.image_height, 1)) // 2 * 2)
    return poses.camera(eye.wxyz, eye.position, eye.fov, width, height)


def loop(viewer: Viewer, log: Callable[[str], None]) -> None:
    """Until interrupted: move on in the clip, send each browser the picture it lacks, take up a new model."""
    shown: dict[int, Shown] = {}
    model = model_stamp(viewer.run)
    version, note = 0, ""
    before = last_look = last_status = time.monotonic()
    sent = 0
    while True:
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
        busy = [show(viewer, client, shown[key], version, len(clients)) for key, client in clients.items()]
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
    controls = viewer.controls
    track, slider = viewer.clips[controls.clip.value], controls.frame
    if slider.max != max(len(track) - 1, 1):
        slider.max = max(len(track) - 1, 1)
        viewer.position = min(viewer.position, len(track) - 1)
    if slider.value != int(viewer.position):
        viewer.position = float(slider.value)
    if controls.play.value and controls.follow.value:
        viewer.position = poses.advanced(viewer.position, seconds, track.fps, controls.speed.value, len(track))
        slider.value = int(viewer.position)


def show(viewer: Viewer, client: viser.ClientHandle, shown: Shown, model: int, clients: int) -> bool:
    """Send a browser the picture of this moment, unless it has it: a small one while something moves, then a full one.

    Returns whether one was sent.
    """
    full = int(np.clip(client.camera.image_height, 2, FULL_HEIGHT))
    moment, view = viewer.moment(), camera_of(client, full)
    scene = (moment, model, view.width, view.height, *view.world_to_camera.flatten().tolist())
    now = time.monotonic()
    if scene != shown.scene:
        shown.scene, shown.changed, shown.full = scene, now, False
        height = min(shown.height, full)
        view = view.resized(max(2, round(view.width * height / full)), height)
    elif shown.full or now - shown.changed < STILL_AFTER:
        return False
    else:
        shown.full = True
    image = viewer.picture(moment, view)
    if not shown.full:
        shown.height = poses.next_height(height, time.monotonic() - now, BUDGET / clients, full)
    client.scene.set_background_image(image, format="jpeg", jpeg_quality=95 if shown.full else 85)
    client.flush()
    return True


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
