"""The committed open head asset, looked at by dlib and by the library's own renderer."""

import importlib.util
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from recon4d import mesh
from recon4d.head import load

ASSET = Path(str(resources.files("recon4d.head"))) / "open_head.npz"


@pytest.fixture(scope="module")
def head():
    return load()


@pytest.fixture(scope="module")
def arrays():
    with np.load(ASSET, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def rotation(x=0.0, y=0.0):
    return roma.rotvec_to_rotmat(torch.tensor([[x, y, 0.0]]))


def clip(points, size, centre=(0.0, 0.0, 0.0), width=0.34):
    """Points (N, 3) seen by a camera 1 m before the face: OpenGL clip space (1, N, 4) and pixels (N, 2)."""
    moved = points - torch.tensor(centre)
    w = 1.0 - moved[:, 2]
    near, far = 0.5, 2.0
    z = (far + near) / (far - near) * w - 2 * far * near / (far - near)
    pos = torch.stack([moved[:, 0] * 2 / width, moved[:, 1] * 2 / width, z, w], -1)
    pixels = (pos[:, :2] / w[:, None] * torch.tensor([1.0, -1.0]) + 1) * size / 2
    return pos[None], pixels


def photo(head, vertices, size=400, albedo=None):
    """(H, W, 3) uint8 frontal picture of vertices (V, 3)."""
    pos, _ = clip(vertices, size)
    rast = mesh.rasterize(pos, head.faces, (size, size))
    uv = mesh.interpolate(head.vt[None], rast, head.ft)
    colour = mesh.texture((head.albedo_mean if albedo is None else albedo)[None], uv)
    normals = mesh.interpolate(mesh.vertex_normals(vertices[None], head.faces), rast, head.faces)
    light = torch.nn.functional.normalize(torch.tensor([0.2, 0.4, 0.9]), dim=0)
    shade = 0.35 + 0.7 * (torch.nn.functional.normalize(normals, dim=-1) @ light).clamp(min=0)
    picture = torch.where(rast.mask[..., None], colour * shade[..., None], torch.tensor(0.8))
    return (picture[0].clamp(0, 1) * 255).to(torch.uint8).numpy()


def seen_faces(head, vertices, size=500, **camera):
    tri_id, _ = mesh.visibility(clip(vertices, size, **camera)[0], head.faces, (size, size))
    return tri_id[tri_id >= 0].long()


def edge_counts(faces):
    return Counter((int(a), int(b)) for face in faces for a, b in zip(face, np.roll(face, -1), strict=True))


# -------------------------------------------------------------------------------------------------- the file


def test_the_file_is_small_and_holds_no_pickles(arrays):
    assert ASSET.stat().st_size < 6e6
    assert all(array.dtype != object for array in arrays.values())


def test_shapes_are_those_of_a_flame_model(arrays, head):
    V, E = len(arrays["v_template"]), len(arrays["expression_names"])
    assert arrays["shapedirs"].shape == (V, 3, 100 + E) and int(arrays["n_identity"]) == 100
    assert arrays["posedirs"].shape == (V, 3, 36)
    assert arrays["weights"].shape == (V, 5)
    assert arrays["eyelids"].shape == (V, 3, 2)
    assert arrays["f"].shape == arrays["ft"].shape
    assert arrays["f"].max() == V - 1 and len(np.unique(arrays["f"])) == V  # every vertex is used
    assert arrays["ft"].max() == len(arrays["vt"]) - 1 and len(np.unique(arrays["ft"])) == len(arrays["vt"])
    T = arrays["albedo_mean"].shape[0]
    assert arrays["albedo_mean"].shape == (T, T, 3) and arrays["albedo_components"].shape[:3] == (T, T, 3)
    assert head.albedo_mean.min() >= 0 and head.albedo_mean.max() <= 1
    assert (head.n_shape, head.n_expression) == (100, E)


def test_names_of_the_expressions_are_arkits_without_gaze(head):
    names = head.expression_names
    assert len(set(names)) == len(names) == 44
    assert not any(name.startswith("eyeLook") for name in names)
    assert {"jawOpen", "mouthSmileLeft", "eyeBlinkRight", "browInnerUp", "tongueOut", "cheekPuff"} <= set(names)


# -------------------------------------------------------------------------------------------------- the mesh


def test_surface_is_manifold_oriented_outwards_and_open_at_the_neck_only(head):
    faces, v = head.faces.numpy(), head.v_template.double().numpy()
    edges = edge_counts(faces)
    assert max(edges.values()) == 1  # each directed edge once: manifold and consistently wound
    border = {a: b for a, b in edges if (b, a) not in edges}
    loop = [next(iter(border))]
    while (ahead := border[loop[-1]]) != loop[0]:
        loop.append(ahead)
    assert len(loop) == len(border) == 42  # one closed loop
    assert v[loop, 1].max() < -0.09  # at the bottom of the neck
    assert np.ptp(v[loop, 1]) < 0.07
    # Signed volume (divergence theorem) with the neck closed by a fan: positive when normals point outwards.
    centre = v[loop].mean(0)
    fan = np.array([[v[b], v[a], centre] for a, b in zip(loop, loop[1:] + loop[:1], strict=True)])
    corners = np.concatenate([v[faces], fan])
    volume = np.linalg.det(corners).sum() / 6
    assert 0.003 < volume < 0.007


def test_no_face_is_degenerate_or_turned_by_identity(head):
    generator = torch.Generator().manual_seed(0)
    before = mesh.face_normals(head.v_template[None], head.faces)
    assert (before.norm(dim=-1) > 0.5).all()
    skin = ~(head.regions["eyes"] | head.regions["mouth_interior"])[head.faces].any(1)
    for _ in range(10):
        after = mesh.face_normals(head(shape=torch.randn(1, 100, generator=generator)), head.faces)
        turned = ((before * after).sum(-1)[0] < 0)[skin]
        assert turned.float().mean() < 0.003


def test_texture_layout_has_no_folds_and_no_overlap(head):
    corners = head.vt[head.ft].double()
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2
    assert (area > 0).all()
    assert head.vt.min() >= 0 and head.vt.max() <= 1
    # If two triangles shared texels, the sum of areas would exceed the covered part of the texture.
    size = 1024
    pos = torch.cat([head.vt * 2 - 1, torch.zeros(len(head.vt), 1), torch.ones(len(head.vt), 1)], 1)
    tri_id, _ = mesh.visibility(pos[None], head.ft, (size, size))
    covered = (tri_id >= 0).float().mean().item()
    assert covered == pytest.approx(area.sum().item(), rel=0.01)
    face = head.regions["face"][head.faces].all(1)
    assert area[face].sum() > 0.25  # the face gets a good part of the texture


def test_size_place_and_sides(head):
    v = head.v_template
    low, high = v.min(0).values, v.max(0).values
    assert 0.08 < high[0] < 0.115 and abs(high[0] + low[0]) < 1e-4
    assert -0.21 < low[1] < -0.13 and 0.12 < high[1] < 0.17
    assert 0.08 < high[2] < 0.13
    left, right = v[head.regions["left_eye"]].mean(0), v[head.regions["right_eye"]].mean(0)
    assert left[0] > 0.025 and right[0] < -0.025
    assert 0.055 < left[0] - right[0] < 0.070  # interpupillary distance
    names = head.expression_names
    moved = head.expressiondirs[:, :, names.index("mouthSmileLeft")].norm(dim=1)
    assert v[moved.argmax(), 0] > 0.01
    assert (v[head.eyelids[:, :, 0].norm(dim=1) > 1e-3, 0] > 0).all()
    assert (v[head.eyelids[:, :, 1].norm(dim=1) > 1e-3, 0] < 0).all()
    assert abs(v[v[:, 2].argmax(), 0]) < 0.003  # the foremost point is the nose tip, so z is out of the face


def test_regions(head):
    regions, v = head.regions, head.v_template
    assert set(regions) == {
        "face", "eyes", "left_eye", "right_eye", "lips", "ears", "neck", "scalp", "mouth_interior",
    }  # fmt: skip
    assert all(mask.sum() >= 50 for mask in regions.values())
    exclusive = torch.stack([regions[n] for n in ("face", "eyes", "ears", "neck", "scalp", "mouth_interior")])
    assert exclusive.sum(0).max() == 1
    nowhere = v[exclusive.sum(0) == 0]  # the sockets behind the lids
    assert len(nowhere) and torch.cdist(nowhere, head.joints()[0, 3:]).amin(1).max() < 0.03
    assert torch.equal(regions["eyes"], regions["left_eye"] | regions["right_eye"])
    assert (regions["lips"] & ~regions["face"]).sum() == 0
    assert v[regions["scalp"], 1].mean() > v[regions["face"], 1].mean() > v[regions["neck"], 1].mean()
    assert (v[regions["ears"], 0].abs() > 0.06).all()
    mouth = v[regions["lips"]].mean(0)
    landmarks = head.landmarks(v[None])[0]
    assert (mouth - landmarks[48:68].mean(0)).norm() < 0.008
    # What a camera before the face sees is mostly the face.
    seen = head.faces[seen_faces(head, v, centre=(0.0, 0.0, 0.0), width=0.12)]
    assert regions["face"][seen].all(1).float().mean() > 0.85


# ------------------------------------------------------------------------------------------- joints and weights


def test_weights_and_regressor_are_affine(head):
    assert (head.weights >= 0).all()
    torch.testing.assert_close(head.weights.sum(1), torch.ones(len(head.weights)), atol=1e-6, rtol=0)
    torch.testing.assert_close(head.J_regressor.sum(1), torch.ones(5), atol=1e-5, rtol=0)
    assert (head.weights[head.regions["left_eye"], 3] == 1).all()
    assert (head.weights[head.regions["right_eye"], 4] == 1).all()
    border = head.v_template[:, 1] < head.v_template[:, 1].min() + 0.01
    assert (head.weights[border, 0] > 0.98).all()
    assert (head.weights[head.v_template[:, 1] > 0.05, 1:].sum(1) > 0.99).all()


def sphere(points):
    """Least-squares centre and radius of points (N, 3) by Gauss-Newton on the geometric distance."""
    centre, radius = points.mean(0), points.std()
    for _ in range(30):
        away = points - centre
        distance = away.norm(dim=1)
        A = torch.cat([away / distance[:, None], torch.ones(len(points), 1, dtype=points.dtype)], 1)
        update = torch.linalg.lstsq(A, (distance - radius)[:, None]).solution[:, 0]
        centre, radius = centre + update[:3], radius + update[3]
    return centre, radius


def test_eye_joints_are_the_centres_of_round_eyeballs_for_every_identity(head):
    generator = torch.Generator().manual_seed(1)
    double = head.to(torch.float64)
    for k in range(6):
        shape = torch.randn(1, 100, generator=generator, dtype=torch.float64) * (k > 0)
        vertices, joints = double.shaped(shape)[0], double.joints(shape)[0]
        for name, joint in (("left_eye", 3), ("right_eye", 4)):
            ball = vertices[head.regions[name]]
            centre, radius = sphere(ball)
            assert 0.010 < radius < 0.022
            assert ((ball - centre).norm(dim=1) / radius - 1).abs().max() < 0.03
            assert (centre - joints[joint]).norm() < 3e-4


def test_joints_lie_inside_where_anatomy_has_them(head):
    root, neck, jaw, left, right = head.joints()[0]
    assert torch.stack([root, neck, jaw])[:, 0].abs().max() < 1e-3
    assert root[1] < neck[1] < left[1]
    ears = head.v_template[head.regions["ears"]]
    assert ears[:, 1].min() < jaw[1] < ears[:, 1].max()  # the hinge is level with the ear ...
    assert ears[:, 2].mean() < jaw[2] < 0.02  # ... and just before its middle
    torch.testing.assert_close(left * torch.tensor([-1.0, 1, 1]), right, atol=2e-4, rtol=0)


def test_turning_an_eye_keeps_it_in_its_socket(head):
    eyes = torch.stack([rotation(y=0.4), rotation(y=0.4)], 1)
    still, turned = head()[0], head(eyes=eyes)[0]
    others = ~head.regions["eyes"]
    assert torch.equal(still[others], turned[others])
    centre = head.joints()[0, 3]
    ball = head.regions["left_eye"]
    torch.testing.assert_close(
        (still[ball] - centre).norm(dim=1), (turned[ball] - centre).norm(dim=1), atol=1e-6, rtol=1e-4
    )
    assert turned[ball, 0][still[ball, 2].argmax()] > still[ball, 0][still[ball, 2].argmax()]  # to the person's left


# ------------------------------------------------------------------------------------------- identity, expression


def test_identity_coefficients_have_unit_variance_scale_and_fall_off(head):
    # The variance that a unit coefficient explains is the squared norm of its column: they must fall monotonically,
    # and a head of random coefficients must differ from the mean by what the columns say (they are orthogonal).
    energy = head.shapedirs.double().square().sum((0, 1))
    assert (energy[1:] <= energy[:-1] * 1.02).all()
    flat = head.shapedirs.double().reshape(-1, 100)
    gram = flat.T @ flat / torch.sqrt(energy[:, None] * energy[None])
    # float16 and the symmetrised mean cost a little orthogonality, least in the leading components
    assert (gram - torch.diag(gram.diagonal()))[:40, :40].abs().max() < 0.05
    rms = (energy.sum() / len(flat) * 3).sqrt().item()
    assert 0.002 < rms < 0.010  # adults' heads differ by some millimetres


def test_random_heads_are_adult_faces(head):
    shapes = torch.randn(200, 100, generator=torch.Generator().manual_seed(2))
    landmarks = torch.cat([head.landmarks(head.shaped(s[None])) for s in shapes])
    pupils = (landmarks[:, 42:48].mean(1) - landmarks[:, 36:42].mean(1)).norm(dim=1)
    assert 0.056 < pupils.mean() < 0.068 and 0.001 < pupils.std() < 0.006
    face = (landmarks[:, 27] - landmarks[:, 8]).norm(dim=1)  # nasion to chin
    assert 0.095 < face.mean() < 0.130 and 0.002 < face.std() < 0.011
    # the order of features from top to bottom holds for each of them
    heights = torch.stack(
        [landmarks[:, i, 1].mean(1) for i in (slice(17, 27), slice(36, 48), slice(31, 36), slice(48, 60), slice(7, 10))]
    )
    assert (heights[:-1] > heights[1:]).all()


def test_turning_the_jaw_opens_the_mouth_like_the_action_jawOpen(head):
    def gap(vertices):
        points = head.landmarks(vertices)[0]
        return (points[62] - points[66]).norm().item()

    closed, half, opened = (gap(head(jaw=rotation(angle))) for angle in (0.0, 0.15, 0.3))
    assert closed < 0.003
    assert 0.008 < half < opened
    assert 0.022 < opened < 0.05
    coefficients = torch.zeros(1, head.n_expression)
    coefficients[0, head.expression_names.index("jawOpen")] = 1
    torch.testing.assert_close(head(expression=coefficients), head(jaw=rotation(0.3)), atol=3e-4, rtol=0)
    still = head.v_template[:, 1] > 0.02
    assert (head(jaw=rotation(0.3))[0] - head()[0])[still].norm(dim=1).max() < 0.002
    assert (head(jaw=rotation(0.3))[0] - head()[0]).norm(dim=1)[head.regions["neck"]].min() < 1e-4


def test_bending_the_neck_moves_the_head_and_not_the_border(head):
    bent = (head(neck=rotation(y=0.5))[0] - head()[0]).norm(dim=1)
    v = head.v_template
    assert bent[v[:, 1] < v[:, 1].min() + 0.01].max() < 5e-4
    assert bent[v[:, 2].argmax()] > 0.04


@pytest.mark.parametrize("seed", range(4))
def test_closed_eyelids_hide_the_eyeballs(head, seed):
    shape = torch.randn(1, 100, generator=torch.Generator().manual_seed(seed)) * (seed > 0)
    ball = head.regions["eyes"][head.faces].all(1)

    def visible(eyelids):
        vertices = head(shape=shape, eyelids=eyelids)[0]
        return ball[seen_faces(head, vertices, centre=(0.0, 0.033, 0.0), width=0.14)].sum().item()

    opened = visible(torch.zeros(1, 2))
    assert opened > 1500
    assert visible(torch.ones(1, 2)) < (0.02 if seed == 0 else 0.08) * opened
    assert 0.2 < visible(torch.tensor([[1.0, 0.0]])) / opened < 0.8  # one eye only
    # the gap between the lids' landmarks (37, 41 and so on) shrinks by more than 90 % on the mean head
    if seed == 0:
        pairs = torch.tensor([[37, 41], [38, 40], [43, 47], [44, 46]])
        points = [head.landmarks(head(eyelids=torch.full((1, 2), c)))[0] for c in (0.0, 1.0)]
        gaps = [(p[pairs[:, 0], 1] - p[pairs[:, 1], 1]).mean().item() for p in points]
        assert gaps[0] > 0.006 and gaps[1] < 0.1 * gaps[0]


# --------------------------------------------------------------------------------------------------- landmarks


def dlib_landmarks(picture):
    import dlib

    models = Path(importlib.util.find_spec("face_recognition_models").origin).parent / "models"
    boxes = dlib.get_frontal_face_detector()(picture, 0)
    assert boxes, "dlib sees no face"
    predictor = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
    parts = predictor(picture, max(boxes, key=lambda box: box.area())).parts()
    return torch.tensor([[p.x + 0.5, p.y + 0.5] for p in parts])


@pytest.mark.parametrize("seed", range(5))
def test_landmarks_are_where_dlib_sees_them(head, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    shape = torch.randn(1, 100, generator=generator) * (seed > 0)
    jaw = rotation(0.06 * seed)
    tone = head.albedo_mean + (head.albedo_components * torch.randn(8, generator=generator) * 0.7).sum(-1)
    vertices = head(shape=shape, jaw=jaw)
    _, expected = clip(head.landmarks(vertices)[0], 400)
    found = dlib_landmarks(photo(head, vertices[0], albedo=tone.clamp(0, 1)))
    pupils = (expected[42:48].mean(0) - expected[36:42].mean(0)).norm()
    error = (found - expected).norm(dim=1) / pupils
    assert error.mean() < 0.05
    assert error[17:].mean() < 0.04  # without the jaw line, which slides along the silhouette


def test_landmarks_are_symmetric_and_on_the_surface(head, arrays):
    bary = arrays["lmk_bary_coords"]
    assert (bary > -1e-6).all() and np.allclose(bary.sum(1), 1)
    points = head.landmarks(head.v_template[None])[0]
    for left, right in (
        (0, 16),
        (4, 12),
        (17, 26),
        (21, 22),
        (31, 35),
        (36, 45),
        (39, 42),
        (48, 54),
        (50, 52),
        (60, 64),
    ):
        torch.testing.assert_close(points[left] * torch.tensor([-1.0, 1, 1]), points[right], atol=1.5e-3, rtol=0)
    assert (points[[0, 36, 48], 0] < 0).all() and (points[[16, 45, 54], 0] > 0).all()  # iBUG starts at the right ear


# ------------------------------------------------------------------------------------------------------ albedo


def test_albedo_shows_dark_pupils_in_pale_eyes_red_lips_and_dark_hair(head):
    def colour_at(point, texture=head.albedo_mean):
        """Mean colour of the texels of the triangles nearest to a point of the mean head."""
        centres = head.v_template[head.faces].mean(1)
        nearest = (centres - point).norm(dim=1).topk(4, largest=False).indices
        uv = head.vt[head.ft[nearest]].mean(1)
        return mesh.texture(texture[None], uv[None, None])[0, 0].mean(0)

    points = head.landmarks(head.v_template[None])[0]
    skin = colour_at(points[29])
    eye = head.joints()[0, 3]
    ball = head.v_template[head.regions["left_eye"]]
    radius = (ball - eye).norm(dim=1).mean()
    pupil = colour_at(eye + torch.tensor([0.0, 0.0, 1.0]) * radius)
    assert pupil.max() < 0.4
    crown = colour_at(head.v_template[head.v_template[:, 1].argmax()])
    assert crown.max() < 0.4 < skin.min()
    lips = colour_at((points[57] + points[66]) / 2)
    assert lips[0] / lips[1] > 1.2 * skin[0] / skin[1]
    brow = colour_at(points[19] - torch.tensor([0.0, 0.002, 0.0]))
    assert brow.mean() < 0.75 * skin.mean()
    # each component changes what it is named for, and the iris component leaves the skin alone
    components = head.albedo_components
    assert (components.abs().amax((0, 1, 2)) > 0.01).all()
    names = [str(n) for n in np.load(ASSET)["albedo_names"]]
    assert colour_at(points[29], components[..., names.index("melanin")]).max() < -0.05
    assert colour_at(points[29], components[..., names.index("iris")]).abs().max() < 1e-6


def test_skin_has_detail_for_photometric_methods(head):
    picture = torch.from_numpy(photo(head, head.v_template)).double().mean(-1)
    # high-pass at a few pixels over the forehead: texture, not shading
    patch = picture[120:150, 170:230]
    smooth = torch.nn.functional.avg_pool2d(patch[None], 7, 1, 3, count_include_pad=False)[0]
    assert (patch - smooth)[3:-3, 3:-3].std() > 0.6
