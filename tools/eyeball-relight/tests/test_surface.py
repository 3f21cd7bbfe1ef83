"""Extraction and mesh repair on shapes that are known, and glTF read back by trimesh."""

import base64
import json
import re

import numpy as np
import pytest
import torch
import trimesh
from eyeball_relight import assets, brdf, config, gltf, objfile, preview, surface
from eyeball_relight.field import Field
from recon4d import InputError


class Ball:
    """What `surface` asks of a field, with a face that is a ball of radius 0.5 bounds around (0.1, 0, -0.2)."""

    device = torch.device("cpu")

    def __init__(self, radius=0.5):
        self.radius, self.config = radius, config.Config(data=config.Data(bound=2.0))
        self.centre = torch.tensor([0.1, 0.0, -0.2])

    def face(self, x, active):
        return (x - self.centre).norm(dim=1) - self.radius, None

    def face_gradient(self, x, active):
        return None, None, (x - self.centre) * 3


def test_extracted_ball():
    vertices, faces = surface.extract(Ball(), [], 64)
    away = vertices / 2 - Ball().centre
    assert (away.norm(dim=1) - 0.5).abs().max() < 1e-3
    ball = trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)
    assert ball.is_watertight and abs(ball.volume - 4 / 3 * np.pi) < 0.02  # positive: faces point outward
    normals = surface.normals_of(Ball(), vertices, [])
    assert (normals - torch.nn.functional.normalize(away, dim=1)).abs().max() < 1e-5
    fewer = trimesh.Trimesh(*(x.numpy() for x in surface.simplify(vertices, faces, 500)), process=False)
    assert len(fewer.faces) <= 520 and abs(fewer.volume - ball.volume) < 0.1


def test_nothing_to_extract():
    with pytest.raises(InputError, match="no surface inside the bounds"):
        surface.extract(Ball(-0.5), [], 32)


def test_a_new_field_is_a_ball():
    """The sphere initialisation, and the analytic normals of the whole field against finite differences."""
    settings = config.Config(model=config.Model(levels=4, finest=64, log2_entries=10))
    torch.manual_seed(0)
    field = Field(settings, 3)
    vertices, _ = surface.extract(field, field.active(0), 32)
    radius = vertices.norm(dim=1)
    assert abs(float(radius.mean()) - settings.model.init_radius) < 0.12 and radius.std() < 0.1
    with torch.no_grad():
        field.distance_table.normal_(0, 0.05)
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    _, _, gradient = field.face_gradient(x, field.active(0))
    double = field.double()
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = 1e-5
        with torch.no_grad():
            up, down = (double.face(x.double() + s * step, field.active(0))[0] for s in (1, -1))
        slope = (up - down) / 2e-5
        assert (slope - gradient[:, axis]).abs().median() < 1e-3


def test_holes_are_closed_and_the_largest_part_is_kept():
    ball = trimesh.creation.icosphere(3)
    small = trimesh.creation.icosphere(1)
    small.apply_translation([5, 0, 0])
    faces = np.concatenate([np.delete(ball.faces, [3, 200, 201, 202, 700], 0), small.faces + len(ball.vertices)])
    vertices = torch.from_numpy(np.concatenate([ball.vertices, small.vertices]).astype(np.float32))
    kept = surface.largest_component(torch.from_numpy(faces))
    assert len(kept) == len(ball.faces) - 5
    vertices, kept = surface.compact(vertices, kept)
    assert len(vertices) == len(ball.vertices)
    loops = surface.boundary_loops(kept)
    assert all(len(loop) == len(set(loop)) >= 3 for loop in loops) and len(loops) >= 3
    closed = trimesh.Trimesh(*(x.numpy() for x in surface.fill_holes(vertices, kept, 20)), process=False)
    assert closed.is_watertight and closed.is_winding_consistent and closed.volume > 4
    none, same = surface.fill_holes(vertices, kept, 2)
    assert len(same) == len(kept) and len(none) == len(vertices)


def test_rings_around_triangles():
    grid = trimesh.creation.icosphere(3)
    faces = torch.from_numpy(np.asarray(grid.faces))
    chosen = torch.zeros(len(faces), dtype=torch.bool)
    chosen[10] = True
    assert surface.grown(chosen, faces, 1).sum() in (12, 13) and surface.grown(chosen, faces, 0).sum() == 1


@pytest.fixture
def asset():
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for part, centre, radius in (("face", 0.0, 1.0), ("left", 1.0, 0.2), ("right", -1.0, 0.2)):
        vertices, normals, faces, vt = assets.sphere(torch.tensor([centre, 0.0, 0.0]), radius, 24)
        maps = [torch.rand(16, 16, c, generator=generator) for c in (3, 1, 1)]
        parts[part] = assets.Surface(vertices, normals, faces, vt, faces, *maps)
    return parts


def test_gltf_is_what_trimesh_reads(asset, tmp_path):
    gltf.write(tmp_path / "a.glb", asset)
    scene = trimesh.load(tmp_path / "a.glb")
    assert set(scene.geometry) == {"face", "left", "right"}
    for part, item in asset.items():
        ours, theirs = item, scene.geometry[part]
        assert len(theirs.faces) == len(ours.faces)
        corners = ours.vertices[ours.faces].numpy()
        np.testing.assert_allclose(theirs.triangles, corners, atol=1e-6)
        np.testing.assert_allclose(theirs.vertex_normals[theirs.faces], ours.normals[ours.faces].numpy(), atol=1e-5)
        np.testing.assert_allclose(theirs.visual.uv[theirs.faces], ours.vt[ours.ft].numpy(), atol=1e-6)
        material = theirs.visual.material
        assert material.metallicFactor == 0
        rough = np.asarray(material.metallicRoughnessTexture)[..., 1] / 255
        np.testing.assert_allclose(rough, ours.roughness[..., 0].numpy(), atol=3e-3)
        base = np.asarray(material.baseColorTexture)[..., :3] / 255
        linear = np.where(base <= 0.04045, base / 12.92, ((base + 0.055) / 1.055) ** 2.4)
        np.testing.assert_allclose(linear, ours.diffuse.numpy(), atol=6e-3)
    document = gltf.read_document(tmp_path / "a.glb")
    sheen = document["materials"][0]["extensions"]["KHR_materials_specular"]
    assert sheen["specularColorFactor"] == [2.0] * 3 and document["extensionsUsed"] == ["KHR_materials_specular"]


def test_a_cut_off_gltf_is_refused(asset, tmp_path):
    gltf.write(tmp_path / "a.glb", asset)
    (tmp_path / "b.glb").write_bytes((tmp_path / "a.glb").read_bytes()[:-9])
    for name in ("b.glb", "none.glb"):
        with pytest.raises(InputError, match="is not a whole GLB"):
            preview.write(tmp_path / "p.html", tmp_path / name)


def test_the_preview_holds_the_gltf_and_needs_no_network(asset, tmp_path):
    gltf.write(tmp_path / "a.glb", asset)
    preview.write(tmp_path / "p.html", tmp_path / "a.glb")
    page = (tmp_path / "p.html").read_text()
    (inside,) = re.findall(r'const GLB = "([^"]*)"', page)
    assert base64.b64decode(inside) == (tmp_path / "a.glb").read_bytes()
    assert not re.search(r"https?://|<link|src=", page.replace(inside, ""))
    # every name the page asks of the JSON is there
    document = gltf.read_document(tmp_path / "a.glb")
    for key in ("bufferViews", "accessors", "meshes", "materials", "images", "textures"):
        assert f"json.{key}" in page and document[key]
    assert {"POSITION", "NORMAL", "TEXCOORD_0"} == set(document["meshes"][0]["primitives"][0]["attributes"])
    assert str(brdf.GAMMA) in page and json.dumps(brdf.GAMMA) == "2.2"


def test_obj_round_trip_and_broken_files(asset, tmp_path):
    objfile.write(tmp_path / "a.obj", asset["left"], "diffuse.png")
    found = objfile.read(tmp_path / "a.obj")
    for name in ("vertices", "normals", "vt", "faces", "ft"):
        torch.testing.assert_close(found[name], getattr(asset["left"], name), atol=1e-5, rtol=0)
    theirs = trimesh.load(tmp_path / "a.obj", process=False)
    assert theirs.triangles.shape == (len(asset["left"].faces), 3, 3) and (tmp_path / "a.mtl").is_file()
    text = (tmp_path / "a.obj").read_text()
    for broken in (text[: len(text) // 3], text + "f 1/1 2/2 3/3 4/4\n", text + "f 1/1 2/2 999999/1\n", text + "v 1\n"):
        (tmp_path / "b.obj").write_text(broken)
        with pytest.raises(InputError, match="is not a whole OBJ"):
            objfile.read(tmp_path / "b.obj")


def test_unwrapped_triangles_keep_their_corners():
    ball = trimesh.creation.icosphere(2)
    vertices = torch.from_numpy(ball.vertices.astype(np.float32))
    faces = torch.from_numpy(np.asarray(ball.faces))
    vt, ft = surface.unwrap(vertices, faces)
    assert ft.shape == faces.shape and vt.min() >= 0 and vt.max() <= 1
    # one texture coordinate belongs to one vertex
    owner = {}
    for t, v in zip(ft.flatten().tolist(), faces.flatten().tolist()):
        assert owner.setdefault(t, v) == v
