"""Folders in which some files are broken: the good ones are done, the bad ones recorded, the exit code says so."""

import io
import json
import struct
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from prep_faces.cli import main

GOOD, BROKEN = 160, 40


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(face):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to be upright
    return encoded(np.ascontiguousarray(np.rot90(face)), "jpeg", exif=exif, quality=95)


GOOD_KINDS = {
    "plain.png": lambda face: encoded(face, "png"),
    "photo.jpg": lambda face: encoded(face, "jpeg", quality=95),
    "grey.png": lambda face: encoded(face.mean(-1).astype(np.uint8), "png"),
    "deep grey.png": lambda face: encoded((face.mean(-1) * 257).astype(np.uint16), "png"),
    "see through.png": lambda face: encoded(np.dstack([face, face[..., 0]]), "png"),
    "palette.gif": lambda face: encoded(Image.fromarray(face).quantize(128), "gif"),
    "print ü.jpg": lambda face: encoded(Image.fromarray(face).convert("CMYK"), "jpeg", quality=95),
    "turned.jpg": turned,
}


def zipped(face):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", encoded(face, "png"))
    return buffer.getvalue()


def flipped(face):
    data = bytearray(encoded(face, "png"))
    data[len(data) // 2] ^= 255
    return bytes(data)


def huge(face):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return encoded(face, "png")[:8] + chunk + encoded(face, "png")[33:]


def half(data):
    return data[: len(data) // 2]


# Twelve ways to be broken; None is a link to a file that is not there.
BROKEN_KINDS = {
    "empty.png": lambda face: b"",
    "text.png": lambda face: b"not a picture\n",
    "page.jpg": lambda face: b"<!DOCTYPE html><html><body>404</body></html>",
    "noise.jpg": lambda face: np.random.default_rng(0).bytes(999),
    "half.png": lambda face: half(encoded(face, "png")),
    "half.jpg": lambda face: half(encoded(face, "jpeg")),
    "half.webp": lambda face: half(encoded(face, "webp")),
    "half.tif": lambda face: half(encoded(face, "tiff")),
    "flipped bits.png": flipped,
    "archive.png": zipped,
    "huge.png": huge,
    "link.png": None,
}


def write(folder, kinds, count, face):
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i in range(count):
        kind = list(kinds)[i % len(kinds)]
        names.append(f"{i:03d} {kind}")
        if kinds[kind] is None:
            (folder / names[-1]).symlink_to(folder / "nowhere")
        else:
            (folder / names[-1]).write_bytes(kinds[kind](np.roll(face, i % 5, axis=1)))
    return names


@pytest.fixture(scope="module")
def face(portrait):
    return cv2.resize(portrait[30:230, 40:240], (72, 72), interpolation=cv2.INTER_AREA)


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def records(path):
    return {record["file"]: record for record in map(json.loads, path.read_text().splitlines())}


def test_two_hundred_files_of_which_forty_are_broken(face, tmp_path):
    assert len(BROKEN_KINDS) == 12
    good = write(tmp_path / "f", GOOD_KINDS, GOOD, face)
    broken = write(tmp_path / "f" / "b", BROKEN_KINDS, BROKEN, face)
    arguments = ("detect", tmp_path / "f", "--out", tmp_path / "o", "--device", "cpu")
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["images"], result["written"], result["failed"], result["faces"]) == (200, GOOD, BROKEN, GOOD)
    assert result["images_per_second"] > 0 and result["faces_per_second"] > 0
    found = records(tmp_path / "o" / "faces.jsonl")
    assert all(len(found[name]["faces"]) == 1 and "error" not in found[name] for name in good)
    for name in broken:
        assert found[f"b/{name}"]["error"].startswith(str(tmp_path / "f" / "b" / name)), found[f"b/{name}"]
        assert "faces" not in found[f"b/{name}"]
    again = call(*arguments, "--strict")
    assert again.exit_code == 2 and json.loads(again.stdout)["kept"] == GOOD
    assert "40 of 200 images failed" in again.stderr
    for path in (tmp_path / "f" / "b").iterdir():
        path.unlink()
    assert call(*arguments, "--strict").exit_code == 0


@pytest.mark.parametrize("command", ["landmarks", "matte", "crop", "ffhq"])
def test_the_other_commands(face, tmp_path, command):
    images, out = tmp_path / "data" / "original_image", tmp_path / "data" / "lr_image"
    good = write(images, GOOD_KINDS, 3, face)
    broken = write(images / "b", BROKEN_KINDS, 12, face)
    (images / "twin.png").write_bytes(GOOD_KINDS["plain.png"](face))
    (images / "twin.jpg").write_bytes(GOOD_KINDS["photo.jpg"](face))  # comes first
    arguments = (command, images, "--out", out, "--workers", 1)
    if command == "crop":
        (tmp_path / "exp.yaml").write_text("dataset: data\nprep_faces: {size: 32}")
        arguments = (command, "--config", tmp_path / "exp.yaml", "--workers", 1)
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    table = {"crop": "crops"}.get(command, command)
    if command == "ffhq":  # numbers its files, so that nothing clashes
        found = {record["source"]: record for record in records_of(out / "ffhq.jsonl")}
        assert (result["written"], result["unreadable"]) == (5, 12)
        assert all(
            any(why in found[name]["error"] for why in ("not a readable image", "too large", "does not exist"))
            for name in broken
        )
    else:
        assert (result["written"], result["failed"]) == (4, 13)
        found = records(out / f"{table}.jsonl")
        assert all("error" not in found[name] for name in (*good, "twin.jpg"))
        assert all(found[f"b/{name}"]["error"].startswith(str(images / "b" / name)) for name in broken)
        assert "twin.png would overwrite what twin.jpg gives" in found["twin.png"]["error"]
    assert call(*arguments, "--strict").exit_code == 2


def records_of(path):
    return map(json.loads, path.read_text().splitlines())


@pytest.mark.parametrize("command", ["detect", "landmarks", "matte", "crop", "ffhq"])
def test_nothing_but_broken_files_and_no_file_at_all(face, tmp_path, command):
    images, out = tmp_path / "data" / "original_image", tmp_path / "data" / "lr_image"
    images.mkdir(parents=True)
    arguments = (command, images, "--out", out)
    if command == "crop":
        (tmp_path / "exp.yaml").write_text("dataset: data")
        arguments = (command, "--config", tmp_path / "exp.yaml")
    if command == "detect":
        arguments = (*arguments, "--detector", "dlib")
    done = call(*arguments)
    assert done.exit_code == 2 and "holds no image" in done.stderr and done.stderr.count("\n") == 1
    assert not out.exists()
    write(images, BROKEN_KINDS, 3, face)
    done = call(*arguments)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert "none of 3 images gave a result (" in done.stderr and done.stderr.count("\n") == 1
    assert next(iter(BROKEN_KINDS)) in done.stderr and "is not a readable image" in done.stderr
    assert not out.exists()
