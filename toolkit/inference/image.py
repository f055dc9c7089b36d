"""The picture rule: any image file -> uint8 (32, 32, 3), for training and prediction alike.

EXIF rotation is applied, transparency is composited over white, the center square is cut out, and the square is resized
to 32x32 with Pillow's antialiased bicubic filter. A 32x32 RGB picture passes through unchanged. Of an animation, the
first frame is read; levels of more than 8 bits are scaled to 8; color profiles are ignored.
"""

import functools
import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from toolkit.errors import ToolkitError
from toolkit.files import display, open_regular

SIDE = 32

# Enough for the 108 megapixels of the largest common cameras. Decoded, that is 512 MiB; compositing transparency takes
# three times as much.
MAX_PIXELS = 2**27

# Larger than any compressed photograph of that many pixels.
MAX_BYTES = 256 * 2**20

# Pictures above this size are decoded one at a time, so that memory does not grow with the number of threads.
_LARGE_PIXELS = 2**24
_large_picture_lock = threading.Lock()

# Pillow reads these by starting Ghostscript, opening a second file inside the first, or calling the operating system.
_REFUSED_FORMATS = {"EPS", "IPTC", "WMF"}

# Pillow identifies these but cannot decode them.
_STUB_FORMATS = {"BUFR", "GRIB", "HDF5", "MPEG"}

# Checked first: loading all of Pillow's readers takes longer than decoding a hundred small pictures.
_COMMON_SUFFIXES = {".png", ".jpg", ".jpeg"}

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: str | os.PathLike[str] | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read a picture from a file, or from the bytes of one, as uint8 `(32, 32, 3)`, RGB.

    Args:
        source: a path, or the contents of an image file.
        name: the picture's name in messages; by default its path.
        max_pixels: the largest picture that is decoded; at most `MAX_PIXELS`.

    Raises:
        ToolkitError: not an ordinary file, not a picture, damaged, or too large; the message begins with the name.
    """
    return read_image_and_size(source, name=name, max_pixels=max_pixels)[0]


def read_picture(
    source: str | os.PathLike[str] | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """As `read_image`, but at the picture's own size: uint8 `(height, width, 3)`, RGB, upright, over white."""
    return _read(source, name, max_pixels, resize=False)[0]


def read_image_and_size(
    source: str | os.PathLike[str] | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """As `read_image`, with the picture's own width and height in pixels."""
    return _read(source, name, max_pixels)


def _read(
    source: str | os.PathLike[str] | bytes, name: str | None, max_pixels: int, *, resize: bool = True
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    if isinstance(source, bytes):
        name = name or "the picture"
        if not source:
            raise ToolkitError(f"{name}: is empty")
        if len(source) > MAX_BYTES:
            raise ToolkitError(f"{name}: has more than {MAX_BYTES:,} bytes")
        return _decode(io.BytesIO(source), name, max_pixels, resize=resize)
    with open_regular(source, max_bytes=MAX_BYTES) as file:
        return _decode(file, name or display(source), max_pixels, resize=resize)


def prepare(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a Pillow image of any mode and size to uint8 `(32, 32, 3)`, RGB, by the picture rule.

    Raises:
        ToolkitError: the picture is damaged, of a refused format, or has more than `MAX_PIXELS` pixels.
    """
    with _convert_errors("the picture"):
        return _prepare(image, MAX_PIXELS)


def prepare_picture(image: Image.Image) -> NDArray[np.uint8]:
    """As `prepare`, but at the picture's own size: uint8 `(height, width, 3)`."""
    with _convert_errors("the picture"):
        return _prepare(image, MAX_PIXELS, resize=False)


def is_picture_name(name: str) -> bool:
    """Whether a file name has the suffix of a format that can be decoded here."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in _COMMON_SUFFIXES or suffix in picture_suffixes()


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes, in lower case and with their dot, of the formats that can be decoded here."""
    extensions = Image.registered_extensions()  # loads all of Pillow's readers
    readable = (set(Image.OPEN) | {"MPO"}) - _REFUSED_FORMATS - _STUB_FORMATS  # MPO is opened as a JPEG
    return frozenset(suffix for suffix, format_name in extensions.items() if format_name in readable)


def _decode(file: IO[bytes], name: str, max_pixels: int, *, resize: bool) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    with _convert_errors(name), _open(file) as image:
        return _prepare(image, max_pixels, resize=resize), image.size


def _open(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:  # another thread may have been loading the readers; by now they are loaded
        file.seek(0)
        return Image.open(file)


@contextmanager
def _convert_errors(name: str) -> Iterator[None]:
    """Turn any error of a picture into a ToolkitError that begins with the picture's name."""
    try:
        yield
    except ToolkitError as error:
        raise ToolkitError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise ToolkitError(f"{name}: is not a picture that Pillow can read (PNG, JPEG, GIF, WebP, ...)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ToolkitError(f"{name}: has more than {MAX_PIXELS:,} pixels, the limit") from error
    except Exception as error:  # on damaged files Pillow's readers raise anything from struct.error to KeyError
        raise ToolkitError(f"{name}: cannot be decoded: {display(str(error)) or type(error).__name__}") from error


def _prepare(image: Image.Image, max_pixels: int, *, resize: bool = True) -> NDArray[np.uint8]:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ToolkitError(f"{image.width} x {image.height} pixels are more than {max_pixels:,}, the limit")
    if image.format in _REFUSED_FORMATS:
        raise ToolkitError(f"{image.format} files are not decoded; convert the picture to PNG or JPEG")
    with _large_picture_lock if pixels > _LARGE_PIXELS else nullcontext():
        image.load()
        upright = _to_rgb(_rotate_upright(image))
        return np.array(_resize_center(upright) if resize else upright)  # (32, 32, 3) or (height, width, 3)


def _rotate_upright(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block leaves the pixels intact
        return image
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to three channels of 8 bits, with transparency composited over white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return white.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit, 32-bit or floating-point gray levels to mode L, or LA where one level is transparent."""
    levels = np.nan_to_num(np.array(image, dtype=np.float32), nan=0.0)  # (H, W)
    transparent = image.info.get("transparency")
    alpha = np.where(levels == transparent, 0, 255).astype(np.uint8) if isinstance(transparent, int) else None
    np.clip(levels, -1e30, 1e30, out=levels)  # so that the difference of two levels is finite
    low, high = _level_range(image.mode, float(levels.min()), float(levels.max()))
    levels -= low
    levels /= high - low
    levels *= 255
    eight = Image.fromarray(np.rint(levels).astype(np.uint8))
    if alpha is not None:
        eight.putalpha(Image.fromarray(alpha))
    return eight


def _level_range(mode: str, lowest: float, highest: float) -> tuple[float, float]:
    """The levels of black and white: the smallest common scale that holds all levels, else their own range.

    Pillow's mode I also carries 16-bit files, so its smallest scale is 16 bits.
    """
    scales = (1.0, 255.0, 65535.0) if mode == "F" else (65535.0,)
    for white in scales:
        if lowest >= 0 and highest <= white:
            return 0.0, white
    return lowest, highest if highest > lowest else math.inf  # a single level becomes black


def _resize_center(image: Image.Image) -> Image.Image:
    """Cut out the center square, then resize it to 32x32.

    `resize(box=...)` does both in one call, but Pillow 13 changed the order of its two passes, which gives other pixels
    for tall pictures. A square has no longer side, so its pixels are the same in every release.
    """
    if image.size == (SIDE, SIDE):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
