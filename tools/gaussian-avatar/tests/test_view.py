"""The viewer: its sliders and cameras by themselves, and the page as a browser shows it."""

import contextlib
import json
import shutil
import signal
import socket
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import av
import browser
import cv2
import forks
import msgspec
import numpy as np
import pytest
import torch
import viser
import websockets
import zstandard
from gaussian_avatar import avatars, model_file, motions, poses, rendering, runs, viewer
from gaussian_avatar.cli import main
from gaussian_avatar.config import load_config
from gaussian_avatar.poses import Pose
from recon4d import splat
from recon4d.formats.track import PER_FRAME
from recon4d.formats.track import read as read_track
from recon4d.settings import write
from recon4d.viewer import next_height, posed, serving
from scipy.spatial.transform import Rotation
from websockets.sync.client import connect

WINDOW = {"width": 1100, "height": 600}
FACE = (330, 0, 420, 600)  # of the window: left, top, width, height between the notes and the controls


def painted(head, n_inputs: int, turned: bool = False) -> avatars.Avatar:
    """An untrained avatar in the colours of its places: red from left to right, green from low to high."""
    avatar = avatars.new(head, 64, n_inputs, 4, 16, None, 0.9, torch.Generator().manual_seed(0))
    corners = head.v_template[head.faces[avatar.face_id]]
    places = (avatar.bary[..., None] * corners).sum(1)
    colours = 0.5 + places / places.abs().amax(0) / 2
    if turned:
        colours = colours.flip(1)
    return replace(avatar, sh0=(colours - 0.5) / splat.SH0, seen=torch.ones(len(avatar), dtype=torch.bool))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir, head) -> Path:
    """The output folder of a run `one/w` on the capture of `data_dir`."""
    output = tmp_path_factory.mktemp("view")
    work = output / "one/w"
    work.mkdir(parents=True)
    write(work / "config.yaml", load_config("cpu-quick"))
    shutil.copy(data_dir / "one/track.npz", work)
    model_file.write_ply(work / "model.ply", painted(head, motions.n_inputs(head)))
    return output


@pytest.fixture(scope="module")
def trained(folder) -> runs.Run:
    return runs.open_run(folder / "one/w", torch.device("cpu"))


# ------------------------------------------------------------------------------------------------ sliders and cameras


def test_named_expressions_by_how_far_they_go(trained, head):
    names = head.expression_names
    expression = np.zeros((10, len(names)), np.float32)
    wave = np.linspace(0, 1, 10, dtype=np.float32)
    expression[:, names.index("mouthSmileLeft")] = 0.5 * wave
    expression[:, names.index("mouthSmileRight")] = 0.7 * wave
    expression[:, names.index("mouthLeft")] = 0.4 * wave
    expression[:, names.index("cheekPuff")] = 0.9 * wave
    expression[:, names.index("mouthFunnel")] = 0.8  # always there: no slider
    found = poses.directions(replace(trained.track, expression=expression), head)
    assert [d.name for d in found] == ["cheekPuff", "mouthSmile", "mouthLeft"]
    assert [d.reach for d in found] == pytest.approx([0.9, 0.6, 0.4])
    assert [names[i] for i in found[1].vector.nonzero()[0]] == ["mouthSmileLeft", "mouthSmileRight"]
    assert len(poses.directions(trained.track, head, count=2)) == 2


def test_unnamed_expressions_by_their_principal_axes(trained, head):
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((12, 2)))[0].T
    amounts = rng.standard_normal((400, 2)) * [3.0, 1.0]
    track = replace(trained.track, expression=(0.3 + amounts @ axes).astype(np.float32))
    found = poses.directions(track, replace(head, expression_names=()))
    assert [d.name for d in found] == ["expression 1", "expression 2"]
    for direction, axis, deviation in zip(found, axes, (3, 1)):
        assert abs(direction.vector[:12] @ axis) > 0.99 and not direction.vector[12:].any()
        assert direction.vector[np.abs(direction.vector).argmax()] > 0
        assert direction.reach == pytest.approx(2.5 * deviation, rel=0.1)


def test_sliders_at_rest_leave_the_clip_as_it_is(trained):
    for frame in (0, 13):
        motion = poses.posed(trained, trained.track, [], Pose(frame=frame))
        torch.testing.assert_close(motion.vertices[0], trained.motion.vertices[frame], rtol=0, atol=1e-6)
        torch.testing.assert_close(motion.inputs[0], trained.motion.inputs[frame], rtol=0, atol=1e-6)
        assert torch.equal(motion.camera.world_to_camera, trained.motion.camera.world_to_camera)


def test_sliders_move_what_they_name(trained, head):
    along = poses.directions(trained.track, head)
    still = Pose(follow=False)
    rest = poses.posed(trained, trained.track, along, still).vertices[0]

    def moved(**sliders) -> np.ndarray:
        """How far the landmarks go (68, 3), millimetres."""
        vertices = poses.posed(trained, trained.track, along, replace(still, **sliders)).vertices[0]
        return 1e3 * (head.landmarks(vertices[None]) - head.landmarks(rest[None]))[0].numpy()

    chin, nose, brows, lids = 8, 30, slice(17, 27), [37, 38, 43, 44]
    down = moved(jaw=(20, 0))
    assert down[chin, 1] < -10 and np.abs(down[brows]).max() < 1
    assert moved(jaw=(0, 8))[chin, 0] > 2
    assert moved(neck=(0, 30, 0))[nose, 0] > 20 and moved(neck=(15, 0, 0))[nose, 1] > 10
    tilt = moved(neck=(0, 0, 15))
    assert (tilt[brows, 0] > tilt[chin, 0]).all() and tilt[brows, 0].mean() > 10
    blink = moved(blink=1.0)
    assert (blink[lids, 1] < -3).all() and np.abs(blink[48:]).max() < 0.5
    for i, direction in enumerate(along):
        amounts = tuple(direction.reach if k == i else 0.0 for k in range(len(along)))
        assert np.abs(moved(expression=amounts)).max() > 0.5, direction.name


def test_rotations_are_those_of_scipy(trained, head):
    frame = 7
    pose = Pose(frame=frame, gaze=(10, 25), jaw=(12, 5), neck=(8, -20, 6))
    inputs = poses.posed(trained, trained.track, [], pose).inputs[0].numpy()
    track = trained.track
    angles = [(-20, -8, -6), (5, 12, 0), (25, -10, 0), (25, -10, 0)]  # right, down, left of neck, jaw and both eyes
    turned = Rotation.from_euler("YXZ", angles, degrees=True).as_matrix()
    bases = (motions.AXES @ track.R[frame] @ track.neck[frame], track.jaw[frame], *track.eyes[frame])
    wanted = np.concatenate([(base @ turn)[:2].ravel() for base, turn in zip(bases, turned)])
    start = head.n_expression
    np.testing.assert_allclose(inputs[start : start + 24], wanted, atol=1e-5)
    # The gaze goes up and to the picture's right: the head's y and x.
    ahead = turned[2] @ [0, 0, 1]
    assert ahead[0] > 0.3 and ahead[1] > 0.1


def test_named_expressions_stay_activations(trained, head):
    along = poses.directions(trained.track, head)
    inputs = poses.posed(trained, trained.track, along, Pose(expression=(5.0,) + (-5.0,) * (len(along) - 1))).inputs
    assert inputs[0, : head.n_expression].min() == 0 and inputs[0, : head.n_expression].max() == 1


def test_another_clip_moves_the_same_person(trained):
    other = replace(trained.track, shape=-trained.track.shape, t=trained.track.t + np.float32(0.3))
    mine = poses.posed(trained, trained.track, [], Pose(frame=5)).vertices
    torch.testing.assert_close(poses.posed(trained, other, [], Pose(frame=5)).vertices, mine, rtol=0, atol=1e-5)
    neutral = poses.posed(trained, other, [], Pose(frame=5, follow=False)).vertices
    assert torch.equal(neutral, poses.posed(trained, trained.track, [], Pose(frame=9, follow=False)).vertices)


def test_camera_against_scipy():
    rotation = Rotation.from_euler("xyz", [170, 20, 5], degrees=True)
    x, y, z, w = rotation.as_quat()
    eye, fov = np.array([0.1, -0.2, 0.7]), 0.6
    camera = posed(np.array([w, x, y, z]), eye, fov, 300, 200)
    # The optical axis meets the middle; a ray at half the field of view meets the upper edge.
    rays = np.array([[0, 0, 1], [0, -np.tan(fov / 2), 1]])
    points = torch.from_numpy((eye + 2.5 * rotation.apply(rays)).astype(np.float32))
    pixels, depth = camera.project(points)
    np.testing.assert_allclose(pixels.numpy(), [[150, 100], [150, 0]], atol=1e-2)
    np.testing.assert_allclose(depth.numpy(), 2.5, rtol=1e-5)


def first_camera(trained, width: int, height: int):
    """The camera that a page of this size starts with, its axes taken from where it looks."""
    position, look_at, up, fov = poses.first_camera(trained)
    forward = (look_at - position) / np.linalg.norm(look_at - position)
    right = np.cross(forward, up)
    x, y, z, w = Rotation.from_matrix(np.stack([right, -up, forward], 1)).as_quat()
    return posed(np.array([w, x, y, z]), position, fov, width, height)


def test_first_picture_is_what_render_writes(trained):
    background = torch.tensor([0.2, 0.4, 0.1])
    wanted = next(rendering.render(trained, trained.motion, background))
    motion = poses.posed(trained, trained.track, [], Pose())
    camera = first_camera(trained, trained.motion.camera.width, trained.motion.camera.height)
    image = poses.picture(trained, motion, camera, background)
    assert image.shape == wanted.shape and np.abs(image.astype(int) - wanted).max() <= 1
    assert (wanted != wanted[0, 0]).any(-1).mean() > 0.15  # there is a head in it


def test_playing_and_sizes():
    assert poses.advanced(3.0, 0.5, 24.0, 0.5, 100) == pytest.approx(9.0)
    assert poses.advanced(95.0, 1.0, 25.0, 1.0, 100) == pytest.approx(20.0)  # from the start again
    height = 600
    for _ in range(20):  # a machine that draws 1e6 rows squared a second
        height = next_height(height, height**2 / 1e6, 0.04, 600)
    assert height == pytest.approx((0.04 * 1e6) ** 0.5, abs=6)
    assert next_height(100, 10.0, 0.04, 600) == 160 and next_height(600, 1e-9, 0.04, 600) == 600


# ---------------------------------------------------------------------------------------------------------- bad input


def refused(capfd, *args) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["view", *map(str, args)])
    out, err = capfd.readouterr()
    assert stop.value.code == 2 and out == "" and "Traceback" not in err, err
    return err


def test_what_it_refuses(folder, tmp_path, capfd):
    work = ["--subject", "one", "--work-name", "w", "--output-dir", folder]
    assert "holds no training run" in refused(capfd, "--subject", "nobody", "--output-dir", folder)
    shutil.copytree(folder / "one/w", tmp_path / "one/w")
    (tmp_path / "one/w/model.ply").write_bytes((folder / "one/w/model.ply").read_bytes()[:5000])
    fresh = ["--subject", "one", "--work-name", "w", "--output-dir", tmp_path]
    assert "model.ply is not a readable PLY file" in refused(capfd, *fresh)
    (tmp_path / "one/w/model.ply").unlink()
    assert "model.ply does not exist" in refused(capfd, *fresh)
    assert "no.npz does not exist" in refused(capfd, *work, "--track", tmp_path / "no.npz")
    track = read_track(folder / "one/w/track.npz")
    replace(track, expression=np.zeros((len(track), 400), np.float32)).write(tmp_path / "flame.npz")
    assert "400 expression coefficients" in refused(capfd, *work, "--track", tmp_path / "flame.npz")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = refused(capfd, *work, "--port", port)
        assert f"--port {port} of --host 127.0.0.1 cannot be used" in sentence and "give another" in sentence
    assert "Invalid value for '--port'" in refused(capfd, *work, "--port", 70000)


# ----------------------------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def served(folder):
    """The command as a subprocess that follows the clip backwards: the page's address and the run's folder.

    Ctrl-C ends it at the end.
    """
    track = read_track(folder / "one/w/track.npz")
    backwards = {key: getattr(track, key)[::-1].copy() for key in PER_FRAME}
    replace(track, **backwards).write(folder / "backwards.npz")
    opener = folder / "opener"
    opener.write_text(f"#!/bin/sh\necho $1 > {folder}/opened\n")
    opener.chmod(0o755)
    options = ["--subject", "one", "--work-name", "w", "--output-dir", folder, "--port", "0", "--open"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROWSER", f"{opener} %s")
        process = forks.start("gaussian-avatar", "view", *options, "--track", folder / "backwards.npz")
    try:
        while not process.said()[0].endswith("}\n"):
            assert process.poll() is None, process.said()
            time.sleep(0.01)
        printed = process.said()[0]
        yield json.loads(printed)["page"], folder / "one/w"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
        assert process.said()[0] == printed  # the result is all there is on stdout
    finally:
        process.kill()
    errors = process.said()[1]
    assert "stopped" in errors and "Traceback" not in errors and "Warning" not in errors


def test_server(served, folder):
    address = served[0]
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.status == 200 and b"<title>Viser</title>" in answer.read()
    # What a page is sent on connecting: sizes of the unpacked and the packed messages, the messages.
    protocol = websockets.Subprotocol(f"viser-v{viser.__version__}")
    with connect(address.replace("http", "ws"), subprotocols=[protocol], max_size=None) as socket_:
        received = b""
        while b"Save video" not in received:
            message = socket_.recv(timeout=10)
            received += zstandard.decompress(message[16 : 16 + int.from_bytes(message[8:16], "little")])
    for label in (b"Frame", b"Jaw open", b"Gaze right", b"Head tilt", b"Background", b"training clip"):
        assert label in received
    assert (folder / "opened").read_text().strip() == address


def settled(page, wanted: np.ndarray, name: str) -> None:
    """Wait until the page shows a picture."""
    left, top, width, height = FACE
    until = time.monotonic() + 60
    while True:
        seen = browser.pixels(page, *FACE)
        off = np.abs(seen - wanted[top : top + height, left : left + width]).mean()
        if off < 2:
            return
        assert time.monotonic() < until, f"{name}: {off:.1f} levels from what it should be"
        time.sleep(0.1)


def test_in_a_browser(served, folder, trained, head, tmp_path):
    address, work = served
    along = poses.directions(trained.track, head)
    backwards = read_track(folder / "backwards.npz")
    window = first_camera(trained, WINDOW["width"], WINDOW["height"])

    def picture(pose: Pose, track=backwards, camera=window, of=trained, background=(24, 24, 28)) -> np.ndarray:
        motion = poses.posed(of, track, along, pose)
        return poses.picture(of, motion, camera, torch.tensor(background) / 255).astype(int)

    with browser.open_page(**WINDOW) as page:
        page.goto(address)
        page.get_by_text("Reset sliders").wait_for()
        frame = browser.control(page, "Frame").locator("[role=slider]")
        first = frame.get_attribute("aria-valuenow")
        page.wait_for_function("([thumb, value]) => thumb.ariaValueNow != value", arg=[frame.element_handle(), first])
        browser.control(page, "Play").click()
        browser.slide(page, "Frame", 0)
        settled(page, picture(Pose()), "the clip's first frame")

        jaw = (browser.slide(page, "Jaw open", 0.9), 0.0)
        assert jaw[0] > 15
        opened = picture(Pose(jaw=jaw))
        assert np.abs(opened - picture(Pose())).max() > 100
        settled(page, opened, "an open jaw")
        amounts = [0.0] * len(along)
        amounts[0] = browser.slide(page, along[0].name, 1.0)
        assert amounts[0] == pytest.approx(along[0].reach, abs=0.01)
        settled(page, picture(Pose(jaw=jaw, expression=tuple(amounts))), along[0].name)

        # Another browser has the same pose, but a camera of its own.
        other = page.context.browser.new_page(viewport=WINDOW, locale="en-US")
        other.goto(address)
        other.get_by_text("Reset sliders").wait_for()
        other.get_by_text("Reset sliders").click()
        settled(other, picture(Pose()), "another page")
        other.mouse.move(500, 300)
        other.mouse.down()
        other.mouse.move(620, 300, steps=4)
        other.mouse.up()
        settled(page, picture(Pose()), "the page that did not turn")
        left, top, width, height = FACE
        turned = browser.pixels(other, *FACE) - picture(Pose())[top : top + height, left : left + width]
        assert np.abs(turned).mean() > 5
        other.close()

        browser.control(page, "Clip").click()
        page.get_by_role("option", name="training clip").click()
        settled(page, picture(Pose(), trained.track), "the other clip")
        colour = page.locator("input[value^=rgb]")
        colour.fill("rgb(200, 220, 240)")
        colour.press("Enter")
        light = picture(Pose(), trained.track, background=(200, 220, 240))
        settled(page, light, "another background")

        with page.expect_download() as download:
            page.get_by_text("Save picture").click()
        download.value.save_as(tmp_path / "avatar.png")
        saved = cv2.imread(str(tmp_path / "avatar.png"))[..., ::-1].astype(int)
        camera = first_camera(trained, 938, 512)
        wanted = picture(Pose(), trained.track, camera, background=(200, 220, 240))
        assert saved.shape == wanted.shape and np.abs(saved - wanted).mean() < 0.5
        with page.expect_download() as download:
            page.get_by_text("Save video").click()
        download.value.save_as(tmp_path / "avatar.mp4")
        with av.open(str(tmp_path / "avatar.mp4")) as video:
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
        assert len(frames) == len(trained.track)
        for index in (0, 20):
            wanted = picture(Pose(frame=index), trained.track, camera, background=(200, 220, 240))
            assert np.abs(frames[index] - wanted).mean() < 2

        # A training run writes its model anew; then something breaks it.
        repainted = replace(trained, avatar=painted(head, trained.avatar.n_inputs, turned=True))
        model_file.write_ply(work / "model.ply", repainted.avatar)
        settled(page, picture(Pose(), trained.track, of=repainted, background=(200, 220, 240)), "a new model")
        (work / "model.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 9")
        page.get_by_text("the new model is not readable").wait_for()
        settled(page, picture(Pose(), trained.track, of=repainted, background=(200, 220, 240)), "the model before")


# ----------------------------------------------------------------------------------------------------- strange browsers

EYE = {
    "type": "ViewerCameraMessage",
    "wxyz": [1.0, 0, 0, 0],
    "position": [0.0, 0, -0.7],
    "fov": 0.5,
    "near": 0.1,
    "far": 100.0,
    "image_height": 90,
    "image_width": 160,
    "look_at": [0.0, 0, 0],
    "up_direction": [0.0, 1, 0],
}
NAN, MUCH = float("nan"), 1e308
CAMERAS = [
    {"position": [NAN, 0, 0]},
    {"position": [MUCH, 0, 0]},
    {"position": "here"},
    {"wxyz": [0, 0, 0, 0]},
    {"wxyz": [NAN] * 4},
    {"fov": NAN},
    {"fov": 0},
    {"fov": None},
    {"image_width": 10**6, "image_height": 1},
    {"image_width": 10**9, "image_height": 10**9},
    {"image_width": 0, "image_height": -5},
    {"image_height": "high"},
]
CONTROLS = ("Clip", "Play", "Frame", "Speed", "Jaw open", "Blink", "Background", "Saved height", "Follow the clip")


@pytest.fixture
def page(trained):
    """The page of a viewer whose loop runs beside the test: that it still does is checked at the end."""
    pages = []
    with serving("127.0.0.1", 0, "test", pages.append, print) as server:
        looking = viewer.set_up(server, trained, {viewer.OWN_CLIP: trained.track, "other": trained.track})
        thread = threading.Thread(target=viewer.loop, args=(looking, print), daemon=True)
        thread.start()
        yield pages[0]
        assert thread.is_alive()
        looking.ended.set()
        thread.join(60)


def connected(page, **options):
    protocol = websockets.Subprotocol(f"viser-v{viser.__version__}")
    return connect(page.replace("http", "ws"), subprotocols=[protocol], max_size=None, **options)


def answers(page) -> dict[str, str]:
    """A good browser connects and gets its picture; the controls' names by their labels."""
    controls = {}
    with connected(page) as client:
        client.send(msgspec.msgpack.encode(EYE))
        until = time.monotonic() + 60
        while time.monotonic() < until:
            packet = client.recv(timeout=60)
            content = zstandard.decompress(packet[16 : 16 + int.from_bytes(packet[8:16], "little")])
            for message in msgspec.msgpack.decode(content)["messages"]:
                if "label" in message.get("props", {}):
                    controls[message["props"]["label"]] = message["uuid"]
                if message["type"] == "BackgroundImageMessage" and message["rgb_data"] is not None:
                    return controls
    raise AssertionError("no picture")


def test_messages_neither_end_nor_fill_it(page):
    controls = answers(page)
    updates = [
        {"type": "GuiUpdateMessage", "uuid": controls[label], "updates": {"value": value}}
        for label in CONTROLS
        for value in (NAN, MUCH, "x", None, [], [NAN] * 3, 2**63)
    ]
    others = [{"type": "NoSuchMessage"}, [1, 2, 3], {}, updates[0] | {"updates": 3}, updates[0] | {"uuid": "nobody"}]
    bad = [msgspec.msgpack.encode(message) for message in [*(EYE | camera for camera in CAMERAS), *updates, *others]]
    for message in [*bad, b"\xff" * 100, b"", "text"]:
        with connected(page) as client, contextlib.suppress(websockets.ConnectionClosed):
            client.send(msgspec.msgpack.encode(EYE))
            client.send(message)
            time.sleep(0.02)  # so that it is looked at
    answers(page)
    with connected(page) as client, contextlib.suppress(websockets.ConnectionClosed):
        for _ in range(20_000):
            client.send(bad[0])
    with pytest.raises(websockets.ConnectionClosed), connected(page) as client:
        client.send(b"x" * (2 << 20))  # more than a browser ever says
        while True:
            client.recv(timeout=30)
    answers(page)


def test_pages_of_others_are_refused(page):
    for origin in ("http://elsewhere.example", "null"):
        with pytest.raises(websockets.InvalidStatus), connected(page, origin=origin):
            pass
    with connected(page, origin=page):
        pass
