"""VHAP's export: `flame_param/*.npz`, pictures and `transforms.json`, which GaussianAvatars and others train from."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch

from recon4d import images
from recon4d.files import InputError, read_json, read_npz, write_npz, write_text
from recon4d.formats.track import Track
from recon4d.head import HeadModel

AXES = np.diag([1.0, -1.0, -1.0, 1.0])
FLIP = np.diag(np.array([1, -1, -1], np.float32))  # between OpenCV's axes and y up
SIZES = {"rotation": 3, "translation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "expr": None}


def write(folder: str | Path, track: Track, head: HeadModel, pictures: str | Path) -> None:
    """Write a track of one camera as VHAP exports it.

    The world is the camera's own place, y up, looking back along z: `transform_matrix` is the identity, and the head
    moves. Lengths are metres. Eyelids are no part of the format.

    Args:
        folder: gets `flame_param/00000.npz` and on, `canonical_flame_param.npz` and `transforms.json`.
        head: a FLAME model, whose joints the rotations are about.
        pictures: the folder of the track's pictures, which `transforms.json` names; they are not copied.

    Raises:
        InputError: a head model with names for its expressions, which is no FLAME.
    """
    if head.expression_names:
        raise InputError(f"VHAP's parameters are FLAME's, not those of {track.head_model}; give FLAME's own file")
    folder, pictures = Path(folder), Path(pictures).resolve()
    shape, expression = torch.from_numpy(track.shape[None]), torch.from_numpy(track.expression)
    root = head.joints(shape, expression)[:, 0].numpy()
    R, t = FLIP @ track.R, track.t @ FLIP
    poses = {
        "rotation": _vectors(R),
        "neck_pose": _vectors(track.neck),
        "jaw_pose": _vectors(track.jaw),
        "eyes_pose": _vectors(track.eyes).reshape(len(track), 6),
        # FLAME turns about its root joint, a track's pose about the origin
        "translation": t + np.einsum("nij,nj->ni", R, root) - root,
        "expr": _padded(track.expression, head.n_expression),
    }
    offset = np.zeros((1, len(head.v_template), 3), np.float32)
    still = {"shape": _padded(track.shape, head.n_shape), "static_offset": offset}
    frames = []
    for i, name in enumerate(track.names):
        where = f"flame_param/{i:05d}.npz"
        write_npz(folder / where, **still, **{key: value[i : i + 1].astype(np.float32) for key, value in poses.items()})
        K = track.K if track.Ks is None else track.Ks[i]
        frames.append(_frame(track, K, i) | {"file_path": str(pictures / str(name)), "flame_param_path": where})
    neutral = {key: np.zeros_like(value[:1], np.float32) for key, value in poses.items()}
    write_npz(folder / "canonical_flame_param.npz", **still, **neutral)
    listed: dict[str, Any] = _camera(track, track.K) | {
        "camera_indices": [0],
        "timestep_indices": list(range(len(track))),
        "frames": frames,
    }
    write_text(folder / "transforms.json", json.dumps(listed, indent=1) + "\n")


@dataclass(frozen=True, eq=False)
class Parameters:
    """FLAME's parameters of N frames, float32.

    track: the head before the first camera; where `placed` is off, no camera is known, and it is as if one stood at the
    world's origin and looked back along z.
    """

    track: Track
    placed: bool


def is_one(arrays: dict[str, np.ndarray]) -> bool:
    """Whether an npz file's arrays are FLAME's parameters as VHAP writes them."""
    return {"rotation", "translation", "expr", "shape"} <= set(arrays)


def read(path: str | Path, head: HeadModel) -> Parameters:
    """Read FLAME's parameters: a folder as VHAP, NeRSemble and GaussianAvatars have it, or one npz of a clip or frame.

    Of a folder with `transforms.json` the frames of its first camera, in their order in time, before that camera; else
    all `*.npz` of `flame_param/` or of the folder itself. `static_offset` is left out: it is the person's, no motion.

    Args:
        head: a FLAME model, whose joints the rotations are about.

    Raises:
        InputError: a missing or broken file, a head model that is no FLAME.
    """
    path = Path(path)
    if head.expression_names:
        raise InputError(
            f"{path} holds FLAME's parameters, which do not fit the head model {head.name}; give an avatar of FLAME, "
            "or drive this one with ARKit's activations (a CSV of Live Link Face, blendshapes as JSON)"
        )
    listed = path / "transforms.json"
    frames = _first_camera(listed) if path.is_dir() and listed.is_file() else None
    if frames:
        files = [path / str(frame["flame_param_path"]) for frame in frames]
        for file in files:
            if not file.resolve().is_relative_to(path.resolve()):
                raise InputError(f"{listed} names {file}, outside its folder; correct flame_param_path")
    elif path.is_dir():
        folder = path / "flame_param" if (path / "flame_param").is_dir() else path
        there = [file for file in folder.glob("*.npz") if file.name[0] != "." and "canonical" not in file.name]
        files = sorted(there, key=lambda file: images.natural_key(file.name))
    else:
        files = [path]
    if not files:
        raise InputError(f"{path} has no flame_param/*.npz; give a folder of VHAP's or one npz file")
    parts = [_parameters(file) for file in files]
    values = {key: np.concatenate([part[key] for part in parts]) for key in SIZES}
    return Parameters(_track(values, parts[0]["shape"], frames, head, files), bool(frames))


@dataclass(frozen=True, eq=False)
class Rig:
    """A capture of one or several cameras, as VHAP, NeRSemble and GaussianAvatars have it.

    track: all pictures, camera after camera in order of time, named as their files are in `pictures`.
    pictures, masks: the folders of pictures and of greyscale masks of the same names, which pictures with alpha may
    do without.
    """

    track: Track
    pictures: Path
    masks: Path | None


def read_rig(folder: str | Path, head: HeadModel) -> Rig:
    """Read a folder with `transforms.json`: all of its cameras, pictures and masks.

    Args:
        head: a FLAME model, whose joints the rotations are about.

    Raises:
        InputError: a missing or broken file, paths outside the folder, pictures in several folders or of several
            sizes, a head model that is no FLAME.
    """
    folder = Path(folder)
    listed = folder / "transforms.json"
    frames = _frames(listed)
    names = [str(frame.get("camera_index", 0)) for frame in frames]
    order = sorted(range(len(frames)), key=lambda i: names.index(names[i]))  # a stable sort: time stays in order
    frames, names = [frames[i] for i in order], [names[i] for i in order]
    if len({(frame.get("w"), frame.get("h")) for frame in frames}) > 1:
        raise InputError(f"{listed} has pictures of several sizes; bring them to one")
    paths = [_inside(folder, listed, frame, "file_path") for frame in frames]
    masks = [_inside(folder, listed, frame, "fg_mask_path") for frame in frames if frame.get("fg_mask_path")]
    if len({path.parent for path in paths}) > 1 or len({path.parent for path in masks}) > 1:
        raise InputError(f"{listed} has pictures or masks in several folders; put them into one")
    files = [_inside(folder, listed, frame, "flame_param_path") for frame in frames]
    once = {file: _parameters(file) for file in dict.fromkeys(files)}
    parts = [once[file] for file in files]
    values = {key: np.concatenate([part[key] for part in parts]) for key in SIZES}
    if len(values["expr"]) != len(frames):
        raise InputError(f"{listed} names files of flame_param with several frames each; give one file for each frame")
    # As before the first camera, which all others are placed by.
    still = [frames[0] | {"flame_param_path": frame["flame_param_path"]} for frame in frames]
    track = _track(values, parts[0]["shape"], still, head, files)
    track = replace(track, names=np.array([path.name for path in paths]))
    if len(set(names)) > 1:
        try:
            poses = np.array([frame["transform_matrix"] for frame in frames], np.float64)
            views = AXES @ np.linalg.inv(poses) @ poses[0] @ AXES
            Ks = np.stack([_intrinsics(frame) for frame in frames])
        except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
            raise InputError(f"{listed} holds no cameras ({error})") from error
        if views.shape != (len(frames), 4, 4) or not (np.isfinite(views).all() and np.isfinite(Ks).all()):
            raise InputError(f"{listed} holds no cameras; export it with VHAP again")
        track = replace(track, views=views.astype(np.float32), Ks=Ks, cameras=np.array(names))
    return Rig(track, paths[0].parent, masks[0].parent if len(masks) == len(paths) else None)


def _inside(folder: Path, listed: Path, frame: dict[str, Any], key: str) -> Path:
    path = folder / str(frame.get(key))
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{listed} names {path}, outside its folder; correct {key}")
    return path


def _intrinsics(frame: dict[str, Any]) -> np.ndarray:
    fx = float(frame["fl_x"])
    middle = float(frame.get("cx", frame["w"] / 2)), float(frame.get("cy", frame["h"] / 2))
    return np.array([[fx, 0, middle[0]], [0, float(frame.get("fl_y", fx)), middle[1]], [0, 0, 1]], np.float32)


def _first_camera(path: Path) -> list[dict[str, Any]]:
    """The frames of the first camera in time, each with what `read` asks of it."""
    frames = _frames(path)
    first = frames[0].get("camera_index", 0)
    return [frame for frame in frames if frame.get("camera_index", 0) == first]


def _frames(path: Path) -> list[dict[str, Any]]:
    """All frames in time, each with what is shared."""
    content = read_json(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{path} has no frames; give a folder as VHAP exports it")
    if not all("flame_param_path" in frame and "transform_matrix" in frame for frame in frames):
        raise InputError(f"{path} has frames without flame_param_path or transform_matrix; export it with VHAP again")
    shared = {key: value for key, value in content.items() if key != "frames"}
    try:
        return sorted((shared | frame for frame in frames), key=lambda frame: int(frame.get("timestep_index", 0)))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: timestep_index is no number; export it with VHAP again") from error


def _parameters(path: Path) -> dict[str, np.ndarray]:
    """One file's arrays: (n, size) each, and shape (S,)."""
    arrays = read_npz(path)
    if not is_one(arrays):
        raise InputError(f"{path} holds no FLAME parameters (rotation, translation, expr, shape); give VHAP's files")
    arrays = {key: np.zeros((1, size or 0), np.float32) for key, size in SIZES.items()} | arrays
    n = len(np.atleast_2d(arrays["expr"]))
    found = {}
    for key, size in (SIZES | {"shape": None}).items():
        value = np.atleast_2d(np.asarray(arrays[key]))
        fits = value.ndim == 2 and len(value) in (1, n) and value.size > 0 and size in (None, value.shape[1])
        if value.dtype.kind not in "fiu" or not fits:
            raise InputError(f"{path}: {key} is {value.dtype} of shape {value.shape}; export it with VHAP again")
        if not np.abs(value).max() < 1e6:  # radians, metres, standard deviations
            raise InputError(f"{path} holds NaN, infinite or huge numbers; track the clip again")
        found[key] = np.broadcast_to(value, (n, value.shape[1])).astype(np.float32)
    return found | {"shape": found["shape"][0]}


def _track(
    values: dict[str, np.ndarray],
    shape: np.ndarray,
    frames: list[dict[str, Any]] | None,
    head: HeadModel,
    files: list[Path],
) -> Track:
    """The inverse of `write`."""
    n = len(values["expr"])
    shape, expression = shape[: head.n_shape], values["expr"][:, : head.n_expression]
    root = head.joints(torch.from_numpy(shape[None]), torch.from_numpy(expression.copy()))[:, 0].numpy()
    R = _matrices(values["rotation"])
    t = values["translation"] - np.einsum("nij,nj->ni", R, root) + root
    K, size = np.array([[1.0, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]], np.float32), [1, 1]
    if frames:
        try:
            views = np.linalg.inv(np.array([frame["transform_matrix"] for frame in frames], np.float64))
            first = frames[0]
            size = [int(first["w"]), int(first["h"])]
            K = _intrinsics(first)
            views = np.broadcast_to(views, (n, 4, 4))
        except (KeyError, TypeError, ValueError, OverflowError, np.linalg.LinAlgError) as error:
            raise InputError(f"{files[0].parent.parent / 'transforms.json'} holds no cameras ({error})") from error
        usual = np.isfinite(views).all() and np.isfinite(K).all() and min(K[0, 0], K[1, 1]) > 0
        if not (usual and min(size) > 0 and max(size) < 1e5):
            raise InputError(
                f"{files[0].parent.parent / 'transforms.json'} holds no cameras; export it with VHAP again"
            )
        R = (views[:, :3, :3] @ R).astype(np.float32)
        t = (np.einsum("nij,nj->ni", views[:, :3, :3], t) + views[:, :3, 3]).astype(np.float32)
    return Track(
        head_model=head.name,
        image_size=np.array(size),
        fps=25.0,  # not in the format; VHAP's default
        K=K,
        names=np.array([f"{i:05d}.png" for i in range(n)]),
        valid=np.ones(n, bool),
        shape=shape,
        expression=expression,
        R=FLIP @ R,
        t=(t @ FLIP).astype(np.float32),
        neck=_matrices(values["neck_pose"]),
        jaw=_matrices(values["jaw_pose"]),
        eyes=_matrices(values["eyes_pose"].reshape(n, 2, 3)),
        eyelids=np.zeros((n, 2), np.float32),
    )


def _matrices(vectors: np.ndarray) -> np.ndarray:
    answer: np.ndarray = roma.rotvec_to_rotmat(torch.from_numpy(np.ascontiguousarray(vectors, np.float32))).numpy()
    return answer


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    """(..., size) coefficients, those that a track leaves out zero."""
    return np.concatenate([values, np.zeros((*values.shape[:-1], size - values.shape[-1]), np.float32)], -1)


def _vectors(R: np.ndarray) -> np.ndarray:
    answer: np.ndarray = roma.rotmat_to_rotvec(torch.from_numpy(np.ascontiguousarray(R, np.float32))).numpy()
    return answer


def _camera(track: Track, K: np.ndarray) -> dict[str, Any]:
    width, height = (int(side) for side in track.image_size)
    focal = {"fl_x": float(K[0, 0]), "fl_y": float(K[1, 1]), "cx": float(K[0, 2]), "cy": float(K[1, 2])}
    angles = {"camera_angle_x": float(2 * np.arctan(width / (2 * K[0, 0])))}
    angles["camera_angle_y"] = float(2 * np.arctan(height / (2 * K[1, 1])))
    return focal | {"w": width, "h": height} | angles


def _frame(track: Track, K: np.ndarray, i: int) -> dict[str, Any]:
    index = {"timestep_index": i, "timestep_index_original": i, "timestep_id": f"frame_{i:05d}"}
    camera = {"camera_index": 0, "camera_id": "0", "transform_matrix": np.eye(4).tolist()}
    return index | camera | _camera(track, K)
