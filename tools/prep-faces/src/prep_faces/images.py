"""Images: finding them, reading any kind as 8-bit RGB, writing PNG."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from recon4d import InputError
from recon4d.files import write_bytes

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}


@dataclass(frozen=True)
class ImageFile:
    """One input image: where it is, and how the outputs name it."""

    path: Path
    file: str  # relative to the folder the user gave, or the file's own name: what records carry
    name: str  # `file` without its suffix: what outputs are called


def natural_key(text: str) -> list:
    """Sort key that puts frame10 after frame9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def find_images(paths: Sequence[str | Path]) -> list[ImageFile]:
    """The image files that `paths` name; folders are walked, hidden files left out, in natural order.

    A file named by itself is taken whatever its suffix (reading it will tell). Raises InputError when a path is
    missing or when there is no image at all.
    """
    found: list[ImageFile] = []
    for given in map(Path, paths):
        if given.is_dir():
            inside = [
                path.relative_to(given)
                for path in given.rglob("*")
                # A link to nowhere is taken too, so that it is recorded.
                if path.suffix.lower() in SUFFIXES and (path.is_file() or (path.is_symlink() and not path.exists()))
            ]
            visible = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
            for path in sorted(visible, key=lambda path: natural_key(path.as_posix())):
                found.append(ImageFile(given / path, path.as_posix(), path.with_suffix("").as_posix()))
        elif given.exists():
            found.append(ImageFile(given, given.name, given.stem))
        else:
            raise InputError(f"{given} does not exist; give image files or folders of images")
    if not found:
        raise InputError(f"{', '.join(map(str, paths)) or 'nothing'} holds no image (png, jpg, tif, webp, bmp ...)")
    return found


def clashes(files: list[ImageFile]) -> list[InputError | None]:
    """For each file an error when an earlier one has the same name up to the suffix, else None."""
    first: dict[str, ImageFile] = {}
    return [
        None
        if first.setdefault(file.name, file) is file
        else InputError(f"{file.file} would overwrite what {first[file.name].file} gives; rename one of them")
        for file in files
    ]


def read_image(path: str | Path, data: bytes | None = None) -> np.ndarray:
    """Any image as (H, W, 3) uint8 RGB, upright; `data` is the file's content where `path` is only its name.

    EXIF orientation is applied, 16-bit and float values are scaled to 8 bits, grey becomes RGB, transparency is
    dropped (the colours under it are kept), of an animation the first frame is taken. Raises InputError when the
    file is not an image or ends early.
    """
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16-bit grey, and 32-bit integers that hold 16-bit grey
                return _grey_to_rgb(np.clip(np.asarray(image, np.float64) / 257, 0, 255))
            if image.mode == "F":
                grey = np.nan_to_num(np.asarray(image, np.float64))
                return _grey_to_rgb(np.clip(grey * (255 if grey.max(initial=0) <= 1 else 1), 0, 255))
            if image.mode == "P":
                image = image.convert("RGBA")
            return np.array(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large an image ({error}); make it smaller") from error
    except Exception as error:  # decoders of damaged files raise OSError, SyntaxError, ValueError, struct.error ...
        reason = str(error).split(str(path))[0].strip().rstrip("'").strip() or type(error).__name__
        raise InputError(f"{path} is not a readable image ({reason}); replace it") from error


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey uint8 as PNG, atomically."""
    code = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(image.shape[-1] if image.ndim == 3 else 1)
    swapped = image if code is None else cv2.cvtColor(image, code)
    _, data = cv2.imencode(".png", swapped, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    write_bytes(path, data.tobytes())


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize to (height, width): area average when shrinking, bicubic when enlarging."""
    if (height, width) == image.shape[:2]:
        return image
    shrink = width * height < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)
