"""FLAME's files and RGBAvatar's: other people's formats through the whole way to a picture."""

from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from flame_files import flame_arrays, write_flame_pickle
from gaussian_avatar import avatars, model_file, motions
from plyfile import PlyData, PlyElement
from recon4d.formats.track import Track

K, HIDDEN, INPUTS = 20, 128, 129


@pytest.fixture(scope="module")
def flame(tmp_path_factory):
    """A FLAME pickle with a UV layout of its own beside it, and nothing skinned to the root."""
    folder = tmp_path_factory.mktemp("flame")
    arrays = flame_arrays(seed=3)
    arrays["weights"][:, 0] = 0
    arrays["weights"] /= arrays["weights"].sum(1, keepdims=True)
    write_flame_pickle(folder / "generic_model.pkl", arrays)
    rng = np.random.default_rng(0)
    vt = rng.random((90, 2)).astype(np.float32)
    ft = np.stack([rng.permutation(90)[:3] for _ in range(200)])
    np.savez(folder / "flame_uv.npz", vt=vt, ft=ft)
    return folder / "generic_model.pkl", vt, ft


def some_track(n=4):
    rng = np.random.default_rng(1)

    def turns(*shape, size):
        return roma.rotvec_to_rotmat(torch.from_numpy(size * rng.standard_normal((*shape, 3)))).numpy().astype("f4")

    return Track(
        head_model="generic_model",
        image_size=np.array([96, 96]),
        fps=25.0,
        K=np.array([[180, 0, 48], [0, 180, 48], [0, 0, 1]], np.float32),
        names=np.array([f"{i:05d}.png" for i in range(n)]),
        valid=np.ones(n, bool),
        shape=rng.standard_normal(300).astype("f4"),
        expression=rng.standard_normal((n, 100)).astype("f4"),
        R=(motions.AXES @ turns(n, size=0.4)).astype("f4"),
        t=(np.array([0, 0, 1.0]) + 0.03 * rng.standard_normal((n, 3))).astype("f4"),
        neck=np.tile(np.eye(3, dtype="f4"), (n, 1, 1)),
        jaw=turns(n, size=0.1),
        eyes=turns(n, 2, size=0.1),
        eyelids=rng.random((n, 2)).astype("f4"),
    )


def test_its_own_texture_coordinates_are_used(flame):
    path, vt, ft = flame
    head = motions.load_head(str(path))
    np.testing.assert_array_equal(head.vt, vt)
    np.testing.assert_array_equal(head.ft, ft)
    face_id, bary = avatars.bind(head, 32)
    uv = (bary[:, :, None] * head.vt[head.ft[face_id]]).sum(1) * 32 - 0.5
    assert len(face_id) > 200 and (uv - uv.round()).abs().max() < 2e-3


def test_the_head_s_rotation_moves_to_the_neck(flame):
    head = motions.load_head(str(flame[0]))
    track = some_track()
    motion = motions.from_track(track, head)
    assert motion.inputs.shape == (4, INPUTS) and motions.n_inputs(head) == INPUTS
    # The pose correctives see the neck turn, which a global rotation is not: without them both ways are the same.
    plain = replace(head, posedirs=torch.zeros_like(head.posedirs))
    motion = motions.from_track(track, plain)
    camera = motion.vertices @ motion.camera.world_to_camera[:3, :3].T + motion.camera.world_to_camera[:3, 3]
    assert (camera - track.vertices(plain)).abs().max() < 1e-5


def test_eyelids_move_the_lids_of_a_model_that_has_them(flame):
    head = motions.load_head(str(flame[0]))
    lids = torch.zeros(len(head.v_template), 3, 2)
    lids[5, 1, 0], lids[9, 1, 1] = -0.01, -0.02
    track = some_track()
    closed = replace(track, eyelids=np.ones((4, 2), np.float32))
    opened = replace(track, eyelids=np.zeros((4, 2), np.float32))
    with_lids = replace(head, eyelids=lids)
    moved = motions.from_track(closed, with_lids).vertices - motions.from_track(opened, with_lids).vertices
    sizes = moved.norm(dim=2)
    torch.testing.assert_close(sizes[:, 9], 2 * sizes[:, 5], rtol=0.5, atol=0)
    assert (sizes[:, [5, 9]] > 5e-3).all() and not sizes[:, [4, 6, 8, 10]].any()


def test_a_file_of_rgbavatar_loads_and_renders(flame, tmp_path):
    """Its documented property list, written property by property, with an MLP of the paper's size in float32."""
    head = motions.load_head(str(flame[0]))
    rng = np.random.default_rng(2)
    count = INPUTS * HIDDEN + HIDDEN + HIDDEN * HIDDEN + HIDDEN + HIDDEN * K + K
    n = count + 100
    layers = [(HIDDEN, INPUTS), (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,), (K, HIDDEN), (K,)]
    parameters = [0.1 * rng.standard_normal(shape) for shape in layers]
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(45))]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    for stem, width in (("xyz_b", 3), ("rot_b", 4), ("f_dc_b", 3)):
        names += [f"{stem}_{i}" for i in range(width * K)]
    table = np.zeros(
        n,
        [(name, "<f4") for name in (*names, "weight_module")]
        + [("face_id", "<i4")]
        + [(f"face_bary_{i}", "<f4") for i in range(3)],
    )
    for name in names:
        if not name.startswith(("n", "f_rest")):  # normals and higher harmonics are zero in its files
            table[name] = 1e-4 * rng.standard_normal(n)
    table["rot_0"] = 1
    for i in range(3):
        table[f"scale_{i}"], table[f"f_dc_{i}"] = np.log(0.004), rng.standard_normal(n)
    table["opacity"] = 2.0
    table["opacity"][:50] = -9999
    table["weight_module"][:count] = np.concatenate([p.ravel() for p in parameters])
    table["face_id"] = rng.integers(0, 200, n)
    bary = rng.dirichlet(np.ones(3), n)
    for i in range(3):
        table[f"face_bary_{i}"] = bary[:, i]
    PlyData([PlyElement.describe(table, "vertex")]).write(tmp_path / "theirs.ply")

    avatar = model_file.read(tmp_path / "theirs.ply", head, INPUTS)
    assert len(avatar) == n and int((~avatar.seen).sum()) == 50
    motion = motions.from_track(some_track(), head)
    with torch.no_grad():
        splats, weights = avatars.deform(avatar, head, motion.vertices, motion.inputs, motion.camera.world_to_camera)
        image, alpha = avatars.rasterize(splats, motion.camera)
    hidden = motion.inputs.double().numpy()
    for i in (0, 2, 4):
        hidden = hidden @ parameters[i].T + parameters[i + 1]
        hidden = np.maximum(hidden, 0) if i < 4 else hidden
    np.testing.assert_allclose(weights, hidden, atol=1e-4)
    assert alpha.max() > 0.9 and image.isfinite().all() and image.std() > 0.05

    model_file.write_ply(tmp_path / "ours.ply", avatar)
    ours = PlyData.read(tmp_path / "ours.ply")["vertex"].data
    assert ours.dtype.names == table.dtype.names
    for name in names:
        np.testing.assert_allclose(ours[name], table[name], atol=1e-6, err_msg=name)
    for name in ("weight_module", "face_id", "face_bary_1"):
        np.testing.assert_array_equal(ours[name], table[name])
