"""Split images into training and validation sets: stratified, and determined by the seed alone."""

import torch
from torch import Tensor

from toolkit.data.images import Images
from toolkit.errors import UsageError

SPLIT_SEED = 0  # every run has the same validation images, so that runs are comparable


def split_images(images: Images, val_size: int) -> tuple[Images, Images]:
    """Split off `val_size` validation images. Raises `UsageError` where a class would have no training image left."""
    train_indices, val_indices = split(images.labels, val_size, seed=SPLIT_SEED)
    return images.take(train_indices), images.take(val_indices)


def split(labels: Tensor, val_size: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices into training and validation, each class in proportion.

    The result depends on the three arguments alone, not on the state of any random generator.

    Args:
        labels: int64 (N,).
        val_size: the number of validation images; 0 for none.
        seed: selects them.

    Returns:
        Indices of the training images, int64 (N - val_size,), and of the validation images, int64 (val_size,): sorted,
        disjoint, and complete.

    Raises:
        UsageError: `val_size` is negative, or leaves a class without training images.
    """
    if val_size < 0:
        raise UsageError(f"the validation size is {val_size}; it must be 0 or more")
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in _shares(labels, val_size).items():
        members = (labels == label).nonzero().flatten()
        if share >= len(members):
            raise UsageError(
                f"a validation size of {val_size} leaves no training image of class {label}; "
                f"there are {len(labels)} images, {len(members)} of that class"
            )
        held_out[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _shares(labels: Tensor, val_size: int) -> dict[int, int]:
    """The number of validation images of each class: in proportion, the remainder to the largest fractions."""
    counts = torch.bincount(labels).tolist()
    exact = {label: val_size * count / max(len(labels), 1) for label, count in enumerate(counts) if count}
    shares = {label: int(share) for label, share in exact.items()}
    by_fraction = sorted(exact, key=lambda label: (shares[label] - exact[label], label))
    for label in by_fraction[: val_size - sum(shares.values())]:
        shares[label] += 1
    return shares
