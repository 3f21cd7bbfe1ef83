"""Broken and hostile input at every door of flame-encoder: refused in one line or passed over, nothing lost."""

import json
import os
import shutil
from dataclasses import dataclass
from functools import cache

import hostile
import numpy as np
import pytest
import recon4d.head
import torch
import yaml
from flame_encoder.cli import main
from flame_encoder.encoder import trained
from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.encodings import Encoding
from flame_encoder.encoder.network import EidolonEncoder
from flame_encoder.encoder.vector import Layout
from flame_files import flame_arrays, write_flame_pickle
from recon4d import images
from recon4d.formats.track import Track

BACKBONE = "mobilenet_v3_small"
TRACK = "track {root}/clip/frames --landmarks {root}/clip/landmarks --out {root}/out --iterations 1 --no-preview"
ENCODE = "encode {root}/clip/frames --encoder {root}/e.pth --out {root}/o.npz"
COMPARE = "compare {root}/people.npz {root}/others.npz --encoder {root}/e.pth"
MESH = "mesh {root}/people.npz --out {root}/o.ply"
TRAIN = "train --config {root}/c.yaml --out {root}/out --device cpu"
FLAME = " --head-model {root}/flame.npz --landmark-embedding {root}/l.npy"
FILES = " --images {root}/clip/frames --landmarks {root}/clip/landmarks --synthetic 0"
WORDS = {
    "track": TRACK,
    "stream": TRACK + " --stream --calibrate 2",
    "check-model": "check-model --render {root}/o.png",
    "mean-face": f"mean-face --out {{root}}/o.png --backbone {BACKBONE}",
    "train": TRAIN,
    "encode": ENCODE,
    "sheet": ENCODE + " --overlay {root}/o.png",
    "mesh": MESH,
}


@dataclass(frozen=True)
class Door:
    """A command, and which of the files it reads is replaced by what."""

    words: str
    file: str
    contents: str
    named: tuple[str, ...] = ()
    fine: bool = False


FRAME, POINTS = "clip/frames/00001.png", "clip/landmarks/00001.npy"
DOORS = {
    "track": Door(TRACK, FRAME, "picture"),
    "track's points": Door(TRACK, POINTS, "npy"),
    "track's sizes": Door(TRACK, "clip/landmarks.jsonl", "json", fine=True),
    "track's times": Door(TRACK, "clip/frames.jsonl", "json", fine=True),
    "track's head": Door(TRACK + " --head-model {root}/head.npz", "head.npz", "npz"),
    "track's embedding": Door(TRACK + FLAME, "l.npy", "npy"),
    "track's encoder": Door(TRACK + " --init encoder --encoder {root}/e.pth", "e.pth", "checkpoint"),
    "stream": Door(WORDS["stream"], FRAME, "picture"),
    "stream's points": Door(WORDS["stream"], POINTS, "npy"),
    "stream's end": Door(WORDS["stream"] + " --follow --timeout 0.01", "clip/frames.json", "json", fine=True),
    "check-model": Door("check-model {root}/head.pkl", "head.pkl", "pickle"),
    "check-model, npz": Door("check-model {root}/head.npz", "head.npz", "npz"),
    "check-model's embedding": Door("check-model" + FLAME.replace("--head-model ", ""), "l.npy", "npy"),
    "mean-face's weights": Door(WORDS["mean-face"] + " --weights {root}/w.pth", "w.pth", "checkpoint"),
    "mean-face's weights, safetensors": Door(
        WORDS["mean-face"] + " --weights {root}/w.safetensors", "w.safetensors", "safetensors"
    ),
    "train's config": Door(TRAIN, "c.yaml", "yaml"),
    "train's pictures": Door(TRAIN + FILES, FRAME, "picture"),
    "train's points": Door(TRAIN + FILES, POINTS, "npy"),
    "train's cache": Door(TRAIN + " --cache {root}/cache", "cache/image.npy", "npy", ("cache",)),
    "train's cache's record": Door(TRAIN + " --cache {root}/cache", "cache/samples.json", "json", ("cache",)),
    "resume's config": Door("train --resume --out {root}/run --device cpu", "run/config.yaml", "yaml"),
    "resume's checkpoint": Door("train --resume --out {root}/run --device cpu", "run/checkpoint.pth", "checkpoint"),
    "encode": Door(ENCODE, FRAME, "picture"),
    "encode's encoder": Door(ENCODE, "e.pth", "checkpoint"),
    "encode's points": Door(ENCODE + " --landmarks {root}/clip/landmarks", POINTS, "npy"),
    "encode's faces": Door(ENCODE + " --faces {root}/faces.jsonl", "faces.jsonl", "json", fine=True),
    "compare": Door(COMPARE, "people.npz", "npz"),
    "compare's crowd": Door(COMPARE, "others.npz", "npz"),
    "compare's encoder": Door(COMPARE, "e.pth", "checkpoint"),
    "compare's picture": Door("compare {root}/a.png {root}/others.npz --encoder {root}/e.pth", "a.png", "picture"),
    "mesh": Door(MESH, "people.npz", "npz"),
    "mesh of a track": Door(MESH.replace("people", "track"), "track.npz", "npz"),
}  # fmt: skip
NUMBERS = {
    "track": ("--person", "--focal", "--fps", "--iterations"),
    "stream": ("--calibrate", "--timeout"),
    "train": ("--synthetic", "--batch-size", "--workers", "--devices", "--nodes", "--seed"),
    "mesh": ("--row", "--frame"),
    "compare": ("--row", "--most"),
    "encode": ("--box",),
}


@pytest.fixture(scope="module", autouse=True)
def one_head():
    """The open head is read once."""
    load, kept = recon4d.head.load, cache(recon4d.head.load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            recon4d.head,
            "load",
            lambda path=None, landmarks=None: (load if path or landmarks else kept)(path, landmarks),
        )
        yield


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A grey clip with the points of a head, files of an encoder, people and a track, a config, a finished run."""
    folder = tmp_path_factory.mktemp("good")
    arrays = flame_arrays()
    np.savez(folder / "flame.npz", **(arrays | {"J_regressor": arrays["J_regressor"].toarray()}))
    model = recon4d.head.load()
    points = model.landmarks(model())[0] * torch.tensor([1.0, -1, -1]) + torch.tensor([0.0, 0.0, 0.6])
    pixels = (points[:, :2] / points[:, 2:] * 120 + 32).numpy().astype(np.float32)
    (folder / "clip/landmarks").mkdir(parents=True)
    for i in range(3):
        images.write(folder / f"clip/frames/{i:05d}.png", np.full((64, 64, 3), 100 + i, np.uint8))
        np.save(folder / f"clip/landmarks/{i:05d}.npy", pixels)
    names = [f"{i:05d}.png" for i in range(3)]
    for table, more in (("frames", {"time": 0.1}), ("landmarks", {"width": 64, "height": 64})):
        (folder / f"clip/{table}.jsonl").write_text("".join(json.dumps({"file": n} | more) + "\n" for n in names))
        (folder / f"clip/{table}.json").write_text('{"result": {}}')
    torch.manual_seed(0)
    layout, view = Layout(), CropView(size=32)
    state = trained.state_of(EidolonEncoder(BACKBONE), layout, view, "open-head", BACKBONE)
    trained.save(folder / "e.pth", state)
    sizes, crops = np.array([[64, 64]]), np.array([[0, 0, 64]], np.float32)
    vectors = np.zeros((1, layout.size), np.float32)
    vectors[0, [150, 154]] = 1
    digest = trained.digest_of(state["weights"])
    there, focals = np.ones(1, bool), np.full(1, 100.0)
    people = ("open-head", np.array(["a.png"]), sizes, vectors, crops, layout, view, there, ~there, vectors, focals)
    for name in ("people", "others"):
        Encoding(*people, encoder=digest).write(folder / f"{name}.npz")
    eye = np.eye(3, dtype=np.float32)[None]
    Track(
        head_model="open-head", image_size=np.array([64, 64]), fps=25.0, K=eye[0], names=np.array(["a"]),
        valid=np.ones(1, bool), shape=np.zeros(3, np.float32), expression=np.zeros((1, 3), np.float32), R=eye,
        t=np.array([[0, 0, 1]], np.float32), neck=eye, jaw=eye, eyes=np.stack([eye, eye], 1),
        eyelids=np.zeros((1, 2), np.float32),
    ).write(folder / "track.npz")  # fmt: skip
    stage = {"name": "A", "epochs": 1, "loss_weights": {"landmark": 1.0}}
    config = {
        "view": {"size": 32},
        "encoder": {"backbone": BACKBONE, "weights": "none"},
        "data": {"synthetic": 2, "validation": 1},
        "train": {"batch_size": 1},
        "stages": [stage],
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    words = [*TRAIN.replace("/out", "/run").format(root=folder).split(), "--cache", str(folder / "cache")]
    assert hostile.CliRunner().invoke(main, words).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def copied(good, tmp_path_factory):
    return shutil.copytree(good, tmp_path_factory.mktemp("copied") / "root")


@pytest.fixture
def root(good, copied):
    """A copy of it, which a case may break."""
    yield copied
    hostile.put_back(copied, good)


CASES = [(door, case) for door, d in DOORS.items() for case in hostile.CONTENTS[d.contents]]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{door}: {case}" for door, case in CASES])
def test_contents(root, name, case):
    door = DOORS[name]
    path = root / door.file
    path.write_bytes(hostile.content(door.contents, case))
    hostile.check(main, door.words.format(root=root).split(), root, [path.name, *door.named], fine=door.fine)


OPTIONS = [(command, option) for command, options in NUMBERS.items() for option in options]


@pytest.mark.parametrize("number", hostile.NUMBERS)
@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_numbers(root, command, option, number):
    words = COMPARE if command == "compare" else WORDS[command]
    hostile.check(main, [*words.format(root=root).split(), option, number], root, option)


@pytest.mark.parametrize("numbers", ["nan,0,9,9", "0,0,inf,9", "0,0,1e400,9", "-1e300,-1e300,1e300,1e300", "9,9,1,1"])
def test_boxes(root, numbers):
    hostile.check(main, [*ENCODE.format(root=root).split(), "--box", numbers], root, "--box")


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize("case", ["below a file", "a long name", "a link to itself", "no place for files"])
def test_outputs(root, command, case):
    (root / "places").mkdir()
    words = WORDS[command].format(root=root).split()
    option = {"check-model": "--render", "sheet": "--overlay"}.get(command, "--out")
    old = words[words.index(option) + 1]
    out = hostile.outputs(root / "places", os.path.splitext(old)[1])[case]
    words[words.index(option) + 1] = str(out)
    hostile.check(main, words, root, [str(out)[:60], out.parent.name, option])


FACE = '{"file": "00001.png", "width": 64, "faces": [{"box": [1, 2, 3, 4]}]}\n'
VALUES = {
    "sizes that are none": ("landmarks", '{"file": "00001.png", "width": [1], "height": "x"}\n{"file": {}}\n'),
    "sizes of nothing": ("landmarks", '{"file": "00001.png", "width": 0, "height": -3}\n'),
    "sizes without end": ("landmarks", '{"file": "00001.png", "width": 1e400, "height": NaN}\n'),
    "times that are none": ("frames", '{"time": "now"}\n{"time": 1e400}\n{"time": NaN}\n3\n[1]\n'),
    "times without end": ("frames", '{"time": 0}\n{"time": 1e-300}\n{"time": 1e308}\n'),
    "a box that is none": ("faces", FACE.replace("[1, 2, 3, 4]", '["a", null, [], 1]')),
    "a box of NaN": ("faces", FACE.replace("[1, 2, 3, 4]", "[NaN, 0, 1e400, 1]")),
    "a box of nothing": ("faces", FACE.replace("[1, 2, 3, 4]", "[0, 0, 0, 0]")),
    "an image of nothing": ("faces", FACE.replace("64", "0")),
    "a detector that is none": ("faces", FACE.replace('"faces"', '"detector": [1], "faces"')),
    "a file that is none": ("faces", FACE.replace('"00001.png"', "5")),
    "faces that are none": ("faces", FACE.replace("[{", '["x", 3, {')),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_after_the_format_check(root, case):
    name, text = VALUES[case]
    table = root / ("faces.jsonl" if name == "faces" else f"clip/{name}.jsonl")
    table.write_text(text)
    words = ENCODE + " --faces {root}/faces.jsonl" if name == "faces" else TRACK
    hostile.check(main, words.format(root=root).split(), root, table.name, fine=True)


ENCODERS = {
    "no weights": {"weights": 3},
    "a list": {"weights": [torch.zeros(1)]},
    "a layout of text": {"layout": "x"},
    "a negative layout": {"layout": {"shape": -1, "expression": 0, "detail": 0}},
    "a huge layout": {"layout": {"shape": 10**12, "expression": 0, "detail": 0}},
    "a view of nothing": {"view": {"fov": float("nan"), "distance": 1.0, "head_size": 1.0, "size": 64}},
    "a huge view": {"view": {"fov": 30.0, "distance": 1.0, "head_size": 1.0, "size": 10**9}},
    "another backbone": {"backbone": ["resnet18"]},
    "a head of its own": {"head_model": {"a": 1}},
    "weights of NaN": {"weights": "nan"},
}


@pytest.mark.parametrize("case", ENCODERS)
def test_encoders_that_are_none(root, case):
    state = torch.load(root / "e.pth", weights_only=True)
    change = dict(ENCODERS[case])
    if change.get("weights") == "nan":
        change["weights"] = {name: weight * np.nan for name, weight in state["weights"].items()}
    torch.save(state | change, root / "e.pth")
    hostile.check(main, ENCODE.format(root=root).split(), root, "e.pth")


PEOPLE = {
    "raw": np.zeros((1, 5), np.float32),
    "found": np.array(["x"]),
    "refined": np.zeros(3),
    "focals": np.full(1, np.inf),
    "identity_sigma": np.zeros((1, 129), complex),
    "layout_shape": 10**12,
    "layout_detail": np.array(["x"]),
    "view_size": 10**9,
    "view_fov": np.nan,
    "crops": np.full((1, 3), np.nan, np.float32),
    "image_sizes": np.array([[0, -5]]),
    "names": np.array([3]),
    "vectors": np.full((1, 227), 1e30, np.float32),
    "head_model": np.zeros((2, 2)),
    "format": np.zeros(3),
}


@pytest.mark.parametrize("key", PEOPLE)
def test_people_that_are_none(root, key):
    with np.load(root / "people.npz") as arrays:
        kept = dict(arrays)
    np.savez(root / "people.npz", **(kept | {key: PEOPLE[key]}))
    hostile.check(main, MESH.format(root=root).split(), root, "people.npz", fine=key == "names")


@pytest.mark.parametrize(
    "change", [{"step": -5}, {"step": 10**9}, {"step": "x"}, {"optimizer": 3}, {"optimizer": {}}, {"weights": {}}]
)
def test_checkpoints_that_are_none(root, change):
    state = torch.load(root / "run/checkpoint.pth", weights_only=True)
    torch.save(state | change, root / "run/checkpoint.pth")
    before = hostile.tree(root)
    result = hostile.CliRunner().invoke(main, ["train", "--resume", "--out", str(root / "run"), "--device", "cpu"])
    assert result.exit_code == 2 and "checkpoint.pth" in result.stderr and result.stderr.count("\n") == 1
    after = hostile.tree(root)
    assert {path: after[path] for path in after if ".recon4d" not in path} == {
        path: before[path] for path in before if ".recon4d" not in path
    }


@pytest.mark.parametrize("command", ["track", "stream", "encode", "sheet"])
def test_names_that_are_not_utf_8(root, command):
    for folder, suffix in (("frames", ".png"), ("landmarks", ".npy")):
        shutil.copy(
            root / f"clip/{folder}/00000{suffix}", root / f"clip/{folder}" / os.fsdecode(b"\xff" + suffix.encode())
        )
    hostile.check(main, WORDS[command].replace("--no-preview", "").format(root=root).split(), root, fine=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (TRACK.replace("/out", "/clip/frames"), "lies inside the input"),
        (TRACK.replace("/out", ""), "was not written by"),
        (TRACK.replace("/out", "/theirs"), "was not written by"),
        (WORDS["stream"].replace("/out", "/theirs"), "was not written by"),
        (TRAIN.replace("/out", ""), "was not written by"),
        (TRAIN.replace("/out", "/clip"), "was not written by"),
        (TRAIN.replace("/out", "/clip") + FILES, "holds the input"),
        (TRAIN + " --cache {root}/out", "out"),
        (ENCODE.replace("/o.npz", "/clip/frames/00000.png"), "00000.png"),
        (ENCODE.replace("/o.npz", "/e.pth"), "is read and would be written"),
        (ENCODE + " --overlay {root}/o.npz", "--overlay"),
        (MESH.replace("/o.ply", "/people.npz"), "people.npz"),
        ("check-model {root}/head.pkl --render {root}/head.pkl", "is read and would be written"),
    ],
)  # fmt: skip
def test_force_replaces_nothing_but_its_own(root, words, said):
    (root / "theirs/checkpoint").mkdir(parents=True)
    (root / "theirs/checkpoint/00000.frame").write_bytes(b"theirs")
    write_flame_pickle(root / "head.pkl", flame_arrays())
    hostile.check(main, [*words.format(root=root).split(), "--force"], root, said)


def test_the_working_folder_is_no_output(root, monkeypatch):
    (root / "here").mkdir()
    monkeypatch.chdir(root / "here")
    hostile.check(main, ["train", "--config", str(root / "c.yaml"), "--out", "."], root, "the folder you are in")


def test_a_picture_cut_short_is_said(root):
    for path in (root / "clip/frames").glob("*.png"):
        path.with_suffix(".jpg").write_bytes(hostile.picture(".jpg")[:1500])
        path.unlink()
    hostile.check(main, TRACK.format(root=root).split(), root, "00000.jpg")


def test_another_heads_files(root):
    write_flame_pickle(root / "head.pkl", flame_arrays())
    for words, named in ((MESH, "people.npz"), (MESH.replace("people", "track"), "track.npz"), (ENCODE, "e.pth")):
        hostile.check(main, [*words.format(root=root).split(), "--head-model", str(root / "head.pkl")], root, named)
