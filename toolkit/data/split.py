"""Training and validation images: a stratified division that depends on nothing but its seed."""

import torch
from torch import Tensor

from toolkit.data.images import Images
from toolkit.errors import UsageError

SPLIT_SEED = 0  # the same validation images in every run, so that runs can be compared image by image


def split_images(images: Images, val_size: int) -> tuple[Images, Images]:
    """Training and validation images, stratified. Raises `UsageError` where too few are left to train on."""
    train_indices, val_indices = split(images.labels, val_size, seed=SPLIT_SEED)
    return images.take(train_indices), images.take(val_indices)


def split(labels: Tensor, val_size: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Divide images into training and validation, each class in proportion.

    The result depends on the three arguments alone: not on the state of any random generator.

    Args:
        labels: int64 (N,).
        val_size: how many validation images; 0 for none.
        seed: chooses which.

    Returns:
        Indices of the training images, int64 (N - val_size,), and of the validation images, int64 (val_size,): sorted,
        without overlap, together every index once.

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
    """How many of the `val_size` images each class gives: in proportion, the rest to the largest fractions."""
    counts = torch.bincount(labels).tolist()
    exact = {label: val_size * count / max(len(labels), 1) for label, count in enumerate(counts) if count}
    shares = {label: int(share) for label, share in exact.items()}
    by_fraction = sorted(exact, key=lambda label: (shares[label] - exact[label], label))
    for label in by_fraction[: val_size - sum(shares.values())]:
        shares[label] += 1
    return shares
