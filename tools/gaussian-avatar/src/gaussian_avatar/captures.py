"""A subject's folder: RGBA images (alpha = head) and the tracked parameters of each; which frames train and test."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from recon4d import InputError, images
from recon4d.formats import insta
from recon4d.formats.track import Track
from recon4d.formats.track import read as read_track
from torch import Tensor

from gaussian_avatar.config import Config
from gaussian_avatar.motions import check_track, load_head

MATTES = ("matted", "matte", "mattes")  # folders of RGBA pictures, where those of images/ have no alpha
MASKS = ("mask", "masks", "alpha")  # folders of greyscale masks


@dataclass(frozen=True, eq=False)
class Capture:
    """Images on disk and their track, in the same order."""

    folder: Path
    track: Track
    width: int  # pixels of the images as they are trained on
    height: int
    pictures: Path | None = None  # where they are; None is the folder's images
    masks: Path | None = None  # greyscale masks, for images without alpha

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
) -> Capture:
    """Read `<folder>/track.npz` (or `checkpoint/*.frame`) and check that the images pair with it.

    Args:
        image_size: longer side in pixels to reduce larger images to; None keeps them.
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


def choose_frames(capture: Capture, config: Config, split: str, log: Callable[[str], None]) -> np.ndarray:
    """Indices of the frames of a split that have a track of their own (`valid`)."""
    n = len(capture)
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
) -> np.ndarray:
    """One RGBA image (height, width, 4) uint8, reduced by averaging over areas with the mask taken into account.

    Args:
        size: width and height the file must have, the track's. A picture is taken as it is stored where that fits,
            else turned as EXIF says.
        masks: folder of greyscale pictures of the same names, the alpha of images that have none.
        move: (2, 3) where the file's pixels go first, centres at +0.5: from its own camera to the track's.

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
    if size == (width, height) and move is None:
        return image
    opacity = image[..., 3:].astype(np.float32) / 255
    premultiplied = np.concatenate([image[..., :3] * opacity, opacity], -1)
    if move is not None:
        centred = move.copy()  # OpenCV's first pixel has its centre at 0
        centred[:, 2] += 0.5 * (move[:, :2].sum(1) - 1)
        premultiplied = cv2.warpAffine(premultiplied, centred, size, flags=cv2.INTER_LINEAR)
    small = images.resize(premultiplied, width, height)
    small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
    small[..., 3] *= 255
    return np.clip(small + 0.5, 0, 255).astype(np.uint8)


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
    if track.Ks is not None:
        move = (track.K.astype(np.float64) @ np.linalg.inv(track.Ks[frame].astype(np.float64)))[:2]
        move = None if np.allclose(move, np.eye(3)[:2], atol=1e-6) else move
    size = (int(track.image_size[0]), int(track.image_size[1]))
    return read_image(capture.image_path(frame), capture.width, capture.height, size, capture.masks, move)


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
    capture = open_capture(folder, None, log, frame_offset, common)
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
    return {
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
