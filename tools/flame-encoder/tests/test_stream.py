"""Tracking frames as they come: on a clip whose truth is known, and on folders that grow."""

import itertools
import json
import threading
import time

import cv2
import numpy as np
import pytest
from flame_encoder import frames
from flame_encoder.tracker import observations, stream
from flame_encoder.tracker.observations import FrameFaces
from flame_encoder.tracker.problem import Options
from known_clip import clip, face_error
from recon4d import InputError, head

CALIBRATION, FRAMES = 12, 26


@pytest.fixture(scope="module")
def model():
    return head.load()


def views_of(seen, gone=()):
    return [
        FrameFaces(
            str(name),
            np.empty((0, 68, 2)) if i in gone else seen.landmarks[i : i + 1],
            seen.irises[i : i + 1],
            (512, 512),
        )
        for i, name in enumerate(seen.names)
    ]


def test_frames_are_tracked_as_they_come(model):
    truth, seen, _ = clip(model, n=40)
    gone, taken = (15, 16), []

    def source():
        for i, view in enumerate(views_of(seen, gone)[:FRAMES]):
            taken.append(i)
            yield view

    found = []
    for part, error in stream.fit(model, source(), 30.0, Options(focal=900.0), CALIBRATION):
        assert len(taken) == max(len(found) + 1, CALIBRATION)  # no frame waits for a later one
        assert np.isnan(error) == (len(found) in gone) and not error > 8
        found.append(part)
    assert [str(part.names[0]) for part in found] == [str(name) for name in seen.names[:FRAMES]]
    assert [bool(part.valid[0]) for part in found] == [i not in gone for i in range(FRAMES)]
    for part in found:
        np.testing.assert_array_equal(part.shape, found[0].shape)
        np.testing.assert_array_equal(part.K, found[0].K)
    for i, limit in ((14, 3.0), (FRAMES - 1, 3.0), (16, 6.0)):
        vertices = found[i].vertices(model)
        assert face_error(model, truth[i : i + 1], vertices) < limit
        assert (vertices - truth[i]).norm(dim=-1).mean() < 0.05  # in place, not only in shape


def test_a_lost_face_is_held_and_found_again(model):
    _, seen, _ = clip(model, n=40)
    gone = range(8, 8 + stream.WINDOW + 2)
    views = views_of(seen, gone)[: gone.stop + 1]
    found = [part for part, _ in stream.fit(model, views, 30.0, Options(focal=900.0), 8)]
    held = found[gone.stop - 1]
    np.testing.assert_array_equal(held.R, found[gone.stop - 2].R)  # nobody in the window: the pose stays
    assert found[-1].valid[0] and not np.allclose(found[-1].t, held.t, atol=1e-4)
    points = found[-1].vertices(model)[0] @ found[-1].K.T
    middle = (points[:, :2] / points[:, 2:]).mean(0).numpy()
    assert np.abs(middle - seen.landmarks[gone.stop].mean(0)).max() < 60


@pytest.mark.parametrize(
    ("gone", "person", "message"),
    [
        (range(40), 0, "none of the first 4 frames has landmarks"),
        ((), 1, "--person 1: the first 4 frames show 1 people"),
    ],
)
def test_streams_that_begin_badly(model, gone, person, message):
    _, seen, _ = clip(model, n=40)
    with pytest.raises(InputError, match=message):
        next(stream.fit(model, views_of(seen, gone), 30.0, Options(), 4, person))


def write_frame(folder, i, points=True):
    cv2.imwrite(str(folder / "frames" / f"{i:05d}.png"), np.full((60, 80, 3), i, np.uint8))
    if points:
        np.save(folder / "landmarks" / f"{i:05d}.npy", 10.0 + i + np.arange(136).reshape(68, 2) / 10)


@pytest.fixture
def growing(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "landmarks").mkdir()
    return tmp_path


def test_frames_that_are_still_being_written_are_waited_for(growing):
    write_frame(growing, 0)

    def write():
        for i in range(1, 6):
            time.sleep(0.1)
            write_frame(growing, i, points=i not in (2, 5))
        (growing / "landmarks.json").write_text('{"result": {}}')
        (growing / "frames.json").write_text('{"result": {}}')

    thread = threading.Thread(target=write)
    thread.start()
    views = list(stream.arrivals(growing / "frames", growing / "landmarks", follow=True, timeout=60))
    thread.join()
    assert [view.name for view in views] == [f"{i:05d}.png" for i in range(6)]
    assert [len(view.faces) for view in views] == [1, 1, 0, 1, 1, 0]


def test_a_run_that_has_only_begun_is_not_the_end(growing, monkeypatch):
    """prep-faces writes its .json when it begins, and the result into it when it is done."""
    for name in ("frames.json", "landmarks.json"):
        (growing / name).write_text('{"command": "x", "options": {}}')
    for i in range(3):
        write_frame(growing, i, points=i < 2)
    arriving = stream.arrivals(growing / "frames", growing / "landmarks", follow=True, timeout=60)
    assert [next(arriving).name for _ in range(2)] == ["00000.png", "00001.png"]

    def write_the_rest(seconds):
        write_frame(growing, 3)

    monkeypatch.setattr(stream.time, "sleep", write_the_rest)
    assert [len(next(arriving).faces) for _ in range(2)] == [0, 1]


def test_a_long_stream_is_not_listed_for_every_frame(growing, monkeypatch):
    """The folders are listed for a share of the time, and of the table only what is new is read."""
    listed = []
    scandir = stream.os.scandir
    monkeypatch.setattr(stream.os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    monkeypatch.setattr(stream, "LISTING", 1e6)
    table = growing / "landmarks.jsonl"
    write_frame(growing, 0)
    count = itertools.count(1)

    def write_one(seconds):
        i = next(count)
        with open(table, "a") as file:
            file.write(json.dumps({"file": f"{i:05d}.png", "width": 160, "height": 120}) + "\n")
        write_frame(growing, i)

    monkeypatch.setattr(stream.time, "sleep", write_one)
    arriving = stream.arrivals(growing / "frames", growing / "landmarks", follow=True, timeout=60)
    found = list(itertools.islice(arriving, 40))
    assert [frame.name for frame in found] == [f"{i:05d}.png" for i in range(40)]
    assert len(listed) == 2  # frames and landmarks, once
    assert found[7].faces[0, 0, 0] == (10 + 7) / 2  # made on an image of twice the size


def test_a_table_is_read_on(tmp_path):
    table, sizes = tmp_path / "landmarks.jsonl", {}
    assert frames.read_on(table, sizes) == (0, 0)
    lines = [json.dumps({"file": f"{i}.png", "width": i + 1, "height": 9}) + "\n" for i in range(3)]
    table.write_text(lines[0] + lines[1][:9])
    position = frames.read_on(table, sizes)
    assert list(sizes) == ["0"] and position[1] == len(lines[0])
    table.write_text(lines[0].replace("9", "8") + lines[1])  # what was read is not read again
    position = frames.read_on(table, sizes, position)
    assert list(sizes) == ["0", "1"] and sizes["0"].tolist() == [1, 9]
    (tmp_path / "other").write_text("".join(lines[2:]))  # the table as a whole, written anew
    (tmp_path / "other").replace(table)
    frames.read_on(table, sizes, position)
    assert sizes["2"].tolist() == [3, 9]


def test_a_stream_ends_when_nothing_comes(growing):
    for i in range(3):
        write_frame(growing, i, points=i < 2)
    views = stream.arrivals(growing / "frames", growing / "landmarks", follow=True, timeout=0.2)
    assert len(list(views)) == 3
    with pytest.raises(InputError, match="has no images"):
        list(stream.arrivals(growing, growing / "landmarks", follow=True, timeout=0.1))


def face_at(x, y, size=40.0):
    points = np.random.default_rng(0).uniform(-1, 1, (68, 2)) * size
    points[36], points[45] = (-size / 2, 0), (size / 2, 0)
    return points + np.array([x, y])


def test_people_are_followed_not_rows(growing):
    """Two people whose rows swap; one leaves, one comes back: the one in more frames is person 0."""
    faces = []
    for i in range(12):
        left, right = face_at(100 + 3 * i, 200), face_at(400 - 2 * i, 220)
        both = [left, right] if i % 2 else [right, left]
        faces.append(np.array([left]) if i >= 9 else np.empty((0, 68, 2)) if i == 4 else np.array(both))
    first, second = observations.follow_people(faces)
    assert first.tolist() == [1, 0, 1, 0, -1, 0, 1, 0, 1, 0, 0, 0]
    assert second.tolist() == [0, 1, 0, 1, -1, 1, 0, 1, 0, -1, -1, -1]
    # with one face in every frame there is one person, however far it jumps
    (alone,) = observations.follow_people([face_at(0, 0)[None], face_at(4000, 0)[None], np.empty((0, 68, 2))])
    assert alone.tolist() == [0, 0, -1]


def test_the_person_is_chosen_from_files_of_several_faces(growing):
    for i in range(4):
        cv2.imwrite(str(growing / "frames" / f"{i:05d}.png"), np.zeros((300, 500, 3), np.uint8))
        one, other = face_at(120 + i, 150), face_at(380, 150 + i)
        faces = [other, one] if i < 3 else [one]
        np.save(growing / "landmarks" / f"{i:05d}.npy", np.array([*faces, np.full((68, 2), np.nan)]))
    for person, middle in ((0, 120), (1, 380)):
        seen = observations.read(growing / "frames", growing / "landmarks", person=person)
        assert np.allclose(seen.landmarks[0, [36, 45]].mean(0)[0], middle)
        assert seen.valid.tolist() == [True, True, True, person == 0]
    with pytest.raises(InputError, match=r"--person 2: .* shows 2 people"):
        observations.read(growing / "frames", growing / "landmarks", person=2)


def test_a_stream_follows_its_person_among_others(growing):
    known = face_at(100, 100)
    assert observations.nearest(np.array([face_at(300, 100), face_at(105, 100)]), known) == 1
    assert observations.nearest(np.array([face_at(300, 100), face_at(500, 100)]), known) == -1
    assert observations.nearest(np.array([face_at(300, 100)]), known) == 0
    assert observations.nearest(np.empty((0, 68, 2)), known) == -1


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (face_at(40, 30, 40) * 8, "faces outside the 80x60 frames"),
        (face_at(40, 30, 3), r"the eyes are 3\.0 pixels apart, 8 are needed"),
        (np.full((68, 2), np.nan), "landmarks for none of the 2 frames"),
        (np.full((2, 67, 2), 1.0), r"has shape \(2, 67, 2\)"),
        (np.full((68, 2), "a"), "has shape"),
    ],
)
def test_faces_that_cannot_be_tracked(growing, points, message):
    for i in range(2):
        write_frame(growing, i, points=False)
        np.save(growing / "landmarks" / f"{i:05d}.npy", points)
    with pytest.raises(InputError, match=message):
        observations.read(growing / "frames", growing / "landmarks")


def test_landmarks_are_scaled_in_a_stream_too(growing):
    write_frame(growing, 0)
    (growing / "landmarks.jsonl").write_text(json.dumps({"file": "00000.png", "width": 160, "height": 120}))
    (view,) = itertools.islice(stream.arrivals(growing / "frames", growing / "landmarks"), 2)
    np.testing.assert_allclose(view.faces, (10.0 + np.arange(136).reshape(1, 68, 2) / 10) / 2)
