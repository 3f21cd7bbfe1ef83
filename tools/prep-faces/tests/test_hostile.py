"""Broken and hostile input at every door of prep-faces: refused in one line or passed over, nothing lost."""

import json
import os
import shutil
from dataclasses import dataclass

import av
import cv2
import hostile
import numpy as np
import pytest
import torch
from prep_faces.cli import main
from recon4d import head, images
from recon4d.formats.track import Track

MAIN_WORDS = {
    "frames": "frames {root}/clip.mp4 --out {root}/out",
    "detect": "detect {root}/images --out {root}/out --detector dlib --workers 1",
    "landmarks": "landmarks {root}/images --out {root}/out --workers 1",
    "matte": "matte {root}/images --landmarks {root}/landmarks --out {root}/out --workers 1",
    "tracked": "matte {root}/images --track {root}/track.npz --out {root}/out --workers 1",
    "crop": "crop --config {root}/exp.yaml --workers 1",
    "ffhq": "ffhq {root}/images --out {root}/out --workers 1",
}


@dataclass(frozen=True)
class Door:
    """A command, and which of the files it reads is replaced by what."""

    words: str
    file: str
    contents: str
    named: tuple[str, ...] = ()
    fine: bool = True


DOORS = {
    "frames": Door(MAIN_WORDS["frames"], "clip.mp4", "video", fine=False),
    "detect": Door(MAIN_WORDS["detect"], "images/1.png", "picture"),
    "detect alone": Door(MAIN_WORDS["detect"].replace("images", "images/1.png"), "images/1.png", "picture", fine=False),
    "landmarks": Door(MAIN_WORDS["landmarks"], "images/1.png", "picture"),
    "landmarks alone": Door(
        MAIN_WORDS["landmarks"].replace("images", "images/1.png"), "images/1.png", "picture", fine=False
    ),
    "matte": Door(MAIN_WORDS["matte"], "images/1.png", "picture"),
    "matte's points": Door(MAIN_WORDS["matte"], "landmarks/1.npy", "npy"),
    "matte's table": Door(MAIN_WORDS["matte"], "landmarks.jsonl", "json"),
    "matte's track": Door(MAIN_WORDS["tracked"], "track.npz", "npz", fine=False),
    "matte's head": Door(MAIN_WORDS["tracked"] + " --head-model {root}/head.pkl", "head.pkl", "pickle", fine=False),
    "matte's network": Door(
        MAIN_WORDS["matte"] + " --trust-code --model {root}/net.pt", "net.pt", "checkpoint", fine=False
    ),
    "crop": Door(MAIN_WORDS["crop"], "original_image/a/1.png", "picture"),
    "crop's config": Door(MAIN_WORDS["crop"], "exp.yaml", "yaml", fine=False),
    "ffhq": Door(MAIN_WORDS["ffhq"], "images/1.png", "picture"),
    "ffhq's parquet": Door(MAIN_WORDS["ffhq"].replace("images", "x.parquet"), "x.parquet", "npz", fine=False),
}
NUMBERS = {
    "--fps": "frames",
    "--size": "frames",
    "--sharpest": "frames",
    "--max-frames": "frames",
    "--threshold": "detect",
    "--batch": "landmarks",
    "--workers": "matte",
    "--limit": "ffhq",
}


@pytest.fixture(scope="module")
def good(portrait, tmp_path_factory):
    """Two small pictures of a face with their points and a track, a clip of them, a dataset, a finished run."""
    folder = tmp_path_factory.mktemp("good")
    face = cv2.resize(portrait[30:230, 40:240], (96, 96), interpolation=cv2.INTER_AREA)
    for i in range(2):
        images.write(folder / f"images/{i}.png", np.roll(face, i, axis=1))
        images.write(folder / f"original_image/a/{i}.png", np.roll(face, i, axis=1))
    for words in (MAIN_WORDS["landmarks"], MAIN_WORDS["detect"].replace("/out", "/done")):
        words = words.replace("{root}/out", "{root}")
        assert hostile.CliRunner().invoke(main, words.format(root=folder).split()).exit_code == 0
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(face, format="rgb24")))
        container.mux(stream.encode())
    (folder / "exp.yaml").write_text("dataset: .\nprep_faces: {size: 32}\n")
    model = head.load()
    eye = np.eye(3, dtype=np.float32)
    Track(
        head_model=model.name,
        image_size=np.array([96, 96]),
        fps=30.0,
        K=np.array([[200, 0, 48], [0, 200, 48], [0, 0, 1]], np.float32),
        names=np.array(["0.png", "1.png"]),
        valid=np.ones(2, bool),
        shape=np.zeros(3, np.float32),
        expression=np.zeros((2, 3), np.float32),
        R=np.tile(np.diag(np.float32([1, -1, -1])), (2, 1, 1)),
        t=np.tile(np.float32([0, 0, 0.8]), (2, 1)),
        neck=np.tile(eye, (2, 1, 1)),
        jaw=np.tile(eye, (2, 1, 1)),
        eyes=np.tile(eye, (2, 2, 1, 1)),
        eyelids=np.zeros((2, 2), np.float32),
    ).write(folder / "track.npz")
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


@pytest.mark.parametrize("number", hostile.NUMBERS)
@pytest.mark.parametrize("option", NUMBERS)
def test_numbers(root, option, number):
    words = MAIN_WORDS[NUMBERS[option]].format(root=root).split()
    fine = option == "--threshold" and number == "-1"
    hostile.check(main, [*words, option, number], root, option, fine=fine)


@pytest.mark.parametrize("command", [c for c in MAIN_WORDS if c != "crop"])
@pytest.mark.parametrize("case", ["below a file", "a long name", "a link to itself", "no place for files"])
def test_outputs(root, command, case):
    (root / "places").mkdir()
    out = hostile.outputs(root / "places")[case]
    words = MAIN_WORDS[command].format(root=root).split()
    words[words.index("--out") + 1] = str(out)
    hostile.check(main, words, root, [str(out)[:60], out.parent.name, "--out"])


RECORDS = [(name, case) for name in ("faces.json", "faces.jsonl") for case in hostile.CONTENTS["json"]]


@pytest.mark.parametrize(("name", "case"), RECORDS, ids=[f"{name}: {case}" for name, case in RECORDS])
def test_a_damaged_record_of_its_own(root, name, case):
    """It is refused, or done anew: what was lost is there again."""
    whole = (root / "done/faces.jsonl").read_bytes()
    (root / "done" / name).write_bytes(hostile.content("json", case))
    words = MAIN_WORDS["detect"].replace("/out", "/done").format(root=root).split()
    result = hostile.CliRunner().invoke(main, words)
    if result.exit_code == 0:
        assert (root / "done/faces.jsonl").read_bytes() == whole
    else:
        assert result.exit_code == 2 and name in result.stderr and result.stderr.count("\n") == 1
        assert hostile.CliRunner().invoke(main, [*words, "--force"]).exit_code == 0
    assert (root / "done/faces.jsonl").read_bytes() == whole


VALUES = {
    "detect's record": ("done/faces.json", '{"command": [], "options": 3}'),
    "detect's records": ("done/faces.jsonl", '{"file": "0.png", "bytes": "x", "faces": 5}\n{"file": [1]}\n'),
    "detect's faces": ("done/faces.jsonl", '{"file": "0.png", "bytes": BYTES, "faces": 5}\n'),
    "landmarks' records": ("landmarks.jsonl", '{"file": "0.png", "box": "here", "width": null}\n{"file": {}}\n'),
    "matte's records": ("landmarks.jsonl", '{"file": "0.png", "width": "x", "height": [2]}\n{"file": {}}\n'),
    "matte's sizes": ("landmarks.jsonl", '{"file": "0.png", "width": 0, "height": -5}\n'),
    "matte's numbers": ("landmarks.jsonl", '{"file": "0.png", "width": 1e400, "height": NaN}\n'),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_after_the_format_check(root, case):
    name, text = VALUES[case]
    (root / name).write_text(text.replace("BYTES", str((root / "images/0.png").stat().st_size)))
    words = {"d": MAIN_WORDS["detect"].replace("/out", "/done"), "l": MAIN_WORDS["landmarks"], "m": MAIN_WORDS["matte"]}
    words = words[case[0]].replace("{root}/out", "{root}" if case[0] == "l" else "{root}/out").format(root=root)
    result = hostile.CliRunner().invoke(main, words.split())
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code in (0, 2) and result.stderr.count("error: ") <= 1, result.stderr


@pytest.mark.parametrize("points", ["nan", "huge", "three faces", "far away"])
def test_points_that_are_none(root, points):
    values = np.load(root / "landmarks/1.npy")
    values = {"nan": values * np.nan, "huge": values * 1e30, "three faces": np.stack([values] * 3)}.get(
        points, values + 1e4
    )
    np.save(root / "landmarks/1.npy", values)
    hostile.check(main, MAIN_WORDS["matte"].format(root=root).split(), root, fine=True)
    assert "error" in (root / "out/matte.jsonl").read_text().splitlines()[1]


@pytest.mark.parametrize("command", ["detect", "landmarks", "matte", "tracked", "crop", "ffhq", "frames"])
def test_names_that_are_not_utf_8(root, command):
    for folder in ("images", "original_image/a"):
        shutil.copy(root / "images/0.png", root / folder / os.fsdecode(b"\xff.png"))
    shutil.copy(root / "clip.mp4", root / os.fsdecode(b"\xff.mp4"))
    words = MAIN_WORDS[command].replace("clip.mp4", os.fsdecode(b"\xff.mp4")).format(root=root)
    hostile.check(main, words.split(), root, fine=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("detect {root}/images --out {root}/images --detector dlib --force", "lies inside the input"),
        ("landmarks {root}/images --out {root}/images/deep --force", "lies inside the input"),
        ("matte {root}/images --landmarks {root}/landmarks --out {root}/images --force", "images"),
        ("matte {root}/images --landmarks {root}/landmarks --out {root} --force", "was not written by"),
        ("ffhq {root}/images --out {root}/images --force", "lies inside the input"),
        ("frames {root}/clip.mp4 --out {root} --force", "was not written by"),
        ("landmarks {root}/other --out {root} --force", "was not written by"),
        ("crop --config {root}/same.yaml --force", "lies inside the input"),
        ("crop --config {root}/mine.yaml --force", "was not written by"),
    ],
)
def test_force_replaces_nothing_but_its_own(root, words, said):
    (root / "frames").mkdir()
    for name in ("0.png", "frames/00000.png", "lr_image/a/0.png"):
        images.write(root / name, np.zeros((8, 8, 3), np.uint8))
    (root / "landmarks" / "mine.npy").write_bytes(b"mine")
    shutil.copytree(root / "images", root / "other")
    for name, output in (("same", "original_image"), ("mine", "lr_image")):
        (root / f"{name}.yaml").write_text(f"dataset: .\nprep_faces: {{size: 32, output: {output}}}\n")
    result = hostile.check(main, words.format(root=root).split(), root, [said.split()[0], "images", "root"])
    assert said in result.stderr


def test_what_a_killed_run_left_is_cleared(root):
    left = root / "landmarks" / ".recon4d-4194399-x8_yz012.npy"  # no process has this number
    theirs = root / "landmarks" / f".recon4d-{os.getpid()}-x8_yz012.npy"
    for path in (left, theirs):
        path.write_bytes(b"half")
    words = MAIN_WORDS["landmarks"].replace("{root}/out", "{root}").format(root=root).split()
    assert hostile.CliRunner().invoke(main, words).exit_code == 0
    assert not left.exists() and theirs.exists()


def test_a_network_is_code(root):
    class Half(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image[:, :1] * 0 + 1

    torch.jit.script(Half()).save(str(root / "net.pt"))
    words = [*MAIN_WORDS["matte"].format(root=root).split(), "--model", str(root / "net.pt")]
    said = hostile.check(main, words, root, "--trust-code").stderr
    digest = said.split("--sha256 ")[1].split()[0].rstrip(",;")
    assert len(digest) == 64
    hostile.check(main, [*words, "--sha256", "0" * 64], root, "--sha256")
    result = hostile.CliRunner().invoke(main, [*words, "--sha256", digest.upper()])
    assert result.exit_code == 0, result.output


def test_half_a_picture_is_said(root):
    (root / "images/1.jpg").write_bytes(hostile.picture(".jpg", 200)[:5000])
    hostile.check(main, MAIN_WORDS["detect"].format(root=root).split(), root, fine=True)
    record = json.loads((root / "out/faces.jsonl").read_text().splitlines()[1])
    assert record["file"] == "1.jpg" and "is not a readable image" in record["error"]


def test_another_heads_track(root):
    with np.load(root / "track.npz") as arrays:
        kept = dict(arrays)
    for change in ({"head_model": "flame2023.pkl"}, {"K": kept["K"] * np.nan}, {"names": np.array(["a", "b"])}):
        np.savez(root / "track.npz", **(kept | change))
        hostile.check(main, MAIN_WORDS["tracked"].format(root=root).split(), root, "track.npz")
