"""Photographs as people have them: several faces, lying on their side, HEIC and AVIF."""

import json

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from prep_faces.landmarks import write_landmarks
from recon4d import images
from skimage import data


def records(folder):
    return [json.loads(line) for line in (folder / "landmarks.jsonl").read_text().splitlines()]


def test_the_likeliest_face_is_taken(tmp_path):
    """dlib sees a face in a badge too, one pixel larger and hardly sure."""
    (tmp_path / "in").mkdir()
    Image.fromarray(data.astronaut()).save(tmp_path / "in" / "a.jpg")
    write_landmarks([tmp_path / "in"], tmp_path / "o", "dlib", workers=1)
    (likeliest,) = records(tmp_path / "o")
    assert np.abs(np.array(likeliest["box"]) - [181, 79, 274, 172]).max() < 3 and "rivals" not in likeliest
    write_landmarks([tmp_path / "in"], tmp_path / "large", "dlib", workers=1, largest=True)
    assert records(tmp_path / "large")[0]["box"][1] > 300


def test_a_close_choice_is_said(run, portrait, tmp_path):
    images.write(tmp_path / "in" / "twins.png", np.hstack([portrait, portrait]))
    images.write(tmp_path / "in" / "one.png", portrait)
    done = run("landmarks", tmp_path / "in", "--out", tmp_path / "o", "--photos", "--workers", 1)
    assert done.returncode == 0
    assert "1 of 2 images have another face as large and as sure as the one taken" in done.stderr
    assert [record.get("rivals") for record in records(tmp_path / "o")] == [None, 1]


@pytest.mark.parametrize("detector", ["mediapipe", "dlib"])
def test_turned(detector, portrait, tmp_path):
    width, height = portrait.shape[1] - 20, portrait.shape[0]
    for quarters in range(4):
        images.write(tmp_path / "in" / f"{quarters}.png", np.rot90(portrait[:, 20:], quarters))
    result = write_landmarks([tmp_path / "in"], tmp_path / "o", detector, photos=True, turned=True, workers=1)
    assert result["failed"] == 0
    upright = np.load(tmp_path / "o" / "landmarks" / "0.npy")[:, :2]
    for quarters in range(1, 4):
        x, y = np.load(tmp_path / "o" / "landmarks" / f"{quarters}.npy")[:, :2].T
        back = {1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[quarters]
        assert np.abs(np.stack(back, 1) - upright).mean() < 2  # pixels; the face is 90 wide
        left, top, right, bottom = records(tmp_path / "o")[quarters]["box"]
        assert left < x.mean() < right and top < y.mean() < bottom
    if detector == "mediapipe":
        for quarters, record in enumerate(records(tmp_path / "o")):
            points = np.load(tmp_path / "o" / "landmarks" / f"{quarters}.npy")[:, :2]
            crop = np.array(record["to_crop"])
            seen = points @ crop[:, :2].T + crop[:, 2]
            assert seen[10, 1] < seen[152, 1]  # the forehead is above the chin in the square that was looked at
    plain = write_landmarks([tmp_path / "in"], tmp_path / "plain", detector, photos=True, workers=1)
    assert plain["failed"] == {"mediapipe": 1, "dlib": 3}[detector]


def test_photographs_of_phones(run, portrait, tmp_path):
    pillow_heif.register_heif_opener()
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("heic", "avif", "jpg"):
        lying = Image.fromarray(np.rot90(portrait))
        lying.save(tmp_path / "in" / f"{suffix}.{suffix}", exif=exif.tobytes(), quality=90)
    done = run("landmarks", tmp_path / "in", "--out", tmp_path / "o", "--photos", "--workers", 1)
    assert done.returncode == 0 and json.loads(done.stdout)["failed"] == 0, done.stderr
    one, *others = (np.load(tmp_path / "o" / "landmarks" / f"{suffix}.npy") for suffix in ("jpg", "heic", "avif"))
    for other in others:
        assert np.abs(one - other)[:, :2].mean() < 1.5
    assert one[10, 1] < one[152, 1]  # upright
