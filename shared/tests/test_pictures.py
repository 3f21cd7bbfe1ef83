"""Pictures as people have them: kinds, turns, transparency, and the names of pictures and their masks."""

import struct
import sys

import cv2
import numpy as np
import pytest
from hdr_signals import hlg, pq
from PIL import Image
from recon4d import InputError, hdr, images, picture_folders

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
    for name in ("pi_heif", "pillow_heif"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(InputError, match="install pi-heif"):
        images.read(tmp_path / "a.heic")


def as_hdr(picture, signal):
    """The signal in BT.2020 of an sRGB picture whose white has the 203 cd/m2 of BT.2408."""
    value = picture / 255
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    # BT.2087-0, M2.
    wide = light @ np.array([[0.6274, 0.0691, 0.0164], [0.3293, 0.9195, 0.0880], [0.0433, 0.0114, 0.8956]])
    return np.clip(signal(wide * 203), 0, 1)


@pytest.mark.parametrize(("transfer", "signal"), [(hdr.PQ, pq), (hdr.HLG, hlg)])
def test_hdr_is_what_it_was_in_sdr(transfer, signal):
    picture = np.stack(np.meshgrid(*[np.arange(4, 225, 20)] * 3), -1).reshape(-1, 12, 3)
    found = hdr.to_srgb(np.rint(as_hdr(picture, signal) * 65535).astype(np.uint16), transfer, 9)
    assert np.abs(found.astype(int) - picture).max() <= 2
    lights = np.repeat(np.linspace(0, 1000, 400)[:, None], 3, 1)[None]
    greys = hdr.to_srgb(np.rint(signal(lights) * 65535).astype(np.uint16), transfer, 9).astype(int)[0]
    assert (np.diff(greys, axis=0) >= 0).all() and greys.max() == 255 and np.ptp(greys, axis=1).max() <= 1
    assert greys[400 * 203 // 1000, 0] == pytest.approx(243, abs=2)  # white on paper leaves room for what shines


def test_wide_gamut_without_hdr():
    red = np.uint16([[[0.918 * 65535, 0.2003 * 65535, 0.1386 * 65535]]])  # sRGB's red in P3
    assert np.abs(hdr.to_srgb(red, 13, 12).astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_hdr_photographs(suffix, tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    picture = np.broadcast_to(np.uint8([200, 140, 110]), (64, 64, 3))
    signal = np.rint(as_hdr(picture, pq) * 255).astype(np.uint8)
    by_pillow(tmp_path / f"a{suffix}", signal, quality=95)
    content = (tmp_path / f"a{suffix}").read_bytes()
    place = content.index(b"colrnclx") + 8
    for also in (b"", b"colrnclx" + struct.pack(">HHH", 1, 13, 1)):  # the latter: as with a gain map
        changed = content[:place] + struct.pack(">HH", 9, hdr.PQ) + content[place + 4 :] + also
        (tmp_path / f"a{suffix}").write_bytes(changed)
        meant = signal if also else picture
        # AVIF comes to 8 bits before: a step of PQ is four of sRGB. Untreated it would be 60 off.
        assert np.abs(images.read(tmp_path / f"a{suffix}").astype(int) - meant).max() <= 10


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".heic", ".avif"])
def test_turned_photographs_of_every_kind(suffix, tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48] = [220, 160, 120]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top of the scene is at the picture's right
    by_pillow(tmp_path / f"a{suffix}", picture, quality=95, exif=exif.tobytes())
    found = images.read(tmp_path / f"a{suffix}").astype(int)
    assert found.shape == (96, 64, 3) and np.abs(found - np.rot90(picture, -1)).mean() < 8
    assert suffix not in (".jpg", ".png") or images.header(tmp_path / f"a{suffix}").upright == (64, 96)


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
