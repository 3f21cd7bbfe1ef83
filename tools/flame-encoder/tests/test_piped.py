"""Tracking a camera's lines: the pose is added, what they say is passed on, and each end is told."""

import io
import itertools
import json
from dataclasses import replace

import forks
import numpy as np
import pytest
from flame_encoder.tracker import piped
from flame_encoder.tracker.points import Rig
from recon4d import InputError, head
from recon4d.formats import camera_stream, track_stream
from recon4d.formats.camera_stream import CameraFrame, Header
from recon4d.formats.track import Track
from scipy.spatial.transform import Rotation

FOCAL, SIZE, SIDE, FPS = 900.0, (640, 480), 256, 25.0
WINDOWS = ((170.0, 90.0, 300.0), (200.0, 100.0, 280.0))  # the second from frame 30 on


@pytest.fixture(scope="module")
def model():
    return head.load()


def truth(model, n: int) -> Track:
    """A head that turns, nods and opens its mouth before the camera of the whole picture."""
    time = np.arange(n) / FPS
    turn = Rotation.from_euler("yx", np.stack([15 * np.sin(2 * time), 6 * np.sin(3 * time)], 1), degrees=True)
    still = np.tile(np.eye(3, dtype=np.float32), (n, 1, 1))
    expression = np.zeros((n, model.n_expression), np.float32)
    expression[:, model.expression_names.index("jawOpen")] = 0.4 + 0.4 * np.sin(4 * time)
    return Track(
        head_model=model.name,
        image_size=np.array(SIZE),
        fps=FPS,
        K=np.array([[FOCAL, 0, SIZE[0] / 2], [0, FOCAL, SIZE[1] / 2], [0, 0, 1]], np.float32),
        names=np.array([f"{i:08d}.jpg" for i in range(n)]),
        valid=np.ones(n, bool),
        shape=np.zeros(model.n_shape, np.float32),
        expression=expression,
        R=(np.diag([1.0, -1, -1]) @ turn.as_matrix()).astype(np.float32),
        t=np.stack([0.02 * np.sin(time), 0 * time, 0.9 + 0 * time], 1).astype(np.float32),
        neck=still,
        jaw=still,
        eyes=np.tile(np.eye(3, dtype=np.float32), (n, 2, 1, 1)),
        eyelids=np.zeros((n, 2), np.float32),
    )


def window(i: int) -> tuple[float, float, float]:
    return WINDOWS[i >= 30]


def filmed(model, folder, n: int, gone: tuple[int, ...] = ()) -> tuple[Track, list[str]]:
    """The camera's lines and landmark files of a head whose truth is known."""
    track = truth(model, n)
    rig = Rig(model)
    for kind in (camera_stream.IMAGES, camera_stream.MATTES, camera_stream.LANDMARKS):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    surface = model.dense
    vertices = track.vertices(model).numpy()
    lines = [camera_stream.header(Header(folder, SIDE, FPS, False))]
    for i in range(n):
        corners = vertices[i][model.faces[surface.faces].numpy()]
        points = (surface.bary.numpy()[..., None] * corners).sum(1) @ track.K.T
        left, top, side = window(i)
        points = (points[:, :2] / points[:, 2:] - [left, top]) * SIDE / side
        found = np.full((478, 3), np.nan, np.float32)
        found[surface.indices.numpy(), :2] = points
        known = np.isfinite(found[:, 0])
        found[~known] = np.append(points.mean(0), 0)
        found[:, 2] = 0
        if i not in gone:
            np.save(folder / camera_stream.LANDMARKS / f"{i:08d}.npy", found)
        said = {"stages": {"camera": {"fps": 25.0}}, "mood": "good"}
        frame = CameraFrame(f"{i:08d}.jpg", 100 + i / FPS, SIZE, window(i), i not in gone, said)
        lines.append(camera_stream.frame(frame))
    assert rig.dense is not None
    return track, [json.dumps(line) for line in [*lines, camera_stream.end("the film ended")]]


def followed(model, lines, **options) -> tuple[list[dict], list[str]]:
    out, said = io.StringIO(), []
    piped.follow(io.StringIO("\n".join(lines)), out, model, log=said.append, **options)
    return [json.loads(line) for line in out.getvalue().splitlines()], said


def test_lines_are_passed_on_with_the_pose(model, tmp_path):
    n, gone = 70, (50, 51)
    track, lines = filmed(model, tmp_path, n, gone)
    records, said = followed(model, lines, focal=FOCAL)
    headers = [record for record in records if "format" in record]
    frames = [record for record in records if "name" in record]
    assert records[0] is headers[0] and headers[0]["folder"] == str(tmp_path) and headers[0]["live"] is False
    assert records[-1] == {"end": "the film ended"} and said[-1] == "the film ended; flame-encoder track has ended"
    first = int(frames[0]["name"][:8])
    assert first == 26  # after the first second
    assert [frame["name"] for frame in frames] == [f"{i:08d}.jpg" for i in range(first, n)]
    assert [int(frame["name"][:8]) for frame in frames if not frame["valid"]] == list(gone)
    assert frames[5]["mood"] == "good" and frames[5]["time"] == pytest.approx(100 + (first + 5) / FPS, abs=1e-3)
    assert set(frames[5]["stages"]) == {"camera", "track"} and frames[5]["stages"]["track"]["dropped"] == 0
    found = [line.track for line in track_stream.read_all(map(json.dumps, records), "x") if line.track is not None]
    assert [int(side) for side in found[0].image_size] == [SIDE, SIDE]
    for part in found:
        i = int(str(part.names[0])[:8])
        left, _, side = window(i)
        K = part.Ks[0]
        assert K[0, 0] == pytest.approx(FOCAL * SIDE / side, rel=1e-4)
        assert K[0, 2] == pytest.approx((SIZE[0] / 2 - left) * SIDE / side, abs=1e-2)
        if i in gone or i in (52, 53):
            continue
        # The whole head is where it was, in pixels of the picture.
        places = []
        for some, matrix in ((part, K), (track.take([i]), K)):
            points = some.vertices(model)[0].numpy() @ matrix.T
            places.append(points[:, :2] / points[:, 2:])
        assert np.linalg.norm(places[0] - places[1], axis=1).mean() < 3


def test_the_person_is_measured_anew_when_asked(model, tmp_path):
    _, lines = filmed(model, tmp_path, 80)

    def asked():
        for i, line in enumerate(lines):
            if i == 45:
                (tmp_path / camera_stream.AGAIN).write_text("")
            yield line

    out, said = io.StringIO(), []
    lines_in = asked()
    piped.follow(lines_in, out, model, focal=FOCAL, log=said.append)  # type: ignore[arg-type]
    records = [json.loads(line) for line in out.getvalue().splitlines()]
    names = [int(record["name"][:8]) for record in records if "name" in record]
    gaps = [b for a, b in itertools.pairwise(names) if b - a > 20]
    assert len(gaps) == 1 and "the person is measured anew" in said
    assert sum(record.get("measured") == 0 for record in records) == 2


def test_who_has_died_is_said(model, tmp_path):
    _, lines = filmed(model, tmp_path, 30)
    records, said = followed(model, lines[:-1], focal=FOCAL)
    assert records[-1]["end"] == "the camera's lines stopped without an end: prep-faces camera has died"
    assert said[-1].startswith(records[-1]["end"])
    with pytest.raises(InputError, match=r"no line came; prep-faces camera must come before"):
        followed(model, [])
    with pytest.raises(InputError, match="line 1 is not the header of a camera's frames"):
        followed(model, ['{"name": 3}'])
    with pytest.raises(InputError, match="line 3 is no frame"):
        followed(model, [*lines[:2], '{"name": 3}', *lines[3:]])
    with pytest.raises(InputError, match="run flame-encoder check-model --embed"):
        followed(replace(model, dense=None), lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-"], "which only --stream reads"),
        (["-", "--stream", "--out", "x"], "--out is for folders of frames"),
        (["frames"], "--landmarks is missing"),
    ],
)
def test_options_that_do_not_fit(words, message):
    done = forks.run("flame-encoder", "track", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_the_command(model, tmp_path):
    _, lines = filmed(model, tmp_path, 30)
    done = forks.run("flame-encoder", "track", "--stream", "-", "--focal", "900", given="\n".join(lines))
    assert done.returncode == 0, done.stderr
    assert [json.loads(line).get("name") for line in done.stdout.splitlines()][1:4] == [
        f"{i:08d}.jpg" for i in (26, 27, 28)
    ]
    assert "the film ended; flame-encoder track has ended" in done.stderr
