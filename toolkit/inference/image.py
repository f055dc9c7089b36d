"""Any image file -> uint8 (32, 32, 3), by one rule.

The rule: EXIF rotation applied, transparency composited over white, shorter side to 32 with an antialiased filter
(bicubic), centre crop. A 32x32 RGB picture passes through byte for byte. Of an animation the first frame counts; more
than 8 bits a channel are scaled, not clipped; colour profiles are not applied.
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

# Room for the 108 megapixels of the largest common cameras. Decoded, that is 512 MiB, and three times as much while
# transparency is composited.
MAX_PIXELS = 2**27

# Larger than any photograph of that many pixels that is stored compressed; a file of zeros ends here.
MAX_BYTES = 256 * 2**20

# Pictures above this size are decoded one at a time, so that memory does not grow with the number of threads.
_LARGE_PIXELS = 2**24
_one_large_picture = threading.Lock()

# What these formats' readers do is not decoding: they start Ghostscript, open a second file inside the first, or hand
# the bytes to the operating system.
_REFUSED_FORMATS = {"EPS", "IPTC", "WMF"}

# Pillow knows these by name only and cannot decode them.
_STUB_FORMATS = {"BUFR", "GRIB", "HDF5", "MPEG"}

# Known without loading all of Pillow's readers, which takes longer than a hundred small pictures.
_USUAL_SUFFIXES = {".png", ".jpg", ".jpeg"}

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
    """The picture in a file, or in the bytes of one, as uint8 `(32, 32, 3)`, RGB.

    Args:
        source: a path, or the contents of an image file.
        name: what messages call the picture; by default its path.
        max_pixels: a picture with more pixels is not decoded; at most `MAX_PIXELS`.

    Raises:
        ToolkitError: it is no ordinary file, no picture, damaged, or too large; the message begins with the name.
    """
    if isinstance(source, bytes):
        name = name or "the picture"
        if not source:
            raise ToolkitError(f"{name}: is empty")
        if len(source) > MAX_BYTES:
            raise ToolkitError(f"{name}: has more than {MAX_BYTES:,} bytes")
        return _decode(io.BytesIO(source), name, max_pixels)
    with open_regular(source, max_bytes=MAX_BYTES) as file:
        return _decode(file, name or display(source), max_pixels)


def prepare(image: Image.Image) -> NDArray[np.uint8]:
    """A Pillow image of any mode and size as uint8 `(32, 32, 3)`, RGB, by the rule above.

    Raises:
        ToolkitError: the picture is damaged, of a kind that is not decoded here, or has more than `MAX_PIXELS` pixels.
    """
    with _explained("the picture"):
        return _prepared(image, MAX_PIXELS)


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends like that of a picture in one of the formats that can be decoded here."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in _USUAL_SUFFIXES or suffix in picture_suffixes()


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """The file name endings, in lower case and with their dot, of the formats that can be decoded here."""
    extensions = Image.registered_extensions()  # loads all of Pillow's readers
    readable = (set(Image.OPEN) | {"MPO"}) - _REFUSED_FORMATS - _STUB_FORMATS  # MPO is opened as a JPEG
    return frozenset(suffix for suffix, format_name in extensions.items() if format_name in readable)


def _decode(file: IO[bytes], name: str, max_pixels: int) -> NDArray[np.uint8]:
    with _explained(name), _opened(file) as image:
        return _prepared(image, max_pixels)


def _opened(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:  # maybe only because another thread was still loading readers: they are there now
        file.seek(0)
        return Image.open(file)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever goes wrong with a picture into a ToolkitError that begins with its name."""
    try:
        yield
    except ToolkitError as error:
        raise ToolkitError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise ToolkitError(f"{name}: is not a picture that Pillow can read (PNG, JPEG, GIF, WebP, ...)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ToolkitError(f"{name}: has more than the {MAX_PIXELS:,} pixels that are decoded") from error
    except Exception as error:  # damaged files make Pillow's readers raise nearly everything, struct.error to KeyError
        raise ToolkitError(f"{name}: cannot be decoded: {display(str(error)) or type(error).__name__}") from error


def _prepared(image: Image.Image, max_pixels: int) -> NDArray[np.uint8]:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ToolkitError(f"{image.width} x {image.height} pixels are more than the {max_pixels:,} that are decoded")
    if image.format in _REFUSED_FORMATS:
        raise ToolkitError(f"{image.format} files are not decoded here; convert the picture to PNG or JPEG")
    with _one_large_picture if pixels > _LARGE_PIXELS else nullcontext():
        image.load()
        return np.array(_fitted(_rgb(_upright(image))))  # (32, 32, 3)


def _upright(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block does not spoil the pixels
        return image
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel, three channels, transparency over white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return white.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A greyscale image of 16-bit, 32-bit or floating-point levels as mode L, or LA where one level is transparent."""
    levels = np.nan_to_num(np.array(image, dtype=np.float32), nan=0.0)  # (H, W)
    transparent = image.info.get("transparency")
    alpha = np.where(levels == transparent, 0, 255).astype(np.uint8) if isinstance(transparent, int) else None
    np.clip(levels, -1e30, 1e30, out=levels)  # so that a difference of two levels is finite
    low, high = _black_and_white(image.mode, float(levels.min()), float(levels.max()))
    levels -= low
    levels /= high - low
    levels *= 255
    eight = Image.fromarray(np.rint(levels).astype(np.uint8))
    if alpha is not None:
        eight.putalpha(Image.fromarray(alpha))
    return eight


def _black_and_white(mode: str, lowest: float, highest: float) -> tuple[float, float]:
    """The levels that stand for black and for white: the least usual scale that holds them all, else their own range.

    Pillow's mode I carries 16-bit files too, so its scale is never less than 16 bits.
    """
    scales = (1.0, 255.0, 65535.0) if mode == "F" else (65535.0,)
    for white in scales:
        if lowest >= 0 and highest <= white:
            return 0.0, white
    return lowest, highest if highest > lowest else math.inf  # one level alone is black


def _fitted(image: Image.Image) -> Image.Image:
    """Resized and cropped in one step: the filter runs over the centre square alone, so a long strip costs little."""
    if image.size == (SIDE, SIDE):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
