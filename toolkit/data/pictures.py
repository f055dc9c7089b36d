"""Decode many picture files into one array, on all cores."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from toolkit.cores import available_cores
from toolkit.errors import ToolkitError
from toolkit.inference.image import SIDE, read_image_and_size
from toolkit.reporting import Progress, ignore

BYTES_PER_PICTURE = 3 * SIDE * SIDE

# Pictures per task of the thread pool: few enough for a smooth progress bar, enough for a low overhead.
_SHARE = 64


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures, in the order of their paths.

    Attributes:
        pixels: uint8 (N, 3, 32, 32), RGB; zeros where a picture could not be decoded.
        digests: the first 16 bytes of each picture's SHA-256 over its pixels, as bytes (N,) of type S16.
        small: bool (N,): the shorter side of the file's picture has fewer than 32 pixels.
        errors: index -> the error, for each picture that could not be decoded.
        near_duplicates: pairs of a training and a test picture (`toolkit.data.leaks`); None where not counted.
    """

    pixels: NDArray[np.uint8]
    digests: NDArray[np.bytes_]
    small: NDArray[np.bool_]
    errors: dict[int, str]
    near_duplicates: int | None = None

    @classmethod
    def empty(cls, count: int) -> "Pictures":
        """Allocate arrays for `count` pictures."""
        return cls(np.zeros((count, 3, SIDE, SIDE), np.uint8), np.zeros(count, "S16"), np.zeros(count, np.bool_), {})

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """bool (N,): the pictures that were decoded."""
        found = np.ones(len(self), np.bool_)
        found[list(self.errors)] = False
        return found


def decode_pictures(paths: Sequence[str | PathLike[str]], *, on_progress: Progress = ignore) -> Pictures:
    """Decode picture files by the picture rule (`toolkit.inference.image`).

    Uses threads because Pillow releases the GIL while it decodes: for 9,000 PNG files of 32x32, two threads took 1.3 s,
    two processes 1.1 s plus their start, and a single one 2.1 s. Threads also share the lock that
    limits decoding to one large picture at a time.

    Args:
        paths: the files.
        on_progress: receives the number of decoded pictures, and of all pictures.
    """
    pictures = Pictures.empty(len(paths))

    def decode_share(start: int) -> int:
        for index in range(start, min(start + _SHARE, len(paths))):
            try:
                _decode_into(pictures, index, paths[index])
            except ToolkitError as error:
                pictures.errors[index] = str(error)
        return min(_SHARE, len(paths) - start)

    done = 0
    on_progress(0, len(paths))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged EXIF blocks and large pictures
        for count in _map_in_threads(decode_share, range(0, len(paths), _SHARE)):
            done += count
            on_progress(done, len(paths))
    return pictures


def _map_in_threads(function: Callable[[int], int], items: range) -> Iterator[int]:
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="decode") as pool:
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # on Ctrl-C, skip the waiting pictures


def _decode_into(pictures: Pictures, index: int, path: str | PathLike[str]) -> None:
    pixels, size = read_image_and_size(path)
    pictures.pixels[index] = pixels.transpose(2, 0, 1)
    pictures.digests[index] = hashlib.sha256(pictures.pixels[index].data).digest()[:16]
    pictures.small[index] = min(size) < SIDE
