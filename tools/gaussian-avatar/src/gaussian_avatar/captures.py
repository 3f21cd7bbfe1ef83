"""A subject's folder: RGBA images (alpha = head) and the tracked parameters of each; which frames train and test."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError, images
from recon4d.formats import insta
from recon4d.formats.track import Track
from recon4d.formats.track import read as read_track
from torch import Tensor

from gaussian_avatar.config import Config
from gaussian_avatar.motions import check_track, load_head


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
        return png(self.pictures or self.folder / "images", str(self.track.names[frame]))


def png(folder: Path, name: str) -> Path:
    """The PNG that goes with a frame of this name."""
    return folder / f"{Path(name).stem}.png"


def open_capture(folder: str | Path, image_size: int | None, log: Callable[[str], None]) -> Capture:
    """Read `<folder>/track.npz` (or `checkpoint/*.frame`) and check that the images pair with it.

    Args:
        image_size: longer side in pixels to reduce larger images to; None keeps them.

    Raises:
        InputError: a missing folder, no track, images and frames that do not pair up.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --data-dir and --subject must name one with images and a track")
    if (folder / "track.npz").is_file():
        track = read_track(folder / "track.npz")
        stems = {path.stem for path in (folder / "images").glob("*.png")}
        if not stems:
            raise InputError(f"{folder / 'images'} has no PNG images; make them with prep-faces matte")
        insta.check_pairs(folder, stems, {Path(str(name)).stem for name in track.names})
    else:
        track, notes = insta.read(folder)
        for note in notes:
            log(f"{folder}: {note}")
    return Capture(folder, track, *reduced_size(int(track.image_size[0]), int(track.image_size[1]), image_size))


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


def read_image(path: Path, width: int, height: int, size: tuple[int, int], masks: Path | None = None) -> np.ndarray:
    """One RGBA image (height, width, 4) uint8, reduced by averaging over areas with the mask taken into account.

    Args:
        size: width and height the file must have, the track's.
        masks: folder of greyscale PNGs of the same names, the alpha of images that have none.

    Raises:
        InputError: not readable, no alpha channel and no mask, another size, or an empty mask.
    """
    kind = _kind(path)
    if masks is None:
        _check_format(path, kind, size)
        image = images.read(path, "RGBA", upright=False)
    else:
        mask_path = png(masks, path.name)
        mask_kind = _kind(mask_path)
        if kind[2:] not in (RGB, RGBA) or mask_kind[2:] != GREY:
            raise InputError(f"{path} and {mask_path} are not an 8-bit colour image and its 8-bit greyscale mask")
        if mask_kind[:2] != kind[:2]:
            raise InputError(f"{mask_path} is not of the size of {path}; make it again with prep-faces matte")
        _check_format(path, (*kind[:2], *RGBA), size)
        image = np.dstack([images.read(path, upright=False), images.read(mask_path, "L", upright=False)])
    if not image[..., 3].any():
        raise InputError(f"{path} has an empty mask (alpha is 0 everywhere); make it again with prep-faces matte")
    if size != (width, height):
        alpha = image[..., 3:].astype(np.float32) / 255
        premultiplied = np.concatenate([image[..., :3] * alpha, alpha], -1)
        small = images.resize(premultiplied, width, height)
        small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
        small[..., 3] *= 255
        image = np.clip(small + 0.5, 0, 255).astype(np.uint8)
    return image


GREY, RGB, RGBA = (8, 0), (8, 2), (8, 6)  # bits and colour type in a PNG's header


def _kind(path: Path) -> tuple[int, int, int, int]:
    """Width, height, bits and colour type of a PNG, from its header. Raises InputError for anything else."""
    try:
        with open(path, "rb") as file:
            header = file.read(26)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(f"{path} is not a readable image ({error}); make it with prep-faces matte") from error
    # Signature, length and name of the first chunk, then width, height, bit depth, colour type.
    if len(header) < 26 or header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR":
        raise InputError(f"{path} is not a readable image; make it again with prep-faces matte")
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big"), header[24], header[25]


def _check_format(path: Path, kind: tuple[int, int, int, int], expected: tuple[int, int]) -> None:
    if kind[2:] != RGBA:
        raise InputError(
            f"{path} is not 8-bit RGBA: the head's mask must be its alpha channel (prep-faces matte writes it)"
        )
    if kind[:2] != expected:
        raise InputError(f"{path} is {kind[0]}x{kind[1]} pixels but the track is of {expected[0]}x{expected[1]} images")


def read_images(capture: Capture, frames: np.ndarray, threads: int = 4) -> Iterator[np.ndarray]:
    """The images of the chosen frames, in order, read ahead by a few threads."""
    size = (int(capture.track.image_size[0]), int(capture.track.image_size[1]))
    with ThreadPoolExecutor(threads) as pool:
        ahead: list[Future[np.ndarray]] = []
        for frame in frames:
            ahead.append(
                pool.submit(read_image, capture.image_path(frame), capture.width, capture.height, size, capture.masks)
            )
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
    folder: str | Path, head_model: str | Path | None = None, log: Callable[[str], None] = print
) -> dict[str, int | float | str]:
    """Check a subject's folder, reading every image and frame, and say what it holds.

    Raises InputError that names the first thing which training would stumble over.
    """
    head = load_head(head_model)
    capture = open_capture(folder, None, log)
    check_track(capture.track, head, str(folder))
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
    """What `read_image` checks, but for the masks, from the files' headers alone. Raises InputError."""
    expected = (int(capture.track.image_size[0]), int(capture.track.image_size[1]))
    for path in map(capture.image_path, frames):
        _check_format(path, _kind(path), expected)
