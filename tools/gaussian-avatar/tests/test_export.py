"""Exports: static files that other programs read, and the compact avatar."""

import json
from dataclasses import replace

import forks
import gsply
import numpy as np
import pytest
import torch
from gaussian_avatar import avatars, exports, model_file, motions, rendering, runs
from gaussian_avatar.cli import main
from gaussian_avatar.config import load_config
from recon4d import InputError, splat
from recon4d.formats.track import read as read_track
from recon4d.settings import write
from recon4d.splat import scene_files
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def folder(head, data_dir, tmp_path_factory):
    """A run whose avatar has random attributes and a random basis."""
    folder = tmp_path_factory.mktemp("output") / "one/w"
    folder.mkdir(parents=True)
    track = read_track(data_dir / "one/track.npz")
    track.write(folder / "track.npz")
    write(folder / "config.yaml", load_config("cpu-quick", data_dir=str(data_dir)))
    generator = torch.Generator().manual_seed(0)
    avatar = avatars.new(head, 48, motions.n_inputs(head), 5, 16, None, 0.9, generator)
    changed = {}
    for name, spread in (("means", 1e-3), ("log_scales", 0.3), ("quats", 0.3), ("sh0", 0.5)):
        value = getattr(avatar, name)
        changed[name] = value + spread * torch.randn(value.shape, generator=generator)
    for name, spread in (("mean_basis", 5e-4), ("quat_basis", 0.2), ("sh0_basis", 0.3)):
        changed[name] = spread * torch.randn(getattr(avatar, name).shape, generator=generator)
    seen = torch.rand(len(avatar), generator=generator) < 0.9
    model_file.write_ply(folder / "model.ply", replace(avatar, seen=seen, **changed))
    return folder


@pytest.fixture
def run(folder):
    return runs.open_run(folder, torch.device("cpu"))


def test_static_file_shows_the_frame(run, tmp_path):
    (path,) = exports.write_statics(run, run.motion, [7], tmp_path)
    gaussians = splat.read_ply(path)
    motion = run.motion
    with torch.no_grad():
        splats, _ = avatars.deform(
            run.avatar, run.head, motion.vertices[7:8], motion.inputs[7:8], motion.camera.world_to_camera
        )
        expected, _ = avatars.rasterize(splats, motion.camera)
        found, _, _ = splat.rasterize(
            gaussians.means,
            gaussians.quats,
            gaussians.scales,
            gaussians.opacities,
            gaussians.sh,
            motion.camera.world_to_camera[None],
            motion.camera.K[None],
            motion.camera.width,
            motion.camera.height,
            sh_degree=0,
        )
    assert expected.max() > 0.5 and (found - expected).abs().max() < 2e-3
    # Another program's reader agrees, and those never seen are gone.
    data = gsply.plyread(str(path))
    np.testing.assert_allclose(data.means, gaussians.means, atol=1e-6)
    assert len(data.means) == int(run.avatar.seen.sum()) < len(run.avatar)


def test_a_face_that_was_never_tracked(run):
    names = run.head.expression_names
    neutral = exports.posed(run, (f"{names[0]}=0",), 0.0)
    smile = exports.posed(run, ("mouthSmileLeft=1",), 0.0)
    expected = run.head.expressiondirs[:, :, names.index("mouthSmileLeft")].norm(dim=1)
    moved = (smile.vertices - neutral.vertices)[0].norm(dim=1)
    assert np.corrcoef(moved, expected)[0, 1] > 0.99 and moved.max() > 2e-3
    opened = exports.posed(run, (f"{names[0]}=0",), 25.0)
    assert ((opened.vertices - neutral.vertices)[0, :, 1].min()) < -5e-3  # the chin goes down
    with pytest.raises(InputError, match="--expression grin is not one of the head model's: "):
        exports.posed(run, ("grin=1",), None)
    with pytest.raises(InputError, match="--expression mouthSmileLeft must be name=number"):
        exports.posed(run, ("mouthSmileLeft",), None)


def test_beyond_the_clip_the_basis_stays_at_its_edge(run):
    one = replace(run.motion, vertices=run.motion.vertices[:1], inputs=run.motion.inputs[:1])
    edge = replace(one, inputs=run.motion.inputs.amax(0)[None])
    beyond, last, first = (
        next(rendering.render(run, motion, torch.zeros(3)))
        for motion in (replace(edge, inputs=edge.inputs + 10), edge, one)
    )
    np.testing.assert_array_equal(beyond, last)
    assert (last != first).any()


def test_a_blink_goes_where_the_clip_has_it(run):
    assert run.track.eyelids.any()
    still, closed = (exports.posed(run, (f"eyeBlinkLeft={value}",), 0.0) for value in (0, 1))
    assert float(closed.inputs[0, -5]) == 1 and float(still.inputs[0, -5]) == 0
    moved = (closed.vertices - still.vertices)[0].norm(dim=1)
    assert np.corrcoef(moved, run.head.eyelids[:, :, 0].norm(dim=1))[0, 1] > 0.99


@pytest.mark.parametrize(("bits", "nearer"), [(8, 35), (16, 50)])
def test_compact_files_render_the_same(run, tmp_path, bits, nearer):
    result = exports.write_compact(run, tmp_path / "a.safetensors", bits)
    assert result["gaussians"] == int(run.avatar.seen.sum())
    assert result["bytes"] == (tmp_path / "a.safetensors").stat().st_size < 0.6 * result["ply_bytes"]
    assert result["psnr_to_original"] > nearer
    # Each number on its own: within half a step of the largest, or half's precision.
    small = model_file.read(tmp_path / "a.safetensors", run.head, run.motion.inputs.shape[1])
    kept = run.avatar.seen
    assert torch.equal(small.face_id, run.avatar.face_id[kept]) and small.seen.all()
    assert (small.bary - run.avatar.bary[kept]).abs().max() < 5e-4
    for name in ("means", "log_scales", "opacity_logits", "quats", "sh0"):
        a, b = getattr(small, name), getattr(run.avatar, name)[kept]
        assert (a - b).abs().max() <= 2**-11 * b.abs().max(), name
    for name in ("mean_basis", "quat_basis", "sh0_basis"):
        a, b = getattr(small, name), getattr(run.avatar, name)[:, kept]
        assert ((a - b).abs() <= 0.51 * b.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)).all(), name


def test_wrong_compact_files(run, tmp_path):
    path = tmp_path / "a.safetensors"
    n = run.motion.inputs.shape[1]
    with pytest.raises(InputError, match="does not exist"):
        model_file.read(path, run.head, n)
    path.write_bytes(b"\0" * 40)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        model_file.read(path, run.head, n)
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="not a compact avatar"):
        model_file.read(path, run.head, n)
    model_file.write_compact(path, run.avatar, "open-head")
    with pytest.raises(InputError, match="of another head model, open-head"):
        model_file.read(path, run.head, n + 1)
    with pytest.raises(InputError, match="faces that the head model"):
        model_file.read(path, replace(run.head, faces=run.head.faces[:9]), n)
    tensors = load_file(path)
    metadata = {"format": "recon4d-avatar-1", "head_model": "open-head"}
    save_file({key: value for key, value in tensors.items() if key != "quats"}, path, metadata)
    with pytest.raises(InputError, match=r"lacks a part of an avatar .*quats"):
        model_file.read(path, run.head, n)
    save_file(tensors | {"sh0": tensors["sh0"][:7]}, path, metadata)
    with pytest.raises(InputError, match=r"sh0 has shape \(7, 3\)"):
        model_file.read(path, run.head, n)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        model_file.read(path, run.head, n)


def command(capfd, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    out, err = capfd.readouterr()
    return stop.value.code, out, err


def test_commands(folder, tmp_path, capfd):
    where = ["--subject", "one", "--work-name", "w", "--output-dir", str(folder.parents[1])]
    done = forks.run("gaussian-avatar", "export", *where, "--format", "safetensors")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["psnr_to_original"] > 35
    code, out, _ = command(capfd, "export", *where, "--frames", "all")
    assert code == 0 and json.loads(out)["files"] == 24 == len(list((folder / "export").glob("*.ply")))
    code, _, err = command(capfd, "export", *where)
    assert code == 2 and "exists" in err
    code, out, _ = command(capfd, "export", *where, "--force", "--jaw", 10)
    assert code == 0 and [path.name for path in (folder / "export").glob("*.ply")] == ["00000.ply"]
    exact = splat.read_ply(folder / "export/00000.ply")
    for kind in ("spz", "sog", "splat"):
        code, out, _ = command(capfd, "export", *where, "--force", "--jaw", 10, "--format", kind)
        assert code == 0 and [path.name for path in (folder / "export").iterdir()] == [f"00000.{kind}"]
        found = scene_files.read(folder / f"export/00000.{kind}")
        assert (found.means - exact.means).abs().max() < 2e-5
    code, _, err = command(capfd, "export", *where, "--force", "--jaw", 10, "--frames", "all")
    assert code == 2 and "leave --frames and --track away" in err

    for options, sentence in (
        (("--format", "html", "--jaw", 10), "--expression, --jaw and --frames are of static files"),
        (("--format", "glb", "--track", "x.npz"), "--format glb holds the avatar and no other clip"),
    ):
        code, _, err = command(capfd, "export", *where, *options)
        assert code == 2 and sentence in err

    # Metrics of the compact file are those of the original.
    code, out, err = command(capfd, "metrics", *where)
    assert code == 0, err
    first = json.loads(out)
    code, out, _ = command(capfd, "metrics", *where, "--model", folder / "model.safetensors", "--force")
    second = json.loads(out)
    assert second["gaussians"] < first["gaussians"] and second["psnr"] == pytest.approx(first["psnr"], abs=0.3)
    code, out, _ = command(capfd, "render", *where, "--model", folder / "model.safetensors")
    assert code == 0 and json.loads(out)["frames"] == 24
