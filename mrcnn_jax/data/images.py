"""Image files to arrays: any JPEG, PNG or other format that Pillow knows, to upright 8-bit RGB.

RGB and grey JPEG goes through libjpeg-turbo (`simplejpeg`), bit for bit what Pillow gives; the rest goes through
Pillow. The header is read first, so that an image too large is refused before memory is taken for it.
"""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mrcnn_jax.errors import UserError

# What a folder's images end with.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Pillow itself refuses beyond 178,956,970 pixels. As RGB this is half a gigabyte.
PIXEL_LIMIT = 178_000_000

_Seen = TypeVar("_Seen")
_ORIENTATION_TAG = 0x0112
# What puts a picture upright, by EXIF orientation; the missing value, 1, is upright already.
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}
# What Pillow raises on data that is cut short or spoilt.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError, struct.error)


def decode(source: Path | bytes | np.ndarray, orientation: bool = True) -> np.ndarray:
    """Reads an image as uint8 RGB [h, w, 3].

    Grey is repeated over the channels, CMYK and palettes are converted, of 16 bits the high byte is kept, the first
    frame of an animation is taken. Transparent pixels are laid over white, as the person who labelled the picture
    saw it (Detectron2 and torchvision drop the alpha channel and show whatever colour lies beneath it).

    Args:
        source: a file, or the encoded image itself. Pixels, uint8 [h, w, 3], are given back as they are.
        orientation: whether to turn the picture as its EXIF tag says.

    Raises:
        UserError: the file is missing, no image, cut short, or has more than `PIXEL_LIMIT` pixels.
    """
    if isinstance(source, np.ndarray):
        return source
    name, data = _read(source)
    image = _open(name, data)
    turn = _orientation(image) if orientation else 1
    pixels = None
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        except ValueError:
            pixels = None  # Spoilt: Pillow forgives stray bytes, and says so if pixels are missing.
    if pixels is None:
        try:
            pixels = _rgb(name, image)
        except (*_BROKEN, MemoryError) as error:
            raise UserError(
                f"{name}: the image is damaged or cut short ({error}); fetch it again or remove it"
            ) from error
    return np.ascontiguousarray(_UPRIGHT[turn](pixels)) if turn in _UPRIGHT else pixels


def size_of(source: Path | bytes | np.ndarray, orientation: bool = True) -> tuple[int, int]:
    """Height and width of the array that `decode` would return; only the header is read.

    Raises:
        UserError: the file is missing, no image, or has more than `PIXEL_LIMIT` pixels.
    """
    if isinstance(source, np.ndarray):
        return source.shape[:2]
    return _of_header(source, lambda image: _size(image, orientation))


def orientation_of(source: Path | bytes | np.ndarray) -> int:
    """The EXIF orientation by which `decode` puts an image upright, 1 (as it is) to 8; only the header is read.

    Raises:
        UserError: the file is missing, no image, or has more than `PIXEL_LIMIT` pixels.
    """
    return 1 if isinstance(source, np.ndarray) else _of_header(source, _orientation)


def _of_header(source: Path | bytes, look: Callable[[Image.Image], _Seen]) -> _Seen:
    if isinstance(source, bytes):
        return look(_open("image", source))
    try:
        with open(source, "rb") as file:
            return look(_open(str(source), file))
    except OSError as error:
        raise _unreadable(source, error) from error


def _size(image: Image.Image, orientation: bool) -> tuple[int, int]:
    width, height = image.size
    return (width, height) if orientation and _orientation(image) >= 5 else (height, width)


def _read(source: Path | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "image", source
    try:
        return str(source), Path(source).read_bytes()
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot read the image ({error.strerror or error}); check the path and its permissions")


def _open(name: str, data) -> Image.Image:
    """Reads the header of `data` (bytes or a file open for reading)."""
    try:
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: more than {PIXEL_LIMIT:,} pixels; cut it into tiles or shrink it") from error
    except (UnidentifiedImageError, *_BROKEN) as error:
        raise UserError(
            f"{name}: not an image that can be read; fetch it again, or convert it to JPEG or PNG"
        ) from error
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise UserError(
            f"{name}: {width} x {height} is more than {PIXEL_LIMIT:,} pixels; cut it into tiles or shrink it"
        )
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8, 1 where there is none or it cannot be read."""
    try:
        # The base method: PNG's own would decode the whole picture in search of a tag after the pixels.
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
        return value if value in _UPRIGHT else 1
    except _BROKEN:
        return 1


def _rgb(name: str, image: Image.Image) -> np.ndarray:
    """Decodes with Pillow."""
    image.load()
    if image.mode == "F":
        raise UserError(f"{name}: its pixels are floating-point numbers; convert it to 8 bits")
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
