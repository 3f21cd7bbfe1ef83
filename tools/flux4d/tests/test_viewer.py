"""The viewer: its cameras by themselves, and the page as a browser shows it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from flux4d import scenes, viewer
from flux4d.gaussians import MovingGaussians, inverse_softplus
from flux4d.rendering import render
from flux4d.timed_cameras import at_times, timed_cameras
from recon4d import InputError
from scipy.spatial.transform import Rotation


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
    camera = viewer.free_camera(pose[:3, 3], np.array([w, x, y, z]), viewer.vertical_fov(path), 160, 90, 0.25)
    torch.testing.assert_close(camera.batch.K[0], path.batch.K[0])
    ours = viewer.picture(gaussians, camera, False)
    theirs = (render(gaussians, recorded).colour[0] * 255).numpy()
    assert np.abs(ours - theirs).max() < 1.5 and theirs.std() > 30
    motion = viewer.picture(gaussians, camera, True)
    assert motion[..., 0].max() > 60 and motion[..., 1:].max() < 60  # all that moves goes to the right


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


def test_in_a_browser(folder):
    command = Path(sys.executable).parent / "flux4d"
    server = subprocess.Popen(
        [command, "view", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        lines = ""
        while not lines.endswith("}\n"):
            lines += server.stdout.readline().decode()
        with browser.open_page(width=1000, height=600) as page:
            page.goto(json.loads(lines)["page"])
            page.get_by_text("Ride along").wait_for()
            first = settled(page, lambda column: column < 480)
            assert browser.slide(page, "Time", 1.0) == pytest.approx(1.0, abs=0.02)
            settled(page, lambda column: column > first + 100)
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
