"""The viewer: its cameras by themselves, and the page as a browser shows it."""

import contextlib
import json
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import browser
import forks
import msgspec
import numpy as np
import pytest
import torch
import viser
import websockets
import zstandard
from flux4d import scenes, viewer
from flux4d.gaussians import MovingGaussians, inverse_softplus
from flux4d.rendering import render
from flux4d.timed_cameras import at_times, timed_cameras
from recon4d import InputError
from recon4d.viewer import posed
from scipy.spatial.transform import Rotation
from websockets.sync.client import connect


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A scene of one red ball before a blue wall; the ball goes 4 m to the right in a second. The camera looks along
    world y."""
    n = 400
    wall = torch.stack([torch.arange(n) % 20 - 9.5, torch.full((n,), 20), torch.arange(n) // 20 - 9.5], -1).float()
    velocities = torch.zeros(n + 1, 1, 3)
    velocities[n, 0, 0] = 4.0
    blue, red = torch.tensor([[-3.0, -3, 3]]), torch.tensor([[4.0, -4, -4]])
    gaussians = MovingGaussians(
        means=torch.cat([wall, torch.tensor([[-2.0, 10, 0]])]),
        scales=inverse_softplus(torch.full((n + 1, 3), 0.9)),
        quats=torch.tensor([[1.0, 0, 0, 0]]).expand(n + 1, 4),
        opacities=torch.full((n + 1, 1), 5.0),
        colours=torch.cat([blue.expand(n, 3), red]),
        times=torch.zeros(n + 1),
        velocities=velocities,
        sky=torch.zeros(n + 1, dtype=torch.bool),
    )
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, :3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    poses[:, 1, 3] = torch.tensor([0.0, 0.5, 1.0])
    K = torch.tensor([[100.0, 0, 80], [0, 100, 45], [0, 0, 1]])
    place = tmp_path_factory.mktemp("view")
    path = timed_cameras(torch.linalg.inv(poses), K, torch.tensor([0.0, 0.5, 1.0]), 160, 90)
    scenes.write(place, gaussians, path)
    return place


def test_free_camera_is_the_recorded_one(folder):
    gaussians, path = scenes.read(folder)
    recorded = at_times(path, torch.tensor([0.25]))
    pose = recorded.one(0).camera_to_world.double().numpy()
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    camera = posed(np.array([w, x, y, z]), pose[:3, 3], viewer.vertical_fov(path), 160, 90)
    torch.testing.assert_close(camera.K, path.batch.K[0])
    ours = viewer.picture(gaussians, camera, 0.25, False)
    theirs = (render(gaussians, recorded).colour[0] * 255).numpy()
    assert np.abs(ours - theirs).max() < 1.5 and theirs.std() > 30
    motion = viewer.picture(gaussians, camera, 0.25, True)
    assert motion[..., 0].max() > 60 and motion[..., 1:].max() < 60  # all that moves goes to the right
    window = SimpleNamespace(camera=SimpleNamespace(image_width=320, image_height=180))
    riding = viewer.riding_camera(path, 0.25, window, 90)
    torch.testing.assert_close(riding.K, path.batch.K[0])
    torch.testing.assert_close(riding.world_to_camera, recorded.one(0).world_to_camera)


def test_what_is_no_scene(folder, tmp_path):
    with pytest.raises(InputError, match=r"holds no cameras.json"):
        viewer.serve(tmp_path, "localhost", 0, print, print)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot be used"):
            viewer.serve(folder, "127.0.0.1", taken.getsockname()[1], print, print)


def red_column(page) -> float:
    """The mean column of what is red, as a share of the window's width."""
    seen = browser.pixels(page, 0, 0, 650, 600)
    red = (seen[..., 0] > 150) & (seen[..., 1] < 90) & (seen[..., 2] < 90)
    return float(np.nonzero(red)[1].mean()) if red.sum() > 50 else float("nan")


def settled(page, wanted) -> float:
    until = time.monotonic() + 60
    while not wanted(where := red_column(page)):
        assert time.monotonic() < until, where
        time.sleep(0.2)
    return where


@pytest.fixture(scope="module")
def served(folder):
    """The command as a subprocess: the page's address. Ctrl-C ends it at the end, without a traceback."""
    server = forks.start("flux4d", "view", folder, "--port", "0")
    try:
        while not server.said()[0].endswith("}\n"):
            assert server.poll() is None, server.said()
            time.sleep(0.01)
        yield json.loads(server.said()[0])["page"]
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    finally:
        server.kill()
    errors = server.said()[1]
    assert "stopped" in errors and "flux4d/viewer.py" not in errors, errors


def test_in_a_browser(served):
    with browser.open_page(width=1000, height=600) as page:
        page.goto(served)
        page.get_by_text("Ride along").wait_for()
        first = settled(page, lambda column: column < 480)
        assert browser.slide(page, "Time", 1.0) == pytest.approx(1.0, abs=0.02)
        settled(page, lambda column: column > first + 100)
        browser.slide(page, "Time", 0.0)


# ----------------------------------------------------------------------------------------------- what a browser may say

EYE = {
    "type": "ViewerCameraMessage",
    "wxyz": [1.0, 0, 0, 0],
    "position": [0.0, 0, 0],
    "fov": 0.8,
    "near": 0.1,
    "far": 100.0,
    "image_height": 90,
    "image_width": 160,
    "look_at": [0.0, 1, 0],
    "up_direction": [0.0, 0, 1],
}
NAN, MUCH = float("nan"), 1e308


def connected(page, **options):
    protocol = websockets.Subprotocol(f"viser-v{viser.__version__}")
    return connect(page.replace("http", "ws"), subprotocols=[protocol], max_size=None, **options)


def received(client):
    """The messages of the next packet."""
    packet = client.recv(timeout=60)
    content = zstandard.decompress(packet[16 : 16 + int.from_bytes(packet[8:16], "little")])
    return msgspec.msgpack.decode(content)["messages"]


def answers(page) -> dict[str, str]:
    """A good client connects and gets its picture; the controls' names by their labels."""
    controls = {}
    with connected(page) as client:
        client.send(msgspec.msgpack.encode(EYE))
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for message in received(client):
                if "label" in message.get("props", {}):
                    controls[message["props"]["label"]] = message["uuid"]
                if message["type"] == "BackgroundImageMessage" and message["rgb_data"] is not None:
                    return controls
    raise AssertionError("no picture")


def test_messages_neither_end_nor_fill_it(served):
    controls = answers(served)
    assert {"Time", "Play", "Speed", "Ride along", "Motion"} <= set(controls)
    cameras = [
        {"position": [NAN, 0, 0]},
        {"position": [MUCH, 0, 0]},
        {"position": "here"},
        {"position": []},
        {"wxyz": [0, 0, 0, 0]},
        {"wxyz": [NAN] * 4},
        {"wxyz": [1]},
        {"fov": NAN},
        {"fov": 0},
        {"fov": 1e9},
        {"fov": None},
        {"image_width": 10**6, "image_height": 1},
        {"image_width": 10**9, "image_height": 10**9},
        {"image_width": 0, "image_height": -5},
        {"image_width": "wide"},
        {"image_height": NAN},
    ]
    values = [NAN, MUCH, -MUCH, "x", None, [], {"a": 1}, 2**63, True]
    updates = [(uuid, value) for label, uuid in controls.items() for value in values]
    bad = [msgspec.msgpack.encode(EYE | camera) for camera in cameras]
    for uuid, value in updates:
        bad.append(msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": uuid, "updates": {"value": value}}))
    bad += [
        msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": "nobody", "updates": {"value": 1}}),
        msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": controls["Time"], "updates": {"max": 1e9}}),
        msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": controls["Time"], "updates": 3}),
        msgspec.msgpack.encode({"type": "NoSuchMessage"}),
        msgspec.msgpack.encode([1, 2, 3]),
        msgspec.msgpack.encode({}),
        b"\xff" * 100,
        b"",
        "text",
    ]
    for riding in (True, False):
        update = {"type": "GuiUpdateMessage", "uuid": controls["Ride along"], "updates": {"value": riding}}
        for message in bad:
            with connected(served) as client, contextlib.suppress(websockets.ConnectionClosed):
                client.send(msgspec.msgpack.encode(EYE))
                client.send(msgspec.msgpack.encode(update))
                client.send(message)
                time.sleep(0.02)  # so that it is looked at
        answers(served)
    with connected(served) as client, contextlib.suppress(websockets.ConnectionClosed):
        for _ in range(20_000):
            client.send(bad[0])
    answers(served)
    with pytest.raises(websockets.ConnectionClosed), connected(served) as client:
        client.send(b"x" * (2 << 20))  # more than a browser ever says
        while True:
            client.recv(timeout=30)
    answers(served)
    # put back what the messages changed
    with connected(served) as client:
        for label, value in (("Time", 0.0), ("Play", False), ("Ride along", True), ("Motion", False), ("Speed", 0.5)):
            update = {"type": "GuiUpdateMessage", "uuid": controls[label], "updates": {"value": value}}
            client.send(msgspec.msgpack.encode(update))
    answers(served)


def test_other_origins_are_refused(served):
    for origin in ("http://elsewhere.example", "null"):
        with pytest.raises(websockets.InvalidStatus), connected(served, origin=origin):
            pass
    with connected(served, origin=served):
        pass
