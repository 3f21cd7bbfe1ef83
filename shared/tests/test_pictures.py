"""Pictures as people have them: kinds, turns, transparency, and the names of pictures and their masks."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image
from recon4d import InputError, images, picture_folders

RAMP = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (12, 1))
COLOUR = np.dstack([RAMP, RAMP[::-1], 255 - RAMP])


def by_opencv(path, values):
    assert cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values)


def by_pillow(path, values, **options):
    Image.fromarray(values).save(path, **options)


WIDE = COLOUR.astype(np.uint16) * 257
KINDS = {
    "8-bit.png": (by_opencv, COLOUR, 0),
    "16-bit.png": (by_opencv, WIDE, 1),
    "16-bit.tif": (by_opencv, WIDE, 1),
    "16-bit.ppm": (by_opencv, WIDE, 1),
    "floats.tif": (by_opencv, COLOUR.astype(np.float32) / 255, 1),
    "photo.JPG": (by_pillow, COLOUR, 40),
    "photo.webp": (by_pillow, COLOUR, 40),
    "photo.avif": (by_pillow, COLOUR, 40),
    "photo.bmp": (by_pillow, COLOUR, 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_as_meant(name, tmp_path):
    write, values, tolerance = KINDS[name]
    write(tmp_path / name, values)
    found = images.read(tmp_path / name)
    assert found.shape == COLOUR.shape and np.abs(found.astype(int) - COLOUR).max() <= tolerance
    assert images.size(tmp_path / name) == (16, 12)
    assert [path.name for path in images.in_folder(tmp_path)] == [name]


def test_heic(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    by_pillow(tmp_path / "a.heic", np.repeat(np.repeat(COLOUR, 4, 0), 4, 1), quality=95)
    Image.ID.remove("HEIF")  # as in a process in which nobody has registered it
    assert np.abs(images.read(tmp_path / "a.heic").astype(int)[2::4, 2::4] - COLOUR).mean() < 10


def test_heic_without_its_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(InputError, match="install pillow-heif"):
        images.read(tmp_path / "a.heic")


def test_radiance_is_linear_light(tmp_path):
    by_opencv(tmp_path / "a.hdr", np.full((4, 5, 3), 0.2140, np.float32))
    assert np.abs(images.read(tmp_path / "a.hdr").astype(int) - 127).max() <= 1


@pytest.mark.parametrize("content", ["tiff", "radiance", "exr"])
def test_large_float_pictures_are_refused_before_they_are_decoded(tmp_path, content):
    entries = struct.pack("<HHIIHHII", 256, 4, 1, 10**6, 257, 4, 1, 10**6)
    data = {
        "tiff": b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4),
        "radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1000000 +X 1000000\n" + bytes(99),
        "exr": b"\x76\x2f\x31\x01\2\0\0\0dataWindow\0box2i\0\x10\0\0\0" + struct.pack("<4i", 0, 0, 10**6, 10**6),
    }[content]
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(InputError, match="too large a picture"):
        images.read(tmp_path / "a.tif")


def test_masks_are_alpha_where_there_is_any(tmp_path):
    mask = np.zeros((12, 16), np.uint8)
    mask[3:9, 4:12] = 255
    by_pillow(tmp_path / "grey.png", mask)
    by_pillow(tmp_path / "rgb.png", np.dstack([mask] * 3))
    by_pillow(tmp_path / "black.png", np.dstack([mask * 0] * 3 + [mask]))
    by_pillow(tmp_path / "opaque.png", np.dstack([mask] * 3 + [mask * 0 + 255]))
    for name in ("grey", "rgb", "black", "opaque"):
        assert np.array_equal(images.read_mask(tmp_path / f"{name}.png"), mask), name


def test_header_says_what_is_stored(tmp_path):
    image = Image.fromarray(COLOUR)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert images.header(tmp_path / "a.jpg") == images.Header(16, 12, 6, False)
    assert images.header(tmp_path / "a.jpg").upright == (12, 16) == images.read(tmp_path / "a.jpg").shape[1::-1]
    by_pillow(tmp_path / "a.png", np.dstack([COLOUR, RAMP]))
    assert images.header(tmp_path / "a.png").alpha


def folder_of(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return picture_folders.open_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a/0.jpg", "a/0.jpg"),
        ("./images/a/0.jpg", "a/0.jpg"),
        ("C:\\photos\\b\\0.JPG", "b/0.jpg"),
        ("b/0", "b/0.jpg"),
        ("IMG_7", "c/IMG_7.TIF"),
        ("img_7.tif", "c/IMG_7.TIF"),
        ("shot 1.5", "shot 1.5.webp"),
        ("../../r_0", "r_0.png"),
        ("nothing", None),
    ],
)
def test_pictures_by_name(tmp_path, name, wanted):
    there = folder_of(
        tmp_path, "a/0.jpg", "b/0.jpg", "c/IMG_7.TIF", "shot 1.5.webp", "r_0.png", "r_0.jpg", "._r_0.png", ".x/0.png"
    )
    assert picture_folders.find(there, name) == (None if wanted is None else tmp_path / wanted)


def test_a_name_that_means_two_pictures(tmp_path):
    with pytest.raises(InputError, match="keep one of them"):
        picture_folders.find(folder_of(tmp_path, "a/0.jpg", "b/0.jpg"), "0.jpg")


@pytest.mark.parametrize(
    "mask", ["0.jpg.png", "0_mask.png", "dynamic_mask_0.png", "0.png", "a/0.jpg.png", "a/0_mask.tif", "a/0.gif"]
)
def test_masks_by_the_name_of_their_picture(tmp_path, mask):
    there = folder_of(tmp_path / "masks", mask, "1_mask.png", "10.png")
    assert picture_folders.find_mask(there, "a/0.jpg", tmp_path / "a/0.jpg") == tmp_path / "masks" / mask


def test_masks_beside_their_pictures(tmp_path):
    there = folder_of(tmp_path, "0.jpg", "0_mask.png")
    assert picture_folders.find_mask(there, "0", tmp_path / "0.jpg") == tmp_path / "0_mask.png"
    assert picture_folders.find_mask(folder_of(tmp_path / "x", "0.jpg"), "0", tmp_path / "x/0.jpg") is None


def test_names_of_one_folder():
    assert picture_folders.distinct_stems(["a/0.jpg", "b/1.jpg"]) == ["0", "1"]
    assert picture_folders.distinct_stems(["a/0.jpg", "b/0.jpg"]) == ["a_0", "b_0"]
    with pytest.raises(InputError, match="needs a name of its own"):
        picture_folders.distinct_stems(["a/0.jpg", "a/0.png"])
