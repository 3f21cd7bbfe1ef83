"""Files of Gaussians: each kind round-trips within its own steps, and reads as splat-transform reads it."""

import gzip
import json
import struct
import zipfile

import numpy as np
import pytest
import splat_transform
import torch
from PIL import Image
from recon4d import InputError, splat
from recon4d.splat import Gaussians, scene_files
from recon4d.splat.harmonics import SH0

N = 600


def some(degree=0, spread=0.1):
    torch.manual_seed(degree)
    return Gaussians(
        means=torch.randn(N, 3) * spread,
        quats=torch.nn.functional.normalize(torch.randn(N, 4), dim=1),
        scales=torch.exp(torch.randn(N, 3) * 0.5 - 6),
        opacities=torch.rand(N) * 0.98 + 0.01,
        sh=(torch.randn(N, (degree + 1) ** 2, 3) * 0.3).clamp(-0.95, 0.95),
    )


def apart(a, b):
    """Largest differences by attribute; quaternions up to their sign."""
    p, q = (torch.nn.functional.normalize(g.quats, dim=1) for g in (a, b))
    return {
        "means": float((a.means - b.means).abs().max()),
        "quats": float(torch.minimum((p - q).abs().amax(1), (p + q).abs().amax(1)).max()),
        "log_scales": float((a.scales.log() - b.scales.log()).abs().max()),
        "opacities": float((a.opacities - b.opacities).abs().max()),
        "colour": float((a.sh[:, 0] - b.sh[:, 0]).abs().max()) * SH0,
        "rest": float((a.sh[:, 1:] - b.sh[:, 1:]).abs().max()) if a.sh.shape[1] > 1 else 0.0,
    }


# half a step of each kind's own quantisation, and what a quaternion's left-out component makes of it
STEPS = {
    "spz": {"means": 1e-6, "quats": 2e-3, "log_scales": 1 / 32 + 1e-4, "opacities": 2e-3, "colour": 4e-3, "rest": 4e-3},
    "splat": {"means": 0, "quats": 6e-3, "log_scales": 1e-5, "opacities": 2e-3, "colour": 2e-3, "rest": 0},
    "sog": {"means": 2e-5, "quats": 6e-3, "log_scales": 2e-2, "opacities": 2e-3, "colour": 4e-3, "rest": 0},
    "ply": {"means": 0, "quats": 1e-6, "log_scales": 1e-5, "opacities": 1e-6, "colour": 1e-6, "rest": 0},
}


@pytest.mark.parametrize("kind", STEPS)
def test_round_trips_within_its_own_steps(kind, tmp_path):
    for degree in (0, 1, 3) if kind in ("spz", "ply") else (0,):
        written = some(degree)
        scene_files.write(tmp_path / f"a.{kind}", written)
        for name, value in apart(written, scene_files.read(tmp_path / f"a.{kind}")).items():
            assert value <= STEPS[kind][name], (degree, name)
    first = (tmp_path / f"a.{kind}").read_bytes()
    scene_files.write(tmp_path / f"a.{kind}", written)
    assert (tmp_path / f"a.{kind}").read_bytes() == first


def test_streets_fit_into_spz(tmp_path):
    """Positions keep as many bits as their size leaves: a kilometre to a sixteenth of a millimetre."""
    wide = some(spread=300.0)
    scene_files.write(tmp_path / "a.spz", wide)
    assert apart(wide, scene_files.read(tmp_path / "a.spz"))["means"] < 1e-4 * 2


@pytest.mark.parametrize("kind", ["spz", "sog", "splat"])
def test_splat_transform_reads_what_is_written(kind, tmp_path):
    degree = 3 if kind == "spz" else 0
    scene_files.write(tmp_path / f"a.{kind}", some(degree))
    splat_transform.convert(tmp_path / f"a.{kind}", tmp_path / "theirs.ply")
    found = apart(scene_files.read(tmp_path / f"a.{kind}"), splat.read_ply(tmp_path / "theirs.ply"))
    if kind == "splat":  # a byte of a rotation is b / 255 to it and b / 256 to the format's first reader
        assert found.pop("quats") < 8e-3
    assert max(found.values()) < 1e-6


@pytest.mark.parametrize("name", ["a.compressed.ply", "a.spz", "v3.spz"])
def test_what_splat_transform_writes_is_read_as_it_reads_it(name, tmp_path):
    splat.write_ply(tmp_path / "a.ply", some(2))
    options = ["--spz-version", "3"] if name == "v3.spz" else []
    splat_transform.convert(tmp_path / "a.ply", tmp_path / name, *options)
    splat_transform.convert(tmp_path / name, tmp_path / "back.ply")
    ours, theirs = scene_files.read(tmp_path / name), splat.read_ply(tmp_path / "back.ply")
    assert max(apart(ours, theirs).values()) < 1e-6
    order = ours.means[:, 0].argsort()  # it puts Gaussians near each other together
    assert float((ours.means[order, 0] - some(2).means[:, 0].sort().values).abs().max()) < 1e-2


def test_sog_of_version_1_and_beside_its_pictures(tmp_path):
    """Bounds in place of tables, opacity as a logit; harmonics from a palette."""
    scene_files.write(tmp_path / "a.sog", some())
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        archive.extractall(tmp_path)
    assert max(apart(scene_files.read(tmp_path / "a.sog"), scene_files.read(tmp_path / "meta.json")).values()) == 0
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta.pop("version"), meta.pop("count")
    meta["means"]["shape"] = [N, 3]
    meta["scales"] |= {"mins": [-8, -7, -6], "maxs": [-8, -7, -6]}
    meta["sh0"] |= {"mins": [0.1, 0.2, 0.3, 0.0], "maxs": [0.1, 0.2, 0.3, 0.0]}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    found = scene_files.read(tmp_path / "meta.json")
    torch.testing.assert_close(found.scales[5].log(), torch.tensor([-8.0, -7, -6]))
    torch.testing.assert_close(found.sh[5, 0], torch.tensor([0.1, 0.2, 0.3]))
    assert torch.all(found.opacities == 0.5)
    torch.testing.assert_close(found.means, scene_files.read(tmp_path / "a.sog").means)


@pytest.mark.parametrize(("degree", "k"), [(1, 3), (2, 8), (3, 15)])
def test_harmonics_of_sog_are_read_as_splat_transform_reads_them(degree, k, tmp_path):
    scene_files.write(tmp_path / "flat.sog", some())
    rng = np.random.default_rng(0)
    rows, codebook = rng.integers(0, 256, (128, k, 3), np.uint8), np.sort(rng.normal(0, 0.2, 256))
    number = rng.integers(0, 128, N)
    labels = np.zeros((1 + N // 64, 64, 4), np.uint8)
    labels.reshape(-1, 4)[:N] = np.stack([number, 0 * number, 0 * number, 0 * number + 255], 1)
    palette = np.concatenate([rows, np.full((128, k, 1), 255, np.uint8)], 2).reshape(2, 64 * k, 4)
    with zipfile.ZipFile(tmp_path / "flat.sog") as flat, zipfile.ZipFile(tmp_path / "a.sog", "w") as archive:
        meta = json.loads(flat.read("meta.json"))
        names = ["shN_centroids.webp", "shN_labels.webp"]
        meta["shN"] = {"count": 128, "bands": degree, "codebook": codebook.tolist(), "files": names}
        for name, pixels in zip(names, (palette, labels)):
            with archive.open(name, "w") as file:
                Image.fromarray(pixels).save(file, "WEBP", lossless=True, exact=True)
        for name in flat.namelist():
            archive.writestr(name, json.dumps(meta) if name == "meta.json" else flat.read(name))
    found = scene_files.read(tmp_path / "a.sog")
    np.testing.assert_allclose(found.sh[:, 1:].numpy(), codebook[rows[number]], atol=1e-6)
    splat_transform.convert(tmp_path / "a.sog", tmp_path / "theirs.ply")
    assert max(apart(found, splat.read_ply(tmp_path / "theirs.ply")).values()) < 1e-6
    with pytest.raises(ValueError, match=r"harmonics beyond the first are not written as \.sog"):
        scene_files.write(tmp_path / "b.sog", found)


def spz(n=2, version=3, degree=0, bits=12, body=b""):
    return gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, version, n, degree, bits, 0, 0) + body)


BROKEN = {
    "cut.spz": (spz(body=bytes(20)), "ends before its Gaussians do"),
    "huge.spz": (spz(n=2**32 - 1, body=bytes(20)), "ends before its Gaussians do"),
    "new.spz": (spz(version=9, body=bytes(40)), "not a .spz file of version 1 to 4"),
    "deep.spz": (spz(degree=4, body=bytes(400)), "harmonics of degree 4"),
    "other.spz": (b"PK\3\4" + bytes(40), "not a .spz file"),
    "half.spz": (spz(body=bytes(60))[:-12], "half.spz"),
    "bomb.spz": (gzip.compress(bytes(300 << 20)), "bomb.spz"),
    "zstd.spz": (struct.pack("<IIIBBBBIIII", 0x5053474E, 4, 9, 0, 12, 0, 5, 32, 0, 0, 0) + bytes(80), "or is damaged"),
    "cut.splat": (bytes(33), "32 for each Gaussian"),
    "text.splat": (b"\xff" * 64, "holds no Gaussians"),
    "empty.splat": (b"", "32 for each Gaussian"),
    "no.sog": (b"no zip", "not a whole .sog file"),
    "meta.json": (b'{"version": 2, "count": 3}', "not a whole SOG scene"),
    "list.json": (b"[]", "not a whole SOG scene"),
    "away.json": (
        json.dumps({"version": 2, "count": 1, "means": {"files": ["../x.webp"] * 2, "mins": [0] * 3, "maxs": [1] * 3}}),
        "which is not beside it",
    ),
    "a.ksplat": (b"", "no suffix of Gaussians"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name, tmp_path):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        scene_files.read(tmp_path / name)


def test_many_gaussians_in_few_pixels(tmp_path):
    scene_files.write(tmp_path / "a.sog", some())
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        archive.extractall(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"count": 10**9}))
    with pytest.raises(InputError, match="pixels for 1000000000 Gaussians"):
        scene_files.read(tmp_path / "meta.json")
    with pytest.raises(ValueError, match=r"not written as \.sog"):
        scene_files.write(tmp_path / "b.sog", some(1))


def test_damaged_files_never_crash(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("spz", "sog", "splat"):
        scene_files.write(tmp_path / f"a.{kind}", some())
        whole = (tmp_path / f"a.{kind}").read_bytes()
        for _ in range(12):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 6):
                data[place] = rng.integers(256)
            (tmp_path / f"b.{kind}").write_bytes(data)
            try:
                scene_files.read(tmp_path / f"b.{kind}")
            except InputError as error:
                assert f"b.{kind}" in str(error)
