"""Teeth: what a picture shows of the inside of the mouth is kept, drawn and written; nothing else is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flame_encoder import meshes
from flame_encoder.encoder import encodings, mouth, rendering, vector
from flame_encoder.encoder.crop import CropView, focal_of
from flame_encoder.encoder.encodings import Encoding
from flame_encoder.encoder.vector import Layout
from recon4d import head
from recon4d.files import InputError

SIZE = 256
VIEW = CropView(fov=14.0, size=SIZE)


@pytest.fixture(scope="module")
def model():
    return rendering.reduced(head.load())


def encoding(model, jaw):
    """One image of the whole crop: the mean head from the front with its jaw turned down."""
    layout = Layout()
    parts = {name: torch.zeros(1, n) for name, n in layout.lengths.items()}
    parts["global_rot"][:] = torch.tensor(vector.IDENTITY_6D)
    parts["jaw"][:, 0] = jaw
    vectors, crops = layout.join(parts).numpy(), np.array([[0, 0, SIZE]], np.float32)
    known = np.ones(1, bool)
    focals = focal_of(VIEW, torch.from_numpy(crops)).numpy()
    sizes = np.array([[SIZE, SIZE]])
    names = np.array(["a.png"])
    return Encoding(model.name, names, sizes, vectors, crops, layout, VIEW, known, known, vectors, focals)


def drawn(model, found, colours=None):
    textures = mouth.painted(model, vector.albedo(model, found.parts())[0], colours)[None]
    picture, triangles = rendering.render(model, found.parts(), VIEW, textures)
    return (picture[0].permute(1, 2, 0) * 255).round().byte().numpy(), triangles[0].numpy()


def test_teeth_are_kept_where_they_are_seen(model):
    found = encoding(model, 0.25)
    M = len(mouth.inside(model).corners)
    white = np.full((M, 4), 255, np.uint8)
    picture, triangles = drawn(model, found, white)
    within = model.regions["mouth_interior"][model.faces].all(1).numpy()[triangles] & (triangles >= 0)
    assert within.sum() > 100
    kept = mouth.seen(model, found, 0, picture)
    shown = kept[:, 3] == 255
    assert 0.02 < shown.mean() < 0.9 and set(np.unique(kept[:, 3])) == {0, 255} and not kept[~shown].any()
    again, _ = drawn(model, found, kept)
    plain, _ = drawn(model, found)
    off, before = (np.abs(one.astype(float) - picture)[within].mean() for one in (again, plain))
    assert off < 0.3 * before and before > 30
    # The skin stays as it was, but for what the texture's filter takes from the lips' inner edge.
    beside = np.abs(again.astype(float) - plain)[~within]
    assert beside.mean() < 0.1


def test_a_shut_mouth_shows_nothing(model):
    found = encoding(model, 0.0)
    picture, _ = drawn(model, found)
    assert (mouth.seen(model, found, 0, picture)[:, 3] > 0).mean() < 0.02


def test_heads_without_a_mouth(model):
    bare = replace(model, regions={"face": model.regions["face"]})
    found = encoding(model, 0.25)
    assert mouth.seen(bare, found, 0, np.zeros((SIZE, SIZE, 3), np.uint8)) is None
    texture = torch.rand(8, 8, 3)
    assert mouth.painted(bare, texture, np.zeros((3, 4), np.uint8)) is texture
    with pytest.raises(InputError, match="encode the images again"):
        mouth.painted(model, texture, np.zeros((3, 4), np.uint8))


def test_in_the_file_and_on_the_mesh(model, tmp_path):
    M = len(mouth.inside(model).corners)
    colours = np.zeros((1, M, 4), np.uint8)
    colours[:, ::2] = 255
    found = replace(encoding(model, 0.25), mouths=colours)
    found.write(tmp_path / "a.npz")
    assert (encodings.read(tmp_path / "a.npz").mouths == colours).all()
    assert (found.some([0]).mouths == colours).all()
    whole = head.load()
    _, painted = meshes.vertices_of(tmp_path / "a.npz", whole, 0, neutral=False)
    encoding(model, 0.25).write(tmp_path / "b.npz")
    _, plain = meshes.vertices_of(tmp_path / "b.npz", whole, 0, neutral=False)
    changed = (painted != plain).any(2)
    assert 0 < changed.sum() <= M and (painted[changed] == 1).all()
    for broken in (colours[:, :, :3], colours.astype(float), colours[0], np.zeros((2, M, 4), np.uint8)):
        replace(found, mouths=broken).write(tmp_path / "c.npz")
        with pytest.raises(InputError, match="mouths do not fit"):
            encodings.read(tmp_path / "c.npz")
