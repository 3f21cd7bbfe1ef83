"""Avatars moved by other programs' files: activations, FLAME's parameters, other people."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from drawn_heads import write_flame_like
from flame_files import flame_arrays, write_flame_pickle
from gaussian_avatar import avatars, driving, exports, model_file, motions, runs
from gaussian_avatar.cli import main
from gaussian_avatar.config import load_config
from recon4d import InputError, landmarker
from recon4d.formats import arkit, insta, vhap
from recon4d.formats.track import read as read_track
from recon4d.head import load
from recon4d.settings import write


def run_on(folder, track, head, **options):
    """A run with an untrained avatar."""
    folder.mkdir(parents=True)
    track.write(folder / "track.npz")
    write(folder / "config.yaml", load_config("cpu-quick", **options))
    avatar = avatars.new(head, 32, motions.n_inputs(head), 2, 8, None, 0.9, torch.Generator().manual_seed(0))
    avatar = replace(avatar, seen=torch.ones(len(avatar), dtype=torch.bool))
    model_file.write_ply(folder / "model.ply", avatar)
    return runs.open_run(folder, "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir, head):
    return run_on(tmp_path_factory.mktemp("output") / "one/w", read_track(data_dir / "one/track.npz"), head)


def local(run, track):
    """Posed vertices of a track on the run's person, in metres about the base of the neck."""
    motion = motions.from_track(track, run.head, shape=run.track.shape)
    return motion.vertices - motion.inputs[:, None, -3:]


def furthest(a, b):
    """The largest distance of two sets of vertices, millimetres."""
    return 1e3 * float((a - b).norm(dim=-1).max())


def other_person(track, seed=5):
    """The same movements by another head, seated elsewhere, with a face that rests otherwise and another camera."""
    rng = np.random.default_rng(seed)
    turn = roma.euler_to_rotmat("YXZ", torch.tensor([12.0, -5.0, 3.0]), degrees=True).numpy()
    return replace(
        track,
        shape=rng.normal(size=track.shape.shape).astype(np.float32),
        expression=(track.expression + 0.15).clip(0, 1),
        R=turn @ track.R,
        t=track.t @ turn.T + np.float32([0.05, -0.03, 0.2]),
        K=1.5 * track.K,
    )


# -------------------------------------------------------------------------------------------------------- activations


def test_live_link_csv_of_a_track_moves_as_the_track(run, tmp_path, head):
    """What `flame-encoder track --write arkit` writes, driven: the track's own vertices, within a millimetre."""
    arkit.write(tmp_path / "arkit.csv", arkit.of_track(run.track, head))
    driven = driving.track_of(run, tmp_path / "arkit.csv")
    assert len(driven) == len(run.track)
    assert furthest(local(run, driven), local(run, run.track)) < 1.0
    # Before the run's own camera, where it is most frontal.
    frame = motions.frontal_frame(run.track)
    seen = motions.from_track(driven, head, origin=run.track.t[0]).vertices[frame]
    assert furthest(seen, run.motion.vertices[frame]) < 1.0
    np.testing.assert_array_equal(driven.K, run.track.K)


def test_gaze_without_angles(head):
    """Eyes follow eyeLook* where a file has no angles."""
    values, turns = np.zeros((1, 52), np.float32), np.zeros((1, 3, 3), np.float32)
    for name in ("eyeLookOutLeft", "eyeLookInRight", "eyeLookDownLeft", "eyeLookDownRight"):
        values[0, arkit.NAMES.index(name)] = 0.4
    ahead = arkit.rotations(arkit.Activations(30, values, turns))[0, 1:] @ [0, 0, 1]
    assert (ahead[:, 0] > 0.15).all() and (ahead[:, 1] < -0.15).all()  # to the person's left, and down


def forms(values):
    """The same frames as programs dump them."""
    named = [dict(zip(landmarker.BLENDSHAPES, map(float, row))) for row in values]
    python = [[{"index": i, "score": v, "category_name": k} for i, (k, v) in enumerate(f.items())] for f in named]
    script = [
        {"faceBlendshapes": [{"categories": [{"categoryName": k, "score": v} for k, v in f.items()]}]} for f in named
    ]
    yield "python.json", json.dumps([[frame] for frame in python])  # a list of faces in each frame
    yield "flat.json", json.dumps(python)
    yield "script.json", json.dumps({"fps": 30, "frames": script})
    yield "names.json", json.dumps({"frames": named})
    lines = [{"file": f"{i}.png", "score": 1.0, "blendshapes": frame} for i, frame in enumerate(named)]
    yield "landmarks.jsonl", "\n".join(map(json.dumps, lines)) + "\n"


def test_every_form_of_json(run, tmp_path, head):
    values = np.random.default_rng(0).uniform(0, 1, (4, 52))
    for name, text in forms(values):
        (tmp_path / name).write_text(text)
        driven = driving.track_of(run, tmp_path / name)
        assert driven.fps == 30 and len(driven) == 4, name
        for column, expression in enumerate(head.expression_names):
            if expression in landmarker.BLENDSHAPES and expression not in (*arkit.JAW, *driving.BLINKS):
                wanted = values[:, landmarker.BLENDSHAPES.index(expression)]
                np.testing.assert_allclose(driven.expression[:, column], wanted, atol=1e-6)
        # The avatar's own clip closes eyelids and turns the jaw's joint.
        blinks = values[:, [landmarker.BLENDSHAPES.index(blink) for blink in driving.BLINKS]]
        np.testing.assert_allclose(driven.eyelids, blinks, atol=1e-6)
        opened = values[:, landmarker.BLENDSHAPES.index("jawOpen")]
        angles = roma.rotmat_to_rotvec(torch.from_numpy(driven.jaw))[:, 0].numpy()
        assert (np.argsort(angles) == np.argsort(opened)).all() and angles.max() > 0.15


def test_json_with_head_clock_and_gaps(run, tmp_path):
    angles = torch.tensor([[20.0, 0, 0], [0, 10.0, 5.0]])
    turns = roma.euler_to_rotmat("YXZ", angles, degrees=True).numpy()
    frames = []
    for i, turn in enumerate(turns):
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = 1.0 * turn, [1, 2, -30]
        flat = (matrix if i else matrix.T).ravel().tolist()
        frames.append(
            {"blendshapes": {"jawOpen": 0.5}, "facial_transformation_matrixes": [flat], "timestamp_ms": 40 * i}
        )
    frames.append({"error": "no face found", "timestamp_ms": 80})
    (tmp_path / "a.json").write_text(json.dumps(frames))
    driven = driving.track_of(run, tmp_path / "a.json")
    assert driven.fps == pytest.approx(25) and len(driven) == 3
    np.testing.assert_allclose(motions.AXES @ driven.R @ driven.neck, turns[[0, 1, 1]], atol=1e-5)


# -------------------------------------------------------------------------------------------- other trackers, relative


def test_frame_files(run, data_dir, tmp_path, capfd):
    driven = driving.track_of(run, data_dir / "one")  # its track.npz
    assert furthest(local(run, driven), local(run, run.track)) < 1e-3
    track = replace(run.track, neck=np.tile(np.eye(3, dtype=np.float32), (len(run.track), 1, 1)))
    insta.write(tmp_path, track)
    driven = driving.track_of(run, tmp_path)
    assert furthest(local(run, driven), local(run, track)) < 1e-2
    assert furthest(local(run, driving.track_of(run, tmp_path / "checkpoint")), local(run, track)) < 1e-2


@pytest.fixture(scope="module")
def flame(tmp_path_factory, data_dir):
    """FLAME's file, and a run on it."""
    folder = tmp_path_factory.mktemp("flame")
    write_flame_pickle(folder / "m.pkl", flame_arrays(3))
    head = motions.with_uv(load(folder / "m.pkl"))
    rng = np.random.default_rng(1)
    track = read_track(data_dir / "one/track.npz")
    expression = rng.normal(size=(len(track), 20)).astype(np.float32)
    shape = rng.normal(size=30).astype(np.float32)
    eyelids = np.zeros_like(track.eyelids)
    track = replace(track, head_model=head.name, shape=shape, expression=expression, eyelids=eyelids)
    return run_on(folder / "out/one/w", track, head, head_model=str(folder / "m.pkl"))


def test_flame_parameters_as_vhap_has_them(flame, tmp_path):
    vhap.write(tmp_path / "v", flame.track, flame.head, tmp_path)
    driven = driving.track_of(flame, tmp_path / "v")
    mine = motions.from_track(driven, flame.head, shape=flame.track.shape)
    assert furthest(mine.vertices, flame.motion.vertices) < 0.02
    torch.testing.assert_close(mine.inputs, flame.motion.inputs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(driven.K, flame.track.K, rtol=1e-6)
    # One npz of the whole clip; without a camera it is before the avatar's own.
    with np.load(tmp_path / "v/flame_param/00000.npz") as first:
        whole = {key: [] for key in first}
    for path in sorted((tmp_path / "v/flame_param").iterdir()):
        with np.load(path) as part:
            for key in whole:
                whole[key].append(part[key])
    joined = {
        key: values[0] if key in ("shape", "static_offset") else np.concatenate(values) for key, values in whole.items()
    }
    np.savez(tmp_path / "clip.npz", **joined)
    alone = driving.track_of(flame, tmp_path / "clip.npz")
    assert furthest(local(flame, alone), local(flame, flame.track)) < 0.02


# ------------------------------------------------------------------------------------------------ another head model


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A head model of FLAME's format that is a head; how its expressions are mixed of the open head's."""
    path = tmp_path_factory.mktemp("drawn") / "drawn.npz"
    return path, write_flame_like(path)


def opened(track):
    """By how much the jaw turns in each frame, degrees."""
    return np.degrees(roma.rotmat_to_rotvec(torch.from_numpy(track.jaw)).norm(dim=1).numpy())


def test_flame_parameters_move_an_open_head(run, drawn, tmp_path):
    """As VHAP and as EMOCA say them: of the track's own movements, mixed into another model's."""
    path, mixture = drawn
    flame = load(path)
    own = run.track.take(slice(0, 8))
    moves = np.concatenate([own.expression, own.eyelids], 1)
    mixed = (np.linalg.pinv(mixture) @ moves.T).T.astype(np.float32)
    theirs = replace(
        own,
        head_model=flame.name,
        shape=np.zeros(60, np.float32),
        expression=mixed,
        eyelids=np.zeros_like(own.eyelids),
    )
    vhap.write(tmp_path / "v", theirs, flame, tmp_path)
    said = []
    driven = driving.track_of(run, tmp_path / "v", log=said.append, head_model=path)
    assert driven.head_model == run.head.name and "fitted from drawn to open-head" in said[0]
    np.testing.assert_allclose(opened(driven), opened(own), atol=2.5)
    np.testing.assert_allclose(driven.eyelids, own.eyelids, atol=0.15)
    turns = [one.R @ one.neck for one in (driven, own)]
    assert np.degrees(np.arccos(((turns[0] * turns[1]).sum((1, 2)) - 1).clip(-2, 2) / 2)).max() < 4
    codes = {
        "shape": np.zeros((8, 60)),
        "exp": mixed,
        "pose": np.concatenate([vhap_vectors(motions.AXES @ own.R @ own.neck), vhap_vectors(own.jaw)], 1),
        "cam": np.ones((8, 3)),
    }
    (tmp_path / "emoca.pkl").write_bytes(pickle.dumps(codes))
    again = driving.track_of(run, tmp_path / "emoca.pkl", head_model=path)
    np.testing.assert_allclose(opened(again), opened(driven), atol=0.2)
    np.testing.assert_allclose(again.expression, driven.expression, atol=0.02)
    np.testing.assert_array_equal(again.K, run.track.K)


def vhap_vectors(R):
    return roma.rotmat_to_rotvec(torch.from_numpy(R.astype(np.float32))).numpy()


def test_open_head_moves_a_flame_avatar(run, drawn, tmp_path):
    """A track of the open head and a Live Link CSV of it, on an avatar whose head is FLAME's."""
    flame = load(drawn[0])
    own = run.track.take(slice(0, 8))
    bare = {"shape": np.zeros(60, np.float32), "expression": np.zeros((8, 60), np.float32), "eyelids": 0 * own.eyelids}
    avatar = run_on(
        tmp_path / "out/one/w",
        replace(own, head_model=flame.name, **bare),
        motions.with_uv(flame),
        head_model=str(drawn[0]),
    )
    own.write(tmp_path / "track.npz")
    driven = driving.track_of(avatar, tmp_path / "track.npz")
    assert driven.expression.shape == (8, 60) and driven.head_model == "drawn"
    arkit.write(tmp_path / "a.csv", arkit.of_track(own, run.head))
    named = driving.track_of(avatar, tmp_path / "a.csv")
    pairs = ((run.head, own), (flame, driven), (flame, named))
    lips = [head.landmarks(track.vertices(head))[:, [62, 66]] for head, track in pairs]  # on the lips' inner edges
    gaps = torch.stack([1e3 * (both[:, 0] - both[:, 1]).norm(dim=1) for both in lips])
    assert gaps[0].max() - gaps[0].min() > 5
    assert (gaps[1:] - gaps[0]).abs().max() < 3, gaps


# --------------------------------------------------------------------------------------------------------- relative


def test_relative_of_itself_changes_nothing(run):
    same = driving.motion_of(run, run.folder / "track.npz", "relative")[0]
    assert furthest(same.vertices, run.motion.vertices) < 0.02


def test_nothing_of_another_person_is_carried_over(run, tmp_path):
    """Another head, seat, camera and face at rest: relative transfer leaves only what moved."""
    other = other_person(run.track)
    other.write(tmp_path / "other.npz")
    absolute = driving.motion_of(run, tmp_path / "other.npz")[0]
    relative, track = driving.motion_of(run, tmp_path / "other.npz", "relative")
    mistakes = [1e3 * (motion.vertices - run.motion.vertices).norm(dim=-1).mean() for motion in (relative, absolute)]
    assert mistakes[0] < 2.5 and mistakes[1] > 10, mistakes  # a longer neck moves otherwise
    rest = driving.neutral(track, run.head)
    own = driving.neutral(run.track, run.head)
    np.testing.assert_allclose(rest.expression, own.expression, atol=0.03)
    np.testing.assert_allclose(rest.turn, own.turn, atol=1e-3)
    np.testing.assert_allclose(rest.place, own.place, atol=2e-3)
    np.testing.assert_array_equal(track.shape, run.track.shape)
    still = driving.track_of(run, tmp_path / "other.npz", "relative")
    assert still.expression.min() >= 0 and still.expression.max() <= 1


# ---------------------------------------------------------------------------------------------------------- bad input


def test_what_it_refuses(run, flame, tmp_path, data_dir):
    vhap.write(tmp_path / "v", flame.track, flame.head, tmp_path)
    arkit.write(tmp_path / "a.csv", arkit.of_track(run.track, run.head))
    insta.write(tmp_path / "f", replace(flame.track, expression=np.zeros((len(run.track), 100), np.float32)))
    (tmp_path / "a.json").write_text("[[1, 2], {}]")
    (tmp_path / "e.pkl").write_bytes(pickle.dumps({"exp": np.zeros((2, 50)), "pose": np.zeros((2, 6))}))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    for where, what, sentence in (
        (run, "v", "FLAME's parameters, and the avatar's head is open-head: say of which FLAME"),
        (run, "e.pkl", "FLAME's parameters, and the avatar's head is open-head: say of which FLAME"),
        (run, "f", "100 expression coefficients, FLAME's; the avatar's head is open-head"),
        (flame, "a.csv", "the head model m has no landmarks"),
        (flame, "x.pkl", "has no `exp` and `pose`"),
        (run, "a.json", "holds no frame with MediaPipe's blendshapes"),
        (run, "b.json", "is not readable JSON"),
        (run, "none.csv", "does not exist"),
        (run, "x.npz", "is not a track nor FLAME's parameters"),
        (run, "v/transforms.txt", "does not exist"),
        (flame, "empty", "has no flame_param"),
    ):
        with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
            driving.track_of(where, tmp_path / what)
    content = json.loads((tmp_path / "v/transforms.json").read_text())
    content["frames"][0]["flame_param_path"] = "../../secret.npz"
    (tmp_path / "v/transforms.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="outside its folder"):
        driving.track_of(flame, tmp_path / "v")


def test_commands(run, tmp_path, capfd):
    where = ["--subject", "one", "--work-name", "w", "--output-dir", str(run.folder.parents[1])]
    arkit.write(tmp_path / "a.csv", arkit.of_track(run.track.take(slice(0, 3)), run.head))
    for command in (["render"], ["export", "--format", "spz"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, *where, "--track", str(tmp_path / "a.csv"), "--transfer", "relative"])
        out, err = capfd.readouterr()
        assert stop.value.code == 0, err
        assert 3 in json.loads(out).values()
    assert exports.export_frames(run, track=tmp_path / "a.csv", force=True)["files"] == 3
