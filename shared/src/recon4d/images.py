"""Pictures: which files are some, reading any kind as 8-bit, writing PNG and JPEG. Every write is checked."""

import importlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from recon4d import float_pictures, hdr
from recon4d.files import InputError, write_bytes

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2",
    ".heic", ".heif", ".hif", ".avif",
}  # fmt: skip
# Half of the time of OpenCV's own choice, at the same size.
PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH]
MOST_PIXELS = 150_000_000  # of a picture that is read; it is refused before it is decoded


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts frame10 after frame9."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d{1,4000})", text) if part
    ]


def in_folder(folder: str | Path) -> list[Path]:
    """The pictures directly in a folder in natural order, hidden files left out; [] where there are none."""
    paths = [path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    return sorted(paths, key=lambda path: natural_key(path.name))


@dataclass(frozen=True)
class Header:
    """What a picture's file says before it is decoded.

    width, height: as it is stored. orientation: EXIF's, 1 where it has none; 5 to 8 swap width and height.
    alpha: whether it has transparency.
    """

    width: int
    height: int
    orientation: int
    alpha: bool

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height once turned as `orientation` says."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read(path: str | Path, mode: str = "RGB", *, data: bytes | None = None, upright: bool = True) -> np.ndarray:
    """Any picture as uint8: (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) L, as `mode` says.

    16-bit and float values are scaled to 8 bits (those of Radiance files, which are linear, through sRGB's curve), grey
    becomes RGB, PQ and HLG of HEIC and AVIF become sRGB, transparency is opaque where there is none and is dropped by
    RGB (the colours under it are kept), of an animation the first frame is taken.

    Args:
        data: the file's content where `path` is only its name.
        upright: turn the picture as its EXIF orientation says.

    Raises:
        InputError: a missing file, no picture, one that ends early or has more than `MOST_PIXELS`.
    """
    with _opened(path, data) as opened:
        image = ImageOps.exif_transpose(opened) if upright else opened
        if image.mode.startswith("I"):  # 16-bit grey, and 32-bit integers that hold 16-bit grey
            return _of_grey(np.clip(np.asarray(image, np.float64) / 257, 0, 255), mode)
        if image.mode == "F":
            grey = np.nan_to_num(np.asarray(image, np.float64))
            return _of_grey(np.clip(grey * (255 if grey.max(initial=0) <= 1 else 1), 0, 255), mode)
        if image.mode == "P":
            image = image.convert("RGBA")
        if opened.format in ("AVIF", "HEIF") and (kind := hdr.of_heif(_start(path, data))):
            colour = Image.fromarray(hdr.to_srgb(np.asarray(image.convert("RGB")), *kind))
            if "A" in image.mode:
                colour.putalpha(image.getchannel("A"))
            image = colour
        return np.array(image.convert(mode))


def read_mask(path: str | Path, *, upright: bool = True) -> np.ndarray:
    """A picture as a mask (H, W) uint8: its alpha where that is not opaque everywhere, else its grey. As `read`."""
    if header(path).alpha:
        alpha = read(path, "RGBA", upright=upright)[..., 3]
        if alpha.min(initial=255) < 255:
            return alpha
    return read(path, "L", upright=upright)


def header(path: str | Path) -> Header:
    """What a picture's file says of it, not decoded. Raises InputError as `read` does."""
    with _opened(path, None) as opened:
        try:
            orientation = int(opened.getexif().get(0x0112, 1)) if _may_have_exif(opened, path) else 1
        except Exception:  # damaged EXIF raises errors of many kinds; the picture is whole without it
            orientation = 1
        alpha = opened.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in opened.info
        return Header(*opened.size, orientation if 1 <= orientation <= 8 else 1, alpha)


def _may_have_exif(opened: Image.Image, path: str | Path) -> bool:
    """Pillow decodes a whole PNG to look for EXIF behind its pixels: not for one that nowhere has any."""
    if opened.format != "PNG":
        return True
    where = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
    return any(key in opened.info for key in where) or b"eXIf" in Path(path).read_bytes()


def size(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture as it is stored, from its header. Raises InputError as `read` does."""
    with _opened(path, None) as opened:
        return opened.size


@contextmanager
def _opened(path: str | Path, data: bytes | None) -> Iterator[Image.Image]:
    """A picture opened and its size checked; whatever goes wrong until the end is said as InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own about size and damaged EXIF
            with _image(path, data) as opened:
                _check_size(opened, path)
                yield opened
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large a picture ({error}); make it smaller") from error
    except Exception as error:  # decoders of damaged files raise OSError, SyntaxError, ValueError, struct.error ...
        reason = str(error).split(str(path))[0].strip().rstrip("'").strip() or type(error).__name__
        raise InputError(f"{path} is not a readable image ({reason}); replace it") from error


def _image(path: str | Path, data: bytes | None) -> Image.Image:
    source = Path(path) if data is None else io.BytesIO(data)
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        content = Path(path).read_bytes() if data is None else data
        if content[4:8] == b"ftyp":
            return _heif(path, content)
        if float_pictures.known(content):
            return Image.fromarray(float_pictures.read(content, path, MOST_PIXELS))
        raise


def _heif(path: str | Path, content: bytes) -> Image.Image:
    for name in ("pi_heif", "pillow_heif"):  # the same reader; the second brings an encoder that is GPL
        with suppress(ImportError):
            importlib.import_module(name).register_heif_opener()
            return Image.open(io.BytesIO(content))
    raise InputError(f"{path} is a HEIC picture; install pi-heif to read it, or convert it to JPEG")


def _start(path: str | Path, data: bytes | None) -> bytes:
    """The first 64 KiB of a file, where HEIF says what its colours are."""
    if data is not None:
        return data[: 1 << 16]
    with open(path, "rb") as file:
        return file.read(1 << 16)


def _check_size(image: Image.Image, path: str | Path) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise InputError(f"{path} is too large a picture ({width}x{height} pixels); make it smaller")


def _of_grey(grey: np.ndarray, mode: str) -> np.ndarray:
    image = Image.fromarray(np.rint(grey).astype(np.uint8))
    return np.array(image.convert(mode))


def encode(suffix: str, image: np.ndarray, quality: int = 95) -> bytes:
    """The content of a `.png` or `.jpg` file of (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey uint8.

    Raises ValueError for an array that is no picture.
    """
    code = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(image.shape[-1] if image.ndim == 3 else 1)
    swapped = image if code is None else cv2.cvtColor(np.ascontiguousarray(image), code)
    options = PNG_OPTIONS if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, quality]
    done, content = cv2.imencode(suffix, swapped, options)
    if not done:
        raise ValueError(f"an array of shape {image.shape} and type {image.dtype} does not become a {suffix} file")
    return content.tobytes()


def write(path: str | Path, image: np.ndarray, quality: int = 95) -> None:
    """Write a picture as its path's suffix says, `.png`, `.jpg` or `.jpeg`, atomically; see `encode`.

    Raises InputError for another suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"{path} must end in .png or .jpg")
    write_bytes(path, encode(".png" if suffix == ".png" else ".jpg", image, quality))


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write a picture as PNG whatever its path's suffix, atomically; see `encode`."""
    write_bytes(path, encode(".png", image))


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize to (height, width): area average when shrinking, bicubic when enlarging."""
    if (height, width) == image.shape[:2]:
        return image
    shrink = width * height < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)
