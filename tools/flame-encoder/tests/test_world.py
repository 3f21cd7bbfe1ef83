"""Landmarks, frames and photographs as other programs and phones write them."""

import json
import shutil

import numpy as np
import pillow_heif
import pytest
import torch
from click.testing import CliRunner
from flame_encoder.cli import main
from flame_encoder.people import photographs
from flame_encoder.tracker import observations
from known_clip import clip
from PIL import Image
from recon4d import InputError, head, images, landmarker
from recon4d.formats import landmarks, track

N = 6


@pytest.fixture(scope="module")
def seen():
    torch.manual_seed(0)
    return clip(head.load(), n=N)[1]


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "frames"
    folder.mkdir()
    for i in range(N):
        Image.fromarray(np.full((512, 512, 3), 90, np.uint8)).save(folder / f"frame_{i + 7}.png")  # 7 to 12
    return folder


def put(folder, faces):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for i, points in enumerate(faces):
        np.save(folder / f"frame_{i + 7}.npy", points)
    return folder


def one_of_nobody(points, value):
    changed = points.copy()
    changed[3] = value
    return changed


def dense(points, n):
    """A face of MediaPipe's layout that is right where iBUG has points."""
    full = np.repeat(points[:, 30:31], 478, 1).astype(float)
    full[:, landmarks.IBUG] = points
    full[:, 473], full[:, 468] = points[:, 42:48].mean(1), points[:, 36:42].mean(1)
    return full[:, landmarks.FLAME_105] if n == 105 else full[:, :n]


LAYOUTS = {
    "68": lambda p: p,
    "70, VHAP's": lambda p: np.concatenate([p, p[:, 36:42].mean(1)[:, None], p[:, 42:48].mean(1)[:, None]], 1),
    "51": lambda p: p[:, 17:],
    "with confidence": lambda p: np.concatenate([p, np.ones((N, 68, 1))], 2),
    "several people": lambda p: p[:, None],
    "fractions of the picture": lambda p: p / 512,
    "478": lambda p: dense(p, 478),
    "468": lambda p: dense(p, 468),
    "105": lambda p: dense(p, 105),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, seen, frames, tmp_path):
    found = observations.read(frames, put(tmp_path / "lm", LAYOUTS[layout](seen.landmarks)))
    assert [str(name) for name in found.names] == [f"frame_{i + 7}.png" for i in range(N)]
    same = np.isfinite(found.landmarks).all((0, 2))
    assert same.sum() >= {"51": 51, "105": 40}.get(layout, 68)
    assert np.abs(found.landmarks - seen.landmarks)[:, same].max() < 1e-3
    assert found.valid.all() and (found.dense is not None) == (layout in ("478", "468", "105"))


@pytest.mark.parametrize("value", [0, -1, np.nan])
def test_frames_that_show_nobody(value, seen, frames, tmp_path):
    found = observations.read(frames, put(tmp_path / "lm", one_of_nobody(seen.landmarks, value)))
    assert found.valid.tolist() == [True] * 3 + [False] + [True] * 2


CLIPS = {
    "vhap.npz": lambda p: {"face_landmark_2d": np.dstack([p / 512, np.ones((N, 68))]), "bounding_box": np.ones((N, 5))},
    "plain.npz": lambda p: {"arr_0": p},
    "other.npz": lambda p: {"face": p, "scores": np.ones(N)},
    "clip.npy": lambda p: p,
}


@pytest.mark.parametrize("name", CLIPS)
def test_one_file_for_a_clip(name, seen, frames, tmp_path):
    content = CLIPS[name](one_of_nobody(seen.landmarks, 0))
    np.savez(tmp_path / name, **content) if isinstance(content, dict) else np.save(tmp_path / name, content)
    found = observations.read(frames, tmp_path / name)
    assert found.valid.sum() == N - 1
    assert np.abs(found.landmarks - seen.landmarks)[found.valid].max() < 1e-3


def test_a_file_that_is_not_of_the_clip(seen, frames, tmp_path):
    np.savez(tmp_path / "short.npz", seen.landmarks[:4])
    with pytest.raises(InputError, match=r"short\.npz has landmarks of 4 frames, not of 6"):
        observations.read(frames, tmp_path / "short.npz")
    np.savez(tmp_path / "two.npz", left=seen.landmarks, right=seen.landmarks)
    with pytest.raises(InputError, match=r"two\.npz holds left \(6, 68, 2\), right .* one array"):
        observations.read(frames, tmp_path / "two.npz")
    with pytest.raises(InputError, match=r"shape \(17, 2\).*68, 70, 51, 478, 468, 105"):
        observations.read(frames, put(tmp_path / "lm", seen.landmarks[:, :17]))


def test_x_and_y_swapped(seen, frames, tmp_path):
    with pytest.raises(InputError, match="mirrored faces: their x and y are swapped, or their left and right"):
        observations.read(frames, put(tmp_path / "lm", seen.landmarks[..., ::-1]))


def test_points_of_something_else_are_said(seen, frames, tmp_path):
    noise = np.random.default_rng(0).normal(0, 25, (N, 68, 2))
    folder = put(tmp_path / "lm", (seen.landmarks + noise).astype(np.float32))
    words = ["track", frames, "--landmarks", folder, "--out", tmp_path / "o", "--no-preview", "--iterations", 5]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.stderr
    assert "% of the eye distance from the landmarks" in result.stderr
    assert json.loads(result.stdout)["mean_iod"] > 10


def test_frames_that_show_nobody_in_a_pipe(seen, frames, tmp_path):
    folder = put(tmp_path / "lm", one_of_nobody(seen.landmarks, 0))
    words = ["track", frames, "--landmarks", folder, "--out", tmp_path / "o", "--stream", "--no-preview"]
    result = CliRunner().invoke(main, list(map(str, [*words, "--calibrate", 3, "--iterations", 5])))
    assert result.exit_code == 0, result.stderr
    _, *lines = map(json.loads, result.stdout.splitlines())
    assert [line["valid"] for line in lines] == [True] * 3 + [False] + [True] * 2
    written = track.read(tmp_path / "o" / "track.npz")
    assert written.valid.sum() == N - 1 and np.isfinite(written.t).all()


def test_photographs_in_heic(tmp_path):
    pillow_heif.register_heif_opener()
    from skimage import data

    portrait = np.ascontiguousarray(data.astronaut()[:300, 70:370])
    (tmp_path / "in").mkdir()
    for suffix in ("heic", "avif", "png"):
        Image.fromarray(portrait).save(tmp_path / "in" / f"{suffix}.{suffix}", quality=95)
    (face,) = landmarker.find(portrait)
    for suffix in ("heic", "avif", "png"):
        np.save(put_folder(tmp_path) / f"{suffix}.npy", face.points)
    found = photographs.encode([tmp_path / "in"], tmp_path / "o.npz", landmarks=tmp_path / "lm", device="cpu")
    assert found.names.tolist() == ["avif.avif", "heic.heic", "png.png"]
    assert np.abs(found.crops - found.crops[2]).max() < 1e-3
    assert np.abs(found.raw - found.raw[2]).max() < 0.1  # all steps make more of the smallest difference
    assert images.size(tmp_path / "in" / "heic.heic") == (300, 300)


def put_folder(folder):
    (folder / "lm").mkdir(exist_ok=True)
    return folder / "lm"
