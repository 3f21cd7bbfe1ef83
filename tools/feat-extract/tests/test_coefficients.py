"""Expression coefficients: FaceVerse's files and tracks."""

import numpy as np
import pytest
from feat_extract.coefficients import expression_part, track_coefficients, write_coefficients
from feat_extract.config import Config, Feat3D
from feat_extract.dataset import read_manifest
from feat_extract.synth import random_track
from recon4d import InputError
from recon4d.head import load
from scipy.spatial.transform import Rotation


@pytest.mark.parametrize("shape", [(327,), (621,), (1, 327), (1, 400), (171,)])
def test_faceverse_columns_156_to_326(tmp_path, shape):
    vector = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    folder = tmp_path / "from" / "day 1" / "s"
    folder.mkdir(parents=True)
    np.save(folder / "expr_0007.npy", vector)
    config = Config(dataset=str(tmp_path / "set"))
    result = write_coefficients(config, tmp_path / "from")
    assert result["dim"] == 171 and result["written"] == 1
    found = np.load(tmp_path / "set" / "feat3d" / "day 1" / "s" / "expr_0007.npy")
    first = 0 if shape == (171,) else 156
    assert found.shape == (171,) and found[0] == first and found[-1] == first + 170 and found.dtype == np.float32


@pytest.mark.parametrize("shape", [(326,), (172,), (2, 327), (0,), (), (1, 1, 327)])
def test_other_shapes_are_refused(tmp_path, shape):
    with pytest.raises(InputError, match=r"x.npy has shape .*; FaceVerse v4 gives at least 327"):
        expression_part(np.zeros(shape), tmp_path / "x.npy")


@pytest.fixture(scope="module")
def track():
    head = load(None)
    return random_track(head, np.zeros(head.n_shape, np.float32), {"surprise"}, 6, 64, 1)


def test_track_coefficients_beside_scipy(track):
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 0.4, (6, 3, 3))
    jaw, left, right = (Rotation.from_rotvec(vectors[:, i]).as_matrix() for i in range(3))
    track = type(track)(**{**vars(track), "jaw": jaw, "eyes": np.stack([left, right], 1)})
    found = track_coefficients(track)
    e = track.expression.shape[1]
    assert found.shape == (6, e + 11)
    np.testing.assert_array_equal(found[:, :e], track.expression)
    np.testing.assert_allclose(found[:, e : e + 9], vectors.reshape(6, 9), atol=1e-6)
    np.testing.assert_array_equal(found[:, -2:], track.eyelids)


def test_tracks_are_imported_but_for_interpolated_frames(track, tmp_path):
    valid = np.array([1, 1, 0, 1, 1, 1], bool)
    for name in ("a", "b/c"):
        type(track)(**{**vars(track), "valid": valid}).write(tmp_path / "tracks" / name / "track.npz")
    config = Config(dataset=str(tmp_path), feat3d=Feat3D(kind="track"))
    result = write_coefficients(config, tmp_path / "tracks")
    assert result["sequences"] == 2 and result["written"] == 10 and result["head_model"] == "open-head"
    names = sorted(p.name for p in (tmp_path / "feat3d" / "b" / "c").iterdir())
    assert names == [f"expr_{i:05d}.npy" for i in (0, 1, 3, 4, 5)]
    manifest = read_manifest(tmp_path / "feat3d")
    assert manifest == {"kind": "track", "head_model": "open-head", "dim": 55}
    write_coefficients(config, tmp_path / "tracks")  # the same kind again
    other = Config(dataset=str(tmp_path))
    (tmp_path / "face" / "s").mkdir(parents=True)
    np.save(tmp_path / "face" / "s" / "0.npy", np.zeros(171))
    with pytest.raises(InputError, match="two kinds are not mixed"):
        write_coefficients(other, tmp_path / "face")
    write_coefficients(other, tmp_path / "face", force=True)
    assert [p.name for p in (tmp_path / "feat3d").rglob("*.npy")] == ["expr_0.npy"]


def test_tracks_that_do_not_go_together(track, tmp_path):
    config = Config(dataset=str(tmp_path), feat3d=Feat3D(kind="track"))
    with pytest.raises(InputError, match="is not a folder"):
        write_coefficients(config, tmp_path / "tracks")
    (tmp_path / "tracks").mkdir()
    with pytest.raises(InputError, match=r"has no SEQUENCE/track.npz"):
        write_coefficients(config, tmp_path / "tracks")
    track.write(tmp_path / "tracks" / "a" / "track.npz")
    short = type(track)(**{**vars(track), "expression": track.expression[:, :9]})
    short.write(tmp_path / "tracks" / "b" / "track.npz")
    with pytest.raises(InputError, match="with 20 numbers per frame, the tracks before it"):
        write_coefficients(config, tmp_path / "tracks")
    type(track)(**{**vars(track), "valid": np.zeros(6, bool)}).write(tmp_path / "tracks" / "b" / "track.npz")
    with pytest.raises(InputError, match="no valid frame"):
        write_coefficients(config, tmp_path / "tracks")
    assert not (tmp_path / "feat3d").exists()
    with pytest.raises(InputError, match="is the output too"):
        (tmp_path / "feat3d").mkdir()
        write_coefficients(config, tmp_path / "feat3d")
