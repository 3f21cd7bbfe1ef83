"""Synthetic people: the truth that comes with a picture is what is in it; samples are repeatable and cached."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from flame_encoder.encoder import losses, rendering, samples, synthetic
from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.vector import Layout
from recon4d import InputError, head
from recon4d.formats.landmarks import to_ibug
from recon4d.rotations import from_6d
from scipy.spatial.transform import Rotation

VIEW = CropView(fov=14.0, size=48)


@pytest.fixture(scope="module")
def model():
    return head.load()


@pytest.fixture(scope="module")
def scene(model):
    return synthetic.scene(model, Layout(), VIEW)


@pytest.fixture(scope="module")
def people(scene):
    return [synthetic.sample(scene, 0, i) for i in range(40)]


def test_samples_are_pictures_and_repeatable(scene, people):
    again = synthetic.sample(scene, 0, 7)
    for name in ("image", "landmarks", "vector", "points"):
        assert np.array_equal(getattr(again, name), getattr(people[7], name), equal_nan=name == "points")
    assert people[0].image.shape == (48, 48, 3) and people[0].image.dtype == np.uint8
    assert people[0].vector.shape == (227,) and people[0].vector.dtype == np.float32
    images = np.stack([p.image for p in people]).astype(float)
    assert images.std((1, 2, 3)).min() > 8  # none is empty
    assert images.mean((1, 2, 3)).std() > 15 and images.mean((0, 1, 2)).min() > 40


def test_landmarks_are_those_of_the_vector(model, people):
    """The fixed camera of the encoder sees the head where the picture's own camera, near or far, put it."""
    judge = losses.judge(model, Layout(), VIEW)
    parts = Layout().split(torch.from_numpy(np.stack([p.vector for p in people])))
    points = losses.landmark_pixels(judge, rendering.turned(judge.points, parts), parts["transl"])
    truth = torch.from_numpy(np.stack([p.landmarks for p in people]))
    error = (points - truth).norm(dim=-1).mean(1)
    assert error.max() < 0.02 * VIEW.size and error.median() < 0.006 * VIEW.size
    # The crop is that of a detector with small errors: all points within it, the box of a usual size.
    inside = ((truth > 0) & (truth < VIEW.size)).all(-1).float().mean(1)
    assert inside.min() > 0.9
    side = (truth.amax(1) - truth.amin(1)).amax(1) / VIEW.size
    assert side.min() > 0.4 and side.max() < 0.85 and 0.58 < side.mean() < 0.68


def test_pairs_show_one_person(scene, people):
    """Samples 2k and 2k + 1 share identity and skin, and nothing else; any number of a person can be drawn."""
    parts = Layout().split(torch.from_numpy(np.stack([p.vector for p in people])))
    who = torch.cat([parts["shape"], parts["detail"][:, 27:]], 1)
    assert torch.equal(who[0::2], who[1::2]) and (who[0] - who[2]).abs().max() > 0.5
    for name in ("global_rot", "transl"):
        assert (parts[name][0::2] - parts[name][1::2]).abs().amax(1).min() > 1e-3
    third = synthetic.sample(scene, 0, 40, who=0).vector
    np.testing.assert_array_equal(third[:100], people[0].vector[:100])


def test_the_landmarker_sees_them(model):
    """At twice the size the network sees, its points are near the true landmarks of most."""
    drawn = synthetic.scene(model, Layout(), CropView(fov=14.0, size=112))
    made = [synthetic.sample(drawn, 0, i) for i in range(8)]
    assert made[0].picture.shape == (224, 224, 3) and made[0].image.shape == (112, 112, 3)
    seen = [p for p in made if np.isfinite(p.points).all()]
    assert len(seen) >= 6
    unit = [np.linalg.norm(p.landmarks[36] - p.landmarks[45]) for p in seen]
    off = [np.linalg.norm(to_ibug(p.points) - p.landmarks, axis=1)[17:].mean() for p in seen]
    assert np.median(np.array(off) / unit) < 0.08


def test_people_differ(scene):
    """Poses cover what is asked, closed eyes and open mouths occur, and left out actions stay out."""
    rng = np.random.default_rng(0)
    many = [synthetic.random_parts(scene, rng) for _ in range(400)]
    six = torch.stack([p["global_rot"] for p in many])
    angles = Rotation.from_matrix(from_6d(six).numpy()).as_euler("ZXY", degrees=True)
    roll, pitch, yaw = angles.T
    assert np.abs(yaw).max() <= 60.01 and np.percentile(yaw, 95) > 40 and np.percentile(yaw, 5) < -40
    assert np.abs(pitch).max() <= 30.01 and np.std(pitch) > 8 and np.std(roll) > 6
    expression = torch.stack([p["expression"] for p in many]).numpy()
    assert expression.min() >= 0 and expression.max() <= 1
    names = list(scene.head.expression_names)
    assert expression[:, [names.index(n) for n in synthetic.LEFT_OUT]].max() == 0
    assert (expression[:, :44] > 0.3).any(0).sum() == 44 - len(synthetic.LEFT_OUT)
    assert 0.05 < (expression[:, 44:46] > 0.6).all(1).mean() < 0.3 and expression[:, 46:].max() == 0
    jaw = torch.stack([p["jaw"] for p in many])[:, 0]
    assert (jaw > 0.2).float().mean() > 0.03 and jaw.min() >= 0
    shape = torch.stack([p["shape"] for p in many])
    assert 0.85 < shape.std() < 0.95


def test_a_flame_head_can_be_drawn(model):
    """A head model without names, eyelids, regions and albedo."""
    from dataclasses import replace

    bare = replace(
        model, eyelids=None, regions=None, expression_names=(), albedo_mean=None, albedo_components=None, name="FLAME"
    )
    made = synthetic.sample(synthetic.scene(bare, Layout(), VIEW), 0, 0)
    assert made.image.std() > 8 and np.abs(made.vector[100:144]).max() > 0.5
    first = Layout(shape=100, expression=0, detail=106)
    made = synthetic.sample(synthetic.scene(model, first, VIEW), 0, 0)
    assert made.vector.shape == (227,) and (made.vector[121 + 27 + 8 :] == 0).all()


def test_cache(scene, tmp_path):
    kept = samples.Synthetic(scene, 6, 5, tmp_path / "cache")
    fresh = samples.Synthetic(scene, 6, 5)
    first = [np.array(x) for x in kept[4][:3]]
    for a, b in zip(first, fresh[4][:3]):
        np.testing.assert_array_equal(a, b)
    assert np.load(tmp_path / "cache" / "ready.npy").tolist() == [False] * 4 + [True, False]
    again = samples.Synthetic(scene, 5, 5, tmp_path / "cache")  # fewer samples: the same ones
    again.arrays["image"][4, 0, 0] = 123  # what is read is what is kept
    assert (again[4][0][0, 0] == 123).all()
    with pytest.raises(InputError, match="other settings"):
        samples.Synthetic(scene, 6, 6, tmp_path / "cache")
    with pytest.raises(InputError, match="other settings"):
        samples.Synthetic(scene, 7, 5, tmp_path / "cache")
    (tmp_path / "cache" / "image.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="not a readable cache"):
        samples.Synthetic(scene, 6, 5, tmp_path / "cache")


def test_processes_share_a_cache(scene, tmp_path):
    """What workers make is in the files, and of several processes that make a cache at once one does."""
    folder = tmp_path / "new" / "cache"
    with ThreadPoolExecutor(4) as pool:  # as ranks do; what is made is moved there as a whole
        several = list(pool.map(lambda _: samples.Synthetic(scene, 6, 5, folder), range(4)))
    assert [path.name for path in folder.parent.iterdir()] == ["cache"]
    workers = [pickle.loads(pickle.dumps(several[0])) for _ in range(2)]  # as a DataLoader hands it to its processes
    made = [workers[i % 2][i] for i in range(6)]
    assert np.load(folder / "ready.npy").all() and several[3].arrays["ready"].all()
    for i in range(6):
        np.testing.assert_array_equal(several[3][i][2], made[i][2])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "image.npy").write_bytes(b"mine")
    with pytest.raises(InputError, match="not a readable cache"):
        samples.Synthetic(scene, 6, 5, tmp_path / "mine")
    assert (tmp_path / "mine" / "image.npy").read_bytes() == b"mine"


def test_folder_of_images(model, tmp_path):
    """Crops and landmarks of real files, of other sizes than their landmarks, with several faces and with none."""
    import cv2

    images, points = tmp_path / "images", tmp_path / "landmarks"
    images.mkdir()
    points.mkdir()
    rng = np.random.default_rng(0)
    marks = rng.uniform(30, 90, (68, 2)).astype(np.float32)
    picture = cv2.resize(rng.integers(0, 255, (12, 15, 3)).astype(np.uint8), (150, 120))
    for name in ("a", "b", "c"):
        cv2.imwrite(str(images / f"{name}.png"), picture)
    np.save(points / "a.npy", marks / 2)  # found on an image of half the size
    np.save(points / "b.npy", np.stack([marks, marks + 5]))
    (tmp_path / "landmarks.jsonl").write_text(json.dumps({"file": "a.png", "width": 75, "height": 60}) + "\n{broken")
    folder = samples.Folder(images, points, Layout(), VIEW)
    assert len(folder) == 3
    image, found, vectors, known, points, person, _ = folder[0]
    assert np.isnan(points).all() and person == -1
    assert image.shape == (48, 48, 3) and not known and (vectors == 0).all()
    np.testing.assert_allclose(found, folder[1][1], atol=1e-4)
    np.testing.assert_array_equal(image, folder[1][0])
    # A landmark lies on the same colour in the crop as in the image.
    smooth = cv2.GaussianBlur(picture, (0, 0), 2)[..., ::-1]
    here = np.array([image[int(y), int(x)] for x, y in found], float)
    there = np.array([smooth[int(y), int(x)] for x, y in marks], float)
    assert np.abs(here - there).mean() < 12
    np.testing.assert_array_equal(folder[2][1].shape, (68, 2))
    (images / "a.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"a\.png is not a readable image"):
        samples.Folder(images, tmp_path / "landmarks", Layout(), VIEW)[0]  # what was read once is kept
    with pytest.raises(InputError, match="landmarks for none of the 3 images"):
        samples.Folder(images, images, Layout(), VIEW)
