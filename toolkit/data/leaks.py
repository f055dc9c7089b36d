"""Find pictures that occur twice: in two splits, under two labels, or nearly the same in training and test."""

import numpy as np
from numpy.typing import NDArray

from toolkit.data.listing import Listing
from toolkit.errors import ToolkitError

# Two pictures are near duplicates if their 3,072 values, with the channel means subtracted, have a correlation of at
# least 0.95. The threshold was chosen by inspecting CIFAR-10, which has 80 such pairs of a training and a test image:
# about 75 show the same picture with different brightness, contrast, compression or margins, the others a similar
# horizon.
NEAR_CORRELATION = 0.95

MAX_PAIRS = 5 * 10**9  # take about 40 seconds on one core; with more pairs, near duplicates are not counted

_BLOCK = 512  # pictures compared at a time
_CELLS = 4  # per side of a thumbnail


def check_labels(listing: Listing, digests: NDArray[np.bytes_], usable: NDArray[np.bool_]) -> None:
    """Raise an error if the same picture has two labels.

    Args:
        listing: the pictures.
        digests: of their pixels, S16 (N,).
        usable: bool (N,): the pictures to compare.

    Raises:
        ToolkitError: a picture has two labels; the message names the first pair and counts the others.
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
    more = f"; the same applies to {len(pairs) - 1:,} more" if len(pairs) > 1 else ""
    raise ToolkitError(
        f"the same picture has two labels: {describe(first)}, {describe(second)}{more}. Remove one of each pair"
    )


def find_repeated(digests: NDArray[np.bytes_], splits: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark training pictures that occur in validation or test, and validation pictures that occur in test.

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
    """Count the pairs of a training and a test picture that are near duplicates; return None for too many pairs.

    Two normalized pictures with correlation c have the squared distance 2 (1 - c). Averaging cells of 8x8 pixels never
    increases a distance, so the count stays exact if only pairs with close 4x4 thumbnails are compared in full.

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
    """Normalize pictures, average them over cells, and scale so that distances do not increase: float32 (K, 48)."""
    side = pixels.shape[-1] // _CELLS
    found = np.empty((len(index), 3 * _CELLS**2), np.float32)
    for start in range(0, len(index), _BLOCK):
        values = _normalize(pixels[index[start : start + _BLOCK]])
        sums = values.reshape(-1, 3, _CELLS, side, _CELLS, side).sum(axis=(3, 5))
        found[start : start + _BLOCK] = sums.reshape(len(values), -1) / side
    return found


def _normalize(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Subtract each channel's mean and scale to length 1: float32 (K, 3, 1024); zeros for a uniform picture."""
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
