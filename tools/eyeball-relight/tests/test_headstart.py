"""Training that begins with a mesh: the field follows it; other files are refused."""

import numpy as np
import pytest
import torch
from eyeball_relight import assets, config, headstart, training
from eyeball_relight.field import new_field
from recon4d import InputError
from recon4d.files import write_npz


def egg(scale=0.1):
    """A closed mesh that is no ball: vertices in metres, faces."""
    vertices, _, faces, _ = assets.sphere(torch.zeros(3), 1.0, 48)
    return vertices * torch.tensor([0.5, 0.8, 0.6]) * scale, faces


def test_the_field_follows_the_mesh(tmp_path, tiny, data, monkeypatch):
    monkeypatch.setattr(headstart, "STEPS", 100)
    settings = config.load(data / "config.yaml", "cpu-quick", [*tiny, "data.bound=0.1"])
    field = new_field(settings, 3)
    headstart.write(tmp_path / "head.npz", *egg())
    vertices, faces = headstart.read(tmp_path / "head.npz")
    error = headstart.learn(field, vertices, faces, 0)
    assert error < 0.01 and float(field.beta.detach()) <= headstart.BETA + 1e-6
    active = field.active(0)
    # at the axes' ends the distance is 0, inside it is negative, and it grows outwards by what one goes
    ends = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, -0.6]])
    with torch.no_grad():
        at, inside, outside = (field.face(s * ends, active)[0] for s in (1.0, 0.3, 1.2))
    assert at.abs().max() < 0.04 and inside.max() < -0.1
    torch.testing.assert_close(outside, 0.2 * ends.abs().amax(1), atol=0.05, rtol=0)
    assert new_field(settings, 3).face(ends, active)[0].abs().max() > 0.1  # a ball


def test_training_begins_with_it(tmp_path, tiny, data, monkeypatch):
    monkeypatch.setattr(headstart, "STEPS", 3)
    vertices, faces = egg(0.15)
    headstart.write(data / "egg.npz", vertices, faces)
    said = []
    short = [*tiny, "data.head=egg.npz", "train.mesh_render_iter=2", "train.iterations=2", "train.milestones=[1]"]
    try:
        training.start(data / "config.yaml", None, short, tmp_path / "run", log=said.append)
        assert any("begins with egg.npz" in text for text in said)
        (data / "egg.npz").unlink()
        with pytest.raises(InputError, match=r"data\.head names it"):
            training.start(data / "config.yaml", None, short, tmp_path / "other")
    finally:
        (data / "egg.npz").unlink(missing_ok=True)


def test_other_files_are_refused(tmp_path):
    vertices, faces = (x.numpy() for x in egg())
    path = tmp_path / "head.npz"
    broken = vertices.copy()
    broken[0, 0] = np.nan
    for arrays in (
        {"vertices": vertices},
        {"vertices": vertices[:, :2], "faces": faces},
        {"vertices": broken, "faces": faces},
        {"vertices": vertices, "faces": faces + len(vertices)},
        {"vertices": vertices, "faces": faces - 1},
        {"vertices": vertices, "faces": faces[:0]},
        {"vertices": vertices, "faces": faces.astype(float)},
    ):
        write_npz(path, **arrays)
        with pytest.raises(InputError, match="is not a mesh"):
            headstart.read(path)
    path.write_bytes(b"no npz")
    with pytest.raises(InputError):
        headstart.read(path)
