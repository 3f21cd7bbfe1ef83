"""Binding, deformation, the reduced basis and model.ply."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from gaussian_avatar import avatars, model_file
from gaussian_avatar.attachment import Attach
from gaussian_renderer.core import util_gau
from plyfile import PlyData
from recon4d import InputError
from scipy.spatial.transform import Rotation

TEX = 24
INPUTS = 73


def random_avatar(head, seed=0, tex_size=TEX, basis=5):
    generator = torch.Generator().manual_seed(seed)
    avatar = avatars.new(head, tex_size, INPUTS, basis, 16, None, 0.5, generator)
    changed = {}
    for field in fields(avatar):
        value = getattr(avatar, field.name)
        if torch.is_tensor(value) and value.is_floating_point() and field.name != "bary":
            spread = 1e-3 if "mean" in field.name else 0.3
            changed[field.name] = value + spread * torch.randn(value.shape, generator=generator)
    return replace(avatar, **changed)


CAMERA = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
CAMERA[2, 3] = 0.7


def posed(head, batch=3):
    generator = torch.Generator().manual_seed(1)
    expression = torch.rand(batch, head.n_expression, generator=generator)
    return head(expression=0.3 * expression) + 0.05 * torch.randn(batch, 1, 3, generator=generator)


def test_each_covered_texel_is_one_gaussian_at_its_own_place(head):
    face_id, bary = avatars.bind(head, TEX)
    torch.testing.assert_close(bary.sum(1), torch.ones(len(bary)))
    assert bary.min() >= -1e-5
    # The barycentrics give back texel centres, each one once ...
    uv = (bary[:, :, None] * head.vt[head.ft[face_id]]).sum(1) * TEX - 0.5
    cells = uv.round()
    assert (uv - cells).abs().max() < 1e-3
    assert len({tuple(cell) for cell in cells.int().tolist()}) == len(cells)
    # ... and these are all that lie inside a triangle, by half-planes.
    corners = head.vt[head.ft].double().numpy()
    centres = (np.stack(np.meshgrid(np.arange(TEX), np.arange(TEX)), -1).reshape(-1, 2) + 0.5) / TEX
    inside = np.zeros(len(centres), bool)
    for triangle in corners:
        sides = [np.cross(triangle[(i + 1) % 3] - triangle[i], centres - triangle[i]) for i in range(3)]
        inside |= np.all(np.stack(sides) > 0, 0) | np.all(np.stack(sides) < 0, 0)
    assert abs(int(inside.sum()) - len(face_id)) <= 2  # centres on an edge go either way
    assert abs(avatars.texel_count(head, 512) / len(avatars.bind(head, 512)[0]) - 1) < 0.01


def test_a_head_without_uv_is_refused(head):
    with pytest.raises(InputError, match="texture coordinates"):
        avatars.bind(replace(head, vt=None, ft=None), TEX)


def numpy_deform(avatar, head, vertices, inputs):
    """The deformation in float64 NumPy, one Gaussian at a time."""

    def array(x):
        return x.detach().double().numpy()

    hidden = array(inputs)
    layers = [layer for layer in avatar.mlp if hasattr(layer, "weight")]
    for i, layer in enumerate(layers):
        hidden = hidden @ array(layer.weight).T + array(layer.bias)
        hidden = np.maximum(hidden, 0) if i < 2 else hidden
    mean_out, quat_out, colour_out = [], [], []
    for vertices_b, w in zip(array(vertices), hidden):
        means, quats, colours = [], [], []
        for n in range(len(avatar)):
            local = array(avatar.means[n]) + np.tensordot(w, array(avatar.mean_basis[:, n]), 1)
            quat = array(avatar.quats[n]) + np.tensordot(w, array(avatar.quat_basis[:, n]), 1)
            sh0 = array(avatar.sh0[n]) + np.tensordot(w, array(avatar.sh0_basis[:, n]), 1)
            face = int(avatar.face_id[n])
            a, b, c = vertices_b[head.faces[face].numpy()]
            ua, ub, uc = array(head.vt)[head.ft[face].numpy()]
            edges_uv = np.stack([ub - ua, uc - ua])
            tangent, bitangent = np.linalg.solve(edges_uv, np.stack([b - a, c - a]))
            frame = np.stack([tangent, bitangent, np.cross(b - a, c - a)], 1)
            frame = frame / np.linalg.norm(frame, axis=0)
            means.append(array(avatar.bary[n]) @ np.stack([a, b, c]) + frame @ local)
            # The nearest quaternion of a frame with sheared axes is Markley's, not the polar one of SciPy: only its
            # rotation part is compared, by the matrix that multiplies on the left.
            m = frame
            k = np.array(
                [
                    [
                        1 + m[0, 0] + m[1, 1] + m[2, 2],
                        m[2, 1] - m[1, 2],
                        m[0, 2] - m[2, 0],
                        m[1, 0] - m[0, 1],
                    ],
                    [
                        m[2, 1] - m[1, 2],
                        1 + m[0, 0] - m[1, 1] - m[2, 2],
                        m[0, 1] + m[1, 0],
                        m[0, 2] + m[2, 0],
                    ],
                    [
                        m[0, 2] - m[2, 0],
                        m[0, 1] + m[1, 0],
                        1 - m[0, 0] + m[1, 1] - m[2, 2],
                        m[1, 2] + m[2, 1],
                    ],
                    [
                        m[1, 0] - m[0, 1],
                        m[0, 2] + m[2, 0],
                        m[1, 2] + m[2, 1],
                        1 - m[0, 0] - m[1, 1] + m[2, 2],
                    ],
                ]
            )
            turn = k[np.argmax(np.diag(k))]
            product = Rotation.from_quat(np.roll(turn, -1)) * Rotation.from_quat(np.roll(quat, -1))
            quats.append(product.as_matrix())
            colours.append(np.maximum(0.5 + 0.28209479177387814 * sh0, 0))
        mean_out.append(means)
        quat_out.append(quats)
        colour_out.append(colours)
    return np.array(mean_out), np.array(quat_out), np.array(colour_out), hidden


def test_deform_against_float64_numpy(head):
    avatar, vertices = random_avatar(head, tex_size=16), posed(head, 2)
    inputs = torch.randn(2, INPUTS, generator=torch.Generator().manual_seed(2))
    splats, weights = avatars.deform(avatar, head, vertices, inputs, CAMERA)
    means, rotations, colours, expected_weights = numpy_deform(avatar, head, vertices, inputs)
    assert np.abs(weights.detach().numpy() - expected_weights).max() < 1e-5
    assert np.abs(splats.means.detach().numpy() - means).max() < 1e-6
    assert np.abs(splats.colors.detach().numpy() - colours).max() < 1e-5
    quats = splats.quats.detach().double().numpy().reshape(-1, 4)
    found = Rotation.from_quat(np.roll(quats, -1, 1)).as_matrix().reshape(rotations.shape)
    assert np.abs(found - rotations).max() < 1e-4
    torch.testing.assert_close(splats.scales[0], avatar.log_scales.exp())
    torch.testing.assert_close(splats.opacities[1], avatar.opacity_logits.sigmoid())


def test_frames_turn_with_the_head(head):
    avatar, vertices = random_avatar(head), posed(head, 1)
    R = torch.from_numpy(Rotation.from_rotvec([0.3, -0.9, 0.2]).as_matrix()).float()
    still, _ = avatars.deform(avatar, head, vertices, torch.zeros(1, INPUTS), CAMERA, blend=False)
    turned, _ = avatars.deform(avatar, head, vertices @ R.T + 0.1, torch.zeros(1, INPUTS), CAMERA, blend=False)
    torch.testing.assert_close(turned.means, still.means @ R.T + 0.1, atol=1e-6, rtol=0)
    before, after = (
        torch.from_numpy(Rotation.from_quat(np.roll(s.quats[0].numpy(), -1, 1)).as_matrix()).float()
        for s in (still, turned)
    )
    traces = (after.transpose(1, 2) @ R @ before).diagonal(dim1=1, dim2=2).sum(1)
    frames = avatars.face_frames(vertices[:, head.faces], head.vt[head.ft])[0][avatar.face_id]
    shear = (frames[:, :, 0] * frames[:, :, 1]).sum(1).abs()
    # The angle between turned and turned-along, 1 + 2 cos = trace, is at most the shear's: 0 where there is none.
    angle = torch.arccos(((traces - 1) / 2).clamp(-1, 1))
    assert (shear < 0.3).sum() > 60
    assert (angle <= torch.arcsin(shear.clamp_max(1)) + 1e-2).all()


def test_compiled_attachment_is_the_torch_one_with_its_gradients(head):
    avatar, vertices = random_avatar(head, tex_size=48), posed(head)
    generator = torch.Generator().manual_seed(4)
    local = 1e-3 * torch.randn(3, len(avatar), 3, generator=generator)
    quats = torch.randn(3, len(avatar), 4, generator=generator)
    eye = torch.tensor([[0.1, 0.0, 0.7], [0.5, 0.1, 0.3], [0.0, 0.0, 1.0]])
    results = []
    for compiled in (False, True):
        leaves = [x.clone().requires_grad_() for x in (local, quats)]
        if compiled:
            uv = avatars.uv_edges(head, avatar.face_id)
            out = Attach.apply(vertices, head.faces[avatar.face_id], avatar.bary, uv, eye, *leaves)
        else:
            out = avatars.attach(avatar, head, vertices, eye, *leaves)
        loss = (1e2 * out[0]).sin().sum() + out[1].cos().sum()
        results.append([*out, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*results):
        assert (a - b).abs().max() < 3e-5 * a.abs().max()


def test_one_sided_hides_what_faces_away(head):
    avatar, vertices = random_avatar(head), posed(head, 1)
    arguments = (avatar, head, vertices, torch.zeros(1, INPUTS), CAMERA)
    both, one = (avatars.deform(*arguments, one_sided=flag)[0].opacities[0] for flag in (False, True))
    triangles = vertices[0][head.faces[avatar.face_id]].double()
    normals = torch.linalg.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    to_eye = torch.tensor([0.0, 0.0, 0.7]) - (avatar.bary[..., None] * triangles).sum(1)
    cosine = (normals * to_eye).sum(1) / normals.norm(dim=1) / to_eye.norm(dim=1)
    assert torch.equal(one[cosine > -0.09], both[cosine > -0.09]) and (cosine > -0.09).sum() > 100
    assert not one[cosine < -0.31].any() and (cosine < -0.31).sum() > 30


def test_gaussians_grow_with_their_triangles(head, tmp_path):
    vertices, inputs = head.v_template[None] * torch.tensor([1.0, 1.5, 10.0])[:, None, None], torch.zeros(3, 4)
    made = {}
    for stretch in (False, True):
        made[stretch] = avatars.new(head, TEX, 4, 2, 8, None, 0.5, torch.Generator().manual_seed(0), stretch)
    plain, grown = (avatars.deform(made[s], head, vertices, inputs, torch.eye(4))[0].scales for s in (False, True))
    ratio = grown / plain
    for i, expected in enumerate((1.0, 1.5, avatars.STRETCH[1])):
        torch.testing.assert_close(ratio[i], torch.full_like(ratio[i], expected), rtol=1e-3, atol=0)
    seen = replace(made[True], seen=torch.ones(len(made[True]), dtype=torch.bool))
    model_file.write_ply(tmp_path / "a.ply", seen)
    model_file.write_compact(tmp_path / "a.safetensors", seen, head.name)
    for name in ("a.ply", "a.safetensors"):
        torch.testing.assert_close(model_file.read(tmp_path / name, head, 4).extent, seen.extent)
    model_file.write_ply(tmp_path / "b.ply", replace(seen, extent=None))
    assert model_file.read(tmp_path / "b.ply", head, 4).extent is None
    assert seen.to("cpu").extent is not None


def test_new_avatar_is_the_papers(head):
    avatar = avatars.new(head, TEX, 129, 20, 128, 0.0008, 0.5, torch.Generator().manual_seed(0))
    assert [tuple(p.shape) for p in avatar.mlp.parameters()] == [
        (128, 129),
        (128,),
        (128, 128),
        (128,),
        (20, 128),
        (20,),
    ]
    n = len(avatar)
    assert avatar.mean_basis.shape == (20, n, 3) and not avatar.mean_basis.any()
    torch.testing.assert_close(avatar.log_scales, torch.full((n, 3), float(np.log(0.0008))))
    torch.testing.assert_close(avatar.opacity_logits.sigmoid(), torch.full((n,), 0.5))
    assert not avatar.means.any() and (avatar.quats == torch.tensor([1.0, 0, 0, 0])).all()


def test_ply_round_trip_and_layout(head, tmp_path):
    avatar = random_avatar(head)
    avatar.seen[:] = True
    avatar.seen[::7] = False
    path = tmp_path / "model.ply"
    model_file.write_ply(path, avatar)
    back = model_file.read_ply(path, head, INPUTS)
    assert torch.equal(back.seen, avatar.seen)
    vertices = posed(head)
    inputs = torch.randn(3, INPUTS, generator=torch.Generator().manual_seed(5))
    expected, weights = avatars.deform(avatar, head, vertices, inputs, CAMERA)
    found, weights_back = avatars.deform(back, head, vertices, inputs, CAMERA)
    torch.testing.assert_close(weights_back, weights)
    normalise = torch.nn.functional.normalize
    for name in ("means", "scales", "colors"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    torch.testing.assert_close(normalise(found.quats, dim=-1), normalise(expected.quats, dim=-1))
    assert not found.opacities[:, ~avatar.seen].any()

    # The layout, by an independent reader.
    table = PlyData.read(path)["vertex"]
    names = [p.name for p in table.properties]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:54] == [f"f_rest_{i}" for i in range(45)] and names[54] == "opacity"
    assert table["face_id"].dtype == np.int32
    assert (table["opacity"][::7] == -9999).all()
    k, n = 2, 3  # basis vector 2 of Gaussian 3, component 1: basis-major
    assert table["xyz_b_7"][n] == avatar.mean_basis[k, n, 1]
    assert table["f_dc_b_7"][n] == avatar.sh0_basis[k, n, 1]
    flat = torch.nn.utils.parameters_to_vector(avatar.mlp.parameters()).detach().numpy()
    columns = [name for name in names if name.startswith("weight_module")]
    stored = np.concatenate([table[name] for name in columns])
    assert len(columns) == -(-len(flat) // len(avatar))
    np.testing.assert_array_equal(stored[: len(flat)], flat)
    assert not stored[len(flat) :].any()

    # A 3DGS library reads the standard properties, among the others.
    splats = util_gau.load_ply(path)
    seen = avatar.seen.numpy()
    assert len(splats.xyz) == len(avatar)
    np.testing.assert_array_equal(splats.xyz, avatar.means.detach())
    np.testing.assert_allclose(splats.scale, avatar.log_scales.detach().exp(), rtol=1e-5)
    np.testing.assert_allclose(splats.opacity[seen], avatar.opacity_logits.detach().sigmoid()[seen], rtol=1e-5)
    assert not splats.opacity[~seen].any()


@pytest.mark.parametrize("hidden", [3, 48, 128, 200])
def test_a_network_of_any_width_is_read_back(head, tmp_path, hidden):
    """Also where the file does not say it, as RGBAvatar's and those of the first version."""
    avatar = avatars.new(head, TEX, INPUTS, 5, hidden, None, 0.5, torch.Generator().manual_seed(0))
    path = tmp_path / "model.ply"
    model_file.write_ply(path, avatar)
    said = f"comment mlp {INPUTS} {hidden} 5\n".encode()
    assert said in path.read_bytes()
    for content in (path.read_bytes(), path.read_bytes().replace(said, b"")):
        path.write_bytes(content)
        back = model_file.read_ply(path, head, INPUTS)
        for ours, theirs in zip(back.mlp.parameters(), avatar.mlp.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_moving_an_avatar_leaves_the_one_it_was_made_from(head):
    avatar = random_avatar(head)
    moved = avatar.to("meta")
    assert moved.means.is_meta and all(p.is_meta for p in moved.mlp.parameters())
    assert not avatar.means.is_meta and not any(p.is_meta for p in avatar.mlp.parameters())
    assert avatar == avatar and avatar != moved


def test_wrong_ply_files(head, tmp_path):
    avatar = random_avatar(head)
    path = tmp_path / "model.ply"
    with pytest.raises(InputError, match="does not exist"):
        model_file.read_ply(path, head, INPUTS)
    path.write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 5\nproperty float x\nend_header\nab")
    with pytest.raises(InputError, match="not a readable PLY"):
        model_file.read_ply(path, head, INPUTS)
    model_file.write_ply(path, avatar)
    with pytest.raises(InputError, match="weight_module"):
        model_file.read_ply(path, head, 40)
    few_faces = replace(head, faces=head.faces[:10], ft=head.ft[:10])
    with pytest.raises(InputError, match="--head-model"):
        model_file.read_ply(path, few_faces, INPUTS)
