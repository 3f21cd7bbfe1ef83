"""Images of every kind come in as upright 8-bit RGB; broken ones give one sentence."""

import numpy as np
import pytest
from PIL import Image
from prep_faces.image_files import clashes, find_images
from recon4d import InputError
from recon4d.images import natural_key, read, write_png


def gradient(height=20, width=30):
    ys, xs = np.mgrid[0:height, 0:width]
    return np.stack([xs * 8, ys * 12, 255 - xs * 8], -1).astype(np.uint8)


def test_plain_png_and_grey_and_alpha(tmp_path):
    rgb = gradient()
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), rgb)
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read(tmp_path / "grey.png"), np.repeat(rgb[..., :1], 3, 2))
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(read(tmp_path / "alpha.png"), rgb)
    Image.fromarray(rgb).quantize(64).save(tmp_path / "palette.png")
    assert np.abs(read(tmp_path / "palette.png").astype(int) - rgb).mean() < 12


def test_sixteen_bits_and_floats_are_scaled(tmp_path):
    values = np.linspace(0, 65535, 256).reshape(16, 16)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    assert np.abs(read(tmp_path / "deep.png")[..., 1] - np.arange(256).reshape(16, 16)).max() <= 1
    Image.fromarray((values / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    assert np.abs(read(tmp_path / "float.tif")[..., 1] - np.arange(256.0).reshape(16, 16)).max() <= 1


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (3, 4, 5)).save(tmp_path / "one.png")
    assert read(tmp_path / "one.png").tolist() == [[[3, 4, 5]]]


# EXIF orientation: what must be done to the stored pixels so that they are upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(gradient()).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read(tmp_path / "turned.png"), UPRIGHT[orientation](gradient()))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_truncated_file_is_an_error_not_half_a_picture(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    for share in (0.0, 0.1, 0.6):
        (tmp_path / f"cut.{suffix}").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match=r"cut\..* is not a readable image .*; replace it"):
            read(tmp_path / f"cut.{suffix}")


def test_text_and_folders_are_not_images(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    for name in ("text.png", "folder.png", "missing.png"):
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)


def test_find_images_walks_in_natural_order(tmp_path):
    for name in ("f10.png", "f9.png", "b/ü 1.jpg", "b/notes.txt", ".hidden.png", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [file.file for file in find_images([tmp_path])] == ["b/ü 1.jpg", "f9.png", "f10.png"]
    assert [file.name for file in find_images([tmp_path / "b" / "ü 1.jpg"])] == ["ü 1"]
    assert sorted(["a10", "a9", "a"], key=natural_key) == ["a", "a9", "a10"]
    with pytest.raises(InputError, match="nowhere does not exist"):
        find_images([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        find_images([tmp_path / "empty"])


def test_names_that_clash(tmp_path):
    for name in ("x.png", "x.jpg", "y.png"):
        (tmp_path / name).write_bytes(b"")
    found = clashes(find_images([tmp_path]))
    assert [item is None for item in found] == [True, False, True]
    assert "x.jpg" in str(found[1]) and "x.png" in str(found[1])


def test_write_png_keeps_values(tmp_path):
    for channels in (3, 4):
        image = np.random.default_rng(1).integers(0, 255, (9, 7, channels), np.uint8)
        write_png(tmp_path / "sub dir" / "ü.png", image)
        with Image.open(tmp_path / "sub dir" / "ü.png") as opened:
            assert np.array_equal(np.asarray(opened), image)
    assert [path.name for path in (tmp_path / "sub dir").iterdir()] == ["ü.png"]
