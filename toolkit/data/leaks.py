"""Find pictures that occur twice: in two splits, under two labels, or nearly the same in training and test."""

import numpy as np
from numpy.typing import NDArray

from toolkit.data.listing import Listing
from toolkit.errors import ToolkitError

# Two pictures are near duplicates where the correlation of their 3,072 values, less the mean of each channel, is at
# least 0.95. Chosen by eye on CIFAR-10, which has 80 such pairs of a training and a test image: about 75 show the same
# picture with other brightness, contrast, compression or margins, the others a similar horizon.
NEAR_CORRELATION = 0.95

MAX_PAIRS = 5 * 10**9  # compared in about 40 seconds by one core; above, near duplicates are not counted

_BLOCK = 512  # pictures compared at a time
_CELLS = 4  # of a thumbnail, a side


def check_labels(listing: Listing, digests: NDArray[np.bytes_], usable: NDArray[np.bool_]) -> None:
    """Raise an error where the same picture has two labels.

    Args:
        listing: the pictures.
        digests: of their pixels, S16 (N,).
        usable: bool (N,): the pictures to compare.

    Raises:
        ToolkitError: names both files of the first pair, and the number of further pictures.
    """
    candidates = np.flatnonzero(usable)
    order = candidates[np.lexsort((listing.labels[candidates], digests[candidates]))]
    same = digests[order[1:]] == digests[order[:-1]]
    pairs = np.flatnonzero(same & (listing.labels[order[1:]] != listing.labels[order[:-1]]))
    if not len(pairs):
        return

    def describe(index: int) -> str:
        return f"{listing.escaped_path(index)} is {listing.class_names[listing.labels[index]]}"

    first, second = sorted(order[[pairs[0], pairs[0] + 1]].tolist())
    more = f"; so are {len(pairs) - 1:,} other pairs" if len(pairs) > 1 else ""
    raise ToolkitError(
        f"the same picture has two labels: {describe(first)}, {describe(second)}{more}. Remove one of each pair"
    )


def find_repeated(digests: NDArray[np.bytes_], splits: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark the pictures of training that are identical to one of validation or test, and of validation to one of test.

    Args:
        digests: S16 (N,).
        splits: uint8 (N,); TRAIN < VAL < TEST.
    """
    if not len(digests):
        return np.zeros(0, np.bool_)
    order = np.argsort(digests, kind="stable")
    starts = np.flatnonzero(np.r_[True, digests[order[1:]] != digests[order[:-1]]])
    highest = np.maximum.reduceat(splits[order], starts)
    repeated = np.empty(len(digests), np.bool_)
    repeated[order] = splits[order] < np.repeat(highest, np.diff(np.r_[starts, len(order)]))
    return repeated


def count_near_duplicates(pixels: NDArray[np.uint8], train: NDArray[np.intp], test: NDArray[np.intp]) -> int | None:
    """Count the pairs of a training and a test picture that are near duplicates; None where there are too many pairs.

    A correlation c of two pictures is a squared distance of 2 (1 - c) between their normalized values. Averaging cells
    of 8x8 pixels never increases a distance, so only the pairs whose 4x4 thumbnails are that near are compared in full:
    the count is exact.

    Args:
        pixels: uint8 (N, 3, 32, 32).
        train, test: indices of the training and of the test pictures.
    """
    if len(train) * len(test) > MAX_PAIRS:
        return None
    near = 2 * (1 - NEAR_CORRELATION) + 1e-4  # rounding
    count = 0
    test_thumbnails = _thumbnails(pixels, test)
    test_squares = np.square(test_thumbnails).sum(axis=1)
    for start in range(0, len(train), _BLOCK):
        block = train[start : start + _BLOCK]
        thumbnails = _thumbnails(pixels, block)
        squares = np.square(thumbnails).sum(axis=1)
        products = thumbnails @ test_thumbnails.T  # (block, M)
        rows, columns = np.nonzero(products >= (squares[:, None] + (test_squares - near)) / 2)
        count += _count_correlated(pixels, block[rows], test[columns])
    return count


def _thumbnails(pixels: NDArray[np.uint8], index: NDArray[np.intp]) -> NDArray[np.float32]:
    """Normalized pictures, averaged over cells and scaled so that distances are not increased: float32 (K, 48)."""
    side = pixels.shape[-1] // _CELLS
    found = np.empty((len(index), 3 * _CELLS**2), np.float32)
    for start in range(0, len(index), _BLOCK):
        values = _normalize(pixels[index[start : start + _BLOCK]])
        sums = values.reshape(-1, 3, _CELLS, side, _CELLS, side).sum(axis=(3, 5))
        found[start : start + _BLOCK] = sums.reshape(len(values), -1) / side
    return found


def _normalize(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Less the mean of each channel, and scaled to length 1: float32 (K, 3, 1024); zeros for a plain picture."""
    values = pictures.reshape(len(pictures), 3, -1).astype(np.float32)
    values -= values.mean(axis=2, keepdims=True)
    values /= np.maximum(np.sqrt(np.square(values).sum(axis=(1, 2), keepdims=True)), 1e-6)
    return values


def _count_correlated(pixels: NDArray[np.uint8], first: NDArray[np.intp], second: NDArray[np.intp]) -> int:
    count = 0
    for start in range(0, len(first), _BLOCK):
        pairs = (_normalize(pixels[index[start : start + _BLOCK]]) for index in (first, second))
        count += int(np.count_nonzero(np.einsum("kcp,kcp->k", *pairs) >= NEAR_CORRELATION))
    return count
