"""Training beside a camera: what is shown, learned and saved, the switches, and stages that die."""

import itertools
import json
import signal
import threading
import time
from dataclasses import replace

import cv2
import forks
import numpy as np
import pytest
import torch
from gaussian_avatar import live, live_frames, live_page, runs
from gaussian_avatar.config import load_config
from gaussian_avatar.live import Page, Seen, Wishes
from recon4d import InputError
from recon4d.formats import camera_stream, track_stream
from recon4d.formats.track import read as read_track
from recon4d.settings import write

CPU = torch.device("cpu")
ALL = tuple(range(24))  # frames
SMALL = [
    "model.tex_size=32",
    "model.basis=4",
    "model.hidden=16",
    "train.batch_size=3",
    "train.preview_seconds=0",
    "online.local_pool=6",
    "online.global_pool=10",
]


@pytest.fixture(scope="module")
def ring(tmp_path_factory, data_dir):
    """A camera's folder with the pictures of `data_dir`, and its track."""
    folder = tmp_path_factory.mktemp("ring")
    track = read_track(data_dir / "one/track.npz")
    for kind in (camera_stream.IMAGES, camera_stream.MATTES):
        (folder / kind).mkdir()
    for name in track.names:
        image = cv2.imread(str(data_dir / "one/images" / str(name)), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(folder / camera_stream.IMAGES / str(name)), image[..., :3])
        cv2.imwrite(str(folder / camera_stream.MATTES / str(name)), image[..., 3])
    return folder, track


def stream(ring, order=ALL, live=False, end="the clip ended", gone=(), **more):
    """A tracker's lines; of frames in `gone` the head is not seen."""
    folder, track = ring
    yield json.dumps(track_stream.header(track, folder=str(folder), live=live))
    for i in order:
        said = {"time": time.time(), "stages": {"camera": {"fps": 25.0, "ms": 9.0, "dropped": 0, "mib": 99}}} | more
        yield json.dumps(track_stream.frame(track, i, **said) | {"valid": i not in gone})
    if end:
        yield json.dumps(camera_stream.end(end))


def paced(lines, seconds=0.02):
    for line in lines:
        time.sleep(seconds)
        yield line


def trained(head, lines, output, page=None, *more, **options):
    config = load_config("cpu-online", [*SMALL, *more])
    output.mkdir(exist_ok=True)
    write(output / "config.yaml", config)
    tracked = track_stream.read_all(lines, "pipe")
    return live.run(config, head, tracked, output, CPU, page, log=options.pop("log", lambda _: None), **options)


def test_a_camera_is_learned_from_and_shown(head, ring, tmp_path):
    seen, said = [], []
    order = [*range(24), *range(23, -1, -1)] * 2
    page = Page(seen.append, Wishes())
    lines = paced(stream(ring, order, gone=(5,)))
    result = trained(head, lines, tmp_path / "w", page, log=said.append)
    assert result.frames == len(order) and result.dropped == 0 and result.ended == "the clip ended"
    assert said[-1] == f"the clip ended; the avatar is saved in {tmp_path / 'w'}" and result.images >= 30
    assert len(seen) == result.frames and seen[-1].figures["camera"]["fps"] == 25.0
    assert seen[-1].figures["learn"]["images"] > 0 and seen[-1].figures["age_ms"] < 5000
    assert seen[-1].avatar is not None and sum(item.avatar is None for item in seen) >= 4  # frame 5 came four times
    # The avatar is in the pose of the picture beside it, and looks like it.
    folder, track = ring
    matte = cv2.imread(str(folder / camera_stream.MATTES / str(track.names[0])), cv2.IMREAD_GRAYSCALE) / 255
    np.testing.assert_allclose(seen[-1].camera, seen[0].camera)
    inside = matte > 0.9
    off = np.abs(seen[-1].avatar[inside].astype(float) - seen[-1].camera[inside]).mean()
    assert off < 25 and seen[-1].avatar[matte < 0.05].mean() < 12
    run = runs.open_run(tmp_path / "w", CPU)
    assert len(run.avatar) == result.gaussians and len(run.track) == len(order) - 4
    assert torch.load(tmp_path / "w/checkpoint.pt", weights_only=True)["images"] == result.images


def test_pictures_have_cameras_of_their_own(head, ring, tmp_path):
    """A window that moves moves the principal point: the same picture a few pixels aside learns the same head."""
    folder, track = ring
    Ks = np.tile(track.K, (24, 1, 1))
    Ks[12:, 0, 2] += 6
    moved = tmp_path / "ring"
    for kind in (camera_stream.IMAGES, camera_stream.MATTES):
        (moved / kind).mkdir(parents=True)
        for i, name in enumerate(track.names):
            image = cv2.imread(str(folder / kind / str(name)), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(moved / kind / str(name)), np.roll(image, 6, 1) if i >= 12 else image)
    seen = []
    order = [i for k in range(8) for i in (k % 3, 12 + k % 3)]
    lines = paced(stream((moved, replace(track, Ks=Ks)), order), 0.05)
    trained(head, lines, tmp_path / "w", Page(seen.append, Wishes()))
    middles = []
    for i in (1, 13):
        item = next(item for item in reversed(seen) if item.figures["name"] == f"{i:05d}.png")
        x = np.nonzero(item.avatar.max(-1) > 60)[1]
        middles.append((x.mean(), np.nonzero(item.camera.max(-1) > 0)[1].mean()))
    assert middles[1][0] - middles[0][0] == pytest.approx(6, abs=3)


def test_what_is_late_is_dropped(head, ring, tmp_path, monkeypatch):
    show = live._show
    monkeypatch.setattr(live, "_show", lambda *args: (time.sleep(0.3), show(*args)))
    result = trained(head, stream(ring, [*range(24)] * 3, live=True), tmp_path / "w")
    assert result.dropped > 30 and result.frames + result.dropped == 72 and result.images > 0


def test_nothing_grows(head, ring, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TRACKED", 20)
    monkeypatch.setattr(live, "_learn", lambda session, state: setattr(state, "images", 1))
    monkeypatch.setattr(live, "_picture", lambda *_: np.zeros((64, 64, 3), np.uint8))
    states = []
    begin = live._begin
    monkeypatch.setattr(live, "_begin", lambda *args: states.append(begin(*args)) or states[-1])
    trained(head, stream(ring, itertools.islice(itertools.cycle(range(24)), 100)), tmp_path / "w")
    (state,) = states
    assert len(state.pools) == 16 and len(state.tracks) == 20 and state.pools.arrived == 100
    assert len(read_track(tmp_path / "w/track.npz")) == 20


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_the_switches(head, ring, tmp_path):
    """Freeze, save, start again, and end, while frames go on."""
    seen, said, wishes, kept = [], [], Wishes(), []
    lines = paced(stream(ring, itertools.cycle(range(24))), 0.01)
    output = tmp_path / "w"
    done = []
    arguments = (head, lines, output, Page(seen.append, wishes))
    thread = threading.Thread(
        target=lambda: done.append(trained(*arguments, log=said.append, keep=lambda: kept.append(1)))
    )
    thread.start()

    def images():
        return seen[-1].figures["learn"]["images"] if seen else 0

    until(lambda: images() > 6)
    wishes.learn = False

    def still():
        before = images()
        time.sleep(0.5)  # a step under way may end
        return images() == before

    until(still)
    frozen, shown = images(), len(seen)
    until(lambda: len(seen) > shown + 5)
    assert images() == frozen and seen[-1].avatar is not None  # it is driven, and learns nothing
    wishes.save = True
    until(lambda: (output / "model.ply").exists())
    until(lambda: kept)
    assert f"saved in {output}" in said and not (ring[0] / camera_stream.AGAIN).exists()
    wishes.again = True
    until(lambda: "a new avatar begins" in said)
    assert (ring[0] / camera_stream.AGAIN).exists()
    (ring[0] / camera_stream.AGAIN).unlink()
    (ring[0] / camera_stream.OVER).unlink(missing_ok=True)
    seen.clear()
    until(lambda: len(seen) > 3)
    assert images() == 0 and seen[-1].avatar is None
    wishes.learn = True
    until(lambda: images() > 6)
    wishes.stop = True
    thread.join(60)
    assert (ring[0] / camera_stream.OVER).exists()  # so the stages before know that all is well
    assert done[0].ended == "stopped" and len(runs.open_run(output, CPU).avatar) == done[0].gaussians


def test_a_tracker_that_dies_and_lines_that_break(head, ring, tmp_path):
    order = [*range(24)] * 2
    result = trained(head, paced(stream(ring, order, end="")), tmp_path / "a")
    assert result.ended == live.TRACKER_DIED and len(runs.open_run(tmp_path / "a", CPU).track) == 48
    broken = paced(itertools.chain(stream(ring, order, end=""), ['{"name": "x.p']))
    result = trained(head, broken, tmp_path / "b")
    assert "pipe, line 50 is not a JSON object" in result.ended and (tmp_path / "b/model.ply").exists()
    again = trained(head, paced(stream(ring, order)), tmp_path / "a", resume=True)
    assert again.images > 10
    for lines, message in (
        (stream(ring, []), "the clip ended before a face was learned"),
        (stream(ring, gone=range(24)), "the clip ended before a face was learned"),
        (stream((ring[0] / "no", ring[1])), "before a face was learned"),
        (iter(["[]"]), "not the header|not a JSON object"),
        (iter(()), "is empty"),
    ):
        with pytest.raises(InputError, match=message):
            trained(head, lines, tmp_path / "c")


def test_frames_whose_files_are_gone_are_passed_over(head, ring, tmp_path):
    folder, track = ring
    names = track.names.copy()
    names[3:9] = [f"gone{i}.png" for i in range(6)]
    result = trained(head, paced(stream((folder, replace(track, names=names)))), tmp_path / "w")
    assert result.frames == 18 and result.dropped == 6


def test_the_command_saves_when_it_is_told_to_end(head, ring, tmp_path):
    text = "\n".join(stream(ring, [*range(24)] * 3))
    words = [word for setting in SMALL for word in ("--set", setting)]
    where = ["--subject", "me", "--work-name", "w", "--output-dir", str(tmp_path)]
    args = ["train-online", *where, "--stream", "-", "--preset", "cpu-online", *words]
    done = forks.run("gaussian-avatar", *args, given=text)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ended"] == "the clip ended" and "the avatar is saved in" in done.stderr
    assert len(runs.open_run(tmp_path / "me/w", CPU).avatar) == result["gaussians"]
    for more, message in (
        (["--view"], "exists"),
        (["--force", "--images", str(ring[0] / "images")], "a camera's stream brings its pictures"),
        (["--force", "--view", "--images", str(ring[0] / "images")], "--view shows a camera's frames"),
    ):
        done = forks.run("gaussian-avatar", *args, *more, given=text)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "me/w/model.ply").exists()
    args[4] = "v"
    for text, message in (
        ("", "is empty: the command"),
        ('{"end": "prep-faces camera has died"}\n', "died before a frame"),
    ):
        done = forks.run("gaussian-avatar", *args, given=text)
        assert done.returncode == 2 and message in done.stderr and not (tmp_path / "me/v").exists(), done.stderr


def test_ctrl_c_saves_and_a_kill_leaves_what_was_saved(head, ring, tmp_path):
    words = [word for setting in (*SMALL, "train.preview_seconds=0.2") for word in ("--set", setting)]
    text = "\n".join(stream(ring, itertools.islice(itertools.cycle(range(24)), 5000)))  # more than will be taken
    for name, number in (("int", signal.SIGINT), ("term", signal.SIGTERM), ("kill", signal.SIGKILL)):
        where = ["--subject", "me", "--work-name", name, "--output-dir", str(tmp_path)]
        process = forks.start(
            "gaussian-avatar", "train-online", *where, "--stream", "-", "--preset", "cpu-online", *words, given=text
        )
        model = tmp_path / "me" / name / "model.ply"
        until(lambda model=model, process=process: model.exists() or process.poll() is not None)
        time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(60)
        assert "Traceback" not in err and len(runs.open_run(tmp_path / "me" / name, CPU).avatar) > 100
        if name != "kill":
            assert process.returncode == 0 and "stopped; the avatar is saved in" in err and '"ended": "stopped"' in out


def test_a_rim_takes_the_head_s_own_colours():
    y, x = np.mgrid[:96, :96]
    matte = np.clip(255 * (30 - np.hypot(x - 48, y - 48)) / 8, 0, 255).astype(np.uint8)
    front, back = np.array([150, 60, 40]), np.array([240, 240, 255])
    share = matte[..., None] / 255
    picture = np.rint(front * share + back * (1 - share)).astype(np.uint8)
    found = live_frames.own_colours(picture, matte)
    wrong = [(np.abs(image - front) * share).sum() for image in (found.astype(float), picture.astype(float))]
    assert wrong[0] < 0.5 * wrong[1]
    np.testing.assert_array_equal(found[matte == 255], picture[matte == 255])


def test_side_by_side_in_any_window():
    picture = np.full((64, 64, 3), 200, np.uint8)
    for aspect in (0.3, 1.0, 2.0, 4.0):
        image = live_page.composed(Seen(picture, picture // 2, {}), aspect)
        assert image.shape[1] / image.shape[0] == pytest.approx(aspect, rel=0.05)
        assert (image == 200).all(-1).sum() == 64 * 64 and (image == 100).all(-1).sum() == 64 * 64
    assert (live_page.composed(Seen(picture, None, {}), 2.0)[:, 64:] == live_page.GREY).all()
    text = live_page.table({"camera": {"fps": 24.9, "ms": 20.1, "dropped": 3, "mib": 200}, "latency_ms": 88}, False)
    assert "| camera | 24.9 | 20.1 | 3 | 200 |" in text and "88 ms" in text and "frozen" in text
    assert "0 images learned" in live_page.table({}, True)
