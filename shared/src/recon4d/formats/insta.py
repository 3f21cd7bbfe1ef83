"""The INSTA folder: `images/00000.png` (RGBA, alpha = head) and `checkpoint/00000.frame` of metrical-tracker.

`.frame` files are torch zip archives of NumPy arrays, read by `recon4d.pickles`. Described in docs/formats.md.
"""

from pathlib import Path

import numpy as np
import torch

from recon4d import pickles, rotations
from recon4d.files import InputError, write_torch
from recon4d.formats.track import Track


def read_frame(path: str | Path) -> dict[str, np.ndarray]:
    """One `.frame` file as arrays: exp, shape, jaw (6), eyes (12), eyelids (2), R and K (3, 3), t (3,), img_size (2,).

    Raises InputError for a broken file, a forbidden class, or a missing key.
    """
    path = Path(path)
    data = pickles.read_torch(path)

    def get(group: str, key: str, size: int | None = None) -> np.ndarray:
        try:
            value = np.asarray(data[group][key], np.float32).reshape(-1)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} has no {group}.{key}; it must be a metrical-tracker frame") from error
        if size is not None and value.size != size:
            raise InputError(f"{path}: {group}.{key} has {value.size} numbers; {size} are needed")
        if not np.isfinite(value).all():
            raise InputError(f"{path}: {group}.{key} holds NaN or infinite numbers; track the clip again")
        return value

    frame = {"exp": get("flame", "exp"), "shape": get("flame", "shape")}
    frame |= {key: get("flame", key, n) for key, n in (("jaw", 6), ("eyes", 12), ("eyelids", 2))}
    frame |= {
        "R": get("opencv", "R", 9).reshape(3, 3),
        "t": get("opencv", "t", 3),
        "K": get("opencv", "K", 9).reshape(3, 3),
    }
    try:
        frame["img_size"] = np.asarray(data["img_size"]).reshape(2).astype(int)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} has no img_size (width, height)") from error
    return frame


def read(folder: str | Path, name: str = "flame") -> tuple[Track, list[str]]:
    """An INSTA folder's `checkpoint/*.frame` as a Track, and notes for the user (one sentence each).

    `names` are the images that the frames pair with, `images/<stem>.png`. Identity that varies over frames is
    replaced by its mean; image size and K are frame 0's.

    Raises:
        InputError: no frames, images and frames that do not pair up (naming the first), broken frames.
    """
    folder = Path(folder)
    frame_paths = sorted((folder / "checkpoint").glob("*.frame"))
    if not frame_paths:
        raise InputError(f"{folder / 'checkpoint'} has no .frame files; track the clip with flame-encoder track")
    images = {path.stem for path in (folder / "images").glob("*.png")}
    if not images:
        raise InputError(f"{folder / 'images'} has no PNG images; make them with prep-faces matte")
    check_pairs(folder, images, {path.stem for path in frame_paths})
    frames = [read_frame(path) for path in frame_paths]
    for key in ("exp", "shape"):
        sizes = {len(frame[key]) for frame in frames}
        if len(sizes) > 1:
            raise InputError(
                f"{folder / 'checkpoint'}: flame.{key} has different lengths {sorted(sizes)} in its frames"
            )
    stacked = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    notes = []
    if np.ptp(stacked["shape"], axis=0).max() > 1e-6:
        notes.append("the identity varies over the frames; its mean is used")
    n = len(frames)

    def matrix(d6: np.ndarray) -> np.ndarray:
        return rotations.from_6d(torch.from_numpy(d6)).numpy()

    track = Track(
        head_model=name,
        image_size=stacked["img_size"][0],
        fps=25.0,  # not in the format; INSTA's clips have 25
        K=stacked["K"][0],
        names=np.array([f"{path.stem}.png" for path in frame_paths]),
        valid=np.ones(n, bool),
        shape=stacked["shape"].mean(0),
        expression=stacked["exp"],
        R=stacked["R"],
        t=stacked["t"],
        neck=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),  # metrical-tracker has no neck rotation
        jaw=matrix(stacked["jaw"]),
        eyes=matrix(stacked["eyes"].reshape(n, 2, 6)),
        eyelids=stacked["eyelids"],
    )
    return track, notes


def check_pairs(folder: Path, images: set[str], frames: set[str]) -> None:
    """Raise InputError naming the first image without a frame, or frame without an image."""
    for stem in sorted(images ^ frames):
        has, lacks = ("a frame", "image") if stem in frames else ("an image", "frame")
        raise InputError(f"{folder}: {stem} has {has} but no {lacks}; {len(images)} images and {len(frames)} frames")


def write(folder: str | Path, track: Track) -> None:
    """Write `checkpoint/<stem>.frame` for every frame of the track, each atomically.

    The format has no neck rotation: the neck's must be identity. Raises InputError otherwise.
    """
    if np.abs(track.neck - np.eye(3)).max() > 1e-5:
        raise InputError(".frame files cannot hold a neck rotation; this track has one, use its track.npz")
    jaw = rotations.to_6d(torch.from_numpy(track.jaw)).numpy()
    eyes = rotations.to_6d(torch.from_numpy(track.eyes)).reshape(-1, 12).numpy()
    for i, name in enumerate(track.names):
        data = {
            "flame": {
                "exp": track.expression[i : i + 1],
                "shape": track.shape[None],
                "jaw": jaw[i : i + 1],
                "eyes": eyes[i : i + 1],
                "eyelids": track.eyelids[i : i + 1],
            },
            "opencv": {"R": track.R[i : i + 1], "t": track.t[i : i + 1], "K": track.K[None]},
            "img_size": track.image_size,
            "frame_id": Path(str(name)).stem,
        }
        write_torch(Path(folder) / "checkpoint" / f"{Path(str(name)).stem}.frame", data)
