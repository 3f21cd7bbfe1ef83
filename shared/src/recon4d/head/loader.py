"""Read head models: the open head, FLAME 2020/2023 pickles (without chumpy), and npz files of the same arrays."""

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from recon4d import pickles
from recon4d.files import InputError, read_npy, read_npz
from recon4d.head.dense import FLAMES_OWN, beside, read_dense
from recon4d.head.model import HeadModel

FLAME_IDENTITIES = 300  # shapedirs 0..299 are identity, 300..399 expression; there is no separate expression key
REQUIRED = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
_KEPT = (*REQUIRED, "vt", "ft")

MOST_CELLS = 1 << 26  # of a sparse matrix written out


def _plain(value: Any) -> Any:
    """The array behind a chumpy object or a sparse matrix."""
    if isinstance(value, pickles.Record):
        if not isinstance(value.state, dict) or "x" not in value.state:
            raise InputError("the file holds a chumpy expression instead of an array; save the model's plain arrays")
        return _plain(value.state["x"])
    if scipy.sparse.issparse(value):
        if value.shape[0] * value.shape[1] > MOST_CELLS:
            raise InputError(f"the file holds a sparse matrix of shape {value.shape}, too large for a head model")
        return value.toarray()
    return value


def load(
    path: str | Path | None = None,
    landmark_embedding: str | Path | None = None,
    uv: str | Path | None = None,
) -> HeadModel:
    """The open head, or the FLAME-format model in `path`.

    Args:
        path: a FLAME pickle (`generic_model.pkl`, `flame2023.pkl`) or an npz of the same arrays;
            None for the open head.
        landmark_embedding: DECA's `landmark_embedding.npy` or an npz with `lmk_faces_idx` and `lmk_bary_coords`.
            None: the file of that name beside `path`, where there is one.
        uv: an OBJ or npz with `vt` and `ft`. None: `head_template_mesh.obj` or `flame_uv.npz` beside `path`,
            where there is one.

    Eyelids come from metrical-tracker's `l_eyelid.npy` and `r_eyelid.npy` beside `path`, where there are both. The
    points of MediaPipe's face mesh come from `<stem>_dense.npz` (`flame-encoder check-model --embed` makes it) or
    FLAME's `mediapipe_landmark_embedding.npz` beside `path`, where there is one.

    Raises:
        InputError: a missing or broken file, a forbidden class in a pickle, missing keys or wrong shapes.
    """
    if path is None:
        with resources.as_file(resources.files("recon4d.head") / "open_head.npz") as open_head:
            model = _build(read_npz(open_head), "open-head", open_head)
        with resources.as_file(resources.files("recon4d.head") / "open_head_dense.npz") as points:
            return replace(model, dense=read_dense(points, len(model.faces)))
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the head model {path} does not exist or is not a file")
    if path.suffix == ".npz":
        arrays = _read_npz(path)
    elif path.suffix in (".pkl", ".pickle"):
        arrays = _read_pickle(path)
    else:
        raise InputError(f"the head model {path} must be a .pkl or .npz file")
    if landmark_embedding is None:
        landmark_embedding = _beside(path, "landmark_embedding.npy", "landmark_embedding.npz")
    if landmark_embedding is not None:
        arrays |= read_landmark_embedding(landmark_embedding)
    if uv is None:
        uv = _beside(path, "flame_uv.npz", "head_template_mesh.obj")
    if uv is not None:
        arrays |= read_uv(uv)
    left, right = (_beside(path, f"{side}_eyelid.npy") for side in "lr")
    if "eyelids" not in arrays and left and right:
        arrays["eyelids"] = np.stack([_eyelid(lid, len(arrays.get("v_template", ()))) for lid in (left, right)], 2)
    model = _build(arrays, path.stem, path)
    dense = _beside(path, beside(path).name, FLAMES_OWN)
    return model if dense is None else replace(model, dense=read_dense(dense, len(model.faces)))


def _eyelid(path: Path, n: int) -> np.ndarray:
    """The blendshape (V, 3) of one eyelid."""
    shape = read_npy(path)
    if shape.shape != (n, 3) or shape.dtype.kind != "f" or not np.isfinite(shape).all():
        raise InputError(f"{path} has shape {shape.shape}; the eyelid of this head model has ({n}, 3)")
    return shape


def _beside(path: Path, *names: str) -> Path | None:
    return next((path.parent / name for name in names if (path.parent / name).is_file()), None)


def _read_npz(path: Path) -> dict[str, Any]:
    """Its arrays; those of objects, as of a FLAME pickle that was saved again, are read as a pickle's values."""
    found = {}
    for key, value in pickles.read_npz(path, modules=("chumpy",)).items():
        if isinstance(value, np.ndarray) and value.dtype != object:
            found[key] = value
        elif key in _KEPT:
            try:
                plain = _plain(value)
                found[key] = np.array(plain.tolist()) if isinstance(plain, np.ndarray) else plain
            except (InputError, ValueError) as error:
                raise InputError(f"{path}: {key} is no array of numbers ({error}); save plain arrays") from error
    return found


def _read_pickle(path: Path) -> dict[str, Any]:
    data = pickles.loads(path.read_bytes(), path, modules=("chumpy",))
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a {type(data).__name__}, not the dictionary of a FLAME model")
    # Only what a head model needs: released files hold more, some of it chumpy expressions without a value.
    try:
        return {str(key): _plain(value) for key, value in data.items() if key in _KEPT}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_landmark_embedding(path: str | Path) -> dict[str, np.ndarray]:
    """The 68-landmark embedding as `lmk_faces_idx` (68,) and `lmk_bary_coords` (68, 3); indices are zero-based.

    Reads DECA's `landmark_embedding.npy` (a pickled dict in an object array, read by the reader of pickles) and
    npz files with either naming.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the landmark embedding {path} does not exist or is not a file")
    if path.suffix == ".npz":
        data: Any = read_npz(path)
    else:
        data = pickles.read_npy(path)
        if isinstance(data, np.ndarray) and data.dtype != object:
            raise InputError(f"{path} holds a plain array; a landmark embedding is DECA's dictionary or an npz")
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a landmark embedding: it holds no dictionary")
    for faces, bary in (
        ("full_lmk_faces_idx", "full_lmk_bary_coords"),
        ("lmk_faces_idx", "lmk_bary_coords"),
        ("lmk_face_idx", "lmk_b_coords"),
    ):
        if faces in data and bary in data:
            face_ids = np.asarray(data[faces]).reshape(-1).astype(np.int64)
            if len(face_ids) != 68:
                raise InputError(f"{path} has {len(face_ids)} landmarks; the 68 iBUG landmarks are needed")
            return {
                "lmk_faces_idx": face_ids,
                "lmk_bary_coords": np.asarray(data[bary], np.float64).reshape(68, 3),
            }
    raise InputError(
        f"{path} has no full_lmk_faces_idx and full_lmk_bary_coords; its keys are {', '.join(sorted(map(str, data)))}"
    )


def read_uv(path: str | Path) -> dict[str, np.ndarray]:
    """Texture coordinates `vt` (T, 2), v up, and `ft` (F, 3) from an npz or an OBJ file (triangles)."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the UV file {path} does not exist or is not a file")
    if path.suffix == ".npz":
        data = read_npz(path)
        for points, triangles in (("vt", "ft"), ("verts_uvs", "textures_idx")):
            if points in data and triangles in data:
                return {"vt": data[points], "ft": data[triangles]}
        raise InputError(f"{path} has no vt and ft; its keys are {', '.join(sorted(data))}")
    vt, ft = [], []
    try:
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] == ["vt"]:
                vt.append([float(w) for w in words[1:3]])
            elif words[:1] == ["f"]:
                ft.append([int(w.split("/")[1]) - 1 for w in words[1:4]])
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not an OBJ file with texture coordinates ({error})") from error
    if not vt or not ft:
        raise InputError(f"{path} has no texture coordinates (vt lines and f a/b lines)")
    return {"vt": np.array(vt), "ft": np.array(ft)}


def _build(arrays: dict[str, Any], name: str, path: Path) -> HeadModel:
    missing = [key for key in REQUIRED if key not in arrays and not (key == "J_regressor" and "J_vals" in arrays)]
    if missing:
        raise InputError(f"{path} is not a FLAME-format head model: it has no {', '.join(missing)}")

    def array(key: str, *shape: int | None) -> np.ndarray:
        value = np.asarray(arrays[key])
        if value.dtype == object or value.dtype.kind not in "fiub":
            raise InputError(f"{path}: {key} is not a numeric array")
        if value.ndim != len(shape) or any(want is not None and want != got for want, got in zip(shape, value.shape)):
            wanted = ", ".join("any" if s is None else str(s) for s in shape)
            raise InputError(f"{path}: {key} has shape {value.shape}; ({wanted}) is needed")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f"{path}: {key} holds NaN or infinite numbers")
        return value

    def floats(key: str, *shape: int | None) -> torch.Tensor:
        return torch.from_numpy(array(key, *shape).astype(np.float32))

    def indices(key: str, limit: int, *shape: int | None) -> torch.Tensor:
        value = array(key, *shape).astype(np.int64)
        if value.size and (value.min() < 0 or value.max() >= limit):
            raise InputError(f"{path}: {key} points outside its array of {limit}")
        return torch.from_numpy(value)

    v_template = floats("v_template", None, 3)
    n_vertices = len(v_template)
    shapedirs = floats("shapedirs", n_vertices, 3, None)
    identities = int(np.asarray(arrays.get("n_identity", FLAME_IDENTITIES)).item())
    if shapedirs.shape[2] <= identities:
        raise InputError(
            f"{path}: shapedirs has {shapedirs.shape[2]} components; more than {identities} are needed, "
            "identity first, then expression"
        )
    if "J_vals" in arrays:
        regressor = np.zeros((5, n_vertices), np.float32)
        np.add.at(regressor, (array("J_rows", None), array("J_cols", None)), array("J_vals", None))
        arrays = arrays | {"J_regressor": regressor}
    parents = array("kintree_table", 2, 5)[0].astype(np.int64)
    parents = tuple(-1 if p > 4 or p < 0 else int(p) for p in parents)
    if parents != (-1, 0, 1, 1, 1):
        raise InputError(f"{path}: kintree_table has parents {parents}; FLAME's are (-1, 0, 1, 1, 1)")
    faces = indices("f", n_vertices, None, 3)
    optional: dict[str, Any] = {}
    if "vt" in arrays and "ft" in arrays:
        optional["vt"] = floats("vt", None, 2)
        optional["ft"] = indices("ft", len(optional["vt"]), len(faces), 3)
    if "eyelids" in arrays:
        optional["eyelids"] = floats("eyelids", n_vertices, 3, 2)
    if "lmk_faces_idx" in arrays:
        optional["landmark_faces"] = indices("lmk_faces_idx", len(faces), 68)
        optional["landmark_bary"] = floats("lmk_bary_coords", 68, 3)
    regions = {
        k.removeprefix("region_"): torch.from_numpy(array(k, n_vertices) > 0) for k in arrays if k.startswith("region_")
    }
    if regions:
        optional["regions"] = regions
    if "expression_names" in arrays:
        optional["expression_names"] = tuple(str(n) for n in np.asarray(arrays["expression_names"]))
    if "albedo_mean" in arrays:
        optional["albedo_mean"] = floats("albedo_mean", None, None, 3) / 255
    if "albedo_components" in arrays:
        scale = torch.from_numpy(np.asarray(arrays.get("albedo_scale", 1.0), np.float32))
        optional["albedo_components"] = floats("albedo_components", None, None, 3, None) * scale
    return HeadModel(
        name=name,
        v_template=v_template,
        shapedirs=shapedirs[:, :, :identities].contiguous(),
        expressiondirs=shapedirs[:, :, identities:].contiguous(),
        posedirs=floats("posedirs", n_vertices, 3, 36),
        J_regressor=floats("J_regressor", 5, n_vertices),
        weights=floats("weights", n_vertices, 5),
        parents=parents,
        faces=faces,
        **optional,
    )
