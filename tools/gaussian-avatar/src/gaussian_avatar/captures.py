"""A subject's folder: RGBA images (alpha = head) and the tracked parameters of each; which frames train and test."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from recon4d import InputError, images
from recon4d.formats import insta, vhap
from recon4d.formats.track import Track
from recon4d.formats.track import read as read_track
from recon4d.head import HeadModel
from torch import Tensor

from gaussian_avatar.config import Config
from gaussian_avatar.motions import check_track, load_head

MATTES = ("matted", "matte", "mattes")  # folders of RGBA pictures, where those of images/ have no alpha
MASKS = ("mask", "masks", "alpha", "fg_masks")  # folders of greyscale masks


@dataclass(frozen=True, eq=False)
class Capture:
    """Images on disk and their track, in the same order."""

    folder: Path
    track: Track
    width: int  # pixels of the images as they are trained on
    height: int
    pictures: Path | None = None  # where they are; None is the folder's images
    masks: Path | None = None  # greyscale masks, for images without alpha
    boxes: np.ndarray | None = None  # (N, 3) left, top and side of the square of each picture that is trained on

    def __len__(self) -> int:
        return len(self.track)

    def image_path(self, frame: int) -> Path:
        return picture(self.pictures or self.folder / "images", str(self.track.names[frame]))


def picture(folder: Path, name: str) -> Path:
    """The picture that goes with a frame of this name: of just this name, or of its stem and any suffix; PNG first."""
    if (folder / name).is_file():
        return folder / name
    stem = Path(name).stem
    named = (folder / f"{stem}{suffix}" for suffix in (".png", *sorted(images.SUFFIXES)))
    return next((path for path in named if path.is_file()), folder / f"{stem}.png")


def places(folder: Path) -> tuple[Path, Path | None]:
    """Where a subject's pictures and masks are.

    `images/` with alpha; else RGBA pictures in `matted/`, or greyscale ones in `mask/`, where there are such folders.

    Raises InputError for a folder without pictures.
    """
    pictures = folder / "images"
    found = images.in_folder(pictures) if pictures.is_dir() else []
    if not found:
        raise InputError(f"{pictures} has no images; make them with prep-faces matte")
    try:
        alpha = images.header(found[0]).alpha
    except InputError:  # said where the picture is read
        alpha = True
    if not alpha:
        for name in MATTES:
            if (folder / name).is_dir() and images.in_folder(folder / name):
                return folder / name, None
        for name in MASKS:
            if (folder / name).is_dir() and images.in_folder(folder / name):
                return pictures, folder / name
    return pictures, None


def open_capture(
    folder: str | Path,
    image_size: int | None,
    log: Callable[[str], None],
    frame_offset: int = 0,
    common: bool = False,
    head: HeadModel | None = None,
) -> Capture:
    """Read a subject's track and check that the images pair with it.

    The track is `<folder>/track.npz`, else `checkpoint/*.frame`, else `transforms.json` with `flame_param/*.npz`, as
    VHAP, NeRSemble and GaussianAvatars have them, of one camera or several.

    Args:
        image_size: longer side in pixels to reduce larger images to; None keeps them.
        head: the head model, which only VHAP's folders need.
        frame_offset, common: which image goes with which frame; see `recon4d.formats.insta.pair`.

    Raises:
        InputError: a missing folder, no track, images and frames that do not pair up.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --data-dir and --subject must name one with images and a track")
    if (folder / "track.npz").is_file():
        track = read_track(folder / "track.npz")
        pictures, masks = places(folder)
        frames = [Path(str(name)).stem for name in track.names]
        pairs, notes = insta.pair(folder, images.in_folder(pictures), frames, frame_offset, common)
        rows = {stem: i for i, stem in enumerate(frames)}
        if notes:
            track = track.take([rows[stem] for _, stem in pairs])
        track = replace(track, names=np.array([path.name for path, _ in pairs]))
    elif head is not None and (folder / "transforms.json").is_file():
        rig = vhap.read_rig(folder, head)
        track, notes, pictures, masks = rig.track, [], rig.pictures, rig.masks
        missing = [name for name in track.names if not (pictures / str(name)).is_file()]
        if missing:
            raise InputError(f"{pictures / str(missing[0])} is missing; {folder / 'transforms.json'} names it")
    else:
        if not any((folder / "checkpoint").glob("*.frame")):
            raise InputError(f"{folder / 'checkpoint'} has no .frame files; track the clip with flame-encoder track")
        pictures, masks = places(folder)
        track, notes = insta.read(folder, pictures=pictures, offset=frame_offset, common=common)
    for note in notes:
        log(f"{folder}: {note}")
    size = reduced_size(int(track.image_size[0]), int(track.image_size[1]), image_size)
    return Capture(folder, track, *size, None if pictures == folder / "images" else pictures, masks)


def reduced_size(width: int, height: int, image_size: int | None) -> tuple[int, int]:
    """Width and height with the longer side reduced to `image_size`, never enlarged."""
    scale = 1.0 if image_size is None else min(1.0, image_size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def split_frames(
    n: int, test_frames: int, test_share: float, log: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the held-out frames: the last `test_frames`, or the last share of a short clip.

    A clip is short when it would be left with fewer training than held-out frames.
    """
    held_out = test_frames
    if n < 2 * test_frames:
        held_out = max(1, round(n * test_share)) if test_share > 0 and n > 1 else 0
        log(f"the clip has {n} frames: its last {held_out} ({test_share:.0%}) are held out, not {test_frames}")
    return np.arange(n - held_out), np.arange(n - held_out, n)


def split_cameras(
    track: Track, held_out: str | None, trained: list[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pictures of the training cameras, and of the one that is held out.

    Args:
        held_out: its name; None is the camera nearest to the middle of all.
        trained: the names of the others that are trained on; None is all.

    Raises InputError for a name that no camera has.
    """
    assert track.views is not None and track.cameras is not None
    names, first = np.unique(track.cameras, return_index=True)
    if held_out is None:
        views = track.views[first].astype(np.float64)
        centres = -np.einsum("nji,nj->ni", views[:, :3, :3], views[:, :3, 3])
        held_out = str(names[np.argmin(np.linalg.norm(centres - centres.mean(0), axis=1))])
    wanted = [str(name) for name in names if name != held_out] if trained is None else trained
    unknown = [name for name in (held_out, *wanted) if name not in names]
    if unknown or held_out in wanted or not wanted:
        what = f"{unknown[0]} is no camera" if unknown else "no camera is left to train on"
        raise InputError(
            f"data.test_camera and data.train_cameras: {what} of {', '.join(names)}, {held_out} is held out"
        )
    return np.flatnonzero(np.isin(track.cameras, wanted)), np.flatnonzero(track.cameras == held_out)


def choose_frames(capture: Capture, config: Config, split: str, log: Callable[[str], None]) -> np.ndarray:
    """Indices of the frames of a split that have a track of their own (`valid`).

    Of several cameras one is held out, in all frames; of one camera the last frames are.
    """
    n = len(capture)
    if capture.track.views is not None:
        train, test = split_cameras(capture.track, config.data.test_camera, config.data.train_cameras)
        assert capture.track.cameras is not None
        log(f"the camera {capture.track.cameras[test[0]]} is held out")
    else:
        train, test = split_frames(n, config.data.test_frames, config.data.test_share, log)
    chosen = {"train": train, "test": test, "all": np.arange(n)}[split]
    valid: np.ndarray = chosen[capture.track.valid[chosen]]
    if len(valid) < len(chosen):
        log(f"{len(chosen) - len(valid)} frames without a track of their own are left out of the {split} split")
    if not len(valid):
        raise InputError(f"{capture.folder}: the {split} split has no tracked frame; choose another with --split")
    return valid


def with_heads(capture: Capture, frames: np.ndarray, log: Callable[[str], None]) -> np.ndarray:
    """The frames whose mask is not empty; `log` is told of the others.

    Raises InputError as `read_image` does, and where no frame is left.
    """
    kept = np.array([image[..., 3].any() for image in read_images(capture, frames)], bool)
    if not kept.all():
        first = capture.image_path(int(frames[~kept][0]))
        log(f"{(~kept).sum()} frames with an empty mask are left out, the first is {first}")
    if not kept.any():
        raise InputError(f"{capture.folder}: the masks of all frames are empty; make them again with prep-faces matte")
    return frames[kept]


def read_image(
    path: Path,
    width: int,
    height: int,
    size: tuple[int, int],
    masks: Path | None = None,
    move: np.ndarray | None = None,
    box: np.ndarray | None = None,
) -> np.ndarray:
    """One RGBA image (height, width, 4) uint8, reduced by averaging over areas with the mask taken into account.

    Args:
        size: width and height the file must have, the track's. A picture is taken as it is stored where that fits,
            else turned as EXIF says.
        masks: folder of greyscale pictures of the same names, the alpha of images that have none.
        move: (2, 3) where the file's pixels go first, centres at +0.5: from its own camera to the track's.
        box: (3,) left, top and side of the square that is cut out then.

    Raises:
        InputError: not readable, no alpha channel and no mask, or another size.
    """
    mask = None if masks is None else picture(masks, path.name)
    upright = _check_format(path, size, mask is None)
    if mask is None:
        image = images.read(path, "RGBA", upright=upright)
    else:
        alpha = images.read_mask(mask, upright=images.size(mask) != size)
        if alpha.shape != size[::-1]:
            raise InputError(f"{mask} is not of the size of {path}; make it again with prep-faces matte")
        image = np.dstack([images.read(path, upright=upright), alpha])
    if box is not None and move is None:
        image = _cut(image, box)
    if image.shape[:2] == (height, width) and move is None:
        return np.ascontiguousarray(image)
    opacity = image[..., 3:].astype(np.float32) / 255
    premultiplied = np.concatenate([image[..., :3] * opacity, opacity], -1)
    if move is not None:
        centred = move.copy()  # OpenCV's first pixel has its centre at 0
        centred[:, 2] += 0.5 * (move[:, :2].sum(1) - 1)
        premultiplied = cv2.warpAffine(premultiplied, centred, size, flags=cv2.INTER_LINEAR)
        premultiplied = premultiplied if box is None else _cut(premultiplied, box)
    small = images.resize(premultiplied, width, height)
    small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
    small[..., 3] *= 255
    return np.clip(small + 0.5, 0, 255).astype(np.uint8)


def _cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    left, top, side = (int(value) for value in box)
    return image[top : top + side, left : left + side]


def _check_format(path: Path, size: tuple[int, int], with_alpha: bool) -> bool:
    """Whether a picture must be turned as EXIF says to have its size. Raises InputError where it can't be used."""
    header = images.header(path)
    if with_alpha and not header.alpha:
        raise InputError(
            f"{path} has no alpha channel, which must be the head's mask (prep-faces matte writes it); masks may also "
            f"lie in {', '.join(MASKS)} beside {path.parent.name}"
        )
    stored = header.width, header.height
    if size not in (stored, header.upright):
        raise InputError(f"{path} is {stored[0]}x{stored[1]} pixels but the track is of {size[0]}x{size[1]} images")
    return size != stored


def read_frame(capture: Capture, frame: int) -> np.ndarray:
    """The image of one frame, brought from its own camera to the track's where they differ; see `read_image`."""
    track = capture.track
    move = None
    if track.Ks is not None and track.views is None:
        move = (track.K.astype(np.float64) @ np.linalg.inv(track.Ks[frame].astype(np.float64)))[:2]
        move = None if np.allclose(move, np.eye(3)[:2], atol=1e-6) else move
    size = (int(track.image_size[0]), int(track.image_size[1]))
    box = None if capture.boxes is None else capture.boxes[frame]
    return read_image(capture.image_path(frame), capture.width, capture.height, size, capture.masks, move, box)


def read_images(capture: Capture, frames: np.ndarray, threads: int = 4) -> Iterator[np.ndarray]:
    """The images of the chosen frames, in order, read ahead by a few threads."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: list[Future[np.ndarray]] = []
        for frame in frames:
            ahead.append(pool.submit(read_frame, capture, int(frame)))
            if len(ahead) > 2 * threads:
                yield ahead.pop(0).result()
        for waiting in ahead:
            yield waiting.result()


def preload(capture: Capture, frames: np.ndarray, pin: bool = False) -> Tensor:
    """All images of the chosen frames (n, height, width, 4) uint8, pinned where a GPU will fetch them."""
    stored = torch.empty(len(frames), capture.height, capture.width, 4, dtype=torch.uint8, pin_memory=pin)
    for i, image in enumerate(read_images(capture, frames)):
        stored[i] = torch.from_numpy(image)
    return stored


def inspect(
    folder: str | Path,
    head_model: str | Path | None = None,
    log: Callable[[str], None] = print,
    frame_offset: int = 0,
    common: bool = False,
) -> dict[str, int | float | str]:
    """Check a subject's folder, reading every image and frame, and say what it holds.

    Args:
        frame_offset, common: as in `open_capture`.

    Raises InputError that names the first thing which training would stumble over.
    """
    head = load_head(head_model)
    capture = open_capture(folder, None, log, frame_offset, common, head)
    check_track(capture.track, head, str(folder), log)
    with_heads(capture, np.arange(len(capture)), log)
    return summary(capture)


def summary(capture: Capture) -> dict[str, int | float | str]:
    """What a capture holds, every image read. Raises InputError as `read_image` does."""
    track = capture.track
    n = len(capture)
    covered = sum(float(image[..., 3].mean()) / 255 for image in read_images(capture, np.arange(n)))
    # The head looks along its z axis; the camera along its own, towards it.
    ahead = -track.R @ track.neck @ np.array([0.0, 0.0, 1.0])
    yaw = np.degrees(np.arctan2(-ahead[:, 0], ahead[:, 2]))
    several: dict[str, int | float | str] = {}
    if track.cameras is not None:
        several["cameras"] = len(np.unique(track.cameras))
    return several | {
        "frames": n,
        "tracked": int(track.valid.sum()),
        "width": capture.width,
        "height": capture.height,
        "fps": track.fps,
        "head_model": track.head_model,
        "focal_length": float(track.K[0, 0]),
        "distance": float(track.t[:, 2].mean()),
        "yaw_from": float(yaw.min()),
        "yaw_to": float(yaw.max()),
        "head_share": covered / n,
    }


def check_images(capture: Capture, frames: np.ndarray) -> None:
    """What `read_image` checks, from the files' headers alone. Raises InputError."""
    size = (int(capture.track.image_size[0]), int(capture.track.image_size[1]))
    for path in map(capture.image_path, frames):
        _check_format(path, size, capture.masks is None)
