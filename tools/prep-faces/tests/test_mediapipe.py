"""The detector `mediapipe`: where another sees a face too, and by the commands."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from prep_faces import dlib_faces
from prep_faces.cli import main
from recon4d import images, landmarker
from recon4d.formats import landmarks
from skimage import data


@pytest.fixture(scope="module")
def astronaut():
    return data.astronaut()


def test_points_are_where_another_detector_sees_them(astronaut):
    """dlib's 68, of which those of the jaw mean something else."""
    (face,) = landmarker.find(astronaut)
    found = dlib_faces.find_faces(astronaut, 0.5).landmarks
    other = min(found, key=lambda points: np.abs(points.mean(0) - face.points[:, :2].mean(0)).max())
    eyes = np.linalg.norm(face.points[landmarker.EYES[0], :2] - face.points[landmarker.EYES[1], :2])
    distance = np.linalg.norm(landmarks.to_ibug(face.points) - other, axis=1)[17:]
    assert distance.mean() < 0.06 * eyes and distance.max() < 0.25 * eyes
    assert face.presence > 0.99


def test_landmarks_and_detect_with_mediapipe(tmp_path, astronaut):
    images.write(tmp_path / "in" / "00000.png", astronaut)
    images.write(tmp_path / "in" / "00001.png", np.zeros_like(astronaut))
    for points, shape in (("dense", (478, 3)), ("ibug", (68, 2))):
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
