"""Read the pickled files of CIFAR-10 and CIFAR-100. The checksum and the unpickler use the same bytes."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ToolkitError
from toolkit.files import escape, open_regular

MAX_BYTES = 256 * 2**20  # the largest file, CIFAR-100's training images, has 155 MB

_ARRAY_PARTS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class _Reader(pickle.Unpickler):
    """Allow only arrays, text, bytes, lists, numbers and dictionaries; any other name raises `UnpicklingError`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"names {module}.{name}")
        if module == "numpy":
            return getattr(np, name)
        return np.empty(0).__reduce__()[0]  # the function that rebuilds arrays, whose module changed its name


def read_pickle(path: Path, md5: str) -> dict[str, Any]:
    """Read a pickled dictionary whose MD5 is known.

    Raises:
        ToolkitError: not a regular file, a different MD5, or contents other than plain values and arrays.
    """
    with open_regular(path, max_bytes=MAX_BYTES) as file:
        content = file.read(MAX_BYTES)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ToolkitError(f"{escape(path)}: its MD5 is {found}, not {md5}")
    try:
        values = _Reader(io.BytesIO(content), encoding="latin1").load()  # written by Python 2
    except Exception as error:  # an unpickler raises nearly everything
        raise ToolkitError(f"{escape(path)} cannot be read: {error!r:.200}") from error
    if not isinstance(values, dict):
        raise ToolkitError(f"{escape(path)} does not hold a dictionary")
    return values


def read_batch(path: Path, md5: str, *, labels: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one batch of images: uint8 (N, 3, 32, 32), and their labels, int64 (N,).

    Args:
        path: the file.
        md5: its checksum.
        labels: the key of the labels.
        classes: the number of classes.

    Raises:
        ToolkitError: see `read_pickle`; or the dictionary does not hold images and labels.
    """
    values = read_pickle(path, md5)
    pixels, numbers = values.get("data"), values.get(labels)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise ToolkitError(f"{escape(path)} does not hold images of 32x32 pixels")
    if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number < classes for number in numbers):
        raise ToolkitError(f"{escape(path)}: its labels are not numbers from 0 to {classes - 1}")
    if len(numbers) != len(pixels):
        raise ToolkitError(f"{escape(path)} has {len(pixels)} images and {len(numbers)} labels")
    return pixels.reshape(-1, 3, 32, 32), np.array(numbers, dtype=np.int64)
