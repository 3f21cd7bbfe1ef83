"""Training beside a stream: what it learns, what it writes, and that frames are neither lost nor counted twice."""

import itertools
import shutil

import cv2
import forks
import numpy as np
import pytest
import torch
from gaussian_avatar import avatars, evaluation, online, runs, streams
from gaussian_avatar.cli import main
from gaussian_avatar.config import load_config
from gaussian_avatar.running_mean import follow
from recon4d import InputError
from recon4d.formats import track_stream
from recon4d.formats.track import read as read_track
from recon4d.settings import write

CPU = torch.device("cpu")
SMALL = [
    "model.tex_size=32",
    "model.basis=4",
    "model.hidden=16",
    "train.batch_size=5",
    "train.blend_start=100",
    "train.preview_seconds=0",
    "online.local_pool=6",
    "online.global_pool=30",
]


def stream_training(head, folder, output, images_per_frame, *more, repeat=1, resume=False):
    config = load_config("cpu-online", [*SMALL, *more])
    output.mkdir(exist_ok=True)
    write(output / "config.yaml", config)
    stream = streams.from_folder(folder, head, config, CPU, repeat, lambda _: None)
    arrivals = streams.in_step(stream.frames, images_per_frame / 5)
    return online.train(config, head, arrivals, stream, output, CPU, resume, log=lambda _: None)


def held_out_psnr(folder, output):
    run = runs.open_run(output, CPU)
    frames = runs.held_out(run, None, lambda _: None)
    run, capture = runs.pictures(run, folder)
    return float(evaluation.measure(run, frames, capture)["psnr"].mean())


def steps_of(output):
    sample = [[int(word) for word in line.split()] for line in (output / "sample.txt").read_text().splitlines()]
    return sample, [int(line) for line in (output / "step2frame.txt").read_text().splitlines()]


def test_what_is_written_is_a_mean_over_steps(head, data_dir, tmp_path):
    """Learning is the same with and without it."""
    found = {}
    for average in (0.0, 0.9):
        output = tmp_path / str(average)
        stream_training(head, data_dir / "one", output, 25, f"online.average={average}")
        state = torch.load(output / "checkpoint.pt", weights_only=True)
        means = runs.open_run(output, CPU).avatar.means[state["seen"]]
        found[average] = (state, means, held_out_psnr(data_dir / "one", output))
    (raw, last, before), (same, mean, after) = found.values()
    assert all(torch.equal(value, same["attributes"][name]) for name, value in raw["attributes"].items())
    torch.testing.assert_close(last, raw["attributes"]["means"][raw["seen"]])
    assert not torch.allclose(mean, last, atol=1e-5) and min(before, after) > 24


def test_following_an_avatar(head):
    generator = torch.Generator().manual_seed(0)
    shown, avatar = (avatars.new(head, 24, 8, 2, 8, None, 0.5, generator) for _ in range(2))
    avatar.means.fill_(1.0)
    avatar.sh0.fill_(2.0)
    avatar.seen[:3] = True
    shown.seen[:2] = True
    weights = [x.detach().clone() for x in (shown.mlp[0].weight, avatar.mlp[0].weight)]
    follow(shown, avatar, 0.25)
    assert (shown.means == 0.25).all() and shown.sh0[:, 0].tolist()[:4] == [0.5, 0.5, 2.0, 0.5]
    assert torch.equal(shown.seen, avatar.seen)
    torch.testing.assert_close(shown.mlp[0].weight.detach(), 0.75 * weights[0] + 0.25 * weights[1])


def test_it_learns_while_frames_arrive(head, data_dir, tmp_path):
    result = stream_training(head, data_dir / "one", tmp_path / "a", 25)
    assert (result.frames, result.images, result.post_images) == (20, 5 * (1 + 2 + 3 + 4) + 80 * 5, 0)
    assert result.used == 20 and result.kept == 20
    after_stream = held_out_psnr(data_dir / "one", tmp_path / "a")
    assert after_stream > 24
    sample, newest = steps_of(tmp_path / "a")
    assert len(sample) == len(newest) == 100 and newest == [step // 5 for step in range(100)]
    assert all(max(frames) <= last and len(set(frames)) == len(frames) for frames, last in zip(sample, newest))
    assert sum(map(len, sample)) == result.images
    assert torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["images"] == result.images
    assert (tmp_path / "a" / "speed.txt").read_text().startswith("Training FPS: ")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        ["checkpoint.pt", "config.yaml", "model.ply", "sample.txt", "speed.txt", "step2frame.txt", "track.npz"]
    )
    # Going on: another showing of the clip, and a post-process.
    again = stream_training(head, data_dir / "one", tmp_path / "a", 5, "online.post_steps=40", resume=True)
    assert (again.images, again.post_images) == (1 + 2 + 3 + 4 + 16 * 5, 200)
    assert held_out_psnr(data_dir / "one", tmp_path / "a") > after_stream
    assert len(steps_of(tmp_path / "a")[0]) == 100 + 20 + 40


def test_a_long_stream_keeps_no_more_than_its_pools(head, data_dir, tmp_path):
    result = stream_training(head, data_dir / "one", tmp_path / "a", 0.5, "model.tex_size=16", repeat=30)
    assert (result.frames, result.kept) == (600, 36)
    sample, newest = steps_of(tmp_path / "a")
    assert newest[-1] == 599 and all(a <= b for a, b in itertools.pairwise(newest))
    # What is drawn is what is kept: at most 36 frames of which 6 are the newest.
    for frames, last in zip(sample, newest):
        assert sum(frame > last - 6 for frame in frames) >= len(frames) - 5 and max(frames) <= last
    assert len({frame for frames in sample for frame in frames}) == result.used
    assert len(read_track(tmp_path / "a/track.npz")) == 24  # not once per showing


def test_previews_are_whole_runs(head, data_dir, tmp_path, monkeypatch):
    """What is written on the way can be opened as a run at any time."""
    opened = []
    publish = online.publish

    def and_open(output, learner, stream):
        publish(output, learner, stream)
        opened.append(len(runs.open_run(output, CPU).avatar))

    monkeypatch.setattr(online, "publish", and_open)
    result = stream_training(head, data_dir / "one", tmp_path / "a", 5, "train.preview_seconds=1e-6")
    assert opened == [result.gaussians] * (20 + 1)  # each step, and the end


def test_what_can_not_be_streamed(head, data_dir, tmp_path):
    with pytest.raises(InputError, match="refine_pose is for train-offline"):
        stream_training(head, data_dir / "one", tmp_path, 5, "train.refine_pose=true")
    with pytest.raises(InputError, match="force_local and force_global exclude each other"):
        load_config("online", ["online.force_local=true", "online.force_global=true"])
    with pytest.raises(InputError, match="needs about"):
        stream_training(head, data_dir / "one", tmp_path, 5, "model.tex_size=60000")


@pytest.fixture(scope="module")
def words():
    return [word for setting in SMALL for word in ("--set", setting)]


def refused(capfd, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    out, err = capfd.readouterr()
    assert stop.value.code == 2 and out == "" and "Traceback" not in err
    return err


def test_a_tracker_s_pipe(data_dir, tmp_path, words, capfd):
    """Pictures and masks apart, frames through stdin of a process, by the clock of the pipe."""
    track = read_track(data_dir / "one/track.npz")
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for name in track.names:
        image = cv2.imread(str(data_dir / "one/images" / str(name)), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(tmp_path / "images" / str(name)), image[..., :3])
        cv2.imwrite(str(tmp_path / "masks" / str(name)), image[..., 3])
    text = "\n".join([track_stream.header_line(track), *track_stream.frame_lines(track)])
    where = ["--subject", "me", "--work-name", "w", "--output-dir", str(tmp_path)]
    args = ["train-online", *where, "--stream", "-", "--preset", "cpu-online", "--post-steps", "60", *words]
    args += ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"), "--log"]
    done = forks.run("gaussian-avatar", *args, given=text)
    assert done.returncode == 0, done.stderr
    assert '"frames": 24' in done.stdout and '"post_images": 300' in done.stdout
    assert list((tmp_path / "me/w").glob("events.out.tfevents.*"))
    found = read_track(tmp_path / "me/w/track.npz")
    np.testing.assert_allclose(found.expression, track.expression)
    # Metrics find the pictures again, and say that they are no test.
    with pytest.raises(SystemExit) as stop:
        main(["metrics", *where])
    out, err = capfd.readouterr()
    assert stop.value.code == 0 and '"psnr"' in out and "trained on its all frames" in err

    assert "exists" in refused(capfd, *args)
    assert "ended before" in refused(
        capfd, *args[:4], "x", *args[5:7], "--stream", only_header(tmp_path, track), *args[9:]
    )
    assert "is empty" in refused(capfd, *args[:4], "y", *args[5:7], "--stream", "/dev/null", *args[9:])
    assert not (tmp_path / "me/y/model.ply").exists()


def only_header(folder, track):
    (folder / "header.jsonl").write_text(track_stream.header_line(track))
    return folder / "header.jsonl"


def test_a_folder_at_its_pace_and_options_that_do_not_fit(data_dir, tmp_path, words, capfd):
    shutil.copytree(data_dir / "one", tmp_path / "data/me")
    where = ["--subject", "me", "--data-dir", tmp_path / "data", "--output-dir", tmp_path]
    common = ["train-online", *where, "--preset", "cpu-online", *words]
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in (*common, "--video_fps", 50)])
    out, _ = capfd.readouterr()
    assert stop.value.code == 0 and '"frames": 20' in out
    fresh = [*common, "--work-name", "x"]
    assert "are for the frames of --stream" in refused(capfd, *fresh, "--masks", tmp_path)
    assert "whose end is known" in refused(capfd, *fresh, "--stream", "/dev/null", "--repeat", 2)
    assert "exclude each other" in refused(capfd, *fresh, "--config", "online")
    (tmp_path / "data/me/images/00004.png").write_bytes(b"no")
    assert "00004.png is not a readable image" in refused(capfd, *fresh, "--images-per-frame", 5)
    assert not (tmp_path / "me/x/model.ply").exists()
