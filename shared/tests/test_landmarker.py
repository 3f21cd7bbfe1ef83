"""MediaPipe's networks on the picture of an astronaut: where the face is, whatever its size, turn and place."""

import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from recon4d import InputError, landmarker
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


def test_a_face_is_found_once_in_whole_and_parts(astronaut):
    assert len(landmarker.find(astronaut, every=True)) == 1


def test_a_face_is_followed_and_found_again(astronaut, face):
    shifted = np.roll(astronaut, 6, axis=1)
    found = landmarker.follow(shifted, face.next_square())
    assert np.abs(found.points[:, 0] - face.points[:, 0] - 6).mean() < 1.5
    assert landmarker.follow(np.zeros_like(astronaut), face.next_square()) is None
    assert landmarker.follow(astronaut, None).presence > 0.9


def test_no_face():
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    for image in (noise, np.zeros((64, 64, 3), np.uint8), np.full((1, 1, 3), 7, np.uint8), noise[:3], noise[:, :2]):
        assert landmarker.find(image) == []


def test_threads_may_ask_at_once():
    points = np.random.default_rng(0).uniform(0, 200, (40, 478, 2))
    one_by_one = [landmarker.blendshapes(face) for face in points]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(landmarker.blendshapes, points)), one_by_one)


def test_a_missing_runtime_or_another_file_is_one_sentence(monkeypatch):
    monkeypatch.setattr(landmarker, "SHA256", "0" * 64)
    landmarker._networks.cache_clear()
    with pytest.raises(InputError, match="is another file than the one that belongs there"):
        landmarker.find(np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(landmarker, "ASSET", "gone.task")
    with pytest.raises(
        InputError, match=r"gone\.task is missing from recon4d/assets; put it there, or use another detector"
    ):
        landmarker.find(np.zeros((64, 64, 3), np.uint8))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(InputError, match="needs ai-edge-litert"):
        landmarker.find(np.zeros((64, 64, 3), np.uint8))
    landmarker._networks.cache_clear()
