"""Cameras of COLMAP, Metashape, nerfstudio, instant-ngp and NeRF: one capture, written in each way, reads the same."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from recon4d import InputError, cameras
from recon4d.files import read_npz
from recon4d.formats import colmap, metashape, nerf, shots
from recon4d.lenses import Lens
from scipy.spatial.transform import Rotation

N, W, H = 5, 64, 48
K = np.array([[90.0, 0, 31], [0, 92.0, 25], [0, 0, 1]])
NAMES = [f"shot {i}.jpg" for i in range(N)]


@pytest.fixture
def poses():
    torch.manual_seed(0)
    out = np.tile(np.eye(4), (N, 1, 1))
    out[:, :3, :3] = roma.random_rotmat(N).double().numpy()
    u, _, v = np.linalg.svd(out[:, :3, :3])
    out[:, :3, :3] = u @ v
    out[:, :3, 3] = np.random.default_rng(0).normal(size=(N, 3))
    return out


def by_size(name):
    return W, H


def colmap_text(folder, poses, camera=None, points=True, names=NAMES):
    folder.mkdir()
    camera = camera or f"PINHOLE {W} {H} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}"
    (folder / "cameras.txt").write_text("".join(f"{i + 3} {line}\n" for i, line in enumerate(camera.split("\n"))))
    lines = ["# images"]
    for i, (name, p) in enumerate(zip(names, poses)):
        x, y, z, w = Rotation.from_matrix(p[:3, :3]).as_quat().tolist()
        numbers = " ".join(map(repr, [w, x, y, z, *p[:3, 3].tolist()]))
        lines.append(f"{i + 1} {numbers} 3 {name}")
        lines += ([""] if i % 2 else ["1.5 2.5 -1 3.5 4.5 7 5.5 6.5 8 1 2 3"]) if points else []
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    return folder


def colmap_binary(folder, poses):
    folder.mkdir()
    camera = struct.pack("<QiiQQ4d", 1, 3, 1, W, H, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    (folder / "cameras.bin").write_bytes(camera)
    data = struct.pack("<Q", N)
    for i, p in enumerate(poses):
        x, y, z, w = Rotation.from_matrix(p[:3, :3]).as_quat()
        data += struct.pack("<i7di", i + 1, w, x, y, z, *p[:3, 3], 3) + NAMES[i].encode() + b"\0"
        data += struct.pack("<Q", i) + struct.pack("<ddq", 1.0, 2.0, -1) * i
    (folder / "images.bin").write_bytes(data)
    return folder


def calibration(focal=92.0, kind="frame", which="adjusted", terms=""):
    return (
        f'<calibration type="{kind}" class="{which}"><resolution width="{W}" height="{H}"/><f>{focal}</f>'
        f"<cx>{K[0, 2] - W / 2}</cx><cy>{K[1, 2] - H / 2}</cy><b1>{K[0, 0] - K[1, 1]}</b1>{terms}</calibration>"
    )


def camera_tag(i, pose, attributes=""):
    numbers = " ".join(map(repr, np.linalg.inv(pose).ravel().tolist()))
    return f'<camera id="{i}" sensor_id="0" label="shot {i}" {attributes}><transform>{numbers}</transform></camera>'


def metashape_xml(path, poses, calibrations=None, tags=None, sensors=None):
    sensors = sensors or f'<sensor id="0" type="frame">{calibrations or calibration()}</sensor>'
    tags = tags or "".join(camera_tag(i, p) for i, p in enumerate(poses))
    path.write_text(
        f'<document version="2.0.0"><chunk><sensors>{sensors}</sensors><cameras>{tags}</cameras></chunk></document>'
    )
    return path


INTRINSICS = {"w": W, "h": H, "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}


def transforms_json(path, poses, top=None, frame=None):
    matrices = cameras.to_opengl(torch.tensor(poses)).tolist()
    frames = [{"file_path": f"images/{n}", "transform_matrix": m} | (frame or {}) for n, m in zip(NAMES, matrices)]
    path.write_text(json.dumps((INTRINSICS if top is None else top) | {"frames": frames}))
    return path


WAYS = {
    "COLMAP text": lambda t, p: colmap_text(t / "text", p),
    "COLMAP text without lines of points": lambda t, p: colmap_text(t / "text", p, points=False),
    "COLMAP binary": lambda t, p: colmap_binary(t / "binary", p),
    "Metashape": lambda t, p: metashape_xml(t / "doc.xml", p),
    "Metashape, initial before adjusted": lambda t, p: metashape_xml(
        t / "doc.xml", p, calibration(140.0, which="initial") + calibration()
    ),
    "Metashape, initial after adjusted": lambda t, p: metashape_xml(
        t / "doc.xml", p, calibration() + calibration(140.0, which="initial")
    ),
    "nerfstudio": lambda t, p: transforms_json(t / "transforms.json", p),
    "nerfstudio, intrinsics by frame": lambda t, p: transforms_json(
        t / "transforms.json", p, {"camera_model": "OPENCV"}, INTRINSICS
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_reads_the_same(way, poses, tmp_path):
    found = shots.read(WAYS[way](tmp_path, poses), by_size).shots
    assert len(found) == N
    assert max(np.abs(shot.world_to_camera - pose).max() for shot, pose in zip(found, poses)) < 1e-12
    for shot, name in zip(found, NAMES):
        assert name.startswith(shot.file.removeprefix("images/"))  # Metashape's labels may lack the suffix
        np.testing.assert_allclose(shot.camera.K, K, atol=1e-12)
        assert (shot.camera.width, shot.camera.height) == (W, H) and shot.camera.lens.straight


def test_colmap_names_with_blanks_and_numbers(poses, tmp_path):
    names = ["1 2 3.jpg", "a/b c.png", "7.jpg", "x y z w.jpg", "0.5.jpg"]
    for points in (True, False):
        found = colmap.read(colmap_text(tmp_path / str(points), poses, points=points, names=names))
        assert [shot.file for shot in found] == names


LENSES = {
    "SIMPLE_RADIAL": ("90 31 25 .1", Lens((0.1, 0, 0, 0))),
    "OPENCV": ("90 92 31 25 .1 .2 .3 .4", Lens((0.1, 0.2, 0, 0), (), (0.3, 0.4))),
    "FULL_OPENCV": ("90 92 31 25 .1 .2 .3 .4 .5 .6 .7 .8", Lens((0.1, 0.2, 0.5, 0), (0.6, 0.7, 0.8), (0.3, 0.4))),
    "OPENCV_FISHEYE": ("90 92 31 25 .1 .2 .3 .4", Lens((0.1, 0.2, 0.3, 0.4), fisheye=True)),
    "RADIAL_FISHEYE": ("90 31 25 .1 .2", Lens((0.1, 0.2, 0, 0), fisheye=True)),
    "THIN_PRISM_FISHEYE": (
        "90 92 31 25 .1 .2 .3 .4 .5 .6 .7 .8",
        Lens((0.1, 0.2, 0.5, 0.6), (), (0.3, 0.4), (0.7, 0, 0.8, 0), True),
    ),
}


@pytest.mark.parametrize("name", LENSES)
def test_lenses_of_colmap(name, poses, tmp_path):
    values, lens = LENSES[name]
    found = colmap.read(colmap_text(tmp_path / "m", poses, f"{name} {W} {H} {values}"))
    assert found[0].camera.lens == lens


def test_metashape_lens_and_fisheye(poses, tmp_path):
    """Its p1 and p2 are OpenCV's p2 and p1; k4 is a fourth radial term; b2 is skew."""
    terms = "<k1>0.1</k1><k3>0.3</k3><k4>0.4</k4><p1>0.01</p1><p2>0.02</p2><b2>1.5</b2>"
    found = metashape.read(metashape_xml(tmp_path / "a.xml", poses, calibration(terms=terms)), print)
    assert found[0].camera.lens == Lens((0.1, 0, 0.3, 0.4), (), (0.02, 0.01)) and found[0].camera.K[0, 1] == 1.5
    found = metashape.read(metashape_xml(tmp_path / "b.xml", poses, calibration(kind="fisheye")), print)
    assert found[0].camera.lens.fisheye


def test_metashape_components_groups_disabled_and_sensors(poses, tmp_path):
    sensors = f'<sensor id="0">{calibration()}</sensor><sensor id="1">{calibration(50.0)}</sensor>'
    tags = (
        camera_tag(0, poses[0], 'component_id="0"')
        + '<group id="1" label="left">'
        + camera_tag(1, poses[1], 'component_id="0"')
        + "</group>"
        + camera_tag(2, poses[2], 'component_id="0"').replace('sensor_id="0"', 'sensor_id="1"')
        + camera_tag(3, poses[3], 'component_id="0" enabled="false"')
        + camera_tag(4, poses[4], 'component_id="5"')
        + '<camera id="9" sensor_id="0" label="never aligned"/>'
    )
    found = shots.read(metashape_xml(tmp_path / "a.xml", poses, tags=tags, sensors=sensors), by_size)
    assert [shot.file for shot in found.shots] == ["shot 0", "shot 1", "shot 2"]
    assert [shot.camera.K[1, 1] for shot in found.shots] == [92, 92, 50]
    said = " ".join(found.notes)
    assert "1 of 6 cameras are disabled" in said and "1 of 6 cameras are not aligned" in said
    assert "1 cameras of 1 smaller components are left out" in said


NERF = {
    "angle alone": ({"camera_angle_x": 2 * np.arctan(0.5)}, {}, [64, 64, 32, 24], Lens((0, 0, 0))),
    "no fl_y": ({"w": W, "h": H, "fl_x": 70}, {}, [70, 70, 32, 24], Lens((0, 0, 0))),
    "degrees": ({"w": W, "h": H, "x_fov": 90}, {}, [32, 32, 32, 24], Lens((0, 0, 0))),
    "sizes as floats": ({"w": 64.0, "h": 48.0, "fl_x": 70, "fl_y": 71}, {}, [70, 71, 32, 24], Lens((0, 0, 0))),
    "a frame's own": (INTRINSICS, {"fl_x": 80, "fl_y": 81}, [80, 81, 31, 25], Lens((0, 0, 0))),
    "k4 to k6": (
        INTRINSICS | {"k1": 0.1, "k4": 0.4, "k5": 0.5, "k6": 0.6, "p1": 0.01},
        {},
        [90, 92, 31, 25],
        Lens((0.1, 0, 0), (0.4, 0.5, 0.6), (0.01, 0)),
    ),
    "fisheye of nerfstudio": (
        INTRINSICS | {"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k4": 0.4},
        {},
        [90, 92, 31, 25],
        Lens((0.1, 0, 0, 0.4), fisheye=True),
    ),
    "fisheye of a frame": (
        INTRINSICS,
        {"camera_model": "OPENCV_FISHEYE", "k1": 0.1},
        [90, 92, 31, 25],
        Lens((0.1, 0, 0, 0), fisheye=True),
    ),
    "fisheye of instant-ngp": (
        INTRINSICS | {"is_fisheye": True, "k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4},
        {},
        [90, 92, 31, 25],
        Lens((0.1, 0.2, 0.3, 0.4), fisheye=True),
    ),
}


@pytest.mark.parametrize("name", NERF)
def test_keys_and_defaults_of_transforms_json(name, poses, tmp_path):
    top, frame, (fx, fy, cx, cy), lens = NERF[name]
    found = nerf.read(transforms_json(tmp_path / "t.json", poses, top, frame), by_size)
    camera = found[0].camera
    np.testing.assert_allclose(camera.K, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], atol=1e-9)
    assert camera.lens == lens and (camera.width, camera.height) == (W, H)


REFUSED = {
    "COLMAP's FOV": lambda t, p: (colmap_text(t / "m", p, f"FOV {W} {H} 1 1 1 1 1"), "camera model FOV is not supp"),
    "COLMAP's other camera": lambda t, p: (
        colmap_text(t / "m", p, f"PINHOLE {W} {H} 1 1 1 1\nPINHOLE {W} {H} 1 1 1"),
        "does not hold a whole COLMAP model",
    ),
    "cut COLMAP": lambda t, p: (cut(colmap_binary(t / "m", p)), "does not hold a whole COLMAP model"),
    "an empty folder": lambda t, p: (t, r"neither images\.bin nor images\.txt"),
    "spherical": lambda t, p: (metashape_xml(t / "a.xml", p, calibration(kind="spherical")), "is spherical; only"),
    "PhotoScan's fx": lambda t, p: (metashape_xml(t / "a.xml", p, calibration(terms="<fx>3</fx>")), "has fx; cal"),
    "no calibration": lambda t, p: (metashape_xml(t / "a.xml", p, "<x/>"), "has no calibration"),
    "half an XML": lambda t, p: (written(t / "a.xml", "<document><chunk>"), "is not a whole XML file"),
    "panoramas": lambda t, p: (
        transforms_json(t / "t.json", p, INTRINSICS | {"camera_model": "EQUIRECTANGULAR"}),
        "EQ",
    ),
    "f-theta": lambda t, p: (transforms_json(t / "t.json", p, INTRINSICS | {"ftheta_p0": 1}), "ftheta_p0 of .* is not"),
    "rolling shutter": lambda t, p: (
        transforms_json(t / "t.json", p, INTRINSICS | {"rolling_shutter": [0, 0, 1]}),
        "has a rolling shutter",
    ),
    "no focal length": lambda t, p: (transforms_json(t / "t.json", p, {"w": W, "h": H}), "the key 'fl_x' is missing"),
    "no pictures": lambda t, p: (written(t / "d.txt", ""), "is neither Metashape's"),
}


def written(path, text):
    path.write_text(text)
    return path


def cut(folder):
    (folder / "images.bin").write_bytes((folder / "images.bin").read_bytes()[:200])
    return folder


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(kind, poses, tmp_path):
    source, message = REFUSED[kind](tmp_path, poses)
    with pytest.raises(InputError, match=message):
        shots.read(source, by_size)


@pytest.mark.parametrize("kind", ["txt", "bin"])
def test_a_rig_that_colmap_wrote(kind, tmp_path):
    """Poses and projections are those of pycolmap; see colmap_rig.md."""
    made = read_npz(Path(__file__).with_name("colmap_rig.npz"))
    for name in ("cameras", "images", "rigs", "frames"):
        (tmp_path / f"{name}.{kind}").write_bytes(made[f"{name}_{kind}"].tobytes())
    found = {shot.file: shot for shot in colmap.read(tmp_path)}
    assert sorted(found) == made["names"].tolist()
    for name, pose in zip(made["names"], made["poses"]):
        np.testing.assert_allclose(found[name].world_to_camera[:3], pose, atol=1e-14)
        pixels = found[name].camera.project(made["points"])
        np.testing.assert_allclose(pixels, made["pixels"][int(name[3]) - 1], atol=1e-10)


@pytest.mark.parametrize("way", ["COLMAP text", "COLMAP binary", "Metashape", "nerfstudio"])
def test_damaged_sources_never_crash(way, poses, tmp_path):
    source = WAYS[way](tmp_path, poses)
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    rng = np.random.default_rng(0)
    for i in range(60):
        path = files[i % len(files)]
        whole = path.read_bytes()
        data = bytearray(whole[: len(whole) if i % 3 else int(rng.integers(len(whole)))])
        for place in rng.integers(0, max(len(data), 1), 4 if data else 0):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            shots.read(source, by_size)
        except InputError as error:
            assert str(tmp_path) in str(error)
        path.write_bytes(whole)
