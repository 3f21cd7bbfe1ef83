"""MediaPipe's networks on the picture of an astronaut: where the face is, whatever its size, turn and place."""

import json
import sys

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from prep_faces import dlib_faces, landmarker
from prep_faces.cli import main
from recon4d import InputError, images
from skimage import data


@pytest.fixture(scope="module")
def astronaut():
    return data.astronaut()


@pytest.fixture(scope="module")
def face(astronaut):
    (found,) = landmarker.find(astronaut)
    return found


def eyes(points):
    return np.linalg.norm(points[landmarker.EYES[0], :2] - points[landmarker.EYES[1], :2])


def test_points_are_where_another_detector_sees_them(astronaut, face):
    """dlib's 68, of which those of the jaw mean something else."""
    other = max(dlib_faces.find_faces(astronaut, 0.5).landmarks, key=lambda points: np.ptp(points[:, 0]))
    for points in dlib_faces.find_faces(astronaut, 0.5).landmarks:
        if np.abs(points.mean(0) - face.points[:, :2].mean(0)).max() < 20:
            other = points
    distance = np.linalg.norm(face.points[landmarker.IBUG, :2] - other, axis=1)[17:]
    assert distance.mean() < 0.06 * eyes(face.points) and distance.max() < 0.25 * eyes(face.points)
    assert face.presence > 0.99


def test_blendshapes_say_that_she_smiles(face):
    shapes = dict(zip(landmarker.BLENDSHAPES, face.blendshapes, strict=True))
    assert shapes["mouthSmileLeft"] > 0.5 and shapes["mouthSmileRight"] > 0.5
    assert max(shapes["eyeBlinkLeft"], shapes["mouthPucker"]) < 0.3


@pytest.mark.parametrize("degrees", [-40, 25, 90])
def test_turned_pictures(astronaut, face, degrees):
    turn = cv2.getRotationMatrix2D((face.box[:2] / 2 + face.box[2:] / 2).tolist(), degrees, 1.0)
    turned = cv2.warpAffine(astronaut, turn, astronaut.shape[1::-1])
    expected = face.points[:, :2] @ turn[:, :2].T + turn[:, 2]
    (found,) = landmarker.find(turned)
    assert np.linalg.norm(found.points[:, :2] - expected, axis=1).mean() < 0.05 * eyes(face.points)


def test_small_faces_in_large_pictures(astronaut, face):
    canvas = np.full((2000, 3000, 3), 90, np.uint8)
    small = cv2.resize(astronaut, (480, 480), interpolation=cv2.INTER_AREA)
    canvas[1500:1980, 2300:2780] = small
    found = landmarker.find(canvas)
    expected = face.points[:, :2] * 480 / 512 + (2300, 1500)
    assert len(found) == 1
    assert np.linalg.norm(found[0].points[:, :2] - expected, axis=1).mean() < 0.05 * eyes(face.points)


def test_several_faces(astronaut):
    head = astronaut[:300, 100:400]
    pair = np.concatenate([head, cv2.resize(head, (150, 150), interpolation=cv2.INTER_AREA).repeat(2, 0)[:300]], 1)
    both = np.concatenate([head, head], 1)
    assert len(landmarker.find(both)) == 2
    assert landmarker.find(pair, every=True)


def test_a_face_is_followed_and_found_again(astronaut, face):
    shifted = np.roll(astronaut, 6, axis=1)
    found = landmarker.follow(shifted, face)
    assert np.abs(found.points[:, 0] - face.points[:, 0] - 6).mean() < 1.5
    assert landmarker.follow(np.zeros_like(astronaut), face) is None
    assert landmarker.follow(astronaut, None).presence > 0.9


def test_no_face():
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    for image in (noise, np.zeros((64, 64, 3), np.uint8), np.full((1, 1, 3), 7, np.uint8), noise[:3], noise[:, :2]):
        assert landmarker.find(image) == []


def test_a_missing_runtime_or_another_file_is_one_sentence(monkeypatch):
    monkeypatch.setattr(landmarker, "SHA256", "0" * 64)
    landmarker._networks.cache_clear()
    with pytest.raises(InputError, match="is another file than the one that belongs here"):
        landmarker.find(np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(landmarker, "ASSET", "gone.task")
    with pytest.raises(InputError, match=r"gone\.task is missing"):
        landmarker.find(np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(InputError, match="needs ai-edge-litert"):
        landmarker.find(np.zeros((64, 64, 3), np.uint8))
    landmarker._networks.cache_clear()


def test_landmarks_and_detect_with_mediapipe(tmp_path, astronaut):
    images.write(tmp_path / "in" / "00000.png", astronaut)
    images.write(tmp_path / "in" / "00001.png", np.zeros_like(astronaut))
    for points, shape in (("dense", (478, 3)), ("2d", (68, 2))):
        words = [
            "landmarks",
            tmp_path / "in",
            "--out",
            tmp_path / points,
            "--detector",
            "mediapipe",
            "--points",
            points,
        ]
        result = CliRunner().invoke(main, [*map(str, words), "--workers", "1"])
        assert result.exit_code == 0, result.stderr
        assert np.load(tmp_path / points / "landmarks" / "00000.npy").shape == shape
        first, second = map(json.loads, (tmp_path / points / "landmarks.jsonl").read_text().splitlines())
        assert first["blendshapes"]["mouthSmileLeft"] > 0.5 and len(first["blendshapes"]) == 52
        assert second["error"] == "no face found"
    words = ["detect", tmp_path / "in", "--out", tmp_path / "all", "--detector", "mediapipe", "--workers", "1"]
    assert CliRunner().invoke(main, list(map(str, words))).exit_code == 0
    (face,) = json.loads((tmp_path / "all" / "faces.jsonl").read_text().splitlines()[0])["faces"]
    assert face["score"] > 0.99 and len(face["points"]) == 5
    words = ["landmarks", tmp_path / "in", "--out", tmp_path / "no", "--detector", "dlib", "--points", "dense"]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 2 and "--points dense: dlib has 68 points" in result.stderr
