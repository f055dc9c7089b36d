"""The picture rule: any image file -> uint8 (32, 32, 3), for training and prediction alike.

EXIF rotation is applied, transparency is composited over white, the center square is cut out, and the square is resized
to 32x32 with Pillow's antialiased bicubic filter. A 32x32 RGB picture passes through unchanged. Of an animation, the
first frame is read; levels of more than 8 bits are scaled to 8; color profiles are ignored.
"""

import importlib
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from toolkit.errors import ToolkitError
from toolkit.files import escape, open_regular, shorten
from toolkit.inference.budget import MemoryBudget
from toolkit.inference.ifd import check_cost
from toolkit.inference.picture_structure import FORMATS, examine
from toolkit.inference.structure import MAX_MEMORY

SIDE = 32

# Enough for the 108 megapixels of the largest common cameras.
MAX_PIXELS = 2**27

# Larger than any compressed photograph of that many pixels.
MAX_BYTES = 256 * 2**20

# Shared by all threads. Larger files are read one at a time, because their contents count, too.
_memory = MemoryBudget(MAX_MEMORY)
_LARGE_BYTES = 8 * 2**20
_RESIZED_BYTES = 8  # per pixel, of a picture that is resized
_WHOLE_BYTES = 12  # per pixel, of a picture that keeps its size
_SMALL_MEMORY = 2**20  # not counted, because counting takes time

# Prediction processes do not decode pictures above this size; the calling process does.
LARGE_PIXELS = 2**24

# Above this, colors are converted in bands of so many pixels, which needs less memory.
_BAND_PIXELS = 2**20

# The suffixes of all formats, in lower case and with their dot.
PICTURE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

# Pillow loads the readers of the other formats by itself.
_READERS = {"WEBP": "WebPImagePlugin", "TIFF": "TiffImagePlugin", "AVIF": "AvifImagePlugin"}

_EXIF_KEYS = {"exif", "Raw profile type exif"}
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
    source: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    resize: bool = True,
) -> NDArray[np.uint8]:
    """Read a picture from a file, or from the bytes of one, as uint8 `(32, 32, 3)`, RGB.

    Args:
        source: a path, or the contents of an image file.
        name: the picture's name in messages; by default its path.
        max_pixels: the largest picture that is decoded; at most `MAX_PIXELS`.
        resize: False keeps the picture's size, `(height, width, 3)`: only upright, over white, and RGB.

    Raises:
        ToolkitError: not an ordinary file, not a picture, damaged, or too large; the message begins with the name.
    """
    return _read(source, name, max_pixels, resize=resize)[0]


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
            raise ToolkitError(f"{name} is empty")
        if len(source) > MAX_BYTES:
            raise ToolkitError(f"{name} has more than {MAX_BYTES:,} bytes")
        return _decode(source, name, max_pixels, resize=resize)
    name = name or escape(source)
    with open_regular(source, max_bytes=MAX_BYTES) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _LARGE_BYTES:
            return _decode(_contents(file, name, size), name, max_pixels, resize=resize)
        with _memory.reserve(MAX_MEMORY):
            return _decode(_contents(file, name, size), name, max_pixels, resize=resize, reserve=False)


def count_pixels(content: bytes) -> int:
    """Return the number of pixels that the headers declare, or 0 if the file is rejected. Nothing is decoded."""
    try:
        with _convert_errors("the picture"):
            structure = examine(content)
    except ToolkitError:
        return 0
    return structure.width * structure.height


def prepare(image: Image.Image, *, resize: bool = True) -> NDArray[np.uint8]:
    """Convert a Pillow image of any mode and size to uint8 `(32, 32, 3)`, RGB, by the picture rule.

    Args:
        image: the picture.
        resize: as in `read_image`.

    Raises:
        ToolkitError: the picture is damaged, of a refused format, or has more than `MAX_PIXELS` pixels.
    """
    with _convert_errors("the picture"):
        if image.format is not None and image.format not in {*FORMATS, "MPO"}:
            raise ToolkitError(f"{shorten(image.format)} files are not decoded; convert the picture to PNG or JPEG")
        _check_pixels(image.size, MAX_PIXELS)
        with _memory.reserve((_RESIZED_BYTES if resize else _WHOLE_BYTES) * image.width * image.height):
            return _prepare(image, resize=resize)


def is_picture_name(name: str) -> bool:
    """Whether a file name has the suffix of a format that can be decoded here."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def _contents(file: BinaryIO, name: str, size: int) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise ToolkitError(f"{name} cannot be read: {error.strerror or error}") from error


def _decode(
    content: bytes, name: str, max_pixels: int, *, resize: bool, reserve: bool = True
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    with _convert_errors(name):
        structure = examine(content)
        size = structure.width, structure.height
        _check_pixels(size, max_pixels)
        memory = structure.memory if resize else max(structure.memory, _WHOLE_BYTES * size[0] * size[1])
        if memory > MAX_MEMORY:
            raise ToolkitError(
                f"decoding {size[0]} x {size[1]} pixels of this kind of {structure.format} file takes {memory:,} "
                f"bytes; the limit is {MAX_MEMORY:,}"
            )
        counted = reserve and memory > _SMALL_MEMORY
        with (
            _memory.reserve(memory) if counted else nullcontext(),
            _open(content, structure.format) as image,
        ):
            if image.width * image.height > size[0] * size[1]:
                raise ToolkitError(
                    f"the file declares {size[0]} x {size[1]} pixels and holds {image.width} x {image.height}"
                )
            return _prepare(image, resize=resize, close=True), image.size


def _open(content: bytes, format_name: str) -> Image.Image:
    if reader := _READERS.get(format_name):
        try:
            importlib.import_module(f"PIL.{reader}")
        except ImportError as error:
            raise ToolkitError(f"{format_name} files need a newer Pillow: upgrade it, or convert to PNG") from error
    return Image.open(io.BytesIO(content), formats=[format_name])


def _check_pixels(size: tuple[int, int], limit: int) -> None:
    if size[0] * size[1] > limit:
        raise ToolkitError(f"{size[0]} x {size[1]} pixels; the limit is {limit:,}")


@contextmanager
def _convert_errors(name: str) -> Iterator[None]:
    """Turn any error of a picture into a ToolkitError that begins with the picture's name."""
    try:
        yield
    except ToolkitError as error:
        raise ToolkitError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise ToolkitError(f"{name} is not a picture that Pillow can read: it is damaged, or of a rare kind") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ToolkitError(f"{name} has more than {MAX_PIXELS:,} pixels, the limit") from error
    except Exception as error:  # on damaged files Pillow's readers raise anything from struct.error to KeyError
        raise ToolkitError(f"{name} cannot be decoded: {shorten(str(error)) or type(error).__name__}") from error


def _prepare(image: Image.Image, *, resize: bool = True, close: bool = False) -> NDArray[np.uint8]:
    """Apply the picture rule. Only resizing combines pixels, so cropping first saves work in the other steps."""
    image.load()
    orientation = _read_orientation(image)
    scale = _level_scale(image) if _has_levels(image) else None
    square = image if image.width == image.height or not resize else image.crop(_center_square(image.size, orientation))
    if close and square is not image:
        image.close()  # frees its pixels
    square = _to_rgb(square, scale)
    if close and square is not image:
        image.close()
    if orientation in _UPRIGHT:
        square = square.transpose(_UPRIGHT[orientation])
    if resize and square.size != (SIDE, SIDE):
        # Crop before resizing instead of `resize(box=...)`: Pillow 13 changed the order of its two passes, which
        # changes pixels for non-square boxes.
        square = square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.array(square)  # (32, 32, 3) or (height, width, 3)


def _read_orientation(image: Image.Image) -> int:
    for key in image.info.keys() & _EXIF_KEYS:
        block = image.info[key]
        if isinstance(block, str):
            try:
                block = bytes.fromhex("".join(block.split("\n")[3:]))  # as Pillow reads it
            except ValueError:
                continue
        if isinstance(block, bytes):
            check_cost(block)
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block leaves the pixels intact
        return 1


def _center_square(size: tuple[int, int], orientation: int) -> tuple[int, int, int, int]:
    """Return the box of the center square; in the upright picture, its offsets are rounded down."""
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    if orientation in (2, 3, 7, 8):  # the left side becomes the right one, or the lower one
        left = size[0] - side - left
    if orientation in (3, 4, 6, 7):  # the upper side becomes the lower one, or the right one
        top = size[1] - side - top
    return left, top, left + side, top + side


def _to_rgb(image: Image.Image, scale: tuple[float, float] | None) -> Image.Image:
    """Convert to three channels of 8 bits, with transparency composited over white."""
    if scale is None and image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.width * image.height <= _BAND_PIXELS:
        return _band_to_rgb(image, scale)
    whole = Image.new("RGB", image.size)
    for box in _bands(image):
        whole.paste(_band_to_rgb(image.crop(box), scale), box)
    return whole


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _band_to_rgb(image: Image.Image, scale: tuple[float, float] | None) -> Image.Image:
    if scale is not None:
        image = _to_eight_bits(image, *scale)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return white.convert("RGB")


def _has_levels(image: Image.Image) -> bool:
    """Whether the image has gray levels of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _levels(image: Image.Image) -> NDArray[np.float32]:
    levels = np.nan_to_num(np.array(image, dtype=np.float32), nan=0.0)  # (H, W)
    np.clip(levels, -1e30, 1e30, out=levels)  # so that the difference of two levels is finite
    return levels


def _level_scale(image: Image.Image) -> tuple[float, float]:
    """The levels of black and white, from all pixels."""
    lowest, highest = math.inf, -math.inf
    for box in _bands(image):
        levels = _levels(image.crop(box))
        lowest, highest = min(lowest, float(levels.min())), max(highest, float(levels.max()))
    return _level_range(image.mode, lowest, highest)


def _to_eight_bits(image: Image.Image, low: float, high: float) -> Image.Image:
    """Convert 16-bit, 32-bit or floating-point gray levels to mode L, or LA where one level is transparent."""
    levels = _levels(image)  # (H, W)
    transparent = image.info.get("transparency")
    alpha = np.where(levels == transparent, 0, 255).astype(np.uint8) if isinstance(transparent, int) else None
    levels -= low
    levels /= high - low
    levels *= 255
    eight = Image.fromarray(np.rint(levels).astype(np.uint8))
    if alpha is not None:
        eight.putalpha(Image.fromarray(alpha))
    return eight


def _level_range(mode: str, lowest: float, highest: float) -> tuple[float, float]:
    """Return the levels of black and white: the smallest common scale that covers all levels, else their range.

    Pillow also uses mode I for 16-bit files, so the smallest scale of this mode is 16 bits.
    """
    scales = (1.0, 255.0, 65535.0) if mode == "F" else (65535.0,)
    for white in scales:
        if lowest >= 0 and highest <= white:
            return 0.0, white
    return lowest, highest if highest > lowest else math.inf  # a single level becomes black
