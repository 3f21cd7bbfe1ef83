"""3DGS PLY files: round trips, other people's readers and writers, and files that are wrong."""

import gsply
import numpy as np
import plyfile
import pytest
import torch
from gsplat.exporter import splat2ply_bytes
from recon4d import InputError, splat

DEGREES = (0, 1, 2, 3)


def some_gaussians(N=17, degree=3, seed=0, extra=None):
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    opacities = torch.rand(N, generator=random) * 0.9 + 0.05
    sh = normal(N, (degree + 1) ** 2, 3)
    return splat.Gaussians(normal(N, 3), normal(N, 4), torch.exp(normal(N, 3)), opacities, sh, extra or {})


def assert_same(a, b, tolerance=2e-6):
    for name in ("means", "quats", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tolerance, atol=0, msg=name)


@pytest.mark.parametrize("degree", DEGREES)
def test_round_trip(tmp_path, degree):
    extra = {"label": np.arange(17, dtype=np.int32), "weight": np.linspace(0, 1, 17)}
    gaussians = some_gaussians(degree=degree, extra={"label": extra["label"]})
    splat.write_ply(tmp_path / "a.ply", gaussians, {"weight": extra["weight"]})
    back = splat.read_ply(tmp_path / "a.ply")
    assert_same(back, gaussians)
    assert back.sh_degree == degree
    assert list(back.extra) == ["label", "weight"]
    for name, values in extra.items():
        assert back.extra[name].dtype == values.dtype
        np.testing.assert_array_equal(back.extra[name], values)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_layout_is_that_of_3dgs(tmp_path):
    gaussians = some_gaussians()
    splat.write_ply(tmp_path / "a.ply", gaussians)
    head = (tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode()
    names = [line.split()[-1] for line in head.splitlines() if line.startswith("property float ")]
    assert "format binary_little_endian 1.0" in head
    assert names == (
        ["x", "y", "z", "nx", "ny", "nz"]
        + [f"f_dc_{i}" for i in range(3)]
        + [f"f_rest_{i}" for i in range(45)]
        + ["opacity"]
        + [f"scale_{i}" for i in range(3)]
        + [f"rot_{i}" for i in range(4)]
    )
    data = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"].data
    np.testing.assert_allclose(data["scale_1"], gaussians.scales[:, 1].log().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data["opacity"], torch.logit(gaussians.opacities).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(data["rot_0"], gaussians.quats[:, 0].numpy())
    np.testing.assert_array_equal(data["f_rest_15"], gaussians.sh[:, 1, 1].numpy())  # second channel's first
    np.testing.assert_array_equal(data["nx"], 0)


@pytest.mark.parametrize("degree", DEGREES)
def test_gsply_reads_what_we_write(tmp_path, degree):
    gaussians = some_gaussians(degree=degree)
    splat.write_ply(tmp_path / "a.ply", gaussians)
    theirs = gsply.plyread(tmp_path / "a.ply")
    np.testing.assert_array_equal(theirs.means, gaussians.means.numpy())
    np.testing.assert_array_equal(theirs.quats, gaussians.quats.numpy())
    np.testing.assert_allclose(np.exp(theirs.scales), gaussians.scales.numpy(), rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-theirs.opacities)), gaussians.opacities.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(theirs.sh0, gaussians.sh[:, 0].numpy())
    if degree:
        np.testing.assert_array_equal(np.asarray(theirs.shN), gaussians.sh[:, 1:].numpy())


def test_we_read_what_gsplat_and_gsply_write(tmp_path):
    gaussians = some_gaussians(degree=2)
    logs, logits = gaussians.scales.log(), torch.logit(gaussians.opacities)
    dc, rest = gaussians.sh[:, 0], gaussians.sh[:, 1:]
    (tmp_path / "gsplat.ply").write_bytes(
        splat2ply_bytes(gaussians.means, logs, gaussians.quats, logits, dc, rest.transpose(1, 2).reshape(17, -1))
    )
    assert_same(splat.read_ply(tmp_path / "gsplat.ply"), gaussians, 1e-5)
    arrays = [t.contiguous().numpy() for t in (gaussians.means, logs, gaussians.quats, logits, dc, rest)]
    gsply.plywrite(tmp_path / "gsply.ply", *arrays)
    assert_same(splat.read_ply(tmp_path / "gsply.ply"), gaussians, 1e-5)


@pytest.mark.parametrize("text", [False, True])
def test_any_order_type_and_encoding(tmp_path, text):
    gaussians = some_gaussians(degree=1)
    splat.write_ply(tmp_path / "a.ply", gaussians, {"nx": np.ones(17, np.float32)})
    data = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"].data
    names = np.random.default_rng(0).permutation(data.dtype.names)
    shuffled = np.empty(17, [(str(name), "f8") for name in names])
    for name in names:
        shuffled[name] = data[name]
    element = plyfile.PlyElement.describe(shuffled, "vertex")
    plyfile.PlyData([element], text=text, byte_order=">").write(str(tmp_path / "b.ply"))
    back = splat.read_ply(tmp_path / "b.ply")
    assert_same(back, gaussians)
    np.testing.assert_array_equal(back.extra["nx"], 1)


def test_empty_and_extreme(tmp_path):
    splat.write_ply(tmp_path / "a.ply", some_gaussians(N=0))
    assert splat.read_ply(tmp_path / "a.ply").means.shape == (0, 3)
    gaussians = some_gaussians(N=2, degree=0)
    gaussians.opacities[:] = torch.tensor([0.0, 1.0])
    gaussians.scales[0] = 0.0
    splat.write_ply(tmp_path / "a.ply", gaussians)
    data = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"].data
    assert all(np.isfinite(data[name]).all() for name in data.dtype.names)
    back = splat.read_ply(tmp_path / "a.ply")
    torch.testing.assert_close(back.opacities, gaussians.opacities, rtol=0, atol=2e-7)
    torch.testing.assert_close(back.scales, gaussians.scales, rtol=1e-5, atol=2e-20)


def test_write_refuses_what_does_not_fit(tmp_path):
    gaussians = some_gaussians()
    with pytest.raises(ValueError, match="extra property opacity"):
        splat.write_ply(tmp_path / "a.ply", gaussians, {"opacity": np.zeros(17)})
    with pytest.raises(ValueError, match="extra property weight"):
        splat.write_ply(tmp_path / "a.ply", gaussians, {"weight": np.zeros(16)})
    gaussians.scales[3, 1] = -1
    with pytest.raises(ValueError, match="scales must not be negative"):
        splat.write_ply(tmp_path / "a.ply", gaussians)
    assert not list(tmp_path.iterdir())


def mutilate(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"property float opacity", b"property float opacita", "has no property opacity"),
        (b"property float f_rest_44", b"property float f_rest_45", "f_rest properties"),
        (b"element vertex", b"element vortex", "has no vertex element"),
        (b"element vertex 17", b"element vertex 18", "not a readable PLY"),
        (b"end_header", b"end_hedaer", "not a readable PLY"),
        (b"ply", b"plo", "not a readable PLY"),
    ],
)
def test_wrong_files_are_named(tmp_path, old, new, message):
    path = tmp_path / "wrong.ply"
    splat.write_ply(path, some_gaussians())
    mutilate(path, old, new)
    with pytest.raises(InputError, match=message) as caught:
        splat.read_ply(path)
    assert "wrong.ply" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_list_property(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.ply does not exist"):
        splat.read_ply(tmp_path / "nothing.ply")
    splat.write_ply(tmp_path / "a.ply", some_gaussians(N=2, degree=0))
    data = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"].data
    listed = np.empty(2, [*data.dtype.descr, ("near", "O")])
    for name in data.dtype.names:
        listed[name] = data[name]
    listed["near"] = [np.arange(2), np.arange(3)]
    element = plyfile.PlyElement.describe(listed, "vertex")
    plyfile.PlyData([element], text=True).write(str(tmp_path / "b.ply"))
    with pytest.raises(InputError, match="list property near"):
        splat.read_ply(tmp_path / "b.ply")
