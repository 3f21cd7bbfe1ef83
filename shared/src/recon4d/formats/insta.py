"""The INSTA folder: `images/00000.png` (RGBA, alpha = head) and `checkpoint/00000.frame` of metrical-tracker.

`.frame` files are torch zip archives of NumPy arrays, read by `recon4d.pickles`. Described in docs/formats.md.
"""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from recon4d import images, pickles, rotations
from recon4d.files import InputError, write_torch
from recon4d.formats.track import Track


def read_frame(path: str | Path) -> dict[str, np.ndarray]:
    """One `.frame` file as arrays: exp, shape, jaw (6), eyes (12), R and K (3, 3), t (3,), img_size (2,), and
    eyelids (2) where it has them.

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
    frame |= {key: get("flame", key, n) for key, n in (("jaw", 6), ("eyes", 12))}
    if "eyelids" in data["flame"]:
        frame["eyelids"] = get("flame", "eyelids", 2)
    frame |= {
        "R": get("opencv", "R", 9).reshape(3, 3),
        "t": get("opencv", "t", 3),
        "K": get("opencv", "K", 9).reshape(3, 3),
    }
    try:
        frame["img_size"] = np.asarray(data["img_size"]).reshape(2).astype(int)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} has no img_size (height, width)") from error
    return frame


def read(
    folder: str | Path, name: str = "flame", pictures: str | Path | None = None, offset: int = 0, common: bool = False
) -> tuple[Track, list[str]]:
    """An INSTA folder's `checkpoint/*.frame` as a Track, and notes for the user (one sentence each).

    `names` are the images that the frames pair with; see `pair`. Identity that varies over frames is replaced by its
    mean. Frames whose K differs have it in `Ks`, and K is their median. The order of `img_size` is decided by the size
    of the first image: metrical-tracker writes height and width, other programs width and height.

    Args:
        pictures: where the images are; None is `images` in the folder.
        offset, common: as in `pair`.

    Raises:
        InputError: no frames, images and frames that do not pair up (naming the first), broken frames.
    """
    folder = Path(folder)
    found = [path for path in (folder / "checkpoint").glob("*.frame") if path.name[0] != "."]
    if not found:
        raise InputError(f"{folder / 'checkpoint'} has no .frame files; track the clip with flame-encoder track")
    pictures = folder / "images" if pictures is None else Path(pictures)
    there = images.in_folder(pictures) if pictures.is_dir() else []
    if not there:
        raise InputError(f"{pictures} has no images; make them with prep-faces matte")
    paths = {path.stem: path for path in sorted(found, key=lambda path: images.natural_key(path.name))}
    pairs, notes = pair(folder, there, list(paths), offset, common)
    track, more = _of_frames([paths[stem] for _, stem in pairs], name, [path.name for path, _ in pairs], pairs[0][0])
    return track, notes + more


def read_motion(folder: str | Path, name: str = "flame") -> tuple[Track, list[str]]:
    """`.frame` files without their pictures, in natural order, as a Track, and notes as `read` has them.

    Args:
        folder: with `checkpoint/*.frame`, or with the files themselves.

    Raises:
        InputError: no or broken frames.
    """
    folder = Path(folder)
    folder = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    found = [path for path in folder.glob("*.frame") if path.name[0] != "."]
    if not found:
        raise InputError(f"{folder} has no .frame files; track the clip with flame-encoder track")
    found.sort(key=lambda path: images.natural_key(path.name))
    return _of_frames(found, name, [f"{path.stem}.png" for path in found], None)


def _of_frames(paths: list[Path], name: str, names: list[str], picture: Path | None) -> tuple[Track, list[str]]:
    """A Track of frame files, and notes; picture: the first frame's, None where there is none."""
    notes = []
    frames = [read_frame(path) for path in paths]
    if any("eyelids" not in frame for frame in frames):
        lacking = sum("eyelids" not in frame for frame in frames)
        notes.append(f"{lacking} of {len(frames)} frames have no eyelids; they are taken as open")
        frames = [{"eyelids": np.zeros(2, np.float32)} | frame for frame in frames]
    for key in ("exp", "shape"):
        sizes = {len(frame[key]) for frame in frames}
        if len(sizes) > 1:
            raise InputError(f"{paths[0].parent}: flame.{key} has different lengths {sorted(sizes)} in its frames")
    stacked = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    if np.ptp(stacked["shape"], axis=0).max() > 1e-6:
        notes.append("the identity varies over the frames; its mean is used")
    K = np.median(stacked["K"], 0).astype(np.float32)
    Ks: np.ndarray | None = stacked["K"]
    if np.abs(stacked["K"] - K).max() <= 1e-3:
        K, Ks = stacked["K"][0], None
    else:
        focal = stacked["K"][:, 0, 0]
        notes.append(f"K differs from frame to frame (focal length {focal.min():.1f} to {focal.max():.1f})")
    n = len(frames)

    def matrix(d6: np.ndarray) -> np.ndarray:
        return rotations.from_6d(torch.from_numpy(d6)).numpy()

    track = Track(
        head_model=name,
        image_size=_image_size(stacked["img_size"][0], picture),
        fps=25.0,  # not in the format; INSTA's clips have 25
        K=K,
        names=np.array(names),
        valid=np.ones(n, bool),
        shape=stacked["shape"].mean(0),
        expression=stacked["exp"],
        R=stacked["R"],
        t=stacked["t"],
        neck=np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),  # metrical-tracker has no neck rotation
        jaw=matrix(stacked["jaw"]),
        eyes=matrix(stacked["eyes"].reshape(n, 2, 6)),
        eyelids=stacked["eyelids"],
        Ks=Ks,
    )
    return track, notes


def _image_size(said: np.ndarray, picture: Path | None) -> np.ndarray:
    """Width and height: what the frame says in the order that the picture has; as (height, width) where neither is."""
    size = (int(said[1]), int(said[0]))
    with suppress(InputError):  # said where the picture is read
        size = size if picture is None else images.header(picture).upright
    return np.array(size if sorted(size) == sorted(map(int, said)) else said[::-1])


def _key(stem: str) -> tuple[str, int]:
    """What a name counts as when it is paired: its number, and what stands before it."""
    number = re.search(r"\d{1,18}$", stem)
    return (stem, -1) if number is None else (stem[: number.start()], int(number[0]))


def pair(
    folder: Path, pictures: list[Path], frames: list[str], offset: int = 0, common: bool = False
) -> tuple[list[tuple[Path, str]], list[str]]:
    """Images and the names of their frames, in the order of the frames; and notes on what was left out.

    A frame's image has its name; zeros before its number, and suffixes, do not matter.

    Args:
        offset: the image of frame k is numbered k + offset.
        common: leave out what has no partner.

    Raises:
        InputError: an image without a frame or a frame without an image, naming the first, unless `common`; none pairs.
    """
    by_key: dict[tuple[str, int], Path] = {}
    for path in pictures:
        by_key.setdefault(_key(path.stem), path)

    def wanted(frame: str) -> tuple[str, int]:
        prefix, number = _key(frame)
        return (prefix, number + offset) if number >= 0 else (prefix, number)

    exact = {path.stem: path for path in pictures} if offset == 0 else {}
    found = {stem: exact.get(stem) or by_key.get(wanted(stem)) for stem in frames}
    pairs = [(picture, stem) for stem, picture in found.items() if picture is not None]
    used = {picture for picture, _ in pairs}
    lonely_frames = [stem for stem, picture in found.items() if picture is None]
    lonely_images = [path.stem for path in pictures if path not in used]
    if not lonely_frames and not lonely_images:
        return pairs, []
    counts = f"{len(pictures)} images and {len(frames)} frames"
    if not common or not pairs:
        shift = _shift([_key(path.stem) for path in pictures], [_key(stem) for stem in frames])
        stem, has, lacks = (
            (lonely_frames[0], "a frame", "image") if lonely_frames else (lonely_images[0], "an image", "frame")
        )
        remedy = (
            f"give --frame-offset {shift}" if shift not in (None, offset) else "take what pairs with --pairs common"
        )
        raise InputError(f"{folder}: {stem} has {has} but no {lacks}; {counts}; {remedy}")
    left = [f"{len(lonely_images)} images without a frame"] * bool(lonely_images)
    left += [f"{len(lonely_frames)} frames without an image"] * bool(lonely_frames)
    return pairs, [f"{' and '.join(left)} are left out ({counts})"]


def _shift(pictures: list[tuple[str, int]], frames: list[tuple[str, int]]) -> int | None:
    """The small offset that pairs the most, more than none does; of first numbers that differ, their difference."""
    have = set(pictures)
    candidates = [0, *{pictures[0][1] - frames[0][1], 1, -1}]
    count = {s: sum((prefix, number + s) in have for prefix, number in frames) for s in candidates}
    best = max(candidates, key=lambda s: count[s])
    return best if best and count[best] > count[0] else None


def write(folder: str | Path, track: Track) -> None:
    """Write `checkpoint/<stem>.frame` for every frame of the track, each atomically.

    The format has no neck rotation: the neck's must be identity. Raises InputError otherwise.
    """
    if np.abs(track.neck - np.eye(3)).max() > 1e-5:
        raise InputError(".frame files cannot hold a neck rotation; this track has one, use its track.npz")
    jaw = rotations.to_6d(torch.from_numpy(track.jaw)).numpy()
    eyes = rotations.to_6d(torch.from_numpy(track.eyes)).reshape(-1, 12).numpy()
    K = np.tile(track.K, (len(track), 1, 1)) if track.Ks is None else track.Ks
    for i, name in enumerate(track.names):
        data = {
            "flame": {
                "exp": track.expression[i : i + 1],
                "shape": track.shape[None],
                "jaw": jaw[i : i + 1],
                "eyes": eyes[i : i + 1],
                "eyelids": track.eyelids[i : i + 1],
            },
            "opencv": {"R": track.R[i : i + 1], "t": track.t[i : i + 1], "K": K[i : i + 1]},
            "img_size": track.image_size[::-1].copy(),  # height, width, as that tracker has it
            "frame_id": Path(str(name)).stem,
        }
        write_torch(Path(folder) / "checkpoint" / f"{Path(str(name)).stem}.frame", data)
