"""The commands, from a capture to pictures under other lights, and what they say to bad input.

The demo's test runs the same commands as subprocesses; here they run in this process, but for import.
"""

import json
import shutil

import av
import cv2
import forks
import numpy as np
import pytest
from eyeball_relight.cli import main
from eyeball_relight.pictures import read_picture, write_picture


def run(capfd, *args):
    """A command's JSON result and what it logged."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    out, err = capfd.readouterr()
    assert stop.value.code == 0, err
    return json.loads(out), err


def refused(capfd, *args):
    """The one sentence with which a command refuses its input, exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    out, err = capfd.readouterr()
    assert stop.value.code == 2 and out == "", err
    lines = [line for line in err.splitlines() if line.startswith(("error: ", "Error: "))]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


@pytest.fixture(scope="module")
def exported(trained, data, tmp_path_factory):
    """The asset of the short training, exported by the trainer's own mode."""
    _, _, out, _ = trained
    folder = tmp_path_factory.mktemp("cli") / "asset"
    arguments = ["train", "--config_path", data / "config.yaml", "--mode", "export_eyeball", "--ckpt_path"]
    arguments += [out / "latest.pth", "--save_visual_dir", folder, "--chunk_size", 3000, "--device", 0]
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code == 0
    return folder


def test_export_writes_everything(exported):
    names = ["mesh.obj", "mesh_uv.obj", "mesh_uv.mtl", "diffuse.png", "specular.png", "roughness.png", "normal.png"]
    names += ["coord.npz", "light.npz", "asset.json", "asset.glb", "preview.html"]
    names += [f"{part}/{name}" for part in ("left", "right") for name in ("mesh_uv.obj", "diffuse.png", "coord.npz")]
    assert all((exported / name).stat().st_size > 0 for name in names)
    summary = json.loads((exported / "asset.json").read_text())
    assert summary["triangles"] > 100 and 0.012 < summary["radius"] < 0.02


def test_metrics_and_relighting(exported, data, capfd, tmp_path):
    scores, _ = run(capfd, "metrics", exported, "--data-root", data)
    assert {"psnr", "relit_psnr", "normal_deg", "albedo_error", "chamfer_mm", "eye_centre_mm"} <= set(scores)
    done, _ = run(capfd, "relight", exported, tmp_path / "a.mp4", "--frames", 3, "--size", 48)
    assert done["width"] == 48
    with av.open(str(tmp_path / "a.mp4")) as video:
        frames = [f.to_ndarray(format="rgb24").astype(float) for f in video.decode(video=0)]
    assert len(frames) == 3 and all(f.max() > 30 for f in frames) and np.abs(frames[0] - frames[1]).max() > 20
    cv2.imwrite(str(tmp_path / "sky.hdr"), np.full((8, 16, 3), 0.8, np.float32))
    modes = (("turntable",), ("environment", "--environment", tmp_path / "sky.hdr"))
    for mode in modes:
        out = tmp_path / mode[0]
        run(capfd, "relight", exported, out, "--mode", *mode, "--frames", 2, "--size", 48)
        assert sorted(p.name for p in out.iterdir() if p.is_file()) == ["0000.png", "0001.png"]
        assert all(read_picture(p, 3).max() > 0.1 for p in out.glob("*.png"))


def test_marks_and_painted_masks(exported, data, capfd, tmp_path):
    """The way by hand: green marks give landmarks for the config, white eyes give masks."""
    capture = tmp_path / "capture"
    shutil.copytree(data, capture, ignore=shutil.ignore_patterns("truth", "?eye_mask"))
    picture = read_picture(exported / "diffuse.png", 3)
    with np.load(exported / "coord.npz") as arrays:
        mask, coord = arrays["mask"], arrays["coord"]
    spots = np.argwhere(cv2.erode(mask.astype(np.uint8), np.ones((9, 9))))[[0, -1]]
    for side, spot in zip(("left", "right"), spots):
        marked, white = picture.copy(), np.zeros(mask.shape, np.float32)
        marked[spot[0] - 1 : spot[0] + 2, spot[1] - 1 : spot[1] + 2] = (0, 1, 0)
        white[(np.linalg.norm(coord - coord[tuple(spot)], axis=2) < 0.02) & mask] = 1
        write_picture(tmp_path / f"{side}.png", marked)
        write_picture(capture / f"diffuse_{side[0]}eye_mask.png", white)
    arguments = ["--data-root", capture, "--asset", exported, "--write", capture / "config.yaml"]
    arguments += ["--left", tmp_path / "left.png", "--right", tmp_path / "right.png"]
    found, _ = run(capfd, "eyeball-landmarks", *arguments)
    assert np.linalg.norm(np.array(found["left_eye_ldm"][0]) - coord[tuple(spots[0])]) < 2e-3
    assert "left_eye_ldm" in (capture / "config.yaml").read_text()
    counts, _ = run(capfd, "render-eye-mask", "--data_root", capture, "--mesh_uv_path", exported / "mesh_uv.obj")
    assert counts["views"] == 11 and min(counts["left_pixels"], counts["right_pixels"]) > 0
    assert len(list((capture / "leye_mask").iterdir())) == 11
    again = refused(capfd, "render-eye-mask", "--data-root", capture, "--mesh-uv-path", exported / "mesh_uv.obj")
    assert "leye_mask exists" in again


def test_import_as_a_subprocess(data, tmp_path):
    arguments = ["import", data / "transforms.json", "--images", data / "image", "--masks", data / "mask"]
    arguments += ["--out", tmp_path / "out"]
    done = forks.anew("eyeball-relight", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 11 and len(list((tmp_path / "out" / "mask").iterdir())) == 11
    ours, theirs = (read_picture(p / "image" / "0004.png", 3) for p in (tmp_path / "out", data))
    np.testing.assert_allclose(ours, theirs, atol=1 / 255)


def test_bad_input(exported, trained, data, capfd, tmp_path):
    _, _, out, _ = trained
    config, checkpoint = data / "config.yaml", out / "latest.pth"
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    (tmp_path / "a.MP4").touch()
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:999])
    export = ["export", "--config-path", config, "--save-visual-dir", tmp_path / "x", "--ckpt-path"]
    train = ["train", "--config-path", config, "--workspace", tmp_path / "w"]
    for arguments, message in (
        (["train", "--config-path", tmp_path / "none.yaml"], "is not a file"),
        (["train", "--config-path", full], "is not a file"),
        ([*train, "--set", "train.speed=9"], "train.speed is not known"),
        ([*train, "--device", "cuda:99"], "--device cuda:99"),
        ([*train, "--resume", "--force"], "give one"),
        ([*train, "--mode", "export_eyeball"], "needs --ckpt-path"),
        (["train", "--config-path", config, "--workspace", full], "exists; give another output or --force"),
        ([*export, tmp_path / "none.pth"], "does not exist"),
        ([*export, tmp_path / "cut.pth"], "is not a readable checkpoint"),
        (["export", "--config-path", config, "--ckpt-path", checkpoint, "--save-visual-dir", full], "exists"),
        (["synth", full], "exists"),
        (["synth", tmp_path / "s", "--frames", 2], "Invalid value for '--frames'"),
        (["metrics", full, "--data-root", data], "holds no mesh_uv.obj"),
        (["metrics", exported, "--data-root", full], "transforms.json does not exist"),
        (["relight", exported, tmp_path / "o", "--mode", "environment"], "--environment PICTURE goes with"),
        (["relight", exported, full], "exists"),
        (["eyeball-landmarks", "--data-root", data, "--asset", exported], "give --left and --right"),
        (["eyeball-landmarks", "--data-root", data, "--asset", exported, "--landmarks", full], "landmarks of 0"),
        (["eyeball-landmarks", "--data-root", data, "--asset", full, "--landmarks", full], "coord.npz does not exist"),
        (["render-eye-mask", "--data-root", full, "--mesh-uv-path", exported / "mesh_uv.obj"], "transforms.json"),
        (["import", tmp_path / "a.MP4", tmp_path / "i"], "is a video"),
        (["import", tmp_path, tmp_path / "i"], "goes with --images"),
        (["import", tmp_path, tmp_path / "i", "--poses", "track"], "has no track.npz"),
        (["import", tmp_path, "--images", full], "say once where the capture goes"),
        (["metrics", exported, "--data-root", data, "--truth", full], "has no source.json"),
        (["import", tmp_path, "--images", full, "--out", tmp_path / "i"], "neither images.bin nor images.txt"),
    ):
        assert message in refused(capfd, *arguments)
