"""The commands as a user runs them, from an empty folder to a video, and what they say to bad input."""

import json
import shutil
from pathlib import Path

import av
import cv2
import forks
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from gaussian_avatar.cli import main
from plyfile import PlyData
from recon4d.formats.track import Track
from recon4d.formats.track import read as read_track
from recon4d.head import load
from scipy.spatial.transform import Rotation

QUICK = ["--preset", "cpu-quick"] + [
    word
    for setting in (
        "model.tex_size=32",
        "model.basis=4",
        "model.hidden=16",
        "train.batch_size=5",
        "train.iterations=150",
        "train.blend_start=50",
        "train.preview_seconds=0",
        "data.crop=false",
    )
    for word in ("--set", setting)
]


def run(*args, start=forks.run):
    """A process of its own; its JSON result and stderr."""
    done = start("gaussian-avatar", *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def refused(capfd, *args):
    """The one sentence with which a command refuses its input, exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    out, err = capfd.readouterr()
    assert stop.value.code == 2 and out == "", err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """synth and train-offline as subprocesses; the folder they ran in and both results."""
    folder = tmp_path_factory.mktemp("cli")
    synth, _ = run(
        "synth", folder / "data", "--subject", "me", "--frames", 14, "--size", 64, "--seed", 2, start=forks.anew
    )
    paths = ["--data_dir", folder / "data", "--output_dir", folder / "output"]  # RGBAvatar's spelling
    train, log = run("train-offline", "--subject", "me", "--work_name", "w", *paths, *QUICK, "--log")
    assert "the clip has 14 frames: its last 2 (15%) are held out" in log
    return folder, synth, train


def test_synth_and_train(trained):
    folder, synth, train = trained
    assert (synth["frames"], synth["size"]) == (14, 64)
    assert json.loads((folder / "data/me/synth.json").read_text())["seed"] == 2
    assert len(list((folder / "data/me/images").glob("*.png"))) == 14
    output = folder / "output/me/w"
    assert train["images"] == 150 and train["images_per_second"] > 0 and train["folder"] == str(output)
    assert len(PlyData.read(output / "model.ply")["vertex"]) == train["gaussians"] > 300
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["model"]["tex_size"] == 32 and config["data_dir"] == str(folder / "data")
    assert list(output.glob("events.out.tfevents.*")) and (output / "speed.txt").exists()
    assert not list(output.glob(".recon4d-*"))


def test_import(trained, broken, capfd):
    with pytest.raises(SystemExit) as stop:
        main(["import", str(trained[0] / "data/me")])
    found = json.loads(capfd.readouterr().out)
    assert stop.value.code == 0 and (found["frames"], found["tracked"], found["width"]) == (14, 14, 64)
    track = read_track(trained[0] / "data/me/track.npz")
    # Yaw about the vertical axis, to the person's left, as SciPy takes it from the rotation.
    yaw = Rotation.from_matrix(np.diag([1.0, -1, -1]) @ track.R).as_euler("YXZ", degrees=True)[:, 0]
    assert (found["yaw_from"], found["yaw_to"]) == pytest.approx((yaw.min(), yaw.max()), abs=0.01)
    assert 0.1 < found["head_share"] < 0.6
    (broken / "data/me/images/00004.png").write_bytes(b"no")
    assert "00004.png is not a readable image" in refused(capfd, "import", broken / "data/me")


def test_metrics(trained):
    folder = trained[0]
    means, _ = run("metrics", "--subject", "me", "--work-name", "w", "--output-dir", folder / "output")
    output = folder / "output/me/w"
    assert means == json.loads((output / "metrics.json").read_text())
    assert means["frames"] == 2 and means["psnr"] > 20 and 0.3 < means["ssim"] <= 1
    with np.load(output / "metrics.npz") as values:
        assert values["frame"].tolist() == [12, 13]
        for name in ("l1_error", "l2_error", "psnr", "ssim", "lpips", "full_psnr", "full_ssim"):
            assert values[name].shape == (2,)
        assert values["psnr"].mean() == pytest.approx(means["psnr"], abs=1e-5)
        np.testing.assert_allclose(values["psnr"], -10 * np.log10(values["l2_error"]), rtol=1e-4)
    assert (output / "metrics.txt").read_text().startswith("l1_error: ")
    sheet = cv2.imread(str(output / "contact.png"))
    assert sheet.shape == (3 * 64, 2 * 64, 3)
    truth = cv2.imread(str(folder / "data/me/images/00012.png"), cv2.IMREAD_UNCHANGED)
    shown = sheet[:64, :64].astype(int)[truth[..., 3] == 255]
    assert np.abs(shown - truth[..., :3][truth[..., 3] == 255]).max() <= 1


def test_fitted_poses_undo_a_wrong_track(trained, tmp_path, capfd):
    """The held-out poses turned by three degrees: the metrics fall, those with fitted poses do not."""
    shutil.copytree(trained[0] / "output/me/w", tmp_path / "me/w")
    track = read_track(tmp_path / "me/w/track.npz")
    R = track.R.copy()
    R[12:] = R[12:] @ Rotation.from_euler("y", 3, degrees=True).as_matrix().astype(np.float32)
    Track(**(vars(track) | {"R": R})).write(tmp_path / "me/w/track.npz")
    with pytest.raises(SystemExit):
        main(
            [
                "metrics",
                "--subject",
                "me",
                "--work-name",
                "w",
                "--output-dir",
                str(tmp_path),
                "--refine-pose",
                "--force",
            ]
        )
    means = json.loads(capfd.readouterr().out)
    before = json.loads((trained[0] / "output/me/w/metrics.json").read_text())
    assert "refined_psnr" not in before and means["psnr"] < before["psnr"] - 0.5
    assert means["refined_psnr"] > means["psnr"] + 0.5 and means["refined_ssim"] > means["ssim"]


def test_render(trained, capfd):
    folder = trained[0]
    common = ["--subject", "me", "--work-name", "w", "--output-dir", folder / "output"]
    result, _ = run("render", *common, "--turn", 60, "--white-bg")
    output = folder / "output/me/w"
    images = sorted((output / "render_image").glob("*.png"))
    assert [path.name for path in images] == [f"{i:05d}.png" for i in range(14)]
    with av.open(str(output / "render.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == result["video_frames"] == 14 + 125
    assert frames[0][0, 0].min() > 245
    # The turn goes to both sides: the head's picture changes, and comes back.
    turn = np.array([np.abs(frame.astype(int) - frames[14]).mean() for frame in frames[14:]])
    assert turn[31] > 3 and turn[94] > 3 and turn[-1] < 0.5 * turn[31]

    # Another track, here the same backwards; RGBA.
    track = read_track(folder / "data/me/track.npz")
    order = np.arange(14)[::-1]
    Track(
        **{
            k: (v[order] if getattr(v, "ndim", 0) and len(v) == 14 and k != "names" else v)
            for k, v in vars(track).items()
        }
    ).write(folder / "backwards.npz")
    first = cv2.imread(str(output / "render_image/00000.png")).astype(int)
    with pytest.raises(SystemExit) as stop:
        main([str(x) for x in ("render", *common, "--alpha", "--force", "--track", folder / "backwards.npz")])
    assert stop.value.code == 0
    assert json.loads(capfd.readouterr().out)["frames"] == 14
    last = cv2.imread(str(output / "render_image/00013.png"), cv2.IMREAD_UNCHANGED)
    assert last.shape == (64, 64, 4) and last[0, 0, 3] == 0 and last[32, 32, 3] > 240
    over = last[..., :3] * (last[..., 3:] / 255) + 255 * (1 - last[..., 3:] / 255)
    # Frame 0 stands where it stood: the track's own camera follows its own first frame, which cancels.
    assert np.abs(over - first).mean() < 6


KILLED = """
import os, signal, sys
from gaussian_avatar import learners
from click.testing import CliRunner
from gaussian_avatar.cli import main

take_step = learners.step

def until(last):
    def killing(learner, batch, images, *more):
        if images == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(learner, batch, images, *more)
    return killing

for moment in map(int, sys.argv[1].split(",")):
    if os.fork() == 0:
        learners.step = until(moment)
        main([*sys.argv[2:], "--work-name", str(moment)])
    os.wait()
"""


def killed(moments, *words):
    """A command that is killed when it has learned from so many images, once for each moment, as its work name."""
    done = forks.run("python", "-c", KILLED, ",".join(map(str, moments)), *words)
    assert done.returncode == 0, done.stderr


def test_killed_offline(trained, tmp_path):
    """Before the first checkpoint, after it and near the end: --resume ends as a run that was never stopped."""
    where = ["train-offline", "--subject", "me", "--output-dir", tmp_path]
    words = [*where, "--data-dir", trained[0] / "data", *QUICK, "--set", "train.checkpoint_every=20"]
    words += ["--set", "train.iterations=60"]
    killed((10, 30, 55), *words)
    assert said(*words, "--work-name", "whole").exit_code == 0
    expected = PlyData.read(tmp_path / "me/whole/model.ply")["vertex"].data
    for name, kept in (("10", None), ("30", 20), ("55", 40)):
        out = tmp_path / "me" / name
        assert (out / "config.yaml").is_file() and (out / "checkpoint.pt").is_file() == (kept is not None)
        if kept is None:  # nothing to lose: the same command works again
            shutil.copytree(out, tmp_path / "me/again")
            assert said(*words, "--work-name", "again").exit_code == 0
        else:
            refused = said(*words, "--work-name", name)
            assert refused.exit_code == 2 and "--resume to go on or --force" in refused.stderr
            other = said(*words, "--work-name", name, "--resume", "--set", "train.rates.mlp=0.5")
            assert other.exit_code == 2 and "whose train.rates.mlp is another" in other.stderr
        more = words if name == "55" else where  # the same command again, or --resume alone
        resumed = said(*more, "--work-name", name, "--resume")
        assert resumed.exit_code == 0, resumed.output
        assert (f"resumed at image {kept}" if kept else "training begins anew") in resumed.stderr
        found = PlyData.read(out / "model.ply")["vertex"].data
        for column in found.dtype.names:  # the last bits of a step depend on how threads share the work
            different = np.abs(found[column] - expected[column]) > 1e-3 * np.abs(expected[column]).max() + 1e-9
            assert different.mean() < 0.01, column


def test_killed_online(trained, tmp_path):
    """The frames of the stream before are gone, what was learned from them is not."""
    where = ["train-online", "--subject", "me", "--output-dir", tmp_path, "--images-per-frame", 5]
    words = [*where, "--data-dir", trained[0] / "data", "--preset", "cpu-online", *QUICK[2:]]
    words += ["--set", "train.checkpoint_every=20"]
    assert said(*words, "--work-name", "whole").exit_code == 0
    moments = np.cumsum([len(line.split()) for line in (tmp_path / "me/whole/sample.txt").read_text().splitlines()])
    killed(moments[[1, 5, -2]], *words)
    for name in map(str, moments[[1, 5, -2]]):
        kept = (tmp_path / "me" / name / "checkpoint.pt").is_file()
        assert kept == (int(name) >= 20)
        resumed = said(*where, "--work-name", name, "--resume")
        assert resumed.exit_code == 0, resumed.output
        assert ("resumed after" if kept else "training begins anew") in resumed.stderr
        assert (tmp_path / "me" / name / "model.ply").is_file()


def said(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def broken(trained, tmp_path):
    shutil.copytree(trained[0] / "data/me", tmp_path / "data/me")
    return tmp_path


def training(folder, *more):
    paths = ["--data-dir", folder / "data", "--output-dir", folder / "output"]
    return ["train-offline", "--subject", "me", "--work-name", "w", *paths, *QUICK, *more]


def test_nothing_is_overwritten_or_lost(trained, capfd):
    folder = trained[0]
    model = (folder / "output/me/w/model.ply").read_bytes()
    assert "exists; give another output or --force" in refused(capfd, *training(folder))
    # Bad input with --force does not cost the old run either.
    sentence = refused(capfd, *training(folder, "--force", "--set", "train.batch_size=13"))
    assert "train.batch_size 13 is larger than the 12 training frames" in sentence
    assert "exists" in refused(capfd, "synth", folder / "data", "--subject", "me")
    assert (folder / "output/me/w/model.ply").read_bytes() == model


def test_data_that_does_not_fit(broken, capfd):
    images = broken / "data/me/images"
    path = images / "00003.png"
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), image[..., :3])
    assert "00003.png has no alpha channel" in refused(capfd, *training(broken))
    assert "00003.png has no alpha channel" in refused(capfd, *training(broken, "--no-preload"))
    path.unlink()
    assert "00003 has a frame but no image" in refused(capfd, *training(broken))
    (broken / "data/me/track.npz").write_bytes(b"PK")
    assert "track.npz is not a readable npz file" in refused(capfd, *training(broken))
    shutil.rmtree(broken / "data/me")
    assert "is not a folder" in refused(capfd, *training(broken))
    assert not (broken / "output").exists()  # nothing half-made


def test_options_that_do_not_fit(trained, tmp_path, capfd):
    folder = trained[0]
    fresh = ["--work-name", "x"]
    assert "needs about" in refused(capfd, *training(folder, *fresh, "--set", "model.tex_size=90000"))
    assert "the key model.texsize is not known" in refused(capfd, *training(folder, *fresh, "--set", "model.texsize=9"))
    assert "exclude each other" in refused(capfd, *training(folder, *fresh, "--config", "offline"))
    assert "plain folder name" in refused(capfd, *training(folder, "--work-name", "../x"))
    assert "not a device" in refused(capfd, *training(folder, *fresh, "--device", "tpu"))
    assert "does not exist" in refused(capfd, *training(folder, *fresh, "--head-model", tmp_path / "flame.pkl"))
    assert "is not a folder" in refused(capfd, "train-offline", "--subject", "nobody", "--resume")
    out = ["--output-dir", folder / "output"]
    assert "holds no training run" in refused(capfd, "metrics", "--subject", "nobody", *out)
    assert "holds no training run" in refused(capfd, "render", "--subject", "nobody", *out)
    run_w = ["--subject", "me", "--work-name", "w", *out]
    assert "--split 99 leaves no frame" in refused(capfd, "metrics", *run_w, "--split", 99)
    assert "--data-dir" in refused(capfd, "metrics", *run_w, "--data-dir", tmp_path)
    assert "does not exist" in refused(capfd, "render", *run_w, "--track", tmp_path / "no.npz")
    track = read_track(folder / "data/me/track.npz")
    wide = np.zeros((14, 400), np.float32)
    Track(**(vars(track) | {"expression": wide})).write(tmp_path / "flame.npz")
    assert "400 expression coefficients" in refused(capfd, "render", *run_w, "--track", tmp_path / "flame.npz")
    assert "must be even" in refused(capfd, "synth", tmp_path / "s", "--size", 65)
    assert not (tmp_path / "s").exists()


def test_a_flame_file_can_drive_it(trained, tmp_path):
    """The whole way on another head model: a FLAME-format npz without eyelids, albedo or expression names."""
    head = load()
    path: Path = tmp_path / "generic_model.npz"
    parents = np.array([4294967295, 0, 1, 1, 1], np.int64)
    directions = np.concatenate([head.shapedirs[:, :, :10].numpy(), head.expressiondirs[:, :, :12].numpy()], 2)
    np.savez(
        path,
        v_template=head.v_template.numpy(),
        shapedirs=directions,
        n_identity=10,
        posedirs=head.posedirs.numpy(),
        J_regressor=head.J_regressor.numpy(),
        weights=head.weights.numpy(),
        kintree_table=np.stack([parents, np.arange(5)]),
        f=head.faces.numpy(),
        vt=head.vt.numpy(),
        ft=head.ft.numpy(),
    )
    common = ["--head-model", path]
    out, data = tmp_path / "output", tmp_path / "data"
    for args in (
        ["synth", data, "--subject", "me", "--frames", 8, "--size", 48, *common],
        ["train-offline", "--subject", "me", "--data-dir", data, "--output-dir", out, *QUICK, *common],
        ["metrics", "--subject", "me", "--output-dir", out],
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        assert stop.value.code == 0
    assert json.loads((out / "me/default/metrics.json").read_text())["psnr"] > 18
