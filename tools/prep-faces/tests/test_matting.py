"""The networks' files, the trimap, closed-form matting and the rest of the default mattes, against independent ones."""

import json

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image
from prep_faces import clipmatte, networks
from prep_faces.clipmatte import Frame, Way, live_cover, look_at, matte_clip
from prep_faces.closedform import closed_form, laplacian_rows
from prep_faces.foreground import foreground
from prep_faces.headshape import HeadShape, shape_from_landmarks, shape_mask
from prep_faces.image_files import ImageFile
from prep_faces.steadiness import View, agreed, carried
from prep_faces.trimap import below_the_head, draw_trimap
from recon4d import InputError, images, landmarker, shipped
from recon4d.formats.landmarks import to_ibug


@pytest.fixture(scope="module")
def points(portrait) -> np.ndarray:
    """Her 68 points, (68, 2) pixels."""
    return to_ibug(landmarker.find(portrait)[0].points).astype(float)


@pytest.fixture(scope="module")
def shape(points) -> HeadShape:
    return shape_from_landmarks(points, (300, 300))


def test_the_files_of_the_networks_are_their_publishers(monkeypatch):
    networks.check("matting")
    monkeypatch.setitem(networks.SHA256, networks.SALIENT, "0" * 64)
    networks._onnx.cache_clear()
    with pytest.raises(InputError, match="is another file than the one that belongs there"):
        networks.check("matting")
    networks.check("live")
    with pytest.raises(InputError, match="is missing"):
        shipped.read("prep_faces", "none.onnx", "", "--method grabcut")
    networks._onnx.cache_clear()


def test_both_networks_find_the_astronaut(portrait):
    for answer in (networks.salient(portrait), networks.person(portrait)):
        small = cv2.resize(answer, (300, 300))
        assert small[90:165, 135:185].min() > 0.8  # her face
        assert small[:25, :40].max() < 0.2


def test_laplacian_against_its_definition():
    """Equation 12 of Levin et al., pair by pair and window by window."""
    rng = np.random.default_rng(0)
    image = rng.random((7, 8, 3))
    unknown = np.ones((7, 8), bool)
    expected = np.zeros((56, 56))
    for y in range(1, 6):
        for x in range(1, 7):
            window = [(y + dy) * 8 + x + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            colors = image.reshape(-1, 3)[window]
            spread = np.linalg.inv(np.cov(colors.T, bias=True) + 1e-3 / 9 * np.eye(3))
            for i, a in zip(window, colors - colors.mean(0)):
                for j, b in zip(window, colors - colors.mean(0)):
                    expected[i, j] += (i == j) - (1 + a @ spread @ b) / 9
    assert laplacian_rows(image, unknown, 1e-3).toarray() == pytest.approx(expected, abs=1e-9)
    some = rng.random((7, 8)) > 0.6
    assert laplacian_rows(image, some, 1e-3).toarray() == pytest.approx(expected[some.ravel()], abs=1e-9)


def mixture(size=72):
    """A bright textured disk with a soft edge before dark texture: image, alpha, colours of the disk."""
    rng = np.random.default_rng(1)
    ys, xs = np.mgrid[0:size, 0:size]
    alpha = np.clip((size / 3 - np.hypot(xs - size / 2, ys - size / 2)) / 6 + 0.5, 0, 1)
    grain = cv2.GaussianBlur(rng.random((size, size)), (0, 0), 2)[..., None]
    front = np.array([0.9, 0.5, 0.2]) * (0.7 + 0.6 * (grain - 0.3))
    back = np.array([0.1, 0.2, 0.5]) * (0.6 + 0.8 * (grain[::-1] - 0.3))
    return alpha[..., None] * front + (1 - alpha[..., None]) * back, alpha, front


def test_closed_form_finds_a_soft_edge():
    image, alpha, _ = mixture()
    unknown = (alpha > 0) & (alpha < 1)
    unknown = cv2.dilate(unknown.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    found = closed_form(image, alpha, unknown, np.full(alpha.shape, 0.5), np.full(alpha.shape, 1e-6))
    assert np.abs(found - alpha)[unknown].mean() < 0.03
    assert np.array_equal(found[~unknown], alpha[~unknown].astype(np.float32))
    # Nothing known: the prior stays.
    prior = np.full(alpha.shape, 0.25)
    everywhere = np.ones(alpha.shape, bool)
    assert closed_form(image, alpha, everywhere, prior, np.full(alpha.shape, 0.1)) == pytest.approx(prior, abs=1e-3)


def test_foreground_undoes_the_mixture():
    image, alpha, front = mixture()
    given = np.rint(255 * image).astype(np.uint8)
    found = foreground(given, alpha.astype(np.float32))
    edge = (alpha > 0.2) & (alpha < 0.9)
    assert np.abs(found[edge] / 255 - front[edge]).mean() < 0.06
    assert np.abs(image[edge] - front[edge]).mean() > 0.15
    assert np.array_equal(found[(alpha == 0) | (alpha == 1)], given[(alpha == 0) | (alpha == 1)])
    assert np.array_equal(foreground(given, np.ones(alpha.shape, np.float32)), given)


def test_a_plate_behind_the_head_is_none_of_it(shape):
    """Both networks take a disk of another colour for the person; its colour is nowhere in the face."""
    ys, xs = np.mgrid[0:300, 0:300]
    skull = shape_mask(shape, np.eye(2, 3), 300, 300)
    head = cv2.dilate(skull, np.ones((9, 9), np.uint8)) > 0
    apart = np.hypot(xs - 155, ys - 100)
    plate = apart < 110
    rng = np.random.default_rng(0)
    picture = np.full((300, 300, 3), (40, 60, 90)) + rng.normal(0, 4, (300, 300, 1))
    picture[plate] = (250, 250, 245)
    picture[head] = (205, 150, 120)
    picture[head & (ys < 75)] = (60, 40, 30)
    said = np.where(plate | head, 0.99, 0.01).astype(np.float32)
    trimap = draw_trimap(picture.clip(0, 255).astype(np.uint8), said, said, shape, np.eye(2, 3), "portrait")
    middle = np.where(trimap.unknown, trimap.prior, trimap.known)
    assert middle[skull > 0].mean() > 0.95
    assert middle[plate & (apart > 90) & (ys < 150)].mean() < 0.2


def test_what_is_kept(shape, points):
    head, neck, whole = (
        below_the_head(shape, np.eye(2, 3), (300, 300), keep) for keep in ("head", "head+neck", "portrait")
    )
    assert whole.min() == 1 and (head <= neck).all() and (neck <= whole).all()
    chin = int(shape.middle[1] + shape.chin * shape.width)
    assert head[chin + 10, 170] == 1 and head[chin + 25, 290] == 0  # the neck; a shoulder
    assert neck[chin + 25, 290] == 1 and neck[299, 170] == 0
    # The cut turns with the head.
    turned = shape_from_landmarks(points[:, ::-1], (300, 300))
    assert abs(turned.up[0]) > 0.9
    cut = below_the_head(turned, np.eye(2, 3), (300, 300), "head+neck")
    assert (cut[:, 0] > 0).all() != (cut[:, 299] > 0).all()


def test_carried_by_head_and_flow():
    """The head moves by 6 pixels to the right, and what hangs on it by 3 more."""
    rng = np.random.default_rng(0)
    texture = np.rint(255 * cv2.GaussianBlur(rng.random((120, 160)), (0, 0), 3)).astype(np.float32)
    texture = np.clip((texture - 127) * 4 + 127, 0, 255).astype(np.uint8)
    blob = np.zeros((120, 160), np.float32)
    blob[40:80, 50:90] = 1
    anchors = rng.random((9, 2)) * 100
    there = View(texture, np.eye(2, 3), anchors)
    here = View(np.roll(texture, 9, 1), np.eye(2, 3), anchors + np.array([6, 0]))
    moved, sure = carried(blob, there, here)
    inside = np.s_[20:100, 30:130]
    assert sure[inside].mean() > 0.9
    assert np.abs(moved - np.roll(blob, 9, 1))[inside].mean() < 0.03
    assert np.abs(np.roll(blob, 6, 1) - np.roll(blob, 9, 1))[inside].mean() > 0.025


def test_what_one_frame_shows_drops_out():
    clean, all_of_it = np.zeros((4, 4), np.float32), np.ones((4, 4), bool)
    others = [(clean, all_of_it)] * 4
    assert not agreed(np.ones((4, 4), np.float32), others).any()
    assert agreed(np.ones((4, 4), np.float32), [(clean, ~all_of_it)] * 4).all()
    assert agreed(np.ones((4, 4), np.float32), []).all()


def moving(portrait: np.ndarray, points: np.ndarray, folder, count: int) -> list[Frame]:
    """A clip of the astronaut, who moves to the right, on disk."""
    frames = []
    for i in range(count):
        path = folder / f"{i}.png"
        images.write(path, cv2.resize(np.roll(portrait, 2 * i, axis=1), (150, 150), interpolation=cv2.INTER_AREA))
        half = shape_from_landmarks((points + np.array([2 * i, 0])) / 2, (150, 150))
        frames.append(Frame(ImageFile(path, path.name, path.stem), half, folder / f"out/{i}.png", True))
    return frames


def test_how_a_clip_is_divided_does_not_matter(portrait, points, tmp_path, monkeypatch):
    whole, parts = (moving(portrait, points, tmp_path / name, 7) for name in "ab")
    monkeypatch.setattr(clipmatte, "KEY", 4)
    assert all("error" not in item for item in matte_clip(whole, Way("matting", "head", 2), 1))
    monkeypatch.setattr(clipmatte, "STRETCH", 2)
    assert len(list(matte_clip(parts, Way("matting", "head", 2), 1))) == 7
    for a, b in zip(whole, parts):
        assert a.target.read_bytes() == b.target.read_bytes()


def test_live_needs_only_the_frames_before(portrait, shape):
    way = Way("live", "portrait", 2)
    looks = [look_at(np.roll(portrait, 2 * i, axis=1), shape, way) for i in range(3)]
    cover = live_cover(looks[2], [looks[1], looks[0]])
    assert cover.shape == looks[2].person.shape
    assert live_cover(looks[0], []).max() > 0.9
    with pytest.raises(InputError, match="find it anew"):
        look_at(portrait[:100], shape, way)


@pytest.mark.parametrize("method", ["matting", "live"])
def test_the_command_keeps_her_hair(run, points, tmp_path, method):
    images.write(tmp_path / "f" / "a.png", np.ascontiguousarray(skimage.data.astronaut()[:300, 70:370]))
    (tmp_path / "points").mkdir()
    np.save(tmp_path / "points/a.npy", points.astype(np.float32))
    words = ("matte", tmp_path / "f", "--landmarks", tmp_path / "points", "--photos", "--method", method)
    done = run(*words, "--keep", "head+neck", "--out", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["method"], said["keep"], said["written"]) == (method, "head+neck", 1)
    with Image.open(tmp_path / "m" / "a.png") as image:
        alpha = np.asarray(image)[..., 3]
    assert alpha[90:160, 135:185].min() > 200 and alpha[40:60, 140:170].min() > 200  # face and hair
    assert alpha[:25, :60].max() < 50 and alpha[-5:].max() < 50
    refused = run("matte", tmp_path / "f", "--method", "grabcut", "--keep", "portrait", "--out", tmp_path / "x")
    assert refused.returncode == 2 and "--keep portrait needs --method matting or live" in refused.stderr
