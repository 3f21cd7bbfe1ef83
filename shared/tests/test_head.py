"""The head model against independent implementations, and its files, right and wrong."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import roma
import scipy.spatial.transform as st
import smplx.lbs
import torch
from flame_files import flame_arrays, write_flame_pickle
from recon4d import InputError, head


@pytest.fixture
def flame_pickle(tmp_path):
    path = tmp_path / "generic_model.pkl"
    write_flame_pickle(path, flame_arrays())
    return path


def numpy_flame(arrays, n_identity, shape, expression, rotations, translation):
    """FLAME in float64 NumPy, one head at a time, homogeneous matrices: the loop that the papers describe."""
    A = {k: np.asarray(v.todense() if hasattr(v, "todense") else v, np.float64) for k, v in arrays.items()}
    betas = np.concatenate(
        [
            shape,
            np.zeros(n_identity - len(shape)),
            expression,
            np.zeros(A["shapedirs"].shape[2] - n_identity - len(expression)),
        ]
    )
    shaped = A["v_template"] + A["shapedirs"] @ betas
    joints = A["J_regressor"] @ shaped
    feature = np.concatenate([(R - np.eye(3)).reshape(-1) for R in rotations[1:]])
    posed = shaped + A["posedirs"] @ feature
    world = []
    for j, parent in enumerate((-1, 0, 1, 1, 1)):
        local = np.eye(4)
        local[:3, :3] = rotations[j]
        local[:3, 3] = joints[j] - (joints[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    out = np.zeros_like(posed)
    for j in range(5):
        unposed = np.eye(4)
        unposed[:3, 3] = -joints[j]
        transform = world[j] @ unposed
        out += A["weights"][:, j : j + 1] * (posed @ transform[:3, :3].T + transform[:3, 3])
    return out + translation


@pytest.mark.parametrize("batch", [1, 7])
def test_forward_agrees_with_numpy_loop(tmp_path, batch):
    arrays = flame_arrays(1)
    write_flame_pickle(tmp_path / "m.pkl", arrays)
    model = head.load(tmp_path / "m.pkl")
    rng = np.random.default_rng(batch)
    shape, expression = rng.normal(size=(batch, 40)), rng.normal(size=(batch, 20))
    R = st.Rotation.random(batch * 5, rng=rng).as_matrix().reshape(batch, 5, 3, 3)
    t = rng.normal(size=(batch, 3))
    f = lambda a: torch.from_numpy(a).float()  # noqa: E731
    got = model(f(shape), f(expression), f(R[:, 0]), f(R[:, 1]), f(R[:, 2]), f(R[:, 3:]), translation=f(t))
    want = np.stack([numpy_flame(arrays, 300, shape[i], expression[i], R[i], t[i]) for i in range(batch)])
    assert np.abs(got.numpy() - want).max() < 1e-5


def test_forward_agrees_with_smplx(tmp_path):
    arrays = flame_arrays(2)
    write_flame_pickle(tmp_path / "m.pkl", arrays)
    model = head.load(tmp_path / "m.pkl").to(torch.float64)
    betas = torch.randn(5, 400, dtype=torch.float64)
    pose = torch.randn(5, 5, 3, dtype=torch.float64)
    want, _ = smplx.lbs.lbs(
        betas,
        pose.reshape(5, 15),
        model.v_template[None].expand(5, -1, -1),
        torch.cat([model.shapedirs, model.expressiondirs], 2),
        model.posedirs.reshape(-1, 36).T,
        model.J_regressor,
        torch.tensor([-1, 0, 1, 1, 1]),
        model.weights,
    )
    R = roma.rotvec_to_rotmat(pose)
    got = model(betas[:, :300], betas[:, 300:], R[:, 0], R[:, 1], R[:, 2], R[:, 3:])
    assert (got - want).abs().max() < 1e-5
    rest = smplx.lbs.vertices2joints(model.J_regressor, model.shaped(betas[:, :300], betas[:, 300:]))
    torch.testing.assert_close(model.joints(betas[:, :300], betas[:, 300:]), rest)


def test_open_head_agrees_with_numpy_loop():
    model = head.load()
    rng = np.random.default_rng(0)
    shape, expression = rng.normal(size=model.n_shape), rng.random(model.n_expression)
    R = st.Rotation.from_rotvec(rng.normal(size=(5, 3)) * 0.3).as_matrix()
    arrays = {k: getattr(model, k).numpy() for k in ("v_template", "posedirs", "J_regressor", "weights")}
    arrays["shapedirs"] = torch.cat([model.shapedirs, model.expressiondirs], 2).numpy()
    want = numpy_flame(arrays, model.n_shape, shape, expression, R, np.zeros(3))
    f = lambda a: torch.from_numpy(a).float()[None]  # noqa: E731
    got = model(f(shape), f(expression), f(R[0]), f(R[1]), f(R[2]), f(R[3:]))[0]
    assert np.abs(got.numpy() - want).max() < 1e-5


def test_gradients_of_every_input(flame_pickle):
    model = head.load(flame_pickle).to(torch.float64)
    g = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64, requires_grad=True)  # noqa: E731
    inputs = (draw(2, 3), draw(2, 3), draw(2, 3, 3), draw(2, 3, 3), draw(2, 3, 3), draw(2, 2, 3, 3))
    probe = torch.randn(2, 120, 3, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *a: (model(*a) * probe).sum(), inputs)


def test_eyelids_move_vertices_but_not_joints():
    model = head.load()
    lids = torch.tensor([[1.0, 0.0]])
    assert (model(eyelids=lids) - model()).abs().max() > 1e-3
    neck = roma.rotvec_to_rotmat(torch.tensor([[0.0, 0.3, 0.0]]))
    assert torch.allclose(
        model(eyelids=lids, neck=neck) - model(neck=neck), (model(eyelids=lids) - model()) @ neck[0].T, atol=5e-3
    )


def test_any_prefix_of_the_coefficients(flame_pickle):
    model = head.load(flame_pickle)
    long = torch.zeros(1, 300)
    long[:, :5] = torch.randn(5)
    torch.testing.assert_close(model(long[:, :5]), model(long))
    with pytest.raises(InputError, match="300 shape coefficients, but 301"):
        model(torch.zeros(1, 301))
    with pytest.raises(InputError, match="no eyelid"):
        model(eyelids=torch.zeros(1, 2))


def test_released_pickle_loads_without_chumpy(flame_pickle):
    with pytest.raises(ModuleNotFoundError), open(flame_pickle, "rb") as file:  # it needs chumpy otherwise
        pickle.load(file, encoding="latin1")
    model, arrays = head.load(flame_pickle), flame_arrays()
    np.testing.assert_allclose(model.v_template, arrays["v_template"], rtol=1e-6)
    np.testing.assert_allclose(model.expressiondirs, arrays["shapedirs"][:, :, 300:], rtol=1e-6)
    np.testing.assert_allclose(model.J_regressor, arrays["J_regressor"].toarray(), rtol=1e-6)
    assert model.parents == (-1, 0, 1, 1, 1) and model.n_shape == 300 and model.n_expression == 100


def test_npz_with_arrays_of_objects(tmp_path, flame_pickle):
    """As numpy.savez writes what a pickle held: sparse matrices, and numbers as objects."""
    arrays = flame_arrays()
    objects = {key: arrays[key].astype(object) for key in ("f", "kintree_table", "weights")}
    np.savez(tmp_path / "flame.npz", **(arrays | objects), bs_type="lrotmin", J={"no": "array"})
    a, b = head.load(tmp_path / "flame.npz"), head.load(flame_pickle)
    torch.testing.assert_close(a(torch.ones(1, 10)), b(torch.ones(1, 10)))
    assert (a.faces == b.faces).all()
    for wrong in (np.array([print, 1], object), np.array([[1], [1, 2]], object), np.array("text", object)):
        np.savez(tmp_path / "wrong.npz", **(arrays | {"weights": wrong}))
        with pytest.raises(InputError, match=r"wrong\.npz"):
            head.load(tmp_path / "wrong.npz")


def test_npz_of_the_same_arrays(tmp_path, flame_pickle):
    arrays = flame_arrays()
    arrays["J_regressor"] = arrays["J_regressor"].toarray()
    np.savez(tmp_path / "flame.npz", **arrays)
    a, b = head.load(tmp_path / "flame.npz"), head.load(flame_pickle)
    torch.testing.assert_close(a(torch.ones(1, 10)), b(torch.ones(1, 10)))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_hostile_pickle_is_refused_and_runs_nothing(tmp_path):
    ran = tmp_path / "ran"
    for name, data in (("a.pkl", {"v_template": Hostile(ran)}), ("b.pkl", Hostile(ran))):
        (tmp_path / name).write_bytes(pickle.dumps(data, protocol=2))
        with pytest.raises(InputError, match=r"posix\.system|nt\.system"):
            head.load(tmp_path / name)
    (tmp_path / "c.pkl").write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    with pytest.raises(InputError, match=r"builtins\.eval"):
        head.load(tmp_path / "c.pkl")
    # A harmless-looking name below an allowed module must not open a way to others.
    (tmp_path / "d.pkl").write_bytes(b"cchumpy.os\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR.")
    with pytest.raises(InputError):
        head.load(tmp_path / "d.pkl")
    assert not ran.exists()


def change(**changes):
    arrays = flame_arrays()
    for key, value in changes.items():
        if value is None:
            del arrays[key]
        else:
            arrays[key] = value(arrays[key])
    return arrays


WRONG = {
    "missing key": (change(shapedirs=None), "has no shapedirs"),
    "no expressions": (change(shapedirs=lambda a: a[:, :, :300]), "more than 300"),
    "wrong vertex count": (change(weights=lambda a: a[:-1]), r"weights has shape \(119, 5\)"),
    "wrong joints": (change(weights=lambda a: a[:, :4]), "weights has shape"),
    "wrong tree": (change(kintree_table=lambda a: a * 0), "parents"),
    "face out of range": (change(f=lambda a: a + 100), "points outside"),
    "NaN": (change(v_template=lambda a: a * np.nan), "NaN"),
    "text for numbers": (change(posedirs=lambda a: "text"), "not a numeric array"),
    "pose basis": (change(posedirs=lambda a: a[:, :, :9]), "posedirs has shape"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_models_say_what_is_wrong(tmp_path, case):
    arrays, message = WRONG[case]
    write_flame_pickle(tmp_path / "m.pkl", arrays, chumpy_keys=())
    with pytest.raises(InputError, match=message) as error:
        head.load(tmp_path / "m.pkl")
    assert "m.pkl" in str(error.value) and "\n" not in str(error.value)


def test_broken_files(tmp_path, flame_pickle):
    whole = flame_pickle.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        flame_pickle.write_bytes(whole[:length])
        with pytest.raises(InputError, match="not a readable pickle"):
            head.load(flame_pickle)
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1], protocol=2))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "m.obj").write_text("v 0 0 0")
    for name, message in (
        ("list.pkl", "holds a list"),
        ("text.npz", "not a readable npz"),
        ("m.obj", r"must be a \.pkl or \.npz"),
        ("none.pkl", "does not exist"),
        (".", "is not a file"),
    ):
        with pytest.raises(InputError, match=message):
            head.load(tmp_path / name)


def test_landmark_embeddings_are_zero_based(tmp_path, flame_pickle):
    faces, bary = np.arange(68), np.tile([0.2, 0.3, 0.5], (68, 1))
    deca = {"full_lmk_faces_idx": faces[None], "full_lmk_bary_coords": bary[None], "static_lmk_faces_idx": faces[:51]}
    np.save(tmp_path / "landmark_embedding.npy", np.array(deca, dtype=object), allow_pickle=True)
    np.savez(tmp_path / "lmk.npz", lmk_faces_idx=faces, lmk_bary_coords=bary)
    for path in (tmp_path / "lmk.npz", None):  # None: the file beside the model
        model = head.load(flame_pickle, landmark_embedding=path)
        vertices = model()
        want = (vertices[0].numpy()[flame_arrays()["f"][:68].astype(int)] * bary[:, :, None]).sum(1)
        np.testing.assert_allclose(model.landmarks(vertices)[0], want, atol=1e-6)
    np.savez(tmp_path / "mediapipe.npz", lmk_face_idx=np.arange(105), lmk_b_coords=np.ones((105, 3)) / 3)
    with pytest.raises(InputError, match="105 landmarks"):
        head.load(flame_pickle, landmark_embedding=tmp_path / "mediapipe.npz")
    np.save(tmp_path / "evil.npy", np.array(Hostile(tmp_path / "ran"), dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="system"):
        head.load(flame_pickle, landmark_embedding=tmp_path / "evil.npy")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="no landmarks"):
        write_flame_pickle(tmp_path / "sub.pkl", flame_arrays())
        (tmp_path / "landmark_embedding.npy").unlink()
        head.load(tmp_path / "sub.pkl").landmarks(torch.zeros(1, 120, 3))


def test_uv_files(tmp_path, flame_pickle):
    faces = flame_arrays()["f"]
    vt = np.random.default_rng(0).random((120, 2))
    lines = ["v 0 0 0"] + [f"vt {u} {v}" for u, v in vt]
    lines += [f"f {a + 1}/{a + 1} {b + 1}/{b + 1} {c + 1}/{c + 1}" for a, b, c in faces]
    (tmp_path / "head_template_mesh.obj").write_text("\n".join(lines))
    model = head.load(flame_pickle)
    np.testing.assert_allclose(model.vt, vt, rtol=1e-6)
    np.testing.assert_array_equal(model.ft, faces.astype(np.int64))
    (tmp_path / "bad.obj").write_text("v 0 0 0\nf 1 2 3")
    with pytest.raises(InputError, match="texture coordinates"):
        head.load(flame_pickle, uv=tmp_path / "bad.obj")


def test_unwrap_is_made_once_and_covers_every_face(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bare = replace(head.load(), vt=None, ft=None)
    model = head.with_uv(bare)
    (cached,) = (tmp_path / "recon4d").iterdir()
    assert model.ft.shape == model.faces.shape and model.vt.min() >= 0 and model.vt.max() <= 1
    a, b, c = model.vt[model.ft].double().unbind(1)
    area = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    assert (area.abs() > 0).float().mean() > 0.99  # no face without texture
    assert 0.3 < area.abs().sum() < 1  # a layout that overlapped could exceed the square
    written = cached.stat().st_mtime_ns
    again = head.with_uv(bare)
    assert torch.equal(again.vt, model.vt) and cached.stat().st_mtime_ns == written
    cached.write_bytes(b"broken")
    assert torch.equal(head.with_uv(bare).ft, model.ft)
    assert head.with_uv(head.load()).vt.shape == head.load().vt.shape


def test_eyelids_beside_a_flame_file(tmp_path):
    """metrical-tracker keeps them in two files beside the model."""
    arrays = flame_arrays()
    write_flame_pickle(tmp_path / "flame.pkl", arrays)
    assert head.load(tmp_path / "flame.pkl").eyelids is None
    rng = np.random.default_rng(5)
    lids = {side: rng.normal(size=(120, 3)).astype(np.float32) for side in "lr"}
    for side, values in lids.items():
        np.save(tmp_path / f"{side}_eyelid.npy", values)
    found = head.load(tmp_path / "flame.pkl").eyelids
    np.testing.assert_allclose(found.numpy(), np.stack([lids["l"], lids["r"]], 2))
    np.save(tmp_path / "r_eyelid.npy", lids["r"][:7])
    with pytest.raises(InputError, match=r"r_eyelid\.npy has shape \(7, 3\)"):
        head.load(tmp_path / "flame.pkl")
