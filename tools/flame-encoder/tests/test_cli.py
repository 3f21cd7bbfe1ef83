"""The commands as a shell runs them, on generated frames and landmarks, with good and bad input."""

import json
import re
from pathlib import Path

import av
import cv2
import forks
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from flame_encoder.cli import main
from flame_encoder.tracker import observations
from flame_files import flame_arrays, write_flame_pickle
from recon4d import head
from recon4d.formats import arkit, insta, track, track_stream


def run(*arguments, code=0, start=forks.run):
    """Run a command in a process of its own; wrong input in this one."""
    arguments = [str(a) for a in arguments]
    if code == 0:
        result = start("flame-encoder", *arguments)
        assert result.returncode == 0, result.stderr
        return result
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code and result.stderr.startswith(("error: ", "Usage: "))
    return result


@pytest.fixture
def frames(tmp_path):
    """Eight grey frames of 160x120 with the landmarks of a turning head; the fourth has none."""
    model = head.load()
    folder, points_folder = tmp_path / "clip é" / "frames", tmp_path / "clip é" / "landmarks"
    folder.mkdir(parents=True)
    points_folder.mkdir()
    lines = []
    for i in range(8):
        angle = torch.tensor(0.05 * i)
        c, s = angle.cos(), angle.sin()
        R = torch.tensor([[c, 0, s], [0, -1, 0], [s, 0, -c]])
        points = model.landmarks(model())[0] @ R.T + torch.tensor([0.0, 0.0, 0.6])
        pixels = (points[:, :2] / points[:, 2:] * 240 + torch.tensor([80.0, 60.0])).numpy().astype(np.float32)
        cv2.imwrite(str(folder / f"{i:05d}.png"), np.full((120, 160, 3), 100 + i, np.uint8))
        lines.append(json.dumps({"index": i, "name": f"{i:05d}.png", "time": i / 20}))
        if i != 3:
            np.save(points_folder / f"{i:05d}.npy", pixels)
    (folder.parent / "frames.jsonl").write_text("\n".join(lines))
    return folder


def arguments(frames, out, *more):
    return ("track", frames, "--landmarks", frames.parent / "landmarks", "--out", out, *more)


def test_track_writes_everything(frames, tmp_path):
    out = tmp_path / "data" / "me"
    result = run(*arguments(frames, out))
    figures = json.loads(result.stdout)
    assert figures["interpolated"] == 1 and "1 of 8 frames have no landmarks" in result.stderr
    assert figures["mean_iod"] < 3 and figures == json.loads((out / "track.json").read_text())
    found = track.read(out / "track.npz")
    assert found.fps == pytest.approx(20) and not found.valid[3] and found.valid.sum() == 7
    (out / "images").mkdir()
    for name in found.names:
        (out / "images" / name).touch()
    frames_read, notes = insta.read(out)  # the INSTA folder holds the same
    np.testing.assert_allclose(frames_read.R, found.R, atol=1e-5)
    np.testing.assert_allclose(frames_read.jaw, found.jaw, atol=1e-5)
    assert notes == []
    assert cv2.imread(str(out / "overlay.png")).shape[1] == 4 * 320
    with av.open(str(out / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
    before = (out / "track.npz").read_bytes()
    assert "--force" in run(*arguments(frames, out), code=2).stderr
    assert (out / "track.npz").read_bytes() == before
    run(*arguments(frames, out, "--force", "--no-preview", "--focal", 240, "--write", "arkit"))
    found = track.read(out / "track.npz")
    assert found.K[0, 0] == pytest.approx(240, rel=1e-3)
    written = arkit.read(out / "arkit.csv").values
    for i, name in enumerate(head.load().expression_names):
        if not name.startswith(("jaw", "eyeBlink")):
            np.testing.assert_allclose(
                written[:, arkit.NAMES.index(name)], found.expression[:, i].clip(0, 1), atol=1e-6
            )


@pytest.mark.parametrize("name", ["checkpoint/00000.frame", "overlay.png", "overlay.mp4", "track.json"])
@pytest.mark.parametrize("more", [(), ("--stream",)])
def test_what_another_tool_wrote_is_not_touched(frames, tmp_path, name, more):
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"theirs")
    for force in ((), ("--force",)):
        said = run(*arguments(frames, tmp_path / "data", *more, *force), code=2).stderr
        assert ("was not written by flame-encoder track" if force else "--force") in said
        assert path.read_bytes() == b"theirs" and [p for p in (tmp_path / "data").rglob("*") if p.is_file()] == [path]


def test_stream_prints_the_frames_of_the_track(frames, tmp_path):
    out = tmp_path / "out"
    result = run(*arguments(frames, out, "--stream", "--calibrate", 5, "--no-preview"))
    parts = list(track_stream.read(iter(result.stdout.splitlines()), "stdout"))
    written = track.read(out / "track.npz")
    assert [str(part.names[0]) for part in parts] == [f"{i:05d}.png" for i in range(8)]
    assert [bool(part.valid[0]) for part in parts] == [i != 3 for i in range(8)]
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part.R[0], written.R[i])
        np.testing.assert_array_equal(part.expression[0], written.expression[i])
    assert len(list((out / "checkpoint").glob("*.frame"))) == 8
    assert json.loads((out / "track.json").read_text())["extrapolated"] == 1


def test_landmarks_of_another_image_size_are_scaled(frames):
    points = frames.parent / "landmarks"
    before = observations.read(frames, points)
    for path in points.glob("*.npy"):
        np.save(path, np.load(path) * 2)
    lines = [json.dumps({"file": f"{i:05d}.png", "width": 320, "height": 240}) for i in range(8)]
    (points.parent / "landmarks.jsonl").write_text("\n".join(lines))
    after = observations.read(frames, points)
    np.testing.assert_allclose(after.landmarks, before.landmarks, rtol=1e-5)


@pytest.mark.parametrize(
    "case, message",
    [
        ("empty folder", "has no images"),
        ("a file", "is not a folder of frames"),
        ("no landmarks", "landmarks for none of the 8 frames"),
        ("landmarks missing", "is not a folder of landmarks"),
        ("truncated image", "00002.png is not a readable image"),
        ("truncated landmarks", "00002.npy is not a readable landmark file"),
        ("wrong landmarks", r"00002.npy has shape \(5, 2\)"),
        ("another size", "00002.png is 80x60"),
        ("focal", "--focal"),
        ("fps", "--fps"),
        ("iterations", "--iterations"),
        ("calibrate", "--calibrate"),
        ("person", "--person 1: .* shows 1 people"),
        ("follow", "--follow waits for frames"),
        ("photometric", "--photometric looks at the whole clip"),
        ("model", "does not exist"),
        ("FLAME without landmarks", "has no landmarks"),
        ("vhap", "--write vhap needs FLAME"),
    ],
)
def test_bad_input_says_what_is_wrong_and_writes_nothing(frames, tmp_path, case, message):
    out, points, more = tmp_path / "out", frames.parent / "landmarks", ()
    image = frames / "00002.png"
    if case == "empty folder":
        frames = tmp_path / "empty"
        frames.mkdir()
    elif case == "a file":
        frames = image
    elif case == "no landmarks":
        points = frames
    elif case == "landmarks missing":
        points = tmp_path / "nowhere"
    elif case == "truncated image":
        image.write_bytes(image.read_bytes()[:40])
    elif case == "truncated landmarks":
        path = points / "00002.npy"
        path.write_bytes(path.read_bytes()[:100])
    elif case == "wrong landmarks":
        np.save(points / "00002.npy", np.zeros((5, 2)))
    elif case == "another size":
        cv2.imwrite(str(image), np.zeros((60, 80, 3), np.uint8))
    elif case == "model":
        more = ("--head-model", tmp_path / "none.pkl")
    elif case == "FLAME without landmarks":
        write_flame_pickle(tmp_path / "m.pkl", flame_arrays())
        more = ("--head-model", tmp_path / "m.pkl")
    elif case == "vhap":
        more = ("--write", "vhap")
    elif case == "person":
        more = ("--person", "1")
    elif case == "follow":
        more = ("--follow",)
    elif case == "photometric":
        more = ("--photometric", "--stream")
    elif case == "calibrate":
        more = ("--stream", "--calibrate", "0")
    else:
        more = (f"--{case}", "0")
    error = run("track", frames, "--landmarks", points, "--out", out, *more, code=2).stderr
    assert re.search(message, error) and error.count("\n") == 1
    assert not out.exists() or not list(Path(out).rglob("*.*"))


def test_check_model(tmp_path):
    found = json.loads(run("check-model", "--render", tmp_path / "head.png", start=forks.anew).stdout)
    assert found["name"] == "open-head" and found["landmarks"] == 68 and found["skinning_error"] < 1e-4
    image = cv2.imread(str(tmp_path / "head.png"))
    assert image.shape == (512, 512, 3) and (image[..., 2].astype(int) - image[..., 1] > 150).sum() > 300  # red dots
    assert (image != 255).any(-1).mean() > 0.2
    assert "--force" in run("check-model", "--render", tmp_path / "head.png", code=2).stderr
    write_flame_pickle(tmp_path / "generic_model.pkl", flame_arrays())
    found = json.loads(run("check-model", tmp_path / "generic_model.pkl").stdout)
    assert found["vertices"] == 120 and found["shape_components"] == 300 and "FLAME" in found["licence"]
    (tmp_path / "hostile.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "os.system, which is not allowed" in run("check-model", tmp_path / "hostile.pkl", code=2).stderr
    heavy = flame_arrays()
    heavy["weights"] = heavy["weights"] * 2
    write_flame_pickle(tmp_path / "heavy.pkl", heavy)
    assert "do not sum to one" in run("check-model", tmp_path / "heavy.pkl", code=2).stderr


def test_photometric(frames, tmp_path):
    result = CliRunner().invoke(main, [str(a) for a in arguments(frames, tmp_path / "out", "--photometric")])
    assert result.exit_code == 0, result.output
    errors = json.loads(result.stdout)["photometric_error"]
    assert len(errors) > 1 and all(0 <= error < 0.2 for error in errors)  # a grey head before a grey wall
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 0
