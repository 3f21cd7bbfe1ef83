"""Tracks as other programs take them: Live Link Face's CSV and VHAP's folder."""

import json
from dataclasses import replace

import numpy as np
import pytest
import roma
import smplx.lbs
import torch
from flame_files import flame_arrays, write_flame_pickle
from recon4d import InputError, head
from recon4d.files import read_npz
from recon4d.formats import arkit, mediapipe, vhap
from recon4d.formats.track import Track
from scipy.spatial.transform import Rotation

NAN = float("nan")


def some_track(model, n, turns, expression, jaw=None):
    """A track of a head that turns by (n, 3) degrees yaw, pitch, roll before a camera, `eyes` turned by the same."""
    turned = Rotation.from_euler("YXZ", turns, degrees=True).as_matrix().astype(np.float32)
    return Track(
        head_model=model.name,
        image_size=np.array([640, 480]),
        fps=25.0,
        K=np.array([[700, 0, 320], [0, 700, 240], [0, 0, 1]], np.float32),
        names=np.array([f"{i:03d}.png" for i in range(n)]),
        valid=np.ones(n, bool),
        shape=np.random.default_rng(0).normal(size=min(model.n_shape, 50)).astype(np.float32),
        expression=expression.astype(np.float32),
        R=np.diag(np.float32([1, -1, -1])) @ turned,
        t=np.tile(np.float32([0.02, -0.01, 0.7]), (n, 1)),
        neck=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),
        jaw=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)) if jaw is None else jaw,
        eyes=np.stack([turned, turned], 1),
        eyelids=np.zeros((n, 2), np.float32),
    )


def test_arkit_there_and_back(tmp_path):
    model = head.load()
    rng = np.random.default_rng(1)
    turns = rng.uniform(-25, 25, (60, 3))
    track = some_track(model, 60, turns, rng.uniform(0, 1, (60, model.n_expression)))
    found = arkit.of_track(track, model)
    np.testing.assert_allclose(found.turns, np.radians(turns)[:, None].repeat(3, 1), atol=1e-5)
    for name in model.expression_names:
        column = track.expression[:, model.expression_names.index(name)]
        np.testing.assert_allclose(found.values[:, arkit.NAMES.index(name)], column, atol=1e-4)
    # the left eye turned to the person's left looks out, the right eye in
    left = np.radians(turns[:, 0]).clip(0) / arkit.FULL_LOOK
    for name in ("eyeLookOutLeft", "eyeLookInRight"):
        np.testing.assert_allclose(found.values[:, arkit.NAMES.index(name)], left.clip(0, 1), atol=1e-5)
    arkit.write(tmp_path / "a.csv", found)
    again = arkit.read(tmp_path / "a.csv")
    assert again.fps == 25.0
    np.testing.assert_allclose(again.values, found.values, atol=1e-7)
    np.testing.assert_allclose(again.turns, found.turns, atol=1e-7)
    header, first, *_ = (tmp_path / "a.csv").read_text().splitlines()
    assert header.startswith("Timecode,BlendshapeCount,EyeBlinkLeft,EyeLookDownLeft,EyeLookInLeft,")
    assert header.endswith("TongueOut,HeadYaw,HeadPitch,HeadRoll,LeftEyeYaw,LeftEyePitch,LeftEyeRoll,RightEyeYaw,"
                           "RightEyePitch,RightEyeRoll,JawYaw,JawPitch,JawRoll")  # fmt: skip
    assert len(header.split(",")) == 66 and first.startswith("00:00:00:00.000,61,")
    arkit.write(tmp_path / "phone.csv", replace(found, jaw=None))
    assert len((tmp_path / "phone.csv").read_text().split("\n")[0].split(",")) == 63
    assert arkit.read(tmp_path / "phone.csv").jaw is None
    np.testing.assert_allclose(arkit.expressions(again, model), track.expression, atol=1e-4)
    np.testing.assert_allclose(arkit.rotations(again)[:, 1:], track.eyes, atol=1e-5)


def test_a_jaw_that_turns_is_a_jaw_that_opens():
    """A jaw joint turned as far as jawOpen goes: nearly all of it, and little to the sides."""
    model = head.load()
    jaw = roma.rotvec_to_rotmat(torch.tensor([[0.0, 0, 0], [0.26, 0, 0]])).numpy()
    track = some_track(model, 2, np.zeros((2, 3)), np.zeros((2, model.n_expression)), jaw)
    values = arkit.of_track(track, model).values
    opened = values[:, arkit.NAMES.index("jawOpen")]
    assert opened[0] == 0 and 0.6 < opened[1] <= 1
    assert values[1, [arkit.NAMES.index("jawLeft"), arkit.NAMES.index("jawRight")]].max() < 0.05


def test_a_jaw_there_and_back():
    """Activations of turns of the joint become those turns again, and leave nothing."""
    model = head.load()
    vectors = torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [0.1, 0.06, 0], [0.2, -0.04, 0]])
    jaw = roma.rotvec_to_rotmat(vectors).numpy()
    track = some_track(model, 4, np.zeros((4, 3)), np.zeros((4, model.n_expression)), jaw)
    found = arkit.of_track(track, model)
    turns, left = arkit.jaw_joint(replace(found, jaw=None), model)
    np.testing.assert_allclose(roma.rotmat_to_rotvec(torch.from_numpy(turns)), vectors, atol=0.01)
    assert left.max() < 0.05
    # What a track has as activation beside the joint comes back too.
    opened = track.expression.copy()
    opened[:, model.expression_names.index("jawLeft")] = 0.3
    both = arkit.of_track(replace(track, expression=opened), model)
    turns, left = arkit.jaw_joint(both, model)
    np.testing.assert_allclose(turns, jaw, atol=1e-5)
    np.testing.assert_allclose(left, np.tile([0, 0.3, 0, 0], (4, 1)), atol=1e-5)


def test_arkit_as_others_write_it(tmp_path):
    """Columns in another order and case, fewer of them, a byte order mark, Windows' line ends."""
    text = "timecode,jawopen,EyeBlinkRight\r\n" + "".join(
        f"10:00:{i // 60:02d}:{i % 60:02d}.5,0.25,{i / 200}\r\n" for i in range(200)
    )
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = arkit.read(tmp_path / "b.csv")
    assert found.fps == 60 and found.values.shape == (200, 52) and not found.turns.any()
    assert (found.values[:, arkit.NAMES.index("jawOpen")] == 0.25).all()
    assert found.values[100, arkit.NAMES.index("eyeBlinkRight")] == 0.5


@pytest.mark.parametrize(
    "content",
    [b"", b"Timecode\n", b"Timecode,JawOpen\n", b"JawOpen\nx\n", b"JawOpen\nnan\n", b"JawOpen,MouthLeft\n1\n", b"\xff"],
)
def test_no_arkit(tmp_path, content):
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(InputError, match="is not a CSV of Live Link Face"):
        arkit.read(tmp_path / "c.csv")
    with pytest.raises(InputError, match="cannot be read"):
        arkit.read(tmp_path)


@pytest.fixture
def flame(tmp_path):
    write_flame_pickle(tmp_path / "m.pkl", flame_arrays(3))
    return head.load(tmp_path / "m.pkl")


def test_vhap_gives_the_same_head_to_smplx(flame, tmp_path):
    """FLAME's own layer on the written parameters, seen by the written camera, is the track's head."""
    rng = np.random.default_rng(2)
    track = some_track(flame, 4, rng.uniform(-40, 40, (4, 3)), rng.normal(size=(4, 20)))
    vhap.write(tmp_path / "out", track, flame, tmp_path / "pictures")
    listed = json.loads((tmp_path / "out/transforms.json").read_text())
    assert [frame["timestep_index"] for frame in listed["frames"]] == [0, 1, 2, 3]
    for i, frame in enumerate(listed["frames"]):
        p = {k: torch.from_numpy(v) for k, v in read_npz(tmp_path / "out" / frame["flame_param_path"]).items()}
        assert p["shape"].shape == (300,) and p["expr"].shape == (1, 100) and p["eyes_pose"].shape == (1, 6)
        assert p["static_offset"].shape == (1, 120, 3)
        posed, _ = smplx.lbs.lbs(
            torch.cat([p["shape"][None], p["expr"]], 1),
            torch.cat([p["rotation"], p["neck_pose"], p["jaw_pose"], p["eyes_pose"]], 1),
            flame.v_template[None],
            torch.cat([flame.shapedirs, flame.expressiondirs], 2),
            flame.posedirs.reshape(-1, 36).T,
            flame.J_regressor,
            torch.tensor([-1, 0, 1, 1, 1]),
            flame.weights,
        )
        world = posed[0] + p["translation"]
        to_camera = torch.linalg.inv(torch.tensor(frame["transform_matrix"]))
        camera = (world @ to_camera[:3, :3].T + to_camera[:3, 3]) * torch.tensor([1.0, -1, -1])  # OpenGL to OpenCV
        torch.testing.assert_close(camera, track.vertices(flame)[i], atol=2e-6, rtol=0)
        assert frame["file_path"] == str(tmp_path / "pictures" / track.names[i]) and frame["fl_x"] == 700


def test_heads_that_cannot_be_written(flame, tmp_path):
    opened = head.load()
    with pytest.raises(InputError, match="VHAP's parameters are FLAME's"):
        track = some_track(opened, 1, np.zeros((1, 3)), np.zeros((1, opened.n_expression)))
        vhap.write(tmp_path / "out", track, opened, tmp_path)
    with pytest.raises(InputError, match="no names of ARKit"):
        arkit.of_track(some_track(flame, 1, np.zeros((1, 3)), np.zeros((1, 20))), flame)


# ------------------------------------------------------------------------------------------------------ broken, hostile


@pytest.mark.parametrize(
    "text",
    ["", "[", "[]", "null", '"x"', "[" * 10**5, '{"frames": 5}', '[{"name": {}, "score": 1}]', '[[{"name": []}]]',
     '[{"jawOpen": NaN}]', '[{"jawOpen": 1e400}]', '[{"jawOpen": "much"}]', "\0"],
)  # fmt: skip
def test_no_blendshapes(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="json"):
        mediapipe.read(tmp_path / "a.json")


def test_strange_blendshapes(tmp_path):
    """Matrices and clocks that say nothing are as if they were not there."""
    shapes = {"blendshapes": {"jawOpen": 2.5, "eyeBlinkLeft": -1}, "timestamp_ms": 5}
    frames = [shapes | {"matrix": given} for given in ([0] * 16, [1e30] * 16, ["a"] * 16, [1, 2], {"data": None})]
    (tmp_path / "a.json").write_text(json.dumps({"fps": -1, "frames": frames}))
    found = mediapipe.read(tmp_path / "a.json")
    assert found.fps == 30 and len(found.values) == 5 and np.isfinite(found.turns).all()
    assert (found.values[:, arkit.NAMES.index("jawOpen")] == 1).all() and found.values.min() == 0


@pytest.mark.parametrize("key", ["rotation", "translation", "neck_pose", "jaw_pose", "eyes_pose", "expr", "shape"])
@pytest.mark.parametrize(
    "value",
    [np.zeros(0), np.zeros((0, 3)), np.full((3, 3), np.nan), np.full((3, 6), 1e300), np.array("x"),
     np.zeros((3, 3, 3)), np.zeros((2, 7), complex)],
    ids=str,
)  # fmt: skip
def test_no_parameters(flame, tmp_path, key, value):
    good = {"rotation": np.zeros((3, 3)), "translation": np.zeros((3, 3)), "neck_pose": np.zeros((3, 3))}
    good |= {"jaw_pose": np.zeros((3, 3)), "eyes_pose": np.zeros((3, 6)), "expr": np.zeros((3, 10))}
    good |= {"shape": np.zeros(10)}
    np.savez(tmp_path / "v.npz", **good)
    assert len(vhap.read(tmp_path / "v.npz", flame).track) == 3
    np.savez(tmp_path / "v.npz", **good | {key: value})
    with pytest.raises(InputError, match=r"v\.npz"):
        vhap.read(tmp_path / "v.npz", flame)


@pytest.mark.parametrize(
    ("key", "value"),
    [("transform_matrix", np.zeros((4, 4)).tolist()), ("transform_matrix", "x"), ("transform_matrix", [[NAN] * 4] * 4),
     ("w", -1), ("w", None), ("h", 1e400), ("fl_x", 0), ("fl_x", NAN), ("fl_x", []), ("timestep_index", []),
     ("timestep_index", 1e400), ("flame_param_path", 5), ("flame_param_path", "/etc/passwd")],
)  # fmt: skip
def test_no_cameras(flame, tmp_path, key, value):
    track = some_track(flame, 1, np.zeros((1, 3)), np.zeros((1, 20)))
    vhap.write(tmp_path / "v", track, flame, tmp_path)
    listed = json.loads((tmp_path / "v/transforms.json").read_text())
    listed["frames"][0][key] = value
    (tmp_path / "v/transforms.json").write_text(json.dumps(listed))
    with pytest.raises(InputError):
        vhap.read(tmp_path / "v", flame)
