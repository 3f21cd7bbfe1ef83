"""The head as glTF: its meshes, morph targets, skeleton, texture and clip, read by others."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
import trimesh
from gaussian_avatar import avatars, gltf, head_texture, model_file, motions, runs
from gaussian_avatar.cli import main
from gaussian_avatar.config import load_config
from PIL import Image
from recon4d import InputError, splat
from recon4d.formats import arkit
from recon4d.formats.track import read as read_track
from recon4d.head import JOINTS
from recon4d.settings import write

TYPES = {5121: np.uint8, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir, head):
    """An avatar in the colours of its places: red from left to right, green from low to high."""
    folder = tmp_path_factory.mktemp("output") / "one/w"
    folder.mkdir(parents=True)
    read_track(data_dir / "one/track.npz").write(folder / "track.npz")
    write(folder / "config.yaml", load_config("cpu-quick"))
    avatar = avatars.new(head, 64, motions.n_inputs(head), 2, 8, None, 0.95, torch.Generator().manual_seed(0))
    places = (avatar.bary[..., None] * head.v_template[head.faces[avatar.face_id]]).sum(1)
    avatar = replace(avatar, sh0=(colour(places) - 0.5) / splat.SH0, seen=torch.ones(len(avatar), dtype=torch.bool))
    model_file.write_ply(folder / "model.ply", avatar)
    return runs.open_run(folder, "cpu")


def colour(places):
    return (0.5 + 3 * places).clamp(0.05, 0.95)


@pytest.fixture(scope="module")
def file(run):
    """The JSON of the command's file, and what an accessor of it holds."""
    with pytest.raises(SystemExit) as stop:
        main(["export", "--subject", "one", "--work-name", "w", "--output-dir", str(run.folder.parents[1]),
              "--format", "glb"])  # fmt: skip
    assert stop.value.code == 0
    content = (run.folder / "head.glb").read_bytes()
    length = int.from_bytes(content[12:16], "little")
    described, binary = json.loads(content[20 : 20 + length]), content[28 + length :]
    assert content[:4] == b"glTF" and int.from_bytes(content[8:12], "little") == len(content)

    def array(index):
        accessor = described["accessors"][index]
        view = described["bufferViews"][accessor["bufferView"]]
        width = WIDTHS[accessor["type"]]
        values = np.frombuffer(binary, TYPES[accessor["componentType"]], accessor["count"] * width, view["byteOffset"])
        return values.reshape(-1, width) if width > 1 else values

    return described, array


def test_mesh_and_targets(run, head, file):
    described, array = file
    (mesh,) = described["meshes"]
    (primitive,) = mesh["primitives"]
    names = mesh["extras"]["targetNames"]
    assert names == list(arkit.NAMES)  # all 52, in ARKit's order
    shape = torch.from_numpy(run.track.shape[None])
    rest, corners = head(shape=shape)[0].numpy(), head.faces.numpy()
    points = array(primitive["attributes"]["POSITION"])
    faces = array(primitive["indices"]).reshape(-1, 3)
    np.testing.assert_allclose(points[faces], rest[corners], atol=1e-6)
    uv = array(primitive["attributes"]["TEXCOORD_0"])[faces]
    np.testing.assert_allclose(uv, np.stack([head.vt[..., 0], 1 - head.vt[..., 1]], -1)[head.ft], atol=1e-6)
    moved = {name: array(target["POSITION"])[faces] for name, target in zip(names, primitive["targets"])}
    smile = head.expressiondirs[:, :, head.expression_names.index("mouthSmileLeft")].numpy()
    np.testing.assert_allclose(moved["mouthSmileLeft"], smile[corners], atol=1e-6)
    # Looking out with the left eye: its front goes to the person's left, +x; the right eye's looks in.
    for name in ("eyeLookOutLeft", "eyeLookInRight"):
        front = points[faces][..., 2] > np.quantile(points[faces][np.abs(moved[name]).sum(-1) > 1e-4][..., 2], 0.9)
        assert moved[name][front][:, 0].max() > 3e-3
    assert moved["eyeLookUpLeft"][..., 1].max() > 3e-3 and moved["eyeLookDownLeft"][..., 1].min() < -3e-3


def test_clip_poses_the_head_as_the_track(run, head, file):
    """Morphed and skinned as glTF 2.0 says (section 3.7.3), a frame of the animation is the avatar's."""
    described, array = file
    attributes = described["meshes"][0]["primitives"][0]["attributes"]
    targets = np.stack([array(t["POSITION"]) for t in described["meshes"][0]["primitives"][0]["targets"]])
    (animation,) = described["animations"]
    frame, nodes = 9, json.loads(json.dumps(described["nodes"]))
    n = len(run.track)
    weights = None
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        np.testing.assert_allclose(array(sampler["input"]), np.arange(n) / run.track.fps, atol=1e-6)
        value = array(sampler["output"]).reshape(n, -1)[frame]
        if channel["target"]["path"] == "weights":
            weights = value
        else:
            nodes[channel["target"]["node"]][channel["target"]["path"]] = value.tolist()
    skin = described["skins"][0]
    parents = {child: i for i, node in enumerate(nodes) for child in node.get("children", ())}

    def world(i):
        local = np.eye(4)
        local[:3, :3] = roma.unitquat_to_rotmat(torch.tensor(nodes[i].get("rotation", [0.0, 0, 0, 1])))
        local[:3, 3] = nodes[i]["translation"]
        return world(parents[i]) @ local if i in parents else local

    assert [nodes[i]["name"] for i in skin["joints"]] == list(JOINTS)
    inverse = array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
    matrices = np.stack([world(i) for i in skin["joints"]]) @ inverse
    points = array(attributes["POSITION"]) + np.einsum("t,tvc->vc", weights, targets)
    each = np.einsum("vk,vkij->vij", array(attributes["WEIGHTS_0"]), matrices[array(attributes["JOINTS_0"])])
    posed = (each[:, :3, :3] @ points[..., None])[..., 0] + each[:, :3, 3]
    places, _, _ = head_texture.layout(head)
    # Jaw and gaze are activations here, joints there.
    away = np.linalg.norm(posed - run.motion.vertices[frame].numpy()[places], axis=1)
    assert np.median(away) < 2e-4 and away.max() < 8e-3, (np.median(away), away.max())


def test_texture_is_what_the_avatar_shows(run, head, file):
    described, _ = file
    scene = trimesh.load(io.BytesIO((run.folder / "head.glb").read_bytes()), file_type="glb")
    (seen,) = scene.geometry.values()
    assert len(seen.faces) == len(head.faces)
    image = seen.visual.material.baseColorTexture
    assert isinstance(image, Image.Image) and image.size == (1024, 1024)
    front = head.v_template[:, 2] > 0.05
    near = front[head.faces].all(1)
    uv = head.vt[head.ft[near]].mean(1)
    pixels = np.asarray(image)[((1 - uv[:, 1]) * 1024).long(), (uv[:, 0] * 1024).long()] / 255
    wanted = colour(head.v_template[head.faces[near]].mean(1)).numpy()
    assert np.median(np.abs(pixels - wanted)) < 0.03
    assert described["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}


def test_heads_without_names_or_layout(run, head):
    plain = replace(run, head=replace(head, expression_names=()))
    names, content = gltf.glb_of(plain, 64)
    assert names[:2] == ["expression0", "expression1"] and names[-2:] == ["eyeBlinkLeft", "eyeBlinkRight"]
    scene = trimesh.load(io.BytesIO(content), file_type="glb")
    assert len(next(iter(scene.geometry.values())).faces) == len(head.faces)
    with pytest.raises(InputError, match="has no texture coordinates"):
        gltf.glb_of(replace(run, head=replace(head, vt=None, ft=None)), 64)
    with pytest.raises(InputError, match="exists"):
        gltf.export_head(run)
