"""Broken and hostile input at every door: one line that names it, exit 2, nothing new and nothing changed."""

import json
import os
import shutil
from pathlib import Path

import hostile
import numpy as np
import pytest
from click.testing import CliRunner
from flux4d.cli import main
from posts import write_folder

TINY = [
    word
    for setting in (
        "lift.max_gaussians=200",
        "model.channels=[4]",
        "model.hidden=4",
        "model.refinements=0",
        "train.frames=1",
        "train.warmup=1",
    )
    for word in ("--set", setting)
]
SCENE, SENSOR = "scenes/001", "scenes/001/camera/front_camera"


def call(*words):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A scene of three frames, its index, a network, depth maps and a reconstruction, as small as they can be."""
    root = tmp_path_factory.mktemp("made")
    call("synth", root / "scenes", "--frames", 3, "--width", 32, "--columns", 200, "--samples", 1)
    cut = ["--clip-len-s", 0.2, "--stride-s", 0.1, "--val-scenes", "001"]
    call("index", "--data-root", root / "scenes", "--out-full", root / "clips.json", *cut)
    index = json.loads((root / "clips.json").read_text())
    index["clips"].append(index["clips"][0] | {"split": "train"})
    (root / "clips.json").write_text(json.dumps(index))
    common = ["--index-path", root / "clips.json", "--device", "cpu"]
    call("overfit", *common, "--output-dir", root / "run", "--iters", 1, "--num-sky-points", 400, *TINY)
    ckpt = ["--ckpt", root / "run" / "ckpt_last.pt"]
    call("reconstruct", *common, *ckpt, "--out-dir", root / "scene", "--fps", 1, "--slow", 0.1)
    for i in range(3):
        path = root / "depth" / "001" / "front_camera" / f"{i:02d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((18, 32), 9.0, np.float32))
    (root / "config.yaml").write_text((root / "run" / "config.yaml").read_text())
    write_folder(root / "logs" / "one", frames=2)
    return root


@pytest.fixture(scope="module")
def copied(made, tmp_path_factory) -> Path:
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("copied") / "given"))


@pytest.fixture
def given(made, copied):
    """All that, to be broken: what a test changes is put right after it."""
    yield copied
    hostile.put_back(copied, made)


def words(given: Path, door: str) -> list:
    """A command line that would work."""
    index, out = ["--index-path", given / "clips.json", "--data-root", given / "scenes"], given / "out"
    ckpt = ["--ckpt", given / "run" / "ckpt_last.pt", "--device", "cpu"]
    run = [*index, "--output-dir", out, "--device", "cpu", "--num-sky-points", 400, *TINY]
    return {
        "synth": ["synth", out, "--frames", 2, "--width", 32, "--columns", 24, "--samples", 1],
        "import": ["import", "folder", given / "logs" / "one", out],
        "import several": ["import", "folder", given / "logs", out],
        "index": ["index", "--data-root", given / "scenes", "--out-full", out, "--clip-len-s", 0.2],
        "vis-lift": ["vis-lift", *index, "--out-dir", out],
        "inspect-voxels": ["inspect-voxels", *index, "--config", given / "config.yaml"],
        "overfit": ["overfit", *run, "--iters", 1],
        "overfit config": ["overfit", *run[:-12], "--config", given / "config.yaml", "--iters", 1],
        "overfit depth": ["overfit", *run, "--iters", 1, "--depth-dir", given / "depth"],
        "overfit from": ["overfit", *run, "--iters", 1, "--resume-from", given / "run" / "ckpt_last.pt"],
        "train": ["train", *run, "--iters", 1],
        "eval": ["eval", *index, *ckpt, "--out-dir", out],
        "eval config": ["eval", *index, *ckpt, "--out-dir", out, "--config", given / "config.yaml"],
        "vis-flow": ["vis-flow", *index, *ckpt, "--out-dir", out, "--render-frames", "0", "--mode", "follow"],
        "reconstruct": ["reconstruct", *index, *ckpt, "--out-dir", out, "--fps", 1, "--slow", 0.1],
        "edit": ["edit", given / "scene"],
        "view": ["view", given / "scene", "--port", 0],
    }[door]


# what is read: door, file, kind of content; all contents of a kind at one door of each reader, some at the others
READERS = [
    ("index", f"{SCENE}/lidar/poses.json", "json"),
    ("index", f"{SCENE}/lidar/timestamps.json", "json"),
    ("index", f"{SENSOR}/poses.json", "json"),
    ("index", f"{SENSOR}/timestamps.json", "json"),
    ("index", f"{SENSOR}/intrinsics.json", "json"),
    ("index", f"{SENSOR}/00.jpg", "picture"),
    ("vis-lift", "clips.json", "json"),
    ("vis-lift", f"{SCENE}/lidar/00.pkl.gz", "pickle.gz"),
    ("vis-lift", f"{SENSOR}/00.jpg", "picture"),
    ("inspect-voxels", "config.yaml", "yaml"),
    ("overfit depth", "depth/001/front_camera/00.npy", "npy"),
    ("overfit from", "run/ckpt_last.pt", "checkpoint"),
    ("eval", "run/ckpt_last.pt", "checkpoint"),
    ("edit", "scene/cameras.json", "json"),
    ("edit", "scene/scene.ply", "ply"),
]
OTHERS = [
    (door, file, kind)
    for file, kind, doors in (
        ("clips.json", "json", ("inspect-voxels", "overfit", "train", "eval", "vis-flow", "reconstruct")),
        (f"{SCENE}/lidar/00.pkl.gz", "pickle.gz", ("inspect-voxels", "overfit", "eval", "vis-flow", "reconstruct")),
        (f"{SENSOR}/01.jpg", "picture", ("inspect-voxels", "overfit", "eval", "vis-flow", "reconstruct")),
        ("config.yaml", "yaml", ("overfit config", "eval config")),
        ("run/ckpt_last.pt", "checkpoint", ("vis-flow", "reconstruct")),
        (f"{SCENE}/annotations/cuboids/01.pkl.gz", "pickle.gz", ("eval", "vis-flow")),
        ("scene/cameras.json", "json", ("view",)),
        ("scene/scene.ply", "ply", ("view",)),
    )
    for door in doors
]
FILES = [(door, file, kind, name) for door, file, kind in READERS for name in hostile.CONTENTS[kind]]
FILES += [(door, file, kind, name) for door, file, kind in OTHERS for name in list(hostile.CONTENTS[kind])[-4:-1]]


@pytest.mark.parametrize(("door", "file", "kind", "name"), FILES)
def test_contents(given, door, file, kind, name):
    path = given / file
    path.write_bytes(hostile.content(kind, name))
    fine = kind == "npy" and name == "another shape"
    hostile.check(main, words(given, door), given, path.name, fine=fine)


def put(*keys):
    """A function that puts a value at a place in nested containers."""

    def change(entry, value):
        for key in keys[:-1]:
            entry = entry[key]
        entry[keys[-1]] = value

    return change


CAMERA = ("cameras", "front_camera")
VALUES = {
    "a name that leads away": (put("scene"), ["../../evil", "/tmp/evil", "", ".", 3, None]),
    "images elsewhere": (put(*CAMERA, "images", 0), ["../../secret.jpg", "/etc/passwd", 3]),
    "sweeps elsewhere": (put("lidar", 0), ["../../x.pkl.gz", "/etc/passwd", None]),
    "cuboids elsewhere": (put("cuboids"), [["../x.pkl", "../x.pkl", "../x.pkl"], "x", [], 3]),
    "times": (put("timestamps"), ["x", [], [1, 2], [float("nan")] * 3, [1e400] * 3, ["2020-01-01"] * 3, 5]),
    "times of images": (put(*CAMERA, "timestamps"), [None, [0.0], [float("inf")] * 3]),
    "poses": (put("lidar_poses"), [[], [1, 2, 3], {"a": 1}, "x"]),
    "poses of images": (put(*CAMERA, "poses", 0, "position", "x"), ["x", float("nan"), None, [1]]),
    "headings": (put("lidar_poses", 0, "heading"), [{"w": 0, "x": 0, "y": 0, "z": 0}, {"w": 1}, 3]),
    "intrinsics": (put(*CAMERA, "intrinsics", "fx"), [float("nan"), 1e400, 0, -3, "wide", None]),
    "inputs": (put("input"), [[], [99], [-1], "x", [0.5], [True, "a"]]),
    "targets": (put("target"), [[99], "x", [None]]),
    "cameras": (put("cameras"), [3, {}, {"front_camera": 3}, []]),
    "frames": (put("frames"), [[], "x", [1e9] * 3, None]),
    "split": (put("split"), [3, None, "neither"]),
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, (_, values) in VALUES.items() for number in range(len(values))]
)
def test_values_of_an_index(given, name, number):
    change, values = VALUES[name]
    path = given / "clips.json"
    index = json.loads(path.read_text())
    change(index["clips"][0], values[number])
    path.write_text(json.dumps(index))
    hostile.check(main, words(given, "vis-lift"), given, "clips.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("times", [0.0, float("nan")]),
        ("times", [0.0, 1e300]),
        ("times", [1.0, 0.0, 0.5]),
        ("times", ["a"]),
        ("times", 3),
        ("camera_to_world", [[1]]),
        ("camera_to_world", [[[0.0] * 4] * 4] * 3),
        ("camera_to_world", [[[float("inf")] * 4] * 4] * 3),
        ("K", [[0] * 3] * 3),
        ("K", [[float("nan")] * 3] * 3),
        ("K", "x"),
        ("size", [10**6, 10**6]),
        ("size", [0, -4]),
        ("size", [3]),
        ("size", [float("nan"), 3]),
        ("format", 3),
    ],
)
def test_values_of_a_scene(given, key, value):
    path = given / "scene" / "cameras.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    change = ["--add", 0, 1, 0, 0, "--out-dir", given / "out", "--fps", 1]
    hostile.check(main, [*words(given, "edit"), *change], given, "cameras.json")


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        (f"{SCENE}/lidar/timestamps.json", "[NaN, 1, 2]", "timestamps.json"),
        (f"{SCENE}/lidar/timestamps.json", "[1e400, 1, 2]", "timestamps.json"),
        (f"{SENSOR}/timestamps.json", '["2020-01-01", "a", "b"]', "timestamps.json"),
        (f"{SENSOR}/intrinsics.json", '{"fx": NaN, "fy": 1, "cx": 1, "cy": 1}', "intrinsics.json"),
        (f"{SENSOR}/intrinsics.json", '{"fx": 0, "fy": 1, "cx": 1, "cy": 1}', "intrinsics.json"),
        (f"{SENSOR}/intrinsics.json", '{"fx": 1e400, "fy": 1, "cx": 1, "cy": 1}', "intrinsics.json"),
        (f"{SENSOR}/poses.json", '[{"position": 3, "heading": []}, 1, 2]', "poses.json"),
    ],
)
def test_values_of_a_log(given, file, content, named):
    (given / file).write_text(content)
    hostile.check(main, words(given, "index"), given, named)


OPTIONS = [
    ("synth", option) for option in ("--scenes", "--first", "--frames", "--width", "--columns", "--samples", "--seed")
]
OPTIONS += [("import", "--rate")]
OPTIONS += [("index", option) for option in ("--clip-len-s", "--stride-s", "--tiny-num-scenes")]
OPTIONS += [("vis-lift", option) for option in ("--clip-index", "--frame-index")]
OPTIONS += [("inspect-voxels", "--num-sky-points")]
OPTIONS += [
    ("overfit", option)
    for option in (
        "--num-sky-points",
        "--max-gaussians",
        "--iters",
        "--grad-accum-steps",
        "--seed",
        "--fixed-target-frame",
    )
]
OPTIONS += [("train", "--processes"), ("eval", "--clip-index"), ("vis-flow", "--frame-ref"), ("view", "--port")]
OPTIONS += [("reconstruct", "--fps"), ("reconstruct", "--slow"), ("edit", "--min-speed"), ("edit", "--distance")]


@pytest.mark.parametrize(("door", "option"), OPTIONS)
@pytest.mark.parametrize("number", hostile.NUMBERS)
def test_numbers(given, door, option, number):
    if option in ("--max-gaussians", "--min-speed", "--distance") and number == "9" * 40:
        pytest.skip("as good as any other: more than there are")
    hostile.check(main, [*words(given, door), option, number], given, option)


@pytest.mark.parametrize("number", ["nan", "inf", "x", "9" * 400])
def test_numbers_of_changes(given, number):
    for option in ("--move", "--add"):
        line = [*words(given, "edit"), "--out-dir", given / "out", option, "0", "0", number, "0"]
        hostile.check(main, line, given, option)
    hostile.check(main, [*words(given, "edit"), "--out-dir", given / "out", "--remove", number], given, "--remove")


@pytest.mark.parametrize(
    "setting",
    [
        "seed=" + "9" * 40,
        "seed=-1",
        "seed=2020-01-01",
        "train.rate=nan",
        "train.rate=.inf",
        "train.iterations=1e400",
        "train=3",
        "model.channels=[1000000000]",
        "model.channels=" + "[" * 3000,
        "model.voxel=1e-9",
        "lift.sky_points=100000000000",
        "lift.sky=1",
        "a.b.c.d=1",
        "=",
        "",
    ],
)
@pytest.mark.parametrize("door", ["inspect-voxels", "overfit"])
def test_settings(given, door, setting):
    # options of the door take the place of two of them
    fine = door == "overfit" and setting.startswith(("train.iterations", "lift.sky_points"))
    hostile.check(main, [*words(given, door), "--set", setting], given, ["--set", "key a"], fine=fine)


OUTPUTS = {
    "synth": "ROOT",
    "import": "OUT",
    "import several": "OUT",
    "index": "--out-full",
    "vis-lift": "--out-dir",
    "overfit": "--output-dir",
    "train": "--output-dir",
    "eval": "--out-dir",
    "vis-flow": "--out-dir",
    "reconstruct": "--out-dir",
    "edit": "--out-dir",
}


@pytest.mark.parametrize("door", OUTPUTS)
@pytest.mark.parametrize("name", ["below a file", "a long name", "a link to itself", "no place for files"])
def test_outputs(given, tmp_path, door, name):
    place = tmp_path / "places"
    place.mkdir()
    out = hostile.outputs(place)[name]
    line = [out if word == given / "out" else word for word in words(given, door)]
    if door == "edit":
        line += ["--out-dir", out, "--add", 0, 1, 0, 0]
        shutil.copytree(moving(given), given / "moving")
        line[1] = given / "moving"
    hostile.check(main, line, tmp_path, [out.name, "file", "loop", str(out)[:40]])


def moving(given: Path) -> Path:
    """A scene with an actor to add: a hundred Gaussians that move."""
    import torch
    from flux4d import scenes

    gaussians, path = scenes.read(given / "scene")
    gaussians.velocities[~gaussians.sky, 0] = torch.tensor([6.0, 0, 0])
    gaussians.means[~gaussians.sky] *= 0.01
    scenes.write(given / "fast", gaussians, path)
    return given / "fast"


@pytest.mark.parametrize("door", OUTPUTS)
def test_what_others_wrote_stays(given, door):
    """A folder of pictures is no output, with --force as little as without."""
    (given / "out").mkdir()
    (given / "out" / "holiday.jpg").write_text("mine")
    if door == "import several":
        shutil.copytree(given / "out", given / "out" / "one")
    if door in ("index", "edit", "eval", "vis-lift", "synth"):
        shutil.copytree(given / "out", given / "out" / "001")  # a folder where a file or scene would be
        shutil.copytree(given / "out" / "001", given / "out" / "metrics.json")
        shutil.copytree(given / "out" / "001", given / "out" / "001_00_00.png")
    line = words(given, door)
    if door == "edit":
        line = ["edit", moving(given), "--distance", 5, "--out-dir", given / "out", "--add", 0, 1, 0, 0]
    for force in ([], ["--force"]):
        hostile.check(main, [*line, *force], given, "out")


@pytest.mark.parametrize("door", OUTPUTS)
def test_outputs_in_and_above_inputs(given, door, monkeypatch):
    """Where an output would lie inside or above what is read, or above the working folder."""
    monkeypatch.chdir(given)
    places = {
        "synth": [given],
        "index": [given / "scenes" / "out.json", given / "scenes" / "001" / "lidar" / "poses.json"],
        "import": [given, given / "logs", given / "logs" / "one" / "out"],
        "import several": [given, given / "logs", given / "logs" / "out"],
        "edit": [given / "fast", given / "fast" / "out", given],
        "vis-lift": [given / "scenes", given / "scenes" / "out"],
        "eval": [given / "scenes", given / "scenes" / "out"],
    }.get(door, [given, given / "scenes", given / "scenes" / "out"])
    for place in places:
        if door == "edit":
            line = ["edit", moving(given), "--distance", 5, "--out-dir", place, "--add", 0, 1, 0, 0, "--force"]
        else:
            line = [place if word == given / "out" else word for word in [*words(given, door), "--force"]]
        if door == "synth":
            (given / "001").mkdir(exist_ok=True)
            (given / "001" / "mine.txt").write_text("mine")
        hostile.check(main, line, given, [place.name, "inside", "holds", "folder you are in", "mine.txt"])


def test_names_that_are_not_utf8(given):
    """Scenes, indices and outputs whose names are bytes."""
    name = os.fsdecode(b"\xff\xfe")
    shutil.copytree(given / "scenes", given / name)
    line = ["index", "--data-root", given / name, "--out-full", given / f"{name}.json", "--clip-len-s", "0.2"]
    hostile.check(main, line, given, [name], fine=True)
    shutil.copytree(given / "scene", given / f"{name}.scene")
    hostile.check(main, ["edit", given / f"{name}.scene"], given, [name], fine=True)
    out = given / "out" / name
    line = ["vis-lift", "--index-path", given / "clips.json", "--data-root", given / "scenes", "--out-dir", out]
    hostile.check(main, line, given, [name], fine=True)


def test_left_over_temporaries_are_cleared(given):
    """What a killed process left beside an output goes with the next run."""
    left = given / "out" / ".recon4d-999999999-x.png"
    left.parent.mkdir()
    left.write_text("half")
    call(*words(given, "vis-lift"))
    assert sorted(path.name for path in left.parent.iterdir()) == ["001_00_00.png"]
