"""Expression coefficients per frame, imported from FaceVerse or from a track of the head model."""

from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from recon4d import InputError
from recon4d.formats import track as track_format
from recon4d.formats.track import Track

from feat_extract.config import Config
from feat_extract.dataset import PREFIX, claim_features, find_frames, read_numbers, write_npy

EXPRESSION = slice(156, 327)  # of a FaceVerse v4 vector: columns 156 to 326 inclusive
N_EXPRESSION = 171


def expression_part(array: np.ndarray, path: Path) -> np.ndarray:
    """The 171 expression numbers of a FaceVerse v4 vector (>=327,), (1, >=327), or of one already cut (171,).

    Raises InputError naming `path` for any other shape.
    """
    flat = array[0] if array.ndim == 2 and len(array) == 1 else array
    if flat.ndim == 1 and len(flat) >= EXPRESSION.stop:
        return flat[EXPRESSION]
    if flat.ndim == 1 and len(flat) == N_EXPRESSION:
        return flat
    raise InputError(
        f"{path} has shape {array.shape}; FaceVerse v4 gives at least 327 numbers per frame, or 171 already cut"
    )


def track_coefficients(track: Track) -> np.ndarray:
    """(N, E + 11) per frame: expression, jaw rotation vector (3), left and right eye rotation vectors (6), eyelids (2).

    Identity and pose of the head are left out.
    """

    def vectors(matrices: np.ndarray) -> np.ndarray:
        rotation = roma.rotmat_to_rotvec(torch.from_numpy(matrices.astype(np.float64))).numpy()
        return rotation.reshape(len(track), -1)

    return np.hstack([track.expression, vectors(track.jaw), vectors(track.eyes), track.eyelids]).astype(np.float32)


def read_tracks(folder: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Coefficients of `<sequence>/track.npz` per sequence and frame, and what they are.

    Frames that the tracker interpolated are left out: how they are filled is the reader's choice.

    Raises:
        InputError: no tracks, tracks of different head models, a track without one valid frame, or as
            `recon4d.formats.track.read`.
    """
    paths = sorted(folder.rglob("track.npz"))
    if not paths:
        raise InputError(f"{folder} has no SEQUENCE/track.npz; make them with flame-encoder track")
    found: dict[str, dict[str, np.ndarray]] = {}
    kind: dict[str, Any] = {}
    for path in paths:
        track = track_format.read(path)
        mine = {"kind": "track", "head_model": track.head_model, "dim": track.expression.shape[1] + 11}
        if kind and mine != kind:
            raise InputError(
                f"{path} is of {mine['head_model']} with {mine['dim']} numbers per frame, the tracks before it of "
                f"{kind['head_model']} with {kind['dim']}; track all with one head model"
            )
        kind = mine
        if not track.valid.any():
            raise InputError(f"{path} has no valid frame; track it again or remove it")
        rows = track_coefficients(track)
        names = [Path(name).stem for name in track.names]
        found[path.parent.relative_to(folder).as_posix()] = {
            name: row for name, row, valid in zip(names, rows, track.valid) if valid
        }
    return found, kind


def read_faceverse(folder: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Coefficients of `<sequence>/[expr_]<frame>.npy` per sequence and frame, and what they are.

    Raises InputError for a folder without such files and for vectors that are not FaceVerse's.
    """
    files = find_frames(folder, (".npy",), PREFIX)
    if not files:
        raise InputError(f"{folder} has no SEQUENCE/expr_FRAME.npy; write them with FaceVerse v4's regressor")
    found = {
        sequence: {frame: expression_part(read_numbers(path), path) for frame, path in frames.items()}
        for sequence, frames in files.items()
    }
    return found, {"kind": "faceverse", "dim": N_EXPRESSION}


def write_coefficients(config: Config, source: Path | None = None, force: bool = False) -> dict[str, Any]:
    """Import the coefficients of a folder into the data set as `<sequence>/expr_<frame>.npy`, (D,) float32; a summary.

    Everything is read before anything is written.

    Args:
        source: as the config's `feat3d.kind` says; None is its `feat3d.input`.
        force: replace coefficients of another kind.

    Raises:
        InputError: as `read_faceverse`, `read_tracks` and `dataset.claim_features`.
    """
    source = source or Path(config.dataset) / config.feat3d.input
    out = Path(config.dataset) / config.feat3d.output
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; give the folder of coefficients with --source")
    if source.resolve() == out.resolve():
        raise InputError(f"{source} is the output too; FaceVerse files that lie there are read as they are")
    read = {"faceverse": read_faceverse, "track": read_tracks}[config.feat3d.kind]
    found, kind = read(source)
    with claim_features(out, kind, "feat-extract feat3d", force, [source]):
        for sequence, frames in found.items():
            for frame, row in frames.items():
                write_npy(out / sequence / f"{PREFIX}{frame}.npy", row.astype(np.float32))
    written = sum(map(len, found.values()))
    return {"sequences": len(found), "written": written, **kind, "out": str(out)}
