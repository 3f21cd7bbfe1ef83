"""68 points: where they should be, of one person along a sequence, and what happens without a face."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from prep_faces.detectors import detect
from prep_faces.dlib_faces import find_faces
from prep_faces.faces import Faces
from prep_faces.landmarks import choose_face, overlap, write_landmarks
from recon4d import InputError
from recon4d.images import write_png

MIRROR = [
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46,
    39, 38, 37, 36, 41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),
]  # fmt: skip


def eye_distance(points):
    return np.linalg.norm(points[36] - points[45])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_points_agree_with_the_head_that_was_drawn(capture):
    errors, offsets = [], []
    for image, truth in zip(capture.images, capture.landmarks):
        points = find_faces(image).landmarks[0]
        errors.append(np.linalg.norm(points - truth, axis=1).mean() / eye_distance(truth))
        offsets.append((points - truth)[17:].mean(0))
    assert np.mean(errors) < 0.03
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.8  # pixels


def test_pixel_centres_are_at_a_half(portrait):
    """In a mirrored image x becomes width - x where centres are at +0.5; whole-pixel points would be 1 off."""
    points = find_faces(portrait).landmarks[0]
    mirrored = find_faces(np.ascontiguousarray(portrait[:, ::-1])).landmarks[0][MIRROR]
    difference = mirrored[:, 0] - (portrait.shape[1] - points[:, 0])
    assert abs(np.median(difference)) < 0.4
    # The chin of the answer must not depend on the resolution either: enlarged 3 times, points are 3 times as far.
    large = np.repeat(np.repeat(portrait, 3, 0), 3, 1)
    assert np.abs(find_faces(large).landmarks[0] / 3 - points).mean() < 0.6


def test_fractions_of_a_pixel_survive(portrait):
    """A picture moved by whole pixels moves the points by as much, to a fraction of a pixel."""
    base = find_faces(portrait[10:260, 10:280]).landmarks[0]
    for dx, dy in ((3, 0), (0, 5), (7, 2)):
        moved = find_faces(np.ascontiguousarray(portrait[10 - dy : 260 - dy, 10 - dx : 280 - dx])).landmarks[0]
        assert np.abs((moved - base).mean(0) - [dx, dy]).max() < 0.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (3, 5)])
def test_tiny_and_thin_images_have_no_face(shape):
    assert len(detect([np.full((*shape, 3), 128, np.uint8)])[0].boxes) == 0


def test_the_same_person_along_a_sequence():
    def faces(*boxes, scores):
        return Faces(np.array(boxes, np.float32), np.array(scores, np.float32), np.zeros((len(boxes), 5, 2)), None)

    small, large = (0, 0, 10, 10), (50, 50, 90, 90)
    assert choose_face(faces(small, large, scores=(2, 1)), None, 0) == 1
    assert choose_face(faces(small, large, scores=(2, 1)), np.float32([1, 1, 11, 11]), 0) == 0
    # A faint answer counts only where the face just was.
    assert choose_face(faces(large, scores=(-0.3,)), None, 0) is None
    assert choose_face(faces(large, scores=(-0.3,)), np.float32([52, 50, 92, 90]), 0) == 0
    assert overlap(np.float32([0, 0, 2, 2]), np.float32([1, 0, 3, 2])) == pytest.approx(1 / 3)
    assert overlap(np.float32(small), np.float32(large)) == 0


def test_command_on_a_mixed_folder(run, portrait, tmp_path):
    """Every good file is done and every bad one recorded, whatever its name."""
    folder = tmp_path / "bilder ü"
    folder.mkdir()
    write_png(folder / "ein gesicht.png", portrait)
    grey = portrait.astype(np.uint16).mean(-1) * 257
    Image.fromarray(grey.astype(np.uint16)).save(folder / "deep grey.png")
    write_png(folder / "see through.png", np.dstack([portrait, np.full(portrait.shape[:2], 9, np.uint8)]))
    write_png(folder / "wall.png", np.full((80, 80, 3), 90, np.uint8))
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.fromarray(portrait).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:3000])
    (folder / "ein gesicht.jpg").write_bytes(b"not an image")
    done = run("landmarks", folder, "--out", tmp_path / "o", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "5 of 7 images failed" in done.stderr
    records = {record["file"]: record for record in lines(tmp_path / "o" / "landmarks.jsonl")}
    assert {path.stem for path in (tmp_path / "o" / "landmarks").iterdir()} == {"deep grey", "see through"}
    assert "ein gesicht.png would overwrite what ein gesicht.jpg gives" in records["ein gesicht.png"]["error"]
    assert records["wall.png"]["error"] == records["one.png"]["error"] == "no face found"
    assert "cut.jpg is not a readable image" in records["cut.jpg"]["error"]
    assert records["wall.png"]["width"] == 80
    points = np.load(tmp_path / "o" / "landmarks" / "see through.npy")
    assert points.shape == (478, 3) and points.dtype == np.float32
    from_grey = np.load(tmp_path / "o" / "landmarks" / "deep grey.npy")
    assert np.abs(from_grey - points).mean() < 0.03 * eye_distance(points)
    strict = run("landmarks", folder, "--out", tmp_path / "o", "--strict", "--workers", 1)
    assert strict.returncode == 2 and "Traceback" not in strict.stderr


def test_nothing_found_is_exit_code_2(run, tmp_path):
    write_png(tmp_path / "walls" / "a.png", np.full((60, 60, 3), 200, np.uint8))
    done = run("landmarks", tmp_path / "walls", "--out", tmp_path / "o")
    assert done.returncode == 2 and "none of 1 images gave a result" in done.stderr
    (tmp_path / "empty").mkdir()
    done = run("landmarks", tmp_path / "empty", "--out", tmp_path / "o2")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "o2").exists()


def test_resumes_after_a_kill_with_the_same_result(portrait, tmp_path):
    for i in range(5):
        write_png(tmp_path / "f" / f"{i}.png", np.roll(portrait, 4 * i, axis=1))
    write_landmarks([tmp_path / "f"], tmp_path / "a")
    write_landmarks([tmp_path / "f"], tmp_path / "b")
    table = tmp_path / "b" / "landmarks.jsonl"
    text = table.read_text().splitlines(keepends=True)
    table.write_text("".join(text[:2]) + text[2][:15])
    for i in (2, 3, 4):
        (tmp_path / "b" / "landmarks" / f"{i}.npy").unlink()
    result = write_landmarks([tmp_path / "f"], tmp_path / "b")
    assert result["kept"] == 2
    for name in ["landmarks.jsonl", "landmarks.json", *(f"landmarks/{i}.npy" for i in range(5))]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # An image that changed since is done again.
    future = (tmp_path / "b" / "landmarks" / "3.npy").stat().st_mtime_ns + 10**9
    os.utime(tmp_path / "f" / "3.png", ns=(future, future))
    assert write_landmarks([tmp_path / "f"], tmp_path / "b")["kept"] == 4
    with pytest.raises(InputError, match="--force"):
        write_landmarks([tmp_path / "f"], tmp_path / "b", photos=True)


def test_processes_give_what_one_gives(portrait, tmp_path):
    for i in range(14):
        write_png(tmp_path / "f" / f"{i}.png", np.roll(portrait, 2 * i, axis=1)[20:240, 20:240])
    write_landmarks([tmp_path / "f"], tmp_path / "a", workers=1)
    write_landmarks([tmp_path / "f"], tmp_path / "b", workers=2)
    for name in ["landmarks.jsonl", "landmarks/13.npy", "landmarks/0.npy"]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
