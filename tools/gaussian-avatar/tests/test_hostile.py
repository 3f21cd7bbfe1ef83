"""Broken and hostile input at every door of gaussian-avatar: refused in one line; nothing left, nothing lost."""

import json
import os
import shutil
from dataclasses import dataclass, replace

import hostile
import numpy as np
import pytest
import torch
from gaussian_avatar import captures, exports, motions, runs, synth, training
from gaussian_avatar.cli import main
from plyfile import PlyData, PlyElement
from recon4d import images
from recon4d.formats import track_stream
from recon4d.formats.track import read as read_track
from safetensors.torch import load_file, save_file

SETTINGS = ["model.tex_size=24", "model.basis=2", "model.hidden=8", "train.batch_size=2", "train.iterations=6"]
SET = " ".join(f"--set {setting}" for setting in (*SETTINGS, "train.preview_seconds=0"))
RUN = "--subject one --work-name w --output-dir {root}/output"
NEW = "--subject one --work-name new --data-dir {root}/data --output-dir {root}/output"
WORDS = {
    "synth": "synth {root}/made --frames 2 --size 32",
    "import": "import {root}/data/one",
    "offline": f"train-offline {NEW} --preset cpu-quick {SET}",
    "reading": f"train-offline {NEW} --preset cpu-quick {SET} --no-preload",
    "config": f"train-offline {NEW} --config {{root}}/mine.yaml",
    "resume": f"train-offline {RUN} --resume",
    "online": f"train-online {NEW} --preset cpu-online {SET} --images-per-frame 2",
    "stream": f"train-online {NEW} --preset cpu-online {SET} --set online.image_wait=0 --stream {{root}}/stream.jsonl",
    "metrics": f"metrics {RUN}",
    "render": f"render {RUN} --track {{root}}/other.npz",
    "export": f"export {RUN} --track {{root}}/other.npz",
    "compact": f"render {RUN} --model {{root}}/model.safetensors",
    "view": f"view {RUN} --track {{root}}/other.npz",
}


@dataclass(frozen=True)
class Door:
    """A command, which of the files it reads is replaced by what, and what the error may name instead of the file."""

    words: str
    file: str
    contents: str
    named: tuple[str, ...] = ()


DOORS = {
    "synth's head": Door(WORDS["synth"] + " --head-model {root}/head.pkl", "head.pkl", "pickle"),
    "import's picture": Door(WORDS["import"], "data/one/images/00001.png", "picture"),
    "import's track": Door(WORDS["import"], "data/one/track.npz", "npz"),
    "import's frame": Door("import {root}/frames", "frames/checkpoint/00001.frame", "frame"),
    "training's picture": Door(WORDS["offline"], "data/one/images/00001.png", "picture"),
    "training's picture, read later": Door(WORDS["reading"], "data/one/images/00001.png", "picture"),
    "training's track": Door(WORDS["offline"], "data/one/track.npz", "npz"),
    "training's config": Door(WORDS["config"], "mine.yaml", "yaml"),
    "resumed config": Door(WORDS["resume"], "output/one/w/config.yaml", "yaml"),
    "resumed checkpoint": Door(WORDS["resume"], "output/one/w/checkpoint.pt", "checkpoint"),
    "online picture": Door(WORDS["online"], "data/one/images/00001.png", "picture"),
    "stream": Door(WORDS["stream"], "stream.jsonl", "json"),
    "stream's picture": Door(WORDS["stream"], "data/one/images/00001.png", "picture"),
    "stream's mask": Door(
        WORDS["stream"] + " --images {root}/data/one/images --masks {root}/masks", "masks/00001.png", "picture"
    ),
    "metrics' picture": Door(WORDS["metrics"], "data/one/images/00005.png", "picture"),
    "metrics' model": Door(WORDS["metrics"], "output/one/w/model.ply", "ply"),
    "metrics' config": Door(WORDS["metrics"], "output/one/w/config.yaml", "yaml"),
    "metrics' track": Door(WORDS["metrics"], "output/one/w/track.npz", "npz"),
    "render's track": Door(WORDS["render"], "other.npz", "npz"),
    "render's compact model": Door(WORDS["compact"], "model.safetensors", "safetensors"),
    "export's track": Door(WORDS["export"], "other.npz", "npz"),
    "view's model": Door(WORDS["view"], "output/one/w/model.ply", "ply"),
    "view's track": Door(WORDS["view"], "other.npz", "npz"),
}
NUMBERS = {
    "--frames": "synth",
    "--size": "synth",
    "--fps": "synth",
    "--seed": "offline",
    "--video-fps": "online",
    "--images-per-frame": "online",
    "--repeat": "online",
    "--post-steps": "online",
    "--split": "metrics",
    "--turn": "render",
    "--jaw": "export",
    "--port": "view",
}


@pytest.fixture(scope="module", autouse=True)
def head():
    """The open head, read once for all cases."""
    found, load_head = motions.load_head(None), motions.load_head
    with pytest.MonkeyPatch.context() as patch:
        for module in (motions, captures):
            patch.setattr(module, "load_head", lambda path: found if path is None else load_head(path))
        yield found


@pytest.fixture(scope="module")
def good(tmp_path_factory, head):
    """A capture of 6 frames, the same as frames of a tracker, as a stream and with masks, and a run on it."""
    folder = tmp_path_factory.mktemp("good")
    data = folder / "data/one"
    synth.synthesise(data, 6, 32, seed=1)
    config = [*SETTINGS, "train.preview_seconds=0"]
    result = training.start(folder / "output/one/w", data, "cpu-quick", config, log=lambda _: None)
    exports.write_compact(runs.open_run(result.folder, "cpu"), folder / "model.safetensors", 8)
    track = read_track(data / "track.npz")
    track.write(folder / "other.npz")
    (folder / "stream.jsonl").write_text("\n".join([track_stream.header_line(track), *track_stream.frame_lines(track)]))
    for name in map(str, track.names):
        images.write(folder / "masks" / name, images.read(data / "images" / name, "RGBA")[..., 3])
    for kind in ("images", "checkpoint"):
        shutil.copytree(data / kind, folder / "frames" / kind)
    (folder / "mine.yaml").write_text("model: {tex_size: 24}\n")
    (folder / "head.pkl").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def copied(good, tmp_path_factory):
    """A copy of it; runs remember where their data is."""
    folder = tmp_path_factory.mktemp("copied") / "root"
    path = good / "output/one/w/config.yaml"
    path.write_text(path.read_text().replace(str(good), str(folder)))
    return shutil.copytree(good, folder)


@pytest.fixture
def root(good, copied, monkeypatch):
    """The copy, which a case may break."""
    monkeypatch.setattr("gaussian_avatar.viewer.serving", None)  # no case gets that far
    yield copied
    hostile.put_back(copied, good)


CASES = [(door, case) for door, d in DOORS.items() for case in hostile.CONTENTS[d.contents]]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{door}: {case}" for door, case in CASES])
def test_contents(root, name, case):
    door = DOORS[name]
    path = root / door.file
    path.write_bytes(hostile.content(door.contents, case))
    hostile.check(main, door.words.format(root=root).split(), root, [path.name, *door.named])


@pytest.mark.parametrize("number", hostile.NUMBERS)
@pytest.mark.parametrize("option", NUMBERS)
def test_numbers(root, option, number):
    words = WORDS[NUMBERS[option]].format(root=root).split()
    if option in words:
        del words[words.index(option) : words.index(option) + 2]
    if (option, number) in (("--jaw", "-1"), ("--split", "-1")):
        return  # a jaw may be closed a little, and frames are counted from the end
    hostile.check(main, [*words, option, number], root, option)


@pytest.mark.parametrize(
    "setting",
    [
        "train.rates.mlp=nan",
        "train.rates.mlp=1e400",
        "train.iterations=-1",
        "seed=x",
        "model.init_scale=.inf",
        "model.b=1",
        "train=1",
        "train.batch_size=[[[",
        "online.image_wait=inf",
        f"model.tex_size={'9' * 40}",
        "=",
        "seed",
    ],
)
def test_settings(root, setting):
    words = [*WORDS["offline"].format(root=root).split(), "--set", setting]
    hostile.check(main, words, root, [f"--set {setting}", "model.tex_size"])


@pytest.mark.parametrize("face", ["", "=", "mouthSmileLeft=nan", "mouthSmileLeft=1e400", "mouthSmileLeft=x", "grin=1"])
def test_faces(root, face):
    words = f"export {RUN}".format(root=root).split()
    hostile.check(main, [*words, "--expression", face], root, "--expression")


@pytest.mark.parametrize("command", ["synth", "offline", "online"])
@pytest.mark.parametrize("case", ["below a file", "a long name", "a link to itself", "no place for files"])
def test_outputs(root, command, case):
    (root / "places").mkdir()
    out = hostile.outputs(root / "places")[case]
    words = WORDS[command].format(root=root).split()
    if command == "synth":
        words[1] = str(out)
    else:
        words[words.index("--output-dir") + 1] = str(out)
    hostile.check(main, words, root, [str(out)[:60], out.parent.name, out.name[:60], "--out"])


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../../evil", "/etc"])
@pytest.mark.parametrize("option", ["--subject", "--work-name"])
def test_names_that_are_paths(root, option, name):
    words = WORDS["offline"].format(root=root).split()
    words[words.index(option) + 1] = name
    hostile.check(main, words, root, option)


TRACKS = {
    "text": {"R": np.array(["x"] * 6)},
    "dates": {"t": np.array(["2026-01-01"] * 18, "datetime64[D]").reshape(6, 3)},
    "scalars": {"expression": np.float32(1)},
    "not finite": {"K": np.full((3, 3), np.nan, np.float32)},
    "no K": {"K": np.zeros((3, 3), np.float32)},
    "no size": {"image_size": np.array([0, 0])},
    "a huge size": {"image_size": np.array([10**9, 10**9])},
    "no rate": {"fps": np.float64("nan")},
    "no frames": {
        key: np.zeros((0, *shape), kind)
        for key, shape, kind in (("names", (), "U9"), ("valid", (), bool), ("R", (3, 3), "f4"), ("t", (3,), "f4"))
    },
    "no rotation": {"R": np.zeros((6, 3, 3), np.float32)},
    "another head": {"shape": np.zeros(300, np.float32), "expression": np.zeros((6, 400), np.float32)},
    "names with folders": {"names": np.array(["../../evil.png"] * 6)},
}


@pytest.mark.parametrize("case", TRACKS)
@pytest.mark.parametrize("door", ["render's track", "training's track"])
def test_values_in_a_track(root, door, case):
    path = root / DOORS[door].file
    with np.load(path) as arrays:
        np.savez(path, **(dict(arrays) | TRACKS[case]))
    fine = case in ("names with folders", "a huge size") and door == "render's track"  # reduced to the avatar's own
    hostile.check(main, DOORS[door].words.format(root=root).split(), root, [path.name, "data/one"], fine=fine)


def lines_of(root):
    return (root / "stream.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    "change",
    [
        {"K": "x"},
        {"K": [[1]]},
        {"image_size": [1e400, 1]},
        {"image_size": [0, -5]},
        {"fps": None},
        {"shape": {"a": 1}},
        {"format": 3},
        {"head_model": 5},
        {"shape": [0.0] * 400},
    ],
    ids=str,
)
def test_headers_of_streams(root, change):
    header, *rest = lines_of(root)
    (root / "stream.jsonl").write_text("\n".join([json.dumps(json.loads(header) | change), *rest]))
    hostile.check(main, WORDS["stream"].format(root=root).split(), root, ["stream.jsonl", "track stream"])


@pytest.mark.parametrize(
    "change",
    [
        {"R": "x"},
        {"R": [[0, 0, 0]] * 3},
        {"t": [1e400, 0, 0]},
        {"t": [float("nan"), 0, 0]},
        {"expression": [[1], [1, 2]]},
        {"expression": []},
        {"valid": "yes"},
        {"name": 7},
        {"name": "../../evil"},
        {"name": "a\0b"},
        {"jaw": None},
        {"eyes": {}},
    ],
    ids=str,
)
def test_frames_of_streams(root, change):
    header, first, second, *rest = lines_of(root)
    (root / "stream.jsonl").write_text("\n".join([header, first, json.dumps(json.loads(second) | change), *rest]))
    hostile.check(main, WORDS["stream"].format(root=root).split(), root, ["stream.jsonl", "track stream", "evil", "a"])


MODELS = {
    "other faces": lambda table: table.__setitem__("face_id", 10**8),
    "negative faces": lambda table: table.__setitem__("face_id", -1),
    "not finite": lambda table: table.__setitem__("x", np.nan),
    "infinite scales": lambda table: table.__setitem__("scale_0", 1e30),
    "a network that is not finite": lambda table: table.__setitem__("weight_module", np.nan),
}


@pytest.mark.parametrize("case", MODELS)
def test_values_in_a_model(root, case):
    path = root / "output/one/w/model.ply"
    data = PlyData.read(path, mmap=False)
    table = data["vertex"].data.copy()
    MODELS[case](table)
    PlyData([PlyElement.describe(table, "vertex")], comments=data.comments).write(path)
    hostile.check(main, WORDS["metrics"].format(root=root).split(), root, "model.ply")


@pytest.mark.parametrize("said", ["mlp 1 2", "mlp x y z", "mlp 99999999999999999999 8 2", "mlp -1 8 2", "mlp"])
def test_a_network_of_another_size_than_said(root, said):
    path = root / "output/one/w/model.ply"
    data = PlyData.read(path, mmap=False)
    PlyData([PlyElement.describe(data["vertex"].data, "vertex")], comments=[said]).write(path)
    hostile.check(main, WORDS["metrics"].format(root=root).split(), root, "model.ply", fine=True)


@pytest.mark.parametrize(
    "change",
    [
        {"means": torch.full((5, 3), float("nan"))},
        {"face_id": torch.tensor([10**8])},
        {"face_id": torch.zeros(0, dtype=torch.int32)},
        {"quats": torch.zeros(2, 2, 2)},
        {"mlp.0.weight": torch.zeros(3)},
        {"metres": torch.tensor(float("inf"))},
        {"bary": torch.zeros(7)},
    ],
    ids=str,
)
def test_values_in_a_compact_model(root, change):
    path = root / "model.safetensors"
    save_file(load_file(path) | change, path, {"format": "recon4d-avatar-1", "head_model": "open-head"})
    hostile.check(main, WORDS["compact"].format(root=root).split(), root, "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"images": "many"},
        {"images": -5},
        {"images": 2**70},
        {"seconds": float("nan")},
        {"attributes": 3},
        {"attributes": {}},
        {"seen": torch.zeros(2)},
        {"mlp": {}},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"corrections": torch.zeros(9, 6)},
    ],
    ids=str,
)
def test_values_in_a_checkpoint(root, change):
    path = root / "output/one/w/checkpoint.pt"
    torch.save(torch.load(path, weights_only=True) | change, path)
    hostile.check(main, WORDS["resume"].format(root=root).split(), root, "checkpoint.pt")


@pytest.mark.parametrize("command", ["import", "offline", "reading", "metrics"])
def test_names_that_are_not_utf_8(root, command):
    data = root / "data" / os.fsdecode(b"\xff")
    shutil.copytree(root / "data/one", data)
    words = WORDS[command].replace("data/one", f"data/{data.name}").format(root=root)
    if command == "metrics":
        shutil.copytree(root / "output/one", root / "output" / data.name)
    words = words.replace("--subject one", f"--subject {data.name}")
    hostile.check(main, words.split(), root, fine=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train-offline {data} --output-dir {root}/data --subject one --work-name images --force", "inside the input"),
        ("train-offline {data} --output-dir {root}/data --subject one --work-name x --force", "inside the input"),
        ("train-online {stream} --output-dir {root}/data --subject one --work-name images --force", "inside the input"),
        ("synth {root}/data --subject one --force", "was not written by"),
        ("synth {root}/output --subject one --force", "was not written by"),
        (f"train-offline {RUN} {{data}} --force", "was not written by"),
        (f"metrics {RUN} --force", "was not written by"),
        (f"render {RUN} --force", "was not written by"),
        (f"export {RUN} --force", "was not written by"),
        (f"export {RUN} --format safetensors", "exists"),
        (f"metrics {RUN}", "exists"),
        (f"render {RUN}", "exists"),
        (f"export {RUN}", "exists"),
    ],
)
def test_force_replaces_nothing_but_its_own(root, words, said):
    """Pictures of the user's own, where a command would write or what it reads."""
    shutil.rmtree(root / "data/one/.recon4d", ignore_errors=True)  # the capture is not ours
    work = root / "output/one/w"
    for name in ("render_image/00000.png", "contact.png", "mine.png"):
        images.write(work / name, np.zeros((8, 8, 3), np.uint8))
    (work / "export").mkdir()
    (work / "export/mine.ply").write_bytes(b"ply")
    (work / "model.safetensors").write_bytes(b"mine")
    data = f"--data-dir {root}/data {SET} --preset"
    words = words.format(root=root, data=f"{data} cpu-quick", stream=f"{data} cpu-online")
    result = hostile.check(main, words.split(), root, [str(root)])
    assert said in result.stderr


def test_a_run_again(root):
    """Each command of a run twice: refused, then replaced."""
    run = RUN.format(root=root)
    for words in (f"metrics {run}", f"render {run}", f"export {run}", f"export {run} --format safetensors"):
        result = hostile.CliRunner().invoke(main, words.split())
        assert result.exit_code == 0, result.output
        hostile.check(main, words.split(), root, ["exists"])
        result = hostile.CliRunner().invoke(main, [*words.split(), "--force"])
        assert result.exit_code == 0, result.output
    assert runs.open_run(root / "output/one/w", "cpu").avatar.seen.any()


def test_the_working_folder_is_no_output(root, monkeypatch):
    (root / "output/one/new").mkdir()
    monkeypatch.chdir(root / "output/one/new")
    hostile.check(main, WORDS["offline"].format(root=root).split(), root, "the folder you are in")


def test_what_a_killed_run_left_is_cleared(root):
    work = root / "output/one/w"
    left, theirs = (work / f".recon4d-{number}-x8_yz012.ply" for number in (4194399, os.getpid()))
    for path in (left, theirs):
        path.write_bytes(b"half")
    result = hostile.CliRunner().invoke(main, f"metrics {RUN}".format(root=root).split())
    assert result.exit_code == 0, result.output
    assert not left.exists() and theirs.exists()


def test_a_stream_of_another_size_or_head(root):
    """Pictures and lines that do not fit each other are said with the first of them."""
    track = replace(read_track(root / "other.npz"), image_size=np.array([64, 64]))
    (root / "stream.jsonl").write_text("\n".join([track_stream.header_line(track), *track_stream.frame_lines(track)]))
    hostile.check(main, WORDS["stream"].format(root=root).split(), root, "00000.png")
