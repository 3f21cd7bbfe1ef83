"""A process killed at a random moment leaves what the same command completes to the very same files."""

import random
import signal
import time

import av
import cv2
import forks
import numpy as np
import pytest
from click.testing import CliRunner
from prep_faces.cli import main
from recon4d.images import write_png

COUNT = 16


@pytest.fixture(scope="module")
def source(portrait, tmp_path_factory):
    """images/seq/00.png ... with a face that wanders, one of them broken, and clip.mp4 of the same face."""
    folder = tmp_path_factory.mktemp("source")
    small = cv2.resize(portrait[30:230, 40:240], (112, 112), interpolation=cv2.INTER_AREA)
    for i in range(COUNT):
        write_png(folder / "images" / "seq" / f"{i:02d}.png", np.roll(small, i, axis=1))
    (folder / "images" / "seq" / "07.png").write_bytes(b"broken")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 112, 112, "yuv420p"
        for i in range(2 * COUNT):
            frame = av.VideoFrame.from_ndarray(np.roll(small, i, axis=0), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder


def arguments(command, source, out):
    images = str(source / "images")
    if command == "frames":
        return ["frames", str(source / "clip.mp4"), "--out", str(out)]
    if command == "crop":
        config = out.parent / f"{out.name}.yaml"
        # Large crops: they take long enough to be caught at it.
        config.write_text(f"dataset: {source}\nprep_faces: {{input: images, output: {out}, size: 512}}\n")
        return ["crop", "--config", str(config), "--workers", "1"]
    if command == "detect":
        return ["detect", images, "--out", str(out), "--detector", "dlib", "--workers", "1"]
    return [command, images, "--out", str(out), "--workers", "2" if command == "landmarks" else "1"]


def contents(folder, skip=()):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in skip
    }


@pytest.mark.parametrize("command", ["frames", "detect", "landmarks", "matte", "crop", "ffhq"])
def test_kill_and_resume(source, tmp_path, command):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = CliRunner().invoke(main, arguments(command, source, whole))
    assert done.exit_code == 0, done.output
    chance = random.Random(command)
    table = {"crop": "crops", "detect": "faces"}.get(command, command)
    lines, pause = chance.randint(1, 4), chance.uniform(0, 0.01)
    process = forks.start("prep-faces", *arguments(command, source, killed))
    path = killed / f"{table}.jsonl"
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < lines):
        time.sleep(0.001)
    time.sleep(pause)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert path.read_bytes().count(b"\n") < len((whole / f"{table}.jsonl").read_text().splitlines())
    # The option `output` differs, and is recorded.
    skip = ("crops.json",) if command == "crop" else ()
    assert contents(killed, skip) != contents(whole, skip)
    done = CliRunner().invoke(main, arguments(command, source, killed))
    assert done.exit_code == 0, done.output
    assert contents(killed, skip) == contents(whole, skip)
