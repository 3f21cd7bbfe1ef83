"""VHAP's export: `flame_param/*.npz`, pictures and `transforms.json`, which GaussianAvatars and others train from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch

from recon4d.files import InputError, write_npz, write_text
from recon4d.formats.track import Track
from recon4d.head import HeadModel


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
    flip = np.diag(np.array([1, -1, -1], np.float32))  # OpenCV's axes to y up
    R, t = flip @ track.R, track.t @ flip
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
