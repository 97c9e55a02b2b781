"""Image files of every kind, sound and spoilt, to upright RGB."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from mrcnn_jax.data import images
from mrcnn_jax.errors import UserError


def picture(height=48, width=64, seed=0):
    """A smooth random picture: JPEG keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_is_pillows_to_the_bit(options):
    data = encode(Image.fromarray(picture(47, 65)), "JPEG", **options)
    np.testing.assert_array_equal(images.decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert images.size_of(data) == (47, 65)


def test_png_file_is_exact(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    np.testing.assert_array_equal(images.decode(path), picture())
    assert images.size_of(path) == (48, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_fills_three_channels(kind):
    data = encode(Image.fromarray(picture()[..., 0]), kind)
    pixels = images.decode(data)
    assert pixels.shape == (48, 64, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0].astype(int) - picture()[..., 0]).max() < 12


def test_cmyk_jpeg_keeps_its_colours():
    data = encode(Image.new("RGB", (20, 10), (200, 40, 40)).convert("CMYK"), "JPEG")
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(images.decode(data).astype(int) - [200, 40, 40]).max() < 6


def test_palette_and_bilevel():
    palette = Image.fromarray(picture()).quantize(16)
    np.testing.assert_array_equal(images.decode(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(picture()[..., 0]).convert("1")
    assert set(np.unique(images.decode(encode(bilevel, "PNG")))) == {0, 255}


def test_sixteen_bits_keep_the_high_byte():
    deep = (picture()[..., 0].astype(np.uint16) << 8) + 77
    np.testing.assert_array_equal(images.decode(encode(Image.fromarray(deep), "PNG"))[..., 0], picture()[..., 0])


def test_transparent_pixels_are_white():
    rgba = np.dstack([picture(), np.full((48, 64), 255, np.uint8)])
    rgba[:10, :, 3] = 0
    pixels = images.decode(encode(Image.fromarray(rgba), "PNG"))
    assert (pixels[:10] == 255).all()
    np.testing.assert_array_equal(pixels[10:], picture()[10:])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation(kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encode(Image.fromarray(picture()), kind, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    pixels = images.decode(data)
    np.testing.assert_array_equal(pixels, upright)
    assert pixels.flags.c_contiguous
    assert images.size_of(data) == upright.shape[:2]
    assert images.decode(data, orientation=False).shape[:2] == images.size_of(data, orientation=False) == (48, 64)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_spoilt_exif_is_no_rotation():
    data = encode(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert images.decode(data).shape == (48, 64, 3)


def test_pixels_pass_through():
    pixels = picture()
    assert images.decode(pixels) is pixels
    assert images.size_of(pixels) == (48, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_cut_short_names_the_file(tmp_path, kind, share):
    data = encode(Image.fromarray(picture(200, 300)), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"cut\.img.*cut short.*fetch"):
        images.decode(path)


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_no_image_names_the_file(tmp_path, data):
    path = tmp_path / "page.jpg"
    path.write_bytes(data)
    for read in (images.decode, images.size_of):
        with pytest.raises(UserError, match=r"page\.jpg"):
            read(path)


def test_missing_file(tmp_path):
    for read in (images.decode, images.size_of):
        with pytest.raises(UserError, match=r"gone\.jpg.*No such file"):
            read(tmp_path / "gone.jpg")


@pytest.mark.parametrize("side", [13_360, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_image_is_refused_by_its_header(tmp_path, side):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))
    with pytest.raises(UserError, match=r"bomb\.png.*178,000,000 pixels"):
        images.decode(path)
