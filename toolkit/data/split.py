"""Split images into training and validation by a seed, or into training and test by their pixels; stratified."""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.data.images import Images
from toolkit.errors import UsageError

SPLIT_SEED = 0  # every run has the same validation images, so that runs are comparable


def split_images(images: Images, val_size: float) -> tuple[Images, Images]:
    """Split off validation images: a number, or a share below 1; identical images of a class stay on one side.

    Raises `UsageError` as `split` does.
    """
    pixels = images.images.cpu().contiguous().numpy()
    digests = [sha256(image.data).digest() for image in pixels] if val_size else None
    train_indices, val_indices = split(images.labels, val_size, seed=SPLIT_SEED, digests=digests)
    return images.take(train_indices), images.take(val_indices)


def split(
    labels: Tensor, val_size: float, *, seed: int, digests: Sequence[bytes] | None = None
) -> tuple[Tensor, Tensor]:
    """Split indices into training and validation in proportion to the classes; each class keeps a training image.

    The result depends on the arguments alone, not on the state of any random generator.

    Args:
        labels: int64 (N,).
        val_size: the number of validation images, or a share of each class if below 1 (at least one image of every
            class with two or more); 0 for none. Repeated digests can reduce the number.
        seed: the seed of the random selection.
        digests: N digests of the pixels; images of a class with equal digests stay on one side. None: all differ.

    Returns:
        Indices of the training images, int64 (N - V,), and of the validation images, int64 (V,): sorted, disjoint, and
        complete.

    Raises:
        UsageError: `val_size` is negative, or so large that a class would have no training image.
    """
    if val_size < 0:
        raise UsageError(f"the validation size is {val_size:g}; it must be 0 or more")
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in _shares(labels, val_size).items():
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        if digests is None:
            held_out[shuffled[:share]] = True
        else:
            held_out[_take_equal_ones(shuffled.tolist(), share, digests)] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _take_equal_ones(members: Sequence[int], count: int, digests: Sequence[bytes]) -> list[int]:
    """Select up to `count` members in order; members with equal digests are selected together or not at all."""
    sizes = Counter(digests[member] for member in members)
    chosen: set[bytes] = set()
    for member in members:
        digest = digests[member]
        if digest not in chosen and sizes[digest] <= count:
            chosen.add(digest)
            count -= sizes[digest]
    return [member for member in members if digests[member] in chosen]


TEST_SHARE = 0.2  # of each class, in a folder without splits


def split_by_digest(labels: NDArray[np.int64], digests: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Choose about a fifth of each class for the test set: the pictures with the smallest digests.

    The choice depends only on pixels and labels, not on names or order, and identical pictures stay on one side. A
    class with a single picture, or with identical ones only, gets no test pictures.

    Args:
        labels: int64 (N,).
        digests: of the pixels, S16 (N,).

    Returns:
        bool (N,): the test pictures.
    """
    is_test = np.zeros(len(labels), np.bool_)
    order = np.lexsort((digests, labels))
    boundaries = np.flatnonzero(np.diff(labels[order])) + 1
    for members in np.split(order, boundaries):
        if len(members) < 2:
            continue
        count = max(1, round(TEST_SHARE * len(members)))
        sorted_digests = digests[members]
        starts = np.flatnonzero(sorted_digests[1:] != sorted_digests[:-1]) + 1  # of each digest but the first
        if len(starts):
            fitting = starts[starts <= count]
            is_test[members[: fitting[-1] if len(fitting) else starts[0]]] = True
    return is_test


def _shares(labels: Tensor, val_size: float) -> dict[int, int]:
    """Compute the proportional number of validation images per class; largest fractions get the remainder."""
    counts = {label: count for label, count in enumerate(torch.bincount(labels).tolist()) if count}
    if 0 < val_size < 1:
        return {label: min(max(1, round(val_size * count)), count - 1) for label, count in counts.items()}
    size, most = int(val_size), len(labels) - len(counts)
    if size > most:
        raise UsageError(
            f"a validation size of {size} is too large: of {len(labels):,} training images in {len(counts):,} classes "
            f"at most {most:,} can be held out; give a smaller --val-size, or a share such as 0.1"
        )
    exact = {label: size * count / len(labels) for label, count in counts.items()}
    shares = {label: int(share) for label, share in exact.items()}
    by_fraction = sorted(exact, key=lambda label: (shares[label] - exact[label], label))
    remainder = size - sum(shares.values())
    while remainder:  # needs a second round only if classes are too small for their share
        for label in by_fraction:
            if remainder and shares[label] + 1 < counts[label]:
                shares[label] += 1
                remainder -= 1
    return shares
