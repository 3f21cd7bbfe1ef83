"""Broken and hostile input at every door of eyeball-relight: refused in one line; nothing left, nothing lost."""

import functools
import json
import os
import shutil
from dataclasses import dataclass

import cv2
import hostile
import numpy as np
import pytest
import torch
from eyeball_relight import captures, exports, synth, training
from eyeball_relight.cli import main
from recon4d import images
from recon4d.files import write_npz
from recon4d.head import load, with_uv

TINY = ["model.levels=3", "model.finest=32", "model.hidden=8", "model.log2_entries=8", "train.iterations=12"]
TINY += ["train.mesh_render_iter=8", "train.samples=256", "train.grid=16", "train.mesh_resolution=32"]
TINY += ["train.milestones=[4]", "train.warm_up=2", "train.checkpoint_every=5", "eyes.still=4"]
TINY += ["train.shading=0"]
SET = " ".join(f"--set {setting}" for setting in TINY)
CONFIG = "--config-path {root}/face/config.yaml"
EXPORT = f"export {CONFIG} --save-visual-dir {{root}}/made --uv-size 64 --faces 300 --ckpt-path {{root}}/run/latest.pth"
WHITE = "--left {root}/white.png --right {root}/white.png"
EYES = "--data-root {root}/bare"
LANDMARKS = f"eyeball-landmarks {EYES} --asset {{root}}/asset --landmarks {{root}}/landmarks"
WORDS = {
    "synth": "synth {root}/made --frames 4 --size 32",
    "import": "import {root}/face --images {root}/face/image --masks {root}/face/mask --out {root}/made",
    "metashape": "import {root}/cameras.xml --images {root}/face/image --out {root}/made",
    "colmap": "import {root}/text --images {root}/face/image --out {root}/made",
    "binary": "import {root}/binary --images {root}/face/image --out {root}/made",
    "train": f"train {CONFIG} --workspace {{root}}/made {SET}",
    "resume": f"train {CONFIG} --workspace {{root}}/run --resume",
    "export": EXPORT,
    "masks": f"render-eye-mask {EYES} --mesh-uv-path {{root}}/asset/mesh_uv.obj {WHITE}",
    "marks": f"eyeball-landmarks {EYES} --asset {{root}}/asset --left {{root}}/left.png --right {{root}}/right.png",
    "landmarks": LANDMARKS,
    "write": f"{LANDMARKS} --write {{root}}/mine.yaml",
    "metrics": "metrics {root}/asset --data-root {root}/face",
    "relight": "relight {root}/asset {root}/made --frames 1 --size 16",
    "sky": "relight {root}/asset {root}/made --frames 1 --size 16 --mode environment --environment {root}/sky.hdr",
    "day": "relight {root}/asset {root}/made --frames 1 --size 16 --mode environment --environment {root}/day.png",
}


@dataclass(frozen=True)
class Door:
    """A command, which of the files it reads is replaced by what, and what the error may name instead of the file."""

    words: str
    file: str
    contents: str
    named: tuple[str, ...] = ()
    fine: bool = False


XML = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "no sensors": lambda: b"<document/>",
    "entities without end": lambda: (
        b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
        + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 30) for i in range(8))
        + b"]><document><chunk>&i;</chunk></document>"
    ),
    "a file of the machine": lambda: b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><document>&x;</document>',
    "100,000 deep": lambda: b"<a>" * 100_000,
}
TEXTS = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "zeros": lambda: bytes(5000),
    "not UTF-8": lambda: b"\xff\xfe\x00",
    "large counts": lambda: b"\xff" * 64,
    "not a number": lambda: b"3 PINHOLE 32 32 nan nan nan nan\n1 nan 0 0 0 0 0 0 3 0000.png\n\n",
    "numbers of 5,000 digits": lambda: b"3 PINHOLE " + b"9" * 5000 + b" 32 1 1 1 1\n",
    "no size": lambda: b"3 PINHOLE 0 -5 1 1 1 1\n",
}
OBJ = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "not finite": lambda: b"v nan nan nan\nvt 0 0\nf 1/1 1/1 1/1\n",
    "indices outside": lambda: b"v 0 0 0\nvt 0 0\nf 1/1 1/1 999999999/1\n",
    "huge indices": lambda: b"v 0 0 0\nvt 0 0\nf 1/1 1/1 99999999999999999999/1\n",
    "negative indices": lambda: b"v 0 0 0\nvt 0 0\nf -1/-1 1/1 1/1\n",
    "no faces": lambda: b"v 0 0 0\nvt 0 0\n",
}
HDR = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "30,000 pixels square": lambda: b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n" + bytes(100),
    "half": lambda: sky()[: len(sky()) // 2],
    "no pixels": lambda: b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 0 +X 0\n",
}
CONTENTS = hostile.CONTENTS | {"xml": XML, "colmap": TEXTS, "obj": OBJ, "hdr": HDR}
DOORS = {
    "synth's head": Door(WORDS["synth"] + " --head-model {root}/head.npz", "head.npz", "npz"),
    "imported poses": Door(WORDS["import"], "face/transforms.json", "json"),
    "imported picture": Door(WORDS["import"], "face/image/0001.png", "picture"),
    "imported mask": Door(WORDS["import"], "face/mask/0001.png", "picture"),
    "Metashape's file": Door(WORDS["metashape"], "cameras.xml", "xml"),
    "COLMAP's cameras": Door(WORDS["colmap"], "text/cameras.txt", "colmap", ("text",)),
    "COLMAP's images": Door(WORDS["colmap"], "text/images.txt", "colmap", ("text",)),
    "COLMAP's binary cameras": Door(WORDS["binary"], "binary/cameras.bin", "colmap", ("binary",)),
    "COLMAP's binary images": Door(WORDS["binary"], "binary/images.bin", "colmap", ("binary",)),
    "training's config": Door(WORDS["train"], "face/config.yaml", "yaml"),
    "training's poses": Door(WORDS["train"], "face/transforms.json", "json"),
    "training's picture": Door(WORDS["train"], "face/image/0001.png", "picture"),
    "training's mask": Door(WORDS["train"], "face/leye_mask/0001.png", "picture"),
    "resumed config": Door(WORDS["resume"], "run/config.yaml", "yaml"),
    "resumed checkpoint": Door(WORDS["resume"], "run/latest.pth", "checkpoint"),
    "export's checkpoint": Door(WORDS["export"], "run/latest.pth", "checkpoint"),
    "mesh of masks": Door(WORDS["masks"], "asset/mesh_uv.obj", "obj"),
    "painted map": Door(WORDS["masks"], "white.png", "picture"),
    "texels of marks": Door(WORDS["marks"], "asset/coord.npz", "npz"),
    "marks": Door(WORDS["marks"], "left.png", "picture"),
    "landmarks": Door(WORDS["landmarks"], "landmarks/0001.npy", "npy"),
    "landmarks' table": Door(WORDS["landmarks"], "landmarks.jsonl", "json", ("landmarks",), fine=True),
    "config of landmarks": Door(WORDS["write"], "mine.yaml", "yaml"),
    "measured mesh": Door(WORDS["metrics"], "asset/left/mesh_uv.obj", "obj"),
    "measured map": Door(WORDS["metrics"], "asset/diffuse.png", "picture"),
    "measured light": Door(WORDS["metrics"], "asset/light.npz", "npz"),
    "truth": Door(WORDS["metrics"], "face/truth/truth.json", "json"),
    "truth of a view": Door(WORDS["metrics"], "face/truth/views/0003.npz", "npz"),
    "truth of faces": Door(WORDS["metrics"], "face/truth/seen.npz", "npz"),
    "truth under a light": Door(WORDS["metrics"], "face/truth/views/0003_relit0.png", "picture"),
    "relit map": Door(WORDS["relight"], "asset/roughness.png", "picture"),
    "sky": Door(WORDS["sky"], "sky.hdr", "hdr"),
    "day": Door(WORDS["day"], "day.png", "picture"),
}
NUMBERS = {
    "--frames": "synth",
    "--size": "synth",
    "--seed": "synth",
    "--cube": "import",
    "--chunk-size": "export",
    "--uv-size": "export",
    "--faces": "export",
    "--fps": "relight",
}


def sky() -> bytes:
    return cv2.imencode(".hdr", np.full((8, 16, 3), 0.8, np.float32))[1].tobytes()


@pytest.fixture(scope="module", autouse=True)
def head():
    """The open head, read once for all cases."""
    found = with_uv(load())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth, "load", lambda path: found if path is None else load(path))
        yield found


@pytest.fixture(scope="module")
def good(tmp_path_factory, head):
    """A capture of 6 views, a run on it, its export, poses of other programs, landmarks and painted maps."""
    folder = tmp_path_factory.mktemp("good")
    face = folder / "face"
    synth.synthesise(face, 6, 96, seed=3)
    training.start(face / "config.yaml", "cpu-quick", TINY, folder / "run", log=lambda _: None)
    exports.export(face / "config.yaml", folder / "run/latest.pth", folder / "asset", 64, 300, log=lambda _: None)
    camera = json.loads((face / "transforms.json").read_text())
    pinhole = f"{camera['fl_x']} {camera['fl_y']} {camera['cx']} {camera['cy']}"
    for kind in ("text", "binary"):
        (folder / kind).mkdir()
    (folder / "text/cameras.txt").write_text(f"3 PINHOLE 96 96 {pinhole}\n")
    turns = ("1 0 0 0", "0.9 0 0.43589 0", "0.9 0 -0.43589 0", "0.9 0.43589 0 0")
    lines = [f"{i + 1} {turn} 0 0 1 3 000{i}.png\n\n" for i, turn in enumerate(turns)]
    (folder / "text/images.txt").write_text("".join(lines))
    for name in ("cameras.bin", "images.bin"):
        (folder / "binary" / name).write_bytes(b"")
    (folder / "cameras.xml").write_text("<document/>")
    map_size = images.size(folder / "asset/diffuse.png")[0]
    coord = dict(np.load(folder / "asset/coord.npz"))
    spots = np.argwhere(coord["mask"])[[10, -10]]
    for side, spot in zip(("left", "right"), spots):
        marked = np.zeros((map_size, map_size, 3), np.uint8)
        marked[spot[0], spot[1]] = (0, 255, 0)
        images.write(folder / f"{side}.png", marked)
    images.write(folder / "white.png", coord["mask"].astype(np.uint8) * 255)
    others = shutil.ignore_patterns("?eye_mask", "truth", ".recon4d")
    shutil.copytree(face, folder / "bare", ignore=others)
    (folder / "landmarks").mkdir()
    shape, _ = synth.head_asset(head, 3)
    vertices = torch.zeros_like(head.v_template)
    vertices[:] = shape["face"].vertices
    pixels, _ = captures.read_poses(face)[1].project(head.landmarks(vertices[None])[0])
    for i, points in enumerate(pixels.numpy()):
        np.save(folder / f"landmarks/000{i}.npy", points)
    (folder / "landmarks.jsonl").write_text('{"file": "0000.png", "width": 96, "height": 96}\n')
    (folder / "mine.yaml").write_text("data: {bound: 0.19}\n")
    (folder / "sky.hdr").write_bytes(sky())
    images.write(folder / "day.png", np.full((8, 16, 3), 90, np.uint8))
    return folder


@pytest.fixture(scope="module")
def copied(good, tmp_path_factory):
    """A copy of it; the run remembers where its capture is."""
    folder = tmp_path_factory.mktemp("copied") / "root"
    path = good / "run/config.yaml"
    path.write_text(path.read_text().replace(str(good), str(folder)))
    return shutil.copytree(good, folder)


@pytest.fixture
def root(good, copied, monkeypatch):
    """The copy, which a case may break."""
    monkeypatch.setattr("eyeball_relight.evaluation.DENSE", 2000)
    yield copied
    hostile.put_back(copied, good)


@functools.cache
def content(kind: str, case: str) -> bytes:
    """What a file is replaced by; bombs take seconds to make."""
    return CONTENTS[kind][case]()


CASES = [(door, case) for door, d in DOORS.items() for case in CONTENTS[d.contents]]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{door}: {case}" for door, case in CASES])
def test_contents(root, name, case):
    door = DOORS[name]
    path = root / door.file
    path.write_bytes(content(door.contents, case))
    hostile.check(main, door.words.format(root=root).split(), root, [path.name, *door.named], fine=door.fine)


@pytest.mark.parametrize("number", hostile.NUMBERS)
@pytest.mark.parametrize("option", NUMBERS)
def test_numbers(root, option, number):
    words = WORDS[NUMBERS[option]].format(root=root).split()
    if option in words:
        del words[words.index(option) : words.index(option) + 2]
    hostile.check(main, [*words, option, number], root, option)


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", "x"])
def test_where_the_light_is(root, number):
    words = WORDS["synth"].format(root=root).split()
    hostile.check(main, [*words, "--light-offset", "0", number, "0"], root, "--light-offset")


@pytest.mark.parametrize(
    "setting",
    [
        "train.lr=nan",
        "data.bound=1e400",
        "train.iterations=-1",
        "seed=x",
        "light.intensity=.inf",
        "model.b=1",
        "train=1",
        "train.grid=[[[",
        f"model.features={'9' * 40}",
        "data.left_eye_ldm=[[.nan, 0, 0]]",
        "=",
        "seed",
    ],
)
def test_settings(root, setting):
    words = [*WORDS["train"].format(root=root).split(), "--set", setting]
    hostile.check(main, words, root, [f"--set {setting}", "memory"])


OUT = {"synth": 1, "import": "--out", "train": "--workspace", "export": "--save-visual-dir", "relight": 2}


@pytest.mark.parametrize("command", OUT)
@pytest.mark.parametrize("case", ["below a file", "a long name", "a link to itself", "no place for files"])
def test_outputs(root, command, case):
    (root / "places").mkdir()
    out = hostile.outputs(root / "places")[case]
    words = WORDS[command].format(root=root).split()
    place = OUT[command]
    words[place if isinstance(place, int) else words.index(place) + 1] = str(out)
    hostile.check(main, words, root, [str(out)[:60], out.parent.name, out.name[:60]])


FRAME = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    "change",
    [
        {"w": "wide"},
        {"w": 1e400},
        {"w": 10**7, "h": 10**7},
        {"fl_x": float("nan")},
        {"fl_x": None, "fl_y": None},
        {"cx": [1]},
        {"frames": 5},
        {"frames": {}},
        {"frames": [3, 4]},
        {"frames": [{"file_path": 7, "transform_matrix": FRAME}] * 4},
        {"frames": [{"file_path": "a", "transform_matrix": "x"}, {"file_path": "b", "transform_matrix": FRAME}]},
        {"frames": [{"file_path": f"../../evil{i}", "transform_matrix": FRAME} for i in range(4)]},
        {"frames": [{"file_path": f"a\0{i}", "transform_matrix": FRAME} for i in range(4)]},
        {"k1": "x"},
        {"k1": float("inf")},
    ],
    ids=lambda change: str(change)[:40],
)
@pytest.mark.parametrize("command", ["train", "import"])
def test_values_in_poses(root, command, change):
    path = root / "face/transforms.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    hostile.check(main, WORDS[command].format(root=root).split(), root, ["transforms.json", "evil", "/image"])


ASSETS = {
    "text": {"intensity": np.array(["x"])},
    "another shape": {"ambient": np.zeros((2, 2), np.float32)},
    "not finite": {"front_K": np.full((3, 3), np.nan, np.float32)},
    "a huge picture": {"front_size": np.array([10**6, 10**6])},
    "no picture": {"front_size": np.array([0, 0])},
    "no scale": {"scale": np.float32("inf")},
    "dates": {"occlusion": np.array(["2026-01-01"] * 4, "datetime64[D]")},
}


@pytest.mark.parametrize("case", ASSETS)
@pytest.mark.parametrize("command", ["metrics", "relight"])
def test_values_in_a_light(root, command, case):
    path = root / "asset/light.npz"
    with np.load(path) as arrays:
        write_npz(path, **(dict(arrays) | ASSETS[case]))
    fine = (case == "a huge picture" and command == "relight") or (
        command == "metrics" and case in ("a huge picture", "no picture", "not finite")
    )
    hostile.check(main, WORDS[command].format(root=root).split(), root, "light.npz", fine=fine)


@pytest.mark.parametrize(
    "change",
    [
        {"eyes": 3},
        {"eyes": {"radius": "x", "left_centre": [1], "right_centre": None}},
        {"relight": [[1, 2]]},
        {"relight": "x"},
        {"relight": [[1e400, 0, 0]] * 3},
        {"intensity": float("nan")},
    ],
    ids=str,
)
def test_values_in_the_truth(root, change):
    path = root / "face/truth/truth.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    hostile.check(main, WORDS["metrics"].format(root=root).split(), root, "truth.json", fine="intensity" in change)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "many"},
        {"step": -5},
        {"seconds": "x"},
        {"n_rays": 0},
        {"n_rays": 10**12},
        {"grid": torch.zeros(3)},
        {"field": {}},
        {"field": 5},
        {"optimizer": {}},
        {"config": "{"},
        {"config": 3},
        {"config": "[" * 100_000},
        {"intensity": torch.zeros(7)},
        {"intensity": None},
    ],
    ids=lambda change: str(change)[:40],
)
@pytest.mark.parametrize("command", ["resume", "export"])
def test_values_in_a_checkpoint(root, command, change):
    if (command == "export" and "optimizer" in change) or (
        command == "resume" and str(change.get("config", "3"))[0] != "3"
    ):
        return  # not read there
    path = root / "run/latest.pth"
    torch.save(torch.load(path, weights_only=True) | change, path)
    hostile.check(main, WORDS[command].format(root=root).split(), root, "latest.pth")


@pytest.mark.parametrize(
    "lines",
    [
        '{"file": 3, "width": 4, "height": 5}',
        '{"file": "0001.png", "width": "x", "height": 1}',
        '{"file": "0001.png", "width": 0, "height": 0}',
        '{"file": "0001.png", "width": NaN, "height": 1e400}',
        '{"file": {}}',
        "[1]",
    ],
)
def test_sizes_of_landmarks(root, lines):
    (root / "landmarks.jsonl").write_text(lines + "\n")
    hostile.check(main, WORDS["landmarks"].format(root=root).split(), root, ["landmarks"])


def test_points_that_are_none(root):
    for value in (np.nan, 1e30):
        for i in range(4):
            np.save(root / f"landmarks/000{i}.npy", np.full((68, 2), value))
        hostile.check(main, WORDS["landmarks"].format(root=root).split(), root, "landmarks")


@pytest.mark.parametrize("command", ["import", "train", "export", "metrics", "relight"])
def test_names_that_are_not_utf_8(root, tmp_path, command):
    odd = tmp_path / os.fsdecode(b"\xff")
    shutil.copytree(root, odd)
    path = odd / "run/config.yaml"
    path.write_text(path.read_text().replace(str(root), "."))
    hostile.check(main, WORDS[command].format(root=odd).split(), odd, fine=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("synth {root}/face --force", "was not written by"),
        ("synth {root} --force", "was not written by"),
        ("import {root}/face --images {root}/face/image --out {root}/face --force", "holds the input"),
        (
            "import {root}/face --images {root}/face/image --out {root}/face/image --force",
            "is read and would be written",
        ),
        (f"train {CONFIG} --workspace {{root}}/face --force", "is read and would be written"),
        (f"train {CONFIG} --workspace {{root}}/face/image --force", "input"),
        (f"train {CONFIG} --workspace {{root}}/mine --force", "was not written by"),
        (EXPORT.replace("/made", "/face") + " --force", "is read and would be written"),
        (EXPORT.replace("/made", "/mine") + " --force", "was not written by"),
        ("relight {root}/asset {root}/asset --frames 1 --force", "is read and would be written"),
        ("relight {root}/asset {root}/mine --frames 1 --force", "was not written by"),
        ("relight {root}/asset {root}/asset/mesh.obj --frames 1 --force", "input"),
        (f"render-eye-mask {EYES} --mesh-uv-path {{root}}/asset/mesh_uv.obj {WHITE} --force", "was not written by"),
        (
            f"eyeball-landmarks {EYES} --asset {{root}}/asset --landmarks {{root}}/landmarks --force",
            "was not written by",
        ),
        ("metrics {root}/asset --data-root {root}/face --force", "was not written by"),
    ],
)
def test_force_replaces_nothing_but_its_own(root, words, said):
    """Files of the user's own, where a command would write or what it reads."""
    for folder in (root / "face", root / "asset"):
        shutil.rmtree(folder / ".recon4d", ignore_errors=True)
    for name in ("mine/0000.png", "asset/contact.png", "bare/leye_mask/mine.png", "bare/diffuse_leye_mask.png"):
        images.write(root / name, np.zeros((8, 8, 3), np.uint8))
    result = hostile.check(main, words.format(root=root).split(), root, [str(root)])
    assert said in result.stderr


def test_the_working_folder_is_no_output(root, monkeypatch):
    (root / "made").mkdir()
    monkeypatch.chdir(root / "made")
    for command in OUT:
        hostile.check(main, WORDS[command].format(root=root).split(), root, "the folder you are in")


def test_what_a_killed_run_left_is_cleared(root):
    left, theirs = (root / "asset" / f".recon4d-{number}-x8_yz012.png" for number in (4194399, os.getpid()))
    for path in (left, theirs):
        path.write_bytes(b"half")
    result = hostile.CliRunner().invoke(main, WORDS["metrics"].format(root=root).split())
    assert result.exit_code == 0, result.output
    assert not left.exists() and theirs.exists()
