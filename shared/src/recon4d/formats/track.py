"""`track.npz`: the parameters of one person's head in every frame of a clip. Described in docs/formats.md."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon4d.files import InputError, read_npz, write_npz
from recon4d.head import HeadModel

FORMAT = "recon4d-track-1"
PER_CAMERA = ("Ks", "views", "cameras")  # of each frame too, where there are any
PER_FRAME = ("names", "valid", "expression", "R", "t", "neck", "jaw", "eyes", "eyelids")


@dataclass(frozen=True, eq=False)
class Track:
    """N frames of one head, float32 NumPy arrays.

    Attributes:
        head_model: name of the head model the coefficients belong to.
        image_size: (2,) int, width and height in pixels.
        fps: frames per second.
        K: (3, 3) intrinsics, pixels.
        names: (N,) image file names.
        valid: (N,) bool, False where the frame was interpolated for want of landmarks.
        shape: (S,) identity.
        expression: (N, E).
        R, t: (N, 3, 3), (N, 3) head-to-camera pose, OpenCV axes, metres.
        neck, jaw: (N, 3, 3) rotation matrices.
        eyes: (N, 2, 3, 3), left then right.
        eyelids: (N, 2), left then right.
        Ks: (N, 3, 3) intrinsics of each picture, where they differ from K; None where all are K. The track is of
            pictures brought from their own to K.
        views: (N, 4, 4) from the track's camera to that of each picture, where several cameras look on; None where
            there is one. Pictures then stay as they are, with their own Ks, and R and t are before the first camera.
        cameras: (N,) names of the pictures' cameras, with views.
    """

    head_model: str
    image_size: np.ndarray
    fps: float
    K: np.ndarray
    names: np.ndarray
    valid: np.ndarray
    shape: np.ndarray
    expression: np.ndarray
    R: np.ndarray
    t: np.ndarray
    neck: np.ndarray
    jaw: np.ndarray
    eyes: np.ndarray
    eyelids: np.ndarray
    Ks: np.ndarray | None = None
    views: np.ndarray | None = None
    cameras: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def parameters(self, frames: slice | np.ndarray | None = None) -> dict[str, Tensor]:
        """Keyword arguments of `HeadModel.forward` (shape broadcasts) for the chosen frames; the pose is not in it."""
        chosen = slice(None) if frames is None else frames
        named = {k: getattr(self, k)[chosen] for k in ("expression", "neck", "jaw", "eyes", "eyelids")}
        return {
            k: torch.from_numpy(np.asarray(v, np.float32)) for k, v in (named | {"shape": self.shape[None]}).items()
        }

    def take(self, frames: slice | np.ndarray | list[int]) -> "Track":
        """A track of the chosen frames."""
        chosen = {key: getattr(self, key) for key in (*PER_FRAME, *PER_CAMERA)}
        return replace(self, **{key: value[frames] for key, value in chosen.items() if value is not None})

    def of_one_camera(self) -> "Track":
        """The frames of the first camera, as a track that knows of no other."""
        if self.views is None or self.cameras is None or self.Ks is None:
            return self
        first = self.take(self.cameras == self.cameras[0])
        assert first.Ks is not None
        return replace(first, K=first.Ks[0], Ks=None, views=None, cameras=None)

    def vertices(self, head: HeadModel, frames: slice | np.ndarray | None = None) -> Tensor:
        """Posed vertices (n, V, 3) in the camera's OpenCV space, metres."""
        parameters = self.parameters(frames)
        if head.eyelids is None:
            del parameters["eyelids"]
        chosen = slice(None) if frames is None else frames
        R, t = torch.from_numpy(self.R[chosen]), torch.from_numpy(self.t[chosen])
        return head(**parameters) @ R.transpose(1, 2) + t[:, None]

    def write(self, path: str | Path) -> None:
        """Write atomically."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        write_npz(path, format=FORMAT, **{name: value for name, value in values.items() if value is not None})


def join(tracks: Sequence[Track]) -> Track:
    """The frames of several tracks of one head and one camera, one after another."""
    together: dict[str, Any] = {key: np.concatenate([getattr(track, key) for track in tracks]) for key in PER_FRAME}
    if any(track.Ks is not None for track in tracks):
        together["Ks"] = np.concatenate([_all_Ks(track) for track in tracks])
    return replace(tracks[0], **together)


def _all_Ks(track: Track) -> np.ndarray:
    return np.tile(track.K, (len(track), 1, 1)) if track.Ks is None else track.Ks


def read(path: str | Path) -> Track:
    """Read and validate a track. Raises InputError for a missing, truncated or inconsistent file."""
    arrays = read_npz(path)
    if str(arrays.get("format")) != FORMAT:
        raise InputError(f"{path} is not a track file ({FORMAT}); make one with flame-encoder track")
    return from_arrays(arrays, str(path))


def from_arrays(arrays: dict[str, np.ndarray], source: str) -> Track:
    """A track of the arrays of a file named `source`. Raises InputError for missing or inconsistent ones."""
    names = [f.name for f in fields(Track) if f.name not in PER_CAMERA or f.name in arrays]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{source} has no {', '.join(missing)}; make it again with flame-encoder track")
    if ("views" in arrays) != ("cameras" in arrays) or ("views" in arrays and "Ks" not in arrays):
        raise InputError(f"{source} has some of Ks, views and cameras but not all; make it again")
    kinds = {"names": "US", "head_model": "US", "valid": "biu", "cameras": "US"}
    for name in names:
        if np.asarray(arrays[name]).dtype.kind not in kinds.get(name, "fiu"):
            raise InputError(f"{source}: {name} holds {np.asarray(arrays[name]).dtype}; track the clip again")
    if arrays["names"].ndim != 1 or arrays["expression"].ndim != 2:
        raise InputError(f"{source}: names or expression have another number of dimensions; track the clip again")
    n, e = len(arrays["names"]), arrays["expression"].shape[-1]
    shapes = {
        "image_size": (2,),
        "K": (3, 3),
        "valid": (n,),
        "shape": (arrays["shape"].size,),
        "expression": (n, e),
        "R": (n, 3, 3),
        "t": (n, 3),
        "neck": (n, 3, 3),
        "jaw": (n, 3, 3),
        "eyes": (n, 2, 3, 3),
        "eyelids": (n, 2),
    }
    shapes |= {"Ks": (n, 3, 3)} if "Ks" in arrays else {}
    shapes |= {"views": (n, 4, 4), "cameras": (n,)} if "views" in arrays else {}
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise InputError(f"{source}: {key} has shape {arrays[key].shape}; {shape} is needed")
        if arrays[key].dtype.kind == "f" and not np.isfinite(arrays[key]).all():
            raise InputError(f"{source}: {key} holds NaN or infinite numbers; track the clip again")
    fps = np.asarray(arrays["fps"], np.float64)
    if fps.size != 1 or not np.isfinite(fps).all() or fps.item() <= 0:
        raise InputError(f"{source}: fps is no rate; track the clip again")
    if np.asarray(arrays["image_size"]).min() < 1 or min(arrays["K"][0, 0], arrays["K"][1, 1]) <= 0:
        raise InputError(f"{source}: image_size or K is of no camera; track the clip again")
    if "Ks" in arrays and n and arrays["Ks"][:, [0, 1], [0, 1]].min() <= 0:
        raise InputError(f"{source}: Ks holds no cameras; track the clip again")
    turns = [arrays["R"], *([arrays["views"][:, :3, :3]] if "views" in arrays else [])]
    if n and not all(np.allclose(np.linalg.det(turn.astype(np.float64)), 1, atol=0.1) for turn in turns):
        raise InputError(f"{source}: R or views hold something else than rotations; track the clip again")
    floats = {
        k: arrays[k].astype(np.float32)
        for k in ("K", "shape", "expression", "R", "t", "neck", "jaw", "eyes", "eyelids", "Ks", "views")
        if k in arrays
    }
    return Track(
        head_model=str(arrays["head_model"]),
        image_size=arrays["image_size"].astype(int),
        fps=fps.item(),
        names=arrays["names"].astype(str),
        valid=arrays["valid"].astype(bool),
        cameras=arrays["cameras"].astype(str) if "cameras" in arrays else None,
        **floats,
    )
