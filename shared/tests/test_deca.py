"""DECA's and EMOCA's dictionaries and arrays, as they and their users save them."""

import pickle

import numpy as np
import pytest
import roma
import torch
from recon4d import InputError
from recon4d.formats import deca

RNG = np.random.default_rng(0)
SHAPE, EXP = (RNG.normal(size=(3, n)).astype(np.float32) for n in (100, 50))
POSE = (0.2 * RNG.normal(size=(3, 6))).astype(np.float32)
CODES = {"shape": SHAPE, "tex": EXP, "exp": EXP, "pose": POSE, "cam": POSE[:, :3], "light": np.zeros((3, 9, 3), "f4")}
FRAMES = [{key: value[i : i + 1] for key, value in CODES.items()} for i in range(3)]


def check(path):
    codes = deca.read_codes(path)
    np.testing.assert_allclose(codes.expression, EXP)
    np.testing.assert_allclose(np.concatenate([codes.turn, codes.jaw], 1), POSE)
    np.testing.assert_allclose(codes.shape, SHAPE.mean(0), atol=1e-6)
    return codes


def dump(path, value):
    path.write_bytes(pickle.dumps(value))
    return path


def tensors(codes):
    return {key: torch.from_numpy(value.copy()) for key, value in codes.items()}


def test_pickles_of_a_clip(tmp_path):
    check(dump(tmp_path / "clip.pkl", CODES))
    check(dump(tmp_path / "list.pkl", FRAMES))
    named = check(dump(tmp_path / "named.pickle", {f"frame_{i}.png": frame for i, frame in enumerate(FRAMES)}))
    assert named.names == ["frame_0", "frame_1", "frame_2"]
    emoca = {{"shape": "shapecode", "exp": "expcode", "pose": "posecode"}.get(k, k): v for k, v in CODES.items()}
    check(dump(tmp_path / "emoca.pkl", emoca))
    check(dump(tmp_path / "tensors.pkl", tensors(CODES)))
    many = torch.from_numpy(np.concatenate([np.zeros_like(EXP), EXP]))
    assert check(dump(tmp_path / "part.pkl", tensors(CODES) | {"exp": many[3:]})).names[0] == "part_00000"
    turned = torch.from_numpy(np.ascontiguousarray(EXP.T)).T
    check(dump(tmp_path / "turned.pkl", tensors(CODES) | {"exp": torch.nn.Parameter(turned, requires_grad=True)}))
    torch.save(tensors(CODES), tmp_path / "saved.pt")
    check(tmp_path / "saved.pt")
    without = deca.read_codes(dump(tmp_path / "w.pkl", {"exp": EXP[0], "pose": POSE[0]}))  # speech programs write these
    assert without.expression.shape == (1, 50) and not without.shape.any()


def test_folders(tmp_path):
    for i, frame in enumerate(FRAMES):
        (tmp_path / "a").mkdir(exist_ok=True)
        dump(tmp_path / f"a/{9 + i}.pkl", tensors(frame))
        one = tmp_path / f"b/{i:06d}_000"  # as EMOCA's demo names them
        one.mkdir(parents=True)
        for key in ("shape", "exp", "pose", "tex"):
            np.save(one / f"{key}.npy", frame[key][0])
    assert check(tmp_path / "a").names == ["9", "10", "11"]
    assert check(tmp_path / "b").names[0] == "000000_000"
    assert deca.is_folder(tmp_path / "a") and deca.is_folder(tmp_path / "b/000000_000")
    assert not deca.is_folder(tmp_path)


def test_a_track_of_them(tmp_path, head=None):
    from recon4d.head import load

    head = load()
    track = deca.read(dump(tmp_path / "clip.pkl", {**CODES, "exp": EXP[:, :44]}), head)
    turn = roma.rotvec_to_rotmat(torch.from_numpy(POSE[:, :3])).numpy()
    np.testing.assert_allclose(np.diag([1, -1, -1]) @ track.R, turn, atol=1e-6)
    np.testing.assert_allclose(track.jaw, roma.rotvec_to_rotmat(torch.from_numpy(POSE[:, 3:])).numpy(), atol=1e-6)
    assert not track.t.any() and track.names[0] == "clip_00000.png"


def hostile(part, by):
    data = pickle.dumps({"exp": torch.from_numpy(EXP), "pose": POSE})
    assert part in data
    return data.replace(part, by, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"exp": EXP}), "has no `pose`"),
        (pickle.dumps({"a": 1}), "no `exp` and `pose`"),
        (pickle.dumps({"exp": EXP, "pose": POSE[:, :3]}), "6 of a frame"),
        (pickle.dumps({"exp": EXP, "pose": POSE[:2]}), "3 rows of `exp` and 2 of `pose`"),
        (pickle.dumps({"exp": np.full((3, 50), np.nan), "pose": POSE}), "something else than numbers"),
        (pickle.dumps({"exp": {}, "pose": POSE}), "no numbers"),
        (pickle.dumps([{"exp": EXP[:, :10], "pose": POSE}, {"exp": EXP, "pose": POSE}]), "different lengths"),
        (pickle.dumps([]), "no `exp` and `pose`"),
        (hostile(b"\x4b\x03\x4b\x32\x86", b"\x4b\x7f\x4b\x32\x86"), "does not fit its storage"),
        (hostile(b"_load_from_bytes", b"_load_from_bytez"), "holds a tensor that cannot be read|not allowed"),
        (hostile(b"FloatStorage", b"FloatStoragf"), "cannot be read|not allowed"),
        (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "not allowed"),
        (b"", "ends early|pickle"),
    ],
)
def test_what_it_refuses(tmp_path, content, said):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(InputError, match=said):
        deca.read_codes(tmp_path / "x.pkl")
